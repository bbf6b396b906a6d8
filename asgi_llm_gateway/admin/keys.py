"""``/api/tenants/{id}/keys``: keys are made, listed, rotated and ended; a secret is shown once."""

from __future__ import annotations

from dataclasses import replace

from starlette.responses import Response

from ..errors import BadRequest, GatewayError, NotFound
from ..keys import new_key, successor
from ..periods import window_of
from ..records import ApiKey, Balance, Tenant
from .answers import KeyAnswer, KeysAnswer, key_answer, new_key_answer
from .models import KeysQuery, NewKey, Rotation
from .visit import Visit, reply


async def list_keys(visit: Visit) -> Response:
    """A tenant's keys without secrets, oldest first, a page at a time."""
    wanted = visit.query(KeysQuery)
    tenant = await visit.tenant()
    found = list(await (await visit.tenants()).keys(tenant.id))
    if wanted.after is not None:
        places = [at for at, key in enumerate(found) if key.id == wanted.after]
        if not places:
            raise BadRequest("after: no key of this tenant.", status=422, param="after")
        found = found[places[0] + 1 :]
    page = found[: wanted.limit]
    rows = [await _standing(visit, tenant, key) for key in page]
    return reply(KeysAnswer(data=rows, next=page[-1].id if len(page) < len(found) else None))


async def create_key(visit: Visit) -> Response:
    """A new key, with its secret: the only time that it is shown."""
    wanted = await visit.body(NewKey)
    tenant = await visit.tenant()
    store = await visit.tenants()
    for other in wanted.also_tenants:
        if await store.tenant(other) is None:
            raise BadRequest(f"also_tenants: there is no tenant '{other}'.", status=422, param="also_tenants")
    expires = None if wanted.expires_in_seconds is None else visit.now + wanted.expires_in_seconds
    key, secret = new_key(tenant.id, name=wanted.name, expires=expires)
    key = replace(
        key,
        created=visit.now,
        budget=wanted.budget_usd,
        rate_requests=wanted.rate_requests,
        rate_tokens=wanted.rate_tokens,
        concurrency=wanted.concurrency,
        allowed_models=None if wanted.allowed_models is None else tuple(wanted.allowed_models),
        also_tenants=tuple(wanted.also_tenants),
    )
    await store.add_key(key)
    return reply(new_key_answer(key, secret), 201)


async def revoke_key(visit: Visit) -> Response:
    """End a key now."""
    _, key = await _key(visit)
    await (await visit.tenants()).revoke_key(key.id, visit.now)
    return Response(status_code=204)


async def rotate_key(visit: Visit) -> Response:
    """A new key with the settings of the old one, which ends after the overlap; 409 where it has an end already.

    A key's own budget is counted by key: the new one begins with nothing spent.
    """
    wanted = await visit.body(Rotation)
    _, old = await _key(visit)
    if old.revoked is not None or (old.expires is not None and old.expires <= visit.now):
        raise GatewayError(
            f"The key '{old.id}' was rotated or revoked before, or has expired; make a new one.",
            status=409,
            type="invalid_request_error",
            code="key_ended",
        )
    key, secret = successor(old)
    key = replace(key, created=visit.now)
    store = await visit.tenants()
    # The new one first: if the store fails in between, the old key still works and this can be asked again.
    await store.add_key(key)
    await store.revoke_key(old.id, visit.now + wanted.overlap_seconds)
    return reply(new_key_answer(key, secret), 201)


async def _key(visit: Visit) -> tuple[Tenant, ApiKey]:
    """The key in the path, of the tenant in the path. Raises NotFound."""
    tenant = await visit.tenant()
    key_id = visit.request.path_params["key_id"]
    for key in await (await visit.tenants()).keys(tenant.id):
        if key.id == key_id:
            return tenant, key
    shown = key_id[:64].encode("ascii", "backslashreplace").decode()
    raise NotFound(f"The tenant '{tenant.id}' has no key '{shown}'.", code="key_not_found")


async def _standing(visit: Visit, tenant: Tenant, key: ApiKey) -> KeyAnswer:
    balance = Balance()
    if key.budget is not None:
        balance = await (await visit.ledger()).balance(tenant.id, key.id, window_of(tenant.period, visit.now))
    return key_answer(key, balance)
