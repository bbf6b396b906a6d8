"""The admin app over a store in memory, with a clock that tests set."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from itertools import count
from typing import Any

import orjson
import pytest

from asgi_llm_gateway.admin.app import Admin
from asgi_llm_gateway.damping import Damping
from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.records import Amount, CallRecord, Limit, Usage
from asgi_llm_gateway.stores.memory import MemoryStore
from asgi_llm_gateway.tracelog import TraceLog
from asgi_llm_gateway.traces.memory import MemoryTraces

from ..conversation import JSON, Answer, ask

ADMIN_KEY = "an-admin-key-of-thirty-two-characters-or-more"
NOON = 1_792_065_600.0  # 2026-10-15 12:00 UTC, a Thursday
LOTS = Amount(10**15, 10**9)


def bearer(key: str) -> tuple[bytes, bytes]:
    """The header that shows a key."""
    return b"authorization", f"Bearer {key}".encode()


class Office:
    """The admin API, its store, its clock, and all that it ever answered."""

    def __init__(self, admin_key: str | None = ADMIN_KEY) -> None:
        self.store = MemoryStore()
        self.traces = TraceLog()
        self.now = NOON
        self.answers: list[Answer] = []
        self.app = Admin(
            admin_key=admin_key, tenants=self.open, ledger=self.open, log=self.open, traces=self.open_traces,
            clock=lambda: self.now, damping=Damping(longest=0),
        ).app()  # fmt: skip
        self._numbers = count(1)

    async def open(self) -> MemoryStore:
        """The opener of each store."""
        return self.store

    async def open_traces(self) -> MemoryTraces:
        """The opener of the traces."""
        return MemoryTraces(self.traces)

    async def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = ADMIN_KEY, accept: str = ""
    ) -> Answer:
        """A request with a key; what stands behind ``?`` is the query."""
        headers = [JSON, *([bearer(key)] if key is not None else [])]
        if accept:
            headers.append((b"accept", accept.encode()))
        path, _, query = path.partition("?")
        raw = orjson.dumps(body) if body is not None and not isinstance(body, bytes) else body
        answer = await ask(self.app, raw, path, method=method, headers=headers, query_string=query.encode())
        self.answers.append(answer)
        return answer

    async def get(self, path: str, **more: Any) -> Answer:
        """A GET."""
        return await self.ask("GET", path, **more)

    async def team(self, tenant: str = "team", **fields: Any) -> Answer:
        """Make a tenant."""
        made = await self.ask("POST", "/api/tenants", {"id": tenant, **fields})
        assert made.status == 201, made.body
        return made

    async def key(self, tenant: str = "team", **fields: Any) -> dict[str, Any]:
        """Make a key."""
        made = await self.ask("POST", f"/api/tenants/{tenant}/keys", fields)
        assert made.status == 201, made.body
        found: dict[str, Any] = made.json()
        return found

    async def settle(self, tenant: str = "team", *, window: int = 0, held: Amount = LOTS, **fields: Any) -> None:
        """Book a call, as the budget middleware would."""
        hold_id = f"call-{next(self._numbers)}"
        hold = await self.store.hold(
            tenant,
            hold_id=hold_id,
            limits=(Limit("", window, None, None),),
            least=held,
            wanted=held,
            now=self.now,
            ttl=600,
        )
        record = CallRecord(hold=hold_id, tenant=tenant, **{"started": self.now, "ended": self.now + 1.5, **fields})
        assert await self.store.settle(hold, record)  # type: ignore[arg-type]


def exact(answer: Answer) -> Any:
    """The body with every number as the text that it was written as, by Decimal."""
    return json.loads(answer.body, parse_float=Decimal)


@pytest.fixture
def office() -> Office:
    """An admin API of the test's own."""
    return Office()


@asynccontextmanager
async def away(office: Office) -> AsyncIterator[None]:
    """While no store answers."""

    async def fails(*_: Any, **__: Any) -> Any:
        raise StoreError("the database did not answer")

    verbs = ("identify", "admin_key", "tenant", "tenants", "balance", "records", "stats", "adjustments", "keys")
    for verb in verbs:
        setattr(office.store, verb, fails)
    yield
    for verb in verbs:
        delattr(office.store, verb)


USAGE = Usage(prompt=100, completion=20, cached=30, cache_write=5, reasoning=7)
