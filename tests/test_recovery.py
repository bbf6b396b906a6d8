"""A fault at each layer and at each moment of a call: an answer in the envelope, one line, and nothing is held."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from asgi_llm_gateway import create_app, settings
from asgi_llm_gateway._asgi import Message, Receive, Scope, Send
from asgi_llm_gateway._recovery import BrokenOff
from asgi_llm_gateway.adapters.base import Script
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.exchange import Exchange
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.stores.sql import SQLTenants

from .conversation import CHAT, Answer, ask, call, get, scope_of
from .security.house import House, chat, house

CANARY = "canary-of-the-prompt"
WHENS = ("before", "first byte", "at the end", "after")


class Bomb(LLMMiddleware):
    """A layer with a mistake in it, which shows itself once, at that moment of a call."""

    rank: ClassVar[Rank] = Rank.SECURITY

    def __init__(self, app: Any, when: str) -> None:
        super().__init__(app, settings=(when,))
        self.when = when
        self.armed = True

    def _go_off(self, when: str) -> None:
        if self.armed and self.when == when:
            self.armed = False
            raise ZeroDivisionError(CANARY)

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        self._go_off("before")

        async def faulty_send(message: Message) -> None:
            if message["type"] == "http.response.body" and message.get("body"):
                self._go_off("first byte")
            await send(message)

        async def work() -> None:
            self._go_off("at the end")

        if self.when == "at the end":
            exchange.at_end(work)
        await self.forward(exchange, scope, receive, faulty_send if self.when == "first byte" else send)
        self._go_off("after")


def bombed(made: House, outside: str, when: str) -> None:
    """Put a Bomb into a house, outside of the layer of that name."""
    outer: Any = None
    layer: Any = made.app
    while type(layer).__name__ != outside:
        outer, layer = layer, layer.app
    kind = type("Bomb", (Bomb,), {"rank": outer.rank if outer is not None else Rank.SECURITY})
    bomb = kind(layer, when)
    if outer is None:
        made.app = bomb
    else:
        outer.app = bomb


LAYERS = ("SecurityHeadersMiddleware", "LoggingMiddleware", "MetricsMiddleware", "TracingMiddleware", "TenantMiddleware",
          "RateLimitMiddleware", "PolicyMiddleware", "CacheMiddleware", "BudgetMiddleware", "StructuredOutputMiddleware",
          "ProxyApp")  # fmt: skip


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of faults."""
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]


async def nothing_is_held(made: House) -> None:
    """At once, or when the store was asked again."""
    async with asyncio.timeout(5):
        while await made.held():  # noqa: ASYNC110 - a store has no event for it
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("outside", LAYERS)
async def test_a_fault_in_any_layer_at_any_moment_is_one_line_and_no_loss(
    outside: str, when: str, stream: bool, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """500 with the request's id where nothing had gone out; else an end in band, or a connection that is cut."""
    made = await house()
    bombed(made, outside, when)
    body = chat(stream=stream, max_tokens=50, messages=[{"role": "user", "content": CANARY}])
    broken: BaseException | None = None
    async with made.talk(body, path) as talk:
        try:
            answer = await talk.answer()
        except BrokenOff as cut:
            broken = cut
            while not talk._out.empty():
                talk.messages.append(talk._out.get_nowait())
            answer = Answer(talk.messages)
    (line,) = lines_of(caplog)
    assert "ZeroDivisionError at tests/test_recovery.py" in line
    said = " ".join(record.getMessage() + str(record.exc_text) for record in caplog.records)
    assert CANARY not in said + str(broken) + " ".join(made.log.lines)
    request = re.search(r"request (\w+)", line)
    assert request is not None
    if answer.status == 500:
        assert broken is None
        error = answer.json()["error"]
        assert request[1] in error["message"]
        assert error["code"] == "internal_error"
        assert answer.headers["x-request-id"] == request[1]
        assert (answer.json().get("type") == "error") is (path == "/v1/messages")
    elif broken is not None or not answer.complete:
        assert stream or when == "first byte"
        assert answer.messages[-1]["type"] == "http.response.start" or answer.messages[-1]["more_body"]
        assert b"[DONE]" not in answer.body
        assert b"message_stop" not in answer.body
    elif b"internal_error" in answer.body:
        assert stream
        assert b"[DONE]" not in answer.body
    else:  # all of it was out by then
        assert answer.status == 200
        assert when in ("after", "at the end")
    await nothing_is_held(made)
    recorded = made.traces.recent()
    if when != "before" or outside not in LAYERS[:4]:  # else the call never came to the one that records
        assert len(recorded) == 1
        assert CANARY not in repr(recorded[0])
    before = len(recorded)
    assert (await made.ask(body, path)).status == 200
    assert len(made.traces.recent()) == before + 1
    await nothing_is_held(made)
    assert len(lines_of(caplog)) == 1


# -- what the layers lean on -------------------------------------------------------------------------------------------


class FaultyAdapter(EchoAdapter):
    """A provider's dialect with a mistake in one of its parts."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def _go_off(self, part: str) -> None:
        if part == self._part:
            raise KeyError(CANARY)

    def request(self, request: Any, model: str) -> Script:
        self._go_off("request")
        return super().request(request, model)

    def response(self, request: Any, body: bytes) -> Any:
        self._go_off("response")
        return super().response(request, body)

    def stream(self, request: Any) -> Any:
        self._go_off("stream")
        decoder = super().stream(request)
        feed, adapter, count = decoder.feed, self, [0]

        class Decoder:
            def __getattr__(self, name: str) -> Any:
                return getattr(decoder, name)

            def feed(self, data: bytes) -> bytes:
                count[0] += 1
                if count[0] == 1:
                    adapter._go_off("first event")
                if count[0] == 3:
                    adapter._go_off("third event")
                return feed(data)

        return Decoder()


@pytest.mark.parametrize(("part", "stream"), [("request", False), ("response", False), ("stream", True),
                                              ("first event", True), ("third event", True)])  # fmt: skip
async def test_a_fault_in_a_providers_dialect(part: str, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Before anything was sent it costs nothing; afterwards it is paid for. A stream that had begun ends in band."""
    made = House()
    await made.tenant("a")
    made.proxy._router = Router([FaultyAdapter(part)])
    answer = await made.ask(chat(stream=stream, messages=[{"role": "user", "content": "a b c d e"}]))
    assert answer.complete
    if part == "third event":
        assert answer.status == 200
        last = json.loads(answer.events[-1])
        assert last["error"]["code"] == "internal_error"
        assert answer.headers["x-request-id"] in last["error"]["message"]
    else:
        assert (answer.status, answer.error["code"]) == (500, "internal_error")
        assert answer.headers["x-request-id"] in answer.error["message"]
    assert len(lines_of(caplog)) == 1
    assert CANARY not in caplog.text
    record = made.traces.recent()[0]
    assert record.error == "KeyError"
    assert await made.held() == 0
    assert (await made.spent() > 0) is (part != "request")


def of_store(verb: str) -> Callable[[House, Any], None]:
    """A verb of the store's that fails as nobody foresaw."""

    def fit(made: House, fails: Any) -> None:
        setattr(made.store, verb, fails)

    return fit


def sink(made: House, fails: Any) -> None:
    """The log of traces."""

    def add(record: Any) -> None:
        raise OverflowError(CANARY)

    made.traces.add = add  # type: ignore[method-assign]


def counter(made: House, fails: Any) -> None:
    """A counter of the metrics."""

    def add(*_: Any) -> None:
        raise OverflowError(CANARY)

    made.meters.requests.add = add  # type: ignore[method-assign, assignment]


def logger(made: House, fails: Any) -> None:
    """The host's logger."""

    def write(*_: Any, **__: Any) -> None:
        raise OverflowError(CANARY)

    made.log.info = made.log.error = write  # type: ignore[method-assign]


VERBS = ("identify", "hold", "settle", "release")
PARTS = {**{verb: of_store(verb) for verb in VERBS}, "sink": sink, "counter": counter, "logger": logger}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("part", PARTS)
async def test_a_fault_in_what_a_layer_leans_on(part: str, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A store that raises what it never should, a log that is full: no more than that call, and no answer for free."""
    made = await house()
    kept = {verb: getattr(made.store, verb) for verb in VERBS}

    async def fails(*_: Any, **__: Any) -> Any:
        raise OverflowError(CANARY)

    PARTS[part](made, fails)
    answer: Answer | None = None
    with suppress(BrokenOff):
        answer = await made.ask(chat(stream=stream))
    for verb, method in kept.items():
        setattr(made.store, verb, method)
    if part in ("identify", "hold"):
        assert answer is not None
        assert (answer.status, answer.error["code"]) == (500, "internal_error")
    elif answer is not None:
        assert answer.status in (200, 500)
        assert answer.complete
    if part in ("identify", "hold", "settle"):
        assert len(lines_of(caplog)) == 1
    else:
        assert len(lines_of(caplog)) <= 1
    assert not any(CANARY in record.getMessage() for record in caplog.records)
    await nothing_is_held(made)
    if part == "settle":
        assert await made.spent() > 0


async def test_a_hosts_own_fault_is_answered_and_is_the_hosts_to_see() -> None:
    """The envelope for the client; the exception goes on, to the host's own error reports."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("the host's")

    made = House(terminal=broken)
    await made.tenant("a")
    async with made.talk(CHAT) as talk:
        answer = Answer([await talk.next(), await talk.next()])
        assert (answer.status, answer.error["code"]) == (500, "internal_error")
        assert answer.headers["x-request-id"] in answer.error["message"]
        with pytest.raises(LookupError, match="the host's"):
            await talk.answer()
    await nothing_is_held(made)


async def test_a_proxy_alone_recovers_too(caplog: pytest.LogCaptureFixture) -> None:
    """No layer round it: the answer has an id all the same, and so has the line."""
    app = ProxyApp(router=Router([FaultyAdapter("request")]))
    answer = await ask(app, CHAT)
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"] in lines_of(caplog)[0]


async def test_a_client_that_has_left_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    """Servers raise OSError for what is sent to nobody: that is theirs, and no line of ours."""
    made = await house()
    async with call(made.app, b"", headers=made.headers()):  # opens what is opened on first use
        pass

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("gone")

    messages = [{"type": "http.request", "body": json.dumps(chat(stream=True)).encode(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()

    with pytest.raises(OSError, match="gone"):
        await made.app(scope_of(headers=made.headers()), receive, send)
    assert lines_of(caplog) == []
    await nothing_is_held(made)


async def test_a_store_that_is_away_while_a_call_settles_is_asked_again() -> None:
    """The answer goes out, the hold stays until the store is back, and is settled then, without a restart."""
    made = await house()
    settle, away = made.store.settle, True

    async def sometimes(*arguments: Any) -> Any:
        if away:
            raise StoreError("away")
        return await settle(*arguments)

    made.store.settle = sometimes  # type: ignore[method-assign, assignment]
    assert (await made.ask()).status == 200
    assert await made.held() > 0
    away = False
    await nothing_is_held(made)
    assert await made.spent() > 0


async def test_a_fault_in_the_admin_api_is_answered_and_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The envelope with an id that the log has too; nothing goes on to the server, whose log would tell its words."""
    monkeypatch.setenv("GATEWAY_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("GATEWAY_ADMIN_KEY", "k" * 40)
    settings.forget()
    try:
        app = create_app()

        async def fails(*_: Any, **__: Any) -> Any:
            raise OverflowError(CANARY)

        monkeypatch.setattr(SQLTenants, "tenants", fails)
        headers = [(b"authorization", b"Bearer " + b"k" * 40)]
        answer = await get(app, "/api/tenants", headers=headers)
        assert (answer.status, answer.error["code"]) == (500, "internal_error")
        (line,) = lines_of(caplog)
        assert answer.headers["x-request-id"] in line
        assert answer.headers["x-request-id"] in answer.error["message"]
        assert CANARY not in caplog.text + answer.body.decode()
        assert (await get(app, "/health")).status == 200
    finally:
        settings.forget()
