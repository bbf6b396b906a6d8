"""Limits that processes share: one script in Redis admits a call on all its limits at once, or on none.

A Redis that is down or slow holds a call up for its patience once. Then this process decides by its share of the limits, and
Redis is asked again in the background until it answers in time. It is told then what happened meanwhile, so that nothing is
admitted twice over, and for a moment both decide, until the other processes have told theirs.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..errors import StoreError
from ..rates.tally import Tally
from ..rates.wants import CALL_RETRY, NEVER, Stand, Verdict, Want
from ..rates.windows import EXACT, STEPS, Taken, Windows
from ..stores._redis_aside import Aside
from ..stores._redis_wire import Command, run
from ._rate_desk import Mark, Ticket
from ._rate_scripts import ADMIT, RENEW, SETTLE, rate_wire

log = logging.getLogger("asgi_llm_gateway")

PROBE = 0.2
"""Seconds between two questions to a Redis that does not answer."""

GRACE = 1.0
"""Seconds after its return in which a call must be admitted by Redis and by this process's share: by then every process
that lost it has found it again, and told what it admitted meanwhile."""

_PROBE_PATIENCE = 1.0  # seconds; nobody waits for it
_AT_ONCE = 256  # commands of one report
_UNLIMITED = 2**50


class _News(NamedTuple):
    """What Redis is told of one window after it was away."""

    name: str
    untold: int
    command: Command


class Lane(Aside):
    """The desk of one event loop where limits are shared; see Desk.

    Args:
        url: As REDIS_URL.
        windows: This process's own counts.
        parts: Processes among which limits are divided while Redis does not answer.
        patience: Seconds that a call waits for Redis.
        lease: Seconds after which the places of a process that died are free again.
        tally: What is counted for metrics.
        prefix: What the names of all keys begin with.
    """

    def __init__(
        self,
        url: str,
        windows: Windows,
        *,
        parts: int,
        patience: float,
        lease: float,
        tally: Tally,
        prefix: str = "gw",
    ) -> None:
        super().__init__(rate_wire(url, max(patience, _PROBE_PATIENCE)), patience)
        self._windows = windows
        self._parts = parts
        self._lease = lease
        self._tally = tally
        self._loop = asyncio.get_running_loop()
        self._prefix = prefix
        micros = round(windows.seconds * 1e6)
        self._length = micros
        self._head = (micros, max(1, micros // STEPS), round(lease * 1e6), EXACT)
        self._state = secrets.token_hex(4)
        self._leases = (f"{secrets.token_hex(8)}{number:x}" for number in itertools.count(1))
        self._keys: dict[str, str] = {}
        self._held: dict[str, set[str]] = {}  # leases by the key of their set
        self._renewing: asyncio.Task[None] | None = None
        self._grace = -math.inf

    # -- a call --------------------------------------------------------------------------------------------------------

    async def admit(self, tenant: str, wants: Sequence[Want]) -> tuple[Verdict, Ticket | None]:
        """Take all that is wanted, or nothing; decided here where Redis does not answer in time."""
        if not self.up:
            return self._alone(tenant, wants)
        if self._loop.time() < self._grace:
            verdict, taken = self._windows.admit(wants, parts=self._parts)
            if taken is None:
                return verdict, None
            verdict, ticket = await self._shared(tenant, wants, taken)
            if ticket is None:
                self._undo(wants, taken)
            return verdict, ticket
        return await self._shared(tenant, wants, None)

    def _alone(self, tenant: str, wants: Sequence[Want], lease: str = "") -> tuple[Verdict, Ticket | None]:
        self._tally.local += 1
        for one in wants:
            self._key(tenant, one)  # to be told under, when Redis is back
        verdict, taken = self._windows.admit(wants, parts=self._parts, apart=True)
        if taken is None:
            return verdict, None
        ticket = Ticket(tenant, taken)
        self._hold(ticket, wants, lease)  # which Redis may yet read
        return verdict, ticket

    async def _shared(self, tenant: str, wants: Sequence[Want], taken: Taken | None) -> tuple[Verdict, Ticket | None]:
        windows = [one for one in wants if one.what != "calls"]
        places = [one for one in wants if one.what == "calls"]
        lease = next(self._leases)
        keys = [self._key(tenant, one) for one in (*windows, *places)]
        given: list[str | bytes | int] = [*self._head, len(windows), self._windows.id, self._state, lease]
        for one in windows:
            # In a moment of grace it is counted here already, and not to be told as something else.
            mine = self._windows.total(one.name) - (one.amount if taken is not None else 0)
            given += (one.limit, one.amount, mine, self._windows.untold(one.name))
        given += [one.limit for one in places]
        asked = self._batches.submit(ADMIT.call(keys, *given))
        try:
            reply = await asyncio.shield(asked)
        except StoreError as error:
            self._lose(error)
            if taken is not None:
                self._undo(wants, taken)
            return self._alone(tenant, wants, lease)
        except asyncio.CancelledError:  # the client left; Redis may yet say yes
            asked.add_done_callback(lambda done: self._return(done, wants, keys, lease))
            if taken is not None:
                self._undo(wants, taken)
            raise
        verdict, marks, sums = self._read(windows, wants, keys, reply)
        if not verdict.admitted:
            for one in windows:
                self._windows.hear(one.name, one.limit - verdict.stands[wants.index(one)].remaining)
            return verdict, None
        ticket = Ticket(tenant, taken or self._windows.record(wants, sums))
        ticket.marks = marks
        self._hold(ticket, places, lease)
        return verdict, ticket

    def _read(
        self, windows: Sequence[Want], wants: Sequence[Want], keys: Sequence[str], reply: list[Any]
    ) -> tuple[Verdict, dict[str, Mark], list[int]]:
        """The script's reply: a Stand for each want, the entries' marks, and the windows' sums in the wants' order."""
        admitted = reply[0] == 1
        stands: dict[str, Stand] = {}
        marks: dict[str, Mark] = {}
        total: dict[str, int] = {}
        for at, one in enumerate(windows):
            count, reset, retry, number, life = reply[1 + 5 * at : 6 + 5 * at]
            wait, sum_ = int(retry), int(count)
            marks[one.name] = keys[at], number.decode(), life.decode()
            total[one.name] = sum_
            stands[one.name] = Stand(
                one.limit, max(0, one.limit - sum_), int(reset) / 1e6, NEVER if wait < 0 else wait / 1e6
            )
        for at, one in enumerate(one for one in wants if one.what == "calls"):
            count = int(reply[1 + 5 * len(windows) + at])
            full = not admitted and count >= one.limit
            retry = (CALL_RETRY if one.limit else NEVER) if full else 0.0
            stands[one.name] = Stand(one.limit, max(0, one.limit - count), 0.0, retry)
        sums = [total.get(one.name, 0) for one in wants]
        return Verdict(admitted, tuple(stands[one.name] for one in wants)), marks, sums

    def _return(self, done: asyncio.Future[Any], wants: Sequence[Want], keys: Sequence[str], lease: str) -> None:
        """A call that nobody waits for any more was admitted after all: give everything back."""
        if done.cancelled() or done.exception() is not None or done.result()[0] != 1:
            return
        windows = [one for one in wants if one.what != "calls"]
        _, marks, _ = self._read(windows, wants, keys, done.result())
        self._settle(keys[len(windows) :], lease, [(marks[one.name], -one.amount) for one in windows])

    def _undo(self, wants: Sequence[Want], taken: Taken) -> None:
        for one in wants:
            self._windows.correct(taken, one.name, -one.amount)
        self._windows.leave(taken)

    # -- its end -------------------------------------------------------------------------------------------------------

    def correct(self, ticket: Ticket, changes: Sequence[tuple[str, int]]) -> None:
        """A call took more or less of its windows than it was admitted on. Nobody waits for Redis."""
        told = []
        for name, change in changes:
            self._windows.correct(ticket.taken, name, change)
            mark = ticket.marks.get(name)
            if mark is not None and change:
                told.append((mark, change))
        if told:
            self._settle((), "", told)

    def leave(self, ticket: Ticket) -> None:
        """A call has ended: its places are free. Nobody waits for Redis."""
        self._windows.leave(ticket.taken)
        leases, ticket.leases = ticket.leases, ()
        if leases:
            lease, *keys = leases
            for key in keys:
                held = self._held[key]
                held.discard(lease)
                if not held:
                    del self._held[key]
            self._settle(keys, lease, ())

    def _settle(self, sets: Sequence[str], lease: str, changes: Sequence[tuple[Mark, int]]) -> None:
        if not self.up:
            return
        micros, step, _, exact = self._head
        given: list[str | bytes | int] = [micros, step, exact, len(changes), lease]
        for (_, number, life), change in changes:
            given += (number, life, change)
        self._submit(SETTLE.call([*(mark[0] for mark, _ in changes), *sets], *given))

    def _submit(self, command: Command) -> None:
        """Carry a command out in its turn; nobody waits for it."""
        self._batches.submit(command).add_done_callback(self._settled)

    def _settled(self, done: asyncio.Future[Any]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self._lose(error)

    # -- places --------------------------------------------------------------------------------------------------------

    def _hold(self, ticket: Ticket, wants: Iterable[Want], lease: str = "") -> None:
        """Keep the places of a running call: leases are renewed while it runs, also if Redis did not hear of it yet."""
        keys = [self._key(ticket.tenant, one) for one in wants if one.what == "calls"]
        if not keys:
            return
        lease = lease or next(self._leases)
        ticket.leases = (lease, *keys)
        for key in keys:
            self._held.setdefault(key, set()).add(lease)
        if self._renewing is None:
            self._renewing = self._loop.create_task(self._renew())

    async def _renew(self) -> None:
        try:
            while self._held:
                await asyncio.sleep(self._lease / 3)
                if self.up:
                    for command in self._renewals():
                        self._submit(command)
        finally:
            self._renewing = None

    def _renewals(self) -> list[Command]:
        found: list[Command] = []
        for key, leases in self._held.items():
            ids = list(leases)
            found += [
                RENEW.call((key,), self._head[2], *ids[at : at + _AT_ONCE]) for at in range(0, len(ids), _AT_ONCE)
            ]
        return found

    # -- Redis itself --------------------------------------------------------------------------------------------------

    def _key(self, tenant: str, one: Want) -> str:
        key = self._keys.get(one.name)
        if key is None:
            if len(self._keys) > 20_000:
                self._keys = {name: self._keys[name] for name in self._windows.names() if name in self._keys}
            # The tenant in braces: all its keys lie in one slot of a cluster.
            safe = tenant.replace("{", "%7B").replace("}", "%7D")
            key = f"{self._prefix}:{{{safe}}}:rate:{self._length}:{one.what}:{one.account}"
            self._keys[one.name] = key
        return key

    def _lost(self, error: BaseException) -> None:
        """From now on this process decides alone."""
        self._tally.shared_lost += 1
        self._tally.shared_down += 1
        log.error("rate limits are this process's own share until Redis answers again: %s", error)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE)
            try:
                async with self._using:
                    await run(self._wire, [("PING",)], _PROBE_PATIENCE)  # connects, which may take its time
                    await run(self._wire, [("PING",)], self._patience)
                    await self._report()
            except StoreError:
                continue
            break
        # What was admitted while that was told goes before all that comes from now on: there is no waiting in between.
        self._grace = self._loop.time() + GRACE
        self.up = True
        for one in self._news(again=True):
            self._submit(one.command)
        self._tally.shared_down -= 1
        self._probing = None
        log.warning("Redis answers again: rate limits are shared")

    async def _report(self) -> None:
        """Tell what was admitted here meanwhile (or all, where Redis knows nothing of us), and who runs."""
        news = [*(_News("", 0, command) for command in self._renewals()), *self._news()]
        done = 0
        try:
            for at in range(0, len(news), _AT_ONCE):
                part = news[at : at + _AT_ONCE]
                replies = await run(self._wire, [one.command for one in part], _PROBE_PATIENCE)
                for one, reply in zip(part, replies, strict=True):
                    if isinstance(reply, Exception):
                        raise StoreError(f"Redis: {reply}")
                    if one.name:
                        self._windows.hear(one.name, int(reply[1]))
                    done += 1
        finally:
            for one in news[done:]:
                if one.untold:
                    self._windows.retell(one.name, one.untold)

    def _news(self, *, again: bool = False) -> list[_News]:
        """What is to be told of each window in which anything counts (``again``: was admitted untold)."""
        self._state = secrets.token_hex(4)
        found = []
        for name in self._windows.names():
            mine, untold, key = self._windows.total(name), self._windows.untold(name), self._keys.get(name)
            if key is not None and (untold if again else mine):
                told = (*self._head, 1, self._windows.id, self._state, "", _UNLIMITED, 0, mine, untold)
                found.append(_News(name, untold, ADMIT.call((key,), *told)))
        return found

    async def close(self) -> None:
        """Hang up. Calls that still run keep their places until their leases end."""
        for task in (self._probing, self._renewing):
            if task is not None:
                task.cancel()
        if not self.up:
            self._tally.shared_down -= 1
        self.up = False
        await self._batches.close()
        await self._wire.close()
