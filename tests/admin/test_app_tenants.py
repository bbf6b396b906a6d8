"""Tenants through the whole gateway: what can be set, what is refused, what is shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..conversation import ask, get
from .whole import OPEN, amounts, amounts_of, app, make

__all__ = ["app"]


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
