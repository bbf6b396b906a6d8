"""Streams through a real uvicorn: a raw socket before it, a scripted provider behind it, and the test holds the clock."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_llm_gateway import TracingMiddleware
from asgi_llm_gateway.adapters.openai import OpenAIAdapter, OpenAIStream
from asgi_llm_gateway.exchange import KEY, Exchange
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.proxy.transfer import Timeouts
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.wire import Table

from ..upstream import (
    DONE,
    HOST,
    LAST_CHUNK,
    STREAM_HEAD,
    USAGE,
    Authority,
    Peer,
    Upstream,
    always,
    chunk,
    event,
    once,
    streaming,
    then_stall,
    until,
    upstream,
    usage_event,
    whole,
    word,
)

SERVERS = {"httptools on uvloop": ("uvloop", "httptools"), "h11 on asyncio": ("asyncio", "h11")}
every_server = pytest.mark.parametrize("server", SERVERS)
GENEROUS = Timeouts(connect=20, write=20, first_byte=20, idle=20, total=60)
ASKED: dict[str, Any] = {"model": "gpt-5", "messages": [{"role": "user", "content": "hello"}], "stream": True}
TABLE = Table()


# -- a gateway in a thread ---------------------------------------------------------------------------------------------


def bound() -> socket.socket:
    """A listening socket that keeps little on the way out."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**18)
    listener.bind((HOST, 0))
    return listener


class QuickServer(uvicorn.Server):
    """One that ends as soon as it is told to."""

    async def main_loop(self) -> None:
        """Wait for the word."""
        while not self.should_exit:  # noqa: ASYNC110 - it comes from another thread
            await asyncio.sleep(0.01)


@contextmanager
def serving(app: Any, server: str, listener: socket.socket | None = None) -> Iterator[int]:
    """A real uvicorn in a thread; gives its port."""
    loop, http = SERVERS[server]
    listener = listener or bound()
    config = uvicorn.Config(app, loop=loop, http=http, log_config=None, access_log=False)
    running = QuickServer(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until_then = time.monotonic() + 20
        while not running.started:
            assert thread.is_alive()
            assert time.monotonic() < until_then
            time.sleep(0.002)
        yield listener.getsockname()[1]
    finally:
        running.should_exit = running.force_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()


def proxy(provider: Upstream, **more: Any) -> ProxyApp:
    """A ProxyApp before the provider."""
    return ProxyApp(router=Router([OpenAIAdapter("openai", provider.url(), "sk-key")]), timeouts=GENEROUS, **more)


class Noting:
    """Keeps the exchanges that pass, with the server's own ``receive`` and ``send`` left in view.

    Args:
        app: What answers.
        at_end: Work that each exchange gets.
    """

    def __init__(self, app: Any, at_end: Callable[[], Awaitable[None]] | None = None) -> None:
        self._app = app
        self._at_end = at_end
        self.exchanges: list[Exchange] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            exchange = Exchange(self, TABLE.match(scope), scope)
            self.exchanges.append(exchange)
            if self._at_end is not None:
                exchange.at_end(self._at_end)
            scope, send = {**scope, KEY: exchange}, exchange.wrap(send)
        await self._app(scope, receive, send)


def hiding(app: Any) -> Any:
    """A stranger's middleware that has ``receive`` and ``send`` of its own."""

    async def hidden(scope: Any, receive: Any, send: Any) -> None:
        async def own_receive() -> Any:
            return await receive()

        async def own_send(message: Any) -> None:
            await send(message)

        await app(scope, own_receive, own_send)

    return hidden


SHAPES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda app: app,
    "behind our own": TracingMiddleware,
    "behind a stranger's": hiding,
    "between": lambda app: TracingMiddleware(hiding(app)),
}
every_way = pytest.mark.parametrize(
    ("server", "shape"),
    [
        *(("httptools on uvloop", shape) for shape in SHAPES),
        *(("h11 on asyncio", shape) for shape in ("alone", "between")),
    ],
)


# -- a client by hand --------------------------------------------------------------------------------------------------


class Caller:
    """A raw HTTP client that reads when the test says so. Each chunk of the answer is one ``send`` of the app."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}

    def post(self, body: Any = None, path: str = "/v1/chat/completions") -> None:
        """Ask."""
        raw = json.dumps(ASKED if body is None else body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        self._writer.write(head.encode() + raw)

    async def head(self) -> int:
        """Status and headers."""
        raw = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = raw[:-4].split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return self.status

    async def piece(self) -> bytes:
        """The next chunk; empty at the end."""
        async with asyncio.timeout(30):
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            data = await self._reader.readexactly(size + 2)
        return data[:-2]

    async def rest(self) -> bytes:
        """All the rest of the answer, to its proper end."""
        if "content-length" in self.headers:
            return await self._reader.readexactly(int(self.headers["content-length"]))
        pieces = []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    def leave(self, *, rudely: bool = False) -> None:
        """Hang up; rudely is a reset."""
        if rudely:
            wire = self._writer.get_extra_info("socket")
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        else:
            self._writer.close()


@asynccontextmanager
async def caller(port: int) -> AsyncIterator[Caller]:
    """A connection to the gateway, with a small buffer for what comes."""
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**17)
    wire.setblocking(False)
    await asyncio.get_running_loop().sock_connect(wire, (HOST, port))
    reader, writer = await asyncio.open_connection(sock=wire)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


async def answer_of(port: int, body: Any = None) -> bytes:
    """A whole answer."""
    async with caller(port) as client:
        client.post(body)
        await client.head()
        return await client.rest()


# -- as it comes -------------------------------------------------------------------------------------------------------


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


# -- any cut -----------------------------------------------------------------------------------------------------------

ENDS = st.sampled_from([b"\n", b"\r\n"])
TEXT = st.one_of(st.text(max_size=20), st.sampled_from(["[DONE]", '"usage"', "data: x", "\r\n\r\n", "x" * 70_000]))


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """The events of a stream, as providers write them: any line end, comments, fields, several data lines."""
    events = []
    for kind in draw(st.lists(st.sampled_from("wwwwcfm"), max_size=12)):
        end = draw(ENDS)
        text = draw(TEXT)
        if kind == "w":
            events.append(word(text)[:-2] + end + end)
        elif kind == "c":
            events.append(b": ping" + end + end)
        elif kind == "f":
            events.append(b"event: delta" + end + b"id: 7" + end + word(text)[:-2] + end + end)
        else:
            events.append(b"data: {" + end + b'data:"choices":[]' + end + b"data: }" + end + end)
    end = draw(ENDS)
    events.append(word("", "stop")[:-2] + end + end)
    tail = draw(st.sampled_from(["usage", "null usage", "none"]))
    if tail == "usage":
        events.append(usage_event()[:-2] + end + end)
    elif tail == "null usage":
        events.append(event({"choices": [], "usage": None}))
    events += [b": bye" + end + end] * draw(st.integers(0, 6))
    if draw(st.booleans()):
        events.append(b"data: [DONE]" + end + end)
    return events


def cut(data: bytes, places: Sequence[float]) -> list[bytes]:
    """The bytes in pieces."""
    at = sorted({int(place * len(data)) for place in places} | {0, len(data)})
    return [data[start:stop] for start, stop in pairwise(at)]


def wanted(events: Sequence[bytes], *, asked: bool) -> bytes:
    """What the client shall have."""
    return b"".join(one for one in events if asked or b'"usage":{' not in one)


PLACES = st.lists(st.floats(0, 1, exclude_max=True), max_size=40)


@settings(max_examples=400, deadline=None)
@given(events=streams(), places=PLACES, asked=st.booleans())
def test_a_stream_reads_the_same_however_it_is_cut(events: list[bytes], places: list[float], asked: bool) -> None:
    """The same bytes, the same usage, the same end."""
    reader = OpenAIStream("openai", drop_usage=not asked)
    out = b"".join(reader.feed(piece) for piece in cut(b"".join(events), places)) + reader.finish()
    assert out == wanted(events, asked=asked)
    assert reader.usage == (Usage(3, 5) if any(b'"usage":{' in one for one in events) else None)
    assert reader.complete
    assert not reader.failed
    assert reader.events == sum(len(re.findall(rb"(?:^|[\r\n])data:", one)) for one in events)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 4096])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [DONE, b": bye\n\n" * 9], ids=["done", "comments"])
def test_a_stream_reads_the_same_in_even_pieces(size: int, end: bytes, last: bytes) -> None:
    """Byte by byte too, with or without a ``[DONE]``."""
    events = [b": hi\n\n", word("a"), word("b", "stop"), usage_event(), last]
    data = b"".join(events).replace(b"\n", end)
    reader = OpenAIStream("openai", drop_usage=True)
    out = b"".join(reader.feed(data[at : at + size]) for at in range(0, len(data), size)) + reader.finish()
    assert out == data.replace(usage_event().replace(b"\n", end), b"")
    assert (reader.usage, reader.complete) == (Usage(3, 5), True)


@every_server
def test_a_stream_is_relayed_the_same_however_it_is_cut(server: str) -> None:
    """The whole way: real sockets, any cut, the fast path and the slow one."""
    plan: list[list[bytes]] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(STREAM_HEAD)
            for piece in plan[-1]:
                await peer.send(chunk(piece))
                await asyncio.sleep(0.0005 if len(plan[-1]) < 20 else 0)  # mostly in a read of its own
            await peer.send(LAST_CHUNK)

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        provider = runner.run(stack.enter_async_context(upstream(script)))
        app = Noting(proxy(provider))
        with serving(app, server) as port:

            @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
            @given(events=streams(), places=PLACES, asked=st.booleans())
            def check(events: list[bytes], places: list[float], asked: bool) -> None:
                plan.append(cut(b"".join(events), places))
                body = {**ASKED, "stream_options": {"include_usage": True}} if asked else ASKED
                assert runner.run(answer_of(port, body)) == wanted(events, asked=asked)
                usage = app.exchanges[-1].usage
                assert usage is not None
                assert usage.estimated is not any(b'"usage":{' in one for one in events)
                assert usage.estimated or usage == Usage(3, 5)

            check()
        runner.run(stack.aclose())


# -- hang-ups ----------------------------------------------------------------------------------------------------------


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


# -- backpressure ------------------------------------------------------------------------------------------------------


async def blocked(sent: Callable[[], int]) -> int:
    """Bytes written once no more can be."""
    before = -1
    while sent() != before:
        before = sent()
        await asyncio.sleep(0.25)
    return before


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


# -- gateways in a row -------------------------------------------------------------------------------------------------


@every_server
async def test_a_gateway_that_is_its_own_provider_says_so(server: str) -> None:
    """508, and not a request without end."""
    listener = bound()
    url = f"http://{HOST}:{listener.getsockname()[1]}/v1"
    app = Noting(ProxyApp(router=Router([OpenAIAdapter("openai", url)]), timeouts=GENEROUS))
    with serving(app, server, listener) as port:
        async with caller(port) as client:
            client.post()
            assert await client.head() == 508
            assert json.loads(await client.rest())["error"]["code"] == "gateway_loop"
    assert len(app.exchanges) == 2


@every_server
async def test_a_circle_of_two_gateways_is_found(server: str) -> None:
    """One asks the other, which asks the first again."""
    listener, other = bound(), bound()
    apps = [
        Noting(ProxyApp(router=Router([OpenAIAdapter("openai", f"http://{HOST}:{at.getsockname()[1]}/v1")])))
        for at in (other, listener)
    ]
    with serving(apps[0], server, listener) as port, serving(apps[1], server, other):
        async with caller(port) as client:
            client.post()
            assert await client.head() == 508
            await client.rest()
    assert [len(app.exchanges) for app in apps] == [2, 1]


@every_server
async def test_one_gateway_may_ask_another(server: str) -> None:
    """A chain is no circle: the stream comes through both."""
    said = [word("a"), word("b", "stop"), usage_event(), DONE]
    async with upstream(streaming(*said)) as provider:
        with serving(proxy(provider), server) as inner:
            outer = Noting(ProxyApp(router=Router([OpenAIAdapter("openai", f"http://{HOST}:{inner}/v1")])))
            with serving(outer, server) as port:
                assert await answer_of(port) == said[0] + said[1] + said[3]
    assert outer.exchanges[0].usage == Usage(USAGE["prompt_tokens"], USAGE["completion_tokens"])
