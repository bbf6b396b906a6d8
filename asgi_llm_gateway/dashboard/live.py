"""``/dashboard/api/live``: the newest calls, for a list that is asked for again and again."""

from __future__ import annotations

from starlette.responses import Response

from ..admin.trace_models import trace_answer
from ..admin.visit import Visit, reply
from ..errors import BadRequest
from ..traces.base import TraceQuery
from .models import LiveAnswer, LiveQuery

_LOOKED_AT = 200
"""Calls that are looked through for new ones. One that ran while so many others began is not told here; the traces have it."""


async def newest(visit: Visit) -> Response:
    """The newest calls, latest begun first: those that were recorded after ``after``; ``cursor`` is the next ``after``."""
    wanted = visit.query(LiveQuery)
    after = _place(wanted.after)
    traces = await visit.traces()
    page = await traces.recent(TraceQuery(limit=_LOOKED_AT, tenant=visit.caller.tenant))
    calls = [trace_answer(trace) for trace in page.traces if trace.seq > after][: wanted.limit]
    cursor = max((trace.seq for trace in page.traces), default=0)
    return reply(LiveAnswer(calls=calls, cursor=str(max(after, cursor))))


def _place(cursor: str | None) -> int:
    """The number of the call that was recorded last. Raises BadRequest."""
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 20):
        raise BadRequest("after: no cursor of this list.", status=422, param="after")
    return int(cursor)


__all__ = ["newest"]
