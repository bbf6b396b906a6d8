"""The whole gateway with an admin key, as operators use it: what the tests of the app share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway import create_app, settings

from ..conversation import JSON, Answer, ask
from .conftest import ADMIN_KEY, bearer

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
