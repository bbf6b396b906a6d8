"""A tenant's money through the whole gateway: what calls hold and spend, and what is shown of it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from ..conversation import CHAT, JSON, ask, call, get
from .conftest import ADMIN_KEY, bearer, exact
from .whole import OPEN, amounts, amounts_of, app, key_of, make

__all__ = ["app"]


async def test_spent_held_and_remaining_follow_the_calls(app: Any) -> None:
    """After two calls of 3 + 3 tokens at 1,000 and 2,000 USD a million: 0.018 USD spent, nothing held."""
    await make(app, id="team", budget_usd=100)
    headers = (JSON, bearer(await key_of(app, "team")))
    for stream in (False, True):
        answer = await ask(app, {**CHAT, "model": "dear", "max_tokens": 3, "stream": stream}, headers=headers)
        assert answer.status == 200
    shown = await get(app, "/api/tenants/team", headers=OPEN)
    assert amounts(shown) == amounts_of(budget="100.0", spent="0.018", remaining="99.982")


async def test_records_statistics_and_balance_say_the_same(app: Any) -> None:
    """What three calls cost: in the sum of the records, in ``/api/stats`` and in what the tenant has spent."""
    await make(app, id="team", budget_usd=100, budget_tokens=100_000, budget_period="monthly")
    key = await key_of(app, "team")
    for model in ("dear", "echo", "dear"):
        answer = await ask(app, {**CHAT, "model": model, "max_tokens": 3}, headers=(JSON, bearer(key)))
        assert answer.status == 200
    for caller in (ADMIN_KEY, key):
        headers = (bearer(caller),)
        records = exact(await get(app, "/api/tenants/team/records", headers=headers))["records"]
        stats = exact(await get(app, "/api/stats", headers=headers))
        tenant = exact(await get(app, "/api/tenants/team", headers=headers))
        assert [record["model"] for record in records] == ["dear", "echo", "dear"]
        assert sum(record["cost_usd"] for record in records) == Decimal("0.018")
        assert stats["cost_total_usd"] == tenant["spent_usd"] == Decimal("0.018")
        tokens = sum(record["prompt_tokens"] + record["completion_tokens"] for record in records)
        assert stats["tokens_in"] + stats["tokens_out"] == tenant["tokens_spent"] == tokens
        assert stats["requests"] == len(records)
        assert len({record["request_id"] for record in records}) == 3
        assert {record["key_id"] for record in records} == {records[0]["key_id"]}


async def test_a_credit_lets_a_tenant_call_again(app: Any) -> None:
    """402 with the budget spent, 200 after the operator's credit, 402 again after a debit."""
    await make(app, id="team", budget_usd=0.009)
    headers = (JSON, bearer(await key_of(app, "team")))
    body = {**CHAT, "model": "dear", "max_tokens": 3}
    statuses = []
    for amount in (0, 5, -5):
        if amount:
            change = {"amount_usd": amount, "reason": "test"}
            assert (await ask(app, change, "/api/tenants/team/adjustments", headers=OPEN)).status == 201
        statuses.append((await ask(app, body, headers=headers)).status)
    assert statuses == [402, 200, 402]


async def test_a_call_that_runs_is_held(app: Any) -> None:
    """While a stream is open its most is held; afterwards what it cost is spent."""
    await make(app, id="team", budget_usd=100)
    headers = (JSON, bearer(await key_of(app, "team")))
    body = {**CHAT, "model": "dear", "max_tokens": 3, "stream": True, "metadata": {"echo_delay_ms": "20"}}
    async with call(app, body, headers=headers) as talk:
        await talk.next()
        during = (await get(app, "/api/tenants/team", headers=OPEN)).json()
        await talk.answer()
    after = (await get(app, "/api/tenants/team", headers=OPEN)).json()
    assert during["held_usd"] >= 0.009
    assert during["spent_usd"] == 0
    assert during["held_usd"] + during["remaining_usd"] == pytest.approx(100)
    assert (after["spent_usd"], after["held_usd"]) == (0.009, 0)


async def test_a_budget_that_is_spent_refuses(app: Any) -> None:
    """402 with OpenAI's quota words; the refused call costs nothing."""
    await make(app, id="team", budget_usd=0.5)
    headers = (JSON, bearer(await key_of(app, "team")))
    body = {**CHAT, "model": "dear", "max_tokens": 1000}
    answer = await ask(app, body, headers=headers)
    assert (answer.status, answer.error["code"], answer.error["type"]) == (
        402,
        "would_exceed_budget",
        "insufficient_quota",
    )
    shown = await get(app, "/api/tenants/team", headers=OPEN)
    assert amounts(shown) == amounts_of(budget="0.5", remaining="0.5")
