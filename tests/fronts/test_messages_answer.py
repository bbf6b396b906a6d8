"""A whole chat completion as a message, read by the official SDK's own types."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_llm_gateway.errors import GatewayError, UpstreamError

from .messages_parts import FRONT, answered, completion, content_of, request

THINKS: dict[str, Any] = {"thinking": {"type": "adaptive"}}


def tool(arguments: Any, id: str | None = "call_1", name: str = "weather") -> dict[str, Any]:
    """A call in an answer."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_an_answer_is_a_message() -> None:
    """Text, id, model, reason and counts."""
    message = answered(completion({"content": "hi"}))
    assert (message.id, message.role, message.type, message.model) == ("msg_abc", "assistant", "message", "gpt-x")
    assert content_of(message) == ["hi"]
    assert (message.stop_reason, message.stop_sequence, message.stop_details) == ("end_turn", None, None)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 3)


@pytest.mark.parametrize(
    ("told", "wanted"),
    [("chatcmpl-9", "msg_9"), ("msg_01", "msg_01"), ("gen-1.2/3", "msg_gen-1_2_3"), ("a" * 300, "msg_" + "a" * 100)],
)
def test_an_id_stays_recognisable(told: str, wanted: str) -> None:
    """It has Anthropic's beginning and letters that are safe in a log."""
    assert answered(completion({"content": "hi"}, id=told)).id == wanted


def test_what_is_missing_is_made_up() -> None:
    """An id, the model that was asked for, and an estimate of the tokens: the dialect always tells them."""
    message = answered(completion({"content": "some words"}, id=None, model=None, usage=None))
    assert message.id.startswith("msg_")
    assert message.model == "m"
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0


# -- why it ended ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finish", "calls", "reason"),
    [
        ("stop", [], "end_turn"),
        ("length", [], "max_tokens"),
        ("content_filter", [], "refusal"),
        ("tool_calls", [tool("{}")], "tool_use"),
        ("function_call", [tool("{}")], "tool_use"),
        ("stop", [tool("{}")], "tool_use"),
        ("length", [tool("{}")], "max_tokens"),
        ("tool_calls", [], "end_turn"),
        (None, [], "end_turn"),
        (None, [tool("{}")], "tool_use"),
        ("eos", [], "end_turn"),
        ([], [], "end_turn"),
    ],
)
def test_the_reason_is_one_that_clients_know(finish: Any, calls: list[Any], reason: str) -> None:
    """No word of chat's gets through, and ``tool_use`` goes with a call."""
    assert answered(completion({"content": "a", "tool_calls": calls}, finish)).stop_reason == reason


def test_a_refusal_is_told_in_text_and_in_details() -> None:
    """Clients that know no details see the words all the same."""
    message = answered(completion({"content": None, "refusal": "I can't."}))
    assert (message.stop_reason, content_of(message)) == ("refusal", ["I can't."])
    assert message.stop_details is not None
    assert (message.stop_details.explanation, message.stop_details.category) == ("I can't.", None)
    filtered = answered(completion({"content": ""}, "content_filter"))
    assert (filtered.stop_reason, filtered.content) == ("refusal", [])


def test_the_stop_sequence_is_told_where_the_server_does() -> None:
    """vLLM names what matched, which may be a token of the model's; it counts only if the client asked for it."""
    body = json.loads(completion({"content": "a"}))
    for matched, reason in (("END", "stop_sequence"), ("</s>", "end_turn"), (2, "end_turn")):
        body["choices"][0]["stop_reason"] = matched
        message = answered(json.dumps(body).encode(), stop_sequences=["END"])
        assert message.stop_reason == reason
        assert message.stop_sequence == ("END" if reason == "stop_sequence" else None)


# -- content -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "", "\n\n", []])
def test_no_empty_text_comes(content: Any) -> None:
    """Anthropic refuses it when the client sends it back."""
    assert answered(completion({"content": content})).content == []
    assert content_of(answered(completion({"content": content, "tool_calls": [tool("{}")]}))) == [("weather", {})]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_come_first_if_they_were_asked_for(name: str) -> None:
    """Under either name; a client that did not ask for thinking, or not to see it, gets none, as at Anthropic."""
    body = completion({"content": "hi", name: "hm"})
    assert content_of(answered(body, **THINKS)) == [("thinking", "hm"), "hi"]
    for thinking in (None, {"type": "disabled"}, {"type": "adaptive", "display": "omitted"}):
        assert content_of(answered(body, thinking=thinking)) == ["hi"]


def test_content_in_parts_is_read() -> None:
    """As Mistral's reasoning models send it; parts of other kinds are passed over."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}, {"type": "x"}, 5]},
        {"type": "text", "text": "hi"},
        {"type": "text"},
        "x",
    ]
    assert content_of(answered(completion({"content": parts}), **THINKS)) == [("thinking", "hm"), "hi"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ('{"city":"Paris"}', {"city": "Paris"}),
        ("{}", {}),
        ("", {}),
        ("  ", {}),
        (None, {}),
        ("null", {}),
        ({"city": "Paris"}, {"city": "Paris"}),
        ('{"city":', {"INVALID_JSON": '{"city":'}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ('"a"', {"INVALID_JSON": '"a"'}),
        ("{}{}", {"INVALID_JSON": "{}{}"}),
        (5, {}),
    ],
)
def test_arguments_are_always_an_object(arguments: Any, wanted: Any) -> None:
    """Whatever the model made: what is none is told in one, so that the client can answer it."""
    (called,) = answered(completion({"content": None, "tool_calls": [tool(arguments)]})).content
    assert called.type == "tool_use"
    assert called.input == wanted


def test_arguments_keep_every_digit() -> None:
    """They are the model's own text: no number is rounded and no key moved."""
    text = '{"z": 123456789012345678901234567890, "a": 1.10}'
    body = FRONT.response(request(), completion({"tool_calls": [tool(text)]}))
    assert text.encode() in body


def test_calls_keep_their_ids_and_their_order() -> None:
    """The ids go back to the provider that made them, so they stay; one that is missing is made up."""
    calls = [tool("{}", "call_x.1"), tool("{}", None), tool("{}", ""), {"type": "custom", "custom": {}}, "x"]
    ids = [block.id for block in answered(completion({"tool_calls": calls})).content if block.type == "tool_use"]
    assert ids[0] == "call_x.1"
    assert [id[:6] for id in ids[1:]] == ["toolu_"] * 2
    assert len({*ids}) == 3


def test_a_function_call_of_old_is_a_call() -> None:
    """As servers answer that know no tools yet."""
    message = answered(
        completion({"content": None, "function_call": {"name": "a", "arguments": "{}"}}, "function_call")
    )
    assert (content_of(message), message.stop_reason) == ([("a", {})], "tool_use")


def test_a_name_that_was_cut_is_whole_again() -> None:
    """The client gets the name that it declared."""
    name = "mcp__" + "a" * 100
    tools = [{"name": name, "input_schema": {"type": "object"}}]
    sent = FRONT.request(request(tools=tools)).data["tools"][0]["function"]["name"]
    (called,) = answered(completion({"tool_calls": [tool("{}", name=sent)]}), tools=tools).content
    assert called.type == "tool_use"
    assert called.name == name


# -- usage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cached", "written", "wanted"),
    [(0, 0, 100), (30, 0, 70), (30, 20, 50), (100, 0, 0), (90, 90, 0), (None, None, 100)],
)
def test_cached_tokens_are_not_counted_twice(cached: Any, written: Any, wanted: int) -> None:
    """``input_tokens`` leaves them out, and is never negative."""
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    usage = {"prompt_tokens": 100, "completion_tokens": 9, "total_tokens": 109, "prompt_tokens_details": details,
             "completion_tokens_details": {"reasoning_tokens": 4}}  # fmt: skip
    told = answered(completion({"content": "a"}, usage=usage)).usage
    assert (told.input_tokens, told.output_tokens) == (wanted, 9)
    assert (told.cache_read_input_tokens, told.cache_creation_input_tokens) == (cached or 0, written or 0)
    assert told.output_tokens_details is not None
    assert told.output_tokens_details.thinking_tokens == 4


@pytest.mark.parametrize(
    ("tier", "wanted"), [("priority", "priority"), ("default", "standard"), ("flex", None), (1, None)]
)
def test_the_tier_that_served_is_told(tier: Any, wanted: str | None) -> None:
    """In Anthropic's words, where they have one."""
    assert answered(completion({"content": "a"}, service_tier=tier)).usage.service_tier == wanted


# -- what is no answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[5]}', b'{"choices":[{"message":null}]}']
)
def test_what_is_no_answer_is_the_providers_fault(body: bytes) -> None:
    """502, and no traceback."""
    with pytest.raises(UpstreamError) as failed:
        FRONT.response(request(), body)
    assert failed.value.http_status == 502


def test_a_failure_in_the_middle_is_told_as_one() -> None:
    """OpenRouter answers 200 and says in the choice that it failed: that is no message."""
    body = {"choices": [{"message": {"content": "half"}, "error": {"code": 429, "message": "slow down"}}]}
    with pytest.raises(GatewayError, match="slow down") as failed:
        FRONT.response(request(), json.dumps(body).encode())
    assert failed.value.as_dict("anthropic")["error"]["type"] == "rate_limit_error"
    with pytest.raises(UpstreamError):
        FRONT.response(request(), completion({"content": "half"}, "error"))


def test_arguments_without_a_bottom_are_the_providers_fault() -> None:
    """An object of three hundred objects in each other can't be written."""
    deep = b'{"a":' * 300 + b"1" + b"}" * 300
    body = b'{"choices":[{"message":{"tool_calls":[{"function":{"name":"n","arguments":%b}}]}}]}' % deep
    with pytest.raises(UpstreamError, match="too deeply"):
        FRONT.response(request(), body)
