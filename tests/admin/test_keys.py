"""Keys: made, shown once, rotated, ended; and no secret anywhere else."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from asgi_llm_gateway.admin.answers import KeyAnswer
from asgi_llm_gateway.admin.routes import OPERATIONS
from asgi_llm_gateway.keys import digest_of, new_admin_key
from asgi_llm_gateway.records import Amount, Limit

from .conftest import ADMIN_KEY, NOON, Office, exact

SETTINGS: dict[str, Any] = {
    "name": "laptop", "budget_usd": 2.5, "allowed_models": ["echo"], "also_tenants": ["other"],
    "rate_requests": 60, "rate_tokens": 9000, "concurrency": 4,
}  # fmt: skip


async def test_a_key_is_made_with_all_that_can_be_set(office: Office) -> None:
    """201 with the secret; the list has the same without it."""
    await office.team()
    await office.team("other")
    made = await office.key(**SETTINGS, expires_in_seconds=60)
    secret = made.pop("key")
    assert made == {
        **SETTINGS, "id": made["id"], "tenant": "team", "kind": "tenant", "created": NOON, "expires": NOON + 60,
        "revoked": None, "spent_usd": 0, "remaining_usd": 2.5,
    }  # fmt: skip
    assert set(made) == set(KeyAnswer.model_fields)
    assert (await office.get("/api/tenants/team/keys")).json() == {"data": [made], "next": None}
    found = await office.store.identify(digest_of(secret.encode()) or "")
    assert found is not None
    assert found.key is not None
    assert (found.key.id, found.key.budget) == (made["id"], 2_500_000_000)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("name", (5, "x" * 257, "a\0")),
        ("expires_in_seconds", (0, -5, "soon", 1e12, True, "nan")),
        ("budget_usd", (-1, 1e-10, True)),
        *((field, (0, -1, "many", True)) for field in ("rate_requests", "rate_tokens", "concurrency")),
        ("allowed_models", ("echo", [""])),
        ("also_tenants", ("other", ["Other"], ["nobody"], None, [5])),
        *((field, ("x",)) for field in ("id", "key", "tenant", "digest", "expires", "secret", "kind", "revoked")),
    ],
)
async def test_what_a_key_can_not_be_is_refused(office: Office, field: str, values: tuple[Any, ...]) -> None:
    """422 that names the field: nobody chooses a secret, an admin key, or a tenant that is not there."""
    await office.team()
    for value in values:
        answer = await office.ask("POST", "/api/tenants/team/keys", json.dumps({field: value}).encode())
        assert (answer.status, answer.error["param"]) == (422, field), value
    assert await office.store.keys("team") == []


async def test_a_keys_own_budget_is_shown_as_it_is_spent(office: Office) -> None:
    """``spent_usd`` and ``remaining_usd`` of its account; ``null`` for a key without one."""
    await office.team()
    made = await office.key(budget_usd=1)
    await office.key()
    limits = (Limit("", 0, None, None), Limit(made["id"], 0, 10**9, None))
    await office.store.hold("team", hold_id="h", limits=limits, least=Amount(1, 1), wanted=Amount(4 * 10**8, 1),
                            now=NOON, ttl=60)  # fmt: skip
    first, second = exact(await office.get("/api/tenants/team/keys"))["data"]
    assert (float(first["spent_usd"]), float(first["remaining_usd"])) == (0, 0.6)
    assert (second["spent_usd"], second["remaining_usd"]) == (None, None)


async def test_a_rotated_key_has_a_successor_with_its_settings(office: Office) -> None:
    """201 with the new secret; the old key works to the end of the overlap and not a moment longer."""
    await office.team()
    await office.team("other")
    old = await office.key(**SETTINGS, expires_in_seconds=1000)
    office.now += 5
    rotated = await office.ask("POST", f"/api/tenants/team/keys/{old['id']}/rotate", {"overlap_seconds": 60})
    assert rotated.status == 201
    new = rotated.json()
    same = ("tenant", "name", "budget_usd", "allowed_models", "also_tenants", "expires", "kind")
    assert [new[name] for name in same] == [old[name] for name in same]
    assert new["id"] != old["id"]
    assert new["key"] != old["key"]
    assert (new["created"], new["revoked"]) == (office.now, None)
    for after, statuses in ((0, (200, 200)), (59.9, (200, 200)), (60, (401, 200))):
        office.now = NOON + 5 + after
        assert tuple([(await office.get("/api/tenants/team", key=one["key"])).status for one in (old, new)]) == statuses


async def test_without_an_overlap_the_old_key_ends_at_once(office: Office) -> None:
    """The default, with an empty body too."""
    await office.team()
    old = await office.key()
    assert (await office.ask("POST", f"/api/tenants/team/keys/{old['id']}/rotate")).status == 201
    assert (await office.get("/api/tenants/team", key=old["key"])).status == 401


async def test_a_key_with_an_end_is_not_rotated(office: Office) -> None:
    """409 for one that was rotated or revoked, or has expired: no second successor by mistake."""
    await office.team()
    rotated, revoked, expired = [await office.key(expires_in_seconds=100) for _ in range(3)]
    await office.ask("POST", f"/api/tenants/team/keys/{rotated['id']}/rotate", {"overlap_seconds": 3600})
    await office.ask("DELETE", f"/api/tenants/team/keys/{revoked['id']}")
    keys = await office.store.keys("team")
    office.now += 50
    for one in (rotated, revoked):
        answer = await office.ask("POST", f"/api/tenants/team/keys/{one['id']}/rotate", {})
        assert (answer.status, answer.error["code"]) == (409, "key_ended")
    office.now += 50
    assert (await office.ask("POST", f"/api/tenants/team/keys/{expired['id']}/rotate", {})).status == 409
    assert await office.store.keys("team") == keys


async def test_an_overlap_can_be_cut_short(office: Office) -> None:
    """Revoking a key whose end lies ahead ends it now."""
    await office.team()
    old = await office.key()
    await office.ask("POST", f"/api/tenants/team/keys/{old['id']}/rotate", {"overlap_seconds": 3600})
    assert (await office.ask("DELETE", f"/api/tenants/team/keys/{old['id']}")).status == 204
    assert (await office.get("/api/tenants/team", key=old["key"])).status == 401


@pytest.mark.parametrize("seconds", [-1, 30 * 86400 + 1, "soon", True, 1e400])
async def test_an_overlap_is_at_most_thirty_days(office: Office, seconds: Any) -> None:
    """422, and the old key stays as it was."""
    await office.team()
    old = await office.key()
    body = json.dumps({"overlap_seconds": seconds}).replace("Infinity", "1e400").encode()
    answer = await office.ask("POST", f"/api/tenants/team/keys/{old['id']}/rotate", body)
    assert (answer.status, answer.error["param"]) == (422, "overlap_seconds")
    assert (await office.get("/api/tenants/team", key=old["key"])).status == 200


async def test_a_key_is_reached_through_its_own_tenant_only(office: Office) -> None:
    """Another tenant's path, an unknown id, an admin key's id: 404, and the key lives on."""
    await office.team()
    await office.team("other")
    made = await office.key()
    admin, admin_secret = new_admin_key()
    await office.store.add_key(admin)
    for path in (
        f"other/keys/{made['id']}",
        "team/keys/key_x",
        "nobody/keys/key_x",
        "team/keys/%00",
        f"team/keys/{admin.id}",
    ):
        assert (await office.ask("DELETE", f"/api/tenants/{path}")).status == 404
        assert (await office.ask("POST", f"/api/tenants/{path}/rotate", {})).status == 404
    assert (await office.get("/api/tenants/team", key=made["key"])).status == 200
    assert (await office.get("/api/tenants", key=admin_secret)).status == 200


async def test_keys_are_listed_in_pages(office: Office) -> None:
    """Oldest first, each once; an ``after`` that is no key of the tenant is refused."""
    await office.team()
    made = []
    for _ in range(7):
        made.append((await office.key())["id"])
        office.now += 1
    seen, after = [], ""
    while True:
        page = (await office.get(f"/api/tenants/team/keys?limit=3{after}")).json()
        seen += [row["id"] for row in page["data"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert seen == made
    assert (await office.get("/api/tenants/team/keys?after=key_x")).status == 422


async def test_no_secret_is_ever_shown_again(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """A sweep: every operation with every kind of key; each secret is in the one answer that made it, and in no log."""
    caplog.set_level(logging.DEBUG)
    await office.team()
    secrets = [(await office.key(name=f"key {number}"))["key"] for number in range(2)]
    first = (await office.get("/api/tenants/team/keys")).json()["data"][0]["id"]
    rotated = await office.ask("POST", f"/api/tenants/team/keys/{first}/rotate", {"overlap_seconds": 60})
    secrets.append(rotated.json()["key"])
    admin, admin_secret = new_admin_key()
    await office.store.add_key(admin)
    await office.settle(key=first, model="echo")
    making = list(office.answers)
    for caller in (*secrets, admin_secret, ADMIN_KEY, secrets[0] + "x", None):
        for one in OPERATIONS:
            if one.method == "DELETE":
                continue
            path = one.path.format(id="team", key_id=first, trace_id="req-1")
            for body in ({}, {"reason": "r", "amount_usd": 1}, {"name": secrets[0], "x": secrets[1]}):
                await office.ask(one.method, path, body if one.body else None, key=caller)
            await office.get(f"{path}?format=csv&x={secrets[0]}", key=caller)
    digests = [digest_of(secret.encode()) or "" for secret in (*secrets, admin_secret)]
    made_here = {json.loads(answer.body)["key"] for answer in making if b'"key":"gw-' in answer.body}
    assert made_here == set(secrets)
    for answer in office.answers:
        for secret in (*secrets, admin_secret, ADMIN_KEY):
            shown = answer.body.decode() + str(answer.headers)
            assert shown.count(secret) <= (1 if answer in making and secret in made_here else 0)
        assert not [digest for digest in digests if digest.encode() in answer.body]
    assert sum(answer.body.count(secret.encode()) for answer in office.answers for secret in secrets) == len(secrets)
    assert not [one for one in (*secrets, admin_secret, ADMIN_KEY, *digests) if one in caplog.text]
