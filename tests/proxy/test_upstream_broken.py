"""The upstream client: what is no valid answer."""

from __future__ import annotations

import pytest

from asgi_llm_gateway.proxy.http1 import MAX_HEADER_BYTES, MAX_HEADERS
from asgi_llm_gateway.proxy.transfer import TransferError

from ..upstream import LAST_CHUNK, STREAM_HEAD, Peer, always, chunk, head, once, until, upstream, whole, word
from .clients import client_of, every_client, failure_of, fetch, request_to

BROKEN: dict[str, tuple[bytes, str]] = {
    "garbage": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "protocol"),
    "no status": (b"HTTP/1.1 \r\n\r\n", "protocol"),
    "length and chunks": (
        head(200, ("Content-Length", "5"), ("Transfer-Encoding", "chunked")) + chunk(b"hello") + LAST_CHUNK,
        "protocol",
    ),
    "two lengths": (head(200, ("Content-Length", "2"), ("Content-Length", "3")) + b"{}\n", "protocol"),
    "length of words": (head(200, ("Content-Length", "many")) + b"{}", "protocol"),
    "negative length": (head(200, ("Content-Length", "-1")) + b"{}", "protocol"),
    "length beyond 64 bits": (head(200, ("Content-Length", "9" * 30)) + b"{}", "protocol"),
    "bad chunk size": (head(200, ("Transfer-Encoding", "chunked")) + b"zz\r\nhello\r\n", "protocol"),
    "header without colon": (b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", "protocol"),
    "space before the colon": (b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}", "protocol"),
    "folded header": (b"HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\ncontent-length: 2\r\n\r\n{}", "protocol"),
    "another protocol": (
        head(101, ("Upgrade", "websocket"), ("Connection", "upgrade"), reason="Switching"),
        "protocol",
    ),
    "two answers": (whole() + whole(b'{"second": 1}'), "protocol"),
    "more than its length": (head(200, ("Content-Length", "2")) + b"{} and more", "protocol"),
    "less than its length": (whole()[:-3], "cut"),
    "no last chunk": (head(200, ("Transfer-Encoding", "chunked")) + chunk(b"{}"), "cut"),
    "half a chunk": (head(200, ("Transfer-Encoding", "chunked")) + b"10\r\n{}", "cut"),
    "half a head": (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-a: 1\r\n", "cut"),
    "half a head after an interim one": (
        head(100, reason="Continue") + b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-a: 1\r\n",
        "cut",
    ),
    "only an interim answer": (head(102, reason="Processing"), "cut"),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("reused", [False, True], ids=["fresh", "reused"])
@pytest.mark.parametrize("cut", [1, 10_000])
async def test_a_broken_answer_is_never_taken_for_one(fault: str, reused: bool, cut: int) -> None:
    """Ours refuses what could be read in two ways, on a fresh connection and on a kept one, in any cut."""
    raw, kind = BROKEN[fault]

    async def script(peer: Peer) -> None:
        if reused:
            await peer.request()
            await peer.send(whole())
        await peer.request()
        await peer.send(*(raw[at : at + cut] for at in range(0, len(raw), cut)))

    async with upstream(script) as server, client_of("own") as client:
        if reused:
            await fetch(client, request_to(server.url()))
        if cut == 1 and fault in ("two answers", "more than its length"):
            # What comes after a whole answer comes too late to spoil it; the connection is not used again.
            await fetch(client, request_to(server.url()))
            await until(lambda: server.open == 0)
        else:
            error = await failure_of(client, request_to(server.url()))
            assert (error.kind, error.received) == (kind, True)
        assert len(server.requests) == 1 + reused


@pytest.mark.parametrize("kind", ["httpx", "httpx2"])
@pytest.mark.parametrize("fault", ["garbage", "less than its length", "no last chunk", "half a chunk", "half a head"])
async def test_httpx_reports_a_broken_answer_in_our_words(kind: str, fault: str) -> None:
    """Its own exceptions never come out."""
    raw, expected = BROKEN[fault]
    async with upstream(once(raw)) as server, client_of(kind) as client:
        error = await failure_of(client, request_to(server.url()))
    assert error.kind == ("cut" if fault == "half a head" else expected) or error.kind == "protocol"


@every_client
@pytest.mark.parametrize(
    "beginning", [b"", whole()[:-5], STREAM_HEAD + chunk(word("one"))], ids=["none", "json", "sse"]
)
async def test_a_reset_connection_is_cut(kind: str, beginning: bytes) -> None:
    """RST, before the answer and in it."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(beginning, gap=0.05)
        peer.reset()

    async with upstream(script) as server, client_of(kind) as client:
        assert (await failure_of(client, request_to(server.url()))).kind == "cut"
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("raw", "accepted"),
    [
        (head(200, *((f"x-{at}", "v") for at in range(MAX_HEADERS - 1)), ("content-length", "0")), True),
        (head(200, *((f"x-{at}", "v") for at in range(MAX_HEADERS)), ("content-length", "0")), False),
        (head(200, ("x-big", "v" * (MAX_HEADER_BYTES - 100)), ("content-length", "0")), True),
        (head(200, ("x-big", "v" * MAX_HEADER_BYTES), ("content-length", "0")), False),
        (head(200, *((f"x-{at}", "v" * 1000) for at in range(66)), ("content-length", "0")), False),
    ],
    ids=["256 headers", "257 headers", "64 KiB", "over 64 KiB", "over 64 KiB together"],
)
async def test_headers_are_bounded(raw: bytes, accepted: bool) -> None:
    """At most 256 of them, at most 64 KiB."""
    async with upstream(always(raw)) as server, client_of("own") as client:
        if accepted:
            assert (await fetch(client, request_to(server.url())))[0] == 200
        else:
            assert (await failure_of(client, request_to(server.url()))).kind == "protocol"


@pytest.mark.parametrize(
    "line", [b"HTTP/1.1 200 ", b"HTTP/1.1 200 OK\r\nx-a: ", b"HTTP/1.1 200 OK\r\nx-"], ids=["reason", "value", "name"]
)
async def test_a_head_that_never_ends_is_given_up_on(line: bytes) -> None:
    """A line without an end must not fill the memory."""

    async def script(peer: Peer) -> None:
        peer.narrow()
        await peer.request()
        await peer.send(line)
        while peer.sent < 2**26:
            await peer.send(b"a" * 65536)

    async with upstream(script) as server, client_of("own") as client:
        assert (await failure_of(client, request_to(server.url()))).kind == "protocol"
        await until(lambda: server.aborted == 1)


@pytest.mark.parametrize("piece", [b"a" * 65536, b"x-a: b\r\n" * 8192], ids=["one line", "many"])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_trailers_without_end_are_given_up_on(kind: str, piece: bytes) -> None:
    """What follows the body is bounded as the head is."""

    async def script(peer: Peer) -> None:
        peer.narrow()
        await peer.request()
        await peer.send(head(200, ("content-type", kind), ("transfer-encoding", "chunked")))
        await peer.send(b"2\r\n{}\r\n0\r\nx-a: ")
        while peer.sent < 2**26:
            await peer.send(piece)

    async with upstream(script) as server, client_of("own") as client:
        with pytest.raises(TransferError) as caught:
            await fetch(client, request_to(server.url()))
        assert caught.value.kind == "protocol"
        await until(lambda: server.aborted == 1)


async def test_interim_answers_without_end_are_given_up_on() -> None:
    """They count as a head that does not end."""

    async def script(peer: Peer) -> None:
        await peer.request()
        while peer.sent < 2**26:
            await peer.send(head(100, reason="Continue") * 100)

    async with upstream(script) as server, client_of("own") as client:
        assert (await failure_of(client, request_to(server.url()))).kind == "protocol"
        await until(lambda: server.aborted == 1)


@pytest.mark.parametrize("word_", ["without sending", "whatever"])
def test_an_error_that_is_not_httpx_own_stays_what_it_is(word_: str) -> None:
    """A bug of ours is not dressed up as the provider's."""
    from asgi_llm_gateway.proxy.httpx_flight import _translated

    bug = ValueError(word_)
    assert _translated(bug, False) is bug
