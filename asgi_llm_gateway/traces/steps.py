"""A recorded call as it is shown: its steps in order, on one clock that begins with the call."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from ..records import TraceRecord
from .base import Step, Trace

Plain = list[list[Any]]
"""Steps as plain values: name, start and length in microseconds, and of an attempt provider, model, status, error."""

_start = itemgetter(1)
_DETAIL = ("provider", "model", "status", "error")


def plain_steps(
    began: float,
    waits: Sequence[tuple[str, float, float]],
    calls: Sequence[tuple[str, str, float, float, int | None, str | None]],
    duration: float | None,
    first_byte: float | None,
    stream: bool,
    whole: bool,
) -> Plain:
    """What a call waited for, its upstream calls, and its moments, in the order in which they began.

    An upstream call that never ended (the client left) lasts until the call's own end. The last byte is taken to go out
    when the app returns; of an answer that was not ``whole`` there is none. See TraceRecord for the rest.
    """
    # Whole microseconds: to round a fraction would take longer than all else here.
    steps: Plain = [
        [name, int((start - began) * 1e6 + 0.5), int((done - start) * 1e6 + 0.5)] for name, start, done in waits
    ]
    for provider, model, start, done, status, error in calls:
        took = done - start if done else max(0.0, began + (duration or 0.0) - start)
        steps.append(
            ["attempt", int((start - began) * 1e6 + 0.5), int(took * 1e6 + 0.5), provider, model, status, error]
        )
    if first_byte is not None:
        steps.append(["first_token" if stream else "first_byte", int(first_byte * 1e6 + 0.5), 0])
    steps.sort(key=_start)
    if duration is not None and first_byte is not None and whole:
        steps.append(["last_byte", int(duration * 1e6 + 0.5), 0])
    return steps


def steps_from(plain: Plain) -> tuple[Step, ...]:
    """The steps, in seconds."""
    return tuple(
        Step(name, start / 1e6, took / 1e6, dict(zip(_DETAIL, more, strict=True)) if more else None)
        for name, start, took, *more in plain
    )


def steps_of(record: TraceRecord) -> tuple[Step, ...]:
    """The steps of a call that is over."""
    return steps_from(
        plain_steps(
            record.began,
            record.steps,
            record.calls,
            record.duration,
            record.first_byte,
            record.stream,
            not record.aborted,
        )
    )


def trace_of(record: TraceRecord, seq: int) -> Trace:
    """A call that is over, as number ``seq`` of a store."""
    usage = record.usage
    return Trace(
        seq=seq,
        trace_id=record.trace_id,
        request_id=record.request_id,
        started=record.started,
        tenant=record.tenant,
        key=record.key,
        model=record.model,
        provider=record.provider,
        method=record.method,
        path=record.path,
        status=record.status,
        stream=record.stream,
        duration=record.duration,
        first_byte=record.first_byte,
        tokens_in=None if usage is None else usage.prompt,
        tokens_out=None if usage is None else usage.completion,
        tokens_cached=None if usage is None else usage.cached,
        cost=record.cost,
        saved=record.saved,
        error=record.error,
        aborted=record.aborted,
        cache=record.cache,
        attempts=len(record.calls),
        steps=steps_of(record),
    )


__all__ = ["Plain", "plain_steps", "steps_from", "steps_of", "trace_of"]
