"""What a store of traces promises; ``memory`` and ``stores.traces`` keep it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from ..records import TraceRecord

MOST_BUCKETS = 1000
"""Buckets that one series may have."""

MOST_GROUPS = 100
"""Groups that ``by`` tells of: those with the most calls."""

MOST_OF_A_TRACE = 1000
"""Calls that are told of one trace: a client may send any number under one id."""

ANY_ERROR = "any"
"""In a TraceQuery: calls with an error, whichever."""

What = Literal["model", "tenant", "provider"]


class Step(NamedTuple):
    """A part of a call.

    Attributes:
        name: ``auth``, ``limit``, ``policy``, ``cache``, ``hold``, ``attempt`` (one upstream call), ``first_token`` (of an
            answer that is no stream: ``first_byte``), ``settle``, ``last_byte``.
        start: Seconds since the call began.
        seconds: How long it took; 0 for what is a moment.
        detail: Of an attempt: ``provider``, ``model``, ``status`` (HTTP) and ``error`` (a failure's code).
    """

    name: str
    start: float
    seconds: float
    detail: Mapping[str, str | int | None] | None = None


class Trace(NamedTuple):
    """A call as it is kept: a TraceRecord that is over, with its steps in order. Money in nano-USD, times in seconds.

    ``seq`` is its place in the store, in the order of arrival. ``tenant`` is ``None`` where the caller was nobody's;
    ``key`` is a key's id. ``cost`` is ``None`` where it was not known yet when the answer had ended. ``attempts`` counts
    upstream calls.
    """

    seq: int
    trace_id: str
    request_id: str
    started: float
    tenant: str | None
    key: str | None
    model: str | None
    provider: str | None
    method: str
    path: str
    status: int | None
    stream: bool
    duration: float | None
    first_byte: float | None
    tokens_in: int | None
    tokens_out: int | None
    tokens_cached: int | None
    cost: int | None
    saved: int | None
    error: str | None
    aborted: bool
    cache: str | None
    attempts: int
    steps: tuple[Step, ...] = ()


class TraceQuery(NamedTuple):
    """Which traces, newest first.

    Attributes:
        limit: Traces of one page.
        cursor: The ``next`` of the page before.
        tenant: Of this tenant alone.
        model: Of this name that was asked for.
        status: From this HTTP status to that one, both included.
        min_duration: Seconds that the call took at least.
        since: Begun at or after, Unix seconds.
        until: Begun before.
        error: With this error code; ANY_ERROR for any.
    """

    limit: int = 100
    cursor: str | None = None
    tenant: str | None = None
    model: str | None = None
    status: tuple[int, int] | None = None
    min_duration: float | None = None
    since: float | None = None
    until: float | None = None
    error: str | None = None


class TracePage(NamedTuple):
    """Traces, newest first, and where the next page begins; ``None`` at the end."""

    traces: Sequence[Trace]
    next: str | None


class Sums(NamedTuple):
    """Sums over calls: tokens, and nano-USD.

    ``refused`` are calls that ended with a 4xx: the gateway's refusals and the provider's. ``errors`` are those that came
    to nothing otherwise: a 5xx, or a failure after the answer had begun; a client that left (``aborted``) is none.
    ``cached`` were answered by the cache, which ``saved`` what those answers had cost.
    """

    calls: int = 0
    errors: int = 0
    refused: int = 0
    aborted: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: int = 0
    saved: int = 0


class Spread(NamedTuple):
    """Percentiles in seconds, each the time of a real call (nearest rank); ``None`` where there was no call with one."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Bucket(NamedTuple):
    """The calls begun in [start, start + step), Unix seconds."""

    start: float
    sums: Sums
    duration: Spread
    first_byte: Spread


class Group(NamedTuple):
    """The calls of one model, tenant or provider; ``None`` for those that had none."""

    name: str | None
    sums: Sums
    duration: Spread
    first_byte: Spread


class TraceSink(Protocol):
    """Where a TracingMiddleware puts calls that are over."""

    def add(self, record: TraceRecord) -> None:
        """A call that is over, as it is now. Never waits, from any thread."""
        ...


@runtime_checkable
class TraceStore(Protocol):
    """Traces, kept for a while."""

    def add(self, record: TraceRecord) -> None:
        """See TraceSink."""
        ...

    async def flush(self) -> None:
        """What was added before can be read now, by this process and others. Raises StoreError."""
        ...

    async def recent(self, query: TraceQuery = TraceQuery()) -> TracePage:  # noqa: B008 - a constant
        """A page. Raises ValueError for what is no cursor of ours, StoreError."""
        ...

    async def find(self, id: str, *, tenant: str | None = None) -> Sequence[Trace]:
        """All calls of the trace with that id, or of the one that the request with that id belongs to; oldest first.

        Of ``tenant`` alone, where given. At most MOST_OF_A_TRACE. Raises StoreError.
        """
        ...

    async def series(self, *, since: float, until: float, step: float, tenant: str | None = None) -> Sequence[Bucket]:
        """All buckets of ``step`` seconds from ``since`` to ``until``, in order, those without a call included.

        A step as long as the whole gives one bucket: the totals. Raises ValueError for more than MOST_BUCKETS,
        StoreError.
        """
        ...

    async def by(self, what: What, *, since: float, until: float, tenant: str | None = None) -> Sequence[Group]:
        """The MOST_GROUPS groups with the most calls, those first. Raises StoreError."""
        ...

    async def close(self) -> None:
        """Keep what was added, as far as the store answers, and give back what is held open."""
        ...


CLIENT_LEFT = ("ClientGone", "CancelledError")
"""The errors of a call whose client did not wait for its end."""


def is_error(status: int | None, error: str | None) -> bool:
    """Whether a call with that HTTP status and error code counts among ``Sums.errors``."""
    if status is not None and status >= 400:
        return status >= 500
    return error is not None and error not in CLIENT_LEFT


def rank(percent: int, count: int) -> int:
    """Which of ``count`` values in order, from 1, is that percentile: the nearest rank."""
    return (count * percent + 99) // 100


def buckets_of(since: float, until: float, step: float) -> int:
    """How many buckets there are. Raises ValueError."""
    if not (math.isfinite(since) and math.isfinite(until) and math.isfinite(step) and step > 0):
        raise ValueError("since, until and step are seconds")
    count = max(0, math.ceil((until - since) / step - 1e-6))  # fractions are not exact: no bucket for a rest of nothing
    if count > MOST_BUCKETS:
        raise ValueError(f"at most {MOST_BUCKETS} buckets: take a longer step")
    return count


__all__ = [
    "ANY_ERROR", "CLIENT_LEFT", "MOST_BUCKETS", "MOST_GROUPS", "MOST_OF_A_TRACE", "Bucket", "Group", "Spread", "Step",
    "Sums", "Trace", "TracePage", "TraceQuery", "TraceSink", "TraceStore", "What", "buckets_of", "is_error",
    "rank",
]  # fmt: skip
