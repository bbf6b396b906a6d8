"""The ASGI craft that all middlewares share."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import pytest

from asgi_llm_gateway._asgi import Message, Receive, Scope, Send
from asgi_llm_gateway.errors import RateLimited
from asgi_llm_gateway.exchange import KEY, Exchange
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.base import ORDER, LLMMiddleware, Rank
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.stores.memory import MemoryLedger, MemoryStore
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import CHAT, JSON, ask, call, get, scope_of
from . import Stranger

ALL = [TracingMiddleware, TenantMiddleware, RateLimitMiddleware, BudgetMiddleware]
GATEKEEPERS = ALL[1:]


class Layer(LLMMiddleware):
    """A layer that reads the body and does nothing with it."""

    rank = Rank.POLICY

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        receive = await exchange.read(receive, scope)
        await self.forward(exchange, scope, receive, send)


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


# -- the stack ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (RateLimitMiddleware, TenantMiddleware),
        (BudgetMiddleware, TenantMiddleware),
        (BudgetMiddleware, RateLimitMiddleware),
    ],
)
async def test_a_wrong_order_is_refused_by_name(outer: Any, inner: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Never silently unguarded: 500 ``misordered_stack``, both named, the right order told, and no call goes out."""
    app, store = Stranger(), MemoryStore()
    await store.add_tenant(Tenant("a"))
    key, secret = new_key("a")
    await store.add_key(key)
    inside = inner(app, store=store) if inner is TenantMiddleware else inner(app)
    with caplog.at_level(logging.ERROR, "asgi_llm_gateway"):
        answer = await ask(outer(inside), CHAT, headers=[JSON, (b"x-api-key", secret.encode())])
    assert (answer.status, answer.error["code"]) == (500, "misordered_stack")
    for name in (outer.__name__, inner.__name__, ORDER):
        assert name in answer.error["message"]
        assert name in caplog.text
    assert app.calls == 0


async def test_the_right_order_with_a_stranger_between_works() -> None:
    """A foreign middleware may stand anywhere; the exchange goes past it in the scope."""
    app, store, ledger = Stranger(), MemoryStore(), MemoryLedger()
    await store.add_tenant(Tenant("a", budget=10**9))
    key, secret = new_key("a")
    await store.add_key(key)

    def foreign(inner: Any) -> Any:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            await inner(dict(scope), receive, send)

        return middleware

    stack = foreign(BudgetMiddleware(foreign(app), ledger=ledger))
    stack = foreign(TenantMiddleware(foreign(RateLimitMiddleware(stack)), store=store))
    stack = TracingMiddleware(stack)
    answer = await ask(stack, {**CHAT, "tenant": "a"}, headers=[JSON, (b"x-api-key", secret.encode())])
    assert answer.status == 200
    received = json.loads(app.bodies[0])
    assert "tenant" not in received
    assert received["max_tokens"] == 4096
    assert dict(app.scopes[0]["headers"])[b"content-length"] == b"%d" % len(app.bodies[0])


async def test_an_observer_may_stand_anywhere() -> None:
    """Only a gatekeeper needs what another decides."""
    assert (await ask(BudgetMiddleware(TracingMiddleware(Stranger())), CHAT)).status == 200


async def test_the_same_layer_twice_does_its_work_once() -> None:
    """One hold, one count, one record, one pair of ids."""
    app, store, ledger, traces = Stranger((1, 1)), MemoryStore(), MemoryLedger(), TraceLog()
    await store.add_tenant(Tenant("a", budget=10**9))
    key, secret = new_key("a")
    await store.add_key(key)
    stack: Any = app
    for _ in range(2):
        stack = BudgetMiddleware(stack, ledger=ledger)
    for _ in range(2):
        stack = RateLimitMiddleware(stack, requests=10, window=1e7)
    for _ in range(2):
        stack = TenantMiddleware(stack, store=store)
    for _ in range(2):
        stack = TracingMiddleware(stack, traces=traces)
    answer = await ask(stack, {**CHAT, "model": "gpt-4"}, headers=[JSON, (b"x-api-key", secret.encode())])
    assert answer.status == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "9"
    assert [name for name, _ in answer.messages[0]["headers"]].count(b"x-request-id") == 1
    assert len(traces.recent()) == 1
    assert len((await ledger.records("a")).records) == 1
    assert (await ledger.balance("a"))[:2] == ((30_000 + 60_000), 0)


async def test_a_layer_of_other_settings_is_another_layer() -> None:
    """Two limits may stand together; the tighter one decides."""
    app = Stranger()
    stack = RateLimitMiddleware(RateLimitMiddleware(app, requests=1, window=1e7), requests=10, window=1e7)
    assert [(await ask(stack, CHAT)).status for _ in range(3)] == [200, 429, 429]
    assert app.calls == 1


async def test_an_amended_body_reaches_the_app_with_its_length() -> None:
    """The content-length that the client sent no longer holds."""
    app = Stranger()
    raw = json.dumps(CHAT).encode()
    await ask(BudgetMiddleware(app), raw, headers=[JSON, (b"content-length", b"%d" % len(raw))], cut=9)
    (body,) = app.bodies
    lengths = [value for name, value in app.scopes[0]["headers"] if name == b"content-length"]
    assert lengths == [b"%d" % len(body)]
    assert json.loads(body)["max_tokens"] == 4096


async def test_the_exchange_dies_with_its_call() -> None:
    """The server's scope is not written to, so a kept-alive connection carries nothing over."""
    scope = scope_of(headers=[JSON])
    seen: list[Exchange] = []

    async def app(inner: Scope, receive: Receive, send: Send) -> None:
        seen.append(inner[KEY])
        await Stranger()(inner, receive, send)

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(CHAT).encode()}

    async def send(message: Message) -> None:
        pass

    layer = Layer(app)
    await layer(scope, receive, send)
    await layer(scope, receive, send)
    assert KEY not in scope
    assert seen[0] is not seen[1]
    assert seen[0].entry is layer


def test_a_layer_does_nothing_when_it_is_made(tmp_path: Any) -> None:
    """No I/O in ``__init__``: no folder, no file, no loop needed."""
    for middleware in ALL:
        middleware(Stranger())
    assert list(tmp_path.iterdir()) == []


def test_one_instance_serves_two_event_loops_in_threads() -> None:
    """Nothing of a call is kept on ``self``: calls of two loops go on side by side and do not meet."""
    store, ledger, traces = MemoryStore(), MemoryLedger(), TraceLog()
    secrets: list[str] = []

    async def prepare() -> None:
        for name in ("a", "b"):
            await store.add_tenant(Tenant(name, budget=10**12))
            key, secret = new_key(name)
            await store.add_key(key)
            secrets.append(secret)

    asyncio.run(prepare())
    stack = TracingMiddleware(
        TenantMiddleware(
            RateLimitMiddleware(BudgetMiddleware(Stranger((10, 20)), ledger=ledger), requests=10**6, window=1e7),
            store=store,
        ),
        traces=traces,
    )
    statuses: list[int] = []
    together = threading.Barrier(2)

    def serve(secret: str) -> None:
        async def run() -> None:
            together.wait(10)
            headers = [JSON, (b"x-api-key", secret.encode())]
            answers = await asyncio.gather(
                *(ask(stack, {**CHAT, "model": "gpt-4"}, headers=headers) for _ in range(100))
            )
            statuses.extend(answer.status for answer in answers)

        asyncio.run(run())

    threads = [threading.Thread(target=serve, args=(secret,)) for secret in secrets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 200

    async def balances() -> list[tuple[int, int]]:
        return [(await ledger.balance(name))[:2] for name in ("a", "b")]

    assert asyncio.run(balances()) == [(100 * 1_500_000, 0)] * 2
    assert sorted(str(record.tenant) for record in traces.recent(1000)) == ["a"] * 100 + ["b"] * 100


async def test_a_get_on_an_authenticated_path_reads_no_body() -> None:
    """``/v1/models`` and its like go through as they are."""
    answer = await get(Layer(Stranger()), "/v1/models")
    assert answer.status == 200
