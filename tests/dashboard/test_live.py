"""The newest calls, asked for again and again, and the price list."""

from __future__ import annotations

import pytest

from asgi_llm_gateway.dashboard.prices import PriceList
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.records import Price, Target, Tier, UnitPrice

from ..traces.parts import record
from .desk import NOON, Desk


async def test_each_call_comes_once(desk: Desk) -> None:
    """First the newest, then those that came since; a call that began earlier and took longer, too."""
    admin = await desk.admin()
    assert (await admin.get("live")).json() == {"calls": [], "cursor": "0"}
    for number in range(3):
        desk.traces.add(record(number))
    first = (await admin.get("live")).json()
    assert [call["request_id"] for call in first["calls"]] == ["req-2", "req-1", "req-0"]
    assert (await admin.get(f"live?after={first['cursor']}")).json() == {"calls": [], "cursor": first["cursor"]}
    desk.traces.add(record(9))
    desk.traces.add(record(7, started=NOON - 100))
    then = (await admin.get(f"live?after={first['cursor']}")).json()
    assert [call["request_id"] for call in then["calls"]] == ["req-9", "req-7"]
    assert len((await admin.get("live?limit=2")).json()["calls"]) == 2
    call = then["calls"][0]
    assert (call["duration_ms"], call["first_byte_ms"], call["cost_usd"]) == (500, 250, 1e-6)


async def test_a_tenant_is_told_its_own_calls(desk: Desk) -> None:
    """And of nobody's neither."""
    _, key = await desk.team("team")
    for number, tenant in enumerate(["team", "other", None]):
        desk.traces.add(record(number, tenant=tenant))
    one = desk.somebody()
    await one.sign_in(key)
    assert [call["tenant"] for call in (await one.get("live")).json()["calls"]] == ["team"]
    assert [call["tenant"] for call in (await one.get("traces")).json()["data"]] == ["team"]
    assert (await one.get("traces/req-0")).status == 200
    refused = [await one.get(path) for path in ("traces/req-1", "traces/req-2", "traces/req-99")]
    assert {answer.status for answer in refused} == {404}
    assert len({answer.body for answer in refused}) == 1
    assert (await one.get("traces?tenant=other")).status == 403


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "%00", "9" * 20, "²", " 1"])
async def test_a_cursor_that_is_none_is_refused(desk: Desk, cursor: str) -> None:
    """422 that names it."""
    answer = await (await desk.admin()).get(f"live?after={cursor}")
    assert (answer.status, answer.error["param"]) == (422, "after")


# -- prices ------------------------------------------------------------------------------------------------------------


async def test_prices_are_of_the_models_set_up_and_those_used(desk: Desk) -> None:
    """With where each name leads; a model without a price says so."""
    await desk.settle(model="gpt-4", cost=1)
    await desk.settle(model="unheard-of", cost=0)
    rows = {row["model"]: row for row in (await (await desk.admin()).get("prices")).json()["data"]}
    assert list(rows) == ["echo", "gpt-4", "unheard-of"]
    assert (rows["echo"]["provider"], rows["echo"]["local"], rows["echo"]["usd_per_million_in"]) == ("echo", True, 0)
    assert (rows["gpt-4"]["usd_per_million_in"], rows["gpt-4"]["usd_per_million_out"]) == (30, 60)
    assert (rows["unheard-of"]["known"], rows["unheard-of"]["usd_per_million_in"]) == (False, None)


async def test_a_tenant_sees_the_prices_that_concern_it(desk: Desk) -> None:
    """Of the models that it may use, and of those that it did use; not what others use."""
    _, key = await desk.team("team", allowed_models=["gpt-4"])
    await desk.settle("other", model="secret-project", cost=1)
    await desk.settle("team", model="gpt-3.5-turbo", cost=1)
    one = desk.somebody()
    await one.sign_in(key)
    assert [row["model"] for row in (await one.get("prices")).json()["data"]] == ["gpt-3.5-turbo"]


def test_a_price_is_shown_whole() -> None:
    """Tiers, media and fees; a row for each target, by the price of that one."""
    dear = Price(3_000_000_000, 6_000_000_001, cached=300, tiers=(Tier(200_000, 4, 5, 6, 7),), context=1000,
                 units=UnitPrice(image=1, minute=2, characters=3, request=4, media_in=5, media_out=6))  # fmt: skip
    table = PriceTable({"far/m": dear}, local=("near",))
    rows = PriceList(table, (), lambda name: [Target("far", "m"), Target("near", "m"), Target("far", "m")]).rows(["m"])
    assert [(row.provider, row.local, row.usd_per_million_out) for row in rows] == [
        ("far", False, 6_000_000_001),
        ("near", True, 0),
    ]
    assert rows[0].usd_per_image == 1
    assert (rows[0].usd_per_minute, rows[0].usd_per_million_characters, rows[0].usd_per_request) == (2, 3, 4)
    assert (rows[0].usd_per_million_media_in, rows[0].usd_per_million_media_out, rows[0].context) == (5, 6, 1000)
    tier = rows[0].tiers[0]
    assert (tier.above_tokens, tier.usd_per_million_in, tier.usd_per_million_cache_write) == (200_000, 4, 7)
