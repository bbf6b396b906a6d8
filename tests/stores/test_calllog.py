"""Reading call records from SQL: SQLite in a file and PostgreSQL. What ledgers write is in their own suite."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.records import Adjustment, CallRecord, Stats, Usage
from asgi_llm_gateway.stores import _database, migrate
from asgi_llm_gateway.stores.base import CallLog
from asgi_llm_gateway.stores.calllog import SQLCallLog, records_query
from asgi_llm_gateway.stores.cursors import cursor_of, place_of
from asgi_llm_gateway.stores.tables import ADJUSTMENTS, RECORDS, SUMS

FULL = CallRecord(
    "hold-1", "team", "req", "trace", "key", "echo", "p", Usage(2**40, 4, 1, 2, 3, True, 2**62), 2**61, 200,
    1_700_000_000.123456, 1_700_000_009.25, True, 7, True, True,
)  # fmt: skip


def row_of(record: CallRecord) -> dict[str, Any]:
    """A record's row, written as the tables say."""
    usage = record.usage
    return {
        "hold": record.hold, "tenant": record.tenant, "request_id": record.request_id, "trace_id": record.trace_id,
        "key_id": record.key, "model": record.model, "provider": record.provider, "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion, "cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write,
        "reasoning_tokens": usage.reasoning, "estimated": usage.estimated, "provider_cost": usage.provider_cost,
        "cost": record.cost, "status": record.status, "started": record.started, "ended": record.ended,
        "aborted": record.aborted, "overdraft": record.overdraft, "lapsed": record.lapsed, "local": record.local,
    }  # fmt: skip


def record(number: int, started: float, model: str | None = "echo", tenant: str = "team") -> CallRecord:
    """One of many."""
    return CallRecord(f"h{number}", tenant, model=model, usage=Usage(1, 2), cost=10, started=started)


async def write(url: str, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Put rows into a table."""
    engine = _database.engine(url)
    async with engine.begin() as connection:
        await connection.execute(sa.insert(table), rows)
    await engine.dispose()


@pytest.fixture
def url(database_url: str) -> str:
    """A fresh database of each kind, with its tables."""
    migrate.upgrade(database_url)
    return database_url


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[SQLCallLog]:
    """The log of a database, closed at the end."""
    log = SQLCallLog(url)
    try:
        yield log
    finally:
        await log.close()


async def walk(log: SQLCallLog, limit: int, **more: Any) -> list[CallRecord]:
    """All pages."""
    cursor: str | None = None
    found: list[CallRecord] = []
    for _ in range(1000):
        page = await log.records("team", limit=limit, cursor=cursor, **more)
        assert len(page.records) <= limit
        found += page.records
        cursor = page.next
        if cursor is None:
            return found
    raise AssertionError("there is no end of pages")


async def test_a_record_comes_back_as_it_was(url: str) -> None:
    """All fields, to the last nano-USD and microsecond; and those that have defaults."""
    async with opened(url) as log:
        bare = CallRecord("hold-2", "team")
        await write(url, RECORDS, [row_of(FULL), row_of(bare)])
        protocol: CallLog = log
        page = await protocol.records("team")
        assert list(page.records) == [FULL, bare]
        assert page.next is None
        assert list((await log.records("Team")).records) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_are_one_list_newest_first(url: str, limit: int) -> None:
    """Whatever the size of a page: none twice, none missing, of equal times the later booked first; another's never."""
    async with opened(url) as log:
        rows = [record(number, float(number // 3)) for number in range(20)]
        await write(url, RECORDS, [row_of(one) for one in rows])
        await write(url, RECORDS, [row_of(record(99, 3.0, tenant="other"))])
        assert await walk(log, limit) == rows[::-1]


async def test_records_that_come_meanwhile_shift_no_page(url: str) -> None:
    """A reader who goes on gets what it would have got."""
    async with opened(url) as log:
        rows = [record(number, float(number)) for number in range(6)]
        await write(url, RECORDS, [row_of(one) for one in rows])
        first = await log.records("team", limit=3)
        await write(url, RECORDS, [row_of(record(7, 9.0)), row_of(record(8, 10.0))])
        second = await log.records("team", limit=3, cursor=first.next)
        assert [*first.records, *second.records] == rows[::-1]
        assert second.next is None


async def test_filters_hold_over_pages(url: str) -> None:
    """``since`` is in, ``until`` is out, and they go together with a model and a cursor."""
    async with opened(url) as log:
        rows = [record(number, float(number), ("echo", "gpt", None)[number % 3]) for number in range(30)]
        await write(url, RECORDS, [row_of(one) for one in rows])
        for since, until, model in itertools.product((None, 4.0), (None, 22.0), (None, "gpt", "none")):
            wanted = [
                one
                for one in reversed(rows)
                if (since is None or one.started >= since)
                and (until is None or one.started < until)
                and (model is None or one.model == model)
            ]
            assert await walk(log, 4, since=since, until=until, model=model) == wanted
        # A cursor from beyond the filter's end is none the worse for it.
        page = await log.records("team", cursor=cursor_of(1e9, 1), until=2.0)
        assert [one.started for one in page.records] == [1.0, 0.0]


@pytest.mark.parametrize(
    "cursor", ["", "x", "7", "AAAA", "A" * 22, "é", "A" * 1000, "' OR 1=1 --", cursor_of(1.0, 5) + "="]
)
async def test_what_is_no_cursor_is_refused(url: str, cursor: str) -> None:
    """ValueError, whatever it is."""
    async with opened(url) as log:
        with pytest.raises(ValueError, match="no cursor"):
            await log.records("team", cursor=cursor)


@pytest.mark.parametrize("started", [0.0, 0.1, 1_700_000_000.123456, 2.0**52])
def test_a_cursor_is_exact(started: float) -> None:
    """It gives back the very place, and not every float has one."""
    assert place_of(cursor_of(started, 2**62)) == (started, 2**62)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="no cursor"):
            place_of(cursor_of(bad, 1))


async def test_stats_are_the_booked_sums(url: str) -> None:
    """Of one tenant, of all, and of none."""
    async with opened(url) as log:
        assert await log.stats() == await log.stats(tenant="team") == Stats()
        names = ("tenant", *Stats._fields)
        rows = [("team", 2, 3, 4, 2**61), ("other", 1, 1, 1, 2**61)]
        await write(url, SUMS, [dict(zip(names, one, strict=True)) for one in rows])
        assert await log.stats(tenant="team") == Stats(2, 3, 4, 2**61)
        assert await log.stats() == Stats(3, 4, 5, 2**62)
        assert all(type(value) is int for value in await log.stats())


async def test_stats_since_are_summed_over_records(url: str) -> None:
    """A call belongs to the time at which it began."""
    async with opened(url) as log:
        rows = [record(number, float(number)) for number in range(5)] + [record(9, 4.5, tenant="other")]
        await write(url, RECORDS, [row_of(one) for one in rows])
        assert await log.stats(tenant="team", since=3.0) == Stats(2, 2, 4, 20)
        assert await log.stats(since=3.0) == Stats(3, 3, 6, 30)
        assert await log.stats(since=99.0) == Stats()


async def test_adjustments_are_listed_newest_first(url: str) -> None:
    """A tenant's own."""
    async with opened(url) as log:
        notes = [Adjustment(f"a{n}", "team", "credit", n, "why", 7, float(n), "admin") for n in range(5)]
        names = ("id", "tenant", "kind", "amount", "reason", "period_start", "created", "created_by")
        await write(url, ADJUSTMENTS, [dict(zip(names, note, strict=True)) for note in notes])
        assert list(await log.adjustments("team")) == notes[::-1]
        assert list(await log.adjustments("team", limit=2)) == notes[:2:-1]
        assert list(await log.adjustments("other")) == []


async def test_a_page_is_one_walk_along_the_index(url: str) -> None:
    """However many records there are: no sorting, no scan, with a cursor and filters too."""
    await write(url, RECORDS, [row_of(record(number, float(number // 2))) for number in range(20_000)])
    engine = _database.engine(url)
    lite = url.startswith("sqlite")
    dialect: Any = (sqlite if lite else postgresql).dialect
    async with engine.begin() as connection:
        if not lite:
            await connection.exec_driver_sql("analyze records")
        for cursor, since, until in itertools.product((None, cursor_of(50.0, 99)), (None, 3.0), (None, 60.0)):
            query = records_query("team", 101, cursor, since, until, None)
            text = str(query.compile(dialect=dialect(), compile_kwargs={"literal_binds": True}))
            plan = await connection.exec_driver_sql(("explain query plan " if lite else "explain ") + text)
            said = "\n".join(str(row) for row in plan)
            assert "ix_records_tenant_started" in said, said
            assert "TEMP B-TREE" not in said, said
            assert "Sort" not in said, said
            assert "Seq Scan" not in said, said
    await engine.dispose()


async def test_a_database_without_tables_is_a_store_error(database_url: str) -> None:
    """Every verb."""
    log = SQLCallLog(database_url)
    for verb in (log.records("team"), log.stats(), log.stats(since=1.0), log.adjustments("team")):
        with pytest.raises(StoreError):
            await verb
    await log.close()
