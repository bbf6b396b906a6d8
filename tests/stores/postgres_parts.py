"""A ledger in PostgreSQL, and a proxy between it and the server: what its tests share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg  # type: ignore[import-untyped]
import pytest

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import About, Amount, CallRecord, Hold, Limit, Refusal, Usage
from asgi_llm_gateway.stores import migrate
from asgi_llm_gateway.stores.postgres import PostgresLedger

NOW = 1_000_000.0
NOTHING = Amount(0, 0)


def limit(money: int | None = None, account: str = "", window: int = 0) -> tuple[Limit, ...]:
    """One account's limit."""
    return (Limit(account, window, money, None),)


async def take(
    ledger: PostgresLedger, money: int, *, most: int | None = None, tenant: str = "team", ttl: float = 60.0
) -> Hold | Refusal:
    """Hold an amount, all or nothing."""
    amount = Amount(money, 10)
    return await ledger.hold(
        tenant, hold_id=new_hold_id(), limits=limit(most), least=amount, wanted=amount, now=NOW, ttl=ttl,
        about=About("req", "trace", "key", "echo", NOW),
    )  # fmt: skip


def record_of(hold: Hold, cost: int, **more: Any) -> CallRecord:
    """What a call came to."""
    return CallRecord(
        hold.id, hold.tenant, "req", "trace", "key", "echo", "p", Usage(3, 4), cost, 200, NOW, NOW + 1, **more
    )


@pytest.fixture
def url(postgres_url: str) -> str:
    """A database with its tables."""
    migrate.upgrade(postgres_url)
    return postgres_url


@asynccontextmanager
async def opened(url: str, **more: Any) -> AsyncIterator[PostgresLedger]:
    """A ledger, closed at the end."""
    ledger = PostgresLedger(url, **more)
    try:
        yield ledger
    finally:
        await ledger.close()


async def run_sql(url: str, *statements: str) -> Any:
    """The last statement's first value, on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            found = await connection.fetchval(statement)
        return found
    finally:
        await connection.close()


class Proxy:
    """Stands between a ledger and the server's socket: hands bytes on until it is told to stall or to cut.

    Args:
        url: Where the server is.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        host = parse_qs(parts.query).get("host", [parts.hostname or "127.0.0.1"])[0]
        self._to = (host, parts.port or 5432)
        self._path = parts.path
        self._user = parts.netloc.rpartition("@")[0]
        self._open = asyncio.Event()
        self._open.set()
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut_after = b""  # once the client has said this, it never hears an answer again
        self.seen = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgresql://{self._user}@127.0.0.1:{port}{self._path}?sslmode=disable"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.go_on()
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        host, port = self._to
        if host.startswith("/"):
            server, forth = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            server, forth = await asyncio.open_connection(host, port)
        self._pairs.append((back, forth))
        muted = asyncio.Event()

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, asks: bool) -> None:
            try:
                while data := await source.read(65536):
                    await self._open.wait()
                    if not asks and muted.is_set():
                        back.transport.abort()
                        return
                    if asks and self.cut_after and self.cut_after in data:
                        self.cut_after = b""
                        self.seen += 1
                        muted.set()
                    sink.write(data)
                    await sink.drain()
            except OSError:
                pass
            finally:
                sink.close()

        for one in (pump(client, forth, asks=True), pump(server, back, asks=False)):
            task = asyncio.create_task(one)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def stall(self) -> None:
        """Nothing comes through from now on; connections stand."""
        self._open.clear()

    def go_on(self) -> None:
        """What waited goes through."""
        self._open.set()

    def cut(self) -> None:
        """End all connections at once."""
        for pair in self._pairs:
            for writer in pair:
                writer.transport.abort()
        self._pairs.clear()


async def eventually(verb: Callable[[], Awaitable[Any]]) -> Any:
    """The verb's answer once there is one."""
    end = time.monotonic() + 10.0
    while True:
        try:
            return await verb()
        except StoreError:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
