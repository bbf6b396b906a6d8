"""Who may ask the admin API: every route, every method, every kind of key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asgi_llm_gateway.admin.routes import OPERATIONS
from asgi_llm_gateway.keys import new_admin_key, new_key

from ..conversation import JSON, ask
from ..traces.parts import record
from .conftest import ADMIN_KEY, Office, away, bearer

ROUTES = sorted({(one.method, one.path.format(id="team", key_id="key_x", trace_id="req-1")) for one in OPERATIONS})
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE")
EVERYWHERE = [(method, path) for path in sorted({path for _, path in ROUTES}) for method in METHODS]
OWN = {
    ("GET", "/api/stats"),
    ("GET", "/api/tenants/team"),
    ("GET", "/api/tenants/team/records"),
    ("GET", "/api/tenants/team/adjustments"),
    ("GET", "/api/traces"),
    ("GET", "/api/traces/req-1"),
}


@pytest.mark.parametrize(
    ("method", "path"), [*EVERYWHERE, ("GET", "/api"), ("GET", "/api/x"), ("GET", "/api/x/health")]
)
async def test_without_a_valid_key_every_path_and_method_says_the_same(office: Office, method: str, path: str) -> None:
    """401 whether the path, the method or the tenant exists or not: nothing can be learnt."""
    await office.team()
    told = set()
    for key in (None, "", "wrong-key-of-nobody", ADMIN_KEY[:-1], ADMIN_KEY + "x", new_key("team")[1]):
        answer = await office.ask(method, path, {}, key=key)
        told.add((answer.status, answer.body, answer.headers.get("allow")))
    assert len(told) == 1
    (status, body, allow) = told.pop()
    assert (status, allow) == (401, None)
    assert b"invalid_api_key" in body


@pytest.mark.parametrize("method", METHODS)
async def test_a_tenants_key_reads_its_own_and_nothing_else(office: Office, method: str) -> None:
    """403, one body for all that is refused; what is its own to read is answered."""
    await office.team()
    await office.team("other")
    key = (await office.key())["key"]
    office.traces.add(record(1))
    refusals = set()
    for path in {path for _, path in EVERYWHERE}:
        answer = await office.ask(method, path, {}, key=key)
        if (method.replace("HEAD", "GET"), path) in OWN:
            assert answer.status == 200, (method, path, answer.body)
        else:
            assert answer.status == 403, (method, path, answer.body)
            refusals.add((answer.body, answer.headers.get("allow")))
    for path in ("", "/records", "/adjustments", "/keys"):
        for other in ("other", "nobody", "Team", "team%00"):
            answer = await office.ask(method, f"/api/tenants/{other}{path}", {}, key=key)
            assert answer.status == 403
            refusals.add((answer.body, answer.headers.get("allow")))
    assert len(refusals) == 1


async def test_a_tenant_may_not_ask_for_anothers_statistics(office: Office) -> None:
    """One 403 for another tenant, existing or not; its own by name is answered, and without a name it gets its own."""
    await office.team()
    await office.team("other")
    await office.settle("other", cost=7)
    await office.settle("team", cost=5)
    key = (await office.key())["key"]
    refused = [await office.get(f"/api/stats?tenant={name}", key=key) for name in ("other", "nobody")]
    assert [answer.status for answer in refused] == [403, 403]
    assert refused[0].body == refused[1].body
    for query in ("", "?tenant=team"):
        assert (await office.get("/api/stats" + query, key=key)).json()["cost_total_usd"] == 5e-9


async def test_a_key_for_several_tenants_reads_its_own_only(office: Office) -> None:
    """``also_tenants`` lets it call for others, not look into their books."""
    await office.team()
    await office.team("other")
    key = (await office.key(also_tenants=["other"]))["key"]
    assert (await office.get("/api/tenants/other", key=key)).status == 403


async def test_a_stored_admin_key_opens_all(office: Office) -> None:
    """Made by the command line, good beside the one of the settings, until it is revoked or expires."""
    key, secret = new_admin_key(name="ops", expires=office.now + 100)
    await office.store.add_key(key)
    assert (await office.ask("POST", "/api/tenants", {"id": "team"}, key=secret)).status == 201
    office.now += 100
    assert (await office.get("/api/tenants", key=secret)).status == 401
    office.now -= 100
    await office.store.revoke_key(key.id, office.now + 10)
    assert (await office.get("/api/tenants", key=secret)).status == 200
    office.now += 10
    assert (await office.get("/api/tenants", key=secret)).status == 401


async def test_without_its_setting_the_api_is_open_to_stored_admin_keys_only() -> None:
    """403 that names the setting for everybody else, tenants included."""
    office = Office(admin_key=None)
    key, secret = new_admin_key()
    await office.store.add_key(key)
    assert (await office.ask("POST", "/api/tenants", {"id": "team"}, key=secret)).status == 201
    own = (await office.ask("POST", "/api/tenants/team/keys", {}, key=secret)).json()["key"]
    for wrong in (None, "", "None", ADMIN_KEY, own, new_admin_key()[1]):
        for path in ("/api/tenants", "/api/tenants/team", "/api/nothing", "/api/openapi.json"):
            answer = await office.get(path, key=wrong)
            assert (answer.status, answer.error["code"]) == (403, "admin_disabled")
            assert "GATEWAY_ADMIN_KEY" in answer.error["message"]
    await office.store.revoke_key(key.id, office.now)
    assert (await office.get("/api/tenants", key=secret)).status == 403


async def test_a_key_that_has_ended_is_401_and_a_disabled_tenants_403(office: Office) -> None:
    """As the tenant middleware answers; a key that is being rotated is good to its end."""
    await office.team()
    for ended, status in (
        ({"revoked": office.now}, 401),
        ({"expires": office.now}, 401),
        ({"revoked": office.now + 1}, 200),
        ({"expires": office.now + 1}, 200),
    ):
        key, secret = new_key("team")
        await office.store.add_key(replace(key, **ended))  # type: ignore[arg-type]
        assert (await office.get("/api/tenants/team", key=secret)).status == status
    good = (await office.key())["key"]
    await office.ask("PUT", "/api/tenants/team", {"enabled": False})
    answer = await office.get("/api/tenants/team", key=good)
    assert (answer.status, answer.error["code"]) == (403, "tenant_disabled")
    await office.ask("DELETE", "/api/tenants/team")
    assert (await office.get("/api/tenants/team", key=good)).status == 401


async def test_an_admin_key_is_no_tenants_key(office: Office) -> None:
    """The two kinds are looked up apart: one is never taken for the other."""
    key, _ = new_admin_key()
    await office.store.add_key(key)
    assert await office.store.identify(key.digest) is None
    await office.team()
    own = (await office.key())["key"]
    assert (await office.get("/api/tenants", key=own)).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", ADMIN_KEY.encode())],
        [(b"authorization", b"Basic " + ADMIN_KEY.encode())],
        [(b"x-api-key", ADMIN_KEY.encode())],
        [(b"authorization", b"Bearer \xff\xfe\x00")],
        [(b"authorization", b"Bearer " + b"x" * 1_000_000)],
        [(b"authorization", b"Bearer ' OR 1=1 --")],
        [bearer(ADMIN_KEY), bearer("another")],
        [bearer("another"), bearer(ADMIN_KEY)],
        [bearer(ADMIN_KEY), bearer(ADMIN_KEY)],
    ],
)
async def test_a_key_is_shown_once_and_as_a_bearer(office: Office, headers: list[tuple[bytes, bytes]]) -> None:
    """Other schemes, repeated headers and rubbish are 401."""
    assert (await ask(office.app, {}, "/api/tenants", headers=[JSON, *headers], method="GET")).status == 401


@pytest.mark.parametrize("key", [None, "wrong-key-of-nobody", ADMIN_KEY])
async def test_a_store_that_is_away_is_503(office: Office, key: str | None) -> None:
    """Never 401 for a key that could not be looked up; without a key nothing needs to be asked."""
    await office.team()
    async with away(office):
        for path in ("/api/tenants", "/api/tenants/team", "/api/stats", "/api/tenants/team/records?format=csv"):
            answer = await office.get(path, key=key)
            assert (answer.status, answer.headers["content-type"]) == (401 if key is None else 503, "application/json")
    assert (await office.get("/api/tenants")).status == 200


@pytest.mark.parametrize("path", ["/api/tenants", "/api/tenants/team", "/api/tenants/team/keys/key_x"])
async def test_a_refused_method_is_told_all_that_there_are(office: Office, path: str) -> None:
    """``Allow`` names every method of the path, as RFC 9110, section 15.5.6, asks."""
    answer = await office.ask("PATCH", path, {})
    assert answer.status == 405
    there = {one.method for one in OPERATIONS if one.path.format(id="team", key_id="key_x", trace_id="req-1") == path}
    assert there <= set(answer.headers["allow"].split(", "))


async def test_no_answer_may_be_kept_by_a_cache(office: Office) -> None:
    """Money and secrets: ``no-store`` on all of them."""
    await office.team()
    await office.key()
    await office.get("/api/nothing")
    await office.get("/api/tenants", key=None)
    assert {answer.headers["cache-control"] for answer in office.answers} == {"no-store"}
