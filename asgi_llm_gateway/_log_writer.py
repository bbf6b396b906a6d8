"""Log lines on their way out: queued by the event loop in a microsecond, written by a thread, dropped and counted when full.

Whoever reads a log may be slow or stuck (a full pipe, a disk): that must stop no call.
"""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_GATHER = 0.02  # seconds that the thread waits for more lines once there is one: one wake-up for many
# Bytes written at once: lines of several processes that share a pipe do not get mixed. Source: POSIX, ``PIPE_BUF`` on Linux.
_ATOMIC = 4096
_PAUSE = 0.2  # seconds before another try where nothing can be written


class Line(NamedTuple):
    """One line to be: Unix seconds, ``debug`` to ``error``, what happened, and its fields."""

    at: float
    level: str
    event: str
    fields: Mapping[str, Any]


Render = Callable[[Line], bytes]


class LogWriter:
    """A bounded queue of lines and the thread that writes them, which is started by the first one.

    Args:
        render: A line as bytes, its end included; called in the thread.
        write: Writes bytes, and may block for as long as it likes.
        most: Lines that wait; all beyond are dropped and counted.
    """

    def __init__(self, render: Render, write: Callable[[bytes], None], *, most: int = 10_000) -> None:
        self._render = render
        self._write = write
        self._most = most
        self.dropped = 0
        """Lines dropped since the process began."""
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self._queue: deque[Line | threading.Event] = deque()
        self._wake = threading.Event()
        self._awake = False
        self._hurry = False
        self._told = 0
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def put(self, line: Line) -> None:
        """Take a line; never waits. From any thread."""
        if len(self._queue) >= self._most:
            self.dropped += 1
            return
        self._queue.append(line)
        if not self._awake:
            self._rouse()

    def _rouse(self) -> None:
        self._awake = True
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="asgi_llm_gateway-log", daemon=True)
                    self._thread.start()
        self._wake.set()

    def flush(self, seconds: float = 2.0) -> bool:
        """Wait until what was put before is written, for so long at most; whether it is."""
        if not self._queue and not self._awake:
            return True
        done = threading.Event()
        self._hurry = True
        self._queue.append(done)
        self._rouse()
        return done.wait(seconds)

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if not self._hurry:
                time.sleep(_GATHER)
            self._wake.clear()
            self._hurry = False
            self._drain()
            # In this order: a line put before ``_awake`` falls is seen here, one put afterwards wakes the thread anew.
            self._awake = False
            if self._queue:
                self._awake = True
                self._wake.set()

    def _drain(self) -> None:
        queue = self._queue
        parts: list[bytes] = []
        size = 0
        while queue:
            line = queue.popleft()
            if isinstance(line, Line):
                part = self._rendered(line)
                if size + len(part) > _ATOMIC:
                    self._out(parts)
                    parts, size = [], 0
                parts.append(part)
                size += len(part)
            else:
                self._out(parts)
                parts, size = [], 0
                line.set()
            dropped = self.dropped - self._told
            if dropped:
                self._told += dropped
                said = "log lines were dropped: whoever reads the log is too slow"
                queue.appendleft(Line(time.time(), "warning", said, {"lines": dropped}))
        self._out(parts)

    def _rendered(self, line: Line) -> bytes:
        try:
            return self._render(line)
        except Exception as error:  # a field that can't be written: the rest of the log goes on
            return self._render(
                Line(line.at, "error", "a log line could not be written", {"error": type(error).__name__})
            )

    def _out(self, parts: list[bytes]) -> None:
        if not parts:
            return
        try:
            self._write(b"".join(parts))
        except (OSError, ValueError):  # nobody reads any more: there is nowhere to say so
            self.dropped += len(parts)
            self._told += len(parts)
            time.sleep(_PAUSE)


_all: weakref.WeakSet[LogWriter] = weakref.WeakSet()


def _forked() -> None:
    """Threads do not live on in a forked process; what was queued is the parent's to write."""
    for writer in tuple(_all):
        writer._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def to_descriptor(descriptor: int) -> Callable[[bytes], None]:
    """A ``write`` to a file descriptor, blocking or not; each time all of it."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:  # an event loop may have made the pipe so
                select.select((), (descriptor,), (), _PAUSE)

    return write


def to_stream(stream: Any) -> Callable[[bytes], None]:
    """A ``write`` to a text stream: to its descriptor where it has one."""
    try:
        return to_descriptor(stream.fileno())
    except (OSError, ValueError, AttributeError):
        pass

    def write(data: bytes) -> None:
        stream.write(data.decode())
        stream.flush()

    return write


__all__ = ["Line", "LogWriter", "Render", "to_descriptor", "to_stream"]
