"""The last calls, in memory: what ``TracingMiddleware`` records where it is given nothing else."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import fields
from itertools import count
from operator import attrgetter
from typing import Any

from .records import TraceRecord, Usage

NAMES = tuple(field.name for field in fields(TraceRecord) if field.name not in ("usage", "steps"))
"""The fields of a TraceRecord that are packed as they are, in order."""

_values = attrgetter(*NAMES)

Packed = tuple[tuple[Any, ...], tuple[Any, ...] | None, tuple[tuple[str, float, float], ...]]
"""A TraceRecord as plain tuples of plain values, which the garbage collector leaves alone: thousands of records would make it
go over the whole process every few thousand calls, at tens of milliseconds each time."""


def packed(record: TraceRecord) -> Packed:
    """A call as it is now. Its steps are made of it when somebody reads them."""
    usage = record.usage
    return _values(record), None if usage is None else (*usage,), (*record.steps,)


def unpacked(kept: Packed) -> TraceRecord:
    """The call that was packed."""
    values, usage, steps = kept
    record = TraceRecord(**dict(zip(NAMES, values, strict=True)))
    record.usage = None if usage is None else Usage(*usage)
    record.steps = [*steps]
    return record


class TraceLog:
    """A bounded list of calls; the oldest are forgotten first.

    Args:
        size: How many calls are kept.
    """

    def __init__(self, size: int = 1000) -> None:
        self._kept: deque[tuple[int, Packed]] = deque(maxlen=size)
        self._numbers = count(1)

    def add(self, record: TraceRecord) -> None:
        """A call that is over, as it is now."""
        self._kept.append((next(self._numbers), packed(record)))

    def kept(self) -> Sequence[tuple[int, Packed]]:
        """All calls, oldest first, each with its number in the order of arrival."""
        return list(self._kept)

    def recent(self, limit: int = 100, *, tenant: str | None = None) -> Sequence[TraceRecord]:
        """The newest calls first; of one tenant only, if it is named."""
        newest = (unpacked(kept) for _, kept in reversed(self.kept()))
        found = (record for record in newest if tenant is None or record.tenant == tenant)
        return [record for record, _ in zip(found, range(limit), strict=False)]

    def find(self, trace_id: str) -> TraceRecord | None:
        """The newest call with that trace id."""
        newest = (unpacked(kept) for _, kept in reversed(self.kept()))
        return next((record for record in newest if record.trace_id == trace_id), None)


shared_traces = TraceLog()
"""The log of a TracingMiddleware that is given none."""
