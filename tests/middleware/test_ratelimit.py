"""How often: requests per window, per tenant and key; what a client is told."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from typing import Any

import pytest

from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware, go_duration
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.rates.tally import TALLY
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.stores.memory import MemoryStore

from ..conversation import CHAT, JSON, ask, get
from . import Gate, Stranger

LONG = 1e7
"""A window in seconds that no test outlives."""


def setting(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Settings from the environment."""
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    forget()


async def test_alone_it_takes_its_limit_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """``RateLimitMiddleware(app)`` and nothing else; one tenant for all, called default."""
    setting(monkeypatch, RATE_LIMIT_MAX_REQUESTS="3", RATE_LIMIT_WINDOW_MS=str(int(LONG * 1000)))
    app = Stranger()
    layer = RateLimitMiddleware(app)
    assert [(await ask(layer, CHAT)).status for _ in range(5)] == [200, 200, 200, 429, 429]
    assert app.calls == 3


async def test_alone_without_any_setting_it_serves() -> None:
    """The default is 600 in a minute."""
    answer = await ask(RateLimitMiddleware(Stranger()), CHAT)
    assert answer.status == 200
    assert answer.headers["x-ratelimit-limit-requests"] == "600"
    assert answer.headers["x-ratelimit-remaining-requests"] == "599"


async def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENABLE_RATE_LIMIT=false: nothing is counted, no header is set."""
    setting(monkeypatch, ENABLE_RATE_LIMIT="false", RATE_LIMIT_MAX_REQUESTS="1")
    layer = RateLimitMiddleware(Stranger())
    for _ in range(3):
        answer = await ask(layer, CHAT)
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


async def test_a_limit_in_code_stands_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes ``requests=1`` means it."""
    setting(monkeypatch, ENABLE_RATE_LIMIT="false")
    layer = RateLimitMiddleware(Stranger(), requests=1, window=LONG)
    assert [(await ask(layer, CHAT)).status for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    ("workers", "replicas", "requests", "each"),
    [("4", "1", 10, 2), ("3", "1", 9, 3), ("8", "1", 2, 1), ("2", "3", 12, 2)],
)
async def test_the_limit_is_divided_among_the_workers(
    monkeypatch: pytest.MonkeyPatch, workers: str, replicas: str, requests: int, each: int
) -> None:
    """More workers never mean more rate, and every worker admits at least one."""
    setting(monkeypatch, WEB_CONCURRENCY=workers, REPLICAS=replicas)
    layer = RateLimitMiddleware(Stranger(), requests=requests, window=LONG)
    statuses = [(await ask(layer, CHAT)).status for _ in range(each + 2)]
    assert statuses == [200] * each + [429] * 2


async def test_the_limit_holds_under_a_thousand_calls_at_once() -> None:
    """Exactly so many are admitted, however they interleave."""
    app = Stranger()
    gate = Gate(app)
    layer = RateLimitMiddleware(gate, requests=100, window=LONG)
    calls = [asyncio.ensure_future(ask(layer, CHAT)) for _ in range(1000)]
    refused = asyncio.Event()
    for one in calls:
        one.add_done_callback(lambda _: refused.set() if sum(call.done() for call in calls) == 900 else None)
    await refused.wait()
    assert gate.waiting == 100
    gate.open.set()
    answers = await asyncio.gather(*calls)
    assert sorted(answer.status for answer in answers) == [200] * 100 + [429] * 900
    assert app.calls == 100
    remaining = sorted(
        int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers if answer.status == 200
    )
    assert remaining == list(range(100))


async def test_a_refusal_says_when_to_come_back() -> None:
    """429 with ``retry-after`` in whole seconds and in milliseconds, as the SDKs read them, and no call."""
    app = Stranger()
    layer = RateLimitMiddleware(app, requests=1, window=LONG)
    await ask(layer, CHAT)
    answer = await ask(layer, CHAT)
    assert (answer.status, answer.error["type"], answer.error["code"]) == (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
    )
    seconds, millis = int(answer.headers["retry-after"]), int(answer.headers["retry-after-ms"])
    assert 0 < seconds <= 2 * LONG
    assert seconds == math.ceil(millis / 1000)
    assert answer.headers["x-ratelimit-limit-requests"] == "1"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert answer.headers["x-ratelimit-reset-requests"]
    assert "1 requests" in answer.error["message"]
    assert app.calls == 1


async def test_a_refusal_on_messages_is_anthropics() -> None:
    """In the caller's dialect."""
    layer = RateLimitMiddleware(Stranger(), requests=1, window=LONG)
    await ask(layer, CHAT, "/v1/messages")
    assert (await ask(layer, CHAT, "/v1/messages")).json()["error"]["type"] == "rate_limit_error"


async def test_each_tenant_has_a_window_of_its_own() -> None:
    """One tenant's noise does not slow another."""
    store = MemoryStore()
    layer = TenantMiddleware(RateLimitMiddleware(Stranger(), requests=1, window=LONG), store=store)
    headers = []
    for name in ("a", "b"):
        await store.add_tenant(Tenant(name))
        key, secret = new_key(name)
        await store.add_key(key)
        headers.append([JSON, (b"x-api-key", secret.encode())])
    statuses = [(await ask(layer, CHAT, headers=headers[who])).status for who in (0, 0, 1, 1)]
    assert statuses == [200, 429, 200, 429]


async def test_a_tenants_own_limit_goes_before_the_layers() -> None:
    """More or less than the default; a limit of 0 lets nothing through, and says so for good."""
    store = MemoryStore()
    layer = TenantMiddleware(RateLimitMiddleware(Stranger(), requests=2, window=LONG), store=store)
    for name, limit, statuses in (("more", 3, [200, 200, 200, 429]), ("less", 1, [200, 429]), ("none", 0, [429, 429])):
        await store.add_tenant(Tenant(name, rate_requests=limit))
        key, secret = new_key(name)
        await store.add_key(key)
        headers = [JSON, (b"x-api-key", secret.encode())]
        answers = [await ask(layer, CHAT, headers=headers) for _ in statuses]
        assert [answer.status for answer in answers] == statuses
        assert answers[-1].headers["x-ratelimit-limit-requests"] == str(limit)
    assert answers[-1].headers["x-should-retry"] == "false"
    assert "retry-after" not in answers[-1].headers


async def test_a_key_has_a_limit_within_its_tenants() -> None:
    """Of its own record, or of the layer; headers tell the tighter one, and a refusal says whose it is."""
    store = MemoryStore()
    layer = TenantMiddleware(RateLimitMiddleware(Stranger(), requests=6, key_requests=3, window=LONG), store=store)
    await store.add_tenant(Tenant("a"))
    headers = []
    for limit in (None, 1):
        key, secret = new_key("a")
        await store.add_key(replace(key, rate_requests=limit))
        headers.append([JSON, (b"x-api-key", secret.encode())])
    answers = [await ask(layer, CHAT, headers=headers[who]) for who in (0, 1, 1, 0, 0, 0)]
    assert [answer.status for answer in answers] == [200, 200, 429, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "0", "0", "1", "0", "0"]
    assert "of this key" in answers[2].error["message"]
    other, secret = new_key("a")
    await store.add_key(other)
    last = [await ask(layer, CHAT, headers=[JSON, (b"x-api-key", secret.encode())]) for _ in range(3)]
    assert [answer.status for answer in last] == [200, 200, 429]  # the tenant's six are used
    assert "of this key" not in last[2].error["message"]


async def test_a_wait_that_no_sdk_should_sleep_through_is_not_to_be_retried() -> None:
    """Some clients sleep for as long as they are told."""
    layer = RateLimitMiddleware(Stranger(), requests=1, window=3600)
    await ask(layer, CHAT)
    answer = await ask(layer, CHAT)
    assert answer.headers["x-should-retry"] == "false"
    assert 3590 < int(answer.headers["retry-after"]) <= 3601
    short = RateLimitMiddleware(Stranger(), requests=1, window=30)
    await ask(short, CHAT)
    assert "x-should-retry" not in (await ask(short, CHAT)).headers


async def test_one_layer_serves_the_loops_of_several_threads() -> None:
    """Together they admit what the limit allows."""
    layer = RateLimitMiddleware(Stranger(), requests=50, window=LONG)

    def serve() -> list[int]:
        async def calls() -> list[int]:
            return [(await ask(layer, CHAT)).status for _ in range(40)]

        return asyncio.run(calls())

    statuses = [one for part in await asyncio.gather(*(asyncio.to_thread(serve) for _ in range(3))) for one in part]
    assert (statuses.count(200), statuses.count(429)) == (50, 70)


async def test_what_was_done_is_counted_for_metrics() -> None:
    """The process's own tally."""
    layer = RateLimitMiddleware(Stranger(), requests=2, window=LONG)
    admitted, refused = TALLY.admitted, TALLY.refused["requests"]
    for _ in range(3):
        await ask(layer, CHAT)
    assert (TALLY.admitted - admitted, TALLY.refused["requests"] - refused) == (2, 1)


async def test_authenticated_paths_count_and_the_body_is_left_alone() -> None:
    """``/v1/models`` counts; so does a body that no one could parse; other routes do not."""
    app = Stranger()
    layer = RateLimitMiddleware(app, requests=2, window=LONG)
    assert (await get(layer, "/health")).status == 200
    assert (await get(layer, "/v1/models")).status == 200
    assert (await ask(layer, b"not json")).status == 200
    assert app.bodies[-1] == b"not json"
    assert (await get(layer, "/v1/models")).status == 429
    assert (await get(layer, "/health")).status == 200


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"0ms"),
        (-1, b"0ms"),
        (0.0001, b"1ms"),
        (0.086, b"86ms"),
        (0.9995, b"1s"),
        (1, b"1s"),
        (1.5, b"1.5s"),
        (59.999, b"59.999s"),
        (60, b"1m0s"),
        (360, b"6m0s"),
        (61.25, b"1m1.25s"),
        (3600, b"1h0m0s"),
        (3661, b"1h1m1s"),
        (100_000, b"27h46m40s"),
    ],
)
def test_a_duration_is_written_as_go_does(seconds: float, text: bytes) -> None:
    """OpenAI's headers hold "1s", "6m0s", "86ms"."""
    assert go_duration(seconds) == text


@pytest.mark.parametrize(
    "settings",
    [
        {"requests": 0},
        {"requests": -1},
        {"tokens": 0},
        {"concurrency": 0},
        {"key_requests": 0},
        {"key_tokens": -1},
        {"key_concurrency": 0},
        {"window": 0},
        {"window": -1.0},
        {"queue_seconds": -1},
        {"queue_size": 0},
        {"redis_patience": 0},
        {"lease_seconds": 0},
    ],
)
def test_a_senseless_limit_is_refused_when_it_is_made(settings: dict[str, Any]) -> None:
    """Not at the first call."""
    with pytest.raises(ValueError, match=json.dumps(next(iter(settings.values())))):
        RateLimitMiddleware(Stranger(), **settings)
