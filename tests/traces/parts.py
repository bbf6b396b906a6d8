"""Calls that are over, made by hand, and what a store should say of them, worked out the plain way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from asgi_llm_gateway.records import TraceRecord, Usage
from asgi_llm_gateway.traces.base import Trace, TraceQuery, TraceStore

NOON = 1_792_065_600.0  # 2026-10-15 12:00 UTC


def record(number: int = 0, **more: Any) -> TraceRecord:
    """A call that went well."""
    fields: dict[str, Any] = {
        "trace_id": f"{number:032x}", "request_id": f"req-{number}", "started": NOON + number, "method": "POST",
        "path": "/v1/chat/completions", "tenant": "team", "model": "fast", "provider": "echo", "status": 200,
        "duration": 0.5, "first_byte": 0.25, "usage": Usage(10, 5, 4), "cost": 1000, "key": "key_1", "began": 100.0,
        "calls": (("echo", "echo", 100.1, 100.4, 200, None),),
        "steps": [("auth", 100.0, 100.05), ("settle", 100.4, 100.45)],
        **more,
    }  # fmt: skip
    return TraceRecord(**fields)


# Few values each, so that calls agree in some and differ in others.
RECORDS = st.lists(
    st.builds(
        record,
        st.integers(0, 3),
        started=st.integers(0, 7).map(lambda at: NOON + at / 2),
        request_id=st.sampled_from(["req-a", "req-b", "req-c"]),
        tenant=st.sampled_from(["team", "other", None]),
        model=st.sampled_from(["fast", "slow", None]),
        provider=st.sampled_from(["echo", "far", None]),
        status=st.sampled_from([200, 200, 200, 401, 429, 500, 503, None]),
        error=st.sampled_from([None, None, "rate_limit_exceeded", "upstream_error", "ClientGone"]),
        duration=st.sampled_from([0.1, 0.2, 0.3, 0.7, 1.5, None]),
        first_byte=st.sampled_from([0.05, 0.1, None]),
        usage=st.sampled_from([None, Usage(7, 3, 1), Usage(2**40, 2**40)]),
        cost=st.sampled_from([None, 0, 10**9 + 1, 2**60]),
        saved=st.sampled_from([None, None, 77]),
        cache=st.sampled_from([None, "hit", "joined", "miss"]),
        aborted=st.booleans(),
    ),
    max_size=25,
)

TENANTS = st.sampled_from(["team", "other", "nobody", None])

QUERIES = st.builds(
    TraceQuery,
    limit=st.integers(1, 30),
    tenant=TENANTS,
    model=st.sampled_from([None, None, "fast", "none"]),
    status=st.sampled_from([None, None, (200, 200), (400, 499), (500, 599)]),
    min_duration=st.sampled_from([None, None, 0.2, 1.0]),
    since=st.sampled_from([None, None, NOON + 1, NOON + 2.5]),
    until=st.sampled_from([None, None, NOON + 2, NOON + 3.5]),
    error=st.sampled_from([None, None, "any", "upstream_error", "never"]),
)


def fits(query: TraceQuery) -> Callable[[TraceRecord], bool]:
    """Whether a call is one that was asked for."""

    def look(one: TraceRecord) -> bool:
        wrong = [
            query.tenant is not None and one.tenant != query.tenant,
            query.model is not None and one.model != query.model,
            query.status is not None and one.status not in range(query.status[0], query.status[1] + 1),
            query.min_duration is not None and (one.duration or 0) < query.min_duration,
            query.since is not None and one.started < query.since,
            query.until is not None and one.started >= query.until,
            query.error == "any" and one.error is None,
            query.error not in (None, "any") and one.error != query.error,
        ]
        return not any(wrong)

    return look


async def walk(store: TraceStore, query: TraceQuery) -> list[Trace]:
    """All pages."""
    found: list[Trace] = []
    cursor: str | None = None
    for _ in range(1000):
        page = await store.recent(query._replace(cursor=cursor))
        assert len(page.traces) <= query.limit
        found += page.traces
        cursor = page.next
        if cursor is None:
            return found
        assert len(page.traces) == query.limit
    raise AssertionError("there is no end of pages")


def times(values: Sequence[float | None]) -> tuple[float | None, ...]:
    """The 50th, 95th and 99th percentile, each the least value that so many are not above."""
    found = sorted(value for value in values if value is not None)
    return tuple(
        next((one for one in found if sum(other <= one for other in found) * 100 >= percent * len(found)), None)
        for percent in (50, 95, 99)
    )
