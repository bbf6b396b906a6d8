"""The store of traces that the settings name."""

from __future__ import annotations

from ..settings import Settings
from ..stores.shared import store_url
from ..tracelog import TraceLog
from .base import TraceStore
from .memory import MemoryTraces

MOST_IN_MEMORY = 10_000
"""Calls that TRACE_STORE=memory keeps at most, in each process: about 10 MB."""


def traces_of(settings: Settings) -> TraceStore:
    """A store of this process's own, which opens what it needs on first use."""
    retention = settings.trace_retention_hours * 3600
    if settings.trace_store == "memory":
        return MemoryTraces(TraceLog(min(settings.trace_max_rows, MOST_IN_MEMORY)), retention=retention)
    from ..stores.traces import SQLTraces

    return SQLTraces(
        lambda: store_url(settings),
        queue=settings.trace_queue,
        flush_seconds=settings.trace_flush_seconds,
        retention=retention,
        max_rows=settings.trace_max_rows,
    )


__all__ = ["MOST_IN_MEMORY", "traces_of"]
