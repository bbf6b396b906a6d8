"""Settings to a stacked app: the one file that knows everybody."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

from ._asgi import ASGIApp, Receive, Scope, Send
from ._closing import close_all
from .admin.app import Admin
from .errors import StoreError
from .middleware.budget import BudgetMiddleware
from .middleware.policy import PolicyMiddleware
from .middleware.ratelimit import RateLimitMiddleware
from .middleware.security import SecurityHeadersMiddleware
from .middleware.structured import StructuredOutputMiddleware
from .middleware.tenant import TenantMiddleware
from .middleware.tracing import TracingMiddleware
from .proxy.app import ProxyApp
from .proxy.providers import router_of
from .proxy.routing import Router
from .settings import current, current_file, secret
from .stores.shared import shared_ledger, shared_log, shared_tenants
from .wire import slash_of_the_host

log = logging.getLogger("asgi_llm_gateway")


def create_app(*, http_client: Any = None) -> Gateway:
    """The whole gateway as one ASGI app, as the environment and the settings file say.

    Observers stand round everything; the gatekeepers (tenant, rate limit, budget) round the LLM API only; ``/health``
    and ``/api/*`` stand beside it with a key of their own.

    Args:
        http_client: An ``httpx.AsyncClient`` for the upstream calls, in place of our own client.

    Raises:
        SettingsError: A setting or the file is wrong.
    """
    settings, file = current(), current_file()
    router = router_of(settings, file)
    proxy = ProxyApp(router=router, http_client=http_client)
    limit = settings.max_body_bytes
    inner: ASGIApp = proxy
    if settings.enable_structured_output:
        inner = StructuredOutputMiddleware(inner, max_body=limit)
    inner = BudgetMiddleware(inner, max_body=limit)
    if settings.enable_cache:
        from .middleware.cache import CacheMiddleware  # its extra is needed only where it is wanted

        inner = CacheMiddleware(inner, max_body=limit)
    if settings.opa_url:
        inner = PolicyMiddleware(inner, max_body=limit)
    guarded = TenantMiddleware(RateLimitMiddleware(inner, max_body=limit), max_body=limit)
    key = secret(settings.gateway_admin_key)
    metrics = _metrics_of(router) if find_spec("prometheus_client") is not None else None
    admin = Admin(
        admin_key=key,
        tenants=shared_tenants,
        ledger=shared_ledger,
        log=shared_log,
        metrics=metrics,
        metrics_token=secret(settings.metrics_token),
        metrics_public=settings.metrics_public,
    ).app()
    app: ASGIApp = TracingMiddleware(_Beside(guarded, admin), max_body=limit)
    if metrics is not None:
        from .middleware.metrics import MetricsMiddleware

        app = MetricsMiddleware(app, max_body=limit)
    if settings.log_calls and find_spec("structlog") is not None:
        from .middleware.logging import LoggingMiddleware

        app = LoggingMiddleware(app, max_body=limit)
    return Gateway(SecurityHeadersMiddleware(app))


def served() -> Gateway:
    """``create_app`` for a process that is the gateway and nothing else: its own logs are structured lines, too."""
    if find_spec("structlog") is not None:
        from .logs import set_up, started

        started(set_up(also=("uvicorn.error",)), current())
    return create_app()


def _metrics_of(router: Router) -> Callable[[], Any]:
    """What ``/metrics`` shows, with the breakers of that router."""
    from .meters.breakers import breakers
    from .meters.shared import shared_meters

    def states() -> list[tuple[str, str, str]]:
        now = time.monotonic()
        return [(one.provider, one.model, health.state(now)) for one, health in list(router.health.items())]

    shared_meters().sources.append(breakers(states))
    return shared_meters


class _Beside:
    """Sends the operators' paths to the admin app and all others to the LLM API."""

    joins_exchange = True

    def __init__(self, llm: ASGIApp, admin: ASGIApp) -> None:
        self._llm = llm
        self._admin = admin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            root: str = scope.get("root_path") or ""
            if root and path.startswith(root):
                path = path[len(root) :]
            if path.startswith(("/api", "/health", "/metrics")):
                if path.endswith("/") and slash_of_the_host(scope):
                    path = path[:-1]
                    scope = {**scope, "path": scope["path"][:-1]}
                if path in ("/api", "/health", "/metrics") or path.startswith("/api/"):
                    await self._admin(scope, receive, send)
                    return
        await self._llm(scope, receive, send)


class Gateway:
    """The stacked app. It opens its store at startup where a lifespan arrives, on first use where none does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await shared_tenants()
                    await shared_ledger()
                except StoreError as error:  # calls get 503 until it is there
                    log.error("the store is not there yet: %s", error)
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await close_all()
                await send({"type": "lifespan.shutdown.complete"})
                return


@asynccontextmanager
async def lifespan(app: Any = None) -> AsyncIterator[None]:
    """For a host app that mounts or wraps gateway parts, which get no lifespan of their own: closes what they opened.

    ``Starlette(lifespan=asgi_llm_gateway.lifespan)``, or ``async with lifespan():`` inside the host's own.
    """
    try:
        yield
    finally:
        await close_all()
