"""Signing in, being somebody, and its end: by a cookie that is good for the dashboard only, for as long as its key is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.damping import Damping
from asgi_llm_gateway.dashboard.guard import SECONDS
from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_admin_key

from .desk import ADMIN_KEY, NOON, Desk

# What changes something, and what it is sent.
CHANGES = [
    ("POST", "/api/tenants", {"id": "new"}),
    ("PUT", "/api/tenants/team", {"name": "New"}),
    ("DELETE", "/api/tenants/team", None),
    ("POST", "/api/tenants/team/keys", {}),
    ("POST", "/api/tenants/team/adjustments", {"amount_usd": 1, "reason": "why"}),
    ("POST", "/api/logout", {}),
]


async def test_an_admin_signs_in_with_the_settings_key(desk: Desk) -> None:
    """The answer and ``me`` say the same, and the admin API's operations are open."""
    one = desk.somebody()
    answer = await one.sign_in(ADMIN_KEY)
    assert answer.json() == {"role": "admin", "tenant": None, "csrf": one.csrf, "expires": NOON + SECONDS}
    assert (await one.get("me")).json() == answer.json()
    assert (await one.get("tenants")).json() == {"data": [], "next": None}


async def test_a_stored_admin_key_signs_in_too(desk: Desk) -> None:
    """With GATEWAY_ADMIN_KEY or without."""
    key, secret = new_admin_key()
    for place in (desk, Desk(desk.folder, None)):
        one = place.somebody()
        assert (await one.sign_in(secret)).status in (401, 403)
        await place.store.add_key(key)
        assert (await one.sign_in(secret)).json()["role"] == "admin"
        assert (await one.get("tenants")).status == 200


async def test_a_tenant_sees_its_own_and_nothing_else(desk: Desk) -> None:
    """What is another's, and what admins do, is refused in one and the same way, whether it is there or not."""
    _, key = await desk.team("team", budget_usd=5)
    await desk.team("other")
    await desk.settle("team", request_id="mine", cost=7)
    await desk.settle("other", request_id="theirs", cost=11)
    one = desk.somebody()
    answer = await one.sign_in(key)
    assert (answer.json()["role"], answer.json()["tenant"]) == ("tenant", "team")
    assert (await one.get("tenants/team")).json()["spent_usd"] == 7e-9
    assert [row["request_id"] for row in (await one.get("tenants/team/records")).json()["records"]] == ["mine"]
    assert (await one.get("stats")).json()["cost_total_usd"] == 7e-9
    refusals = [
        await one.get(path)
        for path in ("tenants", "tenants/other", "tenants/nobody", "tenants/other/records", "tenants/team/keys",
                     "stats?tenant=other", "openapi.json", "overview?tenant=other", "nothing")
    ]  # fmt: skip
    refusals += [await one.ask(method, path, body) for method, path, body in CHANGES[:-1]]
    assert {answer.status for answer in refusals} == {403}
    assert len({answer.body for answer in refusals}) == 1
    assert not [answer for answer in one.answers if b"theirs" in answer.body]
    assert await desk.store.tenant("team") is not None
    assert await desk.store.tenant("new") is None


async def test_the_cookie_has_all_its_flags(desk: Desk) -> None:
    """No script reads it, no other site sends it, it is good below /dashboard only, and ends after eight hours."""
    one = desk.somebody()
    await one.sign_in(ADMIN_KEY)
    assert one.set == {"Path": "/dashboard", "Max-Age": "28800", "HttpOnly": "", "SameSite": "Strict"}
    assert one.cookie
    assert ADMIN_KEY not in one.cookie


@pytest.mark.parametrize(
    ("root", "path"), [("/gw", "/gw/dashboard"), ("/a/b", "/a/b/dashboard"), ("/a;b c", "/a%3Bb%20c/dashboard")]
)
async def test_mounted_the_cookie_is_for_the_mount(desk: Desk, root: str, path: str) -> None:
    """Over HTTPS it is sent over HTTPS only; what stands in the mount's name adds no attribute."""
    one = desk.somebody(root=root, scheme="https")
    assert (await one.sign_in(ADMIN_KEY)).status == 200
    assert one.set == {"Path": path, "Max-Age": "28800", "HttpOnly": "", "SameSite": "Strict", "Secure": ""}
    assert (await one.get("me")).status == 200


async def test_behind_a_proxy_that_ends_tls_the_cookie_is_secure_too(desk: Desk) -> None:
    """The browser says that it speaks HTTPS, where the proxy does not."""
    one = desk.somebody()
    await one.sign_in(ADMIN_KEY, headers={"origin": "https://gateway.test"})
    assert "Secure" in one.set


@pytest.mark.parametrize(
    "key", ["gw-wrong-key-wrong-key-wrong-key", "x", "ü€😀", "\ud800", ADMIN_KEY[:-1], ADMIN_KEY + "x", " " + ADMIN_KEY]
)
async def test_a_wrong_key_is_refused(desk: Desk, key: str) -> None:
    """401 without a cookie, and no word that has a browser ask for a password."""
    one = desk.somebody()
    answer = await one.sign_in(key)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert one.cookie is None
    assert "www-authenticate" not in answer.headers
    assert answer.error["message"] == "This key is unknown, revoked or expired."


async def test_wrong_keys_are_damped_and_a_right_one_is_not(desk: Desk) -> None:
    """Beyond a burst each refusal waits, as those of the admin API do."""
    damping = Damping(burst=3, per_second=0.001, longest=0.01)
    one = desk.somebody(desk.worker(damping=damping))
    for _ in range(6):
        assert (await one.sign_in("gw-wrong-key")).status == 401
    assert (damping.failures, damping.delayed, damping.now_waiting) == (6, 3, 0)
    assert (await one.sign_in(ADMIN_KEY)).status == 200
    assert (damping.failures, damping.delayed) == (6, 3)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [(b"", 422, "key"), (b"{}", 422, "key"), (b'{"key": 5}', 422, "key"), (b'{"key": ""}', 422, "key"),
     (b'{"key": "' + b"x" * 1025 + b'"}', 422, "key"), (b'{"key": "a", "more": 1}', 422, "more"), (b"{", 400, None),
     (b'{"key": "a", "key": "b"}', 400, None), (b"[]", 422, None), (b'"' + b"x" * 70_000 + b'"', 413, None)],
)  # fmt: skip
async def test_a_sign_in_that_is_none_is_refused(desk: Desk, body: bytes, status: int, param: str | None) -> None:
    """The field is named, what was sent is not told."""
    answer = await desk.somebody().ask("POST", "/api/login", body)
    assert (answer.status, answer.error["param"]) == (status, param)
    assert b"xxx" not in answer.body


async def test_without_an_admin_key_the_dashboard_says_how_to_set_one(tmp_path: Path) -> None:
    """403 to every key, a tenant's too; the page itself is there."""
    desk = Desk(tmp_path, None)
    one = desk.somebody()
    answer = await one.sign_in("gw-any-key-any-key-any-key")
    assert (answer.status, answer.error["code"]) == (403, "admin_disabled")
    assert "GATEWAY_ADMIN_KEY" in answer.error["message"]
    assert (await one.ask("GET", "")).status == 200
    assert (await one.get("me")).status == 401


@pytest.mark.parametrize("path", ["me", "tenants", "overview", "live", "prices", "stats", "openapi.json", "nothing"])
async def test_nobody_gets_nothing(desk: Desk, path: str) -> None:
    """Without a cookie, with one of somebody else's making, and with a key where the admin API has it."""
    shown: list[dict[str, Any]] = [
        {}, {"cookie": "x"}, {"headers": {"authorization": f"Bearer {ADMIN_KEY}"}}, {"cookie": ADMIN_KEY}
    ]  # fmt: skip
    for more in shown:
        answer = await desk.somebody().get(path, **more)
        assert (answer.status, answer.error["code"]) == (401, "not_signed_in")


async def test_a_cookie_that_opens_nothing_is_taken_away(desk: Desk) -> None:
    """At its path."""
    one = desk.somebody(root="/gw")
    one.cookie = "AAAA"
    assert (await one.get("me")).status == 401
    assert one.cookie is None
    assert (one.set["Path"], one.set["Max-Age"]) == ("/gw/dashboard", "0")


async def test_of_two_cookies_the_one_that_is_a_session_counts(desk: Desk) -> None:
    """Another site of the domain can set one beside ours; where both are sessions, neither counts."""
    mine, other = await desk.admin(), await desk.admin()
    twice = await mine.get("me", cookie=f"{mine.cookie}; llmgw_session=junk")
    assert twice.json()["csrf"] == mine.csrf
    assert (await mine.get("me", cookie=f"{mine.cookie}; llmgw_session={other.cookie}")).status == 401


# -- changes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
async def test_a_change_wants_the_sessions_token(desk: Desk, method: str, path: str, body: Any) -> None:
    """None, another session's, and one that is nearly right are refused; nothing is changed by them."""
    await desk.team()
    one, other = await desk.admin(), await desk.admin()
    good, bad = one.csrf, [None, "", other.csrf, (one.csrf or "")[:-1], "ü"]
    for one.csrf in bad:
        answer = await one.ask(method, path, body)
        assert (answer.status, answer.error["code"]) == (403, "csrf_token_wrong")
    assert await desk.store.tenant("new") is None
    assert (await desk.store.tenant("team")) is not None
    assert len(await desk.store.keys("team")) == 1
    one.csrf = good
    assert (await one.ask(method, path, body)).status in (200, 201, 204)


FOREIGN: list[dict[str, str]] = [
    {"origin": "https://evil.test"},
    {"origin": "http://gateway.test.evil.test"},
    {"origin": "http://gateway.test:8080"},
    {"origin": "null"},
    {"origin": "gateway.test"},
    {"origin": "http://["},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://gateway.test"},
    {"sec-fetch-site": "none", "origin": "https://evil.test"},
]
OWN: list[dict[str, str]] = [
    {},
    {"origin": "http://gateway.test"},
    {"origin": "https://gateway.test"},
    {"origin": "http://gateway.test:80"},
    {"origin": "https://gateway.test", "host": "gateway.test:443"},
    {"origin": "http://[::1]:8080", "host": "[::1]:8080"},
    {"origin": "http://GATEWAY.test"},
    {"sec-fetch-site": "none"},
    {"sec-fetch-site": "same-origin", "origin": "https://gateway.test", "host": "inner:8080"},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_another_sites_page_changes_nothing(desk: Desk, headers: dict[str, str]) -> None:
    """Not with the token either, and it can't sign somebody in."""
    one = await desk.admin()
    answer = await one.ask("POST", "/api/tenants", {"id": "new"}, headers=headers)
    assert (answer.status, answer.error["code"]) == (403, "wrong_origin")
    assert await desk.store.tenant("new") is None
    assert (await desk.somebody().sign_in(ADMIN_KEY, headers=headers)).status == 403


@pytest.mark.parametrize("headers", OWN)
async def test_our_own_page_does(desk: Desk, headers: dict[str, str]) -> None:
    """Whatever its browser sends, behind a proxy that writes its own Host too."""
    one = desk.somebody()
    assert (await one.sign_in(ADMIN_KEY, headers=headers)).status == 200
    assert (await one.ask("POST", "/api/tenants", {"id": "new"}, headers=headers)).status == 201


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_a_session_ends_after_eight_hours(desk: Desk) -> None:
    """However much it was used."""
    one = await desk.admin()
    for hour in range(1, 8):
        desk.now = NOON + 3600 * hour
        assert (await one.get("me")).status == 200
    desk.now = NOON + SECONDS
    assert (await one.get("me")).status == 401


async def test_a_revoked_key_ends_its_session(desk: Desk) -> None:
    """At once where this process was told, within two seconds elsewhere; other keys' sessions go on."""
    key_id, secret = await desk.team()
    admin, one, there = await desk.admin(), desk.somebody(), desk.somebody(desk.worker())
    await one.sign_in(secret)
    there.cookie = one.cookie
    assert (await one.get("me")).status == (await there.get("me")).status == 200
    assert (await admin.ask("DELETE", f"/api/tenants/team/keys/{key_id}")).status == 204
    assert (await one.get("me")).status == 401
    desk.now += 2
    assert (await there.get("me")).status == 401
    assert (await admin.get("me")).status == 200


async def test_an_expired_key_a_disabled_tenant_and_one_that_is_gone_end_sessions(desk: Desk) -> None:
    """Each within two seconds."""
    admin = await desk.admin()
    await desk.team("team")
    made = await admin.ask("POST", "/api/tenants/team/keys", {"expires_in_seconds": 60})
    one, other = desk.somebody(), desk.somebody()
    await one.sign_in(made.json()["key"])
    await other.sign_in((await desk.team("team"))[1])
    desk.now += 61
    assert ((await one.get("me")).status, (await other.get("me")).status) == (401, 200)
    await admin.ask("PUT", "/api/tenants/team", {"enabled": False})
    answer = await other.get("stats")
    assert (answer.status, answer.error["code"]) == (403, "tenant_disabled")
    await admin.ask("DELETE", "/api/tenants/team")
    assert (await other.get("stats")).status == 401


async def test_another_admin_key_ends_all_sessions(desk: Desk) -> None:
    """Those of tenants too: the tokens are signed by it."""
    _, secret = await desk.team()
    admin, one = await desk.admin(), desk.somebody()
    await one.sign_in(secret)
    app = desk.worker("another-admin-key-of-thirty-two-characters")
    for old in (admin, one):
        old.app = app
        assert (await old.get("me")).status == 401


async def test_signing_out_ends_the_session_everywhere(desk: Desk) -> None:
    """For who kept the cookie, in every worker, and no other session of that key."""
    one, other = await desk.admin(), await desk.admin()
    kept, there = one.cookie, desk.somebody(desk.worker())
    there.cookie = kept
    assert (await there.get("me")).status == 200
    answer = await one.ask("POST", "/api/logout", {})
    assert answer.status == 204
    assert one.cookie is None
    assert (await one.get("me", cookie=kept)).status == 401
    desk.now += 2
    assert (await there.get("me")).status == 401
    assert (await other.get("me")).status == 200
    assert (await one.ask("POST", "/api/logout", {})).status == 401


async def test_a_session_of_one_worker_is_one_of_the_others(desk: Desk) -> None:
    """Also without an admin key in the settings: workers of a machine share a secret."""
    one = await desk.admin()
    one.app = desk.worker()
    assert (await one.get("tenants")).status == 200
    bare = Desk(desk.folder, None)
    key, secret = new_admin_key()
    await bare.store.add_key(key)
    two = bare.somebody()
    await two.sign_in(secret)
    two.app = bare.worker()
    assert (await two.get("tenants")).status == 200


async def test_a_store_that_is_away_is_told_and_nobody_is_let_in(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """503; the session is there again when the store is."""
    one = await desk.admin()

    async def away(*_: Any) -> bool:
        raise StoreError("postgresql://user:hunter2@host is away")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(desk.ended, "ended", away)
        answer = await one.get("me")
        assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
        assert b"hunter2" not in answer.body
    assert one.cookie is not None
    assert (await one.get("me")).status == 200


async def test_no_key_is_in_any_answer_or_log(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the admin's nor a tenant's, but where a new one is shown once."""
    with caplog.at_level(logging.DEBUG):
        _, secret = await desk.team()
        admin, one = await desk.admin(), desk.somebody()
        await one.sign_in(secret)
        for path in ("me", "tenants/team", "stats"):
            await one.get(path)
            await admin.get(path)
        await admin.get("tenants/team/keys")
        await one.sign_in(secret + "x")
    for answer in admin.answers + one.answers:
        said = answer.body.decode() + str(answer.headers)
        assert secret not in said
        assert ADMIN_KEY not in said
    assert secret not in caplog.text
    assert ADMIN_KEY not in caplog.text
