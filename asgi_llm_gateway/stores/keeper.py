"""What happens to holds beside the calls: renewal while they run, and another try where the store did not answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from ..booked import tell
from ..errors import StoreError
from ..records import CallRecord, Hold
from .base import Ledger

log = logging.getLogger("asgi_llm_gateway")

HOLD_SECONDS = 120.0
"""For so long a hold lives without renewal: so late the holds of a process that died are swept."""

_MOST_LATE = 10_000  # settles and releases that wait for the store; beyond it holds are left to lapse, charged whole
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0  # seconds between two tries


class Keeper:
    """Looks after the holds that one event loop has taken at a ledger.

    Args:
        ledger: The ledger.
        ttl: Seconds that a hold lives without renewal.
        charge: Whether a hold that lapsed is charged whole.
        clock: Unix time in seconds.
    """

    def __init__(
        self, ledger: Ledger, *, ttl: float = HOLD_SECONDS, charge: bool = True, clock: Callable[[], float] = time.time
    ) -> None:
        self.ledger = ledger
        self.ttl = ttl
        self._charge = charge
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._live: dict[str, Hold] = {}
        self._late: deque[tuple[Hold, CallRecord | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._wait = _FIRST_WAIT
        self._trying = False

    @property
    def waiting(self) -> int:
        """Settles and releases that the store has not taken yet."""
        return len(self._late)

    def add(self, hold: Hold) -> None:
        """A call runs under ``hold``: keep it alive."""
        self._live[hold.id] = hold
        if self._timer is None:
            self._timer = self._loop.call_later(self.ttl / 3, self._tick)

    def drop(self, hold: Hold) -> None:
        """The call is over."""
        self._live.pop(hold.id, None)

    def later(self, hold: Hold, record: CallRecord | None) -> None:
        """Settle a hold (release it, without a record) when the store answers again."""
        if len(self._late) >= _MOST_LATE:
            log.error("a call stays unsettled and will be charged whole: too many wait for the store")
            return
        self._late.append((hold, record))
        if not self._trying:
            self._trying = True
            self._start(self._try())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- renewal -------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = None
        if self._live:
            self._timer = self._loop.call_later(self.ttl / 3, self._tick)
            self._start(self._renew())

    async def _renew(self) -> None:
        """Renew what has run for a third of its time, and end what other processes left."""
        now = self._clock()
        ageing = [hold for hold in self._live.values() if hold.expires - now < self.ttl * 0.7]
        try:
            # Together: a store takes them in one batch.
            lived = await asyncio.gather(*(self.ledger.renew(hold, now=now, ttl=self.ttl) for hold in ageing))
            for hold, lives in zip(ageing, lived, strict=True):
                if not lives:  # swept already: its settle will put the truth in the place of the charge
                    self._live.pop(hold.id, None)
                elif hold.id in self._live:
                    self._live[hold.id] = hold._replace(expires=now + self.ttl)
            await self.ledger.sweep(now, charge=self._charge)
        except StoreError as error:
            log.warning("holds could not be renewed: %s", error)

    # -- another try ---------------------------------------------------------------------------------------------------

    async def _try(self) -> None:
        self._wait = _FIRST_WAIT
        try:
            while self._late:
                await asyncio.sleep(self._wait)
                await self._take_turns()
        finally:
            self._trying = False

    async def _take_turns(self) -> None:
        while self._late:
            hold, record = self._late[0]
            try:
                if record is None:
                    await self.ledger.release(hold)
                else:
                    await self.ledger.settle(hold, record)
                    tell(record)
            except Exception as error:
                if not isinstance(error, StoreError):  # a fault, of this one perhaps: the others get their turn
                    log.error("a call can't be settled: %s", type(error).__name__)
                    self._late.rotate(-1)
                self._wait = min(self._wait * 2, _LONGEST_WAIT)
                return
            self._late.popleft()
            self._wait = _FIRST_WAIT  # it answers again: a single failure later on is no outage

    async def close(self) -> None:
        """A last try for what waits; the rest lapses."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._take_turns()
        if self._late:
            log.error("%d calls stay unsettled and will be charged whole", len(self._late))
