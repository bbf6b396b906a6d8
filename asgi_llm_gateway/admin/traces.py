"""``/api/traces``: calls as they went, and the steps of each."""

from __future__ import annotations

import re

from starlette.responses import Response

from ..errors import BadRequest, NotFound
from .trace_models import TraceCallsAnswer, TracesAnswer, TracesQuery, trace_answer, trace_steps
from .visit import Visit, reply

# What a trace id or a request id can be: the middleware makes or lets in no other.
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


async def list_traces(visit: Visit) -> Response:
    """Calls, newest first, as far as they are still kept; a tenant's own key gets its own.

    Calls that nobody's key was shown for have no tenant: admins alone see them.
    """
    wanted = visit.query(TracesQuery)
    tenant_id = visit.own_or(wanted.tenant)
    store = await visit.traces()
    try:
        page = await store.recent(wanted.for_store(tenant_id))
    except ValueError:
        raise BadRequest("cursor: no cursor of this list.", status=422, param="cursor") from None
    return reply(TracesAnswer(data=[trace_answer(trace) for trace in page.traces], next=page.next))


async def show_trace(visit: Visit) -> Response:
    """All calls of a trace, by its id or by the request id of one of them, each with its steps.

    Of another tenant's calls a tenant's own key learns nothing, not even that they are there.
    """
    asked: str = visit.request.path_params["trace_id"]
    if _ID.fullmatch(asked):
        found = await (await visit.traces()).find(asked, tenant=visit.caller.tenant)
        if found:
            return reply(TraceCallsAnswer(data=[trace_steps(trace) for trace in found]))
    raise NotFound("There is no trace or request of that id, or it is not kept any more.", code="trace_not_found")
