"""A Redis that can only help: a call waits for it once, and then nobody does until it has answered in the background."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from ..errors import StoreError
from ._batch import Batches, Job
from ._redis_wire import Command, Wire, run


class Aside(ABC):
    """The commands of one event loop to such a Redis, in batches.

    Attributes:
        up: Whether it is asked: it answered when it was last tried.
    """

    def __init__(self, wire: Wire, patience: float) -> None:
        self.up = True
        self._patience = patience
        self._wire = wire
        self._batches: Batches[Command] = Batches(self._run, patience=patience)
        self._using = asyncio.Lock()  # one batch at a time has the connection, a probe's too
        self._probing: asyncio.Task[None] | None = None

    async def _run(self, jobs: list[Job[Command]]) -> None:
        if not self.up:
            raise StoreError("Redis does not answer")
        try:
            async with self._using:
                replies = await run(self._wire, [job.work for job in jobs], self._patience)
        except StoreError as error:
            self._lose(error)
            raise
        for job, reply in zip(jobs, replies, strict=True):
            if isinstance(reply, Exception):
                job.failed(StoreError(f"Redis: {reply}"))
            else:
                job.done(reply)

    def _lose(self, error: BaseException) -> None:
        """Ask no more, until it answers in the background."""
        if self.up:
            self.up = False
            self._lost(error)
            self._probing = asyncio.get_running_loop().create_task(self._probe())

    @abstractmethod
    def _lost(self, error: BaseException) -> None:
        """It does not answer any more; said once for each time."""

    @abstractmethod
    async def _probe(self) -> None:
        """Try until it answers, then set ``up``."""
