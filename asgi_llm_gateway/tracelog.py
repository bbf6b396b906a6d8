"""The last calls, in memory: what ``TracingMiddleware`` records and the admin API shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .records import TraceRecord


class TraceLog:
    """A bounded list of calls; the oldest are forgotten first.

    Args:
        size: How many calls are kept.
    """

    def __init__(self, size: int = 1000) -> None:
        self._records: deque[TraceRecord] = deque(maxlen=size)
        self.add = self._records.append

    def recent(self, limit: int = 100, *, tenant: str | None = None) -> Sequence[TraceRecord]:
        """The newest calls first; of one tenant only, if it is named."""
        found = (record for record in reversed(self._records) if tenant is None or record.tenant == tenant)
        return [record for record, _ in zip(found, range(limit), strict=False)]

    def find(self, trace_id: str) -> TraceRecord | None:
        """The newest call with that trace id."""
        return next((record for record in reversed(self._records) if record.trace_id == trace_id), None)


shared_traces = TraceLog()
"""The log of a TracingMiddleware that is given none."""
