"""Answers that processes and machines share, in Redis. It can only help: down, slow or lying, it is as if nothing were kept.

A call waits for Redis once, for at most ``patience``. Then nobody asks it until it has answered in the background, where it is
tried again after a while that grows while it stays away, and where a connection may take its time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ..errors import StoreError
from ..stores._redis_aside import Aside
from ..stores._redis_wire import Cluster, Plain, Wire, run
from .kept import Kept, read, written

log = logging.getLogger("asgi_llm_gateway")

REST, LONGEST_REST = 0.2, 10.0
"""Seconds after which a Redis that did not answer is tried again: at first, doubled each time, and at most."""

_CONNECT = 2.0  # seconds; nobody waits for it


def _wire_to(url: str, patience: float) -> Wire:
    scheme, _, rest = url.partition("://")
    if scheme.endswith("+cluster"):
        return Cluster(f"{scheme.removesuffix('+cluster')}://{rest}", patience)
    return Plain(url, patience)


class RedisAnswers(Aside):
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
        super().__init__(_wire_to(url, max(patience, _CONNECT)), patience)
        self._ttl = ttl
        self._prefix = prefix

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

    def _lost(self, error: BaseException) -> None:
        log.warning("the cache in Redis is passed by until it answers again: %s", error)

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
