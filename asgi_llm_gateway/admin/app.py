"""``/health`` and ``/api/*``. Guarded by GATEWAY_ADMIN_KEY and stored admin keys: no default, closed without them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
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

from ..damping import Damping, source_of
from ..errors import GatewayError, InvalidKey, MethodNotAllowed, NotFound, StoreError, Unavailable
from ..stores.base import CallLog, Ledger, TenantStore
from .access import Access, Caller, refuse_tenant
from .openapi import Operation
from .routes import OPERATIONS
from .visit import Visit

log = logging.getLogger("asgi_llm_gateway")

Endpoint = Callable[[Request], Awaitable[Response]]


class Admin:
    """The endpoints.

    Args:
        admin_key: The key that opens ``/api/*``; ``None`` closes it to all but stored admin keys.
        tenants: Opens the store of tenants and keys.
        ledger: Opens the ledger.
        log: Opens the records of calls.
        clock: Unix time in seconds.
        metrics: Opens the meters that ``/metrics`` shows; ``None``: there is no such page.
        metrics_token: A key for ``/metrics`` alone, beside the admins'.
        metrics_public: Anybody may read ``/metrics``.
        damping: How wrong keys in numbers are slowed down.
    """

    def __init__(
        self,
        *,
        admin_key: str | None,
        tenants: Callable[[], Awaitable[TenantStore]],
        ledger: Callable[[], Awaitable[Ledger]],
        log: Callable[[], Awaitable[CallLog]],
        clock: Callable[[], float] = time.time,
        metrics: Callable[[], Any] | None = None,
        metrics_token: str | None = None,
        metrics_public: bool = False,
        damping: Damping | None = None,
    ) -> None:
        self._access = Access(admin_key, tenants)
        self._metrics: Endpoint | None = None
        if metrics is not None:
            from .metrics import MetricsPage, Openers  # prometheus_client is optional

            stores = Openers(tenants, ledger, log)
            self._metrics = MetricsPage(self._access, stores, metrics, token=metrics_token, public=metrics_public,
                                        clock=clock)  # fmt: skip
        self._tenants = tenants
        self._ledger = ledger
        self._log = log
        self._clock = clock
        self._damping = damping or Damping()

    def app(self) -> Starlette:
        """The Starlette app."""
        by_path: dict[str, dict[str, Operation]] = {}
        for operation in OPERATIONS:
            by_path.setdefault(operation.path, {})[operation.method] = operation
        routes = [Route("/health", self.health, methods=["GET"])]
        if self._metrics is not None:
            routes.append(Route("/metrics", self.metrics, methods=["GET"]))
        # One route a path: a refused method is then told all that there are.
        routes += [Route(path, self._endpoint(by), methods=list(by)) for path, by in by_path.items()]
        app = Starlette(routes=routes, exception_handlers={HTTPException: self._refused})
        app.router.redirect_slashes = False
        return app

    async def health(self, request: Request) -> Response:
        """The process answers; nothing else is asked."""
        return Response(orjson.dumps({"status": "ok"}), media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        """The page that Prometheus scrapes."""
        assert self._metrics is not None
        try:
            return await self._metrics(request)
        except GatewayError as refusal:
            return _error(refusal)
        except StoreError as fault:
            log.error("the admin API can't reach the store: %s", fault)
            return _error(Unavailable("The store does not answer.", code="store_unavailable"))

    def _endpoint(self, by_method: dict[str, Operation]) -> Endpoint:
        """The handlers of a path, behind the key, their errors in the envelope."""

        async def endpoint(request: Request) -> Response:
            operation = by_method["GET" if request.method == "HEAD" else request.method]
            return await self._answered(request, operation)

        return endpoint

    async def _answered(
        self, request: Request, operation: Operation | None, error: GatewayError | None = None
    ) -> Response:
        """The operation's answer, or ``error`` where there is no operation; for those only who may ask at all."""
        try:
            caller = await self._access.caller(_shown(request), self._clock())
            if caller.tenant is not None and (operation is None or not _own(caller, operation, request)):
                raise refuse_tenant()
            if operation is None:
                raise error or NotFound("No such path.")
            visit = Visit(request, caller, self._clock(), self._tenants, self._ledger, self._log)
            response = await operation.handler(visit)
        except GatewayError as refusal:
            if isinstance(refusal, InvalidKey) and _shown(request):
                await self._damp(request)
            response = _error(refusal)
        except StoreError as fault:
            log.error("the admin API can't reach the store: %s", fault)
            response = _error(Unavailable(f"The store does not answer: {fault}.", code="store_unavailable"))
        response.headers["cache-control"] = "no-store"  # money and secrets, for whoever showed the key
        return response

    async def _damp(self, request: Request) -> None:
        """Let the refusal of a wrong key wait where many are wrong: see ``damping``. A right one is never delayed."""
        delay = self._damping.failed(source_of(request.scope.get("client")), None)
        if delay:
            try:
                if self._damping.alarm():
                    log.warning("many wrong keys at the admin API, %d so far", self._damping.failures)
                await asyncio.sleep(delay)
            finally:
                self._damping.waited()

    async def _refused(self, request: Request, error: Exception) -> Response:
        """Starlette's own refusals (404, 405) in the envelope; below /api for those only who may enter."""
        refusal: GatewayError = NotFound(f"No such path: {request.method} {request.scope['path'][:200]}.")
        if isinstance(error, HTTPException) and error.status_code == 405:
            allow = (error.headers or {}).get("Allow", "")
            refusal = MethodNotAllowed(f"Use {allow} here.", headers=((b"allow", allow.encode()),))
        if request.scope["path"].removeprefix(request.scope.get("root_path", "")) == "/health":
            return _error(refusal)
        return await self._answered(request, None, refusal)


def _own(caller: Caller, operation: Operation, request: Request) -> bool:
    """Whether a tenant asks for what is its own to read."""
    return operation.tenant and request.path_params.get("id", caller.tenant) == caller.tenant


def _shown(request: Request) -> list[bytes]:
    return [value for name, value in request.scope["headers"] if name.lower() == b"authorization"]


def _error(error: GatewayError) -> Response:
    response = Response(error.body(), error.http_status, media_type="application/json")
    for name, value in error.headers:
        response.headers[name.decode()] = value.decode()
    return response
