"""The cache where it will stand: round a strange app, in a framework, mounted, before ProxyApp, read by the official SDKs."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from asgi_llm_gateway import lifespan
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.middleware.cache import CacheMiddleware
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router

from ..caching import PATHS, TEXTS, Counting, asking, saying, streaming, text_of, text_of_stream
from ..conversation import ask
from ..servers import fetch, serving
from ..stores.redis_servers import RedisServer, redis_server
from ..upstream import until

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
def served() -> Iterator[tuple[Counting, str]]:
    """A model server behind the cache, in a real uvicorn."""
    model = Counting()
    with serving(CacheMiddleware(model)) as url:
        yield model, url


def test_openais_sdk_reads_a_stream_as_a_document(served: tuple[Counting, str]) -> None:
    """Its own reading of the stream is the document."""
    model, url = served
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
    fields: Any = {"model": "m", "messages": HELLO, "temperature": 0}
    with client.chat.completions.stream(**fields, stream_options={"include_usage": True}) as stream:
        streamed = stream.get_final_completion()
    whole = client.chat.completions.create(**fields)
    assert model.calls == 1
    assert whole.choices[0].message.content == streamed.choices[0].message.content
    assert whole.usage is not None
    assert streamed.usage is not None
    assert whole.usage.total_tokens == streamed.usage.total_tokens == 30


def test_openais_sdk_reads_a_document_as_a_stream(served: tuple[Counting, str]) -> None:
    """Chat, legacy completions and Responses."""
    model, url = served
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
    fields: Any = {"model": "m", "messages": HELLO, "temperature": 0}
    whole = client.chat.completions.create(**fields)
    with client.chat.completions.stream(**fields, stream_options={"include_usage": True}) as stream:
        told = stream.get_final_completion()
    assert told.choices[0].message.content == whole.choices[0].message.content
    assert told.usage == whole.usage
    response = client.responses.create(model="m", input="x", temperature=0)
    with client.responses.stream(model="m", input="x", temperature=0) as events:
        seen = [one.type for one in events]
        final = events.get_final_response()
    assert final.output_text == response.output_text
    assert seen[0] == "response.created"
    assert seen[-1] == "response.completed"
    text = client.completions.create(model="m", prompt="x", temperature=0)
    pieces = client.completions.create(model="m", prompt="x", temperature=0, stream=True)
    assert "".join(one.choices[0].text for one in pieces) == text.choices[0].text
    assert model.calls == 3


@pytest.mark.parametrize("first_stream", [True, False])
def test_anthropics_sdk_reads_messages_in_either_form(served: tuple[Counting, str], first_stream: bool) -> None:
    """The same message, block by block or whole."""
    model, url = served
    client = anthropic.Anthropic(base_url=url, api_key="k", max_retries=0)
    fields: Any = {"model": "m", "max_tokens": 50, "messages": HELLO, "extra_body": {"temperature": 0}}

    def streamed() -> Any:
        with client.messages.stream(**fields) as stream:
            return stream.get_final_message()

    def whole() -> Any:
        return client.messages.create(**fields)

    one, other = (streamed(), whole()) if first_stream else (whole(), streamed())
    assert model.calls == 1
    assert one.content[0].text == other.content[0].text
    assert one.usage.output_tokens == other.usage.output_tokens == 20
    assert one.stop_reason == other.stop_reason == "end_turn"


def test_openais_sdk_gets_its_embeddings_again(served: tuple[Counting, str]) -> None:
    """In the encoding that it asked for."""
    model, url = served
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
    raw = [client.embeddings.with_raw_response.create(model="m", input="x", encoding_format="float") for _ in range(2)]
    assert [one.headers["x-cache"] for one in raw] == ["miss", "hit"]
    client.embeddings.create(model="m", input="x", encoding_format="base64")
    assert model.calls == 2


def test_a_hit_has_a_framing_that_every_client_reads(served: tuple[Counting, str]) -> None:
    """Length, type and bytes agree over a real connection."""
    _, url = served
    for stream in (True, False):
        body = asking("chat", stream=stream)
        first, again = [fetch(f"{url}/v1/chat/completions", body, key=None) for _ in range(2)]
        assert (again.status, again.headers["x-cache"]) == (200, "hit")
        assert int(again.headers["content-length"]) == len(again.body)
        assert again.headers["content-type"].split(";")[0] == first.headers["content-type"].split(";")[0]


def connection(url: str, body: Any) -> socket.socket:
    """A request that is sent, and its connection."""
    place = urlsplit(url)
    raw = json.dumps(body).encode()
    made = socket.create_connection((place.hostname, place.port), timeout=20)
    head = f"POST {PATHS['chat']} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    made.sendall(head.encode() + raw)
    return made


@pytest.mark.parametrize("stream", [True, False])
def test_real_connections_that_break_off(stream: bool) -> None:
    """The first client's connection is cut while another reads along; then the last one's."""
    ready = asyncio.Event()
    model = Counting(before=ready)
    with serving(CacheMiddleware(model)) as url:
        first, second = connection(url, asking("chat", stream=stream)), connection(url, asking("chat", stream=stream))
        deadline = time.monotonic() + 20
        while model.calls < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        first.close()
        time.sleep(0.2)
        assert (model.calls, model.cancelled) == (1, 0)
        second.close()
        while model.cancelled < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (model.calls, model.cancelled) == (1, 1)


def framework(calls: list[str]) -> Starlette:
    """A user's own app."""

    async def chat(request: Request) -> Response:
        body = await request.json()
        calls.append(request.url.path)
        if body.get("stream"):
            return StreamingResponse(iter(streaming("chat", "from a framework")), media_type="text/event-stream")
        return JSONResponse(saying("chat", "from a framework"))

    async def other(request: Request) -> Response:
        return JSONResponse({"path": request.url.path})

    return Starlette(
        routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/other", other)], lifespan=lifespan
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_a_frameworks_app_wrapped_and_mounted(stream: bool) -> None:
    """Round it, inside it, and below a prefix: asked once each, other routes as they were."""
    calls: list[str] = []
    wrapped: Any = CacheMiddleware(framework(calls))
    added = framework(calls)
    added.add_middleware(CacheMiddleware)
    mounted = Starlette(routes=[Mount("/llm", app=CacheMiddleware(framework(calls)))])
    for app, prefix in ((wrapped, ""), (added, ""), (mounted, "/llm")):
        calls.clear()
        answers = [await ask(app, asking("chat", stream=stream), prefix + PATHS["chat"]) for _ in range(2)]
        assert [one.headers["x-cache"] for one in answers] == ["miss", "hit"]
        assert len(calls) == 1
        texts = {text_of_stream("chat", one.body) if stream else text_of("chat", one.json()) for one in answers}
        assert texts == {"from a framework"}
        plain = await ask(app, None, prefix + "/other", method="GET")
        assert (plain.status, plain.json()["path"]) == (200, prefix + "/other")


def test_the_example_answers_once() -> None:
    """As its first lines say."""
    from examples.cached import app

    with serving(app) as url:
        bodies = [asking("chat", model="echo"), asking("chat", model="echo", stream=True)]
        answers = [fetch(f"{url}/v1/chat/completions", body, key=None) for body in bodies]
    assert [(one.status, one.headers["x-cache"]) for one in answers] == [(200, "miss"), (200, "hit")]
    assert text_of("chat", answers[0].json()) == text_of_stream("chat", answers[1].body) == "one two"


@pytest.mark.parametrize("dialect", [*TEXTS, "embeddings"])
async def test_before_proxyapp_in_every_dialect(dialect: str) -> None:
    """Also those that the provider does not speak: what is kept is in the client's words."""
    app = CacheMiddleware(ProxyApp(router=Router([EchoAdapter()], {})))
    for stream in (False, True):
        body = asking(
            dialect, "say this", model="echo", **({"stream": True} if stream and dialect != "embeddings" else {})
        )
        answers = [await ask(app, body, PATHS[dialect]) for _ in range(2)]
        assert [one.status for one in answers] == [200, 200]
        # An answer that is kept serves either form; embeddings have but one.
        assert [one.headers["x-cache"] for one in answers] == (["hit"] * 2 if stream else ["miss", "hit"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    with redis_server(tmp_path / "redis") as running:
        yield running


async def test_processes_share_answers_in_redis(server: RedisServer) -> None:
    """In either form; and each keeps what it fetched, so that Redis is asked once."""
    made = [CacheMiddleware(Counting(), redis_url=server.url, redis_patience=2.0) for _ in range(2)]
    assert (await ask(made[0], asking("chat"))).headers["x-cache"] == "miss"
    await until(lambda: server.ask("DBSIZE") == ":1")
    found = await ask(made[1], asking("chat", stream=True))
    assert (found.status, found.headers["x-cache"]) == (200, "hit")
    server.ask("FLUSHALL")
    assert (await ask(made[1], asking("chat"))).headers["x-cache"] == "hit"


async def test_redis_url_is_taken_from_the_settings(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless CACHE_REDIS says no."""
    from asgi_llm_gateway import settings

    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.setenv("CACHE_REDIS", "false")
    await ask(CacheMiddleware(Counting()), asking("chat"))
    monkeypatch.delenv("CACHE_REDIS")
    settings.forget()
    assert server.ask("DBSIZE") == ":0"
    await ask(CacheMiddleware(Counting(), redis_patience=2.0), asking("chat"))
    await until(lambda: server.ask("DBSIZE") == ":1")
    monkeypatch.setenv("REDIS_URL", "redis://:secret@[")
    settings.forget()
    refused = await ask(CacheMiddleware(Counting()), asking("chat"))
    assert (refused.status, "secret" in refused.body.decode()) == (503, False)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_a_redis_that_is_away_costs_one_call_its_patience_and_no_call_its_answer(
    server: RedisServer, fault: str
) -> None:
    """50 ms at most, once; then nobody waits, and this process's own memory serves."""
    model = Counting()
    app = CacheMiddleware(model, redis_url=server.url)
    await ask(app, asking("chat", "warm"))
    getattr(server, fault)()
    for at in range(30):
        answer = await ask(app, asking("chat", str(at)))
        assert (answer.status, answer.headers["x-cache"]) == (200, "miss")
        here = app._open.get()
        assert here is not None
        assert here.redis is not None
        assert not here.redis.up  # from the first call on nobody waits for it
        assert (await ask(app, asking("chat", str(at)))).headers["x-cache"] == "hit"
    assert model.calls == 31
