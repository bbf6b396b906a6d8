"""A gateway in a real uvicorn in a thread, and a raw socket before it that reads when the test says so."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import uvicorn

from asgi_llm_gateway import TracingMiddleware
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.exchange import KEY, Exchange
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.proxy.transfer import Timeouts
from asgi_llm_gateway.wire import Table

from ..upstream import HOST, Upstream

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


async def blocked(sent: Callable[[], int]) -> int:
    """Bytes written once no more can be."""
    before = -1
    while sent() != before:
        before = sent()
        await asyncio.sleep(0.25)
    return before
