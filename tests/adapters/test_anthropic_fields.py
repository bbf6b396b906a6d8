"""A chat request's fields in Anthropic's words: each row of the mapping, what is refused, and what is left out and told."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_llm_gateway.adapters.base import Unsupported
from asgi_llm_gateway.errors import BadRequest, GatewayError

from .anthropic_asking import CACHED, HI, NEW, OLD, TOOL, call, image, sent, text, user


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        (NEW, {"max_tokens": 5}, {"max_tokens": 5}),
        (NEW, {"max_completion_tokens": 6}, {"max_tokens": 6}),
        (NEW, {"stream": True, "stream_options": {"include_usage": True}}, {"stream": True, "stream_options": None}),
        (NEW, {"temperature": 0.3}, {"temperature": 0.3}),
        (NEW, {"temperature": 0}, {"temperature": 0}),
        (NEW, {"top_p": 0.5}, {"top_p": 0.5}),
        (NEW, {"top_k": 5}, {"top_k": 5}),
        (NEW, {"temperature": 0.3, "top_p": 1}, {"temperature": 0.3, "top_p": None}),
        ("claude-opus-5", {"temperature": 1}, {"temperature": None}),
        (NEW, {"stop": "x"}, {"stop_sequences": ["x"]}),
        (NEW, {"stop": ["x", "y"]}, {"stop_sequences": ["x", "y"]}),
        (NEW, {"stop": []}, {"stop_sequences": None}),
        (NEW, {"user": "u-1"}, {"metadata": {"user_id": "u-1"}, "user": None}),
        (NEW, {"user": "u-1", "safety_identifier": "abc"}, {"metadata": {"user_id": "abc"}}),
        (NEW, {"service_tier": "auto"}, {"service_tier": "auto"}),
        (NEW, {"service_tier": "default"}, {"service_tier": "standard_only"}),
        (NEW, {"cache_control": CACHED}, {"cache_control": CACHED}),
        (NEW, {"n": 1, "logprobs": False, "logit_bias": {}, "modalities": ["text"]}, {"n": None, "logprobs": None}),
        (NEW, {"seed": None, "tools": None, "stop": None, "reasoning_effort": None}, {"seed": None, "tools": None}),
        (NEW, {"store": False, "presence_penalty": 0, "metadata": {}}, {"store": None, "metadata": None}),
        # thinking
        (NEW, {"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"},
                                                "thinking": {"type": "adaptive", "display": "summarized"}}),
        (NEW, {"reasoning_effort": "max"}, {"output_config": {"effort": "max"}}),
        (NEW, {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}, "output_config": None}),
        (NEW, {"thinking": {"type": "enabled", "budget_tokens": 2000}}, {"thinking": {"type": "enabled",
                                                                                      "budget_tokens": 2000}}),
        ("claude-opus-4-5", {"reasoning_effort": "low"}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ("claude-opus-4-5", {"reasoning_effort": "max", "max_tokens": 9000},
         {"thinking": {"type": "enabled", "budget_tokens": 8999}}),
        ("claude-opus-4-5", {"reasoning_effort": "none"}, {"thinking": None}),
        ("claude-opus-4-5", {"reasoning_effort": "low", "temperature": 1}, {"temperature": 1}),
        # tools
        (NEW, {"tools": []}, {"tools": None}),
        (NEW, {"tools": [TOOL]}, {"tools": [{"name": "look", "input_schema": TOOL["function"]["parameters"]}],  # type: ignore[index]
                                  "tool_choice": None}),
        (NEW, {"tools": [{"type": "function", "function": {"name": "x", "description": "d"}, "cache_control": CACHED}]},
         {"tools": [{"name": "x", "description": "d", "input_schema": {"type": "object", "properties": {}},
                     "cache_control": CACHED}]}),
        (NEW, {"tools": [{"type": "function", "function": {"name": "x", "strict": True, "parameters": {
            "type": "object", "properties": {"a": {"type": "integer"}}}}}]},
         {"tools": [{"name": "x", "strict": True, "input_schema": {
             "type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}}]}),
        (NEW, {"tools": [TOOL], "tool_choice": "auto"}, {"tool_choice": {"type": "auto"}}),
        (NEW, {"tools": [TOOL], "tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
        (NEW, {"tools": [TOOL], "tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        (NEW, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
         {"tool_choice": {"type": "tool", "name": "look"}}),
        (NEW, {"tools": [TOOL, {"type": "function", "function": {"name": "x"}}], "tool_choice": {
            "type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
                {"type": "function", "function": {"name": "x"}}]}}},
         {"tools": [{"name": "x", "input_schema": {"type": "object", "properties": {}}}],
          "tool_choice": {"type": "any"}}),
        (NEW, {"tool_choice": "auto"}, {"tool_choice": None}),
        (NEW, {"tools": [TOOL], "parallel_tool_calls": True}, {"tool_choice": None}),
        (NEW, {"tools": [TOOL], "parallel_tool_calls": False},
         {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
        (NEW, {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
         {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}}),
        (NEW, {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": False}, {"tool_choice": {"type": "none"}}),
        (NEW, {"parallel_tool_calls": False}, {"tool_choice": None}),
        # a forced call can't be thought about: only the effort is told
        (NEW, {"tools": [TOOL], "tool_choice": "required", "reasoning_effort": "high"},
         {"thinking": None, "output_config": {"effort": "high"}}),
        # the answer's format
        (NEW, {"response_format": {"type": "text"}}, {"output_config": None, "system": None}),
        (NEW, {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "description": "d", "schema": {
            "type": "object", "properties": {"a": {"type": "string"}}}}}, "reasoning_effort": "low"},
         {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {
             "type": "object", "properties": {"a": {"type": "string"}}, "description": "d",
             "additionalProperties": False}}}}),
    ],
)  # fmt: skip
def test_a_field_in_anthropics_words(model: str, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Nothing is left out, so nothing is told to be."""
    body, dropped = sent(model, **fields)
    assert {name: body.get(name) for name in expected} == expected
    assert dropped == ()


def test_a_json_object_is_asked_for_in_words() -> None:
    """There is no other way; the client's own system comes first."""
    body, dropped = sent(response_format={"type": "json_object"}, messages=[{"role": "system", "content": "s"}, *HI])
    assert (body["system"][0], len(body["system"]), dropped) == (text("s"), 2, ())
    assert "JSON object" in body["system"][1]["text"]


@pytest.mark.parametrize(
    ("model", "fields", "dropped"),
    [
        (NEW, {"seed": 0}, ["seed"]),
        (NEW, {"frequency_penalty": 0.5, "presence_penalty": -1}, ["frequency_penalty", "presence_penalty"]),
        (NEW, {"prediction": {"type": "content", "content": "x"}, "verbosity": "low"}, ["prediction", "verbosity"]),
        (NEW, {"store": True, "metadata": {"a": "b"}}, ["store", "metadata"]),
        (NEW, {"prompt_cache_key": "k", "prompt_cache_retention": "24h"}, ["prompt_cache_key", "prompt_cache_retention"]),
        (NEW, {"temperature": 1.5}, ["temperature"]),
        (NEW, {"temperature": 0.5, "top_p": 0.5}, ["top_p"]),
        ("claude-opus-5", {"temperature": 0.5, "top_p": 0.5, "top_k": 3}, ["temperature", "top_p", "top_k"]),
        (NEW, {"temperature": 0.5, "reasoning_effort": "low"}, ["temperature"]),
        (NEW, {"stop": ["x", " \n", ""]}, ["stop"]),
        (NEW, {"user": "jane@example.com"}, ["user"]),
        (NEW, {"user": "Jane Doe"}, ["user"]),
        (NEW, {"user": "0049-170-123456"}, ["user"]),
        (NEW, {"service_tier": "flex"}, ["service_tier"]),
        ("claude-opus-5-5", {"reasoning_effort": "none"}, ["reasoning_effort"]),
        ("claude-opus-4-5", {"reasoning_effort": "high", "max_tokens": 1024}, ["reasoning_effort"]),
        ("claude-opus-4-5", {"reasoning_effort": "high", "tools": [TOOL], "tool_choice": "required"}, ["reasoning_effort"]),
        (OLD, {"tools": [{"type": "function", "function": {"name": "x", "strict": True}}]}, ["tools.strict"]),
        (NEW, {"messages": [{"role": "user", "name": "jane", "content": "x"}]}, ["messages.name"]),
        (NEW, {"messages": [user(image("https://x/y.png", detail="low"))]}, ["image_url.detail"]),
        (NEW, {"messages": [*HI, {"role": "assistant", "content": "x", "reasoning_content": "y", "annotations": []}, *HI]},
         ["messages.reasoning_content"]),
        (NEW, {"messages": [{**HI[0], "x\r\ny: z": 1}]}, ["messages.?"]),
        (NEW, {"messages": [user(text("x", prompt_cache_breakpoint={"mode": "explicit"}))]}, ["prompt_cache_breakpoint"]),
        (NEW, {"messages": [*HI, {"role": "assistant", "content": "x", "thinking_blocks": [
            {"type": "thinking", "thinking": "y"}]}, *HI]}, ["messages.thinking_blocks"]),
    ],
)  # fmt: skip
def test_a_hint_is_left_out_and_told(model: str, fields: dict[str, Any], dropped: list[str]) -> None:
    """Never in silence."""
    body, told = sent(model, **fields)
    assert list(told) == dropped
    for name in dropped:
        assert body.get(name) in (None, 1)  # a temperature above 1 is 1


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        (NEW, {"n": 2}, "n"),
        (NEW, {"logprobs": True}, "logprobs"),
        (NEW, {"top_logprobs": 3}, "top_logprobs"),
        (NEW, {"logit_bias": {"1": 2}}, "logit_bias"),
        (NEW, {"modalities": ["text", "audio"]}, "modalities"),
        (NEW, {"audio": {"voice": "a"}}, "audio"),
        (NEW, {"web_search_options": {}}, "web_search_options"),
        (NEW, {"functions": [{"name": "x"}]}, "functions"),
        (NEW, {"function_call": "auto"}, "function_call"),
        (NEW, {"moderation": {"model": "x"}}, "moderation"),
        (NEW, {"mcp_servers": []}, "mcp_servers"),
        (NEW, {"speed": "fast"}, "speed"),
        (NEW, {"best_thing": 1}, "best_thing"),
        (NEW, {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        (NEW, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        (NEW, {"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice"),
        ("claude-opus-5-5", {"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        (OLD, {"reasoning_effort": "low"}, "reasoning_effort"),
        (OLD, {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string"}}}}, "response_format"),
        (NEW, {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}}, "response_format"),
        (NEW, {"messages": [{"role": "function", "name": "x", "content": "y"}]}, "messages[0].role"),
        (NEW, {"messages": [user({"type": "input_audio", "input_audio": {}})]}, "messages[0].content[0].type"),
        (NEW, {"messages": [user({"type": ["text"]})]}, "messages[0].content[0].type"),
        (NEW, {"messages": [user({"type": "file", "file": {"file_id": "f"}})]}, "messages[0].content[0].file.file_id"),
        (NEW, {"messages": [user({"type": "file", "file": {"file_data": "data:text/plain;base64,YQ=="}})]},
         "messages[0].content[0].file.file_data"),
        (NEW, {"messages": [user(image("data:image/bmp;base64,YQ=="))]}, "messages[0].content[0].image_url.url"),
        (NEW, {"messages": [*HI, {"role": "assistant", "content": None, "audio": {"id": "a"}}]}, "messages[1].audio"),
        (NEW, {"messages": [*HI, {"role": "assistant", "content": None, "function_call": {"name": "a"}}]},
         "messages[1].function_call"),
        (NEW, {"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "custom",
                                                                                       "custom": {}}]}]},
         "messages[1].tool_calls[0].type"),
        (NEW, {"messages": [*HI, {"role": "assistant", "content": "{"}]}, "messages"),
    ],
)  # fmt: skip
def test_what_has_no_word_is_refused_by_name(model: str, fields: dict[str, Any], param: str) -> None:
    """400, and the client knows which field it was."""
    with pytest.raises(Unsupported) as caught:
        sent(model, **fields)
    assert (caught.value.http_status, caught.value.error_code) == (400, "unsupported_parameter")
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": 7}, {"stop": [7]}, {"temperature": "hot"}, {"temperature": 3}, {"top_p": -1}, {"temperature": True},
        {"reasoning_effort": "hard"}, {"reasoning_effort": []}, {"thinking": "yes"}, {"cache_control": "on"},
        {"tools": {}}, {"tools": [1]}, {"tools": [{"type": "function"}]}, {"tools": [{"type": "function", "function": {}}]},
        {"tools": [{"type": "function", "function": {"name": "x", "parameters": "y"}}]},
        {"tool_choice": "required"}, {"tools": [TOOL], "tool_choice": {"type": "function"}},
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}},
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [1]}}},
        {"response_format": "json"}, {"response_format": {"type": "json_schema"}}, {"response_format": {"type": []}},
        {"messages": [user(1)]}, {"messages": [user({"type": "text"})]}, {"messages": [user({"type": "image_url"})]},
        {"messages": [user(image("ftp://x/y"))]}, {"messages": [user(image("data:image/png,xx"))]},
        {"messages": [user({"type": "image_url", "image_url": {"url": 7}})]},
        {"messages": [user({"type": "file", "file": {}})]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": None, "refusal": 7}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": 7}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [call("")]}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [call("a", "")]}]},
        *({"messages": [{"role": "assistant", "content": None, "tool_calls": [call("a", arguments=bad)]}]}
          for bad in ("[]", "7", "{", '{"a": NaN}', "nonsense", {"a": 1})),
    ],
)  # fmt: skip
def test_a_senseless_value_is_refused(fields: dict[str, Any]) -> None:
    """400 here, never an exception of ours, never a guess."""
    with pytest.raises(GatewayError) as caught:
        sent(**fields)
    assert (caught.value.http_status, caught.value.error_type) == (400, "invalid_request_error")
    assert caught.value.param


def test_what_is_nested_too_deeply_is_refused() -> None:
    """Neither our writer's limit nor Python's becomes a 500."""
    deep: Any = {"type": "object", "properties": {}}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    for strict in (True, False):
        with pytest.raises(BadRequest, match="deeply"):
            sent(tools=[{"type": "function", "function": {"name": "x", "parameters": deep, "strict": strict}}])
