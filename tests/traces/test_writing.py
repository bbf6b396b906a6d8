"""How calls come to the database: in batches, by a thread; none lost at a clean end, none doubled by a broken connection."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import asyncpg  # type: ignore[import-untyped]
import pytest

from asgi_llm_gateway._closing import close_all
from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.stores._database import sqlite_path
from asgi_llm_gateway.stores.migrate import upgrade
from asgi_llm_gateway.stores.traces import SQLTraces
from asgi_llm_gateway.traces.base import TraceQuery
from asgi_llm_gateway.traces.writer import FULL

from ..stores.postgres_parts import Proxy
from .conftest import Shelf
from .parts import NOON, record, walk

LOGGER = "asgi_llm_gateway"


def sql(shelf: Shelf, **more: Any) -> SQLTraces:
    """The shelf's store as one process has it."""
    return cast("SQLTraces", shelf.opened(**more))


async def eventually(true: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Wait for what comes by itself."""
    async with asyncio.timeout(seconds):
        while not await true():  # noqa: ASYNC110 - another process's table has no event for it
            await asyncio.sleep(0.02)


async def test_what_was_added_is_written_without_being_asked_for(sql_shelf: Shelf) -> None:
    """After ``flush_seconds``; before that, where so many wait."""
    slow, quick = sql(sql_shelf, flush_seconds=60), sql(sql_shelf, flush_seconds=0.1)
    quick.add(record())
    await eventually(lambda: _has(sql_shelf, 1))
    for number in range(FULL + 1):
        slow.add(record(number))
    await eventually(lambda: _has(sql_shelf, FULL + 1))


async def _has(shelf: Shelf, least: int) -> bool:
    return await shelf.rows() >= least


async def test_a_reader_sees_what_this_process_has_just_added(sql_shelf: Shelf) -> None:
    """Its own queue is written first; another's calls come when it writes them."""
    own, other = sql(sql_shelf), sql(sql_shelf)
    for number in range(5):
        own.add(record(number))
        assert len((await own.recent()).traces) == number + 1
    assert len((await other.recent()).traces) == 5
    await other.flush()


async def test_a_clean_end_keeps_all(sql_shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    """Any number of calls, whole batches and a rest; a call after the end opens all of it anew."""
    store = sql(sql_shelf, queue=5000)
    for rounds in (1, 2):
        for number in range(3 * FULL + 7):
            store.add(record(number))
        await store.close()
        assert await sql_shelf.rows() == rounds * (3 * FULL + 7)
    await store.close()
    assert store.lost == 0
    assert not caplog.records


async def test_the_end_of_an_event_loop_is_an_end(sql_shelf: Shelf) -> None:
    """Whoever closes the gateway's parts (its lifespan, ``asgi_llm_gateway.lifespan``) need not know of traces."""
    store = sql(sql_shelf)
    store.add(record())
    await close_all()
    assert await sql_shelf.rows() == 1


async def test_threads_and_event_loops_share_one_store(sql_shelf: Shelf) -> None:
    """Each call once, wherever it was added; a loop that ends ends nobody else's."""
    store = sql(sql_shelf)

    async def some(base: int) -> None:
        for number in range(200):
            store.add(record(base + number))
            if number % 50 == 0:
                await store.recent(TraceQuery(limit=1))
        await close_all()

    threads = [threading.Thread(target=lambda at=at: asyncio.run(some(at * 200))) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, 60)
    found = await walk(store, TraceQuery(limit=1000))
    assert sorted(trace.started - NOON for trace in found) == list(range(800))


async def test_when_more_comes_than_can_be_written_the_newest_stay(
    sql_shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    """The database is locked: no call waits for it, the oldest that wait are dropped, counted and told of once."""
    store = sql(sql_shelf, queue=100, flush_seconds=0.05)
    store.add(record(0))
    await store.flush()
    async with locked(sql_shelf):
        for number in range(1, 1001):
            store.add(record(number))
            if number % 100 == 0:
                await asyncio.sleep(0.02)
    await store.close()
    kept = sorted(int(trace.started - NOON) for trace in await walk(sql(sql_shelf), TraceQuery(limit=1000)))
    assert kept[-100:] == list(range(901, 1001))
    assert len(kept) == len(set(kept))
    assert len(kept) + store.lost == 1001
    assert store.lost > 0
    told = [entry.getMessage() for entry in caplog.records if "were lost" in entry.getMessage()]
    assert len(told) == 1
    assert f"{store.lost} traces" in told[0]


class locked:
    """While somebody else has the table for itself."""

    def __init__(self, shelf: Shelf) -> None:
        self._url = shelf.url or ""
        self._path = sqlite_path(self._url)
        self._held: Any = None

    async def __aenter__(self) -> None:
        if self._path is not None:
            self._held = sqlite3.connect(self._path, isolation_level=None)
            self._held.execute("BEGIN IMMEDIATE")
        else:
            self._held = await asyncpg.connect(self._url)
            await self._held.execute("begin; lock table traces in exclusive mode")

    async def __aexit__(self, *_: object) -> None:
        done = self._held.close()
        if done is not None:
            await done


async def test_what_cannot_be_kept_is_left_out_alone(sql_shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    """One of a batch that no database takes: the others are there, and one line says so, without what was in it."""
    store = sql(sql_shelf)
    for number in range(20):
        store.add(record(number, started=cast("Any", None) if number == 7 else NOON + number, model="PRIVATE"))
    assert len((await store.recent()).traces) == 19
    assert store.lost == 1
    (line,) = [entry.getMessage() for entry in caplog.records]
    assert "could not be kept" in line
    assert "PRIVATE" not in line


async def test_old_calls_are_deleted(sql_shelf: Shelf) -> None:
    """Those past the retention, and of too many the oldest, by any number of processes at once, whole steps and a rest."""
    first, second = (sql(sql_shelf, retention=1000.0, max_rows=300) for _ in range(2))
    for number in range(1500):
        (first if number % 2 else second).add(record(number))
    sql_shelf.now = NOON + 1600  # 600 are too old
    await first.close()
    await second.close()
    await eventually(lambda: _pruned(sql_shelf))
    left = await walk(sql(sql_shelf, retention=10**6), TraceQuery(limit=1000))
    assert sorted(trace.started - NOON for trace in left) == list(range(1200, 1500))


async def _pruned(shelf: Shelf) -> bool:
    if await shelf.rows() <= 300:
        return True
    store = sql(shelf, retention=1000.0, max_rows=300)  # as another process that starts
    rows = store._rows()
    while await asyncio.to_thread(rows.prune):
        pass
    await asyncio.to_thread(rows.close)
    return False


async def test_a_database_that_is_not_there_yet_gets_what_waited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line when it goes wrong, one when it is right again; a reader is told, a call never."""
    folder = tmp_path / "later"
    url = f"sqlite:///{folder}/gateway.db"
    store = SQLTraces(lambda: url, flush_seconds=0.05, clock=lambda: NOON)
    for number in range(3):
        store.add(record(number))
    with pytest.raises(StoreError):
        await store.recent()
    with pytest.raises(StoreError):
        await store.flush()
    folder.mkdir()
    upgrade(url)
    shelf = Shelf("sqlite", url)
    await eventually(lambda: _has(shelf, 3))
    store.add(record(3))
    assert len((await store.recent()).traces) == 4
    lines = [entry.getMessage().partition(":")[0] for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert lines == ["traces can't be written", "traces are written again"]
    await store.close()


async def test_a_url_that_cannot_be_had_is_a_fault_of_the_store(caplog: pytest.LogCaptureFixture) -> None:
    """Settings that are wrong stop no call; the end does not wait for what can't come."""

    def url() -> str:
        raise StoreError("GATEWAY_DATA_DIR=/x is not writable")

    store = SQLTraces(url, flush_seconds=0.05)
    store.add(record())
    with pytest.raises(StoreError, match="GATEWAY_DATA_DIR"):
        await store.recent()
    async with asyncio.timeout(10):
        await store.close()
    lines = [entry.getMessage() for entry in caplog.records]
    assert [line for line in lines if "1 traces were not written" in line]


# -- PostgreSQL: connections that break ------------------------------------------------------------------------------


@pytest.fixture
def postgres(postgres_url: str) -> Shelf:
    """A database with its tables."""
    return Shelf("postgresql", postgres_url)


@pytest.mark.parametrize("word", [b"commit", b"begin"])
async def test_a_lost_answer_doubles_no_call(postgres: Shelf, word: bytes) -> None:
    """The server did it or did not, and the connection broke before it said so: each call is there once."""
    async with Proxy(postgres.url or "") as proxy:
        store = SQLTraces(lambda: proxy.url, flush_seconds=0.05, clock=lambda: NOON)
        store.add(record(0))
        await store.flush()
        proxy.cut_after = word
        for number in range(1, 800):
            store.add(record(number))
        await eventually(lambda: _has(postgres, 800))
        await store.close()
        assert proxy.seen == 1
    assert await postgres.rows() == 800


async def test_a_server_that_was_away_gets_what_waited(postgres: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    """No restart is needed; what came meanwhile is there, once."""
    async with Proxy(postgres.url or "") as proxy:
        store = SQLTraces(lambda: proxy.url, flush_seconds=0.05, clock=lambda: NOON)
        store.add(record(0))
        assert len((await store.recent()).traces) == 1
        port = int(proxy.url.partition("127.0.0.1:")[2].partition("/")[0])
        proxy._server.close()
        proxy.cut()
        for number in range(1, 50):
            store.add(record(number))
        with pytest.raises(StoreError):
            await store.flush()
        with pytest.raises(StoreError):
            await store.recent()
        proxy._server = await asyncio.start_server(proxy._serve, "127.0.0.1", port)
        await eventually(lambda: _has(postgres, 50))
        assert len((await store.recent()).traces) == 50
        await store.close()
    assert await postgres.rows() == 50
    said = " ".join(entry.getMessage() for entry in caplog.records)
    assert "postgres" in said.lower()
    assert proxy.url not in said
