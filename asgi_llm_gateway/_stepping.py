"""Short cuts into the server's own objects, where it is one that is known; ASGI's way for all others.

A task switch for each small wait costs more than the work itself. Where the server is known to wait on plain futures
and to need no current task, its ``receive()`` and ``send()`` may be stepped from a callback, and a whole answer written in
one piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from http import HTTPStatus
from typing import Any

from .errors import Header

# Servers that are known so. Anything else, wrappers of other people's included, is awaited in a task.
_STEPPABLE = frozenset({"uvicorn.protocols.http.httptools_impl", "uvicorn.protocols.http.h11_impl"})


def steppable(function: Callable[..., Any]) -> bool:
    """Whether a ``receive`` or ``send`` is the server's own, and the server is known."""
    return server_of(function) is not None


def server_of(function: Callable[..., Any]) -> Any:
    """The known server's object for one response, of its own ``receive`` or ``send``; ``None`` for any other function."""
    owner = getattr(function, "__self__", None)
    return owner if type(owner).__module__ in _STEPPABLE else None


class Resumed:
    """Awaits the rest of a coroutine that was stepped until it waited for ``waiting``."""

    __slots__ = ("_coroutine", "_waiting")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], waiting: asyncio.Future[Any]) -> None:
        self._coroutine = coroutine
        self._waiting = waiting

    def __await__(self) -> Generator[Any, Any, Any]:
        waiting = self._waiting
        while True:
            step: Callable[[Any], Any]
            given: Any
            try:
                value = yield waiting
            except BaseException as error:  # whatever is thrown in goes on to the coroutine that is stepped
                step, given = self._throw, error
            else:
                step, given = self._coroutine.send, value
            try:
                waiting = step(given)
            except StopIteration as done:
                return done.value

    def _throw(self, error: BaseException) -> Any:
        return self._coroutine.throw(error)


class _Collector:
    """Stands in for a transport while a head and its body are written, so that they leave in one system call."""

    __slots__ = ("_parts", "_transport", "write")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self.write = self._parts.append

    def flush(self) -> None:
        parts = self._parts
        if parts:
            self._transport.write(b"".join(parts))
            parts.clear()

    def __getattr__(self, name: str) -> Any:
        self.flush()  # whatever else is asked of the transport comes after what was written
        return getattr(self._transport, name)


_HTTPTOOLS = "uvicorn.protocols.http.httptools_impl"
# What is read and written of its object below, as uvicorn 0.32 to 0.54 have it; with anything missing it is not touched.
_PARTS = (
    "access_log", "chunked_encoding", "default_headers", "disconnected", "expected_content_length", "flow", "keep_alive",
    "message_event", "on_response", "response_complete", "response_started", "scope", "transport", "waiting_for_100_continue",
)  # fmt: skip
_LINES = {one.value: f"HTTP/1.1 {one.value} {one.phrase}\r\n".encode() for one in HTTPStatus}
_BODILESS = frozenset({204, 304})
# Source: RFC 9110, 5.5: no value has any of these. What the server refuses is left to it to refuse.
_CONTROLS = bytes((*range(9), *range(10, 32), 127))
_known: dict[type, bool] = {}


def write_whole(server: Any, status: int, body: bytes, headers: Iterable[Header]) -> bool:
    """Write a whole answer as uvicorn's ``send`` would, in one piece; whether that could be done.

    ``headers`` without a length. uvicorn looks at each header with two regular expressions and at each message by itself,
    which costs as much as half of what the gateway does. Whatever is out of the ordinary (a log of accesses, ``HEAD``, a
    connection that ends or is slow) is left to ``send``.
    """
    kind = type(server)
    known = _known.get(kind)
    if known is None:
        fits = kind.__module__ == _HTTPTOOLS and all(hasattr(server, name) for name in _PARTS)
        known = _known[kind] = fits and hasattr(server.flow, "write_paused")
    if (
        not known
        or server.access_log
        or server.response_started
        or server.disconnected
        or not server.keep_alive
        or server.flow.write_paused
        or server.chunked_encoding is not None
        or server.scope["method"] == "HEAD"
        or status in _BODILESS
    ):
        return False
    lines = [b"%b: %b\r\n" % one for one in headers]
    fields = b"".join(lines)
    line = _LINES.get(status)
    if line is None or len(fields) - len(fields.translate(None, _CONTROLS)) != 2 * len(lines):
        return False
    lower = fields.lower()
    if b"connection:" in lower or b"content-length:" in lower or b"transfer-encoding:" in lower:
        return False
    own = b"".join([b"%b: %b\r\n" % one for one in server.default_headers])
    server.response_started = True
    server.waiting_for_100_continue = False
    server.chunked_encoding = False
    server.transport.write(b"%b%b%bcontent-length: %d\r\n\r\n%b" % (line, own, fields, len(body), body))
    server.response_complete = True
    server.message_event.set()
    server.on_response()
    return True


async def send_at_once(send: Callable[[Any], Awaitable[None]], server: Any, start: Any, body: Any) -> None:
    """Await ``send`` for a response's two messages; a known ``server`` writes them in one piece.

    uvicorn writes the head of a response and its body one after the other; each write wakes the reader, which costs
    more than the gateway does. ``server`` is its object for this one response, and only its own writes pass by here.
    """
    transport = server.transport
    collector = server.transport = _Collector(transport)
    try:
        await send(start)
        await send(body)
    finally:
        server.transport = transport
        collector.flush()
