"""The operators' side through the whole gateway: who may enter, what can be set, what is shown."""

from __future__ import annotations

import asyncio
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway import create_app, settings
from asgi_llm_gateway.admin.models import MAX_BODY

from ..conversation import CHAT, JSON, Answer, ask, call, get
from .conftest import ADMIN_KEY, bearer, exact

PRICED = """
[models.dear]
targets = ["echo/echo"]
usd_per_million_in = 1000
usd_per_million_out = 2000
"""


OPEN = (JSON, bearer(ADMIN_KEY))


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A gateway with an admin key and a model that costs money."""
    (tmp_path / "gateway.toml").write_text(PRICED, "utf-8")
    monkeypatch.setenv("GATEWAY_CONFIG", str(tmp_path / "gateway.toml"))
    monkeypatch.setenv("GATEWAY_ADMIN_KEY", ADMIN_KEY)
    settings.forget()
    return create_app()


async def make(app: Any, **fields: Any) -> Answer:
    """``POST /api/tenants``."""
    return await ask(app, fields, "/api/tenants", headers=OPEN)


async def key_of(app: Any, tenant: str) -> str:
    """A fresh key of a tenant."""
    answer = await ask(app, {}, f"/api/tenants/{tenant}/keys", headers=OPEN)
    assert answer.status == 201
    return str(answer.json()["key"])


def amounts(answer: Answer) -> dict[str, str | None]:
    """The amounts of a tenant as they are written, digit by digit."""
    found = re.findall(r'"(\w+)_usd":([-0-9.e]+|null)', answer.body.decode())
    return {name: None if text == "null" else text for name, text in found}


def amounts_of(**more: str | None) -> dict[str, str | None]:
    """The amounts of a tenant that has spent nothing, and what is otherwise."""
    return {
        "budget": None,
        "soft_limit": None,
        "spent": "0.0",
        "held": "0.0",
        "remaining": None,
        "credit": "0.0",
        **more,
    }


# -- who may enter -----------------------------------------------------------------------------------------------------


async def test_health_needs_no_key(app: Any) -> None:
    """A load balancer asks, and nothing else is looked at."""
    answer = await get(app, "/health")
    assert (answer.status, answer.json()) == (200, {"status": "ok"})


async def test_the_admin_api_is_closed_without_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """403 that names the setting, whatever key is shown."""
    monkeypatch.delenv("GATEWAY_ADMIN_KEY", raising=False)
    settings.forget()
    app = create_app()
    for headers in ((), OPEN, (bearer(""),), (bearer("None"),)):
        answer = await get(app, "/api/tenants", headers=headers)
        assert (answer.status, answer.error["code"]) == (403, "admin_disabled")
        assert "GATEWAY_ADMIN_KEY" in answer.error["message"]


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (bearer(""),),
        (bearer("wrong"),),
        (bearer(ADMIN_KEY[:-1]),),
        (bearer(ADMIN_KEY + "x"),),
        ((b"authorization", ADMIN_KEY.encode()),),
        ((b"authorization", f"Basic {ADMIN_KEY}".encode()),),
        ((b"x-api-key", ADMIN_KEY.encode()),),
        ((b"authorization", b"Bearer \xff\xfe"),),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/tenants"),
        ("POST", "/api/tenants"),
        ("GET", "/api/tenants/team"),
        ("POST", "/api/tenants/team/keys"),
        ("DELETE", "/api/tenants/team/keys/key_x"),
        ("GET", "/api/nothing"),
    ],
)
async def test_a_wrong_key_is_401_everywhere(app: Any, headers: Any, method: str, path: str) -> None:
    """One refusal for every path, existing or not."""
    answer = await ask(app, {}, path, headers=(JSON, *headers), method=method)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


async def test_a_tenants_key_does_not_open_the_admin_api(app: Any) -> None:
    """It reads what is its own; and the admin key buys no model calls."""
    await make(app, id="team")
    key = await key_of(app, "team")
    assert (await get(app, "/api/tenants", headers=[bearer(key)])).status == 403
    assert (await get(app, "/api/tenants/team", headers=[bearer(key)])).status == 200
    assert (await ask(app, CHAT, headers=OPEN)).status == 401


# -- tenants -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("5", "5.0"),
        ("0", "0.0"),
        ("12.5", "12.5"),
        ("0.000000001", "0.000000001"),
        ("1e-9", "0.000000001"),
        ("1234567.123456789", "1234567.123456789"),
        ("4611686018.427387904", "4611686018.427387904"),
        ("null", None),
    ],
)
async def test_a_budget_is_kept_to_the_last_digit(app: Any, text: str, shown: str | None) -> None:
    """The amount is read from its text by decimal arithmetic, and comes back exactly, also after a look-up."""
    made = await ask(app, f'{{"id": "team", "budget_usd": {text}}}'.encode(), "/api/tenants", headers=OPEN)
    assert made.status == 201
    found = await get(app, "/api/tenants/team", headers=OPEN)
    for answer in (made, found):
        assert amounts(answer) == amounts_of(budget=shown, remaining=shown)


@pytest.mark.parametrize(
    "text",
    ["0.0000000001", "1.0000000001", "-1", "-0.000000001", '"five"', '""', "true", "[]", "{}", "1e400", "1e999999999",
     "4611686018.427387905", "99999999999999999999", "0.0000000010000000000000000000000000000000000001"],
)  # fmt: skip
async def test_what_is_no_budget_is_refused(app: Any, text: str) -> None:
    """422 that names the field; nothing is rounded and nothing is made."""
    answer = await ask(app, f'{{"id": "team", "budget_usd": {text}}}'.encode(), "/api/tenants", headers=OPEN)
    assert (answer.status, answer.error["param"]) == (422, "budget_usd")
    assert (await get(app, "/api/tenants/team", headers=OPEN)).status == 404


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"id": "team", "budget_usd": NaN}', b'{"id": "team", "budget_usd": Infinity}', b"\xff",
     b"[" * 100_0 + b"]" * 100_0, b'{"id": "team", "budget_usd": -Infinity}', b'{"id": "' + b"\\ud800" * 3],
)  # fmt: skip
async def test_what_is_no_json_is_refused(app: Any, body: bytes) -> None:
    """400 or 422 in the envelope, never a traceback."""
    answer = await ask(app, body, "/api/tenants", headers=OPEN)
    assert answer.status in (400, 422)
    assert answer.error["message"]


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"team"', b"5", b"{}"])
async def test_a_body_without_an_id_is_refused(app: Any, body: bytes) -> None:
    """422: what is missing is named."""
    answer = await ask(app, body, "/api/tenants", headers=OPEN)
    assert answer.status == 422


@pytest.mark.parametrize(
    "tenant",
    ["", "Team", "team ", " team", "te am", "-team", ".team", "team/x", "team\n", "team\0", "a" * 65, "t\u00e9", "te\u0301am",
     "\u0442eam", "\uff54eam", "te\u200bam", "te\u00adam", "team\u202e", "\u017fteam", "\ud800", 5, None, ["team"]],
)  # fmt: skip
async def test_an_id_that_is_none_is_refused(app: Any, tenant: Any) -> None:
    """Look-alikes, hidden characters and path pieces: 422, and the message says what an id looks like."""
    body = json.dumps({"id": tenant}).encode()
    answer = await ask(app, body, "/api/tenants", headers=OPEN)
    assert (answer.status, answer.error["param"]) == (422, "id")
    assert (await get(app, "/api/tenants", headers=OPEN)).json() == {"data": [], "next": None}


@pytest.mark.parametrize("tenant", ["a", "0", "team", "team-1.eu_west", "a" * 64])
async def test_an_id_of_the_alphabet_is_taken(app: Any, tenant: str) -> None:
    """Safe in URLs, headers and labels as it is."""
    assert (await make(app, id=tenant)).status == 201
    assert (await get(app, f"/api/tenants/{tenant}", headers=OPEN)).json()["id"] == tenant


@pytest.mark.parametrize(
    "name", ["x" * 257, "nul\0byte", "lone \ud800 surrogate", 5, ["x"]], ids=["long", "nul", "surrogate", "int", "list"]
)
async def test_a_name_that_no_store_could_keep_is_refused(app: Any, name: Any) -> None:
    """422 from the admin API, not a failure of the database; the same for a key's name."""
    body = json.dumps({"id": "team", "name": name}).encode()
    answer = await ask(app, body, "/api/tenants", headers=OPEN)
    assert (answer.status, answer.error["param"]) == (422, "name")
    await make(app, id="team")
    answer = await ask(app, json.dumps({"name": name}).encode(), "/api/tenants/team/keys", headers=OPEN)
    assert (answer.status, answer.error["param"]) == (422, "name")


@pytest.mark.parametrize(
    "field",
    ["created", "spent_usd", "held_usd", "remaining_usd", "credit_usd", "budget", "period", "keys", "Id", "admin"],
)
async def test_no_other_field_can_be_set(app: Any, field: str) -> None:
    """A field that is not the client's to set is refused by name, not swallowed."""
    answer = await make(app, id="team", **{field: 1})
    assert (answer.status, answer.error["param"]) == (422, field)
    assert (await get(app, "/api/tenants/team", headers=OPEN)).status == 404


@pytest.mark.parametrize("field", ["id", "key", "tenant", "digest", "kind", "expires", "revoked", "secret"])
async def test_no_other_field_of_a_key_can_be_set(app: Any, field: str) -> None:
    """Nobody chooses a key's secret, nor makes an admin key of it."""
    await make(app, id="team")
    answer = await ask(app, {field: "x"}, "/api/tenants/team/keys", headers=OPEN)
    assert (answer.status, answer.error["param"]) == (422, field)


async def test_an_id_can_be_taken_once(app: Any) -> None:
    """409 for the second, and the first stays as it was."""
    await make(app, id="team", name="first", budget_usd=5)
    answer = await make(app, id="team", name="second", budget_usd=500)
    assert (answer.status, answer.error["code"]) == (409, "tenant_exists")
    shown = (await get(app, "/api/tenants/team", headers=OPEN)).json()
    assert (shown["name"], shown["budget_usd"]) == ("first", 5)


async def test_tenants_are_listed_by_id(app: Any) -> None:
    """All of them, each with its money."""
    for tenant in ("zoo", "acme"):
        await make(app, id=tenant, allowed_models=["echo"])
    rows = (await get(app, "/api/tenants", headers=OPEN)).json()["data"]
    assert [row["id"] for row in rows] == ["acme", "zoo"]
    assert rows[0]["allowed_models"] == ["echo"]
    assert rows[0]["budget_usd"] is None


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_a_keys_secret_is_shown_once(app: Any, tmp_path: Path) -> None:
    """201 with the secret; the list has the key without it, and so has the database."""
    await make(app, id="team")
    made = await ask(app, {"name": "laptop"}, "/api/tenants/team/keys", headers=OPEN)
    assert made.status == 201
    key, secret = made.json(), made.json()["key"]
    assert secret.startswith("gw-")
    listed = await get(app, "/api/tenants/team/keys", headers=OPEN)
    assert [row["id"] for row in listed.json()["data"]] == [key["id"]]
    assert listed.json()["data"][0]["name"] == "laptop"
    for answer in (
        listed,
        await get(app, "/api/tenants/team", headers=OPEN),
        await get(app, "/api/tenants", headers=OPEN),
    ):
        assert secret.encode() not in answer.body
        assert b"digest" not in answer.body
    kept = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if secret.encode() in path.read_bytes()]


async def test_a_key_works_until_it_is_revoked(app: Any) -> None:
    """Made, used, revoked: 204, and revoking again changes nothing."""
    await make(app, id="team")
    made = (await ask(app, {}, "/api/tenants/team/keys", headers=OPEN)).json()
    assert (await ask(app, CHAT, headers=(JSON, bearer(made["key"])))).status == 200
    ended = await ask(app, None, f"/api/tenants/team/keys/{made['id']}", headers=OPEN, method="DELETE")
    assert (ended.status, ended.body) == (204, b"")
    (row,) = (await get(app, "/api/tenants/team/keys", headers=OPEN)).json()["data"]
    assert row["revoked"] is not None
    again = await ask(app, None, f"/api/tenants/team/keys/{made['id']}", headers=OPEN, method="DELETE")
    assert again.status == 204
    assert (await get(app, "/api/tenants/team/keys", headers=OPEN)).json()["data"] == [row]


async def test_a_key_is_revoked_through_its_own_tenant_only(app: Any) -> None:
    """Another tenant's path is 404, and the key lives on."""
    for tenant in ("team", "other"):
        await make(app, id=tenant)
    made = (await ask(app, {}, "/api/tenants/team/keys", headers=OPEN)).json()
    for path in (
        f"/api/tenants/other/keys/{made['id']}",
        "/api/tenants/team/keys/key_x",
        "/api/tenants/none/keys/key_x",
    ):
        assert (await ask(app, None, path, headers=OPEN, method="DELETE")).status == 404
    assert (await ask(app, CHAT, headers=(JSON, bearer(made["key"])))).status == 200


@pytest.mark.parametrize("seconds", [0, -5, "soon", 1e12])
async def test_a_key_may_expire_in_sound_time_only(app: Any, seconds: Any) -> None:
    """More than nothing, at most ten years."""
    await make(app, id="team")
    answer = await ask(app, {"expires_in_seconds": seconds}, "/api/tenants/team/keys", headers=OPEN)
    assert (answer.status, answer.error["param"]) == (422, "expires_in_seconds")


async def test_a_key_that_expired_is_refused(app: Any) -> None:
    """A key for a hundredth of a second is no key soon after."""
    await make(app, id="team")
    made = (await ask(app, {"expires_in_seconds": 0.01}, "/api/tenants/team/keys", headers=OPEN)).json()
    await asyncio.sleep(0.02)
    assert (await ask(app, CHAT, headers=(JSON, bearer(made["key"])))).status == 401


# -- money -------------------------------------------------------------------------------------------------------------


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


async def test_both_keys_work_while_one_is_rotated(app: Any) -> None:
    """For calls too: the old key is good to the end of the overlap, and not after it."""
    await make(app, id="team")
    old = (await ask(app, {}, "/api/tenants/team/keys", headers=OPEN)).json()
    path = f"/api/tenants/team/keys/{old['id']}/rotate"
    new = (await ask(app, {"overlap_seconds": 1}, path, headers=OPEN)).json()
    during = [(await ask(app, CHAT, headers=(JSON, bearer(key)))).status for key in (old["key"], new["key"])]
    await asyncio.sleep(1.1)
    after = [(await ask(app, CHAT, headers=(JSON, bearer(key)))).status for key in (old["key"], new["key"])]
    assert (during, after) == ([200, 200], [401, 200])


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


# -- the edges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1000])
async def test_a_body_that_is_too_long_is_not_read(app: Any, cut: int) -> None:
    """413, in one piece or in many; the rest is not waited for."""
    body = b'{"id": "team", "name": "' + b"x" * MAX_BODY + b'"}'
    answer = await ask(app, body, "/api/tenants", headers=OPEN, cut=cut)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("POST", "/api/tenants/team/nothing", 404),
        ("GET", "/api/tenants/none", 404),
        ("GET", "/api/tenants/none/keys", 404),
        ("POST", "/api/tenants/none/keys", 404),
        ("GET", "/api", 404),
        ("GET", "/api/", 404),
        ("GET", "/api/tenants/", 404),
        ("PUT", "/api/tenants", 405),
        ("DELETE", "/api/tenants/none", 404),
        ("PATCH", "/api/tenants/none", 405),
        ("POST", "/health", 405),
        ("GET", "/api/tenants/a%2fb/keys", 404),
        ("PURGE", "/api/tenants", 405),
    ],
)
async def test_what_is_not_there_is_told_in_the_envelope(app: Any, method: str, path: str, status: int) -> None:
    """404 and 405 as everywhere else in the gateway: JSON with a message."""
    answer = await ask(app, {}, path, headers=OPEN, method=method)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert ("allow" in answer.headers) == (status == 405)


async def test_a_head_request_has_no_body(app: Any) -> None:
    """``HEAD /health`` is what some load balancers send."""
    answer = await ask(app, None, "/health", headers=(), method="HEAD")
    assert answer.status == 200


async def test_a_store_that_is_gone_is_503(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The admin API says that the store is away, and names no secret."""
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("GATEWAY_ADMIN_KEY", ADMIN_KEY)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/folder")
    settings.forget()
    answer = await get(create_app(), "/api/tenants", headers=OPEN)
    assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
