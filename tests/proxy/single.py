"""A ProxyApp before one scripted provider: what the tests of the app share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asgi_llm_gateway.adapters.compatible import OPENAI, VENDORS
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.exchange import KEY, Exchange
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.proxy.transfer import Timeouts
from asgi_llm_gateway.wire import Table

from ..conversation import JSON, Answer, ask, scope_of
from ..upstream import HOST, Script, Upstream, upstream

SECRET = "sk-provider-0123456789abcdef"
ASKED: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
STREAMED = {**ASKED, "stream": True}
QUICK = Timeouts(connect=0.3, write=0.3, first_byte=0.3, idle=0.3, total=20)
GENEROUS = Timeouts(connect=20, write=20, first_byte=20, idle=20, total=40)


def provider(server: Upstream, name: str = "openai", **more: Any) -> OpenAIAdapter:
    """An adapter that asks the server."""
    return OpenAIAdapter(name, server.url(), SECRET, **{"vendor": VENDORS.get(name, OPENAI), **more})


@asynccontextmanager
async def gateway(*scripts: Script, name: str = "openai", **more: Any) -> AsyncIterator[tuple[ProxyApp, Upstream]]:
    """A ProxyApp before one provider."""
    async with upstream(*scripts) as server:
        app = ProxyApp(router=Router([provider(server, name)]), **{"timeouts": GENEROUS, "max_retries": 0, **more})
        yield app, server
        await app.aclose()


def without_secrets(answer: Answer, server: Upstream) -> None:
    """Nothing that the client gets names the key or the place."""
    shown = answer.body.decode("utf-8", "replace") + repr(answer.headers)
    for secret in (SECRET, HOST, str(server.port), "localhost", "Traceback"):
        assert secret not in shown


async def used(app: ProxyApp, body: dict[str, Any]) -> tuple[Answer, Exchange]:
    """An answer, and the exchange that saw it."""
    scope = scope_of(headers=(JSON,))
    exchange = Exchange(app, Table().match(scope), scope)
    return await ask(app, body, **kept(exchange)), exchange


def kept(exchange: Exchange) -> dict[str, Any]:
    """The scope's part that carries an exchange."""
    return {KEY: exchange}
