"""Each setting puts its layer into ``create_app``'s stack, and in its place: seen from outside, by what it does to a call."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway import create_app, settings
from asgi_llm_gateway.logs import shared_lines
from asgi_llm_gateway.middleware.security import HEADERS as SECURITY

from .caching import PATHS, asking, text_of, text_of_stream
from .conversation import CHAT, JSON, Answer, ask, get
from .metrics_parts import samples, value
from .servers import KEY
from .structured import BAD, DIALECTS, GOOD, PERSON, saying
from .structured import PATHS as STRUCTURED
from .structured import asking as structured
from .structured import text_of as structured_text_of
from .upstream import Peer, always, upstream, whole

AUTH = (b"authorization", f"Bearer {KEY}".encode())
TEAM = f'[tenants.team]\nkeys = ["{KEY}"]\n'
# What can't be meant: a type that JSON has not.
SENSELESS = {**PERSON, "properties": {"name": {"type": "words"}, "age": {"type": "integer"}}}

Make = Callable[..., Any]


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """``create_app`` with these settings, and with the tenant ``team``."""

    def make(file: str = TEAM, **given: str) -> Any:
        (tmp_path / "gateway.toml").write_text(file, "utf-8")
        for name, text in {"GATEWAY_CONFIG": str(tmp_path / "gateway.toml"), **given}.items():
            monkeypatch.setenv(name, text)
        settings.forget()
        return create_app()

    return make


@pytest.fixture
def log(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The lines ``call`` that the process writes to stderr, by a writer of this test's own."""
    shared_lines.cache_clear()

    def read() -> list[dict[str, Any]]:
        assert shared_lines().writer.flush(10)
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
        return [line for line in map(json.loads, lines) if line["event"] == "call"]

    yield read
    shared_lines.cache_clear()


async def said(app: Any, body: Any, path: str = "/v1/chat/completions", **more: Any) -> Answer:
    """The team's call."""
    return await ask(app, body, path, headers=[JSON, AUTH], **more)


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", ["chat", "messages", "responses"])
async def test_enable_cache_puts_the_cache_there(gateway: Make, dialect: str, stream: bool) -> None:
    """A miss, then a hit with the same words, in either form; without the setting nobody speaks of a cache."""
    body = asking(dialect, "say this", model="echo", stream=stream)
    plain = await said(gateway(), body, PATHS[dialect])
    assert (plain.status, "x-cache" in plain.headers) == (200, False)
    app = gateway(ENABLE_CACHE="1")
    answers = [await said(app, body, PATHS[dialect]) for _ in range(2)]
    answers.append(await said(app, {**body, "stream": not stream}, PATHS[dialect]))
    assert [(one.status, one.headers["x-cache"]) for one in answers] == [(200, "miss"), (200, "hit"), (200, "hit")]
    texts = [
        text_of_stream(dialect, one.body)
        if one.headers["content-type"].startswith("text/event-stream")
        else text_of(dialect, one.json())
        for one in answers
    ]
    assert texts == ["say this"] * 3


async def test_the_cache_stands_within_the_rate_limit_and_round_the_budget(gateway: Make) -> None:
    """A hit counts as a request, needs a key, and is paid by nobody."""
    dear = '[models.dear]\ntargets = ["echo/echo"]\nusd_per_million_in = 1000\nusd_per_million_out = 1000\n'
    app = gateway(TEAM + "budget_usd = 1\n" + dear, ENABLE_CACHE="1", RATE_LIMIT_MAX_REQUESTS="2")
    body = asking("chat", model="dear", max_tokens=5)
    miss, hit, third = [await said(app, body) for _ in range(3)]
    assert [one.headers.get("x-cache") for one in (miss, hit, third)] == ["miss", "hit", None]
    assert float(miss.headers["x-llm-cost-usd"]) > 0
    assert float(hit.headers["x-llm-cost-usd"]) == 0
    assert (third.status, third.error["code"]) == (429, "rate_limit_exceeded")
    assert (await ask(app, body, headers=[JSON])).status == 401


# -- structured output -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_enable_structured_output_checks_the_schema(gateway: Make, dialect: str) -> None:
    """A bad schema is 400 before anybody is asked; without the setting the echo model does not mind it."""
    body = structured(dialect, SENSELESS, model="echo")
    assert (await said(gateway(), body, STRUCTURED[dialect])).status == 200
    refused = await said(gateway(ENABLE_STRUCTURED_OUTPUT="1"), body, STRUCTURED[dialect])
    assert refused.status == 400
    assert "'words'" in refused.json()["error"]["message"] or "must be one of" in refused.json()["error"]["message"]


async def test_enable_structured_output_repairs_the_answer(gateway: Make) -> None:
    """A provider that breaks its word is asked again, and the caller is told; the ledger has the sum of both."""
    told: list[int] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            told.append(1)
            await peer.send(whole(saying("chat", BAD if len(told) % 2 else GOOD)))

    async with upstream(script) as server:
        given = {"OPENAI_API_KEY": "sk-x", "OPENAI_BASE_URL": server.url()}
        body = structured("chat", model="gpt-4o-mini")
        plain = await said(gateway(**given), body)
        assert (structured_text_of("chat", plain.json()), "x-llm-structured" in plain.headers) == (BAD, False)
        told.clear()
        mended = await said(gateway(ENABLE_STRUCTURED_OUTPUT="1", **given), body)
        assert structured_text_of("chat", mended.json()) == GOOD
        assert mended.headers["x-llm-structured"] == "retried"
        once, twice = (float(one.headers["x-llm-cost-usd"]) for one in (plain, mended))
        assert twice == pytest.approx(2 * once)
        assert once > 0


# -- the policy --------------------------------------------------------------------------------------------------------


async def test_opa_url_puts_the_policy_there(gateway: Make) -> None:
    """An OPA over TCP refuses, and says why; it is asked who calls, and only after the rate limit."""
    no = whole({"result": {"allow": False, "reason": "not on sundays"}})
    async with upstream(always(no)) as opa:
        app = gateway(OPA_URL=opa.url(""), OPA_TIMEOUT_MS="10000", RATE_LIMIT_MAX_REQUESTS="1")
        refused = await said(app, CHAT)
        assert (refused.status, refused.error["code"]) == (403, "policy_denied")
        assert refused.error["message"].endswith(": not on sundays")
        assert refused.headers["x-ratelimit-limit-requests"] == "1"
        assert (await ask(app, CHAT, headers=[JSON])).status == 401
        assert (await said(app, CHAT)).status == 429
        [asked] = opa.requests
        assert asked.json()["input"]["tenant"]["id"] == "team"


async def test_the_policy_stands_round_the_cache(gateway: Make) -> None:
    """What is kept is not told to whom the policy refuses it now."""
    said_yes: list[bool] = [True]

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(whole({"result": said_yes[0]}))

    async with upstream(script) as opa:
        app = gateway(OPA_URL=opa.url(""), OPA_TIMEOUT_MS="10000", OPA_CACHE_SECONDS="0", ENABLE_CACHE="1")
        body = asking("chat", model="echo")
        assert [(await said(app, body)).headers["x-cache"] for _ in range(2)] == ["miss", "hit"]
        said_yes[0] = False
        refused = await said(app, body)
        assert (refused.status, "x-cache" in refused.headers) == (403, False)
    assert (await said(gateway(OPA_URL=""), body)).status == 200


# -- the gatekeepers that are always there -----------------------------------------------------------------------------


async def test_tenant_rate_limit_budget_and_trace_are_there_without_a_setting(gateway: Make) -> None:
    """No key, no request left, no money left; and every answer of the API has its ids."""
    dear = '[models.dear]\ntargets = ["echo/echo"]\nusd_per_million_in = 1000\nusd_per_million_out = 1000\n'
    app = gateway(TEAM + "budget_usd = 0.001\n" + dear)
    answers = [await ask(app, CHAT, headers=[JSON]), await said(app, CHAT), await said(app, {**CHAT, "model": "dear"})]
    assert [(one.status, one.json().get("error", {}).get("code")) for one in answers] == [
        (401, "invalid_api_key"), (200, None), (402, "would_exceed_budget"),
    ]  # fmt: skip
    assert all(len(one.headers["x-trace-id"]) == 32 for one in answers)
    assert all(one.headers["x-request-id"].startswith("req_") for one in answers)
    assert answers[1].headers["x-ratelimit-limit-requests"] == "600"
    unlimited = await said(gateway(ENABLE_RATE_LIMIT="0"), CHAT)
    assert (unlimited.status, "x-ratelimit-limit-requests" in unlimited.headers) == (200, False)


# -- the observers -----------------------------------------------------------------------------------------------------


async def test_the_metrics_page_counts_every_request(gateway: Make) -> None:
    """Calls by tenant and by what the cache did, and the operators' own requests."""
    app = gateway(METRICS_PUBLIC="1", ENABLE_CACHE="1")

    async def page() -> Any:
        answer = await get(app, "/metrics")
        assert answer.status == 200
        return samples(answer.body.decode())

    before = await page()
    for _ in range(2):
        assert (await said(app, asking("chat", model="echo"))).status == 200
    assert (await ask(app, CHAT, headers=[JSON])).status == 401
    assert (await get(app, "/health")).status == 200
    after = await page()

    def more(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    chats = {"route": "/v1/chat/completions", "method": "POST"}
    assert more("http_requests_total", **chats, status="200") == 2
    assert more("http_requests_total", **chats, status="401") == 1
    assert more("http_requests_total", route="/health") == 1
    assert more("llm_calls_total", tenant="team") == 1  # what is booked: a hit is not
    assert (more("llm_cache_events_total", event="miss"), more("llm_cache_events_total", event="hit")) == (1, 1)
    assert (await get(gateway(METRICS_PUBLIC="0"), "/metrics")).status == 403


async def test_a_call_is_logged_unless_log_calls_says_no(
    gateway: Make, log: Callable[[], list[dict[str, Any]]]
) -> None:
    """With what all further in know of it: the ids, the tenant, the cost, what the cache did; a refusal too."""
    app = gateway(ENABLE_CACHE="1")
    answers = [await said(app, asking("chat", model="echo")) for _ in range(2)]
    answers.append(await ask(app, CHAT, headers=[JSON]))
    lines = log()
    assert [line["request_id"] for line in lines] == [one.headers["x-request-id"] for one in answers]
    assert [(line["status"], line["tenant"], line.get("cache"), line["error"]) for line in lines] == [
        (200, "team", "miss", None), (200, "team", "hit", None), (401, None, None, "invalid_api_key"),
    ]  # fmt: skip
    assert (await said(gateway(LOG_CALLS="0"), CHAT)).status == 200
    assert log() == []


# -- the outermost -----------------------------------------------------------------------------------------------------

EVERYWHERE = {name: text for name, text in SECURITY.items() if name != "strict-transport-security"}


async def test_security_headers_are_on_every_answer(gateway: Make) -> None:
    """Of the API, whole, streamed or refused, of the operators' paths, and of paths that nobody has."""
    app = gateway(ENABLE_CACHE="1", ENABLE_STRUCTURED_OUTPUT="1")
    answers = {
        "chat": await said(app, CHAT),
        "stream": await said(app, {**CHAT, "stream": True}),
        "messages": await said(app, asking("messages", model="echo"), PATHS["messages"]),
        "miss": await said(app, asking("responses", model="echo"), PATHS["responses"]),
        "hit": await said(app, asking("responses", model="echo"), PATHS["responses"]),
        "no json": await said(app, b"{"),
        "no key": await ask(app, CHAT, headers=[JSON]),
        "no schema": await said(app, structured("chat", SENSELESS, model="echo")),
        "no model": await said(app, {**CHAT, "model": "nothing"}),
        "bad host": await ask(app, CHAT, headers=[JSON, AUTH, (b"host", b"a/b")]),
        "models": await get(app, "/v1/models", headers=[AUTH]),
        "health": await get(app, "/health"),
        "api": await get(app, "/api/tenants"),
        "metrics": await get(app, "/metrics"),
        "nowhere": await get(app, "/nowhere"),
    }
    assert {name: answer.status for name, answer in answers.items()} == {
        "chat": 200, "stream": 200, "messages": 200, "miss": 200, "hit": 200, "no json": 400, "no key": 401,
        "no schema": 400, "no model": 404, "bad host": 400, "models": 200, "health": 200, "api": 403, "metrics": 403,
        "nowhere": 404,
    }  # fmt: skip
    for name, answer in answers.items():
        assert {key: answer.headers.get(key) for key in EVERYWHERE} == EVERYWHERE, name
    secure = await said(app, CHAT, scheme="https")
    assert secure.headers["strict-transport-security"] == SECURITY["strict-transport-security"]
