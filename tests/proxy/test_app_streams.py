"""ProxyApp: streams, their usage, and how they end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from asgi_llm_gateway import settings
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import Usage

from ..conversation import CHAT, ask
from ..upstream import (
    ANSWER,
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    USAGE,
    Peer,
    always,
    chunk,
    event,
    once,
    streaming,
    then_stall,
    until,
    usage_event,
    whole,
    word,
)
from .single import ASKED, QUICK, STREAMED, gateway, used, without_secrets


async def test_usage_is_asked_for_and_its_event_dropped() -> None:
    """The client did not ask for it; the gateway needs it."""
    said = [word("a"), word("b", "stop"), usage_event(), DONE]
    async with gateway(streaming(*said)) as (app, server):
        answer, exchange = await used(app, STREAMED)
        assert answer.body == b"".join([said[0], said[1], said[3]])
        assert server.requests[0].json()["stream_options"] == {"include_usage": True}
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.complete
    assert exchange.usage == Usage(3, 5)
    assert [one.usage for one in exchange.calls] == [Usage(3, 5)]


@pytest.mark.parametrize("options", [{"include_usage": False}, {"other": 1}])
async def test_the_clients_stream_options_are_kept(options: dict[str, Any]) -> None:
    """Only ``include_usage`` is set."""
    async with gateway(streaming(word("a", "stop"), usage_event(), DONE)) as (app, server):
        answer = await ask(app, {**STREAMED, "stream_options": options})
        assert server.requests[0].json()["stream_options"] == {**options, "include_usage": True}
        assert answer.body == word("a", "stop") + DONE


async def test_a_client_that_asks_for_usage_gets_it() -> None:
    """Then the request goes up and the stream comes down byte for byte."""
    said = [
        word("a", "stop"),
        b'data: {"choices" : [], "usage" : {"prompt_tokens": 3, "completion_tokens": 5}}\n\n',
        DONE,
    ]
    raw = json.dumps({**STREAMED, "stream_options": {"include_usage": True}}, indent=1).encode()
    async with gateway(streaming(*said)) as (app, server):
        answer = await ask(app, raw)
        assert answer.body == b"".join(said)
        assert server.requests[0].body == raw


async def test_a_usage_event_that_holds_content_is_kept() -> None:
    """Some vendors report on the last chunk of content."""
    last = event({"choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": "stop"}], "usage": USAGE})
    async with gateway(streaming(word("a"), last, DONE)) as (app, _):
        answer, exchange = await used(app, STREAMED)
    assert answer.body == word("a") + last + DONE
    assert exchange.usage == Usage(3, 5)


async def test_usage_is_not_asked_for_where_the_vendor_does_not_know_it() -> None:
    """A row of the table says so."""
    async with gateway(streaming(word("a", "stop"), DONE), name="mistral") as (app, server):
        await ask(app, {**STREAMED, "model": "mistral/large"})
        assert server.requests[0].json() == {**STREAMED, "model": "large"}


async def test_a_stream_that_reports_no_usage_is_estimated() -> None:
    """Never nothing, and marked so."""
    async with gateway(streaming(word("a"), word("b", "stop"), DONE)) as (app, _):
        _, exchange = await used(app, STREAMED)
    assert exchange.usage is not None
    assert exchange.usage.estimated
    assert exchange.usage.completion >= 2
    assert exchange.usage.prompt > 0


async def test_a_stream_that_was_not_asked_for_is_relayed() -> None:
    """The provider's content type decides, not the request."""
    async with gateway(streaming(word("a", "stop"), DONE)) as (app, _):
        assert (await ask(app, ASKED)).body == word("a", "stop") + DONE


async def test_json_in_place_of_a_stream_is_relayed() -> None:
    """The other way round."""
    async with gateway(always(whole())) as (app, _):
        assert (await ask(app, STREAMED)).json() == ANSWER


async def test_an_error_in_a_stream_ends_it() -> None:
    """The provider's words in the gateway's envelope, once, and no ``[DONE]`` after it."""
    said = [word("a"), event({"error": {"message": "overloaded", "code": 502}})]
    async with gateway(streaming(*said, gap=0.05)) as (app, _):
        answer = await ask(app, STREAMED)
    assert answer.body.startswith(said[0])
    assert json.loads(answer.events[-1])["error"]["message"] == "overloaded"
    assert len(answer.events) == 2
    assert answer.complete


CUT_STREAMS: dict[str, Sequence[bytes]] = {
    "cut": (STREAM_HEAD, chunk(word("a"))),
    "ended early": (STREAM_HEAD, chunk(word("a")), LAST_CHUNK),
    "half an event": (STREAM_HEAD, chunk(word("a")), chunk(word("b")[:-4]), LAST_CHUNK),
    "broken framing": (STREAM_HEAD, chunk(word("a")), b"zz\r\n"),
    "finished, then half an event": (STREAM_HEAD, chunk(word("a")), chunk(word("b", "stop")[:-4]), LAST_CHUNK),
}


@pytest.mark.parametrize("fault", CUT_STREAMS)
async def test_a_stream_that_dies_ends_in_one_error(fault: str) -> None:
    """One in-band event, no ``[DONE]``, and what was whole before it."""
    async with gateway(once(*CUT_STREAMS[fault])) as (app, server):
        answer = await ask(app, STREAMED)
        without_secrets(answer, server)
    assert answer.status == 200
    assert answer.complete
    *before, last = answer.events
    assert json.loads(last)["error"]["type"] == "upstream_error"
    assert answer.body.startswith(word("a"))
    assert len(before) == 1
    assert "[DONE]" not in answer.events


async def test_a_stream_that_stalls_ends_in_one_error() -> None:
    """The idle time-out, in the stream."""
    async with gateway(then_stall(STREAM_HEAD, chunk(word("a"))), timeouts=QUICK) as (app, server):
        answer = await ask(app, STREAMED)
        assert json.loads(answer.events[-1])["error"]["code"] == "upstream_timeout"
        assert len(answer.events) == 2
        await until(lambda: server.aborted == 1)


@pytest.mark.parametrize(
    "later", [(), (b": bye\n\n",) * 5, (usage_event(),), (usage_event(), b": bye\n\n", b": bye\n\n")]
)
async def test_a_stream_without_done_that_was_finished_ends_as_it_came(later: tuple[bytes, ...]) -> None:
    """``finish_reason`` said that it is whole, whatever trails after it."""
    async with gateway(streaming(word("a"), word("b", "stop"), *later)) as (app, _):
        answer = await ask(app, STREAMED)
    assert answer.body == word("a") + word("b", "stop") + b"".join(one for one in later if b"usage" not in one)
    assert answer.complete


async def test_an_event_without_end_is_given_up_on() -> None:
    """Its beginning is not held for ever."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD, chunk(word("a")), chunk(b"data: "))
        for _ in range(1000):
            await peer.send(chunk(b"x" * 65536))

    async with gateway(script) as (app, server):
        answer = await ask(app, STREAMED)
        assert len(answer.events) == 2
        assert json.loads(answer.events[-1])["error"]["type"] == "upstream_error"
        await until(lambda: server.aborted == 1)


async def test_streaming_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """By argument, and by ENABLE_STREAMING."""
    async with gateway(always(whole()), streaming=False) as (app, server):
        answer = await ask(app, STREAMED)
        assert (answer.status, answer.error["code"]) == (400, "streaming_disabled")
        assert (await ask(app, ASKED)).status == 200
        assert len(server.requests) == 1
    monkeypatch.setenv("ENABLE_STREAMING", "false")
    settings.forget()
    answer = await ask(ProxyApp(router=Router([EchoAdapter()])), {**CHAT, "stream": True})
    assert (answer.status, answer.error["code"]) == (400, "streaming_disabled")
