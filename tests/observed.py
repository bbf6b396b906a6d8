"""The whole gateway with all its observers, as an app for a real server: ``uvicorn tests.observed:app``."""

from __future__ import annotations

import time

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.admin.app import Admin
from asgi_llm_gateway.gateway import Gateway
from asgi_llm_gateway.logs import set_up, started
from asgi_llm_gateway.meters.breakers import breakers
from asgi_llm_gateway.meters.shared import shared_meters
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.logging import LoggingMiddleware
from asgi_llm_gateway.middleware.metrics import MetricsMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.security import SecurityHeadersMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.providers import router_of
from asgi_llm_gateway.settings import current, current_file, secret
from asgi_llm_gateway.stores.shared import shared_ledger, shared_log, shared_tenants

settings = current()
router = router_of(settings, current_file())
started(set_up(also=("uvicorn.error",)), settings)
shared_meters().sources.append(
    breakers(
        lambda: [
            (target.provider, target.model, health.state(time.monotonic()))
            for target, health in list(router.health.items())
        ]
    )
)
calls = TenantMiddleware(RateLimitMiddleware(BudgetMiddleware(ProxyApp(router=router))))
pages = Admin(
    admin_key=secret(settings.gateway_admin_key),
    tenants=shared_tenants,
    ledger=shared_ledger,
    log=shared_log,
    metrics=shared_meters,
    metrics_token=secret(settings.metrics_token),
    metrics_public=settings.metrics_public,
).app()


class Beside:
    """The pages beside the calls."""

    joins_exchange = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        beside = scope["type"] == "http" and scope["path"].startswith(("/api", "/health", "/metrics"))
        await (pages if beside else calls)(scope, receive, send)


app = Gateway(SecurityHeadersMiddleware(LoggingMiddleware(MetricsMiddleware(TracingMiddleware(Beside())))))
