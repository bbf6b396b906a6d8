"""A whole gateway's traces: each way that a call can go, seen in ``/api/traces`` with its steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway import create_app, settings
from asgi_llm_gateway.stores.migrate import upgrade

from ..conversation import CHAT, JSON, Answer, ask, call, get
from ..servers import KEY

ADMIN = "an-admin-key-of-thirty-two-characters-or-more"
TEAM = f'[tenants.team]\nkeys = ["{KEY}"]\nbudget_usd = 1\n[tenants.other]\n'
BAD_FIRST = """
[providers.bad]
type = "echo"
fault = "503"
[providers.good]
type = "echo"
[models.smart]
targets = ["bad/echo", "good/echo"]
usd_per_million_in = 1
usd_per_million_out = 2
"""

Make = Callable[..., Any]


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
def gateway(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """``create_app`` with these settings, a tenant, a model whose first provider fails, and traces of each kind."""
    database = None
    if request.param == "postgresql":  # made here: in the test an event loop runs
        database = request.getfixturevalue("postgres_url")
        upgrade(database)

    def make(file: str = TEAM + BAD_FIRST, **given: str) -> Any:
        (tmp_path / "gateway.toml").write_text(file, "utf-8")
        wanted = {"GATEWAY_CONFIG": str(tmp_path / "gateway.toml"), "GATEWAY_ADMIN_KEY": ADMIN, **given}
        wanted["GATEWAY_MAX_RETRIES"] = "0"
        wanted["TRACE_STORE"] = "memory" if request.param == "memory" else "sql"
        if database is not None:
            wanted["DATABASE_URL"] = database
        for name, text in wanted.items():
            monkeypatch.setenv(name, text)
        settings.forget()
        return create_app()

    return make


async def said(app: Any, body: Any, **more: Any) -> Answer:
    """The team's call."""
    return await ask(app, body, headers=[JSON, (b"authorization", f"Bearer {KEY}".encode())], **more)


async def shown(app: Any, path: str = "/api/traces", key: str = ADMIN) -> Any:
    """What the admin API says."""
    answer = await get(app, path, headers=[(b"authorization", f"Bearer {key}".encode())])
    assert answer.status == 200, answer.body
    return json.loads(answer.body)["data"]


async def traced(app: Any, answer: Answer) -> dict[str, Any]:
    """The one call with the answer's request id, by which it is found as by its trace's."""
    (found,) = await shown(app, f"/api/traces/{answer.headers['x-request-id']}")
    assert [found] == await shown(app, f"/api/traces/{answer.headers['x-trace-id']}")
    call: dict[str, Any] = found
    ends = [step["start_ms"] + step["ms"] for step in call["steps"]]
    starts = [step["start_ms"] for step in call["steps"]]
    assert starts == sorted(starts)
    assert min(starts, default=0) >= 0
    assert max(ends, default=0) <= call["duration_ms"] + 0.01
    return call


def names(call: dict[str, Any]) -> list[str]:
    """The steps' names."""
    return [step["name"] for step in call["steps"]]


async def test_a_call_is_traced_from_the_key_to_the_last_byte(gateway: Make) -> None:
    """Who, what, at what cost, by which key; money as in the tenant's records."""
    app = gateway()
    answer = await said(app, {**CHAT, "model": "smart"})
    assert answer.status == 200
    one = await traced(app, answer)
    assert names(one) == [
        "auth", "limit", "hold", "attempt", "attempt", "settle", "first_byte", "last_byte",
    ]  # fmt: skip
    (record,) = json.loads(
        (await get(app, "/api/tenants/team/records", headers=[(b"authorization", f"Bearer {ADMIN}".encode())])).body
    )["records"]
    same = {"model": "model", "provider": "provider", "status": "status", "key_id": "key_id", "tokens_in": "prompt_tokens",
            "tokens_out": "completion_tokens", "cost_usd": "cost_usd", "request_id": "request_id"}  # fmt: skip
    assert {name: one[name] for name in same} == {name: record[of] for name, of in same.items()}
    assert (one["tenant"], one["aborted"], one["stream"], one["attempts"]) == ("team", False, False, 2)
    first, second = (step["detail"] for step in one["steps"] if step["name"] == "attempt")
    assert first == {"provider": "bad", "model": "echo", "status": 503, "error": first["error"]}
    assert first["error"]
    assert second == {"provider": "good", "model": "echo", "status": 200, "error": None}


async def test_a_stream_has_a_first_token(gateway: Make) -> None:
    """After the upstream call began; its money is settled before the last byte."""
    app = gateway()
    one = await traced(app, await said(app, {**CHAT, "stream": True}))
    assert names(one)[:4] == ["auth", "limit", "hold", "attempt"]
    assert "first_token" in names(one)
    assert names(one)[-2:] == ["settle", "last_byte"]
    assert one["stream"]
    assert one["first_byte_ms"] == next(step["start_ms"] for step in one["steps"] if step["name"] == "first_token")


async def test_a_cached_answer_needs_no_attempt(gateway: Make) -> None:
    """The look-up is a step; what the answer had cost is saved."""
    app = gateway(ENABLE_CACHE="1", CACHE_CALLS="all")
    missed, hit = [await traced(app, await said(app, {**CHAT, "model": "smart"})) for _ in range(2)]
    assert (missed["cache"], missed["saved_usd"], missed["attempts"]) == ("miss", None, 2)
    assert (hit["cache"], hit["saved_usd"], hit["attempts"]) == ("hit", missed["cost_usd"], 0)
    assert "cache" in names(hit)
    assert "attempt" not in names(hit)
    assert missed["cost_usd"] > 0
    assert hit["cost_usd"] == 0


async def test_a_call_without_a_key_is_nobodys(gateway: Make) -> None:
    """Admins see it; the tenant ``default``, which a stack without tenants has, does not get it."""
    app = gateway()
    answer = await ask(app, CHAT, headers=[JSON, (b"authorization", b"Bearer gw-wrong")])
    one = await traced(app, answer)
    assert (one["tenant"], one["key_id"], one["status"], one["error"]) == (None, None, 401, "invalid_api_key")
    assert await shown(app, key=KEY) == []


async def test_a_refused_call_tells_where_it_ended(gateway: Make) -> None:
    """With the code of the refusal; the step that refused it is the last one before the answer."""
    app = gateway(RATE_LIMIT_MAX_REQUESTS="1")
    await said(app, CHAT)
    one = await traced(app, await said(app, CHAT))
    assert (one["status"], one["error"], one["tenant"]) == (429, "rate_limit_exceeded", "team")
    assert names(one) == ["auth", "limit", "first_byte", "last_byte"]


async def test_a_call_that_was_left_has_no_last_byte(gateway: Make) -> None:
    """It is aborted; what its upstream call took is known to its end."""
    app = gateway()
    body = {**CHAT, "stream": True, "metadata": {"echo_delay_ms": "200"}}
    async with call(app, body, headers=[JSON, (b"authorization", f"Bearer {KEY}".encode())]) as talk:
        await talk.next()
        await talk.next()
        await talk.hang_up()
    (row,) = await shown(app)
    (one,) = await shown(app, f"/api/traces/{row['request_id']}")
    assert one["aborted"]
    assert "last_byte" not in names(one)
    attempt = next(step for step in one["steps"] if step["name"] == "attempt")
    assert 0 < attempt["ms"] <= one["duration_ms"]


async def test_a_tenants_key_sees_its_own(gateway: Make) -> None:
    """And not the others', in the list as by id."""
    app = gateway(
        TEAM.replace("[tenants.other]", '[tenants.other]\nkeys = ["gw-another-key-for-the-tests"]') + BAD_FIRST
    )
    theirs = await ask(app, CHAT, headers=[JSON, (b"authorization", b"Bearer gw-another-key-for-the-tests")])
    own = await said(app, CHAT)
    assert (theirs.status, own.status) == (200, 200)
    assert [row["request_id"] for row in await shown(app, key=KEY)] == [own.headers["x-request-id"]]
    for name in ("x-request-id", "x-trace-id"):
        answer = await get(
            app, f"/api/traces/{theirs.headers[name]}", headers=[(b"authorization", f"Bearer {KEY}".encode())]
        )
        assert answer.status == 404


async def test_no_prompt_and_no_secret_is_stored(gateway: Make, tmp_path: Path) -> None:
    """Nor what a client put into its path's query."""
    app = gateway()
    body = {**CHAT, "messages": [{"role": "user", "content": "PRIVATE-WORDS"}]}
    await said(app, body, query_string=b"token=PRIVATE-WORDS")
    await said(app, {**body, "n": -1})
    await ask(app, body, headers=[JSON, (b"authorization", b"Bearer gw-PRIVATE-WORDS")])
    rows = await shown(app)
    told = [await shown(app, f"/api/traces/{row['request_id']}") for row in rows]
    assert len(rows) == 3
    for private in ("PRIVATE-WORDS", KEY):
        assert private not in json.dumps([rows, told])
    for file in (tmp_path / "data").glob("gateway.db*"):
        assert b"PRIVATE-WORDS" not in file.read_bytes()
