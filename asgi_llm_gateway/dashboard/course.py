"""``/dashboard/api/course``: what was spent over time by each model or tenant, summed over the ledger's records."""

from __future__ import annotations

import math

from starlette.responses import Response

from ..admin.visit import Visit, reply
from .models import CourseAnswer, CoursePoint, CourseQuery
from .overview import span, step_of

NAMES = 5
"""Models, or tenants, that have a course of their own: as many lines as an eye can tell apart."""


async def course(visit: Visit) -> Response:
    """The dearest models or tenants one by one, all others together; on the grid of the overview of that time."""
    wanted = visit.query(CourseQuery)
    tenant_id = await visit.whose(wanted.tenant)
    since, until = span(wanted, visit.now)
    step = step_of(until - since)
    log = await visit.log()
    found = await log.course(wanted.by, since=since, until=until, step=step, tenant=tenant_id, most=NAMES)
    others = any(place == len(found.names) for place, _, _ in found.over_time)
    columns = len(found.names) + others
    count = math.ceil((until - since) / step)
    money, tokens = ([[0] * columns for _ in range(count)] for _ in range(2))
    for place, number, stats in found.over_time:
        number = min(number, count - 1)  # a call at the very end may be rounded into a bucket behind it
        money[number][place] += stats.cost
        tokens[number][place] += stats.tokens_in + stats.tokens_out
    series = [
        CoursePoint(t=since + at * step, cost_usd=money[at], tokens=tokens[at]) for at in range(count)
    ]  # fmt: skip
    answer = CourseAnswer(
        since=since, until=until, step=step, by=wanted.by, names=list(found.names), others=others, series=series
    )
    return reply(answer)


__all__ = ["NAMES", "course"]
