"""One thing for each event loop, found on every call without the system call that get_running_loop() makes before 3.12."""

from __future__ import annotations

import asyncio
from threading import get_ident
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerLoop(Generic[T]):
    """What somebody has open in each event loop; one instance serves many loops and threads."""

    __slots__ = ("_loops", "_threads")

    def __init__(self) -> None:
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()
        self._threads: dict[int, tuple[asyncio.AbstractEventLoop, T]] = {}

    def get(self) -> T | None:
        """The running loop's own, if it was put."""
        known = self._threads.get(get_ident())
        if known is not None and known[0].is_running():  # a thread runs one loop at a time
            return known[1]
        loop = asyncio.get_running_loop()
        value = self._loops.get(loop)
        if value is not None:
            self._threads[get_ident()] = (loop, value)
        return value

    def put(self, value: T) -> T:
        """Keep the running loop's own."""
        loop = asyncio.get_running_loop()
        self._loops[loop] = value
        self._threads[get_ident()] = (loop, value)
        return value

    def pop(self) -> T | None:
        """Take the running loop's own out."""
        self._threads.pop(get_ident(), None)
        return self._loops.pop(asyncio.get_running_loop(), None)
