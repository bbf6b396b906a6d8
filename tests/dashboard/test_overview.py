"""The overview: sums of the ledger's records to the last nano-USD, times and failures of the traces, budgets as they stand."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from asgi_llm_gateway.dashboard import overview
from asgi_llm_gateway.dashboard.overview import POINTS, STEPS, step_of
from asgi_llm_gateway.records import Usage

from ..conversation import Answer
from ..traces.parts import record
from .desk import NOON, Desk, Somebody

SUMS = ("calls", "booked", "errors", "aborted", "refused", "cached", "tokens_in", "tokens_out", "cost_usd", "saved_usd")


def exact(answer: Answer) -> Any:
    """The body, its numbers by Decimal from the text."""
    assert answer.status == 200, answer.body
    return json.loads(answer.body, parse_float=Decimal)


async def look(one: Somebody, query: str = "") -> Any:
    """The overview."""
    return exact(await one.get(f"overview?{query}"))


async def test_an_overview_has_all_that_the_page_shows(desk: Desk) -> None:
    """The last 24 hours where no time is named; a point for each step, those without a call included."""
    await desk.team("team", budget_usd=5, name="Team")
    await desk.settle(model="m", usage=Usage(100, 20), cost=1_000_000_001, started=NOON - 3600)
    await desk.settle(model=None, usage=Usage(1, 2), cost=7, started=NOON - 3600)
    call = {"tenant": "team", "model": "m", "started": NOON - 3600}
    desk.traces.add(record(1, **call, duration=0.2, first_byte=0.1))
    desk.traces.add(record(2, **call, duration=0.4, first_byte=None, cache="hit", saved=500))
    desk.traces.add(record(3, **call, duration=1.0, first_byte=None, status=429, error="rate_limit_exceeded"))
    desk.traces.add(record(4, **call, duration=2.0, first_byte=0.5, status=502, error="upstream_error"))
    desk.traces.add(record(5, **call, duration=3.0, first_byte=0.6, aborted=True))
    desk.now += 0.5
    found = await look(await desk.admin())
    assert (float(found["since"]), float(found["until"]), found["step"]) == (NOON + 0.5 - 86400, NOON + 0.5, 900)
    assert found["totals"] == {
        "calls": 5, "booked": 2, "errors": 1, "aborted": 1, "refused": 1, "cached": 1, "tokens_in": 101, "tokens_out": 22,
        "cost_usd": Decimal("1.000000008"), "saved_usd": Decimal("0.0000005"), "p50_ms": 1000, "p95_ms": 3000,
        "p99_ms": 3000, "ttft_p50_ms": 500, "ttft_p95_ms": 600,
    }  # fmt: skip
    assert len(found["series"]) == 96
    (busy,) = [point for point in found["series"] if point["calls"]]
    assert found["since"] + 91 * 900 == busy["t"]
    assert busy["t"] <= NOON - 3600 < busy["t"] + 900
    assert {name: value for name, value in busy.items() if name != "t"} == found["totals"]
    quiet = found["series"][0]
    assert quiet == {**dict.fromkeys(found["totals"]), **dict.fromkeys(SUMS, 0), "t": found["since"]}
    assert found["by_model"] == [
        {**dict.fromkeys(SUMS, 0), "name": "m", "calls": 5, "booked": 1, "errors": 1, "aborted": 1, "refused": 1, "cached": 1,
         "tokens_in": 100, "tokens_out": 20, "cost_usd": Decimal("1.000000001"), "saved_usd": Decimal("0.0000005"),
         "p95_ms": 3000},
        {**dict.fromkeys(SUMS, 0), "name": None, "calls": 1, "booked": 1, "tokens_in": 1, "tokens_out": 2,
         "cost_usd": Decimal("0.000000007"), "p95_ms": None},
    ]  # fmt: skip
    assert [(row["name"], row["cost_usd"], row["p95_ms"]) for row in found["by_tenant"]] == [
        ("team", Decimal("1.000000008"), 3000)
    ]
    assert found["budgets"] == [
        {"tenant": "team", "name": "Team", "budget_usd": 5, "spent_usd": Decimal("1.000000008"), "held_usd": 0,
         "left_usd": Decimal("3.999999992"), "period": "none"}
    ]  # fmt: skip
    assert found["budgets_unlisted"] == 0


async def test_a_tenant_is_shown_its_own_alone(desk: Desk) -> None:
    """Whatever it asks for; an admin may look at one tenant, and not at one that there never was."""
    _, key = await desk.team("team")
    await desk.team("other", budget_usd=1)
    for tenant, cost in (("team", 5), ("other", 11)):
        await desk.settle(tenant, model=f"of-{tenant}", cost=cost, started=NOON - 60)
        desk.traces.add(record(cost, tenant=tenant, model=f"of-{tenant}", started=NOON - 60, duration=cost))
    desk.traces.add(record(9, tenant=None, model=None, started=NOON - 60, status=401))
    mine = desk.somebody()
    await mine.sign_in(key)
    for query in ("", "tenant=team"):
        found = await look(mine, query)
        assert found["totals"]["cost_usd"] == Decimal("0.000000005")
        assert (found["totals"]["calls"], found["totals"]["p99_ms"]) == (1, 5000)
        assert [row["name"] for row in found["by_model"]] == ["of-team"]
        assert [row["name"] for row in found["by_tenant"]] == ["team"]
        assert [(row["tenant"], row["budget_usd"], row["left_usd"]) for row in found["budgets"]] == [
            ("team", None, None)
        ]
        assert "other" not in json.dumps(found, default=str)
    admin = await desk.admin()
    assert (await look(admin))["totals"]["calls"] == 3
    assert (await look(admin, "tenant=other"))["totals"]["cost_usd"] == Decimal("0.000000011")
    answer = await admin.get("overview?tenant=nobody")
    assert (answer.status, answer.error["code"]) == (404, "tenant_not_found")


@pytest.mark.parametrize(
    ("query", "param"),
    [("since=yesterday", "since"), ("until=nan", "until"), ("since=5&until=5", "since"), ("since=6&until=5", "since"),
     ("until=999999999999", None), ("since=0&until=999999999999", "since"), ("tenant=%2e%2e", "tenant"), ("step=5", "step"),
     ("since=1&since=2", None), ("model=x", "model"), ("until=0", "since")],
)  # fmt: skip
async def test_a_query_that_is_none_is_refused(desk: Desk, query: str, param: str | None) -> None:
    """422 that names the parameter."""
    answer = await (await desk.admin()).get(f"overview?{query}")
    if query == "until=999999999999":  # far ahead, and a day long all the same
        assert answer.status == 200
        return
    assert (answer.status, answer.error["param"]) == (422, param)


@given(st.one_of(st.floats(0.001, 100 * 366 * 86400), st.sampled_from(STEPS), st.integers(1, 10**9)))
def test_a_series_has_a_bounded_number_of_points(seconds: float) -> None:
    """At most POINTS, whatever the span; and no more than it takes for each step of the list."""
    step = step_of(seconds)
    assert step * POINTS >= seconds
    shorter = [one for one in STEPS if one < step]
    assert all(one * POINTS < seconds for one in shorter)


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.floats(0, 7200),
        st.integers(0, 2**50),
        st.sampled_from([None, "m", "n"]),
        st.booleans(),
    ),
    max_size=20,
)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CALLS, st.floats(0, 7200), st.floats(1, 10_000), st.sampled_from(["", "a", "b"]))
def test_dashboard_stats_and_records_agree(
    tmp_path: Path,
    calls: list[tuple[str, float, int, str | None, bool]],
    since: float,
    span: float,
    tenant: str,
) -> None:
    """Totals, the series, the models, the tenants, ``/api/stats`` and the records: one sum, whatever was traced of it."""

    async def run() -> None:
        desk = Desk(tmp_path)
        await desk.team("a")
        await desk.team("b")
        for number, (owner, started, cost, model, traced) in enumerate(calls):
            await desk.settle(owner, started=started, cost=cost, model=model, usage=Usage(cost % 1000, number))
            if traced:
                desk.traces.add(record(number, tenant=owner, model=model, started=started, cost=cost))
        admin = await desk.admin()
        only = f"&tenant={tenant}" if tenant else ""
        found = await look(admin, f"since={since:.9f}&until={since + span:.9f}{only}")
        first, last = float(f"{since:.9f}"), float(f"{since + span:.9f}")
        for rows in (found["series"], found["by_model"], found["by_tenant"]):
            for name in ("booked", "tokens_in", "tokens_out", "cost_usd"):
                assert sum(row[name] for row in rows) == found["totals"][name]
        booked = []
        for owner in [tenant] if tenant else ["a", "b"]:
            query = f"since={first:.9f}&until={last:.9f}&limit=1000"
            booked += exact(await admin.get(f"tenants/{owner}/records?{query}"))["records"]
        assert found["totals"]["cost_usd"] == sum(row["cost_usd"] for row in booked)
        assert found["totals"]["booked"] == len(booked)
        for point in found["series"]:
            assert point["calls"] >= point["booked"]
        whole = await look(admin, f"since=0&until=100000{only}")
        stats = exact(await admin.get(f"stats?{only[1:]}"))
        sums = whole["totals"]
        assert (sums["cost_usd"], sums["booked"]) == (stats["cost_total_usd"], stats["requests"])
        assert (sums["tokens_in"], sums["tokens_out"]) == (stats["tokens_in"], stats["tokens_out"])

    asyncio.run(run())


async def test_many_models_are_summed_up_at_the_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dearest by name, the rest as one: no call is left out of the sums."""
    monkeypatch.setattr(overview, "GROUPS", 3)
    for number in range(10):
        await desk.settle(model=f"m{number}", cost=number, started=NOON - 1)
    found = await look(await desk.admin())
    assert [row["name"] for row in found["by_model"]] == ["m9", "m8", "m7", "(7 others)"]
    assert sum(row["cost_usd"] for row in found["by_model"]) == found["totals"]["cost_usd"] == Decimal("0.000000045")


async def test_the_budgets_nearest_to_their_ends_come_first(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many are left out is told; held money is no money left."""
    monkeypatch.setattr(overview, "BUDGETS", 2)
    for tenant, budget, spent in (("a", 10, 1), ("b", 10, 9), ("c", 10, 5), ("d", None, 5)):
        await desk.team(tenant, **({} if budget is None else {"budget_usd": budget}))
        await desk.settle(tenant, cost=spent * 10**9)
    found = await look(await desk.admin())
    assert [row["tenant"] for row in found["budgets"]] == ["b", "c"]
    assert found["budgets_unlisted"] == 1
