"""Every Ledger against a model of ten lines, and the promises that only running side by side can break."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import Balance, CallRecord, Hold, Usage
from asgi_llm_gateway.stores.base import CallLog, Ledger
from asgi_llm_gateway.stores.memory import MemoryLedger

LIMIT = 1_000
TENANTS = st.sampled_from(["a", "b"])
AMOUNTS = st.integers(0, 400)


def record(cost: int, tenant: str = "a") -> CallRecord:
    """A record of a call."""
    return CallRecord("req", "trace", tenant, None, "echo", "echo", Usage(1, 1), cost, 200, 0.0)


class LedgerMachine(RuleBasedStateMachine):
    """Any order of verbs gives what the model gives. The model: spent per tenant, and the holds that live."""

    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.ledger: Ledger = MemoryLedger()
        self.spent = {"a": 0, "b": 0}
        self.live: dict[str, Hold] = {}
        self.now = 0.0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """One verb."""
        return asyncio.run(work)

    def held(self, tenant: str) -> int:
        """The model's sum of holds."""
        return sum(hold.amount for hold in self.live.values() if hold.tenant == tenant)

    @rule(target=holds, tenant=TENANTS, least=AMOUNTS, more=AMOUNTS, limit=st.sampled_from([LIMIT, None]))
    def hold(self, tenant: str, least: int, more: int, limit: int | None) -> Any:
        """What is left, if that is at least ``least``; all that is wanted where there is no limit."""
        room = None if limit is None else limit - self.spent[tenant] - self.held(tenant)
        wanted = least + more
        got = self.run(
            self.ledger.hold(
                tenant, hold_id=new_hold_id(), least=least, wanted=wanted, limit=limit, now=self.now, ttl=10.0
            )
        )
        if room is not None and room < least:
            assert got is None
            return multiple()
        assert got is not None
        assert got.amount == (wanted if room is None else min(wanted, room))
        assert (got.tenant, got.expires, got.id in self.live) == (tenant, self.now + 10.0, False)
        self.live[got.id] = got
        return got

    @rule(hold=holds, amount=AMOUNTS, limit=st.sampled_from([LIMIT, None]))
    def raise_hold(self, hold: Hold, amount: int, limit: int | None) -> None:
        """Up to the limit, never down; a hold that ended stays ended."""
        got = self.run(self.ledger.raise_hold(hold, amount, limit=limit))
        current = self.live.get(hold.id)
        if current is None:
            assert got is None
            return
        after = self.spent[hold.tenant] + self.held(hold.tenant) - current.amount + amount
        if amount > current.amount and limit is not None and after > limit:
            assert got is None
            return
        assert got is not None
        assert got.amount == max(amount, current.amount)
        self.live[hold.id] = got

    @rule(hold=consumes(holds), cost=st.integers(0, 600))
    def settle(self, hold: Hold, cost: int) -> None:
        """Books once, also above the hold (the provider's word), and says whether it did."""
        lives = self.live.pop(hold.id, None) is not None
        assert self.run(self.ledger.settle(hold, cost, record(cost, hold.tenant))) is lives
        assert self.run(self.ledger.settle(hold, cost + 1)) is False
        assert self.run(self.ledger.release(hold)) is False
        if lives:
            self.spent[hold.tenant] += cost

    @rule(hold=holds)
    def release(self, hold: Hold) -> None:
        """Books nothing, once; the hold may come up again and is then long gone."""
        assert self.run(self.ledger.release(hold)) is (self.live.pop(hold.id, None) is not None)

    @rule(hold=holds, seconds=st.floats(0, 20))
    def renew(self, hold: Hold, seconds: float) -> None:
        """A hold that lives goes on living; one that ended does not come back."""
        got = self.run(self.ledger.renew(hold, now=self.now, ttl=seconds))
        if hold.id in self.live:
            assert got == self.live[hold.id]._replace(expires=self.now + seconds)
            self.live[hold.id] = got

    @rule(seconds=st.floats(0, 15))
    def sweep(self, seconds: float) -> None:
        """Time goes by: what lapsed is charged whole."""
        self.now += seconds
        lapsed = [hold for hold in self.live.values() if hold.expires <= self.now]
        assert self.run(self.ledger.sweep(self.now)) == len(lapsed)
        for hold in lapsed:
            del self.live[hold.id]
            self.spent[hold.tenant] += hold.amount

    @invariant()
    def the_balance_is_the_models(self) -> None:
        """To the nano-USD, for each tenant, after every verb."""
        for tenant in ("a", "b"):
            assert self.run(self.ledger.balance(tenant)) == Balance(self.spent[tenant], self.held(tenant))


LedgerMachine.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyOrderOfVerbsGivesWhatTheModelGives = LedgerMachine.TestCase


async def test_a_ledger_keeps_its_protocols() -> None:
    """Money and records in one."""
    ledger = MemoryLedger()
    assert isinstance(ledger, Ledger)
    calls: CallLog = ledger
    assert list(await calls.records("a")) == []


async def test_many_tasks_never_pass_the_limit() -> None:
    """Two hundred calls at once for money that pays for fifty: fifty yes, and the sum is the limit."""
    ledger = MemoryLedger()

    async def call() -> Hold | None:
        hold = await ledger.hold("a", hold_id=new_hold_id(), least=20, wanted=20, limit=LIMIT, now=0.0, ttl=10.0)
        await asyncio.sleep(0)
        return hold

    held = [hold for hold in await asyncio.gather(*(call() for _ in range(200))) if hold is not None]
    assert len(held) == LIMIT // 20
    assert await ledger.balance("a") == Balance(0, LIMIT)
    assert all(await asyncio.gather(*(ledger.settle(hold, 20) for hold in held)))
    assert await ledger.balance("a") == Balance(LIMIT, 0)


def test_many_threads_never_pass_the_limit() -> None:
    """Event loops in eight threads share the ledger: hold, raise, settle, and every nano-USD is accounted for."""
    ledger = MemoryLedger()
    limit = 100_000
    booked: list[int] = []
    passed: list[Balance] = []

    async def work(seed: int) -> None:
        for number in range(300):
            cost = (seed * 31 + number * 17) % 90
            hold = await ledger.hold("a", hold_id=new_hold_id(), least=40, wanted=90, limit=limit, now=0.0, ttl=10.0)
            if hold is None:
                continue
            raised = await ledger.raise_hold(hold, 120, limit=limit)
            balance = await ledger.balance("a")
            if balance.spent + balance.held > limit:
                passed.append(balance)
            if number % 7:
                assert await ledger.settle(raised or hold, min(cost, hold.amount))
                booked.append(min(cost, hold.amount))
            else:
                assert await ledger.release(raised or hold)

    threads = [threading.Thread(target=asyncio.run, args=(work(seed),)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed == []
    assert asyncio.run(ledger.balance("a")) == Balance(sum(booked), 0)


async def test_records_come_newest_first_and_per_tenant() -> None:
    """As many as are asked for; the ledger keeps as many as it was told, and forgets the oldest."""
    ledger = MemoryLedger(records=5)
    for cost in range(8):
        tenant = "b" if cost == 6 else "a"
        hold = await ledger.hold(tenant, hold_id=new_hold_id(), least=0, wanted=10, limit=None, now=0.0, ttl=10.0)
        assert hold is not None
        await ledger.settle(hold, cost, record(cost, tenant))
    assert [one.cost for one in await ledger.records("a")] == [7, 5, 4, 3]
    assert [one.cost for one in await ledger.records("a", limit=2)] == [7, 5]
    assert [one.cost for one in await ledger.records("b")] == [6]
    assert await ledger.balance("a") == Balance(22, 0)  # forgetting a record forgets no money
    assert await ledger.balance("b") == Balance(6, 0)


async def test_a_settle_that_lost_the_race_books_nothing() -> None:
    """Settled and released at once: exactly one of them ends the hold."""
    for _ in range(50):
        ledger = MemoryLedger()
        hold = await ledger.hold("a", hold_id=new_hold_id(), least=1, wanted=1, limit=None, now=0.0, ttl=10.0)
        assert hold is not None
        ended = await asyncio.gather(ledger.settle(hold, 1), ledger.release(hold), ledger.settle(hold, 1))
        assert sum(ended) == 1


async def test_a_hold_that_lapsed_cannot_be_raised() -> None:
    """Swept and charged: no more money can be taken through it."""
    ledger = MemoryLedger()
    hold = await ledger.hold("a", hold_id=new_hold_id(), least=5, wanted=5, limit=LIMIT, now=0.0, ttl=10.0)
    assert hold is not None
    assert await ledger.sweep(9.9) == 0
    assert await ledger.sweep(10.0) == 1
    assert await ledger.raise_hold(hold, 50, limit=LIMIT) is None
    assert await ledger.balance("a") == Balance(5, 0)
