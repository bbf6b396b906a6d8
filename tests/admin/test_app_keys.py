"""A tenant's keys through the whole gateway: shown once, used, rotated, revoked, expired."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ..conversation import CHAT, JSON, ask, get
from .conftest import bearer
from .whole import OPEN, app, make

__all__ = ["app"]


@pytest.mark.parametrize("field", ["id", "key", "tenant", "digest", "kind", "expires", "revoked", "secret"])
async def test_no_other_field_of_a_key_can_be_set(app: Any, field: str) -> None:
    """Nobody chooses a key's secret, nor makes an admin key of it."""
    await make(app, id="team")
    answer = await ask(app, {field: "x"}, "/api/tenants/team/keys", headers=OPEN)
    assert (answer.status, answer.error["param"]) == (422, field)


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
