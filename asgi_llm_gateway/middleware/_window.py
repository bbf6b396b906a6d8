"""The windows of this process as a storage of the ``limits`` package, for its moving window strategy.

The package's own memory storage keeps an entry for each unit, walks all keys in a task that most requests start, and takes
one limit at a time. Ours counts tokens by the thousand, forgets by itself, and takes several limits at once or none. The
middleware calls the windows directly; whoever has a use for the strategy gets the same decisions from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

try:
    from limits.aio.storage import MovingWindowSupport, Storage
except ModuleNotFoundError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError(
        "RateLimitMiddleware needs: pip install 'asgi-llm-gateway[ratelimit]'", name=error.name
    ) from None

from ..rates.wants import want
from ..rates.windows import Windows


class WindowStorage(Storage, MovingWindowSupport):
    """Counts of this process, for sliding windows only.

    Args:
        uri: Of no use here; the package passes one.
        wrap_exceptions: See limits.
        clock: Seconds that never go back.
        options: See limits.
    """

    STORAGE_SCHEME = ["async+gatewaywindow"]  # noqa: RUF012 - declared so by the package

    def __init__(
        self,
        uri: str | None = None,
        wrap_exceptions: bool = False,
        *,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        super().__init__(uri, wrap_exceptions, **options)
        self._clock = clock
        self._windows: dict[float, Windows] = {}

    def windows(self, seconds: float) -> Windows:
        """The windows of a length."""
        found = self._windows.get(seconds)
        if found is None:
            found = self._windows[seconds] = Windows(seconds, self._clock)
        return found

    @property
    def base_exceptions(self) -> type[Exception]:
        """See limits."""
        return ValueError

    async def acquire_entry(self, key: str, limit: int, expiry: float, amount: int = 1) -> bool:
        """See limits."""
        verdict, _ = self.windows(expiry).admit([want("requests", key, "", limit, amount)])
        return verdict.admitted

    async def get_moving_window(self, key: str, limit: int, expiry: float) -> tuple[float, int]:
        """See limits: the Unix time of the oldest entry, and how much counts."""
        count, age = self.windows(expiry).oldest(want("requests", key, "", limit, 0).name)
        return time.time() - age, count

    async def clear(self, key: str) -> None:
        """See limits."""
        for windows in self._windows.values():
            windows.drop(want("requests", key, "", 0, 0).name)

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """See limits."""
        windows, one = self.windows(expiry), want("requests", key, "", 0, amount)
        windows.record([one])
        return windows.total(one.name)

    async def get(self, key: str) -> int:
        """See limits."""
        name = want("requests", key, "", 0, 0).name
        return max((windows.total(name) for windows in self._windows.values()), default=0)

    async def get_expiry(self, key: str) -> float:
        """See limits."""
        return time.time()

    async def check(self) -> bool:
        """See limits."""
        return True

    async def reset(self) -> int | None:
        """See limits."""
        number = sum(len(windows.names()) for windows in self._windows.values())
        self._windows.clear()
        return number
