"""The operators' side through the whole gateway: who may enter, and what is answered at the edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway import create_app, settings
from asgi_llm_gateway.admin.models import MAX_BODY

from ..conversation import CHAT, JSON, ask, get
from .conftest import ADMIN_KEY, bearer
from .whole import OPEN, app, key_of, make

__all__ = ["app"]


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
