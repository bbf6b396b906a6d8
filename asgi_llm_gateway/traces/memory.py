"""Traces in the memory of one process: of a TraceLog, which forgets the oldest when it is full."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..records import TraceRecord
from ..stores.cursors import cursor_of, place_of
from ..tracelog import TraceLog, unpacked
from .base import (
    ANY_ERROR,
    MOST_GROUPS,
    MOST_OF_A_TRACE,
    Bucket,
    Group,
    Spread,
    Sums,
    Trace,
    TracePage,
    TraceQuery,
    What,
    buckets_of,
    is_error,
    rank,
)
from .steps import trace_of


class MemoryTraces:
    """The TraceStore over a TraceLog. Percentiles are exact, over all that is kept; a thread works them out.

    Args:
        log: Where calls are kept; ``None`` makes one.
        retention: Seconds after which a call is shown no more; ``None``: never.
        clock: Unix time in seconds.
    """

    def __init__(
        self, log: TraceLog | None = None, *, retention: float | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._log = TraceLog() if log is None else log
        self._retention = retention
        self._clock = clock
        self.add: Callable[[TraceRecord], None] = self._log.add

    async def flush(self) -> None:
        """See TraceStore: nothing waits."""

    async def recent(self, query: TraceQuery = TraceQuery()) -> TracePage:  # noqa: B008 - a constant
        """See TraceStore."""
        place = None if query.cursor is None else place_of(query.cursor)
        return await asyncio.to_thread(self._page, query, place)

    async def find(self, id: str, *, tenant: str | None = None) -> Sequence[Trace]:
        """See TraceStore."""

        def look() -> list[Trace]:
            own = [trace for trace in self._traces() if tenant is None or trace.tenant == tenant]
            ids = {trace.trace_id for trace in own if id in (trace.trace_id, trace.request_id)}
            found = [trace for trace in own if trace.trace_id in ids]
            return sorted(found, key=_place)[-MOST_OF_A_TRACE:]

        return await asyncio.to_thread(look)

    async def series(self, *, since: float, until: float, step: float, tenant: str | None = None) -> Sequence[Bucket]:
        """See TraceStore."""
        count = buckets_of(since, until, step)

        def add_up() -> list[Bucket]:
            parts: list[list[Trace]] = [[] for _ in range(count)]
            for trace in self._within(since, until, tenant):
                parts[min(int((trace.started - since) / step), count - 1)].append(trace)
            return [
                Bucket(since + at * step, _sums(part), _spread(part, _duration), _spread(part, _first_byte))
                for at, part in enumerate(parts)
            ]

        return await asyncio.to_thread(add_up)

    async def by(self, what: What, *, since: float, until: float, tenant: str | None = None) -> Sequence[Group]:
        """See TraceStore."""

        def add_up() -> list[Group]:
            parts: dict[str | None, list[Trace]] = {}
            for trace in self._within(since, until, tenant):
                parts.setdefault(getattr(trace, what), []).append(trace)
            groups = [
                Group(name, _sums(part), _spread(part, _duration), _spread(part, _first_byte))
                for name, part in parts.items()
            ]
            groups.sort(key=lambda group: (-group.sums.calls, group.name is not None, group.name or ""))
            return groups[:MOST_GROUPS]

        return await asyncio.to_thread(add_up)

    async def close(self) -> None:
        """See TraceStore: nothing is open."""

    def _traces(self) -> Iterator[Trace]:
        """All that is kept and not too old, the latest arrival first."""
        oldest = None if self._retention is None else self._clock() - self._retention
        for seq, kept in reversed(self._log.kept()):
            record = unpacked(kept)
            if oldest is None or record.started >= oldest:
                yield trace_of(record, seq)

    def _within(self, since: float, until: float, tenant: str | None) -> Iterator[Trace]:
        for trace in self._traces():
            if since <= trace.started < until and (tenant is None or trace.tenant == tenant):
                yield trace

    def _page(self, query: TraceQuery, place: tuple[float, int] | None) -> TracePage:
        wanted = [trace for trace in self._traces() if _fits(trace, query)]
        wanted.sort(key=_place, reverse=True)
        if place is not None:
            wanted = [trace for trace in wanted if _place(trace) < place]
        limit = max(1, query.limit)
        page = wanted[:limit]
        return TracePage(page, cursor_of(page[-1].started, page[-1].seq) if len(wanted) > limit else None)


def _place(trace: Trace) -> tuple[float, int]:
    return trace.started, trace.seq


def _fits(trace: Trace, query: TraceQuery) -> bool:
    return (
        (query.tenant is None or trace.tenant == query.tenant)
        and (query.model is None or trace.model == query.model)
        and (
            query.status is None
            or (trace.status is not None and query.status[0] <= trace.status <= query.status[1])
        )
        and (query.min_duration is None or (trace.duration is not None and trace.duration >= query.min_duration))
        and (query.since is None or trace.started >= query.since)
        and (query.until is None or trace.started < query.until)
        and (
            query.error is None
            or (trace.error is not None and (query.error == ANY_ERROR or trace.error == query.error))
        )
    )  # fmt: skip


def _sums(traces: Iterable[Trace]) -> Sums:
    calls = errors = refused = aborted = cached = tokens_in = tokens_out = cost = saved = 0
    for trace in traces:
        calls += 1
        errors += is_error(trace.status, trace.error)
        refused += trace.status is not None and 400 <= trace.status < 500
        aborted += trace.aborted
        cached += trace.cache in ("hit", "joined")
        tokens_in += trace.tokens_in or 0
        tokens_out += trace.tokens_out or 0
        cost += trace.cost or 0
        saved += trace.saved or 0
    return Sums(calls, errors, refused, aborted, cached, tokens_in, tokens_out, cost, saved)


def _duration(trace: Trace) -> float | None:
    return trace.duration


def _first_byte(trace: Trace) -> float | None:
    return trace.first_byte


def _spread(traces: Iterable[Trace], time_of: Callable[[Trace], float | None]) -> Spread:
    times = sorted(found for found in map(time_of, traces) if found is not None)
    return Spread(*(times[rank(percent, len(times)) - 1] for percent in (50, 95, 99))) if times else Spread()


__all__ = ["MemoryTraces"]
