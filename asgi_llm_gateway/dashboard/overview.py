"""``/dashboard/api/overview``: what was called, what it cost, how fast it went, and what is left.

Money and tokens are summed over the ledger's records; what the ledger does not know (refusals, failures, times, savings) over
the recorded traces, which are kept for a shorter time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.responses import Response

from ..admin.visit import Visit, reply
from ..errors import BadRequest
from ..records import Stats, Tenant
from ..stores.base import Spend
from ..traces.base import Bucket, Spread, Sums
from ..traces.base import Group as Traced
from .models import MAX_SPAN, BudgetRow, Group, Overview, OverviewQuery, Point, Totals

DAY = 86400.0

STEPS = (10, 30, 60, 300, 900, 1800, 3600, 3 * 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400)
"""Seconds that a point of the series may stand for, before the span is too long for any of them."""

POINTS = 120
"""Points that a series has at most."""

GROUPS = 200
"""Models, and tenants, that are told one by one: those that cost most."""

BUDGETS = 200
"""Budgets that are told: those nearest to their ends."""

_MOST_ASKED = 2000  # budgets whose balance is asked for: an overview is shown again and again
_AT_ONCE = 50  # balances asked for at a time, as the admin API does
_NOTHING = Stats()
_NO_SUMS = Sums()


async def overview(visit: Visit) -> Response:
    """Sums over the calls of a time: in all, over time, by model and by tenant; and budgets as they stand now."""
    wanted = visit.query(OverviewQuery)
    tenant_id = await visit.whose(wanted.tenant)
    since, until = span(wanted, visit.now)
    step = step_of(until - since)
    log, traces = await visit.log(), await visit.traces()
    asked: dict[str, Any] = {"since": since, "until": until, "tenant": tenant_id}
    spend, buckets, whole, models, tenants, (budgets, more) = await asyncio.gather(
        log.spend(step=step, **asked),
        traces.series(step=step, **asked),
        traces.series(step=until - since, **asked),
        traces.by("model", **asked),
        traces.by("tenant", **asked),
        _budgets(visit, tenant_id),
    )
    series = points(since, step, spend, buckets)
    return reply(
        Overview(
            since=since,
            until=until,
            step=step,
            totals=totals(series, whole),
            series=series,
            by_model=groups(((model, stats) for _, model, stats in spend.by_model), models),
            by_tenant=groups(((owner, stats) for owner, _, stats in spend.by_model), tenants),
            budgets=budgets,
            budgets_unlisted=more,
        )
    )


def span(wanted: OverviewQuery, now: float) -> tuple[float, float]:
    """The time that is asked for. Raises BadRequest."""
    until = wanted.until if wanted.until is not None else max(now, wanted.since or 0.0)
    since = wanted.since if wanted.since is not None else max(0.0, until - DAY)
    if not since < until:
        raise BadRequest("since: it must lie before 'until'.", status=422, param="since")
    if until - since > MAX_SPAN:
        raise BadRequest("since: an overview spans at most 100 years.", status=422, param="since")
    return since, until


def step_of(seconds: float) -> float:
    """The step that cuts so many seconds into at most POINTS points."""
    for step in STEPS:
        if seconds <= step * POINTS:
            return float(step)
    return math.ceil(seconds / POINTS / DAY) * DAY


def points(since: float, step: float, spend: Spend, buckets: Sequence[Bucket]) -> list[Point]:
    """The series: a point for each bucket of the traces, with the money of the records in it."""
    booked: dict[int, Stats] = {}
    last = len(buckets) - 1
    for number, stats in spend.over_time:
        number = min(number, last)  # a call at the very end may be rounded into a bucket behind it
        booked[number] = _added(booked.get(number, _NOTHING), stats)
    return [
        Point(
            t=since + number * step,
            **_sums(booked.get(number, _NOTHING), bucket.sums),
            **_spread(bucket.duration, bucket.first_byte),
        )
        for number, bucket in enumerate(buckets)
    ]


def totals(series: Sequence[Point], whole: Sequence[Bucket]) -> Totals:
    """The sums of a series; its percentiles are those of all calls together, which no sum gives."""
    names = [name for name in Totals.model_fields if not name.endswith("_ms")]
    sums = {name: sum(getattr(point, name) for point in series) for name in names}
    spread: dict[str, Any] = _spread(whole[0].duration, whole[0].first_byte) if whole else {}
    return Totals(**sums, **spread)


def groups(booked: Iterable[tuple[str | None, Stats]], traced: Sequence[Traced]) -> list[Group]:
    """By name, the dearest first; those behind the GROUPS dearest are one group, so that the sums stay whole."""
    money: dict[str | None, Stats] = {}
    for name, stats in booked:
        money[name] = _added(money.get(name, _NOTHING), stats)
    seen = {one.name: one for one in traced}
    rows = []
    for name in {**money, **seen}:
        one = seen.get(name)
        p95 = one.duration.p95 if one is not None else None
        rows.append(
            Group(name=name, p95_ms=_ms(p95), **_sums(money.get(name, _NOTHING), one.sums if one else _NO_SUMS))
        )
    rows.sort(key=lambda row: (-row.cost_usd, -row.calls, row.name or ""))
    rest = rows[GROUPS:]
    if rest:
        names = [name for name in Group.model_fields if name not in ("name", "p95_ms")]
        sums = {name: sum(getattr(row, name) for row in rest) for name in names}
        rows = [*rows[:GROUPS], Group(name=f"({len(rest)} others)", **sums)]
    return rows


def _added(one: Stats, other: Stats) -> Stats:
    return Stats(*(a + b for a, b in zip(one, other, strict=True)))


def _sums(booked: Stats, traced: Sums) -> dict[str, int]:
    return {
        # Traces are forgotten first: a call that is booked came in, whatever is still known of it.
        "calls": max(booked.requests, traced.calls),
        "booked": booked.requests,
        "errors": traced.errors,
        "aborted": traced.aborted,
        "refused": traced.refused,
        "cached": traced.cached,
        "tokens_in": booked.tokens_in,
        "tokens_out": booked.tokens_out,
        "cost_usd": booked.cost,
        "saved_usd": traced.saved,
    }


def _spread(duration: Spread, first_byte: Spread) -> dict[str, Any]:
    return {
        "p50_ms": _ms(duration.p50),
        "p95_ms": _ms(duration.p95),
        "p99_ms": _ms(duration.p99),
        "ttft_p50_ms": _ms(first_byte.p50),
        "ttft_p95_ms": _ms(first_byte.p95),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


async def _budgets(visit: Visit, tenant_id: str | None) -> tuple[list[BudgetRow], int]:
    """Where budgets stand, the nearest to its end first, and how many are not told; of one tenant, where it is named."""
    store = await visit.tenants()
    if tenant_id is not None:
        own = await store.tenant(tenant_id)
        return ([] if own is None else [await _budget(visit, own)]), 0
    asked = [tenant for tenant in await store.tenants() if tenant.budget is not None]
    rows: list[BudgetRow] = []
    for at in range(0, min(len(asked), _MOST_ASKED), _AT_ONCE):
        rows += await asyncio.gather(*(_budget(visit, tenant) for tenant in asked[at : at + _AT_ONCE]))
    rows.sort(key=lambda row: ((row.left_usd or 0) / (row.budget_usd or 1), row.tenant))
    return rows[:BUDGETS], max(0, len(asked) - BUDGETS)


async def _budget(visit: Visit, tenant: Tenant) -> BudgetRow:
    standing = await visit.standing(tenant)
    return BudgetRow(
        tenant=tenant.id,
        name=tenant.name,
        budget_usd=standing.budget_usd,
        spent_usd=standing.spent_usd,
        held_usd=standing.held_usd,
        left_usd=standing.remaining_usd,
        period=tenant.period,
    )


__all__ = ["overview"]
