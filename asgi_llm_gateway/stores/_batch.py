"""Operations that arrive together go to the backend together: one commit, one pipeline, one round trip for all."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, TypeVar

from ..errors import StoreError

log = logging.getLogger("asgi_llm_gateway")

T = TypeVar("T")

MOST_WAITING = 10_000
"""Operations that may wait for a backend; further ones fail at once, so that an outage fills no memory."""

PATIENCE = 1.0
"""Seconds that a caller waits for an operation. It is carried out all the same, in its order, when the backend can."""


class Job(Generic[T]):
    """One operation: what to do, and the future that its caller waits for."""

    __slots__ = ("future", "since", "work")

    def __init__(self, work: T, future: asyncio.Future[Any], since: float) -> None:
        self.work = work
        self.future = future
        self.since = since

    def done(self, result: Any) -> None:
        """It came to ``result``; nobody may be waiting any more."""
        if not self.future.done():
            self.future.set_result(result)

    def failed(self, error: StoreError) -> None:
        """It failed."""
        if not self.future.done():
            self.future.set_exception(error)


class Queue(ABC, Generic[T]):
    """The operations of one event loop, in the order in which they came: those that wait, and the batch that runs.

    A subclass says in ``_start`` how they are carried out: it takes batches until nothing waits, then clears ``_running``.

    Args:
        most: Jobs in a batch.
        patience: Seconds that a caller waits.
    """

    def __init__(self, *, most: int = 256, patience: float = PATIENCE) -> None:
        self._most = most
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Job[T]] = deque()
        self._batch: list[Job[T]] = []
        self._running = False
        self._watch: asyncio.TimerHandle | None = None
        self._closed = False

    def submit(self, work: T) -> asyncio.Future[Any]:
        """Queue an operation. The future fails with StoreError: refused, not in time (yet to be done), or gone wrong."""
        future = self._loop.create_future()
        if self._closed or len(self._waiting) >= MOST_WAITING:
            future.set_exception(StoreError("closed" if self._closed else "too many operations wait for it"))
            return future
        self._waiting.append(Job(work, future, self._loop.time()))
        if not self._running:
            self._running = True
            self._start()
        if self._watch is None:
            self._watch = self._loop.call_later(self._patience, self._look)
        return future

    @abstractmethod
    def _start(self) -> None:
        """Begin to take batches; each subclass in its own way."""

    def _take(self) -> list[Job[T]]:
        """The next batch."""
        waiting = self._waiting
        batch = self._batch = [waiting.popleft() for _ in range(min(self._most, len(waiting)))]
        return batch

    def _fail(self, jobs: Iterable[Job[T]], error: StoreError) -> None:
        for job in jobs:
            job.failed(error)

    def _look(self) -> None:
        """Let those go that have waited too long."""
        self._watch = None
        now = self._loop.time()
        late = StoreError(f"no answer within {self._patience:g} s")
        oldest: float | None = None
        for job in (*self._batch, *self._waiting):
            if job.future.done():
                continue
            if now - job.since >= self._patience:
                job.failed(late)
            elif oldest is None:
                oldest = job.since
        if oldest is not None:
            self._watch = self._loop.call_at(oldest + self._patience, self._look)

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


class Batches(Queue[T]):
    """Runs the operations of one event loop batch by batch, in a task that lives while there are any.

    What arrives in one turn of the loop, or while a batch runs, is the next batch.

    Args:
        run: Carries a batch out, and calls ``done`` or ``failed`` of each job. What it raises fails those that are left.
        most: Jobs in a batch.
        patience: Seconds that a caller waits.
    """

    def __init__(
        self, run: Callable[[list[Job[T]]], Awaitable[None]], *, most: int = 256, patience: float = PATIENCE
    ) -> None:
        super().__init__(most=most, patience=patience)
        self._run = run
        self._task: asyncio.Task[None] | None = None

    def _start(self) -> None:
        self._task = self._loop.create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch = self._take()
                try:
                    await self._run(batch)
                except StoreError as error:
                    self._fail(batch, error)
                except Exception as error:  # a mistake of ours, or a driver's: the callers must not wait for it
                    # Its text is for the log: what a StoreError says, a client may read.
                    log.exception("a batch failed")
                    self._fail(batch, StoreError(type(error).__name__))
        finally:
            self._batch = []
            self._running = False
            self._task = None

    async def close(self) -> None:
        """Refuse what is new, and carry out what waits."""
        self._closed = True
        if self._task is not None:
            await asyncio.shield(self._task)
        self._end_watch()
