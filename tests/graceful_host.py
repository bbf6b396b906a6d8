"""Host apps for the tests of a graceful end: the gateway below a prefix of theirs, and round an app that calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from asgi_llm_gateway import BudgetMiddleware, ProxyApp, TenantMiddleware, TracingMiddleware, create_app, lifespan
from asgi_llm_gateway.draining import drain


async def hello(request: object) -> PlainTextResponse:
    """The host's own page."""
    return PlainTextResponse("hello")


mounted = Starlette(routes=[Route("/hello", hello), Mount("/llm", create_app())], lifespan=lifespan)

wrapped = Starlette(
    routes=[Route("/hello", hello), Mount("/", ProxyApp())],
    middleware=[Middleware(TracingMiddleware), Middleware(TenantMiddleware), Middleware(BudgetMiddleware)],
    lifespan=lifespan,
)


@asynccontextmanager
async def _draining(app: object) -> AsyncIterator[None]:
    async with lifespan(app):
        drain().refuse()
        yield


draining = Starlette(routes=[Mount("/", create_app())], lifespan=_draining)
"""A gateway that takes no more calls from the start."""
