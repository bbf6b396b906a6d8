"""The checker itself: what is right passes, and each kind of wrong is found, in words."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.records import Adjustment, Balance, CallRecord, Hold, Limit, Refusal, Stats, Usage
from asgi_llm_gateway.stores.memory import MemoryLedger

from .callers import Callers
from .checker import Final, Verdict, check
from .history import Event, Recorded, read
from .stories import tell

LIMIT = 100
OWN, KEY = ("t", "", 0), ("t", "key", 0)


class Past:
    """A history made up by hand, event by event, and a store to go with it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.records: list[CallRecord] = []
        self.rows: list[Adjustment] = []
        self.held = 0
        self.overdraft_of_stats = 0
        self._ops = 0

    def ask(self, verb: str, hold: str = "", **data: Any) -> int:
        """A question."""
        self._ops += 1
        return self._add(self._ops, "ask", verb, hold, data)

    def _add(self, op: int, kind: Any, verb: str, hold: str, data: dict[str, Any]) -> int:
        self.events.append(Event(len(self.events) + 1, "p", op, kind, verb, hold, data))
        return op

    def tell(self, op: int, kind: str, **data: Any) -> None:
        """Its answer."""
        asked = next(event for event in self.events if event.op == op)
        self._add(op, kind, asked.verb, asked.hold, data)

    def ask_hold(self, hold: str, money: int, *, now: float = 1000.0) -> int:
        """The question for a hold on both accounts."""
        limits = [["", 0, LIMIT, None], ["key", 0, LIMIT, None]]
        amount = [money, 1]
        return self.ask("hold", hold, tenant="t", limits=limits, least=amount, wanted=amount, now=now, ttl=10.0)

    def hold(self, hold: str, money: int, **more: Any) -> None:
        """A hold that is granted."""
        self.tell(self.ask_hold(hold, money, **more), "yes", money=money, tokens=1)

    def settle(self, hold: str, cost: int, kind: str = "yes") -> None:
        """A settle and its answer."""
        self.tell(self.ask("settle", hold, money=cost, tokens=1), kind)

    def release(self, hold: str, kind: str = "yes") -> None:
        """A release and its answer."""
        self.tell(self.ask("release", hold), kind)

    def book(self, hold: str, cost: int, **more: Any) -> None:
        """A record at the store."""
        self.records.append(CallRecord(hold, "t", usage=Usage(1, 0), cost=cost, **more))

    def verdict(self, **balances: Balance) -> Verdict:
        """What the checker says; balances that are not given are those that go with the records."""
        cost, count = sum(one.cost for one in self.records), len(self.records)
        right = Balance(cost, self.held, count, 0)
        kept = {OWN: balances.get("own", right), KEY: balances.get("key", right)}
        stats = {"t": Stats(count, count, 0, cost + self.overdraft_of_stats)}
        return check(self.events, Final({"ledger": kept}, self.records, self.rows, stats))


def good() -> Past:
    """Two calls that fit, one refused, one that lapsed, one with an overdraft, and one of which nobody knows."""
    past = Past()
    past.hold("a", 60)
    past.hold("b", 40)
    past.tell(past.ask_hold("c", 1), "no", what="money", account="")
    past.settle("a", 20)
    past.book("a", 20)
    past.release("b")
    past.hold("d", 30)
    past.settle("d", 50)
    past.book("d", 50, overdraft=20)
    past.rows.append(Adjustment("over_d", "t", "overdraft", 20))
    past.hold("e", 10)
    past.book("e", 10, lapsed=True)
    past.ask_hold("f", 5)
    return past


def broken(verdict: Verdict) -> set[str]:
    """The promises that were."""
    return {wrong.partition(":")[0] for wrong in verdict.violations}


def test_a_history_that_is_right_passes() -> None:
    """And every promise was looked at."""
    verdict = good().verdict()
    assert verdict.violations == []
    assert {"P1 at every moment", "P1 for every grant", "P2 ended once", "P2 the right record"} <= set(verdict.checked)


def lost(past: Past) -> None:
    """An acknowledged settle is nowhere."""
    past.records.pop(0)


def other_cost(past: Past) -> None:
    """It is booked with another cost."""
    past.records[0] = past.records[0]._replace(cost=21)


def undone(past: Past) -> None:
    """It is booked as lapsed."""
    past.records[0] = past.records[0]._replace(cost=60, lapsed=True)


def twice(past: Past) -> None:
    """A second settle is acknowledged too."""
    past.settle("a", 20)


def doubled(past: Past) -> None:
    """It has two records."""
    past.records.append(past.records[0])


def released_and_booked(past: Past) -> None:
    """A released call costs."""
    past.book("b", 40, lapsed=True)


def refused_and_booked(past: Past) -> None:
    """A refused call costs."""
    past.book("c", 1, lapsed=True)


def nobodys(past: Past) -> None:
    """A record of no call."""
    past.book("z", 0)


def gone(past: Past) -> None:
    """A call whose process died was free."""
    past.records.pop()


def cheap_lapse(past: Past) -> None:
    """A lapsed hold is charged in part."""
    past.records[-1] = past.records[-1]._replace(cost=9)


def together(past: Past) -> None:
    """Two holds at once pass the limit, though each alone would fit."""
    first, second = past.ask_hold("x", 60), past.ask_hold("y", 60)
    past.tell(first, "yes", money=60, tokens=1)
    past.tell(second, "yes", money=60, tokens=1)
    past.settle("x", 0)
    past.settle("y", 0)
    past.book("x", 0)
    past.book("y", 0)


def beside_overdraft(past: Past) -> None:
    """A hold fits only if the overdraft is forgotten: 20 + 50 + 10 are taken."""
    past.hold("x", 30)
    past.release("x")


def raised(past: Past) -> None:
    """A raise passes the limit."""
    past.hold("x", 10)
    past.tell(past.ask("raise", "x", money=40, tokens=1, limits=[["", 0, LIMIT, None]]), "yes", money=40, tokens=1)
    past.release("x")


def no_row(past: Past) -> None:
    """An overdraft without its row."""
    past.rows.clear()


def wrong_row(past: Past) -> None:
    """With another amount."""
    past.rows[0] = past.rows[0]._replace(amount=19)


def early(past: Past) -> None:
    """A hold is gone before its time."""
    past.hold("x", 1)
    past.tell(past.ask("renew", "x", now=1001.0, ttl=10.0), "no")
    past.settle("x", 1)
    past.book("x", 1)


def survivor(past: Past) -> None:
    """One lives on after its time and a sweep."""
    past.hold("x", 1)
    past.tell(past.ask("sweep", now=1011.0), "yes")
    past.tell(past.ask("renew", "x", now=1011.0, ttl=10.0), "yes")
    past.settle("x", 1)
    past.book("x", 1)


def revived(past: Past) -> None:
    """One whose outcome nobody knew is released, and comes to life all the same."""
    past.tell(past.ask_hold("x", 5), "unknown")
    past.release("x", "no")
    past.book("x", 5, lapsed=True)


def stuck(past: Past) -> None:
    """Something is held for nobody."""
    past.held = 3


def told_wrong(past: Past) -> None:
    """The statistics say another sum."""
    past.overdraft_of_stats = 1


@pytest.mark.parametrize(
    ("spoil", "promise"),
    [
        (lost, "P2 the right record"),
        (other_cost, "P2 the right record"),
        (undone, "P2 the right record"),
        (twice, "P2 ended once"),
        (doubled, "P2 one record"),
        (released_and_booked, "P2 the right record"),
        (refused_and_booked, "P2 the right record"),
        (nobodys, "every record is of a call"),
        (gone, "P2 the right record"),
        (cheap_lapse, "P2 the right record"),
        (together, "P1 at every moment"),
        (beside_overdraft, "P1 for every grant"),
        (raised, "P1 for every grant"),
        (no_row, "P1 a row for each overdraft"),
        (wrong_row, "P1 a row for each overdraft"),
        (early, "I4 no lapse before its time"),
        (survivor, "I4 no hold outlives a sweep"),
        (revived, "P2 what was released stays so"),
        (stuck, "held is 0 in the end"),
        (told_wrong, "P3 sum of records = stats"),
    ],
)
def test_what_is_wrong_is_found(spoil: Callable[[Past], None], promise: str) -> None:
    """The same history with one thing spoilt breaks just that promise."""
    past = good()
    spoil(past)
    assert promise in broken(past.verdict())


def test_accounts_that_differ_are_found() -> None:
    """I5: a call that is booked for the tenant and not for its key; money in the balance that no record has."""
    past = good()
    assert broken(past.verdict(key=Balance(60, 0, 2, 0))) == {"P3 sum of records = balance"}


def test_an_answer_on_its_way_breaks_nothing() -> None:
    """What may have been done before the answer came, and what an unknown answer may have been, is not held against it."""
    past = Past()
    past.hold("a", 100)
    settle = past.ask("settle", "a", money=1, tokens=1)
    past.hold("b", 99)  # the settle was carried out, its answer is late
    past.tell(settle, "unknown")
    past.book("a", 1)
    past.settle("b", 2, "unknown")
    past.book("b", 99, lapsed=True)
    assert past.verdict().violations == []


def test_what_was_granted_before_an_overdraft_is_not_held_against_it() -> None:
    """A raise that changes nothing needs no room; a hold whose first answer was lost may be granted since then."""
    past = Past()
    past.hold("a", 40)
    past.hold("b", 40)
    past.tell(past.ask_hold("c", 20), "unknown")
    past.settle("a", 70)
    past.book("a", 70, overdraft=30)
    past.rows.append(Adjustment("over_a", "t", "overdraft", 30))
    past.tell(past.ask_hold("c", 20), "yes", money=20, tokens=1)
    past.tell(past.ask("raise", "b", money=40, tokens=1, limits=[["", 0, LIMIT, None]]), "yes", money=40, tokens=1)
    past.release("b")
    past.release("c")
    assert past.verdict().violations == []


# -- on ledgers that are wrong -----------------------------------------------------------------------------------------


class Careless(MemoryLedger):
    """Looks first and takes afterwards, with a wait in between."""

    async def hold(self, tenant: str, *, limits: tuple[Limit, ...], **asked: Any) -> Hold | Refusal:
        """See Ledger."""
        for limit in limits:
            balance = await self.balance(tenant, limit.account, limit.window)
            if limit.money is not None and balance.spent + balance.held + asked["least"].money > limit.money:
                return Refusal(limit, "money", balance.spent, balance.held)
        await asyncio.sleep(0.001)
        free = tuple(limit._replace(money=None, tokens=None) for limit in limits)
        return await super().hold(tenant, limits=free, **asked)


class Forgetful(MemoryLedger):
    """Acknowledges a settle now and then that it does not carry out."""

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger."""
        return random.random() < 0.05 or await super().settle(hold, record)


class Doubtful(MemoryLedger):
    """Carries everything out, and says at times, once a call, that it did not answer: right, if unhelpful."""

    def __init__(self) -> None:
        super().__init__()
        self._doubted: set[str] = set()

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger."""
        settled = await super().settle(hold, record)
        if hold.id not in self._doubted and random.random() < 0.3:
            self._doubted.add(hold.id)
            raise StoreError("no answer")
        return settled


async def run(ledger: MemoryLedger, path: Path) -> Verdict:
    """A second of calls on a ledger, and the verdict."""
    recorded = Recorded(ledger, path)
    callers = Callers(recorded, 1, ttl=0.3)
    running = asyncio.ensure_future(callers.run(20))
    await asyncio.sleep(0.7)
    callers.stopping = True
    await running
    await recorded.sweep(callers.now() + 60)
    events = read([path])
    stories = tell(events).values()
    accounts = {account for story in stories for account in story.accounts}
    tenants = {account[0] for account in accounts}
    balances = {account: await ledger.balance(*account) for account in accounts}
    final = Final(
        {"ledger": balances},
        [one for tenant in tenants for one in (await ledger.records(tenant, limit=10**6)).records],
        [one for tenant in tenants for one in await ledger.adjustments(tenant, limit=10**6)],
        {tenant: await ledger.stats(tenant=tenant) for tenant in tenants},
    )
    await recorded.close()
    return check(events, final)


@pytest.mark.parametrize(
    ("ledger", "promises"),
    [
        (MemoryLedger, ()),
        (Doubtful, ()),
        (Careless, ("P1 at every moment",)),
        (Forgetful, ("P2 the right record",)),
    ],
)
async def test_a_ledger_that_is_wrong_is_found_out(
    ledger: type[MemoryLedger], promises: Iterable[str], tmp_path: Path
) -> None:
    """The same calls as in a run of processes: right ledgers pass, also ill-behaved ones; wrong ones do not."""
    verdict = await run(ledger(), tmp_path / "history.jsonl")
    assert verdict.checked["P1 for every grant"] > 100
    assert broken(verdict) >= set(promises)
    assert bool(verdict.violations) is bool(promises)
