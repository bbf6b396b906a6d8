"""The ASGI craft that all middlewares share: layers in a stack, in order, twice, side by side."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import pytest

from asgi_llm_gateway._asgi import Message, Receive, Scope, Send
from asgi_llm_gateway.exchange import KEY, Exchange
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.base import ORDER
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.stores.memory import MemoryLedger, MemoryStore
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import CHAT, JSON, ask, scope_of
from . import Stranger
from .base_parts import ALL, Layer


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
