"""What is allowed: decisions, policies that fail, and dry runs; a callable stands in for OPA."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from asgi_llm_gateway.middleware.policy import PolicyMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import CHAT, ask, call, get
from . import Stranger
from .policy_parts import Rules, always, raising

# -- decisions ---------------------------------------------------------------------------------------------------------


async def test_what_is_allowed_goes_on_byte_for_byte() -> None:
    """A yes changes nothing."""
    app = Stranger()
    raw = b'{ "model":"echo",  "messages":[{"role":"user","content":"hi"}] }'
    assert (await ask(PolicyMiddleware(app, decide=always(True)), raw)).status == 200
    assert app.bodies == [raw]


@pytest.mark.parametrize("result", [False, None, {"allow": False}, {}, {"reason": "x"}])
@pytest.mark.parametrize("fail", ["closed", "open"])
async def test_what_is_not_allowed_does_not_reach_the_app(result: Any, fail: Any) -> None:
    """403, and no retry; undefined is a no in either mode."""
    app = Stranger()
    answer = await ask(PolicyMiddleware(app, decide=always(result), fail=fail), CHAT)
    assert (answer.status, answer.error["code"], answer.error["type"]) == (403, "policy_denied", "permission_error")
    assert answer.headers["x-should-retry"] == "false"
    assert app.calls == 0


async def test_the_reason_is_told_where_it_is_a_text() -> None:
    """Anything else stays inside, and a text is cut."""
    said = {}
    for reason in ("not on sundays", ["a", "list"], 7, "x" * 9000):
        answer = await ask(PolicyMiddleware(Stranger(), decide=always({"allow": False, "reason": reason})), CHAT)
        said[str(reason)[:5]] = answer.error["message"]
    assert said["not o"].endswith(": not on sundays")
    assert said["['a',"] == said["7"] == "The gateway's policy does not allow this request."
    assert len(said["xxxxx"]) < 600


async def test_a_refusal_speaks_the_callers_dialect() -> None:
    """Anthropic's envelope on /v1/messages."""
    body = {**CHAT, "max_tokens": 5}
    answer = await ask(PolicyMiddleware(Stranger(), decide=always(False)), body, "/v1/messages")
    assert answer.status == 403
    assert (answer.json()["type"], answer.json()["error"]["type"]) == ("error", "permission_error")


async def test_a_function_that_waits_for_nothing_is_a_policy_too() -> None:
    """No coroutine needed."""
    layer = PolicyMiddleware(Stranger(), decide=lambda question: question["model"] == "echo")
    assert (await ask(layer, CHAT)).status == 200
    assert (await ask(layer, {**CHAT, "model": "gpt-4"})).status == 403


async def test_every_governed_path_is_asked_about() -> None:
    """The list of models, a POST on an unknown path; others are not, and OPTIONS passes."""
    rules = always(False)
    layer = PolicyMiddleware(Stranger(), decide=rules)
    assert (await get(layer, "/v1/models")).status == 403
    assert (await ask(layer, CHAT, "/v1/files")).status == 403
    assert (await get(layer, "/v1/chat/completions")).status == 403
    assert len(rules.asked) == 3
    assert (await get(layer, "/docs")).status == 200
    async with call(layer, None, method="OPTIONS") as talk:
        assert (await talk.answer()).status == 200
    assert len(rules.asked) == 3


async def test_only_what_costs_money_can_be_asked_about() -> None:
    """``asks="metered"`` leaves the list of models to TenantMiddleware."""
    layer = PolicyMiddleware(Stranger(), decide=always(False), asks="metered")
    assert (await get(layer, "/v1/models")).status == 200
    assert (await ask(layer, CHAT)).status == 403


async def test_an_own_path_is_asked_about() -> None:
    """Its body is not read, and so no obligation on it can be met: then it is refused."""
    rules = always(True)
    app = Stranger()
    layer = PolicyMiddleware(app, decide=rules, paths={"/ask": "metered"})
    assert (await ask(layer, {"q": 1}, "/ask")).status == 200
    assert (rules.asked[0]["path"], rules.asked[0]["model"]) == ("/ask", None)
    strict = PolicyMiddleware(
        app, decide=always({"allow": True, "obligations": {"max_tokens": 5}}), paths={"/ask": "metered"}
    )
    assert (await ask(strict, {"q": 1}, "/ask")).error["code"] == "policy_denied"
    assert app.calls == 1


async def test_a_policy_cannot_change_the_request_by_what_it_is_shown() -> None:
    """It has a copy."""

    def spiteful(question: dict[str, Any]) -> bool:
        question["body"]["messages"].clear()
        question["parameters"]["temperature"] = 9
        return True

    app = Stranger()
    await ask(PolicyMiddleware(app, decide=spiteful, prompt=True), CHAT)
    assert json.loads(app.bodies[0]) == CHAT


# -- what goes wrong ---------------------------------------------------------------------------------------------------


async def sleeping(question: dict[str, Any]) -> Any:
    """A policy that never answers."""
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "decide", [raising, sleeping, lambda q: "yes", lambda q: 1, lambda q: {"allow": "true"}, lambda q: [True]]
)
async def test_a_policy_that_says_neither_yes_nor_no(decide: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Closed: 503, and nothing reaches the app. Open: the call goes on. Logged once each, without the question."""
    app = Stranger()
    closed = PolicyMiddleware(app, decide=decide, timeout=0.05, prompt=True)
    for _ in range(2):
        answer = await ask(closed, CHAT)
        assert (answer.status, answer.error["code"]) == (503, "policy_unavailable")
        assert answer.headers["retry-after"] == "1"
    assert app.calls == 0
    assert len(caplog.records) == 1
    assert (await ask(PolicyMiddleware(app, decide=decide, timeout=0.05, fail="open", prompt=True), CHAT)).status == 200
    assert app.calls == 1
    assert "one two three" not in caplog.text


async def test_an_outage_is_not_remembered() -> None:
    """The next call asks anew."""
    rules = Rules(lambda question: len(rules.asked) > 1 or "out of order")
    layer = PolicyMiddleware(Stranger(), decide=rules)
    assert [(await ask(layer, CHAT)).status for _ in range(3)] == [503, 200, 200]
    assert len(rules.asked) == 2


async def test_without_a_policy_nothing_is_allowed(caplog: pytest.LogCaptureFixture) -> None:
    """``PolicyMiddleware(app)`` without OPA_URL: 503 that names the setting."""
    app = Stranger()
    answer = await ask(PolicyMiddleware(app), CHAT)
    assert (answer.status, answer.error["code"]) == (503, "misconfigured")
    assert "OPA_URL" in answer.error["message"]
    assert app.calls == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPA_URL", "ftp://opa"),
        ("OPA_URL", "http://user:hunter22@opa:8181"),
        ("OPA_URL", "http://opa:8181?x=1"),
        ("OPA_URL", "http://opa:99999"),
        ("OPA_POLICY", "a//b"),
        ("OPA_TOKEN", "hunter22\r\nx: y"),
    ],
)
async def test_a_wrong_setting_is_named_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    """503, and no password in it or in the log."""
    monkeypatch.setenv("OPA_URL", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    forget()
    answer = await ask(PolicyMiddleware(Stranger()), CHAT)
    assert (answer.status, answer.error["code"]) == (503, "misconfigured")
    assert name in answer.error["message"]
    assert "hunter22" not in answer.body.decode() + caplog.text


@pytest.mark.parametrize(
    "wrong",
    [{"fail": "ajar"}, {"asks": "all"}, {"timeout": 0}, {"cache_seconds": -1}, {"cache_size": 0}, {"url": "opa"},
     {"policy": "a/../b"}, {"headers": ("cookie",)}, {"omit": ("tenant",)}, {"time_step": -1}],
)  # fmt: skip
def test_an_argument_that_cannot_be_meant_is_refused(wrong: Any) -> None:
    """When the layer is made, not at the first call."""
    with pytest.raises(ValueError):  # noqa: PT011 - each names its own argument
        PolicyMiddleware(Stranger(), **wrong)


# -- dry run -----------------------------------------------------------------------------------------------------------


async def test_a_dry_run_refuses_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What would have been done is in the log, without the prompt."""
    caplog.set_level(logging.INFO, "asgi_llm_gateway")
    app = Stranger()
    denied = PolicyMiddleware(app, decide=always({"allow": False, "reason": "too dear"}), dry_run=True)
    changed = PolicyMiddleware(app, decide=always({"allow": True, "obligations": {"max_tokens": 1}}), dry_run=True)
    broken = PolicyMiddleware(app, decide=raising, dry_run=True)
    for layer in (denied, changed, broken):
        assert (await ask(layer, CHAT)).status == 200
    assert [json.loads(body) for body in app.bodies] == [CHAT] * 3
    assert "would be refused by the policy: tenant=default model='echo'" in caplog.text
    assert "too dear" in caplog.text
    assert "would be allowed with changes" in caplog.text
    assert "one two three" not in caplog.text


async def test_a_reason_is_not_logged_where_the_policy_is_shown_prompts(caplog: pytest.LogCaptureFixture) -> None:
    """It may repeat them."""
    caplog.set_level(logging.INFO, "asgi_llm_gateway")
    said = Rules(lambda question: {"allow": False, "reason": question["body"]["messages"][0]["content"]})
    answer = await ask(PolicyMiddleware(Stranger(), decide=said, prompt=True), CHAT)
    assert "one two three" in answer.error["message"]
    assert "one two three" not in caplog.text


async def test_a_refusal_is_in_the_trace() -> None:
    """By its code."""
    traces = TraceLog()
    await ask(TracingMiddleware(PolicyMiddleware(Stranger(), decide=always(False)), traces=traces), CHAT)
    [record] = traces.recent(1)
    assert (record.status, record.error) == (403, "policy_denied")
