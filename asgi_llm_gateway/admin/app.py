"""``/health`` and ``/api/*``. Guarded by GATEWAY_ADMIN_KEY and stored admin keys: no default, closed without them."""

from __future__ import annotations

import asyncio
import logging
import random
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

from .._recovery import log_once
from ..damping import Damping, source_of
from ..errors import GatewayError, InvalidKey, MethodNotAllowed, NotFound, StoreError, Unavailable
from ..stores.base import CallLog, Ledger, TenantStore
from ..tracelog import shared_traces
from ..traces.base import TraceStore
from ..traces.memory import MemoryTraces
from .access import Access, Caller, refuse_tenant
from .health import Readiness, answer
from .openapi import Operation
from .routes import OPERATIONS
from .visit import Visit, error_reply

log = logging.getLogger("asgi_llm_gateway")

Endpoint = Callable[[Request], Awaitable[Response]]


class Admin:
    """The endpoints.

    Args:
        admin_key: The key that opens ``/api/*``; ``None`` closes it to all but stored admin keys.
        tenants: Opens the store of tenants and keys.
        ledger: Opens the ledger.
        log: Opens the records of calls.
        traces: Opens the traces; ``None`` takes those of this process, in memory.
        clock: Unix time in seconds.
        metrics: Opens the meters that ``/metrics`` shows; ``None``: there is no such page.
        metrics_token: A key for ``/metrics`` alone, beside the admins'.
        metrics_public: Anybody may read ``/metrics``.
        ready: What ``/ready`` looks at; ``None``: nothing but whether the process ends.
        damping: How wrong keys in numbers are slowed down.
    """

    def __init__(
        self,
        *,
        admin_key: str | None,
        tenants: Callable[[], Awaitable[TenantStore]],
        ledger: Callable[[], Awaitable[Ledger]],
        log: Callable[[], Awaitable[CallLog]],
        traces: Callable[[], Awaitable[TraceStore]] | None = None,
        clock: Callable[[], float] = time.time,
        metrics: Callable[[], Any] | None = None,
        metrics_token: str | None = None,
        metrics_public: bool = False,
        ready: Readiness | None = None,
        damping: Damping | None = None,
    ) -> None:
        self.access = Access(admin_key, tenants)
        self._metrics: Endpoint | None = None
        if metrics is not None:
            from .metrics import MetricsPage, Openers  # prometheus_client is optional

            stores = Openers(tenants, ledger, log)
            self._metrics = MetricsPage(self.access, stores, metrics, token=metrics_token, public=metrics_public,
                                        clock=clock)  # fmt: skip
        self._tenants = tenants
        self._ledger = ledger
        self._log = log
        self._traces = traces or _in_memory
        self._clock = clock
        self._ready = ready or Readiness(())
        self._damping = damping or Damping()

    def app(self) -> Starlette:
        """The Starlette app."""
        by_path: dict[str, dict[str, Operation]] = {}
        for operation in OPERATIONS:
            by_path.setdefault(operation.path, {})[operation.method] = operation
        routes = [
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
        ]
        if self._metrics is not None:
            routes.append(Route("/metrics", self.metrics, methods=["GET"]))
        # One route a path: a refused method is then told all that there are.
        routes += [Route(path, self._endpoint(by), methods=list(by)) for path, by in by_path.items()]
        app = Starlette(routes=routes, exception_handlers={HTTPException: self._refused, Exception: self.failed})
        app.router.redirect_slashes = False
        return app

    async def health(self, request: Request) -> Response:
        """The process answers; nothing else is asked."""
        return Response(orjson.dumps({"status": "ok"}), media_type="application/json")

    async def ready(self, request: Request) -> Response:
        """Whether calls should come here; for an admin's key with what that hangs on."""
        status = await self._ready.status()
        parts = None
        if shown := _shown(request):
            try:
                if (await self.access.caller(shown, self._clock())).tenant is None:
                    parts = self._ready.details()
            except StoreError:  # whose key it is can't be known now; the answer stands all the same
                pass
            except GatewayError as refusal:
                if isinstance(refusal, InvalidKey):
                    await self.damp(request)
                return error_reply(refusal)
        body, code = answer(status, parts)
        return Response(body, code, {"cache-control": "no-store"}, media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        """The page that Prometheus scrapes."""
        assert self._metrics is not None
        try:
            return await self._metrics(request)
        except GatewayError as refusal:
            return error_reply(refusal)
        except StoreError as fault:
            log.error("the admin API can't reach the store: %s", fault)
            return error_reply(Unavailable("The store does not answer.", code="store_unavailable"))

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
            caller = await self.access.caller(_shown(request), self._clock())
            response = await self.perform(request, operation, caller, error)
        except GatewayError as refusal:
            if isinstance(refusal, InvalidKey) and _shown(request):
                await self.damp(request)
            response = error_reply(refusal)
        except StoreError as fault:
            log.error("the admin API can't reach the store: %s", fault)
            response = error_reply(Unavailable(f"The store does not answer: {fault}.", code="store_unavailable"))
        response.headers["cache-control"] = "no-store"  # money and secrets, for whoever showed the key
        return response

    async def perform(
        self, request: Request, operation: Operation | None, caller: Caller, error: GatewayError | None = None
    ) -> Response:
        """The operation's answer for that caller. Raises ``error``, or NotFound, where there is no operation; Forbidden."""
        if caller.tenant is not None and (operation is None or not _own(caller, operation, request)):
            raise refuse_tenant()
        if operation is None:
            raise error or NotFound("No such path.")
        return await operation.handler(self._visit(request, caller))

    def _visit(self, request: Request, caller: Caller) -> Visit:
        return Visit(request, caller, self._clock(), self._tenants, self._ledger, self._log, self._traces)

    async def damp(self, request: Request) -> None:
        """Let the refusal of a wrong key wait where many are wrong: see ``damping``. A right one is never delayed."""
        delay = self._damping.failed(source_of(request.scope.get("client")), None)
        if delay:
            try:
                if self._damping.alarm():
                    log.warning("many wrong keys at the admin API, %d so far", self._damping.failures)
                await asyncio.sleep(delay)
            finally:
                self._damping.waited()

    async def failed(self, request: Request, error: Exception) -> Response:
        """A fault of ours: logged once, without its words, by an id that the answer has too. Starlette raises it again."""
        name = f"req_{random.getrandbits(128):032x}"
        log_once("the admin API failed", error, name)
        response = error_reply(GatewayError(f"The gateway failed. Its log says why, by the request id {name}."))
        response.headers["x-request-id"] = name
        response.headers["cache-control"] = "no-store"
        return response

    async def _refused(self, request: Request, error: Exception) -> Response:
        """Starlette's own refusals (404, 405) in the envelope; below /api for those only who may enter."""
        refusal: GatewayError = NotFound(f"No such path: {request.method} {request.scope['path'][:200]}.")
        if isinstance(error, HTTPException) and error.status_code == 405:
            allow = (error.headers or {}).get("Allow", "")
            refusal = MethodNotAllowed(f"Use {allow} here.", headers=((b"allow", allow.encode()),))
        if request.scope["path"].removeprefix(request.scope.get("root_path", "")) in ("/health", "/ready"):
            return error_reply(refusal)
        return await self._answered(request, None, refusal)


async def _in_memory() -> TraceStore:
    return MemoryTraces(shared_traces)


def _own(caller: Caller, operation: Operation, request: Request) -> bool:
    """Whether a tenant asks for what is its own to read."""
    return operation.tenant and request.path_params.get("id", caller.tenant) == caller.tenant


def _shown(request: Request) -> list[bytes]:
    return [value for name, value in request.scope["headers"] if name.lower() == b"authorization"]
