"""Streams through a real uvicorn: what comes goes on at once, as it came."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from ..upstream import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Authority,
    Peer,
    chunk,
    streaming,
    until,
    upstream,
    usage_event,
    word,
)
from .sockets import ASKED, SHAPES, Noting, answer_of, caller, every_server, every_way, proxy, serving


@every_way
async def test_each_event_goes_on_when_it_came(server: str, shape: str) -> None:
    """The provider says the next one only after the client has the last: nothing is held back."""
    go = asyncio.Semaphore(0)
    said = [word(str(at)) for at in range(8)] + [b": a comment\n\n", word("", "stop")]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD)
        for one in [*said, usage_event(), DONE]:
            await go.acquire()
            await peer.send(chunk(one))
        await peer.send(LAST_CHUNK)

    async with upstream(script) as provider:
        with serving(SHAPES[shape](proxy(provider)), server) as port:
            async with caller(port) as client:
                client.post()
                go.release()  # the head goes out with the first event, which might have been an error
                assert await client.head() == 200
                assert await client.piece() == said[0]
                for one in said[1:]:
                    go.release()
                    assert await client.piece() == one
                go.release()  # the usage event: not for the client
                go.release()
                assert (await client.piece(), await client.piece()) == (DONE, b"")
                assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
                assert client.headers["cache-control"] == "no-cache"


@every_server
async def test_what_came_together_goes_on_together(server: str) -> None:
    """One read, one send; and half an event waits for its other half."""
    together = b"".join(word(str(at)) for at in range(20))
    half = word("half")
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD)
        await peer.send(chunk(word("first")))
        await go.wait()
        await peer.send(chunk(together + half[:9]))
        await peer.send(chunk(half[9:] + DONE), LAST_CHUNK)

    async with upstream(script) as provider:
        with serving(proxy(provider), server) as port:
            async with caller(port) as client:
                client.post()
                await client.head()
                assert await client.piece() == word("first")
                go.set()
                first = await client.piece()
                assert first.startswith(together)
                assert first + await client.rest() == together + half + DONE


@every_server
async def test_a_kept_connection_carries_the_next_stream(server: str) -> None:
    """Client and provider both keep theirs: five streams, one connection each."""
    said = [word("a"), word("b", "stop"), usage_event(), DONE]
    async with upstream(streaming(*said)) as provider:
        with serving(proxy(provider), server) as port:
            async with caller(port) as client:
                for _ in range(5):
                    client.post()
                    assert await client.head() == 200
                    assert await client.rest() == said[0] + said[1] + said[3]
            assert (provider.connections, len(provider.requests)) == (1, 5)


async def test_a_stream_over_tls_comes_as_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On uvloop, verified by the authorities that the system names."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file()))
    said = [word("x" * 1000) for _ in range(200)]
    script = streaming(*said, word("", "stop"), DONE)
    async with upstream(script, tls=authority.serving()) as provider:
        with serving(proxy(provider), "httptools on uvloop") as port:
            assert await answer_of(port) == b"".join([*said, word("", "stop"), DONE])


@every_server
@pytest.mark.parametrize("last", [usage_event(), DONE], ids=["usage", "done"])
async def test_the_last_news_wait_until_the_money_is_settled(server: str, last: bytes) -> None:
    """``end`` is awaited before the usage event or ``[DONE]`` goes on, in the midst of the quick way too."""
    settled = threading.Event()
    go = asyncio.Semaphore(0)

    async def settle() -> None:
        await until(settled.is_set)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD)
        for one in (*(word(str(at)) for at in range(5)), word("", "stop"), last):
            await go.acquire()
            await peer.send(chunk(one))
        await peer.send(LAST_CHUNK)

    async with upstream(script) as provider:
        with serving(Noting(proxy(provider), settle), server) as port:
            async with caller(port) as client:
                client.post({**ASKED, "stream_options": {"include_usage": True}})
                go.release()
                await client.head()
                await client.piece()
                for _ in range(5):
                    go.release()
                    await client.piece()
                go.release()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await client.piece()
                settled.set()
                assert await client.rest() == last
