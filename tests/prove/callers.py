"""What the workers do: calls of every kind, for tenants whose money suffices for a few of them at a time."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import Any

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import About, Amount, CallRecord, Hold, Limit, Refusal, Usage
from asgi_llm_gateway.stores.base import Ledger
from asgi_llm_gateway.stores.keeper import Keeper

MONEY, TOKENS, KEY_MONEY = 1_000, 5_000, 700
"""The limits of each tenant in a window, and of each key; a call holds about a third of them."""

WINDOW = 3
"""Seconds of the period of those tenants that have one."""

_WORN = 0.6  # of a budget that is spent: the next tenant's is taken, else soon nothing would be let in any more


def record(hold: Hold, cost: int, tokens: int, now: float) -> CallRecord:
    """The record of a hold's call."""
    key = next((account for account, _ in hold.accounts if account), None)
    return CallRecord(
        hold.id, hold.tenant, "req", "trace", key, "m", "p", Usage(tokens, 0), cost, 200, now, now
    )  # fmt: skip


class Purse:
    """A series of tenants with the same limits: when most of one's budget is spent, the next one is called for.

    Args:
        name: What their ids begin with.
        keyed: Whether calls have a key with a budget of its own.
        window: Whether the budget begins anew every ``WINDOW`` seconds.
    """

    def __init__(self, name: str, *, keyed: bool, window: bool) -> None:
        self._name = name
        self._keyed = keyed
        self._window = window
        self._generation = 0

    def limits(self, now: float, chance: random.Random) -> tuple[str, tuple[Limit, ...]]:
        """A tenant, and the limits of a call for it."""
        tenant = f"{self._name}{self._generation}"
        window = int(now) - int(now) % WINDOW if self._window else 0
        own = Limit("", window, MONEY, TOKENS)
        if not self._keyed:
            return tenant, (own,)
        return tenant, (own, Limit(f"key{chance.randrange(2)}", window, KEY_MONEY, None))

    def refused(self, refusal: Refusal, tenant: str) -> None:
        """A call was: is it time for the next tenant?"""
        most = refusal.limit.tokens if refusal.what == "tokens" else refusal.limit.money
        if tenant == f"{self._name}{self._generation}" and refusal.spent >= (most or 0) * _WORN:
            self._generation += 1


class Callers:
    """Calls side by side in one event loop.

    Args:
        ledger: Where they are held and settled.
        seed: What decides about each of them.
        ttl: Seconds that a hold lives.
    """

    def __init__(self, ledger: Ledger, seed: int, *, ttl: float) -> None:
        self.ledger = ledger
        self.skew = 0.0  # seconds by which this process' clock is wrong
        self.stopping = False
        self.keeper = Keeper(ledger, ttl=ttl, clock=self.now)
        self._ttl = ttl
        self._chance = random.Random(seed)
        self._purses = [
            Purse(f"{kind}{number}-", keyed=kind != "life", window=kind == "days")
            for kind in ("life", "keyed", "days")
            for number in range(3)
        ]

    def now(self) -> float:
        """Unix time, as this process sees it."""
        return time.time() + self.skew

    async def run(self, lanes: int) -> None:
        """Call until ``stopping``; then wait for the settles that wait for the store."""
        await asyncio.gather(*(self._lane() for _ in range(lanes)))
        until = time.monotonic() + 30
        while self.keeper.waiting and time.monotonic() < until:  # noqa: ASYNC110 - the keeper has no event for it
            await asyncio.sleep(0.02)
        await self.keeper.close()

    async def _lane(self) -> None:
        while not self.stopping:
            await self._call(self._chance)
            await asyncio.sleep(self._chance.uniform(0.0, 0.01))

    async def _call(self, chance: random.Random) -> None:
        purse = chance.choice(self._purses)
        now = self.now()
        tenant, limits = purse.limits(now, chance)
        least = Amount(chance.randint(150, 350), chance.randint(500, 1500))
        wanted = Amount(least.money + chance.choice((0, 200)), least.tokens + chance.choice((0, 500)))
        hold_id = new_hold_id()
        key = limits[1].account if len(limits) > 1 else None
        asked: dict[str, Any] = {
            "hold_id": hold_id, "limits": limits, "least": least, "wanted": wanted, "now": now, "ttl": self._ttl,
            "about": About("req", "trace", key, "m", now),
        }  # fmt: skip
        held: Hold | Refusal | None = None
        unsure = False
        try:
            held = await self.ledger.hold(tenant, **asked)
        except StoreError:
            unsure = True
            await asyncio.sleep(chance.uniform(0.0, 0.1))
            if chance.random() < 0.3:  # every verb may be repeated
                with suppress(StoreError):
                    held = await self.ledger.hold(tenant, **asked)
        if isinstance(held, Hold):
            await self._under(held, limits, chance)
            return
        if isinstance(held, Refusal):
            purse.refused(held, tenant)
            await asyncio.sleep(chance.uniform(0.0, 0.03))
        if unsure:
            self.keeper.later(Hold(hold_id, tenant, 0, 0, now), None)

    async def _under(self, hold: Hold, limits: tuple[Limit, ...], chance: random.Random) -> None:
        """A call under its hold: it may run long, ask for more, be forgotten, or come back too late."""
        self.keeper.add(hold)
        fate = chance.random()
        await asyncio.sleep(chance.uniform(0.0, 0.03))
        if fate < 0.01:
            self.keeper.drop(hold)  # nobody comes back for it
            return
        if chance.random() < 0.4:
            more = Amount(hold.money + chance.randint(0, 200), hold.tokens + chance.randint(0, 500))
            with suppress(StoreError):  # then that call is not made, and what was made until now is settled
                raised = await self.ledger.raise_hold(hold, more, limits=limits)
                if isinstance(raised, Hold):
                    hold = raised
                    self.keeper.add(hold)
        if fate < 0.02:
            self.keeper.drop(hold)
            await asyncio.sleep(self._ttl * 1.4)  # as a process that was frozen: the settle comes late
        elif fate < 0.03:
            await asyncio.sleep(self._ttl * 1.5)  # a long stream, whose hold is renewed
        self.keeper.drop(hold)
        await self._end(hold, chance)

    async def _end(self, hold: Hold, chance: random.Random) -> None:
        cost, tokens = chance.randint(0, 20), chance.randint(0, 60)
        if chance.random() < 0.04:
            cost = hold.money + chance.randint(1, 50)  # the provider bills more than was held
        kind = chance.random()
        if kind < 0.75:
            ends: list[tuple[int, int] | None] = [(cost, tokens)]
        elif kind < 0.88:
            ends = [None]
        elif kind < 0.94:
            ends = [(cost, tokens), None]
        else:
            ends = [(cost, tokens), (cost + 1, tokens + 1)]
        await asyncio.gather(*(self._end_so(hold, end) for end in ends))

    async def _end_so(self, hold: Hold, end: tuple[int, int] | None) -> None:
        booked = None if end is None else record(hold, *end, self.now())
        try:
            if booked is None:
                await self.ledger.release(hold)
            else:
                await self.ledger.settle(hold, booked)
        except StoreError:
            self.keeper.later(hold, booked)
