"""Coroutines of the server, stepped by hand.

A task switch for each small wait costs more than the work itself. Where the server is known to wait on plain futures
and to need no current task, its ``receive()`` and ``send()`` may be stepped from a callback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any

# Servers that are known so. Anything else, wrappers of other people's included, is awaited in a task.
_STEPPABLE = frozenset({"uvicorn.protocols.http.httptools_impl", "uvicorn.protocols.http.h11_impl"})


def steppable(function: Callable[..., Any]) -> bool:
    """Whether a ``receive`` or ``send`` is the server's own, and the server is known."""
    owner = getattr(function, "__self__", None)
    return owner is not None and type(owner).__module__ in _STEPPABLE


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
            except BaseException as error:
                step, given = self._throw, error
            else:
                step, given = self._coroutine.send, value
            try:
                waiting = step(given)
            except StopIteration as done:
                return done.value

    def _throw(self, error: BaseException) -> Any:
        return self._coroutine.throw(error)
