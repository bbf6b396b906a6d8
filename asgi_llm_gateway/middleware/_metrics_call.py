"""What is counted of one LLM call when it is over, beside its time; money is counted when it is booked."""

from __future__ import annotations

from ..exchange import Exchange
from ..meters.bounds import OTHER
from ..meters.meters import Meters
from ..records import TraceRecord
from .base import Rank

_NO_BUDGET = frozenset({"budget_exceeded", "would_exceed_budget"})
_TOO_MANY = "rate_limit_exceeded"
_EVENTS = frozenset({"hit", "joined", "miss", "bypass"})


def count_call(meters: Meters, exchange: Exchange, status: int, started: float, ended: float) -> None:
    """Count a call; the caller holds the meters' lock.

    Args:
        meters: Where.
        exchange: The call.
        status: How it was answered.
        started: When it came, by ``perf_counter``.
        ended: When its answer was complete.
    """
    record = exchange.record
    if exchange.route.kind == "metered":
        request = exchange.request
        usage = exchange.usage
        if usage is not None and exchange.cost is None and not _booked_elsewhere(exchange, record):
            model = meters.model_of(request.model if request is not None else None, status)
            tenant = meters.tenants.admit(exchange.identity.tenant.id)
            meters.used(model, tenant, usage)
        if exchange.calls:
            _attempts(meters, exchange, record, status)
        stream = request is not None and request.stream
        if stream and status == 200 and exchange.first_byte_at is not None:
            _stream(meters, exchange, record, started, ended)
        if exchange.status is not None and status < 400 and (exchange.gone or not exchange.complete):
            meters.aborted.add(("stream" if stream else "json",))
    if record is not None and (record.error is not None or record.cache is not None):
        _told(meters, exchange, record)


def _stream(meters: Meters, exchange: Exchange, record: TraceRecord | None, started: float, ended: float) -> None:
    request, usage, first = exchange.request, exchange.usage, exchange.first_byte_at
    assert request is not None
    assert first is not None
    labels = (meters.model_of(request.model, 200),)
    trace_id = record.trace_id if record is not None else ""
    meters.first.observe(labels, first - started, trace_id)
    if usage is not None and usage.completion > 1 and exchange.complete and not exchange.gone:
        meters.per_output.observe(labels, (ended - first) / (usage.completion - 1), trace_id)


def _attempts(meters: Meters, exchange: Exchange, record: TraceRecord | None, status: int) -> None:
    add = meters.attempts.add
    if record is not None and record.attempts:
        for one in record.attempts:
            add((meters.providers.admit(one.provider), "ok" if one.error is None else meters.codes.admit(one.error)))
        return
    error = record.error if record is not None else None
    outcome = "ok" if status < 400 and error is None else meters.codes.admit(error or "error")
    for call in exchange.calls:
        add((meters.providers.admit(call.target.provider), outcome))


def _told(meters: Meters, exchange: Exchange, record: TraceRecord) -> None:
    """What the record says: why it was refused, and what the cache did."""
    error = record.error
    if error is not None:
        meters.errors.add((meters.codes.admit(error),))
        if not exchange.calls:  # a provider may answer with the same words
            refused = meters.budget if error in _NO_BUDGET else meters.limited if error == _TOO_MANY else None
            if refused is not None:
                refused.add((meters.tenants.admit(exchange.identity.tenant.id),))
    if record.cache is not None:
        meters.cache.add((record.cache if record.cache in _EVENTS else OTHER,))
        if record.saved:
            meters.saved.add((), record.saved)


def _booked_elsewhere(exchange: Exchange, record: TraceRecord | None) -> bool:
    """Whether a ledger books the call, and it is counted when that has happened; or it used nothing, as the cache answered."""
    if record is not None and (record.cost is not None or record.cache in ("hit", "joined")):
        return True  # a layer that answers for several calls at once (the cache) hides the ledger from ``seen``
    return any(layer.rank == Rank.BUDGET for layer in exchange.seen)


__all__ = ["count_call"]
