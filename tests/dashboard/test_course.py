"""Spend over time by model and by tenant: the sums of the overview, told apart; a tenant sees its own alone."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from asgi_llm_gateway.dashboard.course import NAMES
from asgi_llm_gateway.records import Usage

from .desk import NOON, Desk
from .test_overview import exact, look

DAY = f"since={NOON - 86400}&until={NOON}"


async def some_calls(desk: Desk) -> None:
    """Seven models of one tenant, one of another."""
    await desk.team("team")
    await desk.team("other")
    for number in range(1, NAMES + 3):
        await desk.settle(
            model=f"m{number}", usage=Usage(10, number), cost=10**9 * number, started=NOON - 3600 * number
        )
    await desk.settle(tenant="other", model="m1", usage=Usage(5, 5), cost=1, started=NOON - 60)


async def test_a_course_sums_up_to_the_overview(desk: Desk) -> None:
    """The dearest one by one, one column for the others, on the overview's own grid, exact to the last nano-USD."""
    await some_calls(desk)
    admin = await desk.admin()
    whole = await look(admin, DAY)
    found = exact(await admin.get(f"course?{DAY}"))
    assert found["names"] == ["m7", "m6", "m5", "m4", "m3"]
    assert found["others"] is True
    assert [point["t"] for point in found["series"]] == [point["t"] for point in whole["series"]]
    for mine, theirs in zip(found["series"], whole["series"], strict=True):
        assert len(mine["cost_usd"]) == len(mine["tokens"]) == NAMES + 1
        assert sum(mine["cost_usd"]) == theirs["cost_usd"]
        assert sum(mine["tokens"]) == theirs["tokens_in"] + theirs["tokens_out"]
    assert sum(point["cost_usd"][-1] for point in found["series"]) == Decimal("3.000000001")
    by_tenant = exact(await admin.get(f"course?{DAY}&by=tenant"))
    assert (by_tenant["names"], by_tenant["others"]) == (["team", "other"], False)


async def test_without_calls_there_is_nobody(desk: Desk) -> None:
    """Points without columns."""
    found = exact(await (await desk.admin()).get(f"course?{DAY}"))
    assert (found["names"], found["others"]) == ([], False)
    assert all(point["cost_usd"] == point["tokens"] == [] for point in found["series"])


async def test_a_tenant_sees_its_own_course(desk: Desk) -> None:
    """Not another's, by no way of asking."""
    await some_calls(desk)
    _, key = await desk.team("other")
    own = desk.somebody()
    assert (await own.sign_in(key)).status == 200
    for by, names in (("model", ["m1"]), ("tenant", ["other"])):
        assert exact(await own.get(f"course?{DAY}&by={by}"))["names"] == names
    assert (await own.get("course?tenant=team")).status == 403
    assert (await own.get("course?tenant=nobody")).status == 403


@pytest.mark.parametrize("query", ["by=key", "since=2&until=1", "until=never", "colour=red"])
async def test_a_wrong_query_names_its_field(desk: Desk, query: str) -> None:
    """422, as the overview's."""
    answer: Any = await (await desk.admin()).get(f"course?{query}")
    assert answer.status == 422
