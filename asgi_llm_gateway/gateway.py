"""Settings to a stacked app: the one file that knows everybody."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ._asgi import ASGIApp, Receive, Scope, Send
from ._closing import close_all
from .admin.app import Admin
from .errors import StoreError
from .middleware.budget import BudgetMiddleware
from .middleware.ratelimit import RateLimitMiddleware
from .middleware.tenant import TenantMiddleware
from .middleware.tracing import TracingMiddleware
from .proxy.app import ProxyApp
from .proxy.routing import router_of
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
    proxy = ProxyApp(router=router_of(settings, file), http_client=http_client)
    limit = settings.max_body_bytes
    guarded = TenantMiddleware(
        RateLimitMiddleware(BudgetMiddleware(proxy, max_body=limit), max_body=limit), max_body=limit
    )
    key = secret(settings.gateway_admin_key)
    admin = Admin(admin_key=key, tenants=shared_tenants, ledger=shared_ledger, log=shared_log).app()
    return Gateway(TracingMiddleware(_Beside(guarded, admin), max_body=limit))


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
            if path.startswith(("/api", "/health")):
                if path.endswith("/") and slash_of_the_host(scope):
                    path = path[:-1]
                    scope = {**scope, "path": scope["path"][:-1]}
                if path in ("/api", "/health") or path.startswith("/api/"):
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
