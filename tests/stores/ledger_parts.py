"""Holds and records for every kind of ledger: what its tests share."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import Amount, CallRecord, Hold, Limit, Refusal, Usage
from asgi_llm_gateway.stores.base import Ledger

MONEY, TOKENS, KEY_MONEY = 1_000, 5_000, 600
TTL = 10.0


def record(hold: Hold, cost: int = 5, tokens: int = 3, **more: Any) -> CallRecord:
    """A record of the hold's call."""
    usage = Usage(tokens, 0)
    return CallRecord(hold.id, hold.tenant, "req", "trace", None, "m", "p", usage, cost, 200, 1.0, 2.0, **more)


def plain(ledger: Ledger, tenant: str, money: int = 20, **more: Any) -> Coroutine[Any, Any, Hold | Refusal]:
    """A hold of a fixed amount."""
    more = {"limits": (Limit("", 0, MONEY, None),), "now": 1000.0, "ttl": TTL, **more}
    return ledger.hold(tenant, hold_id=new_hold_id(), least=Amount(money, 1), wanted=Amount(money, 1), **more)


async def taken(ledger: Ledger, tenant: str, money: int = 20, **more: Any) -> Hold:
    """One that is granted."""
    hold = await plain(ledger, tenant, money, **more)
    assert isinstance(hold, Hold)
    return hold
