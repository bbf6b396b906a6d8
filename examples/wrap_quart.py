"""Wrap a Quart app and let the gateway's proxy answer: ``uvicorn examples.wrap_quart:app`` (or hypercorn).

Quart keeps its own routes; ``/v1`` goes to the providers.
"""

from typing import Any

from quart import Quart

from asgi_llm_gateway import (
    BudgetMiddleware,
    ProxyApp,
    RateLimitMiddleware,
    TenantMiddleware,
    TracingMiddleware,
)

app = Quart(__name__)
host = app.asgi_app
proxy = ProxyApp()


@app.get("/hello")
async def hello() -> dict[str, str]:
    """A route that has nothing to do with LLMs."""
    return {"hello": "world"}


async def dispatch(scope: Any, receive: Any, send: Any) -> None:
    """``/v1`` to the proxy, all else to Quart."""
    llm = scope["type"] == "http" and scope["path"].startswith("/v1/")
    await (proxy if llm else host)(scope, receive, send)


# Quart's own way to add middleware; read it from the outside in.
app.asgi_app = TracingMiddleware(  # type: ignore[method-assign]
    TenantMiddleware(RateLimitMiddleware(BudgetMiddleware(dispatch)))
)
