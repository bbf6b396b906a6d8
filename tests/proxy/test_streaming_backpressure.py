"""Streams through a real uvicorn: readers that are slow, and many at once."""

from __future__ import annotations

import asyncio

import pytest

from asgi_llm_gateway.records import Usage

from ..upstream import DONE, LAST_CHUNK, STREAM_HEAD, Peer, chunk, upstream, usage_event, whole, word
from .sockets import ASKED, SHAPES, Noting, answer_of, blocked, caller, every_server, every_way, proxy, serving


@every_way
@pytest.mark.parametrize("answer", ["stream", "json"])
async def test_a_client_that_reads_nothing_holds_the_provider_back(server: str, shape: str, answer: str) -> None:
    """A bounded amount is under way, kernel buffers included; all of it arrives when it is read."""
    one = word("x" * 8000) * 8
    count = 2**26 // len(one)
    peers: list[Peer] = []

    async def floods(peer: Peer) -> None:
        peers.append(peer)
        peer.narrow()
        await peer.request()
        if answer == "json":
            await peer.send(whole(b"", headers=[]).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        else:
            await peer.send(STREAM_HEAD)
        for _ in range(count):
            await peer.send(chunk(one))
        await peer.send(LAST_CHUNK)

    async with upstream(floods) as provider:
        with serving(SHAPES[shape](proxy(provider)), server) as port:
            async with caller(port) as client:
                client.post()
                await client.head()
                held = await blocked(lambda: peers[0].sent)
                assert held < (24 if answer == "stream" else 40) * 2**20
                rest = await client.rest()
                assert rest[: count * len(one)] == one * count


@every_server
async def test_a_slow_reader_does_not_slow_another(server: str) -> None:
    """One client reads nothing; another's stream goes on event by event, over the same gateway."""
    go = asyncio.Semaphore(0)
    flooding: list[Peer] = []

    async def floods(peer: Peer) -> None:
        flooding.append(peer)
        await peer.request()
        await peer.send(STREAM_HEAD)
        while True:
            await peer.send(chunk(word("x" * 8000)) * 8)

    async def steps(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD)
        for at in range(50):
            await go.acquire()
            await peer.send(chunk(word(str(at))))
        await peer.stall()

    async with upstream(floods, steps) as provider:
        with serving(proxy(provider), server) as port:
            async with caller(port) as slow, caller(port) as quick:
                slow.post()
                await slow.head()
                await blocked(lambda: flooding[0].sent)
                quick.post()
                go.release()
                await quick.head()
                assert await quick.piece() == word("0")
                for at in range(1, 50):
                    go.release()
                    assert await quick.piece() == word(str(at))


async def test_two_hundred_streams_at_once_are_all_exact() -> None:
    """200 streams of 200 events on one worker: each gets its own events, all of them, in order."""
    everybody = asyncio.Event()

    async def script(peer: Peer) -> None:
        asked = (await peer.request()).json()
        await peer.send(STREAM_HEAD)
        if len(provider.requests) == 200:
            everybody.set()
        await everybody.wait()
        for at in range(200):
            await peer.send(chunk(word(f"{asked['user']}:{at}")))
        await peer.send(chunk(word("", "stop") + usage_event() + DONE), LAST_CHUNK)

    async def one(port: int, at: int) -> None:
        expected = b"".join(word(f"{at}:{number}") for number in range(200)) + word("", "stop") + DONE
        assert await answer_of(port, {**ASKED, "user": str(at)}) == expected

    async with upstream(script) as provider:
        app = Noting(proxy(provider))
        with serving(app, "httptools on uvloop") as port:
            await asyncio.gather(*(one(port, at) for at in range(200)))
            assert provider.aborted == 0
    assert [exchange.usage for exchange in app.exchanges] == [Usage(3, 5)] * 200
