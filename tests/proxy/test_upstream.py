"""The upstream client against a server that misbehaves: ours, httpx and httpx2."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.base import Endpoint, UpstreamRequest
from asgi_llm_gateway.errors import Header
from asgi_llm_gateway.proxy import upstream as package
from asgi_llm_gateway.proxy.clients import Client, HTTPXClient, open_client, proxied
from asgi_llm_gateway.proxy.http1 import MAX_HEADER_BYTES, MAX_HEADERS, Connection
from asgi_llm_gateway.proxy.transfer import BUFFER_LIMIT, Flight, Timeouts, TransferError
from asgi_llm_gateway.proxy.upstream import UpstreamClient, prepare

from ..upstream import (
    ANSWER,
    HOST,
    LAST_CHUNK,
    STREAM_HEAD,
    Authority,
    Peer,
    Script,
    Upstream,
    always,
    chunk,
    head,
    once,
    refused_port,
    silent,
    then_stall,
    until,
    upstream,
    whole,
    word,
)

KINDS = ("own", "httpx", "httpx2")
every_client = pytest.mark.parametrize("kind", KINDS)
GENEROUS = Timeouts(connect=20, write=20, first_byte=20, idle=20, total=40)
BODY = json.dumps(ANSWER).encode()


@asynccontextmanager
async def client_of(
    kind: str,
    *,
    timeouts: Timeouts = GENEROUS,
    connections: int = 100,
    keep_alive: float = 30.0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Client]:
    """One of the three clients."""
    if kind == "own":
        own = UpstreamClient(timeouts=timeouts, max_connections=connections, keep_alive=keep_alive, ssl_context=tls)
        try:
            yield own
        finally:
            await own.close()
        return
    library: Any = httpx if kind == "httpx" else httpx2
    waits = library.Timeout(timeouts.first_byte, connect=timeouts.connect, write=timeouts.write, pool=timeouts.connect)
    limits = library.Limits(max_connections=connections, keepalive_expiry=keep_alive)
    async with library.AsyncClient(timeout=waits, limits=limits, verify=tls or True, trust_env=False) as inner:
        yield HTTPXClient(inner, timeouts=timeouts)


def request_to(url: str, body: bytes = b"{}", headers: Sequence[Header] = ()) -> UpstreamRequest:
    """A request, as an adapter makes it."""
    return UpstreamRequest(Endpoint("POST", url, [(b"content-type", b"application/json"), *headers]), body)


async def more(flight: Flight) -> None:
    """Wait for more to take, or for the end."""
    waiting = flight.more()
    if waiting is not None:
        await waiting


async def drain(flight: Flight) -> bytes:
    """All of a started flight's body."""
    parts = [flight.take()]
    while not flight.done:
        await more(flight)
        parts.append(flight.take())
    parts.append(flight.take())
    return b"".join(parts)


async def fetch(client: Client, request: UpstreamRequest) -> tuple[int, dict[bytes, bytes], bytes]:
    """A whole call: status, headers and body."""
    flight = client.open(request)
    try:
        await flight.start()
        return flight.status, dict(flight.headers), await drain(flight)
    finally:
        flight.close()


async def failure_of(client: Client, request: UpstreamRequest) -> TransferError:
    """The error that a call comes to."""
    with pytest.raises(TransferError) as caught:
        await fetch(client, request)
    return caught.value


# -- what goes well ----------------------------------------------------------------------------------------------------

FRAMINGS: dict[str, bytes] = {
    "length": whole(),
    "chunked": head(200, ("Content-Type", "application/json"), ("Transfer-Encoding", "chunked"))
    + chunk(BODY[:7]) + chunk(BODY[7:]) + LAST_CHUNK,
    "trailers": head(200, ("Content-Type", "application/json"), ("Transfer-Encoding", "chunked"))
    + chunk(BODY) + b"0\r\nx-late: 1\r\n\r\n",
    "until close": head(200, ("Content-Type", "application/json")) + BODY,
    "until close, said so": head(200, ("Content-Type", "application/json"), ("Connection", "close")) + BODY,
    "HTTP/1.0": head(200, ("Content-Type", "application/json")).replace(b"HTTP/1.1", b"HTTP/1.0") + BODY,
    "after interim answers": head(100, reason="Continue") + head(103, ("Link", "</a>"), reason="Hints") + whole(),
}  # fmt: skip


@every_client
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("cut", [1, 10_000])
async def test_a_whole_answer_arrives_however_it_is_framed_and_cut(kind: str, framing: str, cut: int) -> None:
    """Length, chunks, the end of the connection, interim answers before it: the body is the same."""
    raw = FRAMINGS[framing]
    pieces = [raw[at : at + cut] for at in range(0, len(raw), cut)]
    async with upstream(once(*pieces)) as server, client_of(kind) as client:
        status, headers, body = await fetch(client, request_to(server.url()))
    assert (status, headers[b"content-type"], body) == (200, b"application/json", BODY)


@every_client
async def test_a_request_arrives_as_it_was_made(kind: str) -> None:
    """Method, path with query, headers, the gateway's extra headers and the body."""
    async with upstream(always(whole())) as server, client_of(kind) as client:
        flight = client.open(
            request_to(server.url("/v1/chat?api-version=1"), b'{"a":1}', [(b"authorization", b"Bearer k")]),
            ((b"x-llm-gateway-hop", b"abc"),),
        )
        await flight.start()
        flight.close()
        asked = server.requests[0]
        assert (asked.method, asked.path, asked.body) == ("POST", "/v1/chat?api-version=1", b'{"a":1}')
        assert asked.headers["host"] == f"{HOST}:{server.port}"
        assert asked.headers["authorization"] == "Bearer k"
        assert asked.headers["x-llm-gateway-hop"] == "abc"
        assert asked.headers["content-length"] == "7"


@every_client
async def test_an_event_stream_is_read_while_it_comes(kind: str) -> None:
    """``start`` returns at the head, and each event can be taken before the next is written."""
    go = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD)
        for at in range(3):
            await go.acquire()
            await peer.send(chunk(word(str(at))))
        await go.acquire()
        await peer.send(LAST_CHUNK)

    async with upstream(script) as server, client_of(kind) as client:
        flight = client.open(request_to(server.url()))
        await flight.start()
        assert (flight.status, flight.done, flight.take()) == (200, False, b"")
        for at in range(3):
            go.release()
            await more(flight)
            assert flight.take() == word(str(at))
        go.release()
        while not flight.done:
            await more(flight)
        flight.close()


@every_client
async def test_an_error_is_read_whole_even_if_it_calls_itself_a_stream(kind: str) -> None:
    """An error's body is wanted in one piece, also where it comes late and as an event stream."""
    late = b'data: {"error": {"message": "slow down"}}\n\n'
    answer = head(429, ("Content-Type", "text/event-stream"), ("Content-Length", str(len(late))), reason="Busy")
    async with upstream(once(answer, late, gap=0.05)) as server, client_of(kind) as client:
        flight = client.open(request_to(server.url()))
        await flight.start()
        assert (flight.status, flight.done, flight.take()) == (429, True, late)
        flight.close()


@every_client
async def test_a_connection_is_used_again(kind: str) -> None:
    """Five calls in turn need one connection, with bodies and without."""

    async def script(peer: Peer) -> None:
        while True:
            asked = await peer.request()
            await peer.send(whole() if asked.body == b"{}" else head(204, reason="No Content"))

    async with upstream(script) as server, client_of(kind) as client:
        found = [
            (await fetch(client, request_to(server.url(), body)))[::2] for body in (b"{}", b"", b"{}", b"", b"{}")
        ]  # fmt: skip
        assert found == [(200, BODY), (204, b""), (200, BODY), (204, b""), (200, BODY)]
        assert server.connections == 1


@every_client
async def test_a_connection_that_the_server_closes_is_not_used_again(kind: str) -> None:
    """``connection: close``, and HTTP/1.0."""
    answers = [whole(headers=[("Connection", "close")]), whole().replace(b"HTTP/1.1", b"HTTP/1.0"), whole()]
    async with upstream(*(always(one) for one in answers)) as server, client_of(kind) as client:
        for expected in (1, 2, 3, 3):
            assert (await fetch(client, request_to(server.url())))[2] == BODY
            assert server.connections == expected


@every_client
async def test_calls_side_by_side_have_connections_of_their_own(kind: str) -> None:
    """Three calls at once are three connections, which then serve the next three."""
    everybody = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            if len(server.requests) == 3:
                everybody.set()
            await everybody.wait()
            await peer.send(whole())

    async with upstream(script) as server, client_of(kind) as client:
        for _ in range(2):
            await asyncio.gather(*(fetch(client, request_to(server.url())) for _ in range(3)))
        assert server.connections == 3


# -- a kept connection that has died -----------------------------------------------------------------------------------


def dies_at_second(*last_words: bytes, wait: float = 0.0) -> Script:
    """Answers one request, and closes on the second."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(whole())
        await peer.request()
        await asyncio.sleep(wait)
        await peer.send(*last_words)

    return script


async def test_a_stale_connection_is_replaced_once() -> None:
    """The server gave the kept connection up: the request is asked again on a fresh one."""
    async with upstream(dies_at_second(), always(whole())) as server, client_of("own") as client:
        for _ in range(2):
            assert (await fetch(client, request_to(server.url())))[2] == BODY
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_a_stale_connection_is_replaced_once_only() -> None:
    """A fresh connection that dies too is the server's failure."""

    async def dies(peer: Peer) -> None:
        await peer.request()

    async with upstream(dies_at_second(), dies) as server, client_of("own") as client:
        await fetch(client, request_to(server.url()))
        error = await failure_of(client, request_to(server.url()))
        assert (error.kind, error.received) == ("cut", False)
        assert (server.connections, len(server.requests)) == (2, 3)


@every_client
async def test_a_fresh_connection_that_dies_is_not_replaced(kind: str) -> None:
    """The server read the request and closed: it may have done the work."""

    async def dies(peer: Peer) -> None:
        await peer.request()

    async with upstream(dies) as server, client_of(kind) as client:
        error = await failure_of(client, request_to(server.url()))
        assert (error.kind, error.received) == ("cut", False)
        assert len(server.requests) == 1


async def test_a_kept_connection_that_said_something_is_not_replaced() -> None:
    """One byte of an answer: the server did take the request."""
    async with upstream(dies_at_second(b"H"), always(whole())) as server, client_of("own") as client:
        await fetch(client, request_to(server.url()))
        error = await failure_of(client, request_to(server.url()))
        assert (error.kind, error.received, server.connections) == ("cut", True, 1)


async def test_a_kept_connection_that_dies_late_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the server may have done the work."""
    monkeypatch.setattr(package, "_STALE_SECONDS", 0.02)
    async with upstream(dies_at_second(wait=0.1), always(whole())) as server, client_of("own") as client:
        await fetch(client, request_to(server.url()))
        assert (await failure_of(client, request_to(server.url()))).kind == "cut"
        assert server.connections == 1


@every_client
async def test_a_connection_closed_while_idle_is_not_used(kind: str) -> None:
    """The server closed the kept connection in peace: the next call does not even try it."""

    async def closes(peer: Peer) -> None:
        await peer.request()
        await peer.send(whole())

    async with upstream(closes) as server, client_of(kind) as client:
        for _ in range(3):
            await fetch(client, request_to(server.url()))
            await until(lambda: server.open == 0)
            await asyncio.sleep(0.02)
        assert (server.connections, len(server.requests)) == (3, 3)


async def test_a_connection_that_idled_too_long_is_closed_and_not_used() -> None:
    """Idle expiry, on our side."""
    async with upstream(always(whole())) as server, client_of("own", keep_alive=-1.0) as client:
        await fetch(client, request_to(server.url()))
        await fetch(client, request_to(server.url()))
        assert server.connections == 2
        await until(lambda: server.open == 1)


async def test_bytes_on_an_idle_connection_end_it() -> None:
    """What belongs to no answer is never taken for the next one's."""

    async def babbles(peer: Peer) -> None:
        await peer.request()
        await peer.send(whole())
        await asyncio.sleep(0.05)
        await peer.send(whole(b'{"stolen": true}'))
        await peer.stall()

    async with upstream(babbles, always(whole())) as server, client_of("own") as client:
        await fetch(client, request_to(server.url()))
        await until(lambda: server.open == 0)
        await asyncio.sleep(0.02)
        assert (await fetch(client, request_to(server.url())))[2] == BODY
        assert server.connections == 2


async def test_a_server_that_answers_before_it_read_all_keeps_no_connection() -> None:
    """The rest of the request is still on its way: the next one must not queue behind it."""
    read_on = asyncio.Event()

    async def hasty(peer: Peer) -> None:
        await peer.begun()
        await peer.send(whole(status=413))
        await read_on.wait()

    big = b"x" * 2**25
    async with upstream(hasty, always(whole())) as server, client_of("own") as client:
        assert (await fetch(client, request_to(server.url(), big)))[0] == 413
        assert (await fetch(client, request_to(server.url())))[0] == 200
        assert server.connections == 2
        read_on.set()


# -- connecting, and TLS -----------------------------------------------------------------------------------------------


@every_client
async def test_a_refused_connection_is_told_apart(kind: str) -> None:
    """Nobody listens: nothing was sent."""
    taken, port = refused_port()
    with taken:
        async with client_of(kind) as client:
            error = await failure_of(client, request_to(f"http://{HOST}:{port}/v1"))
    assert (error.kind, error.received) == ("connect", False)


@every_client
async def test_an_unknown_host_is_told_apart(kind: str) -> None:
    """A name that no resolver knows, and one that is no name."""
    async with client_of(kind) as client:
        for host in ("no-such-host.invalid", "a" * 70 + ".invalid"):
            assert (await failure_of(client, request_to(f"http://{host}/v1"))).kind == "connect"


@every_client
@pytest.mark.parametrize(
    ("certificate_for", "asked_host", "trusted", "kind_of_error"),
    [
        (HOST, HOST, True, None),
        ("localhost", "localhost", True, None),
        (HOST, HOST, False, "connect"),
        ("api.example.com", HOST, True, "connect"),
        ("api.example.com", "localhost", True, "connect"),
    ],
)
async def test_a_certificate_is_verified(
    kind: str, certificate_for: str, asked_host: str, trusted: bool, kind_of_error: str | None, tmp_path: Path
) -> None:
    """The right authority and the right host, or no request goes out."""
    theirs, stranger = Authority(tmp_path), Authority(tmp_path)
    context = (theirs if trusted else stranger).trusting()
    async with (
        upstream(always(whole()), tls=theirs.serving(certificate_for)) as server,
        client_of(kind, tls=context) as client,
    ):
        request = request_to(server.url(host=asked_host))
        if kind_of_error is None:
            assert (await fetch(client, request))[2] == BODY
            assert (await fetch(client, request))[2] == BODY
            assert server.connections == 1
        else:
            assert (await failure_of(client, request)).kind == kind_of_error
            assert server.requests == []


@every_client
async def test_the_systems_authorities_are_asked_by_default(kind: str, tmp_path: Path) -> None:
    """Without a context of one's own a stranger's certificate is refused."""
    async with (
        upstream(always(whole()), tls=Authority(tmp_path).serving()) as server,
        client_of(kind) as client,
    ):
        assert (await failure_of(client, request_to(server.url()))).kind == "connect"
        assert server.requests == []


@pytest.mark.parametrize(
    "url",
    ["ftp://host/v1", "http:///v1", "http://user:pw@host/v1", "http://host/a b", "http://host/\u00e9", "host/v1"],
)
def test_what_is_no_http_url_is_refused(url: str) -> None:
    """Also one with a password in it, which would end up in logs."""
    with pytest.raises(ValueError, match="upstream URL"):
        prepare(Endpoint("POST", url, ()))


def test_a_header_with_a_line_break_is_refused() -> None:
    """Nothing can be smuggled into the head."""
    with pytest.raises(ValueError, match="line break"):
        prepare(Endpoint("POST", "http://host/v1", [(b"x-a", b"1\r\nx-b: 2")]))


# -- timeouts ----------------------------------------------------------------------------------------------------------


@every_client
async def test_a_handshake_that_never_comes_times_out(kind: str, tmp_path: Path) -> None:
    """The connection's time holds for TLS too; nothing was sent."""
    async with upstream(silent) as server:
        async with client_of(
            kind, timeouts=GENEROUS._replace(connect=0.2), tls=Authority(tmp_path).trusting()
        ) as client:
            error = await failure_of(client, request_to(f"https://{HOST}:{server.port}/v1"))
        assert (error.kind, error.received) == ("connect", False)
        if kind == "own":
            await until(lambda: server.open == 0)


@every_client
async def test_a_server_that_does_not_read_times_out(kind: str) -> None:
    """A request that can't be written."""
    released = asyncio.Event()

    async def deaf(peer: Peer) -> None:
        await released.wait()

    async with upstream(deaf) as server, client_of(kind, timeouts=GENEROUS._replace(write=0.2)) as client:
        error = await failure_of(client, request_to(server.url(), b"x" * 2**25))
        assert (error.kind, error.received) == ("timeout", False)
        released.set()


@every_client
async def test_an_answer_that_never_begins_times_out(kind: str) -> None:
    """First byte."""
    waits = GENEROUS._replace(connect=0.2, first_byte=0.2)
    async with upstream(then_stall()) as server, client_of(kind, timeouts=waits) as client:
        error = await failure_of(client, request_to(server.url()))
        assert (error.kind, error.received) == ("timeout", False)
        await until(lambda: server.aborted == 1)


@every_client
@pytest.mark.parametrize("beginning", [whole()[:-5], STREAM_HEAD + chunk(word("one"))], ids=["json", "stream"])
async def test_an_answer_that_stops_times_out(kind: str, beginning: bytes) -> None:
    """Idle: the answer began, and nothing more comes."""
    async with (
        upstream(then_stall(beginning)) as server,
        client_of(kind, timeouts=GENEROUS._replace(idle=0.2)) as client,
    ):
        async with asyncio.timeout(4):  # not at the next look at a far deadline
            error = await failure_of(client, request_to(server.url()))
        assert (error.kind, error.received) == ("timeout", True)
        await until(lambda: server.aborted == 1)


@every_client
async def test_an_answer_that_drips_for_ever_times_out(kind: str) -> None:
    """Total: each wait is short, the whole is not."""

    async def drips(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD)
        while True:
            await peer.send(chunk(b": still here\n\n"), gap=0.02)

    async with upstream(drips) as server, client_of(kind, timeouts=GENEROUS._replace(total=0.3)) as client:
        assert (await failure_of(client, request_to(server.url()))).kind == "timeout"
        await until(lambda: server.aborted == 1)


@pytest.mark.parametrize("kind", ["httpx", "httpx2"])
async def test_the_clients_own_read_timeout_is_not_in_the_way(kind: str) -> None:
    """httpx gives up after 5 seconds by default; how long a model may think is said by our timeouts."""
    library: Any = httpx if kind == "httpx" else httpx2
    async with (
        upstream(once(whole()[:20], whole()[20:], gap=0.3)) as server,
        library.AsyncClient(timeout=library.Timeout(5, read=0.05), trust_env=False) as inner,
    ):
        assert (await fetch(HTTPXClient(inner, timeouts=GENEROUS), request_to(server.url())))[2] == BODY


# -- what is no valid answer -------------------------------------------------------------------------------------------

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


# -- the pool ----------------------------------------------------------------------------------------------------------


@every_client
async def test_a_call_waits_while_the_pool_is_full(kind: str) -> None:
    """One connection, two calls: the second goes when the first has ended, over the same connection."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.send(whole())

    async with upstream(script) as server, client_of(kind, connections=1) as client:
        calls = [asyncio.create_task(fetch(client, request_to(server.url()))) for _ in range(5)]
        await until(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.05)
        assert len(server.requests) == 1
        go.set()
        assert [body for _, _, body in await asyncio.gather(*calls)] == [BODY] * 5
        assert server.connections == 1


@every_client
async def test_a_call_that_waits_too_long_is_refused(kind: str) -> None:
    """The pool stays full for longer than a connection may take."""
    async with (
        upstream(then_stall()) as server,
        client_of(kind, connections=1, timeouts=GENEROUS._replace(connect=0.2)) as client,
    ):
        first = client.open(request_to(server.url()))
        running = asyncio.create_task(first.start())
        await until(lambda: len(server.requests) == 1)
        error = await failure_of(client, request_to(server.url()))
        assert (error.kind, error.received, len(server.requests)) == ("pool", False, 1)
        first.abort(TransferError("cut", "enough"))
        await asyncio.wait({running})
        assert isinstance(running.exception(), TransferError)
        first.close()


async def test_a_failed_connection_makes_room_for_the_next() -> None:
    """The one that waits in line is not left there when the connection before it was refused."""
    taken, port = refused_port()
    with taken:
        async with client_of("own", connections=1) as client:
            calls = [failure_of(client, request_to(f"http://{HOST}:{port}/v1")) for _ in range(4)]
            async with asyncio.timeout(5):
                assert [error.kind for error in await asyncio.gather(*calls)] == ["connect"] * 4


@pytest.mark.parametrize("rude", [False, True], ids=["closed", "reset"])
async def test_a_connection_that_is_closed_as_soon_as_it_is_open_is_cut(rude: bool) -> None:
    """As a port forwarder does whose target is down; it keeps no place in the pool."""

    async def slams(peer: Peer) -> None:
        if rude:
            peer.reset()

    async with upstream(slams, slams, slams, always(whole())) as server, client_of("own", connections=1) as client:
        async with asyncio.timeout(10):
            for _ in range(3):
                assert (await failure_of(client, request_to(server.url()))).kind == "cut"
            assert (await fetch(client, request_to(server.url())))[2] == BODY
        assert server.connections == 4


async def test_a_connection_lost_before_its_first_request_refuses_it() -> None:
    """It would wait for an answer until the time-out."""

    async def slams(peer: Peer) -> None:
        """Closes at once."""

    async with upstream(slams) as server:
        freed: list[Connection] = []
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(loop, freed.append), HOST, server.port)
        await until(lambda: bool(freed))
        with pytest.raises(TransferError) as caught:
            connection.begin(b"", GENEROUS)
        assert (caught.value.kind, caught.value.received, connection.busy) == ("cut", False, False)


async def test_a_server_that_speaks_first_is_not_believed() -> None:
    """An answer that nobody asked for yet."""

    async def greets(peer: Peer) -> None:
        await peer.send(whole(b'{"early": true}'))
        await peer.stall()

    async with upstream(greets) as server, client_of("own") as client:
        flight = client.open(request_to(server.url()))
        assert isinstance(client, UpstreamClient)
        found: object
        try:
            await flight.start()
            found = await drain(flight)
        except TransferError as error:
            found = error.kind
        assert found in ("protocol", b'{"early": true}')  # so late that it may be an answer
        flight.close()


async def test_a_waiter_that_leaves_hands_its_turn_on() -> None:
    """Its turn came in the moment it gave up: the next in line gets it."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.send(whole())

    async with upstream(script) as server, client_of("own", connections=1) as client:
        first = client.open(request_to(server.url()))
        running = asyncio.create_task(first.start())
        await until(lambda: len(server.requests) == 1)
        leaver, stayer = client.open(request_to(server.url())), client.open(request_to(server.url()))
        leaving, staying = asyncio.create_task(leaver.start()), asyncio.create_task(stayer.start())
        await asyncio.sleep(0.05)
        go.set()
        await running
        first.close()  # wakes the one in front ...
        leaver.abort(TransferError("cut", "left"))  # ... which is gone before it can look
        async with asyncio.timeout(5):
            await staying
        assert stayer.status == 200
        stayer.close()
        with pytest.raises(TransferError, match="left"):
            await leaving


async def test_close_cuts_everything() -> None:
    """Idle connections, running calls, and those that wait in line or come later."""
    async with upstream(always(whole()), then_stall(STREAM_HEAD)) as server:
        client = UpstreamClient(timeouts=GENEROUS, max_connections=2)
        await fetch(client, request_to(server.url()))
        running = [client.open(request_to(server.url())) for _ in range(2)]
        for flight in running:
            await flight.start()
        assert server.connections == 2
        running[0].close()  # answered in full: idle again
        held = client.open(request_to(server.url()))
        holding = asyncio.create_task(held.start())
        waiting = asyncio.create_task(failure_of(client, request_to(server.url())))
        await until(lambda: len(server.requests) == 4)
        await holding
        await client.close()
        with pytest.raises(TransferError):
            await drain(running[1])
        running[1].close()
        held.close()
        assert (await waiting).kind == "cut"
        await until(lambda: server.open == 0)
        assert (await failure_of(client, request_to(server.url()))).kind == "cut"


# -- giving up ---------------------------------------------------------------------------------------------------------


class Left(Exception):
    """Why a flight was aborted."""


@every_client
@pytest.mark.parametrize(
    "script",
    [then_stall(), then_stall(whole()[:-5]), then_stall(STREAM_HEAD), then_stall(STREAM_HEAD, chunk(word("one")))],
    ids=["before the answer", "in a body", "before the first event", "in a stream"],
)
async def test_an_aborted_call_closes_its_connection_at_once(kind: str, script: Script) -> None:
    """Whoever waits gets the reason, and the server sees the connection go."""
    async with upstream(script) as server, client_of(kind) as client:
        flight = client.open(request_to(server.url()))

        async def run() -> None:
            await flight.start()
            await drain(flight)

        running = asyncio.create_task(run())
        await until(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.05)
        flight.abort(Left())
        with pytest.raises(Left):
            await running
        flight.abort(Left())
        flight.close()
        await until(lambda: server.open == 0)
        assert server.aborted == 1


@every_client
async def test_an_aborted_call_ends_its_attempt_to_connect(kind: str, tmp_path: Path) -> None:
    """In the middle of a handshake; httpx leaves such a socket to the garbage collector."""
    async with upstream(silent) as server, client_of(kind, tls=Authority(tmp_path).trusting()) as client:
        flight = client.open(request_to(f"https://{HOST}:{server.port}/v1"))
        running = asyncio.create_task(flight.start())
        await until(lambda: server.open == 1)
        flight.abort(Left())
        with pytest.raises(Left):
            await running
        flight.close()
        if kind == "own":
            await until(lambda: server.open == 0)


@every_client
@pytest.mark.parametrize("warm", [False, True])
async def test_a_call_aborted_before_its_start_sends_nothing(kind: str, warm: bool) -> None:
    """Also where a connection is at hand."""
    async with upstream(always(whole())) as server, client_of(kind) as client:
        if warm:
            await fetch(client, request_to(server.url()))
        flight = client.open(request_to(server.url()))
        flight.abort(Left())
        with pytest.raises(Left):
            await flight.start()
        flight.close()
        assert (await fetch(client, request_to(server.url())))[2] == BODY
        assert len(server.requests) == 1 + warm


@every_client
async def test_a_call_aborted_while_it_waits_for_the_pool_leaves_the_line(kind: str) -> None:
    """And the pool is whole afterwards."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.send(whole())

    async with upstream(script) as server, client_of(kind, connections=1) as client:
        running = asyncio.create_task(fetch(client, request_to(server.url())))
        await until(lambda: len(server.requests) == 1)
        flight = client.open(request_to(server.url()))
        waiting = asyncio.create_task(flight.start())
        await asyncio.sleep(0.05)
        flight.abort(Left())
        with pytest.raises(Left):
            await waiting
        flight.close()
        go.set()
        await running
        assert (await fetch(client, request_to(server.url())))[2] == BODY
        assert (server.connections, len(server.requests)) == (1, 2)


@every_client
async def test_a_cancelled_call_closes_its_connection(kind: str) -> None:
    """A task that is cancelled in ``start`` leaves nothing open."""
    async with upstream(then_stall()) as server, client_of(kind) as client:
        running = asyncio.create_task(fetch(client, request_to(server.url())))
        await until(lambda: len(server.requests) == 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: server.aborted == 1)


@every_client
async def test_a_stream_that_nobody_wants_any_more_is_cut(kind: str) -> None:
    """``close`` before the end, without an abort."""
    async with upstream(then_stall(STREAM_HEAD, chunk(word("one")))) as server, client_of(kind) as client:
        flight = client.open(request_to(server.url()))
        await flight.start()
        flight.close()
        await until(lambda: server.aborted == 1)


# -- backpressure ------------------------------------------------------------------------------------------------------


async def blocked(peer: Callable[[], int]) -> int:
    """Bytes written once no more can be."""
    before = -1
    while peer() != before:
        before = peer()
        await asyncio.sleep(0.3)
    return before


@every_client
@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
async def test_a_reader_that_takes_nothing_holds_the_server_back(kind: str, content_type: str) -> None:
    """A bounded amount is held; all of it arrives when it is read."""
    total = 2**26
    peers: list[Peer] = []

    async def script(peer: Peer) -> None:
        peers.append(peer)
        peer.narrow()
        await peer.request()
        await peer.send(head(200, ("Content-Type", content_type), ("Content-Length", str(total))))
        for _ in range(total // 2**16):
            await peer.send(b"x" * 2**16)

    async with upstream(script) as server, client_of(kind) as client:
        flight = client.open(request_to(server.url()))
        await flight.start()
        assert await blocked(lambda: peers[0].sent) < total // 2
        held = flight.take()
        assert len(held) < 2**20 + (BUFFER_LIMIT if content_type == "application/json" else 0)
        assert len(held) + len(await drain(flight)) == total
        flight.close()


# -- answers never mix -------------------------------------------------------------------------------------------------

PLANS = st.lists(
    st.tuples(st.integers(0, 70_000), st.sampled_from(["length", "chunked", "stream"]), st.integers(0, 4)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=20, deadline=None)
@given(plans=PLANS, connections=st.integers(1, 6))
def test_answers_never_mix(plans: list[tuple[int, str, int]], connections: int) -> None:
    """Many calls over few connections, of any size, some of them given up: each gets its own answer, whole."""

    async def script(peer: Peer) -> None:
        while True:
            asked = (await peer.request()).json()
            body = b"%d;" % asked["id"] * asked["size"]
            if asked["framing"] == "length":
                await peer.send(whole(body))
                continue
            kind = "text/event-stream" if asked["framing"] == "stream" else "application/json"
            await peer.send(head(200, ("Content-Type", kind), ("Transfer-Encoding", "chunked")))
            for at in range(0, len(body), 30_000):
                await peer.send(chunk(body[at : at + 30_000]))
            await peer.send(LAST_CHUNK)

    async def one(client: Client, server: Upstream, at: int, plan: tuple[int, str, int]) -> None:
        size, framing, leaves = plan
        asked = {"id": at, "size": size // 4, "framing": framing}
        flight = client.open(request_to(server.url(), json.dumps(asked).encode()))
        leaver = None
        if leaves == 1:
            leaver = asyncio.get_running_loop().call_later(size % 7 / 1000, flight.abort, Left())
        try:
            await flight.start()
            assert await drain(flight) == b"%d;" % at * (size // 4)
        except Left:
            assert leaver is not None
        finally:
            flight.close()
            if leaver is not None:
                leaver.cancel()

    async def all_of_them() -> None:
        async with upstream(script) as server, client_of("own", connections=connections) as client:
            async with asyncio.timeout(30):
                await asyncio.gather(*(one(client, server, at, plan) for at, plan in enumerate(plans)))
            assert server.open <= connections

    asyncio.run(all_of_them())


# -- which client ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "url", "expected"),
    [
        ({}, "https://api.openai.com/v1", False),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "https://api.openai.com/v1", True),
        ({"https_proxy": "http://proxy:3128"}, "https://api.openai.com/v1", True),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://api.openai.com/v1", False),
        ({"ALL_PROXY": "socks5://proxy"}, "http://api.openai.com/v1", True),
        ({"HTTPS_PROXY": ""}, "https://api.openai.com/v1", False),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "openai.com"}, "https://api.openai.com/v1", False),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, "https://api.openai.com/v1", False),
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://127.0.0.1:8000/v1", False),
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://localhost:8000/v1", False),
    ],
)
def test_a_proxy_in_the_environment_is_seen(environ: dict[str, str], url: str, expected: bool) -> None:
    """For the scheme that it is for, and not for this machine."""
    assert proxied([url], environ) is expected


async def test_the_client_follows_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's own first, httpx where a proxy is named, else ours."""
    ours = open_client(urls=["https://api.openai.com/v1"])
    assert isinstance(ours, UpstreamClient)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    through_proxy = open_client(urls=["https://api.openai.com/v1"])
    assert isinstance(through_proxy, HTTPXClient)
    await through_proxy.close()
    async with httpx.AsyncClient() as inner:
        given_one = open_client(http_client=inner)
        await given_one.close()
        assert not inner.is_closed  # its maker closes it


async def test_a_proxy_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request goes to the proxy, with the whole URL in its first line."""
    async with upstream(always(whole())) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{HOST}:{proxy.port}")
        client = open_client(urls=["http://api.example.com/v1"], timeouts=GENEROUS)
        assert (await fetch(client, request_to("http://api.example.com/v1")))[2] == BODY
        await client.close()
        assert proxy.requests[0].path == "http://api.example.com/v1"
