"""SIGTERM and SIGINT, heard before the server hears them, and handed on to it.

Only on the main thread, and only where a server has handlers of its own: without them a signal ends the process at once, and
that stays so.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

_NAMES = ("SIGTERM", "SIGINT", "SIGBREAK")
_TWICE = 1.0
# Seconds within which the same SIGTERM again is no second wish: a process manager that signals a whole group, and the
# server's parent that signals its workers, come to the same worker one after the other.


class Told(NamedTuple):
    """Who is told of a signal.

    ``at_once`` is called in the signal handler itself; ``begin`` (with the server's object, where its handler is a method)
    and ``again`` (for a second signal) in the event loop. The server is told after ``delay`` seconds.
    """

    at_once: Callable[[], None]
    begin: Callable[[Any], None]
    again: Callable[[], None]
    delay: float


class Signals:
    """This process's handler. It is there while somebody is to be told, and puts the server's back afterwards."""

    def __init__(self) -> None:
        self._told: list[tuple[Told, asyncio.AbstractEventLoop]] = []
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._came: dict[int, float] = {}
        self._waiting: list[int] = []

    def add(self, told: Told) -> None:
        """Tell ``told`` too, in the running event loop; nothing happens where no handler can be set."""
        if not self._told:
            if threading.current_thread() is not threading.main_thread():
                return
            self._came.clear()
            for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                before = signal.getsignal(number)
                if callable(before) and before is not signal.default_int_handler:
                    self._before[number] = before
                    signal.signal(number, self._handle)
            if not self._before:
                return
        self._told.append((told, asyncio.get_running_loop()))

    def remove(self, told: Told) -> None:
        """Tell it no more; the last one gives the server its handlers back."""
        self._told = [one for one in self._told if one[0] is not told]
        if self._told:
            return
        self._hand_on()
        before, self._before = self._before, {}
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if signal.getsignal(number) == self._handle:  # else somebody has set another one since
                    signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """A signal has come. This runs between any two steps of the main thread: it only notes, and hands on."""
        now = time.monotonic()
        first = not self._came
        before = self._came.setdefault(number, now)
        again = before != now and (number == signal.SIGINT or now - before > _TWICE)
        delay = 0.0
        server = getattr(self._before.get(number), "__self__", None)
        for told, loop in self._told:
            told.at_once()
            if first or again:
                _soon(loop, told.again if again else partial(told.begin, server))
            delay = max(delay, told.delay)
        self._waiting.append(number)
        if again or not delay:
            self._hand_on(frame)
        elif first:
            loop = self._told[0][1]
            _soon(loop, lambda: loop.call_later(delay, self._hand_on))

    def _hand_on(self, frame: FrameType | None = None) -> None:
        """The server hears what came."""
        while self._waiting:
            number = self._waiting.pop(0)
            handler = self._before.get(number)
            if handler is not None:
                handler(number, frame)


def _soon(loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> None:
    with contextlib.suppress(RuntimeError):  # it is closed: whoever lived there is gone
        loop.call_soon_threadsafe(work)


SIGNALS = Signals()

__all__ = ["SIGNALS", "Signals", "Told"]
