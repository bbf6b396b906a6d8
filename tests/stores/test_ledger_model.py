"""Every ledger against a model of a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import count
from typing import Any

from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import About, Amount, Balance, Hold, Limit, Refusal
from asgi_llm_gateway.stores.base import Ledger

from .conftest import Backend
from .ledger_parts import KEY_MONEY, MONEY, TOKENS, TTL, record

LIMITS = {
    "tenant": (Limit("", 0, MONEY, TOKENS),),
    "tenant and key": (Limit("", 0, MONEY, TOKENS), Limit("key_1", 0, KEY_MONEY, None)),
    "none": (Limit("", 0, None, None),),
    "next window": (Limit("", 86400, MONEY, TOKENS),),
}
AMOUNTS = st.builds(Amount, st.integers(0, 400), st.integers(0, 2000))
_names = count(1)


class Model:
    """What a ledger is: what was spent on each account, and the holds that live."""

    def __init__(self) -> None:
        self.spent: dict[tuple[str, str, int], list[int]] = {}
        self.live: dict[str, Hold] = {}
        self.lapsed: dict[str, Hold] = {}

    def at(self, tenant: str, account: str, window: int) -> tuple[int, int, int, int]:
        """Money spent and held, tokens spent and held."""
        money, tokens = self.spent.get((tenant, account, window), (0, 0))
        holds = [one for one in self.live.values() if one.tenant == tenant and (account, window) in one.accounts]
        return money, sum(one.money for one in holds), tokens, sum(one.tokens for one in holds)

    def book(self, hold: Hold, money: int, tokens: int) -> None:
        """Spend on all accounts of a hold."""
        for account, window in hold.accounts:
            entry = self.spent.setdefault((hold.tenant, account, window), [0, 0])
            entry[0] += money
            entry[1] += tokens


class LedgerMachine(RuleBasedStateMachine):
    """Any order of verbs, each of them repeated at times, gives what the model gives."""

    backend: Backend
    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.ledger: Ledger = self.run(self.backend.opened())
        self.tenants = [f"t{next(_names)}", f"t{next(_names)}"]
        self.model = Model()
        self.now = 1000.0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """One verb."""
        return self.runner.run(work)

    def teardown(self) -> None:
        """Close the ledger."""
        self.run(self.ledger.close())
        self.runner.close()

    def room(self, tenant: str, limits: tuple[Limit, ...]) -> Amount:
        """What all the limits leave."""
        money, tokens = 10**18, 10**18
        for limit in limits:
            spent, held, tokens_spent, tokens_held = self.model.at(tenant, limit.account, limit.window)
            money = money if limit.money is None else min(money, limit.money - spent - held)
            tokens = tokens if limit.tokens is None else min(tokens, limit.tokens - tokens_spent - tokens_held)
        return Amount(money, tokens)

    @rule(
        target=holds,
        who=st.integers(0, 1),
        kind=st.sampled_from(sorted(LIMITS)),
        least=AMOUNTS,
        more=AMOUNTS,
        twice=st.booleans(),
    )
    def hold(self, who: int, kind: str, least: Amount, more: Amount, twice: bool) -> Any:
        """What is left of each measure, if that is at least ``least``; else nothing, on no account."""
        tenant, limits, hold_id = self.tenants[who], LIMITS[kind], new_hold_id()
        room = self.room(tenant, limits)
        wanted = Amount(least.money + more.money, least.tokens + more.tokens)

        def ask() -> Any:
            return self.run(
                self.ledger.hold(
                    tenant,
                    hold_id=hold_id,
                    limits=limits,
                    least=least,
                    wanted=wanted,
                    now=self.now,
                    ttl=TTL,
                    about=About("r", "t"),
                )
            )

        got = ask()
        if room.money < max(least.money, 0) or room.tokens < max(least.tokens, 0):
            assert isinstance(got, Refusal)
            assert got.limit in limits
            assert (got.what == "money" and room.money < least.money) or (
                got.what == "tokens" and room.tokens < least.tokens
            )
            return multiple()
        assert isinstance(got, Hold)
        assert (got.money, got.tokens) == (min(wanted.money, room.money), min(wanted.tokens, room.tokens))
        assert got.accounts == tuple((limit.account, limit.window) for limit in limits)
        if twice:
            assert ask()[:4] == got[:4], "the same id is the same hold"
        self.model.live[got.id] = got
        return got

    @rule(hold=holds, amount=AMOUNTS)
    def raise_hold(self, hold: Hold, amount: Amount) -> None:
        """Up to the limits, never down; a hold that ended stays ended."""
        limits = next(one for one in LIMITS.values() if tuple(limit[:2] for limit in one) == hold.accounts)
        current = self.model.live.get(hold.id)
        got = self.run(self.ledger.raise_hold(hold, amount, limits=limits))
        if current is None:
            assert isinstance(got, Refusal)
            assert got.what == "ended"
            return
        more = Amount(max(0, amount.money - current.money), max(0, amount.tokens - current.tokens))
        room = self.room(hold.tenant, limits)
        if (more.money and room.money < more.money) or (more.tokens and room.tokens < more.tokens):
            assert isinstance(got, Refusal)
            assert got.what in ("money", "tokens")
            return
        assert isinstance(got, Hold)
        assert (got.money, got.tokens) == (current.money + more.money, current.tokens + more.tokens)
        self.model.live[hold.id] = got

    @rule(hold=consumes(holds), cost=st.integers(0, 600), tokens=st.integers(0, 3000))
    def settle(self, hold: Hold, cost: int, tokens: int) -> None:
        """Books once, also above the hold (the provider's word), also after a lapse, and says whether it did."""
        lives = self.model.live.pop(hold.id, None)
        lapsed = self.model.lapsed.pop(hold.id, None)
        ended = lives is None and lapsed is None
        assert self.run(self.ledger.settle(hold, record(hold, cost, tokens))) is not ended
        assert self.run(self.ledger.settle(hold, record(hold, cost + 1, tokens))) is False
        assert self.run(self.ledger.release(hold)) is False
        if lapsed is not None:
            self.model.book(hold, -lapsed.money, -lapsed.tokens)
        if not ended:
            self.model.book(hold, cost, tokens)

    @rule(hold=holds)
    def release(self, hold: Hold) -> None:
        """Books nothing, once."""
        assert self.run(self.ledger.release(hold)) is (self.model.live.pop(hold.id, None) is not None)

    @rule(hold=holds, seconds=st.integers(0, 20))
    def renew(self, hold: Hold, seconds: int) -> None:
        """A hold that lives goes on living, never for less; one that ended does not come back."""
        lives = self.model.live.get(hold.id)
        assert self.run(self.ledger.renew(hold, now=self.now, ttl=float(seconds))) is (lives is not None)
        if lives is not None:
            self.model.live[hold.id] = lives._replace(expires=max(lives.expires, self.now + seconds))

    @rule(seconds=st.integers(0, 15))
    def sweep(self, seconds: int) -> None:
        """Time goes by: what lapsed is charged whole."""
        self.now += seconds
        self.run(self.ledger.sweep(self.now))
        for hold in [one for one in self.model.live.values() if one.expires <= self.now]:
            self.model.lapsed[hold.id] = self.model.live.pop(hold.id)
            self.model.book(hold, hold.money, hold.tokens)

    @invariant()
    def the_balances_are_the_models(self) -> None:
        """To the nano-USD and the token, for each account, after every verb."""
        for tenant in self.tenants:
            for account, window in (("", 0), ("key_1", 0), ("", 86400)):
                got = self.run(self.ledger.balance(tenant, account, window))
                assert got == Balance(*self.model.at(tenant, account, window), 0)


def test_any_order_of_verbs_gives_what_the_model_gives(backend: Backend) -> None:
    """On every backend, the same."""
    machine = type("Machine", (LedgerMachine,), {"backend": backend})
    run_state_machine_as_test(
        machine,
        settings=hypothesis_settings(
            max_examples=60 if backend.name == "memory" else 12,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
