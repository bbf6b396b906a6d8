"""A place to wait for calls that are over their limit: first come, first served; one line for each caller, none before others.

Nobody is called by a task of its own: each call waits in its own, and only the first of a line asks again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ..exchange import ClientGone
from ..rates.tally import Tally
from ..rates.wants import NEVER, Verdict, Want

POLL = 0.05
"""Seconds after which the first of a line asks again where other processes may have made room."""

T = TypeVar("T")
Said = tuple[Sequence[Want], Verdict]
"""What somebody wanted, and what was said to that."""


class Waiter:
    """One call in a line."""

    __slots__ = ("_poked", "_waking", "gone", "wants")

    def __init__(self, wants: Sequence[Want]) -> None:
        self.wants = wants
        self._waking: asyncio.Future[None] | None = None
        self._poked = False
        self.gone = False

    def poke(self) -> None:
        """Something has changed."""
        self._poked = True
        if self._waking is not None and not self._waking.done():
            self._waking.set_result(None)

    def leave(self) -> None:
        """The client hung up."""
        self.gone = True
        self.poke()

    async def pause(self, seconds: float) -> None:
        """Wait until something changes, or for so long."""
        if not self._poked:
            loop = asyncio.get_running_loop()
            self._waking = loop.create_future()
            timer = loop.call_later(seconds, self.poke)
            try:
                await self._waking
            finally:
                timer.cancel()
                self._waking = None
        self._poked = False


class Line:
    """The calls of one caller, in the order in which they came."""

    __slots__ = ("last", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Waiter] = deque()
        self.last: Said | None = None


class Lines:
    """The lines of one event loop.

    Args:
        seconds: How long a call may wait.
        most: Calls in one line; a further one is refused at once.
        tally: What is counted for metrics.
        poll: Seconds after which to ask again although nothing changed here; ``NEVER`` where nobody else makes room.
    """

    def __init__(self, seconds: float, most: int, tally: Tally, *, poll: float = NEVER) -> None:
        self._seconds = seconds
        self._most = most
        self._tally = tally
        self._poll = poll
        self._lines: dict[str, Line] = {}

    def __len__(self) -> int:
        """Calls that wait."""
        return sum(len(line.waiting) for line in self._lines.values())

    def busy(self, name: str) -> bool:
        """Whether somebody waits in a line."""
        return name in self._lines

    def poke(self, tenant: str) -> None:
        """There may be room for the first of a tenant's lines."""
        if self._lines:
            for name, line in self._lines.items():
                if name == tenant or name.startswith(tenant + " "):
                    line.waiting[0].poke()

    async def wait(
        self,
        name: str,
        waiter: Waiter,
        ask: Callable[[], Awaitable[tuple[Verdict, T | None]]],
        first: Verdict | None,
    ) -> tuple[Said | None, T | None]:
        """Wait for admission at the end of a line.

        Args:
            name: The line's: a tenant's id, followed by a space and a key's account where that has limits of its own.
            waiter: The call; its ``leave`` ends the wait.
            ask: Takes what the call wants, or says what there is too little of.
            first: What was said already.

        Returns:
            What was said last in the line (``None`` where nothing was), and what was taken where the call is admitted.

        Raises:
            ClientGone: The client hung up; nothing was taken.
        """
        line = self._lines.setdefault(name, Line())
        said = (waiter.wants, first) if first is not None else None
        if len(line.waiting) >= self._most or (said is not None and _hopeless(said, self._seconds)):
            if not line.waiting:
                del self._lines[name]
            return said or line.last, None
        line.last = said or line.last
        line.waiting.append(waiter)
        self._tally.queued += 1
        loop = asyncio.get_running_loop()
        until, asked = loop.time() + self._seconds, first is not None
        try:
            while True:
                if waiter.gone:
                    self._tally.left += 1
                    raise ClientGone
                left = until - loop.time()
                if left <= 0:
                    break
                pause = left
                if line.waiting[0] is waiter:
                    if not asked:
                        verdict, taken = await ask()
                        said = line.last = waiter.wants, verdict
                        if taken is not None:
                            return said, taken
                        if _hopeless(said, until - loop.time()):
                            break
                    asked = False
                    if said is not None:
                        pause = min(left, self._poll, max(stand.retry for stand in said[1].stands) + 0.001)
                await waiter.pause(pause)
            self._tally.gave_up += 1
            return said or line.last, None
        finally:
            line.waiting.remove(waiter)
            if line.waiting:
                line.waiting[0].poke()
            else:
                del self._lines[name]


def _hopeless(said: Said, seconds: float) -> bool:
    """Whether a call can't be admitted within so many seconds: tokens may be given back any time, requests never are."""
    return any(
        stand.retry == NEVER or (one.what == "requests" and stand.retry > seconds)
        for one, stand in zip(said[0], said[1].stands, strict=True)
    )
