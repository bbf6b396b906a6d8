"""Streams through a real uvicorn: gateways in a row, and in a circle."""

from __future__ import annotations

import json

from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import Usage

from ..upstream import DONE, HOST, USAGE, streaming, upstream, usage_event, word
from .sockets import GENEROUS, Noting, answer_of, bound, caller, every_server, proxy, serving


@every_server
async def test_a_gateway_that_is_its_own_provider_says_so(server: str) -> None:
    """508, and not a request without end."""
    listener = bound()
    url = f"http://{HOST}:{listener.getsockname()[1]}/v1"
    app = Noting(ProxyApp(router=Router([OpenAIAdapter("openai", url)]), timeouts=GENEROUS))
    with serving(app, server, listener) as port:
        async with caller(port) as client:
            client.post()
            assert await client.head() == 508
            assert json.loads(await client.rest())["error"]["code"] == "gateway_loop"
    assert len(app.exchanges) == 2


@every_server
async def test_a_circle_of_two_gateways_is_found(server: str) -> None:
    """One asks the other, which asks the first again."""
    listener, other = bound(), bound()
    apps = [
        Noting(ProxyApp(router=Router([OpenAIAdapter("openai", f"http://{HOST}:{at.getsockname()[1]}/v1")])))
        for at in (other, listener)
    ]
    with serving(apps[0], server, listener) as port, serving(apps[1], server, other):
        async with caller(port) as client:
            client.post()
            assert await client.head() == 508
            await client.rest()
    assert [len(app.exchanges) for app in apps] == [2, 1]


@every_server
async def test_one_gateway_may_ask_another(server: str) -> None:
    """A chain is no circle: the stream comes through both."""
    said = [word("a"), word("b", "stop"), usage_event(), DONE]
    async with upstream(streaming(*said)) as provider:
        with serving(proxy(provider), server) as inner:
            outer = Noting(ProxyApp(router=Router([OpenAIAdapter("openai", f"http://{HOST}:{inner}/v1")])))
            with serving(outer, server) as port:
                assert await answer_of(port) == said[0] + said[1] + said[3]
    assert outer.exchanges[0].usage == Usage(USAGE["prompt_tokens"], USAGE["completion_tokens"])
