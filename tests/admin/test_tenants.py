"""Tenants: what can be set, changed and cleared, and what is shown of their money."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.admin.answers import TenantAnswer, as_json, tenant_answer
from asgi_llm_gateway.admin.models import MAX_BODY, NewAdjustment, NewTenant, read
from asgi_llm_gateway.errors import BadRequest
from asgi_llm_gateway.periods import window_of
from asgi_llm_gateway.records import Amount, Balance, Limit, Tenant, Usage, usd_number

from ..conversation import JSON, ask
from .conftest import ADMIN_KEY, NOON, Office, bearer, exact

ALL: dict[str, Any] = {
    "name": "Team",
    "budget_usd": 5,
    "budget_tokens": 1000,
    "budget_period": "12h",
    "soft_limit_usd": 4.5,
    "max_output_tokens": 512,
    "rate_requests": 60,
    "rate_tokens": 100_000,
    "concurrency": 4,
    "allowed_models": ["echo", "fast"],
    "enabled": False,
    "metadata": {"owner": "Zoë", "cost centre": "4711"},
}
LIMITS = ("budget_usd", "budget_tokens", "soft_limit_usd", "max_output_tokens", "rate_requests", "rate_tokens",
          "concurrency", "allowed_models")  # fmt: skip


async def test_all_that_can_be_set_is_shown(office: Office) -> None:
    """Each field comes back as it was sent, from the creating answer, the tenant's page and the list."""
    made = (await office.team(**ALL)).json()
    shown = (await office.get("/api/tenants/team")).json()
    (listed,) = (await office.get("/api/tenants")).json()["data"]
    assert made == shown == listed
    assert made == {
        **ALL, "id": "team", "created": NOON, "spent_usd": 0, "held_usd": 0, "credit_usd": 0, "remaining_usd": 5,
        "tokens_spent": 0, "tokens_held": 0, "remaining_tokens": 1000, "period_start": NOON, "period_end": NOON + 43200,
    }  # fmt: skip
    assert set(made) == set(TenantAnswer.model_fields)


async def test_a_bare_tenant_has_no_limits(office: Office) -> None:
    """``null`` for each limit and for what would remain; its one period never ends."""
    made = (await office.team()).json()
    for name in (*LIMITS, "remaining_usd", "remaining_tokens", "period_start", "period_end"):
        assert made[name] is None
    assert (made["budget_period"], made["enabled"], made["metadata"]) == ("none", True, {})


@pytest.mark.parametrize("field", ALL)
async def test_a_change_changes_what_is_sent_and_nothing_else(office: Office, field: str) -> None:
    """``PUT`` with one field: that one is new, every other as it was."""
    await office.team()
    changed = await office.ask("PUT", "/api/tenants/team", {field: ALL[field]})
    assert changed.status == 200
    fresh = (await office.team("fresh", **{field: ALL[field]})).json()
    assert {**changed.json(), "id": "fresh"} == fresh
    assert (await office.get("/api/tenants/team")).json() == changed.json()


@pytest.mark.parametrize("field", ALL)
async def test_null_takes_a_limit_away_and_nothing_else(office: Office, field: str) -> None:
    """An explicit ``null`` clears a limit; of what is no limit it is refused."""
    await office.team(**ALL)
    answer = await office.ask("PUT", "/api/tenants/team", {field: None})
    if field in LIMITS:
        assert (answer.status, answer.json()[field]) == (200, None)
        assert {**answer.json(), field: ALL[field]}.items() >= ALL.items()
    else:
        assert (answer.status, answer.error["param"]) == (422, field)
        assert (await office.get("/api/tenants/team")).json().items() >= ALL.items()


@pytest.mark.parametrize("field", ["id", "created", "spent_usd", "credit_usd", "period_start", "keys", "admin"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/api/tenants"), ("PUT", "/api/tenants/team")])
async def test_what_is_not_the_clients_to_set_is_refused_by_name(
    office: Office, method: str, path: str, field: str
) -> None:
    """422, and nothing is changed, whatever else was sent."""
    await office.team()
    body = {"name": "new", **({"id": "other"} if method == "POST" else {}), field: 1}
    answer = await office.ask(method, path, json.dumps(body).encode())
    assert (answer.status, answer.error["param"]) == (422, field)
    assert (await office.get("/api/tenants/team")).json()["name"] == ""


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("budget_usd", (-1, "five", "", True, [], 1e400, -1e-9, "nan")),
        ("soft_limit_usd", (-0.5, False)),
        ("budget_tokens", (-1, 1.5, "5", True, 2**53 + 1, 10**30)),
        ("max_output_tokens", (0, -1, 1.0, True, "9", 1e308)),
        ("rate_requests", (0, True)),
        ("rate_tokens", (0, "x")),
        ("concurrency", (0, -1)),
        ("budget_period", ("", "yearly", "12", "0h", "-1d", "9999d", "12h ", "\u0661h", 5, True)),
        ("name", (5, "x" * 257, "nul\0", "\u202eevil")),
        ("enabled", (1, 0, "yes", "true")),
        ("allowed_models", ("echo", [""], [5], ["x" * 257], ["m"] * 1001)),
        ("metadata", ([], {"k": 1}, {"k": None}, {"": "v"}, {"k" * 65: "v"}, {"k": "v" * 513}, {"k": "\0"},
                      {str(n): "v" for n in range(17)}, {"k": {"nested": "v"}})),
    ],
)  # fmt: skip
async def test_a_value_out_of_its_bounds_is_refused(office: Office, field: str, values: tuple[Any, ...]) -> None:
    """422 that names the field, on making and on changing; nothing is made or changed."""
    before = (await office.team(**ALL)).json()
    for value in values:
        text = json.dumps(value).replace("Infinity", "1e400")
        for method, path, body in (
            ("POST", "/api/tenants", f'{{"id": "other", "{field}": {text}}}'),
            ("PUT", "/api/tenants/team", f'{{"{field}": {text}}}'),
        ):
            answer = await office.ask(method, path, body.encode())
            assert (answer.status, answer.error["param"]) == (422, field), (value, answer.body)
    assert (await office.get("/api/tenants/team")).json() == before
    assert (await office.get("/api/tenants/other")).status == 404


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"budget_usd": NaN}', b'{"budget_usd": -Infinity}', b"\xff", b"[" * 60_000,
     b'{"budget_usd": 1, "budget_usd": 2}', b'{"budget_tokens": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
async def test_what_is_no_json_is_400(office: Office, body: bytes) -> None:
    """Also a field that is given twice: readers disagree on which one counts."""
    await office.team()
    answer = await office.ask("PUT", "/api/tenants/team", body)
    assert (answer.status, answer.error["code"]) == (400, "invalid_json")


async def test_a_body_that_is_too_long_is_413_wherever_one_is_read(office: Office) -> None:
    """The rest is not waited for."""
    await office.team()
    key = await office.key()
    body = b'{"name": "' + b"x" * MAX_BODY + b'"}'
    for method, path in (
        ("POST", "/api/tenants"),
        ("PUT", "/api/tenants/team"),
        ("POST", "/api/tenants/team/keys"),
        ("POST", "/api/tenants/team/adjustments"),
        ("POST", f"/api/tenants/team/keys/{key['id']}/rotate"),
    ):
        for cut in (0, 1000):
            answer = await ask(office.app, body, path, method=method, headers=(JSON, bearer(ADMIN_KEY)), cut=cut)
            assert (answer.status, answer.error["code"]) == (413, "request_too_large")


# -- money -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**62))
def test_an_amount_survives_the_way_there_and_back(nano: int) -> None:
    """Written as JSON, read by us, written by us, read by Decimal: the same to the last digit, and never a float."""
    text = usd_number(nano)
    made = read(NewTenant, f'{{"id": "team", "budget_usd": {text}}}'.encode())
    assert made.budget_usd == nano
    tenant = Tenant(**made.for_record())
    back = json.loads(as_json(tenant_answer(tenant, Balance(), 0.0)), parse_float=Decimal)
    assert back["budget_usd"] * 10**9 == nano


@given(st.integers(1, 10**18), st.booleans())
def test_a_credit_and_a_debit_survive_the_way_there(nano: int, debit: bool) -> None:
    """With their sign."""
    text = ("-" if debit else "") + usd_number(nano)
    body = f'{{"amount_usd": {text}, "reason": "r"}}'.encode()
    assert read(NewAdjustment, body).amount_usd == (-nano if debit else nano)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=0, max_value=1000, places=12))
def test_an_amount_is_taken_exactly_or_not_at_all(amount: Decimal) -> None:
    """More than nine decimals are refused; nothing is rounded."""
    fits = amount * 10**9 == int(amount * 10**9)
    body = f'{{"id": "team", "budget_usd": {amount:f}}}'.encode()
    if fits:
        assert read(NewTenant, body).budget_usd == amount * 10**9
    else:
        with pytest.raises(BadRequest, match="budget_usd"):
            read(NewTenant, body)


@pytest.mark.parametrize("body", [{"\ud800": 1}, {"name": "\ud800"}, {"metadata": {"\ud800": "v"}}])
async def test_half_a_surrogate_pair_is_told_in_the_envelope(office: Office, body: Any) -> None:
    """422 in UTF-8: the refusal itself can be sent."""
    await office.team()
    answer = await office.ask("PUT", "/api/tenants/team", json.dumps(body).encode())
    assert answer.status == 422
    assert answer.error["message"]


async def test_what_remains_is_budget_and_credit_less_spent_and_held(office: Office) -> None:
    """In money and in tokens, in the current window, exactly."""
    await office.team(budget_usd=10, budget_tokens=1000, budget_period="daily")
    window = window_of("daily", NOON)
    await office.settle(window=window, cost=2_000_000_001, usage=Usage(100, 20))
    await office.store.hold("team", hold_id="open", limits=(Limit("", window, None, None),), least=Amount(0, 0),
                            wanted=Amount(1_500_000_000, 30), now=NOON, ttl=60)  # fmt: skip
    await office.ask("POST", "/api/tenants/team/adjustments", {"amount_usd": 0.25, "reason": "goodwill"})
    shown = exact(await office.get("/api/tenants/team"))
    assert {name: shown[name] for name in ("spent_usd", "held_usd", "credit_usd", "remaining_usd")} == {
        "spent_usd": Decimal("2.000000001"),
        "held_usd": Decimal("1.5"),
        "credit_usd": Decimal("0.25"),
        "remaining_usd": Decimal("6.749999999"),
    }
    assert (shown["tokens_spent"], shown["tokens_held"], shown["remaining_tokens"]) == (120, 30, 850)
    assert (shown["period_start"], shown["period_end"]) == (window, window + 86400)


async def test_a_new_period_counts_from_another_window(office: Office) -> None:
    """What was spent is not moved: back in the old period it counts as before; the next window begins at nothing."""
    await office.team(budget_usd=10, budget_period="daily")
    await office.settle(window=window_of("daily", NOON), cost=4 * 10**9)
    seen = []
    for period in ("daily", "monthly", "none", "daily"):
        answer = await office.ask("PUT", "/api/tenants/team", {"budget_period": period})
        seen.append((answer.json()["spent_usd"], answer.json()["remaining_usd"]))
    assert seen == [(4, 6), (0, 10), (0, 10), (4, 6)]
    office.now += 86400
    assert (await office.get("/api/tenants/team")).json()["spent_usd"] == 0


async def test_a_tenant_that_overdrew_has_less_than_nothing(office: Office) -> None:
    """A negative number, not null and not zero."""
    await office.team(budget_usd=1)
    await office.settle(cost=2 * 10**9)
    assert (await office.get("/api/tenants/team")).json()["remaining_usd"] == -1


# -- adjustments -------------------------------------------------------------------------------------------------------


async def test_a_credit_and_a_debit_are_booked_and_listed(office: Office) -> None:
    """201 with the balance they lead to; the newest first, each with its sign, its reason and who did it."""
    await office.team(budget_usd=10)
    credit = await office.ask("POST", "/api/tenants/team/adjustments", {"amount_usd": 5, "reason": "goodwill"})
    office.now += 1
    debit = await office.ask("POST", "/api/tenants/team/adjustments", {"amount_usd": -2.5, "reason": "correction"})
    assert (credit.status, credit.json()["balance"]["remaining_usd"]) == (201, 15)
    assert (debit.status, debit.json()["balance"]["remaining_usd"]) == (201, 12.5)
    rows = (await office.get("/api/tenants/team/adjustments")).json()["data"]
    assert [(row["kind"], row["amount_usd"], row["reason"], row["by"]) for row in rows] == [
        ("debit", -2.5, "correction", "admin"),
        ("credit", 5, "goodwill", "admin"),
    ]
    assert rows == [{name: value for name, value in one.json().items() if name != "balance"} for one in (debit, credit)]
    assert (await office.get("/api/tenants/team/adjustments?limit=1")).json()["data"] == rows[:1]


async def test_an_adjustment_with_an_id_is_booked_once(office: Office) -> None:
    """Sent again: 200 and the first booking. Another under the same id: 409. Another tenant's id is its own."""
    await office.team()
    await office.team("other")
    body = {"amount_usd": 5, "reason": "goodwill", "id": "ticket-1"}
    first = await office.ask("POST", "/api/tenants/team/adjustments", body)
    office.now += 10
    again = await office.ask("POST", "/api/tenants/team/adjustments", body)
    assert (first.status, again.status) == (201, 200)
    assert again.json() == first.json()
    for change in ({"amount_usd": 6}, {"amount_usd": -5}, {"reason": "x"}):
        answer = await office.ask("POST", "/api/tenants/team/adjustments", {**body, **change})
        assert (answer.status, answer.error["code"]) == (409, "adjustment_exists")
    elsewhere = await office.ask("POST", "/api/tenants/other/adjustments", body)
    assert (elsewhere.status, elsewhere.json()["id"]) == (201, "ticket-1")
    assert (await office.get("/api/tenants/team")).json()["credit_usd"] == 5


async def test_an_adjustment_counts_in_the_current_window_only(office: Office) -> None:
    """The next day begins without it."""
    await office.team(budget_usd=1, budget_period="daily")
    await office.ask("POST", "/api/tenants/team/adjustments", {"amount_usd": 5, "reason": "today"})
    assert (await office.get("/api/tenants/team")).json()["remaining_usd"] == 6
    office.now += 86400
    assert (await office.get("/api/tenants/team")).json()["remaining_usd"] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("amount_usd", 0), ("amount_usd", -0.0), ("amount_usd", 1e-10), ("amount_usd", "--5"), ("amount_usd", True),
     ("amount_usd", 1_000_000_000.5), ("amount_usd", -2e9), ("amount_usd", None), ("amount_usd", "-nan"),
     ("reason", ""), ("reason", "x" * 257), ("reason", "a\nb"), ("reason", None), ("id", ""), ("id", "a:b"),
     ("id", "a" * 129), ("id", "a\n"), ("kind", "credit"), ("window", 0)],
)  # fmt: skip
async def test_what_is_no_adjustment_is_refused(office: Office, field: str, value: Any) -> None:
    """422 that names the field; nothing is booked."""
    await office.team()
    body = {"amount_usd": 5, "reason": "goodwill", field: value}
    answer = await office.ask("POST", "/api/tenants/team/adjustments", json.dumps(body).encode())
    assert (answer.status, answer.error["param"]) == (422, field)
    assert (await office.get("/api/tenants/team/adjustments")).json() == {"data": []}


async def test_credits_never_sum_up_to_what_no_database_can_hold(office: Office) -> None:
    """The sum is refused at 2^62 nano-USD."""
    await office.team(budget_usd=4611686018)
    answers = [
        await office.ask("POST", "/api/tenants/team/adjustments", {"amount_usd": 1e9, "reason": "lots"})
        for _ in range(6)
    ]
    assert [answer.status for answer in answers] == [201] * 4 + [422] * 2
    shown = exact(await office.get("/api/tenants/team"))
    assert shown["remaining_usd"] == 8611686018


async def test_an_overdraft_is_among_the_adjustments(office: Office) -> None:
    """A call that cost more than was held leaves a row, which the operator can't make."""
    await office.team()
    await office.settle(held=Amount(10, 10), cost=25, overdraft=15, request_id="req-1")
    (row,) = (await office.get("/api/tenants/team/adjustments")).json()["data"]
    assert (row["kind"], row["amount_usd"]) == ("overdraft", 15e-9)


# -- lists and ends ----------------------------------------------------------------------------------------------------


async def test_tenants_are_listed_in_pages_by_id(office: Office) -> None:
    """``next`` leads from page to page, and each tenant is seen once."""
    ids = sorted(f"t{number}" for number in range(25))
    for tenant in reversed(ids):
        await office.team(tenant)
    seen, after = [], ""
    while True:
        page = (await office.get(f"/api/tenants?limit=7{after}")).json()
        assert len(page["data"]) <= 7
        seen += [row["id"] for row in page["data"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert seen == ids
    assert (await office.get("/api/tenants?after=t24")).json()["data"][0]["id"] == "t3"
    assert (await office.get("/api/tenants?after=zzz")).json() == {"data": [], "next": None}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=", "limit=5&limit=6", "after=T", "page=2"]
)
async def test_a_query_that_is_none_is_refused(office: Office, query: str) -> None:
    """Unknown, repeated and senseless parameters: 422, not a silent default."""
    for path in ("/api/tenants", "/api/tenants/team/keys"):
        await office.ask("POST", "/api/tenants", {"id": "team"})
        if (path, query) == ("/api/tenants/team/keys", "after=T"):
            continue
        assert (await office.get(f"{path}?{query}")).status == 422


async def test_a_deleted_tenant_is_gone_and_its_records_stay(office: Office) -> None:
    """204; its keys are revoked in the same step, its records, adjustments and sums can still be read by an admin."""
    await office.team()
    key = await office.key()
    await office.settle(cost=7, model="echo")
    await office.ask("POST", "/api/tenants/team/adjustments", {"amount_usd": 5, "reason": "goodwill"})
    before = [await office.get(f"/api/tenants/team/{what}") for what in ("records", "adjustments")]
    stats = await office.get("/api/stats?tenant=team")
    ended = await office.ask("DELETE", "/api/tenants/team")
    assert (ended.status, ended.body) == (204, b"")
    for method, path in (("GET", ""), ("PUT", ""), ("DELETE", ""), ("GET", "/keys"), ("POST", "/keys"),
                         ("DELETE", f"/keys/{key['id']}"), ("POST", f"/keys/{key['id']}/rotate")):  # fmt: skip
        assert (await office.ask(method, f"/api/tenants/team{path}", {})).status == 404, path
    assert (await office.ask("POST", "/api/tenants/team/adjustments", {"amount_usd": 1, "reason": "r"})).status == 404
    after = [await office.get(f"/api/tenants/team/{what}") for what in ("records", "adjustments")]
    assert [answer.body for answer in after] == [answer.body for answer in before]
    assert (await office.get("/api/stats?tenant=team")).body == stats.body
    assert [one.revoked for one in await office.store.keys("team")] == [office.now]


@pytest.mark.parametrize("tenant", ["nobody", "Team", "te%20am", "a" * 65, "%00", "a%2fb", "\uff54eam", ".."])
async def test_a_tenant_that_never_was_is_404_everywhere(office: Office, tenant: str) -> None:
    """In the envelope, also for ids that no store should be asked for."""
    for method, path in (("GET", ""), ("PUT", ""), ("DELETE", ""), ("GET", "/records"), ("GET", "/adjustments"),
                         ("GET", "/keys"), ("POST", "/keys")):  # fmt: skip
        answer = await office.ask(method, f"/api/tenants/{tenant}{path}", {})
        assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
    assert (await office.get("/api/stats?tenant=nobody")).status == 404
