"""``/api/tenants``: tenants, and credits and debits on their budgets."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

from starlette.responses import Response

from ..errors import BadRequest, GatewayError, NotFound
from ..periods import window_of
from ..records import Adjustment, Tenant
from .answers import AdjustmentsAnswer, BookedAnswer, TenantAnswer, TenantsAnswer, adjustment_answer
from .models import MAX_PAGE, AdjustmentsQuery, NewAdjustment, NewTenant, TenantChange, TenantsQuery
from .visit import Visit, reply

_AT_ONCE = 50  # balances asked for at a time: a store answers them in one batch, and others are not kept waiting
_MAX_CREDIT = 2**62  # nano-USD either way; a database's integer has one bit more


async def list_tenants(visit: Visit) -> Response:
    """Tenants by id, each with its money, a page at a time."""
    wanted = visit.query(TenantsQuery)
    found = sorted(await (await visit.tenants()).tenants(), key=lambda tenant: tenant.id)
    if wanted.after is not None:
        found = [tenant for tenant in found if tenant.id > wanted.after]
    page = found[: wanted.limit]
    rows: list[TenantAnswer] = []
    for at in range(0, len(page), _AT_ONCE):
        rows += await asyncio.gather(*(visit.standing(tenant) for tenant in page[at : at + _AT_ONCE]))
    return reply(TenantsAnswer(data=rows, next=page[-1].id if len(page) < len(found) else None))


async def create_tenant(visit: Visit) -> Response:
    """A new tenant; 409 where the id is taken."""
    wanted = await visit.body(NewTenant)
    tenant = Tenant(created=visit.now, **wanted.for_record())
    if not await (await visit.tenants()).add_tenant(tenant):
        raise _conflict(f"The tenant '{wanted.id}' exists already.", "tenant_exists")
    return reply(await visit.standing(tenant), 201)


async def show_tenant(visit: Visit) -> Response:
    """A tenant, and where its money stands."""
    return reply(await visit.standing(await visit.tenant()))


async def change_tenant(visit: Visit) -> Response:
    """Change the fields that are sent; ``null`` takes a limit away, all others keep their value.

    ``id`` and ``created`` can't be changed. A new ``budget_period`` changes only which window counts from now on: what
    was spent is not moved.
    """
    wanted = await visit.body(TenantChange)
    tenant = replace(await visit.tenant(), **wanted.for_record())
    await (await visit.tenants()).put_tenant(tenant)
    return reply(await visit.standing(tenant))


async def delete_tenant(visit: Visit) -> Response:
    """Forget a tenant and revoke its keys. Its records and adjustments stay, and so does what it has spent."""
    tenant = await visit.tenant()
    if not await (await visit.tenants()).drop_tenant(tenant.id, visit.now):
        raise NotFound(f"There is no tenant '{tenant.id}'.", code="tenant_not_found")
    return Response(status_code=204)


async def list_adjustments(visit: Visit) -> Response:
    """The newest adjustments of a tenant, of one that is gone too."""
    wanted = visit.query(AdjustmentsQuery)
    tenant_id = visit.tenant_id()
    await visit.known(tenant_id)
    found = await (await visit.log()).adjustments(tenant_id, limit=wanted.limit)
    return reply(AdjustmentsAnswer(data=[adjustment_answer(one) for one in found]))


async def adjust(visit: Visit) -> Response:
    """Credit or debit the tenant's current period: 201; 200 where the same ``id`` was booked before, 409 if otherwise."""
    wanted = await visit.body(NewAdjustment)
    tenant = await visit.tenant()
    before = await visit.standing(tenant)
    if abs(before.credit_usd + wanted.amount_usd) > _MAX_CREDIT:
        raise BadRequest(
            "amount_usd: the credits of a period may not sum up to so much.", status=422, param="amount_usd"
        )
    adjustment = Adjustment(
        # Ids are one name space at the store; with the tenant in front no tenant can take another's.
        id=f"{tenant.id}:{wanted.id or secrets.token_hex(12)}",
        tenant=tenant.id,
        kind="credit" if wanted.amount_usd > 0 else "debit",
        amount=abs(wanted.amount_usd),
        reason=wanted.reason,
        window=window_of(tenant.period, visit.now),
        created=visit.now,
        by=visit.caller.name,
    )
    booked = await (await visit.ledger()).adjust(adjustment)
    if not booked:
        adjustment = await _as_booked(visit, adjustment)
    shown = dict(adjustment_answer(adjustment))
    return reply(BookedAnswer(**shown, balance=await visit.standing(tenant)), 201 if booked else 200)


async def _as_booked(visit: Visit, again: Adjustment) -> Adjustment:
    """What was booked under this id before, if it says the same."""
    for one in await (await visit.log()).adjustments(again.tenant, limit=MAX_PAGE):
        if one.id == again.id and (one.kind, one.amount, one.reason) == (again.kind, again.amount, again.reason):
            return one
    raise _conflict("An adjustment with this id was booked before, and was another.", "adjustment_exists")


def _conflict(message: str, code: str) -> GatewayError:
    return GatewayError(message, status=409, type="invalid_request_error", code=code)
