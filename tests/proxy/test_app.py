"""ProxyApp as an app: its paths and models, what it refuses, its client and its event loops."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import httpx2
import pytest

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import Adapter
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.exchange import Exchange
from asgi_llm_gateway.proxy.app import HOP, ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import ApiKey, Identity, Tenant
from asgi_llm_gateway.wire import Table

from ..conversation import CHAT, JSON, ask, call, get, scope_of
from ..upstream import (
    ANSWER,
    DONE,
    HOST,
    STREAM_HEAD,
    always,
    chunk,
    once,
    refused_port,
    streaming,
    then_stall,
    until,
    upstream,
    usage_event,
    whole,
    word,
)
from .single import ASKED, SECRET, STREAMED, gateway, kept


async def test_an_unknown_model_names_what_exists() -> None:
    """404 ``model_not_found``."""
    app = ProxyApp(router=Router([EchoAdapter()]))
    answer = await ask(app, {**CHAT, "model": "gpt-17"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert "echo" in answer.error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/embeddings", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/v1/models/echo", 405),
        ("GET", "/", 404),
        ("GET", "/v1/files", 404),
        ("POST", "/v1/audio/voices", 404),
        ("POST", "/v1//chat/completions", 404),
        ("POST", "/V1/Chat/Completions", 404),
        ("GET", "/v1/models/nonsense", 404),
        ("GET", "/v1/modelsandmore", 404),
    ],
)
async def test_what_is_not_there_is_told_so(method: str, path: str, status: int) -> None:
    """405 for another method, 404 for another path."""
    app = ProxyApp(router=Router([EchoAdapter()]))
    async with call(app, CHAT, path, method=method) as talk:
        answer = await talk.answer()
    assert answer.status == status
    assert answer.error["message"]
    assert ("allow" in answer.headers) is (status == 405)


async def test_an_api_that_the_provider_does_not_speak_is_refused() -> None:
    """What it has no word for at all; of the chat APIs each is put into another's words."""
    app = ProxyApp(router=Router([AnthropicAdapter("anthropic", f"http://{HOST}:9", SECRET)]))
    for path, body in (("/v1/embeddings", {"input": "x"}), ("/v1/completions", {"prompt": "x"})):
        answer = await ask(app, {"model": "claude-haiku-5-5", **body}, path)
        assert (answer.status, answer.error["code"]) == (400, "unsupported_api")


async def test_the_models_are_listed() -> None:
    """All of them, and each by its name, slashes included."""
    router = Router(
        [EchoAdapter(), OpenAIAdapter("openai", "http://host/v1", "k", models=["gpt-9"]),
         OpenAIAdapter("local", "http://host/v1", models=["org/model:7b"])],
        {"fast": ["openai/gpt-9"]},
    )  # fmt: skip
    app = ProxyApp(router=router)
    listed = (await get(app, "/v1/models")).json()
    assert listed["object"] == "list"
    owners = {model["id"]: model["owned_by"] for model in listed["data"]}
    assert owners == {"fast": "openai", "echo": "echo", "gpt-9": "openai", "local/org/model:7b": "local"}
    for name, owner in owners.items():
        found = await get(app, f"/v1/models/{name}")
        assert (found.status, found.json()["id"], found.json()["owned_by"]) == (200, name, owner)
        assert found.json()["object"] == "model"
    missing = await get(app, "/v1/models/gone")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


async def test_models_that_are_not_allowed_are_not_listed() -> None:
    """The tenant's list and the key's list, both."""
    router = Router([EchoAdapter(models=("a", "b", "c"))])
    app = ProxyApp(router=router)
    scope = scope_of("/v1/models", method="GET")
    exchange = Exchange(app, Table().match(scope), scope)
    key = ApiKey("k", "t", "0" * 64, allowed_models=("b", "c"))
    exchange.identity = Identity(Tenant("t", allowed_models=("a", "b")), key)
    listed = (await get(app, "/v1/models", **kept(exchange))).json()
    assert [model["id"] for model in listed["data"]] == ["b"]
    one = Exchange(app, Table().match(scope_of("/v1/models/a")), scope)
    one.identity = exchange.identity
    assert (await get(app, "/v1/models/a", **kept(one))).status == 404


async def test_a_request_that_comes_back_is_a_loop() -> None:
    """The mark that goes up is the one that is known again."""
    async with gateway(always(whole())) as (app, server):
        await ask(app, ASKED)
        mark = server.requests[0].headers["x-llm-gateway-hop"].encode()
        for value in (mark, b"0123456789abcdef, " + mark, b"a, b, c, d"):
            answer = await ask(app, ASKED, headers=[JSON, (HOP, value)])
            assert (answer.status, answer.error["code"]) == (508, "gateway_loop")
        assert len(server.requests) == 1
        await ask(app, ASKED, headers=[JSON, (HOP, b"0123456789abcdef"), (HOP, b'"; drop')])
        assert server.requests[1].headers["x-llm-gateway-hop"].encode() == b"0123456789abcdef, " + mark


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"model": "echo"}', 400),
        (b'{"model": 7, "messages": []}', 400),
        (b'{"model": "echo", "messages": []}', 400),
        (b'{"model": "echo", "model": "x", "messages": [{"role": "user", "content": "a"}]}', 400),
        (b'{"model": "echo", "temperature": NaN, "messages": [{"role": "user", "content": "a"}]}', 400),
        (b'{"model": "echo", "messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400),
        (b'{"model": "echo", "messages": [{"role": "user", "content": "' + b"x" * 2000 + b'"}]}', 413),
    ],
)
async def test_a_bad_body_is_refused_before_anything_goes_up(raw: bytes, status: int) -> None:
    """With no middleware before the app too."""
    async with gateway(always(whole()), max_body=1500 if status == 413 else 2**20) as (app, server):
        answer = await ask(app, raw)
        assert (answer.status, answer.error["type"]) == (status, "invalid_request_error")
        assert server.connections == 0


async def test_a_body_of_another_kind_is_refused() -> None:
    """Forms, and compressed JSON."""
    app = ProxyApp(router=Router([EchoAdapter()]))
    assert (await ask(app, CHAT, headers=[(b"content-type", b"text/plain")])).status == 415
    assert (await ask(app, CHAT, headers=[JSON, (b"content-encoding", b"gzip")])).status == 415


async def test_a_websocket_is_closed_and_the_lifespan_answered() -> None:
    """The app is alone, so it answers for all scopes."""
    app = ProxyApp(router=Router([EchoAdapter()]))
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message["type"])

    incoming = [{"type": "websocket.connect"}, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Any:
        return incoming.pop(0)

    await app({**scope_of("/v1/realtime"), "type": "websocket"}, receive, send)
    await app({"type": "lifespan"}, receive, send)
    assert said == ["websocket.close", "lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_another_client_can_be_given(library: Any) -> None:
    """JSON, streams and failures go through it alike; its own headers for bodies it could not read are not sent."""
    said = [word("a"), word("b", "stop"), usage_event(), DONE]
    async with library.AsyncClient(trust_env=False) as inner:
        async with gateway(always(whole()), http_client=inner) as (app, server):
            assert (await ask(app, ASKED)).json() == ANSWER
            assert server.requests[0].headers["accept-encoding"] == "identity"
            assert server.requests[0].headers["authorization"] == f"Bearer {SECRET}"
        async with gateway(streaming(*said), http_client=inner) as (app, _):
            assert (await ask(app, STREAMED)).body == said[0] + said[1] + said[3]
        async with gateway(once(whole()[:-9]), http_client=inner) as (app, _):
            assert (await ask(app, ASKED)).error["code"] == "upstream_cut"
        async with gateway(once(STREAM_HEAD, chunk(word("a"))), http_client=inner) as (app, _):
            assert json.loads((await ask(app, STREAMED)).events[-1])["error"]["code"] == "upstream_cut"
        async with gateway(then_stall(STREAM_HEAD), http_client=inner) as (app, server), call(app, STREAMED) as talk:
            await until(lambda: len(server.requests) == 1)
            await talk.hang_up()
            await until(lambda: server.aborted == 1)


async def test_a_clients_own_test_transport_can_be_given() -> None:
    """No socket at all."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url == "http://host/v1/chat/completions"
        return httpx.Response(200, json=ANSWER)

    adapters: list[Adapter] = [OpenAIAdapter("openai", "http://host/v1", SECRET)]
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as inner:
        assert (await ask(ProxyApp(router=Router(adapters), http_client=inner), ASKED)).json() == ANSWER


async def test_the_app_opens_again_after_it_was_closed() -> None:
    """A mounted app may be shut down and used again."""
    async with gateway(always(whole())) as (app, server):
        for _ in range(2):
            assert (await ask(app, ASKED)).status == 200
            await app.aclose()
            await until(lambda: server.open == 0)
        assert server.connections == 2


def test_one_app_serves_several_event_loops() -> None:
    """Each has connections of its own, also where one ended without closing them."""
    taken, port = refused_port()
    taken.close()
    app = ProxyApp(router=Router([OpenAIAdapter("openai", f"http://{HOST}:{port}/v1", SECRET)]))

    async def serve() -> None:
        async with upstream(always(whole()), port=port) as server:
            assert (await ask(app, ASKED)).status == 200
            assert server.connections == 1

    for _ in range(3):
        asyncio.run(serve())
