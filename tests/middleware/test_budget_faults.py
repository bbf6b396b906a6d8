"""A ledger that is away: no call without a yes, and no call for nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.records import Amount, CallRecord, Hold, Limit, Refusal
from asgi_llm_gateway.stores.memory import MemoryLedger

from . import Stranger
from .purse import Calling, Purse, bound, limited


class Failing(MemoryLedger):
    """A ledger that is away for some verbs."""

    def __init__(self, *verbs: str) -> None:
        super().__init__()
        self.verbs = verbs

    async def hold(self, tenant: str, **more: Any) -> Hold | Refusal:
        """See Ledger."""
        if "hold" in self.verbs:
            raise StoreError("the ledger is away")
        return await super().hold(tenant, **more)

    async def raise_hold(self, hold: Hold, amount: Amount, *, limits: tuple[Limit, ...]) -> Hold | Refusal:
        """See Ledger."""
        if "raise" in self.verbs:
            raise StoreError("the ledger is away")
        return await super().raise_hold(hold, amount, limits=limits)

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger."""
        if "settle" in self.verbs:
            raise StoreError("the ledger is away")
        return await super().settle(hold, record)


async def test_a_ledger_fault_at_the_start_is_503_and_no_call() -> None:
    """Nothing was decided, so nothing goes out; it is over when the ledger is back."""
    app, ledger = Stranger(), Failing("hold")
    purse = Purse(app, 10_000, ledger=ledger)
    answer = await purse.ask()
    assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
    assert app.calls == 0
    assert "away" not in answer.error["message"], "what a driver says is for the log"
    ledger.verbs = ()
    assert (await purse.ask()).status == 200


@pytest.mark.parametrize("how", ["comes back", "stays away"])
async def test_a_ledger_fault_at_the_end_does_not_free_the_call(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """The answer goes out; the settle is tried again, or the hold lapses and is charged whole."""
    ledger = Failing("settle")
    purse = Purse(Stranger((3, 4)), 10_000, ledger=ledger)
    with caplog.at_level(logging.ERROR, "asgi_llm_gateway"):
        body = limited(100)
        answer = await purse.ask(body)
    assert answer.status == 200
    assert "x-llm-cost-usd" not in answer.headers
    assert "could not be settled" in caplog.text
    assert await purse.balance() == (0, bound(body) + 200)
    if how == "comes back":  # the settle is tried again
        ledger.verbs = ()
        async with asyncio.timeout(10):
            while (await purse.balance())[1]:  # noqa: ASYNC110 - the ledger has no event for it
                await asyncio.sleep(0.05)
        assert await purse.balance() == (3 + 2 * 4, 0)
    else:
        assert await ledger.sweep(1e12) == 1
        assert await purse.balance() == (bound(body) + 200, 0)
    assert sum(record.cost for record in (await ledger.records("t")).records) == (await purse.balance())[0]


async def test_a_ledger_fault_before_a_further_call_is_503() -> None:
    """No yes, no call."""
    app = Calling("m", "m")
    purse = Purse(app, 10_000, ledger=Failing("raise"))
    assert (await purse.ask(limited(100))).status == 503
    assert app.made == ["m"]
