"""From Redis to the archive: settled calls wait in an outbox for each tenant until SQL has them.

Any process may empty any outbox, several at once too: the archive books a call once however often it comes, and an entry
leaves the outbox only by its own id and after it is archived. So what a process leaves behind when it dies, others take.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson

from ..errors import StoreError
from ..records import About, CallRecord, Hold, Usage
from ._redis_wire import DRAINED, OUTBOX, Command
from .base import Archive

_log = logging.getLogger(__name__)

MOST = 500
"""Entries of one outbox that are moved at a time."""

TOGETHER = 64
"""Tenants whose entries go to the archive in one transaction."""

GATHER = 0.03
"""Seconds from a settle to the move: what else settles meanwhile goes along."""

LOOK_AROUND = 120.0
"""Seconds after which the outboxes of all tenants are looked at, for what a dead process left: also those nobody uses."""

LONGEST_PAUSE = 5.0
"""Seconds between attempts while the archive is down."""

LAST_TRY = 3.0
"""Seconds for which ``close`` goes on moving."""

_LOCKED = 10_000  # milliseconds for which an outbox is one process' to empty

Entry = tuple[bytes, Hold, CallRecord]
"""The entry's id in the stream, and what it says."""


def packed(record: CallRecord) -> bytes:
    """A record as it lies in the outbox."""
    return orjson.dumps([*record[:7], record.usage[:], *record[8:]])


def unpacked(tenant: str, entry: Any) -> Entry:
    """An entry of an outbox; the fields are those of ``push`` in common.lua, in that order."""
    at, (_, name, _, accounts, _, money, _, tokens, _, expires, _, spent, _, over, kind, what) = entry
    hold_id = name.decode()
    places = tuple(_account(place) for place in accounts.decode().split())
    hold = Hold(hold_id, tenant, int(money), int(tokens), float(expires), places, int(spent))
    if kind in (b"r", b"R"):  # "R": it came late, and takes the place of what the lapse was charged
        values = orjson.loads(what)
        values[7] = Usage(*values[7])
        record = CallRecord(*values)
        overdraft = int(over)
        return at, hold, record._replace(overdraft=overdraft) if overdraft else record
    about = About(*orjson.loads(what))
    # What Book.lapse records, for the whole hold was charged here too.
    record = CallRecord(
        hold=hold_id, tenant=tenant, request_id=about.request_id, trace_id=about.trace_id, key=about.key,
        model=about.model, usage=Usage(0, hold.tokens, estimated=True), cost=hold.money,
        started=about.started, ended=hold.expires, aborted=True, lapsed=True,
    )  # fmt: skip
    return at, hold, record


def _account(place: str) -> tuple[str, int]:
    account, _, window = place.rpartition(":")
    return account, int(window)


class Drainer:
    """The task that moves calls on. What it keeps in memory is names of tenants, and one batch.

    Args:
        ask: Sends one command to Redis.
        archive: Where calls are booked for good.
        prefix: See RedisLedger.
        mark: This process' name on the locks.
        patience: Seconds that the archive has for a batch, times ten: it is not a caller that waits.
    """

    def __init__(
        self, ask: Callable[[Command], Awaitable[Any]], archive: Archive, *, prefix: str, mark: str, patience: float
    ) -> None:
        self._ask = ask
        self._archive = archive
        self._prefix = prefix
        self._mark = mark
        self._patience = patience * 10
        self._due: set[str] = set()
        self._remembered: set[str] = set()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._pause = 0.0

    def start(self) -> None:
        """Begin, with what others may have left."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def wake(self, tenant: str) -> None:
        """The tenant's outbox has something."""
        self._due.add(tenant)
        self._woken.set()

    # -- which tenants there are ---------------------------------------------------------------------------------------

    async def remember(self, tenant: str, *, again: bool = False) -> None:
        """Enter a tenant into the index, for all processes; ``again``: also where it is thought to be there."""
        if again or tenant not in self._remembered:
            await self._ask(("SADD", f"{self._prefix}:tenants", tenant))
            self._remembered.add(tenant)

    async def tenants(self) -> list[str]:
        """All tenants of the index."""
        return [tenant.decode() for tenant in await self._ask(("SMEMBERS", f"{self._prefix}:tenants"))]

    def _keys(self, tenant: str) -> tuple[str, str]:
        base = f"{self._prefix}:{{{tenant}}}:"
        return base + "o", base + "l"

    async def waiting(self) -> int:
        """Entries in all outboxes."""
        return await self.over_all(lambda tenant: self._ask(("XLEN", self._keys(tenant)[0])))

    async def over_all(self, count: Callable[[str], Awaitable[int]]) -> int:
        """The sum of what ``count`` finds at each tenant of the index, some tenants at a time."""
        tenants, found = await self.tenants(), 0
        for first in range(0, len(tenants), MOST):
            found += sum(await asyncio.gather(*map(count, tenants[first : first + MOST])))
        return found

    # -- moving --------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        look = loop.time()
        while True:
            try:
                if loop.time() >= look:
                    self._remembered = set(await self.tenants())  # Redis may have lost some: they are entered again
                    self._due.update(self._remembered)
                    look = loop.time() + LOOK_AROUND
                await self._move()
                self._pause = 0.0
            except Exception as error:  # the archive or Redis, by any driver's words: it is tried again
                self._pause = min(LONGEST_PAUSE, max(0.1, self._pause * 2))
                _log.warning("settled calls wait in Redis, next attempt in %.1f s: %s", self._pause, error)
                await asyncio.sleep(self._pause)
                continue
            self._woken.clear()
            if not self._due:
                try:
                    async with asyncio.timeout_at(look):
                        await self._woken.wait()
                except TimeoutError:
                    continue
            await asyncio.sleep(GATHER)

    async def _move(self) -> None:
        """One round over the tenants that are due, some at a time. Those left with something stay due."""
        due = list(self._due)
        for first in range(0, len(due), TOGETHER):
            tenants = due[first : first + TOGETHER]
            self._due.difference_update(tenants)  # before the look: a settle from now on makes them due again
            try:
                await self._move_some(tenants)
            except BaseException:  # cancelled, too: they are still due
                self._due.update(tenants)
                raise

    async def _move_some(self, tenants: Sequence[str]) -> None:
        await asyncio.gather(*map(self.remember, tenants))
        looks = [OUTBOX.call(self._keys(tenant), self._mark, MOST, _LOCKED) for tenant in tenants]
        found: dict[str, list[Entry]] = {}
        for tenant, entries in zip(tenants, await asyncio.gather(*map(self._ask, looks)), strict=True):
            if entries is None:  # another process is at it; this one looks again
                self._due.add(tenant)
            elif entries:
                found[tenant] = [unpacked(tenant, entry) for entry in entries]
        if not found:
            return
        try:
            await self._book([entry for entries in found.values() for entry in entries])
        except Exception as error:  # one tenant's entries may be at fault: they are tried apart
            if len(found) == 1:
                raise
            # One tenant's calls may be at fault: the others' are not to wait for it.
            done = [tenant for tenant, entries in found.items() if await self._booked(entries)]
            await self._remove({tenant: found[tenant] for tenant in done})
            if len(done) < len(found):
                raise StoreError(f"the archive: {error}") from error
            return
        await self._remove(found)

    async def _booked(self, entries: Sequence[Entry]) -> bool:
        try:
            await self._book(entries)
        except Exception:  # they stay in the outbox, and are tried again
            return False
        return True

    async def _book(self, entries: Sequence[Entry]) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await self._archive.archive([(hold, record) for _, hold, record in entries])
        except TimeoutError:
            raise StoreError(f"the archive did not answer within {self._patience:g} s") from None

    async def _remove(self, found: dict[str, list[Entry]]) -> None:
        removals = [
            DRAINED.call(self._keys(tenant), self._mark, *[at for at, _, _ in entries])
            for tenant, entries in found.items()
        ]
        for tenant, left in zip(found, await asyncio.gather(*map(self._ask, removals)), strict=True):
            if left:
                self._due.add(tenant)

    async def close(self) -> None:
        """Stop, after moving on what goes within ``LAST_TRY`` seconds."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout(LAST_TRY):
                while self._due:
                    await self._move()
        except Exception as error:  # at the end nobody can wait longer; nothing is lost
            _log.warning("settled calls are left in Redis for the next process: %s", error or "no time")
