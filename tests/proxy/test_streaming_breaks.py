"""Streams through a real uvicorn: the client hangs up, or the provider dies."""

from __future__ import annotations

import asyncio
import json

import pytest

from ..upstream import (
    HOST,
    LAST_CHUNK,
    STREAM_HEAD,
    Peer,
    always,
    chunk,
    once,
    then_stall,
    until,
    upstream,
    whole,
    word,
)
from .sockets import SHAPES, answer_of, blocked, caller, every_server, every_way, proxy, serving


@every_way
@pytest.mark.parametrize(
    "moment", ["before the answer", "in a json answer", "before the first token", "mid-stream", "deep in the stream"]
)
async def test_a_hang_up_closes_the_upstream(server: str, shape: str, moment: str) -> None:
    """At once, whatever is being waited for, and the connection is not kept."""
    said: dict[str, tuple[bytes, ...]] = {
        "before the answer": (),
        "in a json answer": (whole()[:-9],),
        "before the first token": (STREAM_HEAD,),
        "mid-stream": (STREAM_HEAD, chunk(word("a"))),
        "deep in the stream": (STREAM_HEAD, *(chunk(word("a")) for _ in range(20))),
    }
    async with upstream(then_stall(*said[moment])) as provider:
        with serving(SHAPES[shape](proxy(provider)), server) as port:
            for calls, rudely in ((1, False), (2, True)):
                async with caller(port) as client:
                    client.post()
                    await until(lambda calls=calls: len(provider.requests) == calls)  # type: ignore[misc]
                    if "stream" in moment:
                        await client.head()
                    came = b""
                    while len(came) < len(word("a")) * (len(said[moment]) - 1) and "stream" in moment:
                        came += await client.piece()
                    client.leave(rudely=rudely)
                    await until(lambda calls=calls: provider.aborted == calls)  # type: ignore[misc]
            assert provider.open == 0


@every_way
async def test_a_client_that_stopped_reading_and_leaves_closes_the_upstream(server: str, shape: str) -> None:
    """The gateway waits in ``send`` then, not for the provider."""
    peers: list[Peer] = []

    async def floods(peer: Peer) -> None:
        peers.append(peer)
        peer.narrow()
        await peer.request()
        await peer.send(STREAM_HEAD)
        while True:
            await peer.send(chunk(word("x" * 8000)) * 8)

    async with upstream(floods) as provider:
        with serving(SHAPES[shape](proxy(provider)), server) as port:
            async with caller(port) as client:
                client.post()
                await client.head()
                await blocked(lambda: peers[0].sent)
                client.leave(rudely=True)
                await until(lambda: provider.aborted == 1)


@every_server
async def test_a_client_that_leaves_is_no_error(server: str, caplog: pytest.LogCaptureFixture) -> None:
    """No traceback, no unfinished task, and the gateway goes on."""
    async with upstream(then_stall(STREAM_HEAD, chunk(word("a"))), always(whole())) as provider:
        with serving(proxy(provider), server) as port:
            async with caller(port) as client:
                client.post()
                await client.head()
                await client.piece()
                client.leave()
                await until(lambda: provider.aborted == 1)
            assert json.loads(await answer_of(port))["object"] == "chat.completion"
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


# -- an upstream that dies ---------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("how", ["close", "reset", "garbage"])
async def test_an_upstream_that_dies_ends_in_one_error_event(server: str, shape: str, how: str) -> None:
    """What was whole, then exactly one ``error``, no ``[DONE]``, and a proper end of the answer."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD, *(chunk(word("a")) for _ in range(5)))
        await go.wait()  # a reset throws away what was not read yet
        if how == "garbage":
            await peer.send(b"zz\r\n")
        elif how == "reset":
            peer.reset()

    async with upstream(script) as provider:
        with serving(SHAPES[shape](proxy(provider)), server) as port:
            async with caller(port) as client:
                client.post()
                await client.head()
                came = b""
                while len(came) < 5 * len(word("a")):
                    came += await client.piece()
                go.set()
                last = await client.rest()
    assert came == word("a") * 5
    assert last.startswith(b"data: ")
    assert last.endswith(b"\n\n")
    assert last.count(b"\n\n") == 1
    error = json.loads(last[6:])["error"]
    assert error["type"] == "upstream_error"
    assert HOST not in error["message"]


@every_server
async def test_a_finished_stream_without_done_ends_as_it_came(server: str) -> None:
    """llama-cpp-python and others: the last event says why it ended."""
    async with upstream(
        once(STREAM_HEAD, chunk(word("a")), chunk(word("b", "stop")), LAST_CHUNK, gap=0.01)
    ) as provider:
        with serving(proxy(provider), server) as port:
            assert await answer_of(port) == word("a") + word("b", "stop")
