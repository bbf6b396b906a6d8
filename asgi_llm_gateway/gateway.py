"""Settings to a stacked app: the one file that knows everybody."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

from . import otel_setup
from ._asgi import ASGIApp, Receive, Scope, Send
from ._closing import close_all
from ._recovery import log_once
from .admin import parts
from .admin.app import Admin
from .admin.health import Part, Readiness
from .contents.capture import ContentCapture
from .draining import Life
from .errors import GatewayError, SettingsError, StoreError
from .middleware.budget import BudgetMiddleware
from .middleware.policy import PolicyMiddleware
from .middleware.ratelimit import RateLimitMiddleware
from .middleware.security import SecurityHeadersMiddleware
from .middleware.structured import StructuredOutputMiddleware
from .middleware.tenant import TenantMiddleware
from .middleware.tracing import TracingMiddleware
from .prices import prices_of
from .proxy.app import ProxyApp
from .proxy.providers import router_of
from .proxy.routing import Router
from .records import Target
from .settings import Settings, current, current_file, secret
from .stores.shared import shared_ledger, shared_log, shared_tenants
from .traces.base import TraceStore
from .traces.shared import traces_of
from .wire import slash_of_the_host

log = logging.getLogger("asgi_llm_gateway")


def create_app(*, http_client: Any = None, content: ContentCapture | None = None) -> Gateway:
    """The whole gateway as one ASGI app, as the environment and the settings file say.

    Observers stand round everything; the gatekeepers (tenant, rate limit, budget) round the LLM API only; ``/health``
    and ``/api/*`` stand beside it with a key of their own.

    Args:
        http_client: An ``httpx.AsyncClient`` for the upstream calls, in place of our own client.
        content: Whose messages go onto spans and into events, and what of them; ``None`` takes the environment's word.

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
    inner = RateLimitMiddleware(inner, max_body=limit)
    if settings.enable_realtime or settings.enable_webrtc:
        from .middleware.realtime import RealtimeMiddleware  # most gateways have no sessions
        from .realtime.ice import IceServers

        origins = settings.realtime_origins.split(",")
        inner = RealtimeMiddleware(
            inner, origins=origins, ice=IceServers.of(settings), webrtc=settings.enable_webrtc, max_body=limit
        )
    guarded = TenantMiddleware(inner, max_body=limit)
    key = secret(settings.gateway_admin_key)
    metrics = _metrics_of(router) if find_spec("prometheus_client") is not None else None
    traces = traces_of(settings)
    admin = Admin(
        admin_key=key,
        tenants=shared_tenants,
        ledger=shared_ledger,
        log=shared_log,
        traces=_opener(traces),
        metrics=metrics,
        metrics_token=secret(settings.metrics_token),
        metrics_public=settings.metrics_public,
        ready=_readiness(settings, router),
    )
    dashboard = _dashboard_of(settings, admin, router) if settings.enable_dashboard else None
    app: ASGIApp = TracingMiddleware(
        _Beside(guarded, admin.app(), dashboard), traces=traces, content=content, pages=True, max_body=limit
    )
    if metrics is not None:
        from .middleware.metrics import MetricsMiddleware

        app = MetricsMiddleware(app, max_body=limit)
    if settings.log_calls and find_spec("structlog") is not None:
        from .middleware.logging import LoggingMiddleware

        app = LoggingMiddleware(app, max_body=limit)
    return Gateway(SecurityHeadersMiddleware(app), content=content)


def _opener(traces: TraceStore) -> Callable[[], Awaitable[TraceStore]]:
    async def opened() -> TraceStore:
        return traces

    return opened


def served() -> Gateway:
    """``create_app`` for a process that is the gateway and nothing else: its own logs are structured lines, too."""
    if find_spec("structlog") is not None:
        from .logs import set_up, started

        started(set_up(also=("uvicorn.error", "opentelemetry")), current())
    return create_app()


def _dashboard_of(settings: Settings, admin: Admin, router: Router) -> ASGIApp:
    """``/dashboard``, for those who may ask that admin API."""
    from .dashboard.app import Dashboard
    from .dashboard.prices import PriceList
    from .stores.shared import shared_sessions

    file = current_file()
    table = prices_of(file.models, file.providers)

    def targets(name: str) -> Sequence[Target]:
        try:
            way = router.way(name)
        except (GatewayError, SettingsError):  # it was served once, and is not any more
            return ()
        return [place.target for place in (*way.places, *way.fallbacks)]

    return Dashboard(
        admin,
        admin_key=secret(settings.gateway_admin_key),
        folder=settings.gateway_data_dir,
        ended=shared_sessions,
        prices=PriceList(table, router.models, targets),
    ).app()


def _metrics_of(router: Router) -> Callable[[], Any]:
    """What ``/metrics`` shows, with the breakers of that router."""
    from .meters.breakers import breakers
    from .meters.shared import shared_meters

    def states() -> list[tuple[str, str, str]]:
        now = time.monotonic()
        return [(one.provider, one.model, health.state(now)) for one, health in list(router.health.items())]

    shared_meters().sources.append(breakers(states))
    return shared_meters


_CHECKS = frozenset({"store", "ledger", "opa", "none"})


def _readiness(settings: Settings, router: Router) -> Readiness:
    """What ``/ready`` looks at. Raises SettingsError for a name that is none."""
    counted = _names(settings.ready_checks)
    if not counted <= _CHECKS:
        wrong = ", ".join(sorted(counted - _CHECKS))
        raise SettingsError(f"READY_CHECKS: '{wrong}' can't be checked; there are store, ledger, opa, and none")
    if "opa" in counted and not settings.opa_url:
        raise SettingsError("READY_CHECKS names 'opa', and OPA_URL is not set")
    patience = settings.ready_timeout_seconds
    found: list[Part] = [
        parts.store(shared_tenants, counts="store" in counted),
        parts.ledger(shared_ledger, counts="ledger" in counted),
    ]
    url = secret(settings.redis_url)
    if url is not None and settings.enable_rate_limit:
        found.append(parts.redis("rate_limit", url, patience))
    if url is not None and settings.enable_cache and settings.cache_redis:
        found.append(parts.redis("cache", url, patience))
    if settings.opa_url:
        found.append(parts.opa(settings.opa_url, patience, fails=settings.opa_fail, counts="opa" in counted))
    adapters = {adapter.name: adapter for adapter in router.adapters}
    for name in sorted(_names(settings.ready_upstreams)):
        if name not in adapters:
            raise SettingsError(f"READY_UPSTREAMS: there is no provider '{name}'; there are {', '.join(adapters)}")
        base = getattr(adapters[name], "base_url", None)
        found.append(parts.upstream(name, str(base) if base else None, patience, _breakers_of(router, name)))
    return Readiness(
        found, grace=settings.ready_grace_seconds, interval=settings.ready_interval_seconds, timeout=patience
    )


def _names(text: str) -> set[str]:
    return {part.strip() for part in text.split(",") if part.strip()}


def _breakers_of(router: Router, provider: str) -> Callable[[], list[str]]:
    def states() -> list[str]:
        now = time.monotonic()
        return [health.state(now) for one, health in list(router.health.items()) if one.provider == provider]

    return states


class _Beside:
    """Sends the operators' paths to the admin app and the dashboard, and all others to the LLM API."""

    joins_exchange = True

    def __init__(self, llm: ASGIApp, admin: ASGIApp, dashboard: ASGIApp | None = None) -> None:
        self._llm = llm
        self._admin = admin
        self._dashboard = dashboard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            root: str = scope.get("root_path") or ""
            if root and path.startswith(root):
                path = path[len(root) :]
            if path.startswith(("/api", "/health", "/ready", "/metrics", "/dashboard")):
                if path.endswith("/") and slash_of_the_host(scope):
                    path = path[:-1]
                    scope = {**scope, "path": scope["path"][:-1]}
                operators: ASGIApp | None = None
                if path in ("/api", "/health", "/ready", "/metrics") or path.startswith("/api/"):
                    operators = self._admin
                elif path == "/dashboard" or path.startswith("/dashboard/"):
                    operators = self._dashboard
                if operators is not None:
                    try:
                        await operators(scope, receive, send)
                    except OSError:  # the client has left, and the server says so in its own way
                        raise
                    except Exception as error:  # answered in there: Starlette raises it once more, for the log
                        log_once("an operator's page failed", error, "unknown")
                    return
        await self._llm(scope, receive, send)


class Gateway:
    """The stacked app. It opens its store at startup where a lifespan arrives, on first use where none does."""

    def __init__(self, app: ASGIApp, *, content: ContentCapture | None = None) -> None:
        self._app = app
        self._content = content or ContentCapture()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        life = Life(whole=True)
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                # Before all else, for what is opened first is closed last.
                await otel_setup.start(metrics=current().metrics_otel != "off", events=self._content.events)
                try:
                    await shared_tenants()
                    await shared_ledger()
                except StoreError as error:  # calls get 503 until it is there
                    log.error("the store is not there yet: %s", error)
                life.started()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await life.end()
                await close_all()
                await send({"type": "lifespan.shutdown.complete"})
                return


@asynccontextmanager
async def lifespan(app: Any = None, *, signals: bool | None = None) -> AsyncIterator[None]:
    """For a host app that mounts or wraps gateway parts, which get no lifespan of their own: ends and closes what they began.

    ``Starlette(lifespan=asgi_llm_gateway.lifespan)``, or ``async with lifespan():`` inside the host's own. At SIGTERM new
    calls are refused and running ones get SHUTDOWN_GRACE_SECONDS; the host's other routes are left alone, and its server
    hears every signal.

    Args:
        app: The host app, as frameworks give it; it is not touched.
        signals: Whether SIGTERM and SIGINT are heard, where this runs on the main thread; ``None`` takes SHUTDOWN_SIGNALS.
    """
    life = Life(signals=signals)
    life.started()
    try:
        yield
    finally:
        await life.end()
        await close_all()
