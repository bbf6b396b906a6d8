"""Traces on their way to a database: queued in a microsecond, written in batches by a thread, and there when asked for.

A database that is slow, locked or away stops no call: what waits is bounded, and the oldest of it goes first.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import thread as _thread  # noqa: F401 - who opens a database needs it, and at the end it can't load
from typing import Protocol

from ..errors import StoreError
from ..records import TraceRecord
from ..tracelog import Packed, packed

log = logging.getLogger("asgi_llm_gateway")

FULL = 500
"""Calls that wait, from which on they are written at once."""

GRACE = 5.0
"""Seconds for which a clean end waits until all is written."""

PRUNE_EVERY = 15.0
"""Seconds, about, after which what is too old or too much is deleted."""

_PAUSES = (0.5, 1.0, 2.0, 5.0)  # seconds between attempts while the database is away; then always the last
_TRIES_AT_END = 3  # a database that is away does not hold the end up for long
_TELL_EVERY = 60.0  # seconds between two lines that tell of lost traces


class Rows(Protocol):
    """The table, as the thread writes to it. All of it may wait; no two calls come at once.

    Attributes:
        most: Calls that are written at once.
    """

    most: int

    def write(self, calls: Sequence[Packed]) -> None:
        """Keep all these calls or none; each once, also where the same ones come again after a StoreError.

        Raises StoreError where the database is to blame, and anything else where one of the calls can't be kept.
        """
        ...

    def prune(self) -> bool:
        """Delete some of what is too old or too much, a short step; whether there is more. Raises StoreError."""
        ...

    def close(self) -> None:
        """Give back what is held open; a later call opens it anew."""
        ...


class TraceWriter:
    """A bounded queue of calls, and the thread that writes them, which is started by the first one.

    Args:
        opened: Makes the table's writer, in the thread, once a process.
        most: Calls that wait.
        every: Seconds after which a call is written, at the latest, while the database answers.
    """

    def __init__(self, opened: Callable[[], Rows], *, most: int = 10_000, every: float = 1.0) -> None:
        self._opened = opened
        self._most = most
        self._every = every
        self.lost = 0
        """Calls that were dropped since the process began: the queue was full, or they could not be kept."""
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self._queue: deque[Packed] = deque(maxlen=self._most)
        self._batch: list[Packed] = []  # being written, or to be tried again
        self._asked: deque[Future[None]] = deque()
        self._wake = threading.Event()  # there is something to do
        self._hurry = threading.Event()  # now
        self._awake = False
        self._ending = False
        self._until = 0.0
        self._failures = 0
        self._fault: StoreError | None = None
        self._told = 0
        self._tell_next = 0.0
        self._prune_next = 0.0
        self._rows: Rows | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    # -- from any thread -----------------------------------------------------------------------------------------------

    def add(self, record: TraceRecord) -> None:
        """Take a call; never waits."""
        queue = self._queue
        waiting = len(queue)
        if waiting >= self._most:
            self._lose()  # the oldest
        queue.append(packed(record))
        if not self._awake:
            self._rouse()
        elif waiting == FULL and not self._failures:
            self._hurry.set()

    def _lose(self) -> None:
        global _lost
        self.lost += 1
        _lost += 1

    @property
    def idle(self) -> bool:
        """Nothing waits to be written."""
        return not (self._queue or self._batch)

    def flush(self) -> Future[None]:
        """Done when all that was added before is written; fails with StoreError when that was tried in vain."""
        done: Future[None] = Future()
        if self.idle:
            done.set_result(None)
            return done
        self._asked.append(done)
        self._rouse()
        self._hurry.set()
        return done

    def end(self, seconds: float = GRACE) -> bool:
        """Write what waits, for so long at most, and end the thread; whether all is written. A later ``add`` begins anew."""
        with self._starting:
            thread = self._thread
            if thread is None:
                return self.idle
            self._until = time.monotonic() + seconds
            self._ending = True
        self._hurry.set()
        self._wake.set()
        thread.join(seconds)
        if not self.idle:
            log.warning("%d traces were not written: the store did not answer in time", self._left())
        return self.idle

    def _left(self) -> int:
        return len(self._queue) + len(self._batch)

    def _rouse(self) -> None:
        self._awake = True
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._ending = False
                    # A daemon, so that a process can end while the database is waited for.
                    self._thread = threading.Thread(target=self._run, name="asgi_llm_gateway-traces", daemon=True)
                    self._thread.start()
        self._wake.set()

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            if self._wake.wait(PRUNE_EVERY):
                self._hurry.wait(_PAUSES[min(self._failures, len(_PAUSES)) - 1] if self._failures else self._every)
                self._hurry.clear()
                self._wake.clear()
                self._drain()
                # In this order: a call added before ``_awake`` falls is seen here, one added afterwards rouses anew.
                self._awake = False
                if not self.idle or self._asked:
                    self._awake = True
                    self._wake.set()
                    if len(self._queue) >= FULL and not self._failures:
                        self._hurry.set()
            if self._ending and self._may_end():
                return
            self._prune()

    def _may_end(self) -> bool:
        """End, unless something waits that could yet be written."""
        with self._starting:
            if not self.idle and self._failures < _TRIES_AT_END and time.monotonic() < self._until:
                return False
            self._close()
            self._thread = None
            self._awake = False
            return True

    def _drain(self) -> None:
        """Write all that waits; where that fails, keep it for the next time."""
        while True:
            asked = [self._asked.popleft() for _ in range(len(self._asked))]
            if not self._write_all():
                fault = self._fault or StoreError("traces could not be written")
                _tell(asked, fault)
                return
            _tell(asked, None)
            if not self._asked:
                break
        self._tell_lost()

    def _write_all(self) -> bool:
        """Write what waits now; what comes meanwhile is for the next time. False where the database did not take it."""
        queue, batch = self._queue, self._batch
        left = len(queue) + len(batch)
        try:
            if left and self._rows is None:
                self._rows = self._opened()
            while left > 0 and self._rows is not None:
                while queue and len(batch) < self._rows.most:
                    batch.append(queue.popleft())
                left -= len(batch)
                self._write(self._rows, batch)
        except StoreError as error:
            self._failed(error)
            return False
        if self._failures:
            log.warning("traces are written again")
            self._failures, self._fault = 0, None
        return True

    def _write(self, rows: Rows, batch: list[Packed]) -> None:
        try:
            rows.write(batch)
            batch.clear()
            return
        except StoreError:
            raise
        except Exception as error:  # one row that no store takes must not keep back the others
            fault = error
        while batch:  # what can't be kept is left out, and not what came with it
            try:
                rows.write(batch[:1])
            except StoreError:
                raise
            except Exception as error:  # this is the one
                fault = error
                self._lose()
                self._told += 1  # here
            del batch[0]
        log.warning("a trace could not be kept: %s", type(fault).__name__)

    def _failed(self, error: StoreError) -> None:
        if not self._failures:
            log.warning("traces can't be written: %s; the last %d wait, and calls go on", error, self._most)
        self._failures += 1
        self._fault = error
        self._close()

    def _tell_lost(self) -> None:
        lost, now = self.lost, time.monotonic()
        if lost > self._told and now >= self._tell_next:
            log.warning("%d traces were lost: more came than could be written (TRACE_QUEUE)", lost - self._told)
            self._told, self._tell_next = lost, now + _TELL_EVERY

    def _prune(self) -> None:
        """Delete while nobody waits to be written."""
        now = time.monotonic()
        if now < self._prune_next or self._rows is None or self._failures:
            return
        try:
            while self._rows.prune():
                if self._asked or self._ending or len(self._queue) >= FULL:
                    return  # and go on afterwards
        except StoreError as error:
            log.warning("traces could not be pruned: %s", error)
        except Exception:  # a mistake of ours must not end the thread
            log.exception("traces could not be pruned")
        self._prune_next = now + PRUNE_EVERY * random.uniform(0.5, 1.5)  # workers take turns

    def _close(self) -> None:
        if self._rows is not None:
            try:
                self._rows.close()
            except Exception:  # it is opened anew all the same
                log.exception("the traces' store could not be closed")


_lost = 0


def lost_traces() -> int:
    """Calls that were dropped since the process began, by whatever queue."""
    return _lost


def _tell(asked: Sequence[Future[None]], fault: StoreError | None) -> None:
    for one in asked:
        if one.set_running_or_notify_cancel():  # some have given up waiting
            if fault is None:
                one.set_result(None)
            else:
                one.set_exception(fault)


_all: weakref.WeakSet[TraceWriter] = weakref.WeakSet()


def _forked() -> None:
    """Threads and connections do not live on in a forked process; what was queued is the parent's to write."""
    for writer in tuple(_all):
        writer._begin()


def _exiting() -> None:
    """An app that is never told of its end (mounted, without ``lifespan``) keeps its last calls all the same."""
    for writer in tuple(_all):
        writer.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
atexit.register(_exiting)

__all__ = ["FULL", "GRACE", "PRUNE_EVERY", "Rows", "TraceWriter", "lost_traces"]
