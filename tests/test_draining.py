"""The end of an event loop's calls, driven by hand: who is refused, who is told, what is waited for."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from typing import Any

import pytest

from asgi_llm_gateway import TracingMiddleware, lifespan
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.draining import Drain, Life, Times, drain
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import Price
from asgi_llm_gateway.signals import SIGNALS, Signals, Told
from asgi_llm_gateway.stores.memory import MemoryLedger

from .conversation import CHAT, JSON, ask, call
from .security.house import chat, house
from .upstream import STREAM_HEAD, Peer, always, chunk, then_stall, until, upstream, whole, word

SLOW = chat(stream=True, metadata={"echo_delay_ms": "400"})


# -- new calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "shape"), [("/v1/chat/completions", "openai"), ("/v1/messages", "anthropic")])
async def test_a_new_call_is_refused_in_its_dialect_and_recorded(path: str, shape: str) -> None:
    """503 ``shutting_down``, after the gate and before any money: every observer sees it."""
    made = await house()
    drain().refuse()
    answer = await made.ask(chat(max_tokens=5), path)
    assert (answer.status, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert (answer.json().get("type") == "error") is (shape == "anthropic")
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"]
    assert made.traces.recent()[0].error == "shutting_down"
    assert json.loads(made.log.lines[0])["error"] == "shutting_down"
    assert (await made.held(), await made.spent()) == (0, 0)


async def test_over_http_2_no_connection_field_is_sent() -> None:
    """It is malformed there: RFC 9113, 8.2.2."""
    drain().refuse()
    answer = await ask(ProxyApp(router=Router([EchoAdapter()])), CHAT, headers=(JSON,), http_version="2")
    assert (answer.status, "connection" in answer.headers) == (503, False)


@pytest.mark.parametrize("app", [
    ProxyApp(router=Router([EchoAdapter()])),
    TracingMiddleware(ProxyApp(router=Router([EchoAdapter()]))),
])  # fmt: skip
async def test_a_proxy_with_no_gatekeeper_refuses_itself(app: Any) -> None:
    """Alone, or with observers only."""
    assert (await ask(app, CHAT)).status == 200
    drain().refuse()
    assert (await ask(app, CHAT)).error["code"] == "shutting_down"


async def test_a_handler_of_the_hosts_is_not_asked_any_more() -> None:
    """A layer round a stranger refuses in its place; the host's other routes go on."""
    asked: list[str] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = TracingMiddleware(handler)
    drain().refuse()
    assert (await ask(app, CHAT)).status == 503
    assert (await ask(app, None, "/hello", method="GET")).status == 200
    assert asked == ["/hello"]


# -- running calls -----------------------------------------------------------------------------------------------------


async def test_calls_are_counted_while_they_run_and_no_longer() -> None:
    """Whatever becomes of them."""
    made = await house()
    await made.ask()
    await made.ask(b"{")
    async with made.talk(SLOW) as talk:
        await talk.next()
        assert len(drain().calls) == 1
        await talk.hang_up()
    assert drain().calls == {}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_the_end_is_in_band_and_the_money_is_right(stream: bool) -> None:
    """An error event and no ``[DONE]``, or 503; the hold is gone, and what was used is booked."""
    made = await house()
    async with made.talk({**SLOW, "stream": stream}) as talk:
        if stream:
            await talk.next()
        else:
            await until(lambda: len(drain().calls) == 1 and made.proxy._loops.get() is not None)
            await until(lambda: bool(made.proxy._loops.get().calls))  # type: ignore[union-attr]
            await asyncio.sleep(0.02)
        drain().end()
        answer = await talk.answer(timeout=5)
    assert answer.complete
    told = json.loads(answer.events[-1]) if stream else answer.json()
    assert (answer.status, told["error"]["code"]) == (200 if stream else 503, "shutting_down")
    assert await made.held() == 0
    assert made.traces.recent()[0].error == "shutting_down"


async def test_nobody_else_is_asked_and_nobody_is_blamed() -> None:
    """No retry, no fallback and no hedge for a call that ends with its process; the breakers stay as they are."""
    async with upstream(then_stall()) as one, upstream(always(whole())) as other:
        adapters = [OpenAIAdapter(name, server.url(), "k", models=("m",)) for name, server in
                    (("one", one), ("other", other))]  # fmt: skip
        app = ProxyApp(router=Router(adapters, {"m": ("one/m", "other/m")}))
        async with call(app, {**CHAT, "model": "m"}) as talk:
            await until(lambda: len(one.requests) == 1)
            drain().end()
            answer = await talk.answer(timeout=5)
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
        assert other.requests == []
        assert {health.state(0.0) for health in app._router.health.values()} == {"closed"}  # type: ignore[union-attr]
        await app.aclose()


async def test_a_call_that_waits_for_its_retry_ends_at_once() -> None:
    """It is told so, not after the pause."""
    answers = always(b"HTTP/1.1 503 No\r\nretry-after: 9\r\ncontent-length: 2\r\n\r\n{}")
    async with upstream(answers) as server:
        app = ProxyApp(router=Router([OpenAIAdapter("one", server.url(), "k", models=("m",))]))
        async with call(app, {**CHAT, "model": "one/m"}) as talk:
            await until(lambda: len(server.requests) >= 1)
            await asyncio.sleep(0.05)
            drain().end()
            answer = await talk.answer(timeout=5)
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
        await app.aclose()


async def test_what_was_streamed_before_the_end_is_paid() -> None:
    """Three events, and the end: their tokens are booked, as an estimate, and no more is held."""
    ledger = MemoryLedger()
    async with upstream(_three) as server:
        proxy = ProxyApp(router=Router([OpenAIAdapter("up", server.url(), "k", models=("m",))]))
        app = BudgetMiddleware(proxy, ledger=ledger, prices=PriceTable({"up/m": Price(1000, 10**6)}))
        async with call(app, {**CHAT, "model": "up/m", "stream": True, "max_tokens": 100}) as talk:
            for _ in range(4):
                await talk.next()
            assert (await ledger.balance("default")).held > 0
            drain().end()
            answer = await talk.answer(timeout=5)
        balance = await ledger.balance("default")
        assert json.loads(answer.events[-1])["error"]["code"] == "shutting_down"
        assert balance.held == 0
        assert balance.spent >= 3
        await proxy.aclose()


async def _three(peer: Peer) -> None:
    await peer.request()
    await peer.send(STREAM_HEAD, *[chunk(word("a ")) for _ in range(3)], gap=0.02)
    await peer.stall()


# -- the times ---------------------------------------------------------------------------------------------------------


async def test_refusal_and_end_come_in_their_time_and_once() -> None:
    """Asked to begin again and again: each is told once, one after the other, and one that fails stops no other."""
    here, told = Drain(), []

    def fails() -> None:
        raise RuntimeError

    here.when_refusing(fails)
    here.when_refusing(lambda: told.append("refusing"))
    here.when_ended(lambda: told.append("ended"))
    for _ in range(3):
        here.begin(Times(delay=0.05, grace=0.05))
    assert (here.phase, here.refusing, told) == ("draining", False, [])
    await until(lambda: len(told) == 2)
    assert (told, here.refusing) == (["refusing", "ended"], True)
    here.end()
    await here.finish()
    assert told == ["refusing", "ended"]


async def test_closing_waits_for_calls_that_end_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call books when it ends is booked before the stores are closed; one that never ends is left."""
    monkeypatch.setattr("asgi_llm_gateway.draining.LINGER", -0.8)
    here = drain()

    async def call_of_theirs(seconds: float) -> None:
        exchange = object()
        here.calls[exchange] = None  # type: ignore[assignment]
        try:
            await asyncio.sleep(seconds)
        finally:
            del here.calls[exchange]

    ends, never = asyncio.ensure_future(call_of_theirs(0.05)), asyncio.ensure_future(call_of_theirs(60))
    await asyncio.sleep(0)
    await here.finish()
    assert (ends.done(), never.done()) == (True, False)
    never.cancel()


async def test_after_the_end_a_later_call_is_served() -> None:
    """A host may end a lifespan and begin another, in one process."""
    made = await house()
    for _ in range(2):
        async with lifespan(signals=False):
            assert (await made.ask()).status == 200
    assert (await made.ask()).status == 200


# -- signals -----------------------------------------------------------------------------------------------------------


async def test_handlers_are_chained_and_put_back() -> None:
    """The server hears what came, in order; afterwards its handlers stand where they stood."""
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def server(number: int, frame: Any) -> None:
        heard.append(number)

    try:
        for number in before:
            signal.signal(number, server)
        outer, inner = Life(signals=True), Life(signals=True)
        outer.started()
        inner.started()
        assert signal.getsignal(signal.SIGTERM) == SIGNALS._handle
        signal.raise_signal(signal.SIGTERM)
        assert drain().phase == "draining"  # at once, not in the next turn of the loop
        assert heard == [signal.SIGTERM]
        await asyncio.sleep(0)
        assert drain().refusing
        signal.raise_signal(signal.SIGINT)
        assert heard == [signal.SIGTERM, signal.SIGINT]
        await inner.end()
        assert signal.getsignal(signal.SIGTERM) == SIGNALS._handle
        await outer.end()
        assert signal.getsignal(signal.SIGTERM) is server
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def test_without_a_servers_handler_a_signal_stays_what_it_was() -> None:
    """Where a signal kills the process, it still does: nobody would end it otherwise."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        life = Life(signals=True)
        life.started()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        await life.end()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_handler_that_was_set_since_is_left_alone() -> None:
    """Whoever came later keeps its own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, lambda *_: None)
        life = Life(signals=True)
        life.started()
        later = signal.signal(signal.SIGTERM, own := lambda *_: None)
        assert later == SIGNALS._handle
        await life.end()
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_off_the_main_thread_nothing_is_hooked() -> None:
    """A test client, or a host that serves in a thread."""
    before = signal.getsignal(signal.SIGTERM)
    found: list[Any] = []

    async def live() -> None:
        async with lifespan(signals=True):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    thread.join(10)
    assert found == [before]


async def test_the_delay_holds_the_server_back_and_a_second_wish_does_not_wait() -> None:
    """In the delay the server hears nothing; SIGINT twice is somebody at a keyboard."""
    heard: list[int] = []
    told: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
        own = Signals()
        one = Told(at_once=lambda: told.append("at once"), begin=lambda server: told.append("begin"),
                   again=lambda: told.append("again"), delay=30)  # fmt: skip
        own.add(one)
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0.02)
        assert (heard, told) == ([], ["at once", "begin"])
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0.02)
        assert (heard, told) == ([signal.SIGINT] * 2, ["at once", "begin", "at once", "again"])
        own.remove(one)
    finally:
        signal.signal(signal.SIGINT, before)
