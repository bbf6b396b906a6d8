"""The answer of an exchange: watched, and ended once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_llm_gateway.records import Usage

from .exchange_parts import Sent, exchange_for


async def test_layers_headers_stand_on_the_answer() -> None:
    """The entry adds them to the start; the message that was given is left as it was."""
    exchange, sent = exchange_for(), Sent()
    send = exchange.wrap(sent.send)
    exchange.headers.append((b"x-a", b"1"))
    start = {"type": "http.response.start", "status": 201}
    await send(start)
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    assert exchange.first_byte_at is None
    await send({"type": "http.response.body", "body": b"x"})
    assert sent.messages[0]["headers"] == [(b"x-a", b"1")]
    assert "headers" not in start
    assert exchange.status == 201
    assert exchange.response_started
    assert exchange.first_byte_at is not None


async def test_unknown_messages_go_through() -> None:
    """Trailers and extensions are forwarded as they are."""
    exchange, sent = exchange_for(), Sent()
    send = exchange.watch(exchange.wrap(sent.send))
    strange = {"type": "http.response.debug", "info": {}}
    await send(strange)
    assert sent.messages == [strange]


async def test_a_strangers_json_answer_is_watched() -> None:
    """Its usage is read from the bytes, and every message goes on unchanged."""
    exchange, sent = exchange_for(), Sent()
    send = exchange.watch(exchange.wrap(sent.send))
    body = json.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode()
    messages = [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]},
        {"type": "http.response.body", "body": body[:9], "more_body": True},
        {"type": "http.response.body", "body": body[9:]},
    ]
    for message in messages:
        await send(message)
    assert exchange.usage == Usage(3, 4)
    assert sent.messages == messages


async def test_a_strangers_event_stream_is_watched() -> None:
    """Each event goes out when it came in; the last counts reported stand."""
    exchange, sent = exchange_for(), Sent()
    send = exchange.watch(exchange.wrap(sent.send))
    events = [
        b'data: {"choices":[]}\n\n',
        b'data: {"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
        b"data: [DONE]\n\n",
    ]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"text/event-stream")]})
    for at, event in enumerate(events):
        await send({"type": "http.response.body", "body": event, "more_body": True})
        assert sent.messages[-1]["body"] == event, at
        assert exchange.ended == (at > 0), "the last news end it"
    await send({"type": "http.response.body", "body": b""})
    assert exchange.usage == Usage(3, 4)


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_an_error_answer_is_not_read_for_usage(status: int) -> None:
    """Whatever an error's body says, nothing was used."""
    exchange, sent = exchange_for(), Sent()
    send = exchange.watch(exchange.wrap(sent.send))
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'})
    assert exchange.usage is None
    assert exchange.ended


async def test_usage_is_watched_once() -> None:
    """The second watcher gets its ``send`` back."""
    exchange, sent = exchange_for(), Sent()
    watched = exchange.watch(sent.send)
    assert watched != sent.send
    assert exchange.watch(watched) is watched


@pytest.mark.parametrize("itself", [True, False])
async def test_the_watcher_is_silent_where_somebody_knows_better(itself: bool) -> None:
    """``exact``: a handler sets the usage itself; ``ends_itself``: ProxyApp sees to the end, too."""
    exchange, sent = exchange_for(), Sent()
    send = exchange.watch(sent.send)
    exchange.exact = True
    exchange.ends_itself = itself
    exchange.usage = Usage(1, 1)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'})
    assert exchange.usage == Usage(1, 1)
    assert exchange.reader is None
    assert exchange.ended != itself


async def test_work_at_the_end_is_done_innermost_first_and_once() -> None:
    """Before the last message goes out, and never again."""
    exchange, sent = exchange_for(), Sent()
    done: list[str] = []

    def note(name: str) -> Any:
        async def work() -> None:
            assert sent.messages[-1]["type"] == "http.response.start"
            done.append(name)

        return work

    exchange.at_end(note("outer"))
    exchange.at_end(note("inner"))
    send = exchange.watch(exchange.wrap(sent.send))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})
    assert done == ["inner", "outer"]
    await exchange.end()
    assert done == ["inner", "outer"]
    assert exchange.ended
