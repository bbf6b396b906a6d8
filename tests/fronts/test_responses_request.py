"""Responses requests in the words of chat: one row a field, and refusals that name it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_llm_gateway.errors import BadRequest, GatewayError, Unsupported

from .responses import FRONT, function, request

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
CHAT_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def chat(**fields: Any) -> dict[str, Any]:
    """The chat body without what every one has."""
    body = dict(FRONT.request(request(**fields)).data)
    return {name: value for name, value in body.items() if name not in ("model", "messages")}


def refused(**fields: Any) -> GatewayError:
    """The refusal of a request."""
    with pytest.raises(BadRequest) as caught:
        FRONT.request(request(**fields))
    assert caught.value.http_status == 400
    assert caught.value.message.endswith((".", ")."))
    return caught.value


def test_the_plainest_request() -> None:
    """A model and one message, and nothing that was not asked for."""
    asked = FRONT.request(request())
    assert asked.data == {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    assert asked.dropped == ()


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"max_output_tokens": 7}, {"max_tokens": 7}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        (
            {"stream": True, "stream_options": {"include_obfuscation": False}},
            {"stream": True, "stream_options": {"include_usage": True}},
        ),
        ({"temperature": 0.5, "top_p": 1}, {"temperature": 0.5, "top_p": 1}),
        ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"top_logprobs": 0}, {}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
        ({"reasoning": {}}, {}),
        ({"text": {"format": {"type": "text"}, "verbosity": "medium"}}, {}),
        ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {
                "text": {
                    "format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True, "description": "d"}
                }
            },
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True, "description": "d"},
                }
            },
        ),
        ({"user": "u"}, {"user": "u"}),
        ({"safety_identifier": "s"}, {"user": "s"}),
        ({"service_tier": "auto"}, {}),
        ({"service_tier": "flex"}, {"service_tier": "flex"}),
        ({"metadata": {"a": "b"}}, {}),
        ({"store": True}, {}),
        ({"store": False, "background": False, "previous_response_id": None}, {}),
        ({"truncation": "disabled"}, {}),
        ({"tools": []}, {}),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"tools": [function()]}, {"tools": [CHAT_TOOL]}),
        ({"tools": [function()], "parallel_tool_calls": False}, {"tools": [CHAT_TOOL], "parallel_tool_calls": False}),
        ({"tools": [function()], "tool_choice": "required"}, {"tools": [CHAT_TOOL], "tool_choice": "required"}),
        (
            {"tools": [function()], "tool_choice": {"type": "function", "name": "weather"}},
            {"tools": [CHAT_TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
        (
            {
                "tools": [function("other"), function()],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "weather"}],
                },
            },
            {"tools": [CHAT_TOOL], "tool_choice": "required"},
        ),
    ],
)
def test_a_field_has_its_word_in_chat(fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    """And nothing is said that was not asked."""
    assert chat(**fields) == wanted


def test_a_function_keeps_all_that_chat_knows_of_it() -> None:
    """Description and strictness; what is null is left out."""
    (tool,) = chat(tools=[function(description="d", strict=True)])["tools"]
    assert (tool["function"]["description"], tool["function"]["strict"]) == ("d", True)
    (tool,) = chat(tools=[{"type": "function", "name": "f", "parameters": None, "strict": None}])["tools"]
    assert tool == {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "dropped"),
    [
        ({"include": ["reasoning.encrypted_content"]}, ("include",)),
        ({"prompt_cache_key": "k"}, ("prompt_cache_key",)),
        ({"max_tool_calls": 3}, ("max_tool_calls",)),
        ({"truncation": "auto"}, ("truncation",)),
        ({"reasoning": {"mode": "pro", "context": "all_turns"}}, ("reasoning.context", "reasoning.mode")),
        ({"tools": [function(defer_loading=True)]}, ("tools.defer_loading",)),
        ({"context_management": [{"type": "compaction"}]}, ("context_management",)),
        ({"a_new_field": 1, "bad\r\nname: x": 2}, ("a_new_field", "?")),
        (
            {"input": [{"type": "reasoning", "id": "rs", "encrypted_content": "x"}, {"role": "user", "content": "a"}]},
            ("input.reasoning.encrypted_content",),
        ),
        ({"input": [{"role": "assistant", "content": "a", "phase": "commentary"}]}, ("input.phase",)),
    ],
)  # fmt: skip
def test_a_hint_without_a_word_is_left_out_and_told(fields: dict[str, Any], dropped: tuple[str, ...]) -> None:
    """By name, as it may stand in a header."""
    assert FRONT.request(request(**fields)).dropped == dropped


def test_few_names_are_told() -> None:
    """A client can't fill the answer's head with names of its own."""
    asked = FRONT.request(request(**{f"field_{number}": 1 for number in range(500)}))
    assert len(asked.dropped) == 20


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the earlier items again"),
        ({"conversation": "conv_1"}, "conversation", "send the earlier items again"),
        ({"conversation": {"id": "conv_1"}}, "conversation", "Nothing is stored"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "send the text itself"),
        ({"background": True}, "background", "'stream': true"),
        (
            {"prompt_cache_options": {"comparison_response_id": "r"}},
            "prompt_cache_options.comparison_response_id",
            "stored",
        ),
        ({"moderation": {"model": "x"}}, "moderation", "Remove it"),
        ({"messages": []}, "messages", "'input'"),
        ({"max_tokens": 5}, "max_tokens", "'max_output_tokens'"),
        ({"response_format": {}}, "response_format", "'text'"),
        ({"n": 2}, "n", "One answer"),
        ({"stop": ["a"]}, "stop", "chat/completions"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "not metered"),
        ({"tools": [function(), {"type": "file_search", "vector_store_ids": ["v"]}]}, "tools[1].type", "shared"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type", "containers"),
        ({"tools": [{"type": "mcp", "server_url": "https://x"}]}, "tools[0].type", "'mcp'"),
        ({"tools": [{"type": "custom", "name": "c"}]}, "tools[0].type", "one string"),
        ({"tools": [{"type": "computer_use_preview"}]}, "tools[0].type", "'function'"),
        ({"tools": [{"type": "function", "function": {"name": "nested"}}]}, "tools[0].name", "name"),
        ({"tools": [{}]}, "tools[0].type", "(none)"),
        ({"tools": [function()], "tool_choice": {"type": "web_search"}}, "tool_choice.type", "'web_search'"),
        ({"tools": [function()], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name", "no tool"),
        ({"tool_choice": "required"}, "tool_choice", "no tool"),
        ({"tools": [function()], "tool_choice": "sometimes"}, "tool_choice", "'auto'"),
        ({"tools": [function()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "'mode'"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "'json_schema'"),
        ({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}, "text.format.name", "64"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "an object"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity", "'low'"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary", "'auto'"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"temperature": "hot"}, "temperature", "0 to 2"),
        ({"temperature": True}, "temperature", "0 to 2"),
        ({"truncation": "some"}, "truncation", "'auto'"),
        ({"metadata": {"a": 1}}, "metadata", "16"),
        ({"metadata": {"a": "b" * 513}}, "metadata", "512"),
        ({"instructions": ["a"]}, "instructions", "a string"),
        ({"store": "no"}, "store", "true or false"),
        ({"include": "all"}, "include", "an array"),
    ],
)
def test_what_has_no_word_is_refused_by_name(fields: dict[str, Any], param: str, words: str) -> None:
    """With what to do instead."""
    error = refused(**fields)
    assert error.param == param
    assert words in error.message


def test_an_input_is_needed() -> None:
    """It may not be missing, and not say nothing."""
    assert refused(input=None).error_code in ("missing_required_parameter", "invalid_value")
    assert refused(input=[{"type": "reasoning", "id": "r", "summary": []}]).param == "input"


def test_no_prompt_stands_in_a_refusal() -> None:
    """Neither a text nor a number of the client's."""
    secret = "the-secret-of-the-client"
    for fields in (
        {"instructions": [secret]},
        {"input": [{"role": "user", "content": {secret: 1}}]},
        {"metadata": secret},
        {"text": {"format": {"type": "json_schema", "name": secret + " "}}},
        {"user": [secret]},
    ):
        error = refused(**fields)
        assert secret not in json.dumps(error.as_dict())


def test_a_refusal_is_of_the_class_that_says_so() -> None:
    """``unsupported_parameter`` for what is well formed and can't be served."""
    with pytest.raises(Unsupported) as caught:
        FRONT.request(request(previous_response_id="resp_1"))
    assert caught.value.error_code == "unsupported_parameter"
