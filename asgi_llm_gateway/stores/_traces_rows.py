"""A call as a row of the table ``traces``, and back. Nothing heavy is imported to write one."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import orjson

from ..tracelog import NAMES, Packed
from ..traces.base import Trace
from ..traces.steps import Plain, plain_steps, steps_from

COLUMNS = (
    "trace_id", "request_id", "started", "tenant", "key_id", "model", "provider", "method", "path", "status", "stream",
    "duration", "first_byte", "tokens_in", "tokens_out", "tokens_cached", "cost", "saved", "error", "aborted", "cache",
    "attempts", "steps",
)  # fmt: skip
"""All but ``seq``, which the database gives."""

PRUNED = 200
"""Rows that one step of pruning deletes at most."""

_LONGEST = 256
_MOST_TOKENS = 2**53  # so that not even a lying provider makes a sum overflow
_MOST_MONEY = 2**63 - 1

_pick = itemgetter(
    *map(
        NAMES.index,
        ("trace_id", "request_id", "started", "tenant", "key", "model", "provider", "method", "path", "status", "stream",
         "duration", "first_byte", "cost", "saved", "error", "aborted", "cache", "began", "calls"),
    )
)  # fmt: skip


def row_of(kept: Packed) -> tuple[Any, ...]:
    """The values of COLUMNS. Text that a client chose is cut to 256 characters, and to what every database takes."""
    values, usage, waits = kept
    (trace_id, request_id, started, tenant, key, model, provider, method, path, status, stream, duration, first_byte, cost,
     saved, error, aborted, cache, began, calls) = _pick(values)  # fmt: skip
    prompt = completion = cached = None
    if usage is not None:
        prompt, completion, cached = (_within(count, _MOST_TOKENS) for count in usage[:3])
    steps = plain_steps(began, waits, calls, duration, first_byte, stream, not aborted)
    return (
        _text(trace_id), _text(request_id), started, _text(tenant), _text(key), _text(model), _text(provider),
        _text(method), _text(path), status if status is not None and 0 <= status < 1000 else None, stream, duration,
        first_byte, prompt, completion, cached, _within(cost, _MOST_MONEY), _within(saved, _MOST_MONEY), _text(error),
        aborted, _text(cache), len(calls), _written(steps),
    )  # fmt: skip


def _text(value: str | None) -> str | None:
    if value is None or (len(value) <= _LONGEST and value.isascii() and "\0" not in value):
        return value
    # PostgreSQL has no zero bytes, and nobody half a surrogate pair.
    return value[:_LONGEST].encode("utf-8", "replace").decode().replace("\0", "")


def _within(value: int | None, most: int) -> int | None:
    return value if value is None or -most <= value <= most else most


def _written(steps: Plain) -> str:
    for step in steps:
        if len(step) > 3:
            step[3:] = [_text(one) if isinstance(one, str) else one for one in step[3:]]
    return orjson.dumps(steps).decode()


def trace_from(row: Any) -> Trace:
    """A whole row, ``seq`` first, as a Trace."""
    return Trace._make([*row[:-1], steps_from(orjson.loads(row[-1]))])


__all__ = ["COLUMNS", "PRUNED", "row_of", "trace_from"]
