"""Coroutines of the server, stepped by hand.

A task switch for each small wait costs more than the work itself. Where the server is known to wait on plain futures
and to need no current task, its ``receive()`` and ``send()`` may be stepped from a callback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

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
