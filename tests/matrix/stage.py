"""The gateway as a process before the three providers, and the accounts of its tenants."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import ROUND_CEILING, Decimal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from ..servers import Server, environment, fetch, serving, shown, uvicorn
from .model import Counts
from .provider import KEYS, Providers

ADMIN = "an-admin-key-of-more-than-32-characters"
PRICES = {"in": Decimal("3"), "out": Decimal("15"), "cached": Decimal("0.3"), "cache_write": Decimal("3.75")}
"""USD per million tokens, of every model here."""

MODELS = {
    "openai": ("gpt-big", "gpt-5"),
    "anthropic": ("claude-big", "claude-sonnet-4-6"),
    "vendor": ("deep-big", "deep-1"),
}
"""For each provider the name that clients use, and its own."""

_FILE = """
[providers.openai]
base_url = "{url}/openai/v1"
api_key = "{openai}"

[providers.anthropic]
base_url = "{url}/anthropic"
api_key = "{anthropic}"

[providers.vendor]
type = "deepseek"
base_url = "{url}/vendor/v1"
api_key = "{vendor}"
"""
_NUMBERS = count(1)


class Stage(NamedTuple):
    """The process, and what it asks."""

    gateway: Server
    providers: Providers


def exact_cost(billed: Iterable[Counts]) -> Decimal:
    """What answers cost in USD, each rounded up to the next nano-USD: worked out apart from the gateway."""
    total = Decimal(0)
    for one in billed:
        plain = one.prompt - one.cached - one.written
        micro = (plain * PRICES["in"] + one.cached * PRICES["cached"] + one.written * PRICES["cache_write"]
                 + one.made * PRICES["out"])  # fmt: skip
        total += (micro * 1000).to_integral_value(ROUND_CEILING) / 10**9
    return total


class Account:
    """A tenant of its own, for one test.

    Attributes:
        url: The gateway.
        key: The tenant's key.
    """

    def __init__(self, stage: Stage, **limits: Any) -> None:
        self._stage = stage
        self.url = stage.gateway.url
        self._admin = partial(fetch, key=ADMIN)
        self.id = f"team-{next(_NUMBERS)}"
        settings = {"budget_usd": 5, "concurrency": 2, "rate_requests": 1000, "rate_tokens": 10_000_000, **limits}
        made = self._admin(f"{self.url}/api/tenants", {"id": self.id, "name": self.id, **settings})
        assert made.status == 201, made.body
        made = self._admin(f"{self.url}/api/tenants/{self.id}/keys", {"name": "test"})
        assert made.status == 201, made.body
        self.key: str = made.json()["key"]

    def records(self) -> list[dict[str, Any]]:
        """What was booked, the oldest first; amounts as floats."""
        records: list[dict[str, Any]] = self._admin(f"{self.url}/api/tenants/{self.id}/records").json()["records"]
        return records[::-1]

    def _standing(self) -> dict[str, Any]:
        found: dict[str, Any] = self._admin(f"{self.url}/api/tenants/{self.id}").json()
        return found

    def closed(self, calls: int) -> dict[str, Any]:
        """Where the money stands, once so many calls are booked and nothing is held any more."""
        until = time.monotonic() + 20
        while True:
            found = self._standing()
            if len(self.records()) >= calls and found["held_usd"] == 0 and found["tokens_held"] == 0:
                break
            assert time.monotonic() < until, f"still held or never booked: {found}, {self.records()}"
            time.sleep(0.01)
        records = self.records()
        stats = self._admin(f"{self.url}/api/stats?tenant={self.id}").json()
        assert len(records) == stats["requests"] == calls
        assert stats["tokens_in"] == sum(one["prompt_tokens"] for one in records)
        assert stats["tokens_out"] == sum(one["completion_tokens"] for one in records)
        spent = sum(Decimal(str(one["cost_usd"])) for one in records)
        assert Decimal(str(stats["cost_total_usd"])) == Decimal(str(found["spent_usd"])) == spent
        return found

    def settled(self, *flags: str) -> None:
        """Exactly what the providers billed was booked, call by call, part by part, and nothing else is held or spent."""
        billed = self._stage.providers.billed
        found = self.closed(len(billed))
        for record, one in zip(self.records(), billed, strict=True):
            assert record["flags"] == list(flags)
            parts = ("prompt", "completion", "cached", "cache_write", "reasoning")
            assert tuple(record[f"{part}_tokens"] for part in parts) == tuple(one)
            assert Decimal(str(record["cost_usd"])) == exact_cost([one])
        assert Decimal(str(found["spent_usd"])) == exact_cost(billed)
        assert found["tokens_spent"] == sum(one.prompt + one.made for one in billed)

    def charged_for_a_part(self, status: int | None = 200) -> None:
        """The one call broke off: it is booked as what it may have used, flagged, and it was not free."""
        self.closed(1)
        (record,) = self.records()
        assert {"estimated", "aborted"} & set(record["flags"])
        assert 0 < record["cost_usd"] < 0.1
        assert record["prompt_tokens"] > 0
        if status is not None:
            assert record["status"] == status


@contextmanager
def staged(folder: Path, **settings: str) -> Iterator[Stage]:
    """The process with everything on: tenants, budgets in SQLite, rate limits, tracing; it tries nothing twice."""
    providers = Providers()
    with serving(providers) as url:
        file = _FILE.format(url=url, **KEYS)
        for provider, (name, own) in MODELS.items():
            file += f'[models.{name}]\ntargets = ["{provider}/{own}"]\n'
            file += "".join(f"usd_per_million_{kind} = {price}\n" for kind, price in PRICES.items())
        env = environment(folder, file=file, GATEWAY_ADMIN_KEY=ADMIN, GATEWAY_MAX_RETRIES="0", BREAKER_FAILURES="0",
                          **settings)  # fmt: skip
        with uvicorn("examples:app", env, folder) as server:
            yield Stage(server, providers)


@contextmanager
def playing(stage: Stage) -> Iterator[Stage]:
    """For one test: nothing asked yet; afterwards the providers had nothing to object to, and no secret was logged."""
    stage.providers.forget()
    with shown(stage.gateway):
        yield stage
    assert stage.providers.objections == []
    for secret in (*KEYS.values(), ADMIN, "Traceback"):
        assert secret not in stage.gateway.err
