"""Chat completions as responses: the whole object, as the official SDK's typed model reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from asgi_llm_gateway.errors import GatewayError, UpstreamError

from .responses import FRONT, TOLD, USAGE, function, request


def completion(message: dict[str, Any] | None = None, finish: Any = "stop", **more: Any) -> dict[str, Any]:
    """A chat completion."""
    choice = {"index": 0, "message": message or {"role": "assistant", "content": "hi"}, "finish_reason": finish}
    told: dict[str, Any] = {"id": "c", "object": "chat.completion", "created": 1700000000, "model": "real-model",
                            "choices": [choice], "usage": USAGE}  # fmt: skip
    return {**told, **more}


def response(told: dict[str, Any], **fields: Any) -> Response:
    """The response, validated strictly."""
    raw = FRONT.response(request(**fields), json.dumps(told).encode())
    return Response.model_validate_json(raw, strict=True)


def test_the_plainest_answer() -> None:
    """Text, model, status and usage with its details."""
    found = response(completion())
    assert (found.output_text, found.model, found.status) == ("hi", "real-model", "completed")
    assert (found.created_at, found.error, found.incomplete_details) == (1700000000, None, None)
    assert found.usage is not None
    assert found.usage.to_dict() == TOLD
    assert found.id.startswith("resp_")
    assert [item.id for item in found.output] == [f"msg_{found.id.removeprefix('resp_')}0000"]


def test_ids_are_of_one_response_only() -> None:
    """Two answers to one request have none in common."""
    one, other = response(completion()), response(completion())
    assert one.id != other.id
    assert one.output[0].id != other.output[0].id


def test_what_was_asked_is_told_again() -> None:
    """And what was served is told as it was: nothing is stored, whatever was asked."""
    told: dict[str, Any] = {
        "instructions": "be brief", "max_output_tokens": 9, "temperature": 0.5, "top_p": 0.25, "top_logprobs": 2,
        "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s", "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"}, "tools": [function(strict=True, description="d")],
        "tool_choice": {"type": "function", "name": "weather"},
    }  # fmt: skip
    found = response(completion(), store=True, truncation="auto", **told).to_dict()
    assert {name: found[name] for name in told} == told
    assert (found["store"], found["truncation"], found["background"]) == (False, "disabled", False)
    assert (found["previous_response_id"], found["text"]) == (None, {"format": {"type": "text"}, "verbosity": "medium"})


def test_a_format_is_told_again() -> None:
    """As it was written, flat."""
    wanted = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    assert response(completion(), text={"format": wanted}).to_dict()["text"] == {
        "format": wanted,
        "verbosity": "medium",
    }


def test_the_limit_that_the_gateway_chose_is_told() -> None:
    """So that a client can see why its answer ended."""
    asked = request().with_fields(max_output_tokens=5)
    raw = FRONT.response(asked, json.dumps(completion(finish="length")).encode())
    assert Response.model_validate_json(raw, strict=True).max_output_tokens == 5


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("function_call", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
        (None, "completed", None),
        ("some_new_word", "completed", None),
    ],
)
def test_why_it_ended(finish: Any, status: str, reason: str | None) -> None:
    """A cut answer is incomplete, and so is its message."""
    found = response(completion(finish=finish))
    assert (found.status, found.incomplete_details and found.incomplete_details.reason) == (status, reason)
    (message,) = found.output
    assert message.type == "message"
    assert message.status == status
    assert (found.completed_at is not None) == (status == "completed")


def test_thoughts_text_and_calls_are_items_in_order() -> None:
    """A call has an id of its own and the one that its output is sent for."""
    calls = [
        {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "call_b", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    found = response(completion({"reasoning_content": "hm", "content": "so", "tool_calls": calls}, "tool_calls"))
    thought, message, one, other = found.output
    assert thought.type == "reasoning"
    assert [part.text for part in thought.summary] == ["hm"]
    assert message.type == "message"
    assert one.type == other.type == "function_call"
    assert (one.call_id, one.name, one.arguments) == ("call_a", "f", '{"x": 1}')
    assert (other.call_id, other.arguments) == ("call_b", "{}")  # no words are no arguments
    assert one.id is not None
    assert one.id.startswith("fc_")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_under_either_name(name: str) -> None:
    """Vendors differ."""
    (thought, _) = response(completion({"content": "a", name: "hm"})).output
    assert thought.type == "reasoning"


def test_a_refusal_is_a_part() -> None:
    """Beside what was said."""
    (message,) = response(completion({"content": "I", "refusal": "will not"})).output
    assert message.type == "message"
    assert [part.type for part in message.content] == ["output_text", "refusal"]


def test_an_answer_without_a_word_has_no_message() -> None:
    """As when all of the limit was thought away."""
    found = response(completion({"content": None, "reasoning_content": "hm"}, "length"))
    assert [item.type for item in found.output] == ["reasoning"]
    assert found.output_text == ""


def test_sources_and_probabilities_belong_to_the_text() -> None:
    """In the shape that this API has for them."""
    source = {
        "type": "url_citation",
        "url_citation": {"start_index": 0, "end_index": 2, "title": "t", "url": "http://u"},
    }
    entry = {
        "token": "hi",
        "bytes": None,
        "logprob": -0.5,
        "top_logprobs": [{"token": "hi", "bytes": [104], "logprob": -1}],
    }
    told = completion({"content": "hi", "annotations": [source, {"type": "unknown"}]})
    told["choices"][0]["logprobs"] = {"content": [entry], "refusal": None}
    (message,) = response(told).output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.annotations[0].to_dict() == {"type": "url_citation", **source["url_citation"]}  # type: ignore[dict-item]
    assert len(part.annotations) == 1
    assert part.logprobs is not None
    assert part.logprobs[0].bytes == [104, 105]
    assert part.logprobs[0].top_logprobs[0].token == "hi"


def test_the_older_call_is_a_call() -> None:
    """``function_call`` of servers that never learnt the newer."""
    (item,) = response(completion({"content": None, "function_call": {"name": "f", "arguments": "{}"}})).output
    assert item.type == "function_call"
    assert item.call_id.startswith("call_")


def test_calls_without_an_id_get_one_each() -> None:
    """Their outputs must be told apart."""
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}] * 2
    one, other = response(completion({"tool_calls": calls})).output
    assert one.type == other.type == "function_call"
    assert one.call_id != other.call_id
    assert json.loads(one.arguments) == {"x": 1}


def test_usage_that_was_not_told_is_null() -> None:
    """Not zero."""
    assert response(completion(usage=None)).usage is None


@pytest.mark.parametrize("tier", [("default", "default"), ("on_demand", None), (None, None)])
def test_the_tier_is_told_where_the_api_has_a_word_for_it(tier: tuple[Any, Any]) -> None:
    """Vendors have tiers of their own."""
    assert response(completion(service_tier=tier[0])).service_tier == tier[1]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[{}]}', b'{"choices":"x"}'])
def test_what_is_no_completion_is_an_upstream_error(body: bytes) -> None:
    """Never an empty answer."""
    with pytest.raises(UpstreamError) as caught:
        FRONT.response(request(), body)
    assert caught.value.http_status == 502


def test_a_schema_of_any_depth_is_told_again() -> None:
    """The answer has it deeper than the request: what could be read must be written."""
    schema: dict[str, Any] = {}
    for _ in range(249):
        schema = {"a": schema}
    found = FRONT.response(request(text={"format": {"type": "json_schema", "name": "n", "schema": schema}}),
                           json.dumps(completion()).encode())  # fmt: skip
    assert json.loads(found)["text"]["format"]["schema"] == schema


WORDS = st.sampled_from(["", "a", "text", "stop", "length", "{}", "url_citation", "assistant"])
NAMES = st.sampled_from(
    ["content", "refusal", "reasoning", "tool_calls", "function", "function_call", "name", "arguments", "id", "annotations",
     "url_citation", "url", "start_index", "end_index", "title", "text", "type", "token", "bytes", "logprob"]
)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(NAMES, ANYTHING, max_size=5), ANYTHING, ANYTHING, ANYTHING)
def test_any_answer_is_read_or_refused(message: dict[str, Any], finish: Any, usage: Any, logprobs: Any) -> None:
    """And what is written is a response."""
    told = completion(message, finish, usage=usage)
    told["choices"][0]["logprobs"] = {"content": logprobs}
    try:
        response(told)
    except GatewayError as error:
        refusal = error
        assert refusal.http_status == 502
