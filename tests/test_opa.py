"""What a policy is asked, and how its answer is read: no socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.errors import BadRequest
from asgi_llm_gateway.exchange import Exchange
from asgi_llm_gateway.opa import (
    Decision,
    Obligations,
    PolicyFault,
    Questions,
    changes,
    data_path,
    decision_header,
    read_answer,
    read_result,
    rounded_up,
)
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.records import ApiKey, Identity, Price, Tenant
from asgi_llm_gateway.wire import Table, parse

from .conversation import CHAT, scope_of

SECRET = "the-prompt-is-secret"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def exchange_of(body: Any = None, path: str = "/v1/chat/completions", tenant: Tenant | None = None) -> Exchange:
    """A call on its way, read where it has a body."""

    async def app(*_: Any) -> None:
        raise AssertionError

    scope = scope_of(path)
    exchange = Exchange(app, Table().match(scope), scope)
    if body is not None:
        exchange.request = parse(exchange.route, json.dumps(body).encode())
    if tenant is not None:
        exchange.identity = Identity(tenant, ApiKey("k1", tenant.id, "d" * 64, name="ci"))
    return exchange


def asked(questions: Questions, body: Any = None, path: str = "/v1/chat/completions", **more: Any) -> Any:
    """The input document."""
    tenant = more.pop("tenant", None)
    return json.loads(questions.about(exchange_of(body, path, tenant), scope_of(path, **more)))["input"]


# -- the question ------------------------------------------------------------------------------------------------------


def test_the_input_says_who_asks_what() -> None:
    """Every documented part, in its place."""
    tenant = Tenant("acme", name="Acme", metadata={"plan": "free"})
    body = {**CHAT, "model": "gpt-4", "max_tokens": 10, "n": 2, "temperature": 0.5, "user": "jane"}
    assert asked(Questions(clock=lambda: 1_760_000_059.0), body, tenant=tenant) == {
        "tenant": {"id": "acme", "name": "Acme", "metadata": {"plan": "free"}},
        "key": {"id": "k1", "name": "ci"},
        "kind": "metered",
        "method": "POST",
        "path": "/v1/chat/completions",
        "dialect": "chat",
        "model": "gpt-4",
        "stream": False,
        "parameters": {"max_tokens": 10, "n": 2, "temperature": 0.5},
        "estimate": {"prompt_tokens": 48, "output_tokens": 20},
        "client": {"address": "127.0.0.1"},
        "time": "2025-10-09T08:54:00Z",
    }


def test_a_path_whose_body_is_not_read_has_no_model() -> None:
    """The list of models is asked for by method and path."""
    found = asked(Questions(), None, "/v1/models", method="GET")
    assert (found["kind"], found["method"], found["path"], found["model"]) == (
        "authenticated",
        "GET",
        "/v1/models",
        None,
    )
    assert "parameters" not in found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": SECRET}], "stop": [SECRET]}),
        ("/v1/completions", {"model": "m", "prompt": SECRET, "suffix": SECRET}),
        ("/v1/embeddings", {"model": "m", "input": [SECRET]}),
        ("/v1/responses", {"model": "m", "input": SECRET, "instructions": SECRET}),
        (
            "/v1/messages",
            {"model": "m", "max_tokens": 5, "system": SECRET, "messages": [{"role": "user", "content": SECRET}]},
        ),
        (
            "/v1/chat/completions",
            {
                **CHAT,
                "tools": [{"type": "function", "function": {"name": "f", "description": SECRET}}],
                "response_format": {"type": "json_schema", "json_schema": {"description": SECRET}},
                "user": SECRET,
                "metadata": {"a": SECRET},
                "prediction": {"type": "content", "content": SECRET},
            },
        ),
    ],
)
def test_no_prompt_is_in_the_input_unless_asked_for(path: str, body: Any) -> None:
    """In no dialect, and not by way of tools, schemas, stop words or metadata (A41, A45)."""
    assert SECRET not in json.dumps(asked(Questions(), body, path))
    assert asked(Questions(prompt=True), body, path)["body"] == body


def test_tools_are_told_by_name() -> None:
    """A function's name, in either vendor's shape, and the type of a built-in tool."""
    tools = [
        {"type": "function", "function": {"name": "look"}},
        {"name": "act", "input_schema": {}},
        {"type": "web_search"},
        {"type": "function", "function": 7},
        "odd",
    ]
    assert asked(Questions(), {**CHAT, "tools": tools})["tools"] == ["look", "act", "web_search", "function", ""]


def test_parts_can_be_left_out_and_put_in() -> None:
    """``omit``, ``parameters`` and ``headers``; header values that repeat are joined."""
    questions = Questions(
        omit=("client", "time", "key", "estimate"), parameters=("user",), headers=("X-Team", "x-none")
    )
    headers = [(b"x-team", b"a"), (b"X-Team", b"b")]
    found = asked(questions, {**CHAT, "user": "jane"}, headers=headers)
    assert not {"client", "time", "key", "estimate"} & found.keys()
    assert found["parameters"] == {"user": "jane"}
    assert found["headers"] == {"x-team": "a, b"}


def test_the_cost_is_told_where_there_are_prices() -> None:
    """Of the rounded tokens; ``null`` for an unknown model and for an open end."""
    questions = Questions(prices=PriceTable({"dear": Price(1_000_000_000_000, 2_000_000_000_000)}))
    assert asked(questions, {**CHAT, "model": "dear", "max_tokens": 1})["estimate"]["cost_usd"] == 0.026
    assert asked(questions, {**CHAT, "model": "dear"})["estimate"]["cost_usd"] is None
    assert asked(questions, {**CHAT, "model": "nobody-has-this", "max_tokens": 1})["estimate"]["cost_usd"] is None


@pytest.mark.parametrize("name", ["authorization", "X-Api-Key", "cookie"])
def test_a_header_with_a_credential_is_never_sent(name: str) -> None:
    """Told when the middleware is made, not at the first call."""
    with pytest.raises(ValueError, match="secret"):
        Questions(headers=(name,))


@pytest.mark.parametrize("wrong", [{"parameters": ("messages",)}, {"omit": ("model",)}, {"step": -1}])
def test_what_cannot_be_meant_is_told(wrong: Any) -> None:
    """The prompt by the back door, an unknown part, a negative step."""
    with pytest.raises(ValueError, match=r"messages|model|time_step"):
        Questions(**wrong)


def test_a_parameter_that_cannot_be_written_is_the_clients_fault() -> None:
    """Nesting that is read and not written: 400, no traceback."""
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    with pytest.raises(BadRequest, match="nested too deeply"):
        asked(Questions(), {**CHAT, "seed": deep})


@given(st.integers(0, 10**9))
def test_rounding_never_tells_less(number: int) -> None:
    """At most half as much again, and what is rounded stays."""
    found = rounded_up(number)
    assert number <= found <= number * 1.5 + 1
    assert rounded_up(found) == found


@given(
    st.dictionaries(st.sampled_from(["temperature", "top_p", "seed", "n", "max_tokens", "model"]), st.integers(1, 9))
)
def test_what_a_policy_could_decide_on_is_in_the_question(changed: dict[str, int]) -> None:
    """Two requests that differ in a parameter never share a question, and so no decision."""
    fields: dict[str, Any] = {name: str(value) if name == "model" else value for name, value in changed.items()}
    questions = Questions(clock=lambda: 0.0)
    one = asked(questions, CHAT)
    other = asked(questions, {**CHAT, **fields})
    assert other["parameters"] == {name: value for name, value in fields.items() if name != "model"}
    assert (one == other) == (not fields)


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        ("llm.gateway", "/v1/data/llm/gateway"),
        ("data.llm.gateway.allow", "/v1/data/llm/gateway/allow"),
        ("/llm/a.b/", "/v1/data/llm/a.b"),
        ("one", "/v1/data/one"),
        ("a/b?c#d", "/v1/data/a/b%3Fc%23d"),
    ],
)
def test_a_policys_path(policy: str, path: str) -> None:
    """Dots or slashes; what is not a letter can't leave its segment."""
    assert data_path(policy) == path


@pytest.mark.parametrize("policy", ["", "/", "a//b", "a/../b", "a..b", "a\nb"])
def test_a_policy_that_is_no_path(policy: str) -> None:
    """Refused when the middleware is made."""
    with pytest.raises(ValueError, match="package"):
        data_path(policy)


# -- the answer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "decision"),
    [
        (True, Decision(True)),
        (False, Decision(False)),
        (None, Decision(False, undefined=True)),
        ({}, Decision(False, undefined=True)),
        ({"allow": True}, Decision(True)),
        ({"allow": False, "reason": "no"}, Decision(False, "no")),
        ({"allow": False, "reason": ["no"], "obligations": 7}, Decision(False)),
        ({"allow": True, "obligations": {}}, Decision(True, obligations=Obligations())),
        (
            {
                "allow": True,
                "obligations": {"model": "m", "max_tokens": 5, "set": {"store": False}, "remove": ["seed"]},
            },
            Decision(True, obligations=Obligations("m", 5, {"store": False, "seed": None})),
        ),
    ],
)
def test_a_result_is_read(result: Any, decision: Decision) -> None:
    """A boolean, or an object; undefined is a no."""
    assert read_result(result) == decision


@pytest.mark.parametrize("result", ["true", 1, 0, [], ["allow"], {"allow": "true"}, {"allow": 1}, {"allow": []}])
def test_what_says_neither_yes_nor_no_is_a_fault(result: Any) -> None:
    """A truthy text is no permission."""
    with pytest.raises(PolicyFault):
        read_result(result)


@pytest.mark.parametrize(
    "obligations",
    [
        {"pray": True}, {"max_tokens": 0}, {"max_tokens": True}, {"max_tokens": "5"}, {"model": ""}, {"model": 5},
        {"model": "a\nb"}, {"set": {"messages": []}}, {"set": {"base_url": "http://x"}}, {"remove": "seed"},
        {"remove": ["max_tokens"]}, {"set": {"n": 2}}, [], "max_tokens",
    ],
)  # fmt: skip
def test_an_obligation_that_is_not_understood_is_unmet(obligations: Any) -> None:
    """It is not passed over in silence."""
    decision = read_result({"allow": True, "obligations": obligations})
    assert decision.allow
    assert decision.unmet is not None


@given(JSON_VALUES)
def test_only_true_allows(result: Any) -> None:
    """Whatever JSON a policy gives: no crash, and no yes but ``true`` and ``{"allow": true}``."""
    try:
        allowed = read_result(result).allow
    except PolicyFault:
        allowed = False
    assert allowed == (result is True or (isinstance(result, dict) and result.get("allow") is True))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b'{"result": true}'),
        (302, b""),
        (204, b""),
        (200, b""),
        (200, b"true"),
        (200, b"<html>"),
        (200, b"[true]"),
    ],
)
def test_an_answer_that_is_none(status: int, body: bytes) -> None:
    """An error, a redirect, no JSON: a fault, even where it says true."""
    with pytest.raises(PolicyFault):
        read_answer(status, body)


def test_an_answer_has_its_decision_id() -> None:
    """As it stands in OPA's decision log; an odd one is not put into a header."""
    decision = read_answer(200, b'{"decision_id": "abc-1", "result": true}')
    assert (decision.id, decision_header(decision)) == ("abc-1", ((b"x-llm-policy-decision", b"abc-1"),))
    assert decision_header(read_answer(200, b'{"decision_id": "a\\nb", "result": true}')) == ()
    assert read_answer(200, b'{"decision_id": 7}') == Decision(False, undefined=True)


# -- obligations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "given", "most", "changed"),
    [
        ("/v1/chat/completions", {}, 5, {"max_tokens": 5}),
        ("/v1/chat/completions", {"max_tokens": 9}, 5, {"max_tokens": 5}),
        ("/v1/chat/completions", {"max_completion_tokens": 9}, 5, {"max_completion_tokens": 5}),
        ("/v1/chat/completions", {"max_tokens": 3}, 5, {}),
        ("/v1/completions", {"prompt": "p"}, 5, {"max_tokens": 5}),
        ("/v1/responses", {"input": "p"}, 5, {"max_output_tokens": 5}),
        ("/v1/responses", {"input": "p", "max_output_tokens": 9}, 5, {"max_output_tokens": 5}),
        ("/v1/messages", {"max_tokens": 9}, 5, {"max_tokens": 5}),
        ("/v1/embeddings", {"input": "p"}, 5, {}),
    ],
)
def test_an_output_limit_is_lowered_in_the_dialects_own_field(
    path: str, given: dict[str, Any], most: int, changed: dict[str, Any]
) -> None:
    """Never raised, and put in where there is none."""
    request = exchange_of({**CHAT, **given}, path).request
    assert request is not None
    assert changes(request, Obligations(max_tokens=most)) == changed


@given(st.none() | st.integers(1, 1000), st.integers(1, 1000))
def test_no_obligation_raises_a_limit(asked_for: int | None, most: int) -> None:
    """The limit afterwards is the lower of the two."""
    body = CHAT if asked_for is None else {**CHAT, "max_tokens": asked_for}
    request = exchange_of(body).request
    assert request is not None
    changed = request.with_fields(**changes(request, Obligations(max_tokens=most)))
    assert changed.max_tokens == min(most, asked_for or most)
