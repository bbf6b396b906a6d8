"""The stores of traces: in memory, in a SQLite file, in PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from asgi_llm_gateway._closing import close_all, on_close
from asgi_llm_gateway.stores import _database
from asgi_llm_gateway.stores.migrate import upgrade
from asgi_llm_gateway.stores.tables import TRACES
from asgi_llm_gateway.stores.traces import SQLTraces
from asgi_llm_gateway.tracelog import TraceLog
from asgi_llm_gateway.traces.base import TraceStore
from asgi_llm_gateway.traces.memory import MemoryTraces

from ..stores.conftest import database_url as database_url
from ..stores.conftest import postgres_server as postgres_server
from ..stores.conftest import postgres_url as postgres_url
from .parts import NOON


class Shelf:
    """A store of one kind, of the test's own, with a clock that the test sets."""

    def __init__(self, name: str, url: str | None = None) -> None:
        self.name = name
        self.url = url
        self.now = NOON + 60
        self._memory = TraceLog(10_000)
        if url is not None:
            upgrade(url)

    def opened(self, **more: Any) -> TraceStore:
        """The store as one process has it; another time: as another process has it."""
        if self.url is None:
            retention = more.get("retention", 72 * 3600.0)
            return MemoryTraces(self._memory, retention=retention, clock=lambda: self.now)
        url = self.url
        return SQLTraces(lambda: url, clock=lambda: self.now, **{"flush_seconds": 30, **more})

    async def emptied(self) -> None:
        """No call is kept any more."""
        self._memory = TraceLog(10_000)
        if self.url is not None:
            engine = _database.engine(self.url)
            async with engine.begin() as connection:
                await connection.execute(sa.delete(TRACES))
            await engine.dispose()

    async def rows(self) -> int:
        """Rows that the table has."""
        assert self.url is not None
        engine = _database.engine(self.url)
        async with engine.connect() as connection:
            found: int = (await connection.execute(sa.select(sa.func.count()).select_from(TRACES))).scalar_one()
        await engine.dispose()
        return found

    def run(self, work: Any) -> None:
        """Run a coroutine function with a fresh store, in an event loop of its own (for properties)."""

        async def within() -> None:
            try:
                await self.emptied()
                store = self.opened()
                on_close(store.close)
                await work(store)
            finally:
                await close_all()

        asyncio.run(within())


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    """Each kind of store in turn."""
    name: str = request.param
    if name == "memory":
        return Shelf(name)
    if name == "sqlite":
        return Shelf(name, f"sqlite:///{tmp_path}/gateway.db")
    return Shelf(name, request.getfixturevalue("postgres_url"))


@pytest.fixture
def sql_shelf(database_url: str) -> Shelf:
    """Each kind of database in turn."""
    return Shelf("sqlite" if database_url.startswith("sqlite") else "postgresql", database_url)
