"""A sliding window over the ``limits`` package, on a storage of our own that costs no task a request."""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple, cast

try:
    from limits import RateLimitItem
    from limits.aio.storage import SlidingWindowCounterSupport, Storage
    from limits.aio.strategies import SlidingWindowCounterRateLimiter
    from limits.limits import Granularity
except ModuleNotFoundError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError(
        "RateLimitMiddleware needs: pip install 'asgi-llm-gateway[ratelimit]'", name=error.name
    ) from None


class Window(NamedTuple):
    """Where a caller stands.

    ``reset`` is seconds until nothing counts any more, ``retry`` seconds until the next hit is admitted, ``seconds`` the
    window's length.
    """

    admitted: bool
    limit: int
    remaining: int
    reset: float
    retry: float
    seconds: float


_window = tuple.__new__  # what Window(...) does, less a frame: one is made for every request


class _Milliseconds(RateLimitItem):
    """A window in milliseconds: RATE_LIMIT_WINDOW_MS need not be whole seconds."""

    GRANULARITY = Granularity(0.001, "millisecond")  # type: ignore[arg-type]


class WindowStorage(Storage, SlidingWindowCounterSupport):
    """Counters of this process, for the sliding window only.

    The package's own memory storage starts a task on most requests, which walks all keys: its cost grows with the
    number of tenants. This one keeps two counters a key and forgets those of past windows when a new one begins.
    """

    STORAGE_SCHEME = ["async+gatewaywindow"]  # noqa: RUF012 - declared so by the package

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **options: Any) -> None:
        super().__init__(uri, wrap_exceptions, **options)
        self._counts: dict[str, list[int]] = {}  # key: [number of the window, count in it, count in the one before]
        self._swept = 0
        self._lock = threading.Lock()

    @property
    def base_exceptions(self) -> type[Exception]:
        """See limits."""
        return ValueError

    def _look(self, key: str, expiry: float, now: float) -> tuple[list[int], float]:
        """The counters of a key, rolled on to the present, and how much of the window before still counts (0 to 1)."""
        number = int(now / expiry)
        counts = self._counts.get(key)
        if counts is None:
            if number != self._swept:
                self._swept = number
                for old in [name for name, one in self._counts.items() if one[0] < number - 1]:
                    del self._counts[old]
            counts = self._counts[key] = [number, 0, 0]
        elif counts[0] != number:
            counts[2] = counts[1] if counts[0] == number - 1 else 0
            counts[1] = 0
            counts[0] = number
        return counts, 1 - (now / expiry) % 1

    def take(self, key: str, limit: int, expiry: float) -> tuple[bool, int, float, int]:
        """One hit, in one step: admitted, and the counts that ``stand`` takes.

        The strategy's ``hit`` and ``get_window_stats`` would look the key up twice.
        """
        now = time.time()
        with self._lock:  # threads may share an instance; nothing in here waits
            counts = self._counts.get(key)
            if counts is not None and counts[0] == int(now / expiry):  # as it mostly is
                weight = 1 - (now / expiry) % 1
            else:
                counts, weight = self._look(key, expiry, now)
            admitted = int(counts[2] * weight + counts[1]) + 1 <= limit
            if admitted:
                counts[1] += 1
            return admitted, counts[2], weight, counts[1]

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: float, amount: int = 1) -> bool:
        """See limits."""
        counts, weight = self._look(key, expiry, time.time())
        if int(counts[2] * weight + counts[1]) + amount > limit:
            return False
        counts[1] += amount
        return True

    async def get_sliding_window(self, key: str, expiry: float) -> tuple[int, float, int, float]:
        """See limits."""
        counts, weight = self._look(key, expiry, time.time())
        return counts[2], weight * expiry if counts[2] else 0.0, counts[1], weight * expiry + expiry

    async def clear_sliding_window(self, key: str, expiry: float) -> None:
        """See limits."""
        self._counts.pop(key, None)

    async def clear(self, key: str) -> None:
        """See limits."""
        self._counts.pop(key, None)

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """See limits."""
        counts, _ = self._look(key, expiry, time.time())
        counts[1] += amount
        return counts[1]

    async def get(self, key: str) -> int:
        """See limits."""
        counts = self._counts.get(key)
        return counts[1] if counts is not None else 0

    async def get_expiry(self, key: str) -> float:
        """See limits."""
        return time.time()

    async def check(self) -> bool:
        """See limits."""
        return True

    async def reset(self) -> int | None:
        """See limits."""
        number = len(self._counts)
        self._counts.clear()
        return number


class WindowLimiter:
    """So many hits in a sliding window, per name.

    Args:
        limit: Hits in a window.
        seconds: The window's length; a millisecond is the smallest step.
        storage: Where ``limits`` counts; this process where none is given.
    """

    def __init__(self, limit: int, seconds: float, storage: Storage | None = None) -> None:
        self._limit = limit
        self._seconds = seconds
        self._item = _Milliseconds(limit, max(1, round(seconds * 1000)), "gateway")
        storage = storage or WindowStorage()
        self._own = storage if isinstance(storage, WindowStorage) else None
        self._prefix = self._item.key_for("")
        self._expiry = self._item.get_expiry()
        self._strategy = SlidingWindowCounterRateLimiter(storage)

    def hit_here(self, name: str) -> Window | None:
        """The same as ``hit`` where this process counts, without waiting; ``None`` where somebody else does."""
        if self._own is None:
            return None
        limit, seconds = self._limit, self._seconds
        admitted, before, weight, now = self._own.take(name + self._prefix, limit, self._expiry)
        return _window(Window, (admitted, limit, *stand(before, weight, now, limit, seconds), seconds))

    async def hit(self, name: str) -> Window:
        """Count one hit, if it is admitted, and say where ``name`` stands."""
        window = self.hit_here(name)
        if window is not None:
            return window
        admitted = await self._strategy.hit(self._item, name)
        storage = cast(SlidingWindowCounterSupport, self._strategy.storage)
        before, _, now, left = await storage.get_sliding_window(self._item.key_for(name), self._expiry)
        weight = min(1.0, max(0.0, (left - self._expiry) / self._expiry))
        remaining, reset, retry = stand(before, weight, now, self._limit, self._seconds)
        return Window(admitted, self._limit, remaining, reset, retry, self._seconds)


def stand(before: int, weight: float, now: int, limit: int, seconds: float) -> tuple[int, float, float]:
    """Hits that remain, seconds until all do, and seconds until the next one is admitted.

    ``before`` hits of the last window count by ``weight`` (1 to 0, falling while the present window runs), ``now`` whole.
    """
    remaining = max(0, limit - int(before * weight + now))
    left = weight * seconds
    if not now:
        reset = left if before else 0.0
    else:
        reset = left + seconds
    if remaining:
        return remaining, reset, 0.0
    if now < limit:  # the last window's share must fall below what is free
        return remaining, reset, (weight - (limit - now) / before) * seconds
    return remaining, reset, left + (1 - limit / now) * seconds
