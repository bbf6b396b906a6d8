"""``/health`` and ``/api/*``. Guarded by GATEWAY_ADMIN_KEY: no default, and closed where it is unset."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import orjson

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
except ModuleNotFoundError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError("the admin API needs: pip install 'asgi-llm-gateway[server]'", name=error.name) from None

from ..errors import (
    Forbidden,
    GatewayError,
    InvalidKey,
    MethodNotAllowed,
    NotFound,
    StoreError,
    TooLarge,
    Unavailable,
)
from ..keys import new_key
from ..records import Tenant
from ..stores.base import Ledger, TenantStore
from .models import MAX_BODY, NewKey, NewTenant, key_json, listed, read, tenant_json

log = logging.getLogger("asgi_llm_gateway")

Handler = Callable[[Request], Awaitable[Response]]


class Admin:
    """The endpoints.

    Args:
        admin_key: The key that opens ``/api/*``; ``None`` closes it.
        tenants: Opens the store of tenants and keys.
        ledger: Opens the ledger.
    """

    def __init__(
        self,
        *,
        admin_key: str | None,
        tenants: Callable[[], Awaitable[TenantStore]],
        ledger: Callable[[], Awaitable[Ledger]],
    ) -> None:
        self._digest = hashlib.sha256(admin_key.encode()).digest() if admin_key else None
        self._tenants = tenants
        self._ledger = ledger

    def app(self) -> Starlette:
        """The Starlette app."""
        routes = [
            Route("/health", self.health, methods=["GET"]),
            Route("/api/tenants", self._guarded(self.list_tenants), methods=["GET"]),
            Route("/api/tenants", self._guarded(self.create_tenant), methods=["POST"]),
            Route("/api/tenants/{id}", self._guarded(self.show_tenant), methods=["GET"]),
            Route("/api/tenants/{id}/keys", self._guarded(self.list_keys), methods=["GET"]),
            Route("/api/tenants/{id}/keys", self._guarded(self.create_key), methods=["POST"]),
            Route("/api/tenants/{id}/keys/{key_id}", self._guarded(self.revoke_key), methods=["DELETE"]),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: self._refused})
        app.router.redirect_slashes = False
        return app

    def _guarded(self, handler: Handler) -> Handler:
        """The handler behind the admin key, its errors in the envelope."""

        @wraps(handler)
        async def guarded(request: Request) -> Response:
            try:
                self._check(request)
                return await handler(request)
            except GatewayError as error:
                return _error(error)
            except StoreError as error:
                log.error("the admin API can't reach the store: %s", error)
                return _error(Unavailable(f"The store does not answer: {error}.", code="store_unavailable"))

        return guarded

    def _check(self, request: Request) -> None:
        if self._digest is None:
            raise Forbidden(
                "The admin API is closed. Set GATEWAY_ADMIN_KEY (at least 32 characters) to open it.",
                code="admin_disabled",
            )
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        shown = hashlib.sha256(key.strip().encode()).digest()
        if kind.lower() != "bearer" or not hmac.compare_digest(shown, self._digest):
            raise InvalidKey

    async def health(self, request: Request) -> Response:
        """The process answers; nothing else is asked."""
        return _json(200, {"status": "ok"})

    async def list_tenants(self, request: Request) -> Response:
        """All tenants."""
        store, ledger = await self._tenants(), await self._ledger()
        rows = [tenant_json(tenant, await ledger.balance(tenant.id)) for tenant in await store.tenants()]
        return Response(listed(rows), 200, media_type="application/json")

    async def create_tenant(self, request: Request) -> Response:
        """A new tenant: 201, or 409 where the id is taken."""
        wanted = read(NewTenant, await _body(request))
        models = None if wanted.allowed_models is None else tuple(wanted.allowed_models)
        tenant = Tenant(wanted.id, wanted.name, wanted.budget_usd, True, models, {}, time.time())
        if not await (await self._tenants()).add_tenant(tenant):
            raise GatewayError(
                f"The tenant '{wanted.id}' exists already.",
                status=409,
                type="invalid_request_error",
                code="tenant_exists",
            )
        return _json(201, tenant_json(tenant, await (await self._ledger()).balance(tenant.id)))

    async def show_tenant(self, request: Request) -> Response:
        """A tenant and where its money stands."""
        tenant = await self._tenant(request)
        return _json(200, tenant_json(tenant, await (await self._ledger()).balance(tenant.id)))

    async def list_keys(self, request: Request) -> Response:
        """A tenant's keys, without secrets."""
        tenant = await self._tenant(request)
        keys = await (await self._tenants()).keys(tenant.id)
        return Response(listed([key_json(key) for key in keys]), 200, media_type="application/json")

    async def create_key(self, request: Request) -> Response:
        """A new key: 201 with the secret, the only time that it is shown."""
        wanted = read(NewKey, await _body(request))
        tenant = await self._tenant(request)
        expires = None if wanted.expires_in_seconds is None else time.time() + wanted.expires_in_seconds
        key, secret = new_key(tenant.id, name=wanted.name, expires=expires)
        await (await self._tenants()).add_key(key)
        return _json(201, {**key_json(key), "key": secret})

    async def revoke_key(self, request: Request) -> Response:
        """End a key."""
        tenant = await self._tenant(request)
        store = await self._tenants()
        key_id = request.path_params["key_id"]
        if all(key.id != key_id for key in await store.keys(tenant.id)):
            raise NotFound(f"The tenant '{tenant.id}' has no key '{key_id}'.", code="key_not_found")
        await store.revoke_key(key_id, time.time())
        return Response(status_code=204)

    async def _tenant(self, request: Request) -> Tenant:
        tenant_id = request.path_params["id"]
        tenant = await (await self._tenants()).tenant(tenant_id)
        if tenant is None:
            raise NotFound(f"There is no tenant '{tenant_id}'.", code="tenant_not_found")
        return tenant

    async def _refused(self, request: Request, error: Exception) -> Response:
        """Starlette's own refusals (404, 405) in the envelope; below /api for those only who may enter."""
        if not request.scope["path"].endswith("/health"):
            try:
                self._check(request)
            except GatewayError as refusal:
                return _error(refusal)
        if isinstance(error, HTTPException) and error.status_code == 405:
            allow = (error.headers or {}).get("Allow", "")
            return _error(MethodNotAllowed(f"Use {allow} here.", headers=((b"allow", allow.encode()),)))
        return _error(NotFound(f"No such path: {request.method} {request.scope['path'][:200]}."))


async def _body(request: Request) -> bytes:
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise TooLarge(f"The body is over the limit of {MAX_BODY} bytes.")
        parts.append(part)
    return b"".join(parts)


def _json(status: int, data: Any) -> Response:
    return Response(orjson.dumps(data), status, media_type="application/json")


def _error(error: GatewayError) -> Response:
    response = Response(error.body(), error.http_status, media_type="application/json")
    for name, value in error.headers:
        response.headers[name.decode()] = value.decode()
    return response
