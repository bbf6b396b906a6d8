"""What the log says of one call: who, what, how long, how much; never what was asked or answered."""

from __future__ import annotations

from typing import Any

from ..exchange import Exchange
from ..logs import plain
from ..meters.bounds import route_label
from ..records import NANO_PER_USD


def line_of(
    exchange: Exchange, method: str, status: int | None, error: str | None, started: float, ended: float
) -> dict[str, Any]:
    """The fields of a call's line.

    Args:
        exchange: The call, which is over.
        method: The HTTP method.
        status: How it was answered; ``None`` where the client left before.
        error: The code of what went wrong, where the record has none.
        started: When it came, by ``perf_counter``.
        ended: When its answer was complete.
    """
    record, request, usage = exchange.record, exchange.request, exchange.usage
    tenant, key = exchange.identity
    path = exchange.route.path
    first = exchange.first_byte_at
    calls = exchange.calls
    cost = exchange.cost
    late = False
    if record is not None:
        error = record.error or error
        if cost is None and record.cost is not None:
            cost, late = record.cost, True
    line = {
        "request_id": record.request_id if record is not None else None,
        "trace_id": record.trace_id if record is not None else None,
        "tenant": None if status == 401 and key is None else tenant.id,
        "key": key.id if key is not None else None,
        "method": method if method == "POST" else plain(method, 20),
        "path": path if exchange.route.dialect is not None else route_label(path),
        "model": plain(request.model) if request is not None else None,
        "provider": calls[-1].target.provider if calls else None,
        "stream": request.stream if request is not None else False,
        "status": status,
        "tokens_in": usage.prompt if usage is not None else None,
        "tokens_out": usage.completion if usage is not None else None,
        "cost_usd": cost / NANO_PER_USD if cost is not None else None,
        "latency_ms": int((ended - started) * 1e6) / 1e3,
        "ttft_ms": int((first - started) * 1e6) / 1e3 if first is not None else None,
        "error": error if error is None else plain(error, 100),
    }
    if late:
        line["settled"] = False
    if len(calls) > 1:  # all of them are paid for
        line["attempts"] = len(calls)
        used = [one.usage for one in calls if one.usage is not None]
        if used:
            line["tokens_in"] = sum(one.prompt for one in used)
            line["tokens_out"] = sum(one.completion for one in used)
    if exchange.gone or (exchange.status is not None and not exchange.complete):
        line["aborted"] = True
    if usage is not None:
        if usage.cached:
            line["tokens_cached"] = usage.cached
        if usage.reasoning:
            line["tokens_reasoning"] = usage.reasoning
        if usage.estimated:
            line["estimated"] = True
    if record is not None and record.cache is not None:
        line["cache"] = record.cache
        if record.saved is not None:
            line["saved_usd"] = record.saved / NANO_PER_USD
    return line


__all__ = ["line_of"]
