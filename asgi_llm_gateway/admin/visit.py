"""One request to the admin API, and what its handler works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from ..errors import GatewayError, NotFound, TooLarge
from ..keys import check_tenant_id
from ..periods import window_of
from ..records import Tenant
from ..stores.base import CallLog, Ledger, TenantStore
from ..traces.base import TraceStore
from .access import Caller, refuse_tenant
from .answers import TenantAnswer, as_json, tenant_answer
from .models import MAX_BODY, read, read_query

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Visit:
    """Who asks for what and when (Unix seconds), and the openers of the stores."""

    request: Request
    caller: Caller
    now: float
    tenants: Callable[[], Awaitable[TenantStore]]
    ledger: Callable[[], Awaitable[Ledger]]
    log: Callable[[], Awaitable[CallLog]]
    traces: Callable[[], Awaitable[TraceStore]]

    async def body(self, kind: type[T]) -> T:
        """The body as its model. Raises BadRequest, TooLarge."""
        return await read_body(self.request, kind)

    def query(self, kind: type[T]) -> T:
        """The query as its model. Raises BadRequest."""
        return read_query(kind, self.request.query_params.multi_items())

    def tenant_id(self) -> str:
        """The id in the path. Raises NotFound for what can't be one: no store is asked for it."""
        tenant_id: str = self.request.path_params["id"]
        try:
            return check_tenant_id(tenant_id)
        except ValueError:
            raise _no_tenant(tenant_id) from None

    async def tenant(self) -> Tenant:
        """The tenant in the path. Raises NotFound."""
        tenant_id = self.tenant_id()
        tenant = await (await self.tenants()).tenant(tenant_id)
        if tenant is None:
            raise _no_tenant(tenant_id)
        return tenant

    async def known(self, tenant_id: str) -> None:
        """Let pass a tenant that is there, or that left records or adjustments. Raises NotFound."""
        if await (await self.tenants()).tenant(tenant_id) is None:
            log = await self.log()
            if not (await log.stats(tenant=tenant_id)).requests and not await log.adjustments(tenant_id, limit=1):
                raise _no_tenant(tenant_id)

    def own_or(self, asked: str | None) -> str | None:
        """Whose calls are shown: a tenant's own key sees its own, an admin those asked for. Raises Forbidden."""
        own = self.caller.tenant
        if own is not None and asked not in (None, own):
            raise refuse_tenant()
        return own or asked

    async def whose(self, asked: str | None) -> str | None:
        """The same, of a tenant that is or was there. Raises NotFound, Forbidden."""
        tenant_id = self.own_or(asked)
        if tenant_id is not None and self.caller.tenant is None:
            await self.known(tenant_id)
        return tenant_id

    async def standing(self, tenant: Tenant) -> TenantAnswer:
        """A tenant, and where its money stands now."""
        balance = await (await self.ledger()).balance(tenant.id, "", window_of(tenant.period, self.now))
        return tenant_answer(tenant, balance, self.now)


async def read_body(request: Request, kind: type[T]) -> T:
    """A request's body as its model. Raises BadRequest, TooLarge."""
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise TooLarge(f"The body is over the limit of {MAX_BODY} bytes.")
        parts.append(part)
    return read(kind, b"".join(parts))


def _no_tenant(tenant_id: str) -> NotFound:
    shown = tenant_id[:64].encode("ascii", "backslashreplace").decode()
    return NotFound(f"There is no tenant '{shown}'.", code="tenant_not_found")


def reply(answer: BaseModel, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(as_json(answer), status, media_type="application/json")


def error_reply(error: GatewayError) -> Response:
    """A refusal or a failure in the envelope."""
    response = Response(error.body(), error.http_status, media_type="application/json")
    for name, value in error.headers:
        response.headers[name.decode()] = value.decode()
    return response
