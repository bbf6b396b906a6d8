"""``/api/stats`` and ``/api/tenants/{id}/records``: what was called, and what it cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response, StreamingResponse

from ..errors import BadRequest
from ..stores.base import CallLog, Page
from .answers import RecordsAnswer, record_answer, stats_answer
from .export import HEAD, csv_of
from .models import MAX_PAGE, RecordsQuery, StatsQuery
from .visit import Visit, reply


async def stats(visit: Visit) -> Response:
    """Sums over calls of a tenant or of all; a tenant's own key gets its own."""
    wanted = visit.query(StatsQuery)
    tenant_id = await visit.whose(wanted.tenant)
    found = await (await visit.log()).stats(tenant=tenant_id, since=wanted.since)
    return reply(stats_answer(found, tenant_id, wanted.since))


async def records(visit: Visit) -> Response:
    """A tenant's records, newest first, of one that is gone too: a page in JSON, or all of the range in CSV."""
    wanted = visit.query(RecordsQuery)
    tenant_id = visit.tenant_id()
    await visit.known(tenant_id)
    log = await visit.log()
    ask: dict[str, Any] = {"since": wanted.since, "until": wanted.until, "model": wanted.model}
    if (wanted.format or _accepted(visit.request.headers.getlist("accept"))) == "csv":
        # The first page is asked for before the answer begins: a store that is away is a 503 and no torn file.
        first = await log.records(tenant_id, limit=MAX_PAGE, **ask)
        if visit.request.method == "HEAD":  # nobody would get the rows
            return Response(media_type="text/csv")
        return StreamingResponse(
            _pages(log, tenant_id, first, ask),
            media_type="text/csv",
            headers={"content-disposition": f'attachment; filename="{tenant_id}-records.csv"'},
        )
    try:
        page = await log.records(tenant_id, limit=wanted.limit, cursor=wanted.cursor, **ask)
    except ValueError:
        raise BadRequest("cursor: no cursor of this list.", status=422, param="cursor") from None
    return reply(RecordsAnswer(records=[record_answer(record) for record in page.records], next=page.next))


async def _pages(log: CallLog, tenant_id: str, page: Page, ask: dict[str, Any]) -> AsyncIterator[bytes]:
    """The whole range, one page in memory at a time.

    A store that fails on the way raises: the server then breaks the connection off, and nobody takes half a file for all.
    """
    yield HEAD
    while True:
        if page.records:
            yield csv_of([record_answer(record) for record in page.records])
        if page.next is None:
            return
        page = await log.records(tenant_id, limit=MAX_PAGE, cursor=page.next, **ask)


def _accepted(headers: list[str]) -> str:
    """``csv`` where an Accept header names it and does not name JSON first."""
    kinds = [part.partition(";")[0].strip().lower() for header in headers for part in header.split(",")]
    found = [kind for kind in kinds if kind in ("text/csv", "application/json")]
    return "csv" if found and found[0] == "text/csv" else "json"
