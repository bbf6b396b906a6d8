"""Answers kept in this process: bounded by bytes and by time, the least recently used go first."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

try:
    from cachetools import TLRUCache
except ModuleNotFoundError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError("caching needs: pip install 'asgi-llm-gateway[cache]'", name=error.name) from None

from .kept import Kept


class MemoryAnswers:
    """Answers by key. Event loops in several threads may share one.

    Args:
        max_bytes: Bytes that all answers together may take.
        ttl: Seconds that an answer is kept after it was made.
        clock: Unix time in seconds.
    """

    def __init__(self, *, max_bytes: int, ttl: float, clock: Callable[[], float] = time.time) -> None:
        self._answers: TLRUCache[bytes, Kept] = TLRUCache(
            max_bytes, ttu=lambda _, kept, now: kept.made + ttl, timer=clock, getsizeof=lambda kept: kept.size
        )
        self._lock = Lock()

    def get(self, key: bytes) -> Kept | None:
        """The answer under a key, if it is there."""
        with self._lock:
            try:
                return self._answers[key]
            except KeyError:
                return None

    def put(self, key: bytes, kept: Kept) -> None:
        """Keep an answer. One that is larger than all the room is not kept."""
        with self._lock:
            try:
                self._answers[key] = kept
            except ValueError:  # "value too large"
                self._answers.pop(key, None)

    @property
    def size(self) -> int:
        """Bytes that the answers take, roughly."""
        with self._lock:
            self._answers.expire()
            return int(self._answers.currsize)

    def __len__(self) -> int:
        with self._lock:
            self._answers.expire()
            return len(self._answers)


__all__ = ["MemoryAnswers"]
