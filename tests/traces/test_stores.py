"""What every store of traces promises: all that is asked for, once, in order, and nothing of another tenant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.records import TraceRecord, Usage
from asgi_llm_gateway.stores import _database, traces
from asgi_llm_gateway.stores import _traces_queries as queries
from asgi_llm_gateway.traces.base import (
    MOST_BUCKETS,
    MOST_GROUPS,
    MOST_OF_A_TRACE,
    Spread,
    Step,
    Sums,
    TraceQuery,
    TraceStore,
    What,
)

from .conftest import Shelf
from .parts import NOON, QUERIES, RECORDS, TENANTS, fits, record, times, walk

# One store serves all examples of a property: each empties it first.
EACH = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def seen(one: Any) -> tuple[Any, ...]:
    """What tells a call from the others, of a record as of a trace."""
    return one.trace_id, one.request_id, one.started, one.tenant, one.model, one.status, one.error, one.duration


async def test_a_call_comes_back_as_it_was(shelf: Shelf) -> None:
    """All that is kept of it, to the last nano-USD; its steps in order, on one clock."""
    store = shelf.opened()
    store.add(record(7, stream=True, cost=2**61, saved=3, cache="miss", error="x", status=502, started=NOON + 1 / 3))
    (trace,) = (await store.recent()).traces
    assert trace.seq >= 1
    assert trace[1:-1] == (
        f"{7:032x}", "req-7", NOON + 1 / 3, "team", "key_1", "fast", "echo", "POST", "/v1/chat/completions", 502, True,
        0.5, 0.25, 10, 5, 4, 2**61, 3, "x", False, "miss", 1,
    )  # fmt: skip
    told = [(step.name, round(step.start, 6), round(step.seconds, 6), step.detail) for step in trace.steps]
    attempt = {"provider": "echo", "model": "echo", "status": 200, "error": None}
    assert told == [
        ("auth", 0.0, 0.05, None), ("attempt", 0.1, 0.3, attempt), ("first_token", 0.25, 0.0, None),
        ("settle", 0.4, 0.05, None), ("last_byte", 0.5, 0.0, None),
    ]  # fmt: skip
    assert all(isinstance(step, Step) for step in trace.steps)


async def test_what_is_not_known_is_none(shelf: Shelf) -> None:
    """No tenant, no model, no tokens, no answer: none of it is zero."""
    store = shelf.opened()
    store.add(TraceRecord("t", "r", NOON, "GET", "/v1/models"))
    (trace,) = (await store.recent()).traces
    unknown = ("tenant", "key", "model", "provider", "status", "duration", "first_byte", "tokens_in", "tokens_out",
               "tokens_cached", "cost", "saved", "error", "cache")  # fmt: skip
    assert {getattr(trace, name) for name in unknown} == {None}
    assert (trace.stream, trace.aborted, trace.attempts, trace.steps) == (False, False, 0, ())


@EACH
@given(records=RECORDS, query=QUERIES)
def test_pages_give_each_call_that_was_asked_for_once(
    shelf: Shelf, records: list[TraceRecord], query: TraceQuery
) -> None:
    """Newest first, whatever the filters and the size of a page; of equal times the later first; another's never."""

    async def look(store: TraceStore) -> None:
        for one in records:
            store.add(one)
        wanted = sorted(filter(fits(query), reversed(records)), key=lambda one: one.started, reverse=True)
        found = await walk(store, query)
        assert [seen(trace) for trace in found] == [seen(one) for one in wanted]
        assert len({trace.seq for trace in found}) == len(found)
        if query.tenant is not None:
            assert {trace.tenant for trace in found} <= {query.tenant}

    shelf.run(look)


@EACH
@given(records=RECORDS, tenant=TENANTS, number=st.integers(0, 3), request=st.sampled_from(["req-a", "req-b", "x"]))
def test_a_trace_is_found_by_its_id_and_by_a_request_of_it(
    shelf: Shelf, records: list[TraceRecord], tenant: str | None, number: int, request: str
) -> None:
    """All of its calls, oldest first; a tenant finds its own, also where others sent the same ids."""

    async def look(store: TraceStore) -> None:
        for one in records:
            store.add(one)
        own = [one for one in records if tenant is None or one.tenant == tenant]
        for id in (f"{number:032x}", request):
            traces = {one.trace_id for one in own if id in (one.trace_id, one.request_id)}
            wanted = sorted((one for one in own if one.trace_id in traces), key=lambda one: one.started)
            assert [seen(trace) for trace in await store.find(id, tenant=tenant)] == [seen(one) for one in wanted]

    shelf.run(look)


def sums_of(records: list[TraceRecord]) -> Sums:
    """Their sums, the plain way."""
    left = ("ClientGone", "CancelledError")
    failed = [
        one
        for one in records
        if (one.status or 0) >= 500 or ((one.status or 0) < 400 and one.error is not None and one.error not in left)
    ]
    used = [one.usage for one in records if one.usage is not None]
    return Sums(
        len(records), len(failed), sum(400 <= (one.status or 0) < 500 for one in records),
        sum(one.aborted for one in records), sum(one.cache in ("hit", "joined") for one in records),
        sum(usage.prompt for usage in used), sum(usage.completion for usage in used),
        sum(one.cost or 0 for one in records), sum(one.saved or 0 for one in records),
    )  # fmt: skip


@EACH
@given(records=RECORDS, tenant=TENANTS, since=st.sampled_from([0, 0.5, 1.75]), until=st.sampled_from([2, 3.25, 4]),
       step=st.sampled_from([0.25, 0.5, 1.0, 7.0]))  # fmt: skip
def test_a_series_has_every_bucket_and_every_call_in_one(
    shelf: Shelf, records: list[TraceRecord], tenant: str | None, since: float, until: float, step: float
) -> None:
    """Sums and percentiles are those of the calls begun within; a bucket without a call is there, and empty."""

    async def look(store: TraceStore) -> None:
        small = [replace(one, cost=min(one.cost or 0, 10**9)) for one in records]  # 25 of the largest are over 64 bits
        for one in small:
            store.add(one)
        series = await store.series(since=NOON + since, until=NOON + until, step=step, tenant=tenant)
        assert [bucket.start for bucket in series] == [NOON + since + at * step for at in range(len(series))]
        assert series[-1].start < NOON + until <= series[-1].start + step
        own = [one for one in small if tenant is None or one.tenant == tenant]
        within = [one for one in own if NOON + since <= one.started < NOON + until]
        for bucket, following in zip(series, [*series[1:], None], strict=True):
            end = following.start if following is not None else NOON + until
            part = [one for one in within if bucket.start <= one.started < end]
            assert bucket.sums == sums_of(part)
            assert tuple(bucket.duration) == times([one.duration for one in part])
            assert tuple(bucket.first_byte) == times([one.first_byte for one in part])
        assert sum(bucket.sums.calls for bucket in series) == len(within)

    shelf.run(look)


@EACH
@given(records=RECORDS, tenant=TENANTS, what=st.sampled_from(["model", "tenant", "provider"]))
def test_groups_add_up_to_the_whole(shelf: Shelf, records: list[TraceRecord], tenant: str | None, what: What) -> None:
    """Those with the most calls first; the calls that have none are a group, too."""

    async def look(store: TraceStore) -> None:
        small = [replace(one, cost=min(one.cost or 0, 10**9)) for one in records]
        for one in small:
            store.add(one)
        groups = await store.by(what, since=NOON, until=NOON + 3, tenant=tenant)
        own = [one for one in small if (tenant is None or one.tenant == tenant) and one.started < NOON + 3]
        assert [group.sums.calls for group in groups] == sorted((group.sums.calls for group in groups), reverse=True)
        assert len({group.name for group in groups}) == len(groups)
        for group in groups:
            part = [one for one in own if getattr(one, what) == group.name]
            assert group.sums == sums_of(part)
            assert tuple(group.duration) == times([one.duration for one in part])
            assert tuple(group.first_byte) == times([one.first_byte for one in part])
        assert sum(group.sums.calls for group in groups) == len(own)

    shelf.run(look)


@pytest.mark.parametrize("step", [0.1, 0.3, 0.7, 1 / 3, 2.7, 3.0])
async def test_a_step_that_is_no_binary_number_loses_no_call(shelf: Shelf, step: float) -> None:
    """A call on the border of two buckets is in one of them; there is none too many."""
    store = shelf.opened()
    for number in range(270):
        store.add(record(number, started=NOON + number / 100))
    series = await store.series(since=NOON, until=NOON + 2.7, step=step)
    assert sum(bucket.sums.calls for bucket in series) == 270
    assert len(series) == -(-2.7 // step) or len(series) == round(2.7 / step)
    assert min(bucket.sums.calls for bucket in series) > 0


async def test_sums_go_beyond_what_a_number_of_the_database_holds(shelf: Shelf) -> None:
    """Nothing overflows that a day of calls could come to: a hundred times 46 million USD."""
    store = shelf.opened()
    for number in range(100):
        store.add(record(number, cost=2**55, usage=Usage(2**53, 2**53)))
    (bucket,) = await store.series(since=NOON, until=NOON + 1000, step=1000)
    assert (bucket.sums.cost, bucket.sums.tokens_in) == (100 * 2**55, 100 * 2**53)


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "\0", "é", "A" * 22, "A" * 400])
async def test_a_cursor_that_is_none_is_refused(shelf: Shelf, cursor: str) -> None:
    """Not taken for the first page."""
    store = shelf.opened()
    store.add(record())
    with pytest.raises(ValueError, match="no cursor"):
        await store.recent(TraceQuery(cursor=cursor))


async def test_too_many_buckets_are_refused(shelf: Shelf) -> None:
    """A step that is too short, no step, and no range at all."""
    store = shelf.opened()
    for step in (1 / (MOST_BUCKETS + 1), 0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"step"):
            await store.series(since=NOON, until=NOON + 1, step=step)
    assert await store.series(since=NOON, until=NOON, step=1.0) == []
    assert len(await store.series(since=NOON, until=NOON + MOST_BUCKETS, step=1.0)) == MOST_BUCKETS


async def test_what_a_client_makes_up_is_bounded(shelf: Shelf) -> None:
    """Any number of models, and of calls under one trace id: the answer has as many as were promised."""
    store = shelf.opened()
    for number in range(MOST_GROUPS + 5):
        store.add(record(number, model=f"m{number}"))
    store.add(record(1000, model="m3"))
    groups = await store.by("model", since=NOON, until=NOON + 2000)
    assert len(groups) == MOST_GROUPS
    assert (groups[0].name, groups[0].sums.calls) == ("m3", 2)
    for number in range(MOST_OF_A_TRACE + 5):
        store.add(record(number, trace_id="t"))
    found = await store.find("t")
    assert len(found) == MOST_OF_A_TRACE
    assert found[-1].request_id == f"req-{MOST_OF_A_TRACE + 4}"


async def test_what_is_too_old_is_gone_at_once(shelf: Shelf) -> None:
    """Retention is a promise, whether it was deleted by now or not."""
    store = shelf.opened(retention=100.0)
    store.add(record(0, trace_id="t"))
    store.add(record(50, trace_id="t"))
    shelf.now = NOON + 120
    assert [trace.started for trace in (await store.recent()).traces] == [NOON + 50]
    assert [trace.started for trace in (await store.recent(TraceQuery(since=NOON))).traces] == [NOON + 50]
    assert [trace.started for trace in await store.find("t")] == [NOON + 50]
    (bucket,) = await store.series(since=NOON, until=NOON + 100, step=100)
    (group,) = await store.by("tenant", since=NOON, until=NOON + 100)
    assert bucket.sums.calls == group.sums.calls == 1
    assert (bucket.duration, group.duration) == (Spread(0.5, 0.5, 0.5),) * 2


async def test_hostile_text_is_kept_as_far_as_it_can_be(sql_shelf: Shelf) -> None:
    """Zero bytes, halves of surrogate pairs and megabytes come from clients: the call is kept, and so are its neighbours."""
    store = sql_shelf.opened()
    for number, text in enumerate(["a\0b", "\ud800x", "é" * 10_000, "x" * 10**6, "'; DROP TABLE traces; --", "😀"]):
        store.add(record(number, model=text, path=text, calls=((text, text, 100.1, 0.0, 10**9, text),)))
    store.add(record(6, usage=Usage(2**70, -(2**70)), cost=2**80, status=10**12))
    found = (await store.recent()).traces
    assert len(found) == 7
    assert (found[0].tokens_in, found[0].status) == (2**53, None)
    assert [trace.model for trace in reversed(found[1:])] == [
        "ab", "?x", "é" * 256, "x" * 256, "'; DROP TABLE traces; --", "😀",
    ]  # fmt: skip
    assert len((await store.recent(TraceQuery(model="'; DROP TABLE traces; --"))).traces) == 1


async def test_of_many_calls_the_percentiles_are_of_a_sample(sql_shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums stay exact; each percentile is the time of a real call, and near the one of all."""
    monkeypatch.setattr(traces, "SAMPLE", 300)
    store = sql_shelf.opened()
    for number in range(1000):
        store.add(record(number, started=NOON + number / 1000, duration=number / 1000))
    (bucket,) = await store.series(since=NOON, until=NOON + 1, step=1)
    (group,) = await store.by("model", since=NOON, until=NOON + 1)
    assert bucket.sums.calls == group.sums.calls == 1000
    for spread in (bucket.duration, group.duration):
        for found, exact in zip(spread, (0.5, 0.95, 0.99), strict=True):
            assert found is not None
            assert abs(found - exact) < 0.02
            assert round(found * 1000) / 1000 == found


async def test_the_database_walks_an_index(sql_shelf: Shelf) -> None:
    """A page, a trace and a request are found without reading the table, whoever asks."""
    store = sql_shelf.opened()
    for number in range(2000):
        store.add(record(number, tenant=f"t{number % 200}"))
    await store.flush()
    engine = _database.engine(sql_shelf.url or "")
    how = "EXPLAIN QUERY PLAN " if sql_shelf.name == "sqlite" else "EXPLAIN "
    asked = {
        "ix_traces_started": queries.page(TraceQuery(limit=10)),
        "ix_traces_tenant_started": queries.page(TraceQuery(limit=10, tenant="t3", since=NOON)),
        "ix_traces_trace_id": queries.of_a_trace("x", "t3", NOON),
        "ix_traces_request_id": queries.of_a_trace("x", None, NOON),
    }
    async with engine.connect() as connection:
        if sql_shelf.name == "postgresql":
            await connection.exec_driver_sql("ANALYZE traces")
        for index, query in asked.items():
            text = str(query.compile(engine, compile_kwargs={"literal_binds": True}))
            plan = "\n".join(str(row) for row in await connection.exec_driver_sql(how + text.replace("%", "%%")))
            assert index in plan, plan
            assert "Seq Scan" not in plan
            assert "SCAN traces'" not in plan
    await engine.dispose()
