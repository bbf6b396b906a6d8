"""An LLM gateway inside your own ASGI app: every concern is one composable pure-ASGI middleware."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded on first use: importing the package costs next to nothing, and no optional package is needed before its class.
_PUBLIC = {
    "ApiKey": "records",
    "BudgetMiddleware": "middleware.budget",
    "CacheMiddleware": "middleware.cache",
    "ContentCapture": "contents.capture",
    "Exchange": "exchange",
    "GatewayError": "errors",
    "LLMMiddleware": "middleware.base",
    "LoggingMiddleware": "middleware.logging",
    "MemoryStore": "stores.memory",
    "MeteredTransport": "metering",
    "MetricsMiddleware": "middleware.metrics",
    "PolicyMiddleware": "middleware.policy",
    "PriceTable": "prices",
    "ProxyApp": "proxy.app",
    "RateLimitMiddleware": "middleware.ratelimit",
    "RealtimeMiddleware": "middleware.realtime",
    "SecurityHeadersMiddleware": "middleware.security",
    "Settings": "settings",
    "StructuredOutputMiddleware": "middleware.structured",
    "Tenant": "records",
    "TenantMiddleware": "middleware.tenant",
    "TraceLog": "tracelog",
    "TracingMiddleware": "middleware.tracing",
    "Usage": "records",
    "create_app": "gateway",
    "lifespan": "gateway",
    "record_usage": "metering",
}

__all__ = [*sorted(_PUBLIC), "__version__"]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from .contents.capture import ContentCapture as ContentCapture
    from .errors import GatewayError as GatewayError
    from .exchange import Exchange as Exchange
    from .gateway import create_app as create_app
    from .gateway import lifespan as lifespan
    from .metering import MeteredTransport as MeteredTransport
    from .metering import record_usage as record_usage
    from .middleware.base import LLMMiddleware as LLMMiddleware
    from .middleware.budget import BudgetMiddleware as BudgetMiddleware
    from .middleware.cache import CacheMiddleware as CacheMiddleware
    from .middleware.logging import LoggingMiddleware as LoggingMiddleware
    from .middleware.metrics import MetricsMiddleware as MetricsMiddleware
    from .middleware.policy import PolicyMiddleware as PolicyMiddleware
    from .middleware.ratelimit import RateLimitMiddleware as RateLimitMiddleware
    from .middleware.realtime import RealtimeMiddleware as RealtimeMiddleware
    from .middleware.security import SecurityHeadersMiddleware as SecurityHeadersMiddleware
    from .middleware.structured import StructuredOutputMiddleware as StructuredOutputMiddleware
    from .middleware.tenant import TenantMiddleware as TenantMiddleware
    from .middleware.tracing import TracingMiddleware as TracingMiddleware
    from .prices import PriceTable as PriceTable
    from .proxy.app import ProxyApp as ProxyApp
    from .records import ApiKey as ApiKey
    from .records import Tenant as Tenant
    from .records import Usage as Usage
    from .settings import Settings as Settings
    from .stores.memory import MemoryStore as MemoryStore
    from .tracelog import TraceLog as TraceLog
