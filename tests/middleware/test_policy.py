"""What is allowed: decisions, obligations, and the memory of decisions; a callable stands in for OPA."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.policy import PolicyMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.stores.memory import MemoryStore
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import CHAT, JSON, ask, call, get
from . import Stranger


class Rules:
    """A policy that counts what it is asked. ``say`` decides; ``gate`` holds its answers back where it is closed."""

    def __init__(self, say: Callable[[dict[str, Any]], Any]) -> None:
        self.say = say
        self.asked: list[dict[str, Any]] = []
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, question: dict[str, Any]) -> Any:
        """See PolicyMiddleware."""
        self.asked.append(question)
        self.reached.set()
        await self.gate.wait()
        return self.say(question)


def always(result: Any) -> Rules:
    """The same document for every question."""
    return Rules(lambda question: result)


async def team(*names: str, **more: Any) -> tuple[MemoryStore, dict[str, tuple[bytes, bytes]]]:
    """A store with tenants, and the header that shows each one's key."""
    store = MemoryStore()
    shown = {}
    for name in names:
        key, secret = new_key(name)
        await store.put_tenant(Tenant(name, **more))
        await store.add_key(key)
        shown[name] = (b"authorization", b"Bearer " + secret.encode())
    return store, shown


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


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def raising(question: dict[str, Any]) -> Any:
    """A policy with a bug, whose message has what it was shown."""
    raise RuntimeError(str(question))


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


# -- obligations -------------------------------------------------------------------------------------------------------


async def test_obligations_are_carried_out() -> None:
    """The body and its length are those of the changed request."""
    app = Stranger()
    due = {"model": "small", "max_tokens": 5, "set": {"store": False}, "remove": ["seed", "absent"]}
    body = {**CHAT, "max_tokens": 50, "seed": 7}
    layer = PolicyMiddleware(app, decide=always({"allow": True, "obligations": due}))
    headers = [JSON, (b"content-length", b"%d" % len(json.dumps(body)))]
    assert (await ask(layer, body, headers=headers)).status == 200
    assert json.loads(app.bodies[0]) == {
        "model": "small", "messages": CHAT["messages"], "max_tokens": 5, "store": False,
    }  # fmt: skip
    assert (b"content-length", b"%d" % len(app.bodies[0])) in app.scopes[0]["headers"]


async def test_an_obligation_that_is_not_understood_refuses() -> None:
    """In either mode: what a permission depends on can't be passed over."""
    app = Stranger()
    for fail in ("closed", "open"):
        due = {"allow": True, "obligations": {"watermark": True}}
        answer = await ask(PolicyMiddleware(app, decide=always(due), fail=fail), CHAT)
        assert (answer.status, answer.error["code"]) == (403, "policy_denied")
    assert app.calls == 0


async def test_an_obligation_that_makes_nonsense_refuses() -> None:
    """What the gateway would not take from a client it does not make either."""
    app = Stranger()
    due = {"allow": True, "obligations": {"set": {"stream_options": {}}}}
    assert (await ask(PolicyMiddleware(app, decide=always(due)), CHAT)).status == 403
    assert app.calls == 0


async def test_a_policy_cannot_lead_to_a_model_that_the_tenant_may_not_use() -> None:
    """The tenant's own list holds for the obliged model too."""
    store, shown = await team("acme", allowed_models=("echo", "small"))
    app = Stranger()
    rules = always({"allow": True, "obligations": {"model": "gpt-4"}})
    answer = await ask(
        TenantMiddleware(PolicyMiddleware(app, decide=rules), store=store), CHAT, headers=(JSON, shown["acme"])
    )
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert app.calls == 0
    rules = always({"allow": True, "obligations": {"model": "small"}})
    answer = await ask(
        TenantMiddleware(PolicyMiddleware(app, decide=rules), store=store), CHAT, headers=(JSON, shown["acme"])
    )
    assert (answer.status, json.loads(app.bodies[0])["model"]) == (200, "small")


# -- the memory of decisions -------------------------------------------------------------------------------------------


async def test_a_decision_holds_for_a_while() -> None:
    """So many seconds, for yes and no alike; a clock that is set back prolongs nothing."""
    now = [1_000_000.0]
    rules = Rules(lambda question: question["model"] == "echo")
    layer = PolicyMiddleware(Stranger(), decide=rules, cache_seconds=10, omit=("time",), clock=lambda: now[0])
    for moment, asked in ((0, 2), (9.9, 2), (10, 4), (5, 6)):
        now[0] = 1_000_000.0 + moment
        assert (await ask(layer, CHAT)).status == 200
        assert (await ask(layer, {**CHAT, "model": "gpt-4"})).status == 403
        assert len(rules.asked) == asked


async def test_a_decision_does_not_outlive_its_minute() -> None:
    """The time is part of the question: a policy by the clock is right to the step."""
    now = [60 * 20_000 - 0.5]
    rules = Rules(lambda question: question["time"] == "1970-01-14T21:19:00Z")
    layer = PolicyMiddleware(Stranger(), decide=rules, cache_seconds=3600, clock=lambda: now[0])
    assert [(await ask(layer, CHAT)).status for _ in range(2)] == [200, 200]
    now[0] += 1
    assert [(await ask(layer, CHAT)).status for _ in range(2)] == [403, 403]
    assert len(rules.asked) == 2


async def test_nothing_is_remembered_where_that_is_switched_off() -> None:
    """Zero seconds."""
    rules = always(True)
    layer = PolicyMiddleware(Stranger(), decide=rules, cache_seconds=0)
    for _ in range(3):
        await ask(layer, CHAT)
    assert len(rules.asked) == 3


async def test_the_memory_is_bounded() -> None:
    """The oldest decision goes."""
    rules = always(True)
    layer = PolicyMiddleware(Stranger(), decide=rules, cache_size=2)
    for model in ("a", "b", "c", "c", "b", "a", "a"):
        await ask(layer, {**CHAT, "model": model})
    assert [question["model"] for question in rules.asked] == ["a", "b", "c", "a"]


async def test_calls_that_ask_the_same_ask_once() -> None:
    """However many wait; one that hangs up leaves the others their answer."""
    rules = always(True)
    rules.gate.clear()
    app = Stranger()
    layer = PolicyMiddleware(app, decide=rules, timeout=30)
    async with call(layer, CHAT) as first:
        await rules.reached.wait()
        others = [asyncio.ensure_future(ask(layer, CHAT)) for _ in range(20)]
        await asyncio.sleep(0)
        first.task.cancel()
        await asyncio.wait({first.task})
        rules.gate.set()
        assert [answer.status for answer in await asyncio.gather(*others)] == [200] * 20
    assert (len(rules.asked), app.calls) == (1, 20)


async def test_a_prompt_that_is_shown_is_part_of_what_is_remembered() -> None:
    """Another prompt, another decision; long ones too."""
    rules = Rules(lambda question: "bomb" not in question["body"]["messages"][0]["content"])
    layer = PolicyMiddleware(Stranger(), decide=rules, prompt=True)
    pad = "x" * 5000
    for content, status in ((pad + "cake", 200), (pad + "bomb", 403), (pad + "cake", 200)):
        body = {**CHAT, "messages": [{"role": "user", "content": content}]}
        assert (await ask(layer, body)).status == status
    assert len(rules.asked) == 2


async def test_a_policy_cannot_change_the_request_by_what_it_is_shown() -> None:
    """It has a copy."""

    def spiteful(question: dict[str, Any]) -> bool:
        question["body"]["messages"].clear()
        question["parameters"]["temperature"] = 9
        return True

    app = Stranger()
    await ask(PolicyMiddleware(app, decide=spiteful, prompt=True), CHAT)
    assert json.loads(app.bodies[0]) == CHAT


CALLS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["small", "large"]), st.sampled_from([None, 1, 2])),
    min_size=1,
    max_size=12,
)


@given(
    calls=CALLS,
    allowed=st.sets(st.tuples(st.sampled_from("abc"), st.sampled_from(["small", "large"]))),
    rest=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_no_call_that_is_denied_reaches_the_app(calls: Any, allowed: Any, rest: bool) -> None:
    """Side by side and one after the other, with the memory on: each tenant and model gets its own decision, always."""

    async def run() -> None:
        store, shown = await team("a", "b", "c")

        async def decide(question: dict[str, Any]) -> Any:
            await asyncio.sleep(0)
            verdict = (question["tenant"]["id"], question["model"]) in allowed
            return verdict if rest else {"allow": verdict, "obligations": {"max_tokens": 5}}

        app = Stranger()
        layer = TenantMiddleware(PolicyMiddleware(app, decide=decide, timeout=30), store=store)

        async def one(tenant: str, model: str, seed: int | None) -> int:
            body = {**CHAT, "model": model} if seed is None else {**CHAT, "model": model, "seed": seed}
            return (await ask(layer, body, headers=(JSON, shown[tenant]))).status

        wanted = [200 if (tenant, model) in allowed else 403 for tenant, model, _ in calls]
        assert await asyncio.gather(*(one(*each) for each in calls)) == wanted
        assert [await one(*each) for each in calls] == wanted
        assert app.calls == 2 * wanted.count(200)

    asyncio.run(run())


def test_one_instance_serves_many_event_loops() -> None:
    """Each has a memory of its own."""
    asked: list[Any] = []

    def decide(question: dict[str, Any]) -> bool:
        asked.append(question)
        return True

    layer = PolicyMiddleware(Stranger(), decide=decide)
    for _ in range(2):
        assert asyncio.run(ask(layer, CHAT)).status == 200
    assert len(asked) == 2
