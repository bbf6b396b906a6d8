"""ProxyApp: how a call ends, be its answer long or its client gone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from asgi_llm_gateway.exchange import Exchange
from asgi_llm_gateway.proxy.transfer import BUFFER_LIMIT
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.wire import Table

from ..conversation import JSON, call, scope_of
from ..upstream import (
    DONE,
    STREAM_HEAD,
    USAGE,
    always,
    chunk,
    once,
    streaming,
    then_stall,
    until,
    usage_event,
    whole,
    word,
)
from .single import ASKED, STREAMED, gateway, kept, used


async def test_a_long_answer_goes_on_in_pieces_with_its_usage() -> None:
    """Over 8 MiB it is not put together; its usage stands at the end."""
    body = json.dumps({"data": "x" * (BUFFER_LIMIT + 3_000_000), "usage": USAGE}).encode()
    async with gateway(always(whole(body))) as (app, _):
        answer, exchange = await used(app, ASKED)
    assert answer.status == 200
    assert answer.body == body
    assert len(answer.messages) > 3
    assert exchange.usage == Usage(3, 5)


async def test_an_answer_of_middle_size_is_one_piece() -> None:
    """Some megabytes of embeddings, say; the usage is read."""
    body = json.dumps({"data": "x" * 3_000_000, "usage": USAGE}).encode()
    async with gateway(always(whole(body))) as (app, _):
        answer, exchange = await used(app, ASKED)
    assert (answer.body == body, len(answer.messages), exchange.usage) == (True, 2, Usage(3, 5))


async def test_a_long_answer_that_is_cut_is_not_complete() -> None:
    """The client must not take it for whole."""
    body = json.dumps({"data": "x" * (BUFFER_LIMIT + 3_000_000), "usage": USAGE}).encode()
    async with gateway(once(whole(body)[:-100])) as (app, _), call(app, ASKED) as talk:
        await asyncio.wait({talk.task}, timeout=20)
        assert talk.task.exception() is not None
        messages = [await talk.next() for _ in range(2)]
    assert messages[0]["status"] == 200
    assert messages[1]["more_body"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_to_be_done_at_the_end_is_done_before_the_end_goes_out(stream: bool) -> None:
    """The money is settled before the client has the last of its answer."""
    async with gateway(streaming(word("a", "stop"), usage_event(), DONE) if stream else always(whole())) as (app, _):
        scope = scope_of(headers=(JSON,))
        exchange = Exchange(app, Table().match(scope), scope)
        released = asyncio.Event()
        done: list[Usage | None] = []

        async def settle() -> None:
            await released.wait()
            done.append(exchange.usage)

        exchange.at_end(settle)
        async with call(app, {**ASKED, "stream": stream}, **kept(exchange)) as talk:
            if stream:
                await talk.next()
                assert (await talk.next())["body"] == word("a", "stop")
            with pytest.raises(TimeoutError):
                await talk.next(timeout=0.1)
            assert done == []
            released.set()
            answer = await talk.answer()
        assert answer.complete
        assert done == [Usage(3, 5)]


# -- hang-ups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beginning", [(), (whole()[:-9],), (STREAM_HEAD,), (STREAM_HEAD, chunk(word("a")))])
async def test_a_client_that_leaves_ends_the_call_upstream(beginning: tuple[bytes, ...]) -> None:
    """Before the answer, in it, before the first token and after it."""
    async with gateway(then_stall(*beginning)) as (app, server), call(app, STREAMED) as talk:
        await until(lambda: len(server.requests) == 1)
        if len(beginning) == 2:
            await talk.next()
            await talk.next()
        await talk.hang_up()
        await until(lambda: server.aborted == 1)
        assert server.open == 0


async def test_a_client_that_leaves_while_its_body_comes_asks_nothing() -> None:
    """No request goes up for nobody."""
    messages = [{"type": "http.request", "body": b'{"model"', "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    async with gateway(always(whole())) as (app, server):
        await app(scope_of(headers=(JSON,)), receive, send)
        assert server.connections == 0
