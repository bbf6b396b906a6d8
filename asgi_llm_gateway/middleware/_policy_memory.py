"""Decisions of one event loop: remembered for a while, and asked for once however many calls wait for the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import sha256

from ..opa import Decision, PolicyFault

_LONG = 1024
"""Bytes of a question from which on its digest is kept in its place. A digest (32 bytes) is never as long as a question."""


class Decisions:
    """Asks, and remembers.

    Args:
        ask: Asks the policy; raises PolicyFault.
        seconds: How long a decision holds; 0 remembers nothing.
        most: Decisions that are remembered; the oldest goes first.
        clock: Unix time in seconds.
    """

    def __init__(
        self, ask: Callable[[bytes], Awaitable[Decision]], *, seconds: float, most: int, clock: Callable[[], float]
    ) -> None:
        self._ask = ask
        self._seconds = seconds
        self._most = most
        self._clock = clock
        # All live equally long, so that the order of insertion is that of expiry: a plain dictionary is enough.
        self._known: dict[bytes, tuple[Decision, float]] = {}
        self._asked: dict[bytes, asyncio.Task[Decision]] = {}
        self.failing = False
        """The last question was not answered."""

    def known(self, document: bytes) -> Decision | None:
        """A decision on that very question that is fresh enough."""
        found = self._known.get(document if len(document) < _LONG else sha256(document).digest())
        if found is None:
            return None
        decision, made = found
        # A clock that was set back does not prolong anything.
        return decision if 0 <= self._clock() - made < self._seconds else None

    async def find(self, document: bytes) -> Decision:
        """Ask, or wait for the same question that is under way. Raises PolicyFault."""
        key = document if len(document) < _LONG else sha256(document).digest()
        task = self._asked.get(key)
        if task is None:
            # A task of its own: the first caller may hang up, the others wait on.
            task = self._asked[key] = asyncio.get_running_loop().create_task(self._decide(key, document))
            task.add_done_callback(_seen)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # closed under way
                raise PolicyFault("the gateway is closing") from None
            raise

    async def _decide(self, key: bytes, document: bytes) -> Decision:
        asked = self._clock()  # the decision is as old as its question
        try:
            decision = await self._ask(document)
        finally:
            self._asked.pop(key, None)
        if self._seconds > 0:
            self._known.pop(key, None)
            while len(self._known) >= self._most:
                del self._known[next(iter(self._known))]
            self._known[key] = (decision, asked)
        return decision

    def __len__(self) -> int:
        return len(self._known)

    def close(self) -> None:
        """Ask no more."""
        for task in list(self._asked.values()):
            task.cancel()
        self._known.clear()


def _seen(task: asyncio.Task[Decision]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waited has it; nobody left is no fault of the loop's
