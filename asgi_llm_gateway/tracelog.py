"""The last calls, in memory: what ``TracingMiddleware`` records and the admin API shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from .records import TraceRecord, Usage

_NAMES = tuple(field.name for field in fields(TraceRecord) if field.name != "usage")
_values = attrgetter(*_NAMES)


class TraceLog:
    """A bounded list of calls; the oldest are forgotten first.

    Calls are kept as plain tuples of plain values, which the garbage collector leaves alone: thousands of records would
    make it go over the whole process every few thousand calls, at tens of milliseconds each time.

    Args:
        size: How many calls are kept.
    """

    def __init__(self, size: int = 1000) -> None:
        self._kept: deque[tuple[tuple[Any, ...], tuple[Any, ...] | None]] = deque(maxlen=size)

    def add(self, record: TraceRecord) -> None:
        """A call that is over, as it is now."""
        usage = record.usage
        self._kept.append((_values(record), None if usage is None else (*usage,)))

    def recent(self, limit: int = 100, *, tenant: str | None = None) -> Sequence[TraceRecord]:
        """The newest calls first; of one tenant only, if it is named."""
        found = (record for record in map(_record, reversed(self._kept)) if tenant is None or record.tenant == tenant)
        return [record for record, _ in zip(found, range(limit), strict=False)]

    def find(self, trace_id: str) -> TraceRecord | None:
        """The newest call with that trace id."""
        return next((record for record in map(_record, reversed(self._kept)) if record.trace_id == trace_id), None)


def _record(kept: tuple[tuple[Any, ...], tuple[Any, ...] | None]) -> TraceRecord:
    values, usage = kept
    return TraceRecord(**dict(zip(_NAMES, values, strict=True)), usage=None if usage is None else Usage(*usage))


shared_traces = TraceLog()
"""The log of a TracingMiddleware that is given none."""
