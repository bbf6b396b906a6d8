"""Which thread commits a batch: the event loop's own while that is quick, else one that may wait.

Measured on two shared cores and ext4 (``python -m benchmarks.ledger``), a hold and settle, with one client and with 16:
on the loop's thread 142 and 38 us of CPU, and a verb waits 0.06 and 0.31 ms; in a thread 206 and 43 us, 0.10 and 0.35 ms.
About 90 and 25 us of it are SQLite's own. What the loop must never do is wait for another writer or for the disk, so a batch
goes to the thread where another process writes or is in line, where its commit would begin the log anew (SQLite syncs then),
and for a while after some commits were slow all the same. Two processes that write flat out share within 1.6 times, and
wait 5 to 7 ms at the 99th percentile, 20 at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

from ..errors import StoreError
from ._batch import Job, Queue
from ._sqlite_file import PAGES, SQLiteFile
from ._sqlite_rows import CHUNK, Verb

log = logging.getLogger("asgi_llm_gateway")

SWEEP_EVERY = 15.0
"""Seconds, by the callers' clock, after which a batch first ends the holds that lapsed."""

GRACE = 5.0
"""Seconds for which closing waits for a database that is locked."""

SLOW = 0.005
"""Seconds from which on a commit on the loop's thread is slow."""

SLOW_COMMITS, SLOW_AMONG, SLOW_PAUSE = 5, 200, 60.0
"""So many slow commits among the last so many, and the thread commits for so many seconds."""

MOST = 64
"""Verbs in a batch: about a millisecond, in which the loop does nothing else."""


class Sweep(NamedTuple):
    """The verb that is no step of a batch: it takes as many transactions as it needs."""

    now: float
    charge: bool


class Writer(Queue[Verb | Sweep]):
    """The queue of one event loop before one file.

    Args:
        file: Ours alone.
        charge: Whether holds that a batch finds lapsed are charged.
        thread_only: Never commit on the loop's thread.
        patience: Seconds that a caller waits.
    """

    def __init__(self, file: SQLiteFile, *, charge: bool, thread_only: bool, patience: float) -> None:
        super().__init__(most=MOST, patience=patience)
        self.file = file
        self.loop = self._loop
        self.pid = os.getpid()
        self.clock: float | None = None  # the latest ``now`` of a caller
        self._swept: float | None = None
        self._charge = charge
        self._thread_only = thread_only
        self._thread_until = 0.0  # by the loop's clock
        self._commits = 0
        self._slow: deque[int] = deque(maxlen=SLOW_COMMITS)  # which commits were
        self._copying = False
        self._thread: threading.Thread | None = None
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle: asyncio.Future[None] | None = None

    # -- on the event loop ---------------------------------------------------------------------------------------------

    def _start(self) -> None:
        # Called soon, not now: what else arrives in this turn of the loop comes along.
        self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Carry out what waits, or have it carried out."""
        batch = self._take()
        file = self.file
        sweeps = type(batch[0].work) is Sweep
        due = self._sweep_is_due() and not sweeps
        if (
            sweeps
            or due
            or self._thread_only
            or not file.ready
            or file.restarts
            or (self._thread_until and self._loop.time() < self._thread_until)
        ):
            self._hand_over(batch, due)
            return
        began = time.perf_counter()
        try:
            answers = file.attempt([job.work for job in batch])  # type: ignore[misc]
        except Exception:  # the thread does it again, verb by verb if need be, and says what is wrong
            answers = None
        if answers is None:
            self._hand_over(batch, False)
            return
        self._commits += 1
        if time.perf_counter() - began > SLOW:
            self._was_slow()
        self._finish(batch, answers)

    def _sweep_is_due(self) -> bool:
        return self.clock is not None and (self._swept is None or abs(self.clock - self._swept) >= SWEEP_EVERY)

    def _take(self) -> list[Job[Verb | Sweep]]:
        waiting = self._waiting
        if len(waiting) <= MOST and Sweep not in [type(job.work) for job in waiting]:
            batch = self._batch = list(waiting)
            waiting.clear()
            return batch
        batch = self._batch = [waiting.popleft()]
        if type(batch[0].work) is not Sweep:
            while waiting and len(batch) < MOST and type(waiting[0].work) is not Sweep:
                batch.append(waiting.popleft())
        return batch

    def _was_slow(self) -> None:
        slow = self._slow
        slow.append(self._commits)
        if len(slow) == SLOW_COMMITS and self._commits - slow[0] < SLOW_AMONG:
            slow.clear()
            self._thread_until = self._loop.time() + SLOW_PAUSE
            log.info("commits to %s are slow: for %g s a thread makes them", self.file.path, SLOW_PAUSE)

    def _finish(self, batch: list[Job[Verb | Sweep]], answers: list[Any]) -> None:
        for job, answer in zip(batch, answers, strict=True):
            if isinstance(answer, StoreError):
                job.failed(answer)
            else:
                job.done(answer)
        self._batch = []
        if self.file.pages >= PAGES and not self._copying:
            self._copying = True
            threading.Thread(target=self._copy, name="sqlite-checkpoint", daemon=True).start()
        if self._waiting:
            self._loop.call_soon(self._next)
            return
        self._running = False
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _hand_over(self, batch: list[Job[Verb | Sweep]], sweep: bool) -> None:
        now = self.clock
        if sweep:
            self._swept = now

        def work() -> None:
            if sweep and now is not None:
                self._sweep_first(now)
            self._report(batch, self._answers(batch))

        self._tell(work)

    def _tell(self, task: Callable[[], None] | None) -> None:
        if self._thread is None:
            # A daemon, so that a process can end while somebody else's lock is waited for.
            self._thread = threading.Thread(target=self._work, name="sqlite-ledger", daemon=True)
            self._thread.start()
        self._tasks.put(task)

    async def close(self) -> None:
        """Refuse what is new, carry out what waits while there is hope, and close the file."""
        self._closed = True
        if self._running:
            self._idle = self._loop.create_future()
            await asyncio.wait([self._idle], timeout=GRACE)
            if self._running:
                self.file.give_up = True
                await asyncio.wait([self._idle], timeout=1.0)
                self._fail((*self._batch, *self._waiting), StoreError("the ledger was closed before it could be done"))
                self._waiting.clear()
        self._end_watch()
        closed = self._loop.create_future()
        self.drop(lambda: self._loop.call_soon_threadsafe(closed.set_result, None))
        await asyncio.wait([closed], timeout=1.0)

    def drop(self, then: Callable[[], object] = lambda: None) -> None:
        """Close the file, in the thread: that may copy the log."""
        self.file.give_up = True

        def end() -> None:
            self.file.close()
            with contextlib.suppress(RuntimeError):  # nobody listens any more
                then()

        self._tell(end)
        self._tell(None)

    # -- in the threads ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()

    def _answers(self, batch: list[Job[Verb | Sweep]]) -> list[Any]:
        first = batch[0].work
        try:
            if isinstance(first, Sweep):
                return [self.file.sweep(first.now, first.charge, whole=True)]
            return self.file.carry_out([job.work for job in batch])  # type: ignore[misc]
        except StoreError as error:
            return [error] * len(batch)
        except Exception as error:  # a mistake of ours must not end the thread
            log.exception("a batch failed")
            return [StoreError(type(error).__name__)] * len(batch)

    def _sweep_first(self, now: float) -> None:
        try:
            if self.file.sweep(now, self._charge, whole=False) >= CHUNK:
                self._swept = None  # the next batch goes on
        except StoreError as error:
            # The batch itself says so where nothing can be written; a hold that can't be read must not stop all calls.
            log.warning("holds that lapsed could not be swept: %s", error)

    def _report(self, batch: list[Job[Verb | Sweep]], answers: list[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._finish, batch, answers)

    def _copy(self) -> None:
        try:
            self.file.checkpoint()
        finally:
            self._copying = False
