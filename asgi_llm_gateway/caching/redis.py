"""Answers that processes and machines share, in Redis. It can only help: down, slow or lying, it is as if nothing were kept.

A call waits for Redis once, for at most ``patience``. Then nobody asks it until it has answered in the background, where it is
tried again after a while that grows while it stays away, and where a connection may take its time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ..errors import StoreError
from ..stores._batch import Batches, Job
from ..stores._redis_wire import Cluster, Command, Single, Wire, run
from .kept import Kept, read, written

log = logging.getLogger("asgi_llm_gateway")

REST, LONGEST_REST = 0.2, 10.0
"""Seconds after which a Redis that did not answer is tried again: at first, doubled each time, and at most."""

_CONNECT = 2.0  # seconds; nobody waits for it


class _Line(Single):
    """One server. It may drop answers when it is full, unlike money: its memory policy is not looked at."""

    async def _connect(self) -> Any:
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        self._connection = connection
        try:
            await connection.connect()
        except BaseException:
            await self._hang_up()
            raise
        return connection


def _wire_to(url: str, patience: float) -> Wire:
    scheme, _, rest = url.partition("://")
    if scheme.endswith("+cluster"):
        return Cluster(f"{scheme.removesuffix('+cluster')}://{rest}", patience)
    return _Line(url, patience)


class RedisAnswers:
    """Answers by key, for one event loop.

    Args:
        url: As REDIS_URL.
        patience: Seconds that a call waits for Redis.
        ttl: Seconds that an answer is kept after it was made.
        prefix: What the names of all keys begin with.

    Raises:
        ValueError: The URL can't be read.
    """

    def __init__(self, url: str, *, patience: float, ttl: float, prefix: str = "gw:cache:") -> None:
        self._patience = patience
        self._ttl = ttl
        self._prefix = prefix
        self._wire = _wire_to(url, max(patience, _CONNECT))
        self._batches: Batches[Command] = Batches(self._run, patience=patience)
        self._using = asyncio.Lock()
        self._probing: asyncio.Task[None] | None = None
        self.up = True
        """Whether it is asked: it answered when it was last tried."""

    async def get(self, key: bytes) -> Kept | None:
        """The answer under a key; ``None`` also where Redis does not answer in time."""
        if not self.up:
            return None
        try:
            data = await asyncio.shield(self._batches.submit(("GET", self._name(key))))
        except StoreError as error:
            self._lose(error)
            return None
        return read(data, key) if type(data) is bytes else None

    def put(self, key: bytes, kept: Kept, now: float) -> None:
        """Keep an answer. Nobody waits for it."""
        left = round((kept.made + self._ttl - now) * 1000)
        if left > 0 and self.up:
            self._batches.submit(("SET", self._name(key), written(kept, key), "PX", left)).add_done_callback(_seen)

    def _name(self, key: bytes) -> str:
        return self._prefix + key.hex()

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
            log.warning("the cache in Redis is passed by until it answers again: %s", error)
            self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        rest = REST
        while True:
            await asyncio.sleep(rest)
            rest = min(rest * 2, LONGEST_REST)
            try:
                async with self._using:
                    await run(self._wire, [("PING",)], _CONNECT)
                    await run(self._wire, [("PING",)], self._patience)
            except StoreError:
                continue
            self.up = True
            self._probing = None
            log.info("the cache in Redis answers again")
            return

    async def close(self) -> None:
        """Write what waits, and hang up."""
        if self._probing is not None:
            self._probing.cancel()
        await self._batches.close()
        await self._wire.close()


def _seen(done: asyncio.Future[Any]) -> None:
    """Nobody waits for what was to be kept."""
    if not done.cancelled():
        done.exception()


__all__ = ["RedisAnswers"]
