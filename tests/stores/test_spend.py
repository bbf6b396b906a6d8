"""Sums by time and by model, over every kind of store: those of the records, to the last nano-USD."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import Amount, CallRecord, Hold, Limit, Stats, Usage
from asgi_llm_gateway.stores import _database, migrate
from asgi_llm_gateway.stores.base import CallLog, Ledger, Spend
from asgi_llm_gateway.stores.calllog import SQLCallLog, spend_query
from asgi_llm_gateway.stores.tables import RECORDS, SUMS

from .conftest import Backend
from .test_calllog import record as row_record
from .test_calllog import row_of, write

NOON = 1_792_065_600  # 2026-10-15 12:00 UTC


async def book(
    ledger: Ledger, tenant: str, started: float, cost: int, *, model: str | None = "m", tokens: int = 3
) -> None:
    """Hold and settle a call."""
    hold = await ledger.hold(
        tenant, hold_id=new_hold_id(), limits=(Limit("", 0, None, None),), least=Amount(0, 0),
        wanted=Amount(2**40, 10_000), now=started, ttl=600,
    )  # fmt: skip
    assert isinstance(hold, Hold)
    usage = Usage(tokens, tokens * 2)
    assert await ledger.settle(hold, CallRecord(hold.id, tenant, model=model, usage=usage, cost=cost, started=started))


def total(rows: list[Stats]) -> Stats:
    """The sum of sums."""
    return Stats(*(sum(column) for column in zip(Stats(), *rows, strict=True)))


async def test_calls_are_summed_by_time_and_by_model(backend: Backend) -> None:
    """Begun in [since, until), each in the bucket that it began in, counted from ``since``."""
    ledger = await backend.opened()
    for tenant, seconds, cost, model in (
        ("a", -0.5, 1, "m"), ("a", 0, 2, "m"), ("a", 59.999, 4, "n"), ("b", 60, 8, "m"), ("b", 61.5, 16, None),
        ("b", 119.5, 32, None), ("a", 180, 64, "m"), ("a", 240, 128, "m"),
    ):  # fmt: skip
        await book(ledger, tenant, NOON + seconds, cost, model=model)
    await backend.settled(ledger)
    log = backend.log()
    spend = await log.spend(since=NOON, until=NOON + 240, step=60)
    assert list(spend.over_time) == [
        (0, Stats(2, 6, 12, 6)), (1, Stats(3, 9, 18, 56)), (3, Stats(1, 3, 6, 64))
    ]  # fmt: skip
    assert sorted(spend.by_model, key=str) == [
        ("a", "m", Stats(2, 6, 12, 66)), ("a", "n", Stats(1, 3, 6, 4)),
        ("b", "m", Stats(1, 3, 6, 8)), ("b", None, Stats(2, 6, 12, 48)),
    ]  # fmt: skip
    assert {type(value) for _, stats in spend.over_time for value in stats} == {int}
    own = await log.spend(since=NOON, until=NOON + 240, step=60, tenant="b")
    assert list(own.over_time) == [(1, Stats(3, 9, 18, 56))]
    assert {owner for owner, _, _ in own.by_model} == {"b"}
    late = await log.spend(since=NOON + 1.5, until=NOON + 61, step=58.5)
    assert list(late.over_time) == [(0, Stats(1, 3, 6, 4)), (1, Stats(1, 3, 6, 8))]
    assert await log.spend(since=NOON + 240.5, until=NOON + 300, step=60) == Spend([], [])
    assert await log.spend(since=NOON, until=NOON, step=60) == Spend([], [])
    await ledger.close()


async def test_great_sums_are_exact(backend: Backend) -> None:
    """Beyond what a float holds."""
    ledger = await backend.opened()
    for cost in (2**61 + 1, 2**60 + 1, 3):
        await book(ledger, "a", NOON, cost)
    await backend.settled(ledger)
    spend = await backend.log().spend(since=0, until=NOON + 1, step=3600)
    assert [stats.cost for _, stats in spend.over_time] == [2**61 + 2**60 + 5]
    assert [stats.cost for *_, stats in spend.by_model] == [2**61 + 2**60 + 5]
    await ledger.close()


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.floats(0, 5_000, allow_nan=False),
        st.integers(0, 2**50),
        st.sampled_from([None, "m", "n"]),
    ),
    max_size=12,
)


def test_sums_are_those_of_the_records_however_time_is_cut(backend: Backend) -> None:
    """By time, by model and ``stats`` give one sum, with any step and any span; each bucket has its own calls only."""
    booked: list[tuple[str, float, int, str | None]] = []

    @hypothesis_settings(
        max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
    )
    @given(CALLS, st.floats(0, 5_000), st.floats(0, 5_000), st.floats(1, 4_000), st.sampled_from([None, "a", "b"]))
    def check(
        calls: list[tuple[str, float, int, str | None]], since: float, span: float, step: float, tenant: str | None
    ) -> None:
        async def run() -> None:
            ledger, log = await backend.opened(), fresh(backend)
            try:
                for owner, started, cost, model in calls:
                    await book(ledger, owner, started, cost, model=model)
                    booked.append((owner, started, cost, model))
                await backend.settled(ledger)
                found = await log.spend(since=since, until=since + span, step=step, tenant=tenant)
                mine = [one for one in booked if since <= one[1] < since + span and tenant in (None, one[0])]
                assert total([stats for _, stats in found.over_time]) == total([stats for *_, stats in found.by_model])
                assert sum(stats.cost for *_, stats in found.by_model) == sum(one[2] for one in mine)
                assert [at for at, _ in found.over_time] == sorted({int((one[1] - since) / step) for one in mine})
                for at, stats in found.over_time:
                    here = [one[2] for one in mine if int((one[1] - since) / step) == at]
                    assert (stats.requests, stats.cost) == (len(here), sum(here))
                for owner, model, stats in found.by_model:
                    assert stats.cost == sum(one[2] for one in mine if (one[0], one[3]) == (owner, model))
                whole = await log.spend(since=since, until=1e6, step=step, tenant=tenant)
                assert total([stats for *_, stats in whole.by_model]) == await log.stats(tenant=tenant, since=since)
            finally:
                await ledger.close()
                if backend.url is not None:
                    await log.close()

        asyncio.run(run())

    check()


def fresh(backend: Backend) -> CallLog:
    """The records, for an event loop of their own."""
    return backend.log() if backend.url is None else SQLCallLog(backend.url)


@pytest.mark.parametrize("tenant", [None, "team"])
async def test_sums_walk_the_tenants_index(database_url: str, tenant: str | None) -> None:
    """An hour among many records is read along the index, for everybody too: never all records."""
    migrate.upgrade(database_url)
    names = ("tenant", *Stats._fields)
    owners = ("team", "other", "third")
    await write(database_url, SUMS, [dict(zip(names, (one, 1, 1, 1, 1), strict=True)) for one in owners])
    many = [row_of(row_record(n, float(n * 60), tenant=owners[n % 3])) for n in range(20_000)]
    await write(database_url, RECORDS, many)
    engine = _database.engine(database_url)
    lite = database_url.startswith("sqlite")
    dialect: Any = (sqlite if lite else postgresql).dialect
    async with engine.begin() as connection:
        if not lite:
            await connection.exec_driver_sql("analyze records")
            await connection.exec_driver_sql("analyze sums")
        query = spend_query(60_000.0, 63_600.0, 60, tenant, postgresql=not lite)
        text = str(query.compile(dialect=dialect(), compile_kwargs={"literal_binds": True}))
        plan = await connection.exec_driver_sql(("explain query plan " if lite else "explain ") + text)
        said = "\n".join(str(row) for row in plan)
    await engine.dispose()
    assert "ix_records_tenant_started" in said, said
    assert "Seq Scan on records" not in said, said
    assert "SCAN records" not in said, said


async def test_a_database_without_tables_has_no_sums(database_url: str) -> None:
    """StoreError."""
    log = SQLCallLog(database_url)
    with pytest.raises(StoreError):
        await log.spend(since=0, until=1, step=1)
    await log.close()
