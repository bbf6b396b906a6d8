"""The ASGI craft that all middlewares share: what passes, and what errors are answered with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_llm_gateway._asgi import Message, Receive, Scope, Send
from asgi_llm_gateway.errors import RateLimited
from asgi_llm_gateway.exchange import Exchange
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.stores.memory import MemoryStore
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import CHAT, JSON, ask, call, get, scope_of
from . import Stranger
from .base_parts import ALL, GATEKEEPERS, Layer


class Refusing(LLMMiddleware):
    """A layer that refuses, before or after the answer started."""

    rank = Rank.POLICY
    late = False

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        if self.late:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RateLimited("slow down", headers=((b"retry-after", b"7"),))


# -- what passes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("middleware", ALL)
@pytest.mark.parametrize("kind", ["lifespan", "yet.unknown"])
async def test_other_scopes_pass_untouched(middleware: Any, kind: str) -> None:
    """The very scope, receive and send that came."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((scope, receive, send))

    async def receive() -> Message:
        raise AssertionError("asked")

    async def send(message: Message) -> None:
        raise AssertionError("sent")

    scope = {"type": kind}
    await middleware(app)(scope, receive, send)
    assert [id(one) for one in seen] == [id(scope), id(receive), id(send)]
    assert scope == {"type": kind}


@pytest.mark.parametrize("middleware", ALL)
@pytest.mark.parametrize(
    ("path", "method"), [("/docs", "GET"), ("/upload", "POST"), ("/v1/chat/completions", "OPTIONS")]
)
async def test_other_routes_and_options_pass_untouched(middleware: Any, path: str, method: str) -> None:
    """No copy of the scope, no key in it, no body read, no header added."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((scope, receive, send))

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        raise AssertionError("sent")

    scope = scope_of(path, method=method)
    before = dict(scope)
    await middleware(app)(scope, receive, send)
    assert [id(one) for one in seen] == [id(scope), id(receive), id(send)]
    assert scope == before


class Socket:
    """A websocket client that connects and leaves."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        """See ASGI."""
        return {"type": "websocket.connect"}

    async def send(self, message: Message) -> None:
        """See ASGI."""
        self.sent.append(message)


@pytest.mark.parametrize("middleware", ALL)
async def test_a_websocket_passes_an_observer_and_on_other_routes(middleware: Any) -> None:
    """A gatekeeper has nothing to say of a host app's own websockets."""
    app = Stranger()
    scope = {"type": "websocket", "path": "/chat", "headers": []}
    await middleware(app)(scope, Socket().receive, Socket().send)
    assert app.scopes == [scope]


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/chat/completions", "//v1/realtime"])
async def test_a_websocket_on_a_governed_path_is_closed_by_gatekeepers(path: str) -> None:
    """What it cannot read, it refuses; an observer lets it through to them."""
    for middleware in GATEKEEPERS:
        app, socket = Stranger(), Socket()
        stack = TracingMiddleware(middleware(app))
        await stack({"type": "websocket", "path": path, "headers": []}, socket.receive, socket.send)
        assert app.calls == 0
        assert [message["type"] for message in socket.sent] == ["websocket.close"]
        assert socket.sent[0]["code"] == 1008


@pytest.mark.parametrize(
    "path", ["//v1/chat/completions", "/V1/chat/completions", "/v1/chat/completions;x", "/v1/%63hat/completions"]
)
@pytest.mark.parametrize("middleware", GATEKEEPERS)
async def test_a_misspelt_path_is_404_at_a_gatekeeper(middleware: Any, path: str) -> None:
    """Never "pass": a lenient server further in might serve it."""
    app = Stranger()
    answer = await ask(middleware(app), CHAT, path)
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert app.calls == 0


async def test_a_scope_without_headers_is_borne() -> None:
    """They may be missing."""
    scope = scope_of()
    del scope["headers"]
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(CHAT).encode()}

    async def send(message: Message) -> None:
        sent.append(message)

    await TenantMiddleware(Stranger(), store=MemoryStore())(scope, receive, send)
    assert sent[0]["status"] == 401


async def test_a_get_on_an_authenticated_path_reads_no_body() -> None:
    """``/v1/models`` and its like go through as they are."""
    answer = await get(Layer(Stranger()), "/v1/models")
    assert answer.status == 200


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "shape"), [("/v1/messages", "anthropic"), ("/v1/chat/completions", "openai"), ("/v1/models", "openai")]
)
async def test_an_error_is_answered_in_the_callers_dialect(path: str, shape: str) -> None:
    """Anthropic's envelope on ``/v1/messages``, OpenAI's elsewhere; headers included."""
    answer = await ask(Refusing(Stranger()), CHAT, path)
    assert answer.status == 429
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["content-length"] == str(len(answer.body))
    if shape == "anthropic":
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "rate_limit_error"
    else:
        assert answer.error["type"] == "rate_limit_error"


async def test_an_error_after_the_answer_started_is_raised_again() -> None:
    """Nothing else can be answered any more; the server cuts the connection."""
    layer = Refusing(Stranger())
    layer.late = True
    async with call(layer, CHAT) as talk:
        assert (await talk.next())["type"] == "http.response.start"
        with pytest.raises(RateLimited):
            await talk.answer()


async def test_what_the_app_raises_goes_through() -> None:
    """The server's own handling of a crash is not ours to replace."""

    async def crashing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    for middleware in (TracingMiddleware, RateLimitMiddleware, BudgetMiddleware):
        with pytest.raises(ZeroDivisionError):
            await ask(middleware(crashing), CHAT)


BAD = [
    (b"{", 400, "invalid_json"),
    (b"[" * 10_000, 400, "invalid_json"),
    (json.dumps({**CHAT, "messages": []}).encode(), 400, "invalid_value"),
    (json.dumps({**CHAT, "api_base": "http://x"}).encode(), 400, "unsupported_parameter"),
    (json.dumps(CHAT)[:-1].encode() + b', "model": "x"}', 400, "duplicate_field"),
    (b"x" * 30_000, 413, "request_too_large"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD, ids=[case[2] + str(at) for at, case in enumerate(BAD)])
@pytest.mark.parametrize("cut", [0, 100])
async def test_bad_input_is_a_4xx_with_an_envelope(body: bytes, status: int, code: str, cut: int) -> None:
    """Never a traceback, never a call."""
    app = Stranger()
    answer = await ask(BudgetMiddleware(app, max_body=20_000), body, cut=max(cut, len(body) // 100) if cut else 0)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert app.calls == 0
    anthropic = await ask(BudgetMiddleware(app, max_body=20_000), body, "/v1/messages")
    assert (anthropic.status, anthropic.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("middleware", [BudgetMiddleware, Layer])
async def test_a_client_that_leaves_while_it_sends_is_no_error(middleware: Any) -> None:
    """Nobody is answered, nobody is called, nothing is raised."""
    app = Stranger()
    talk_body = json.dumps(CHAT).encode()
    messages = iter([{"type": "http.request", "body": talk_body[:5], "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    await TracingMiddleware(middleware(app), traces=TraceLog())(scope_of(headers=[JSON]), receive, send)
    assert (sent, app.calls) == ([], 0)
