"""JSON answers from Anthropic's models without structured outputs: by a tool that they are made to call."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import Unsupported
from asgi_llm_gateway.wire import Route, parse

ADAPTER = AnthropicAdapter("anthropic", "https://api.example.com", "sk-ant-abcdefghijklmnop")
CHAT = Route("metered", "chat", "/v1/chat/completions")
OLD, BUDGET, NEW = "claude-3-5-sonnet-20241022", "claude-sonnet-4-20250514", "claude-sonnet-4-6"
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]}
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
ANY_OBJECT = {"type": "json_object"}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
USAGE = {"input_tokens": 5, "output_tokens": 7}


def request(**fields: Any) -> Any:
    """A parsed request."""
    return parse(CHAT, json.dumps({"model": "m", "messages": HI, **fields}).encode())


def sent(model: str, **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body that goes out, and what was left out of it."""
    found = ADAPTER.request(request(**fields), model)
    return json.loads(found.body), found.dropped


def answered(*content: dict[str, Any], stop_reason: str = "tool_use", **fields: Any) -> Any:
    """The one choice of the answer."""
    body = {"id": "m", "model": "c", "content": content, "stop_reason": stop_reason, "usage": USAGE}
    found = ADAPTER.response(request(**fields), json.dumps(body).encode())
    return json.loads(found.body)["choices"][0]


def use(name: str = "json_answer", input: Any = None, id: str = "toolu_1") -> dict[str, Any]:
    """A call."""
    return {"type": "tool_use", "id": id, "name": name, "input": {"a": 3} if input is None else input}


# -- what is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [OLD, BUDGET])
def test_an_answer_by_a_schema_is_a_call_that_is_forced(model: str) -> None:
    """With the whole schema as the tool's input."""
    body, dropped = sent(model, response_format=BY_SCHEMA)
    assert [(tool["name"], tool["input_schema"]) for tool in body["tools"]] == [("json_answer", SCHEMA)]
    assert body["tool_choice"] == {"type": "tool", "name": "json_answer", "disable_parallel_tool_use": True}
    assert ("system" in body, "output_config" in body, dropped) == (False, False, ())


def test_any_object_is_asked_for_in_the_same_way() -> None:
    """Of old models; newer ones are asked in words."""
    body, _ = sent(OLD, response_format=ANY_OBJECT)
    assert body["tools"][0]["input_schema"] == {"type": "object", "additionalProperties": True}
    assert body["tool_choice"]["name"] == "json_answer"
    for model in (NEW, "claude-opus-4-5"):
        assert "tools" not in sent(model, response_format=ANY_OBJECT)[0]
        assert "tools" not in sent(model, response_format={**BY_SCHEMA, "json_schema": {"schema": SCHEMA}})[0]


def test_the_clients_own_tools_may_be_called_instead() -> None:
    """One of them, or the answer; where none may be, the answer alone."""
    for fields, choice in (
        ({}, {"type": "any"}),
        ({"tool_choice": "auto"}, {"type": "any"}),
        ({"parallel_tool_calls": False}, {"type": "any", "disable_parallel_tool_use": True}),
        ({"tool_choice": "none"}, {"type": "tool", "name": "json_answer", "disable_parallel_tool_use": True}),
    ):
        body, _ = sent(OLD, response_format=BY_SCHEMA, tools=[LOOK], **fields)
        assert [tool["name"] for tool in body["tools"]] == ["look", "json_answer"]
        assert body["tool_choice"] == choice


@pytest.mark.parametrize("format", [BY_SCHEMA, ANY_OBJECT])
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "look"}}, {"type": "tool", "name": "look"}),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [LOOK]}}, {"type": "any"}),
    ],
)
def test_a_call_that_the_client_forces_has_no_format(format: Any, choice: Any, expected: Any) -> None:
    """The answer is that call."""
    body, _ = sent(OLD, response_format=format, tools=[LOOK], tool_choice=choice)
    assert ([tool["name"] for tool in body["tools"]], body["tool_choice"]) == (["look"], expected)


def test_a_name_that_is_taken_is_left_to_the_client() -> None:
    """Also in the letters that the provider takes."""
    mine = [{"type": "function", "function": {"name": name}} for name in ("json_answer", "json_answer_")]
    body, _ = sent(OLD, response_format=BY_SCHEMA, tools=mine)
    assert [tool["name"] for tool in body["tools"]] == ["json_answer", "json_answer_", "json_answer__"]
    choice = answered(use("json_answer"), tools=mine, response_format=BY_SCHEMA)
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "json_answer"
    assert answered(use("json_answer__"), tools=mine, response_format=BY_SCHEMA)["message"]["content"] == '{"a":3}'


def test_a_thinking_model_can_not_be_forced() -> None:
    """What is only a wish to think gives way, and the client is told; what is not refuses the schema."""
    body, dropped = sent(BUDGET, response_format=BY_SCHEMA, reasoning_effort="high", max_tokens=9000)
    assert ("thinking" in body, dropped) == (False, ("reasoning_effort",))
    thinking = {"type": "enabled", "budget_tokens": 1024}
    with pytest.raises(Unsupported, match="thinks") as caught:
        sent(BUDGET, response_format=BY_SCHEMA, thinking=thinking)
    assert caught.value.param == "response_format"
    body, _ = sent(BUDGET, response_format=ANY_OBJECT, thinking=thinking)
    assert ("tools" in body, "JSON object" in body["system"][0]["text"]) == (False, True)
    assert "tools" in sent(BUDGET, response_format=BY_SCHEMA, thinking={"type": "disabled"})[0]


@pytest.mark.parametrize("schema", [{"type": "array", "items": {}}, {"type": ["object", "null"]}, {"anyOf": [SCHEMA]}])
def test_a_schema_of_no_one_object_is_refused(schema: Any) -> None:
    """A call's input is one."""
    with pytest.raises(Unsupported, match="one object") as caught:
        sent(OLD, response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert caught.value.param == "response_format"


def test_earlier_calls_need_no_stand_in() -> None:
    """The answer's tool is one."""
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "r"}]  # fmt: skip
    body, _ = sent(OLD, response_format=BY_SCHEMA, messages=said)
    assert [tool["name"] for tool in body["tools"]] == ["json_answer"]


# -- what is answered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [BY_SCHEMA, ANY_OBJECT])
def test_the_calls_input_is_the_answer(format: Any) -> None:
    """And the client never hears of a call."""
    choice = answered(use(input={"b": [1, "ü"]}), response_format=format)
    assert choice["message"] == {"role": "assistant", "content": '{"b":[1,"ü"]}', "refusal": None}
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("content", "stop_reason", "expected", "reason"),
    [
        ([use(), use(input={"a": 4})], "tool_use", '{"a":3}', "stop"),
        ([{"type": "text", "text": "Here:"}, use()], "tool_use", '{"a":3}', "stop"),
        ([use(input={})], "tool_use", "{}", "stop"),
        ([use(input={})], "max_tokens", "{}", "length"),
        ([{"type": "text", "text": "No."}], "refusal", "No.", "content_filter"),
        ([{"type": "text", "text": "No."}], "end_turn", "No.", "stop"),
    ],
)
def test_an_answer_is_given_once(content: list[Any], stop_reason: str, expected: str, reason: str) -> None:
    """With no words around it; an answer in words alone is one too."""
    choice = answered(*content, stop_reason=stop_reason, response_format=BY_SCHEMA)
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected, reason)
    assert "tool_calls" not in choice["message"]


def test_a_call_of_the_clients_own_stays_one() -> None:
    """Also beside the answer."""
    for content, expected in (([use("look", {}, "t")], None), ([use(), use("look", {}, "t")], '{"a":3}')):
        choice = answered(*content, response_format=BY_SCHEMA, tools=[LOOK])
        assert [call["id"] for call in choice["message"]["tool_calls"]] == ["t"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "tool_calls")


def test_without_a_format_it_is_a_call_like_any_other() -> None:
    """The name means nothing by itself."""
    choice = answered(use())
    assert (choice["finish_reason"], len(choice["message"]["tool_calls"])) == ("tool_calls", 1)


# -- in a stream -------------------------------------------------------------------------------------------------------


def events(*blocks: tuple[str, list[str]], stop_reason: str = "tool_use") -> bytes:
    """A stream of calls, by name and pieces of their input."""
    said: list[dict[str, Any]] = [{"type": "message_start", "message": {"id": "m", "model": "c", "usage": USAGE}}]
    for at, (name, pieces) in enumerate(blocks):
        said.append({"type": "content_block_start", "index": at, "content_block": use(name, {}, f"toolu_{at}")})
        for piece in pieces:
            delta = {"type": "input_json_delta", "partial_json": piece}
            said.append({"type": "content_block_delta", "index": at, "delta": delta})
        said.append({"type": "content_block_stop", "index": at})
    said.append({"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": 3}})
    said.append({"type": "message_stop"})
    return b"".join([b"event: %b\ndata: %b\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in said])


def read(said: bytes, places: list[int], **fields: Any) -> tuple[str, list[str], str]:
    """The content, the calls' names, and the reason that a client reads."""
    stream = ADAPTER.stream(request(stream=True, **fields))
    edges = [0, *sorted(min(place, len(said)) for place in places), len(said)]
    out = b"".join([stream.feed(said[a:b]) for a, b in pairwise(edges)]) + stream.finish()
    assert out.endswith(b"data: [DONE]\n\n")
    chunks = [json.loads(line[6:])["choices"][0] for line in out.decode().split("\n\n")[:-2]]
    content = "".join(chunk["delta"].get("content") or "" for chunk in chunks)
    names = [call["function"]["name"] for chunk in chunks for call in chunk["delta"].get("tool_calls", ())
             if "id" in call]  # fmt: skip
    reasons = [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"]]
    assert len(reasons) == 1
    return content, names, reasons[0]


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=4),
    st.integers(1, 9),
    st.lists(st.integers(0, 3000), max_size=6),
)
def test_a_streamed_answer_is_the_calls_input(told: dict[str, Any], size: int, places: list[int]) -> None:
    """Piece by piece, however the stream is cut."""
    text = json.dumps(told)
    pieces = ["", *(text[at : at + size] for at in range(0, len(text), size))]
    content, names, reason = read(events(("json_answer", pieces)), places, response_format=BY_SCHEMA)
    assert (content, names, reason) == (text, [], "stop")


@pytest.mark.parametrize(
    ("blocks", "stop_reason", "expected"),
    [
        ([("json_answer", [])], "tool_use", ("{}", [], "stop")),
        ([("json_answer", ['{"a":1}']), ("json_answer", ['{"a":2}'])], "tool_use", ('{"a":1}', [], "stop")),
        ([("look", []), ("json_answer", ['{"a":1}'])], "tool_use", ('{"a":1}', ["look"], "tool_calls")),
        ([("look", [])], "tool_use", ("", ["look"], "tool_calls")),
        ([("json_answer", ['{"a":'])], "max_tokens", ('{"a":', [], "length")),
    ],
)
def test_a_streamed_answer_among_others(blocks: list[Any], stop_reason: str, expected: Any) -> None:
    """Once, and beside calls of the client's own."""
    said = events(*blocks, stop_reason=stop_reason)
    assert read(said, [], response_format=BY_SCHEMA, tools=[LOOK]) == expected
