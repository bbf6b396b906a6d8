"""The stacks that are measured: ``uvicorn benchmarks.targets:proxy``, ``:four``."""

from __future__ import annotations

import os

from asgi_llm_gateway import (
    BudgetMiddleware,
    MemoryStore,
    ProxyApp,
    RateLimitMiddleware,
    Tenant,
    TenantMiddleware,
    TracingMiddleware,
)
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import NANO_PER_USD

KEY = "gw-benchmark-key-0123456789"


def proxy_app() -> ProxyApp:
    adapters = [
        OpenAIAdapter(name, f"http://{os.environ.get(variable, default)}/v1", "sk-bench", models=())
        for name, variable, default in (
            ("instant", "BENCH_UPSTREAM", "127.0.0.1:9100"),
            ("paced", "BENCH_PACED", "127.0.0.1:9102"),
        )
    ]
    return ProxyApp(router=Router(adapters, {"gpt-4": ["instant/gpt-4"], "gpt-3.5-turbo": ["paced/gpt-3.5-turbo"]}))


def store() -> MemoryStore:
    made = MemoryStore()
    made._tenants["bench"] = Tenant("bench", budget=1_000_000 * NANO_PER_USD)
    key, _ = new_key("bench", secret=KEY)
    made._keys[key.digest] = key
    return made


def four_layers() -> TracingMiddleware:
    kept = store()
    limited = RateLimitMiddleware(BudgetMiddleware(proxy_app(), ledger=kept), requests=10**9, window=60)
    return TracingMiddleware(TenantMiddleware(limited, store=kept))


proxy = proxy_app()
tracing = TracingMiddleware(proxy_app())
tenant = TenantMiddleware(proxy_app(), store=store())
ratelimit = RateLimitMiddleware(proxy_app(), requests=10**9, window=60)
budget = BudgetMiddleware(proxy_app(), ledger=store())
four = four_layers()
