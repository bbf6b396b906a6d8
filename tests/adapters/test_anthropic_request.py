"""A chat request in Anthropic's words: each row of the mapping, what is refused, and what is left out and told."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming, MessageCreateParamsStreaming
from pydantic import TypeAdapter

from asgi_llm_gateway.adapters._anthropic_messages import safe_name
from asgi_llm_gateway.adapters._anthropic_models import Abilities, abilities, strict_schema
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import Adapter, Unsupported, UpstreamRequest
from asgi_llm_gateway.errors import BadRequest, GatewayError
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

ADAPTER = AnthropicAdapter("anthropic", "https://api.example.com", "sk-ant-abcdefghijklmnop")
NEW, OLD = "claude-sonnet-4-6", "claude-3-5-sonnet-20241022"
HI = [{"role": "user", "content": "hi"}]
PIXEL = "iVBORw0KGgo="
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {}}}}}
CACHED = {"type": "ephemeral"}


def request(path: str = "/v1/chat/completions", **fields: Any) -> LLMRequest:
    """A parsed request."""
    told: dict[str, Any] = {"model": "m", "messages": HI, **fields}
    return parse(Route("metered", METERED[path], path), json.dumps(told).encode())


def sent(model: str = NEW, **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body that goes out, and what was left out of it."""
    found = ADAPTER.request(request(**fields), model)
    return json.loads(found.body), found.dropped


def turns(*messages: dict[str, Any], model: str = NEW) -> Any:
    """The messages that go out."""
    return sent(model, messages=list(messages))[0]["messages"]


def call(id: str, name: str = "look", arguments: Any = "{}") -> dict[str, Any]:
    """A call of the history."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def user(*content: Any) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": content[0] if len(content) == 1 and type(content[0]) is str else list(content)}


def text(words: str, **more: Any) -> dict[str, Any]:
    """A block, or a part, of text."""
    return {"type": "text", "text": words, **more}


def image(url: str, **more: Any) -> dict[str, Any]:
    """An image as clients send it."""
    return {"type": "image_url", "image_url": {"url": url, **more}}


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_a_request_goes_to_messages_with_key_and_version() -> None:
    """Whether the base URL has the version in it or not."""
    for url in ("https://api.example.com", "https://api.example.com/", "https://api.example.com/v1/"):
        adapter: Adapter = AnthropicAdapter("a", url, "sk-ant-abcdefghijklmnop", models=["m"])
        found = adapter.request(request(), "m")
        assert isinstance(found, UpstreamRequest)
        endpoint = found.endpoint
        assert (endpoint.method, endpoint.url) == ("POST", "https://api.example.com/v1/messages")
        assert (b"x-api-key", b"sk-ant-abcdefghijklmnop") in endpoint.headers
        assert (b"anthropic-version", b"2023-06-01") in endpoint.headers
        assert adapter.models == ("m",)
        assert "sk-ant" not in repr(found) + repr(adapter)


def test_a_plain_request() -> None:
    """The least: a limit is demanded, and a default is there."""
    assert sent() == (
        {"model": NEW, "max_tokens": 4096, "messages": [{"role": "user", "content": [text("hi")]}]},
        (),
    )
    assert (
        json.loads(AnthropicAdapter("a", "http://h", default_max_tokens=9).request(request(), "m").body)["max_tokens"]
        == 9
    )


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/v1/responses"])
def test_another_api_is_refused(path: str) -> None:
    """Not sent somewhere in hope."""
    with pytest.raises(Unsupported) as caught:
        ADAPTER.request(request(path, prompt="a", input="a"), NEW)
    assert caught.value.error_code == "unsupported_api"


def test_senseless_settings_are_refused() -> None:
    """At the start, not at the first call."""
    for key, version in (("a\r\nb", "1"), ("a", "1\nx: y")):
        with pytest.raises(ValueError, match="line breaks"):
            AnthropicAdapter("a", "http://h", key, version=version)
    with pytest.raises(ValueError, match="default_max_tokens"):
        AnthropicAdapter("a", "http://h", default_max_tokens=0)


def test_what_the_gateway_added_counts() -> None:
    """The budget's limit is the provider's limit."""
    asked = request().with_fields(max_tokens=77)
    assert json.loads(ADAPTER.request(asked, NEW).body)["max_tokens"] == 77


def test_the_same_request_is_written_the_same() -> None:
    """A prompt cache depends on it: tools and messages keep their order and characters."""
    tool = {"name": "", "parameters": {"b": 1, "a": 2}}
    fields: dict[str, Any] = {
        "tools": [{"type": "function", "function": {**tool, "name": name}} for name in "zay"],
        "messages": [user("ü  \n x"), {"role": "assistant", "content": " y "}, user("z")],
    }
    body, _ = sent(**fields)
    assert ADAPTER.request(request(**fields), NEW).body == ADAPTER.request(request(**fields), NEW).body
    assert [tool["name"] for tool in body["tools"]] == list("zay")
    assert list(body["tools"][0]["input_schema"]) == ["type", "b", "a"]
    assert [turn["content"][0]["text"] for turn in body["messages"]] == ["ü  \n x", " y ", "z"]


# -- fields ------------------------------------------------------------------------------------------------------------


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


# -- messages ----------------------------------------------------------------------------------------------------------


def test_the_leading_systems_are_the_system() -> None:
    """One block each, in order, with their marks."""
    body, _ = sent(
        messages=[
            {"role": "system", "content": "a"},
            {"role": "developer", "content": [text("b", cache_control=CACHED), text("")]},
            *HI,
        ]
    )
    assert body["system"] == [text("a"), text("b", cache_control=CACHED)]
    assert body["messages"] == [{"role": "user", "content": [text("hi")]}]


def test_a_later_system_stays_where_it_is() -> None:
    """To hoist it would change the cached prefix: a role of its own where the model has one, else part of the user's turn."""
    later = (user("a"), {"role": "assistant", "content": "b"}, {"role": "system", "content": "s"}, user("c"))
    assert turns(*later)[2] == {"role": "user", "content": [text("s"), text("c")]}
    assert turns(*later, model="claude-opus-5")[2:] == [
        {"role": "system", "content": [text("s")]},
        {"role": "user", "content": [text("c")]},
    ]
    assert "system" not in sent(messages=list(later))[0]


def test_roles_in_a_row_become_one_turn() -> None:
    """The user's, and the assistant's."""
    said = {"role": "assistant", "content": "b"}
    assert turns(user("a"), user(text("a2")), said, said, user("c")) == [
        {"role": "user", "content": [text("a"), text("a2")]},
        {"role": "assistant", "content": [text("b"), text("b")]},
        {"role": "user", "content": [text("c")]},
    ]


def test_empty_texts_are_left_out() -> None:
    """The provider refuses them, also those of white space; a message of nothing else goes."""
    assert turns(user(text(""), text("a"), text(" \n")), {"role": "assistant", "content": ""}, user(""), user("b")) == [
        {"role": "user", "content": [text("a"), text("b")]}
    ]


def test_the_first_turn_is_the_users() -> None:
    """A conversation that starts with the assistant, or has a system only, gets the shortest possible one."""
    placed = {"role": "user", "content": [text(".")]}
    assert turns({"role": "assistant", "content": "a"}, user("b"))[0] == placed
    assert turns({"role": "system", "content": "a"}) == [placed]
    assert turns(user("")) == [placed]


def test_a_last_turn_of_the_assistant_is_gone_on_from() -> None:
    """Without the white space at its end, on models that can."""
    found = turns(user("a"), {"role": "assistant", "content": "{ \n"}, model="claude-opus-4-5")
    assert found[1] == {"role": "assistant", "content": [text("{")]}


def test_images_and_documents() -> None:
    """By address or by value; media types in any case and with parameters; JPEG under its wrong name."""
    parts = [
        image("https://x/y.png"), image(f"data:image/png;base64,{PIXEL}"), image(f"DATA:image/JPG;charset=x;base64,{PIXEL}"),
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PIXEL}", "filename": "f.pdf"}},
        {"type": "file", "file": {"file_data": PIXEL}, "cache_control": CACHED},
    ]  # fmt: skip
    base64 = {"type": "base64", "data": PIXEL}
    pdf = {"type": "document", "source": {**base64, "media_type": "application/pdf"}}
    assert turns(user(*parts))[0]["content"] == [
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "image", "source": {**base64, "media_type": "image/png"}},
        {"type": "image", "source": {**base64, "media_type": "image/jpeg"}},
        {**pdf, "title": "f.pdf"},
        {**pdf, "cache_control": CACHED},
    ]


def test_marks_of_the_prompt_cache_go_on() -> None:
    """On parts, on messages, on results."""
    found = turns(
        {"role": "user", "content": "a", "cache_control": CACHED},
        {"role": "assistant", "content": None, "tool_calls": [call("1")]},
        {"role": "tool", "tool_call_id": "1", "content": [text("r", cache_control=CACHED)], "cache_control": CACHED},
        user(text("b", cache_control={"type": "ephemeral", "ttl": "1h"})),
    )
    assert found[0]["content"][0]["cache_control"] == CACHED
    result, words = found[2]["content"]
    assert result["cache_control"] == result["content"][0]["cache_control"] == CACHED
    assert words["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


# -- calls and their results -------------------------------------------------------------------------------------------


def test_several_results_are_one_turn_and_lead_it() -> None:
    """In the order of the client's, before any text, whatever stood between them."""
    found = turns(
        user("a"),
        {"role": "assistant", "content": "so", "tool_calls": [call("1"), call("2", arguments='{"b":1,"a":[2]}')]},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "system", "content": "s"},
        {"role": "tool", "tool_call_id": "2", "content": [text("two"), text("")]},
        user("b"),
    )
    assert found[1:] == [
        {
            "role": "assistant",
            "content": [
                text("so"),
                {"type": "tool_use", "id": "1", "name": "look", "input": {}},
                {"type": "tool_use", "id": "2", "name": "look", "input": {"b": 1, "a": [2]}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "2", "content": [text("two")]},
                text("s"),
                text("b"),
            ],
        },
    ]


@pytest.mark.parametrize("arguments", ["", "{}", None, "  "])
def test_a_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    """Zero-argument tools: ``""`` is no JSON."""
    found = turns(user("a"), {"role": "assistant", "content": "", "tool_calls": [call("1", arguments=arguments)]},
                  {"role": "tool", "tool_call_id": "1", "content": ""})  # fmt: skip
    assert found[1]["content"] == [{"type": "tool_use", "id": "1", "name": "look", "input": {}}]
    assert found[2]["content"] == [{"type": "tool_result", "tool_use_id": "1"}]


def test_arguments_keep_every_digit() -> None:
    """And their order: they are not read and written again."""
    arguments = '{"z": 123456789012345678901234567890, "a": 1.10, "u": "\\u00fc"}'
    asked = request(
        messages=[*HI, {"role": "assistant", "content": None, "tool_calls": [call("1", arguments=arguments)]}]
    )
    assert arguments.encode() in ADAPTER.request(asked, NEW).body


def test_names_and_ids_that_the_provider_refuses_are_changed_alike() -> None:
    """Wherever they stand, and no two of them into one."""
    body, _ = sent(
        tools=[{"type": "function", "function": {"name": name}} for name in ("a.b", "a/b", "a_b")],
        tool_choice={"type": "function", "function": {"name": "a.b"}},
        messages=[
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [call("call:1", "a.b")]},
            {"role": "tool", "tool_call_id": "call:1", "content": "x"},
        ],
    )
    names = [tool["name"] for tool in body["tools"]]
    assert len(set(names)) == 3
    assert names[2] == "a_b"
    use = body["messages"][1]["content"][0]
    assert use["name"] == body["tool_choice"]["name"] == names[0]
    assert use["id"] == body["messages"][2]["content"][0]["tool_use_id"] == safe_name("call:1")
    for name in (*names, use["id"], safe_name("x" * 500), safe_name("ü")):
        assert safe_name(name) == name


def test_calls_in_the_history_need_a_tool() -> None:
    """One that can't be called, where the client declares none any more."""
    history: list[dict[str, Any]] = [*HI, {"role": "assistant", "content": None, "tool_calls": [call("1")]},
               {"role": "tool", "tool_call_id": "1", "content": "x"}]  # fmt: skip
    body, _ = sent(messages=history)
    assert (len(body["tools"]), body["tool_choice"]) == (1, {"type": "none"})
    assert "tool_choice" not in sent(messages=history, tools=[TOOL])[0]


def test_thoughts_are_sent_back_as_they_were() -> None:
    """First, with their signatures, without the index that clients need."""
    thoughts = [
        {"index": 0, "type": "thinking", "thinking": "t", "signature": "s"},
        {"index": 1, "type": "redacted_thinking", "data": "d"},
    ]
    said = {"role": "assistant", "content": "a", "thinking_blocks": thoughts, "tool_calls": [call("1")]}
    content = turns(*HI, said)[1]["content"]
    assert content[:2] == [{name: one[name] for name in one if name != "index"} for one in thoughts]
    assert [block["type"] for block in content[2:]] == ["text", "tool_use"]


def test_a_call_whose_thoughts_are_lost_is_not_thought_about() -> None:
    """With a budget the provider would refuse it; models that think adaptively do not mind."""
    history: list[dict[str, Any]] = [*HI, {"role": "assistant", "content": None, "tool_calls": [call("1")]},
               {"role": "tool", "tool_call_id": "1", "content": "x"}]  # fmt: skip
    body, dropped = sent("claude-opus-4-5", messages=history, reasoning_effort="low")
    assert ("thinking" in body, dropped) == (False, ("reasoning_effort",))
    assert "thinking" in sent(messages=history, reasoning_effort="low")[0]
    history[1]["thinking_blocks"] = [{"type": "thinking", "thinking": "t", "signature": "s"}]
    assert "thinking" in sent("claude-opus-4-5", messages=history, reasoning_effort="low")[0]


def test_an_assistants_refusal_is_text() -> None:
    """As a field and as a part."""
    said = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "refusal": "never"}
    assert turns(*HI, said, *HI)[1]["content"] == [text("no"), text("never")]


# -- models and schemas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("claude-3-5-sonnet-20241022", Abilities(schemas=False, thinking=None)),
        ("claude-3-7-sonnet-latest", Abilities(schemas=False, thinking="budget")),
        ("claude-3-opus-20240229", Abilities(schemas=False, thinking=None)),
        ("claude-sonnet-4-20250514", Abilities(schemas=False, thinking="budget")),
        ("claude-opus-4-1-20250805", Abilities(schemas=False, thinking="budget")),
        ("claude-haiku-4-5@20251001", Abilities(thinking="budget")),
        ("us.anthropic.claude-opus-4-6-v1:0", Abilities(prefill=False)),
        ("anthropic/claude-sonnet-4.6", Abilities(prefill=False)),
        ("claude-opus-4-7", Abilities(sampling=False, prefill=False)),
        ("claude-opus-5", Abilities(sampling=False, later_system=True, prefill=False)),
        ("claude-haiku-5-5", Abilities(sampling=False, later_system=True, prefill=False)),
        ("claude-opus-5-5", Abilities(False, False, True, True, "adaptive", False, False)),
        ("our-own-name", Abilities()),
    ],
)
def test_what_a_model_can_do(model: str, expected: Abilities) -> None:
    """By its name; what is not known is taken for a present one."""
    assert abilities(model) == expected


def test_the_later_version_has_no_sampling() -> None:
    """Not even default values."""
    later = AnthropicAdapter("a", "http://h", version="2026-10-21")
    found = later.request(request(temperature=0.5, top_k=3), "claude-opus-4-5")
    assert (b"anthropic-version", b"2026-10-21") in found.endpoint.headers
    assert found.dropped == ("temperature", "top_k")
    assert b"temperature" not in later.request(request(temperature=1), "claude-opus-4-5").body


def test_a_schema_in_the_part_that_is_enforced() -> None:
    """Every object closed; what can't be told is told in words."""
    written = strict_schema(
        {
            "type": "object",
            "properties": {
                "minimum": {"type": "integer", "minimum": 1, "description": "How many."},
                "tags": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"a": {}}},
                    "maxItems": 3,
                    "minItems": 1,
                },
                "when": {"type": "string", "format": "date-time"},
                "code": {"type": "string", "format": "regex", "pattern": "(?=a)b"},
                "plain": {"type": "string", "pattern": "^(?:a|b)$"},
                "any": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
                "one": {"oneOf": [{"type": "string"}, {"$ref": "#/$defs/other"}]},
            },
            "required": ["tags"],
            "$defs": {
                "other": {"type": "object", "properties": {"x": True}, "additionalProperties": {"type": "string"}}
            },
        },
        "response_format",
    )
    properties = written["properties"]
    assert properties["minimum"] == {"type": "integer", "description": 'How many.\nMust satisfy: {"minimum":1}'}
    assert properties["tags"] == {
        "type": "array",
        "items": {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
        "minItems": 1,
        "description": 'Must satisfy: {"maxItems":3}',
    }
    assert properties["when"] == {"type": "string", "format": "date-time"}
    assert set(properties["code"]) == {"type", "description"}
    assert properties["plain"]["pattern"] == "^(?:a|b)$"
    assert properties["any"]["anyOf"] == [
        {"type": "integer", "description": 'Must satisfy: {"minimum":1}'},
        {"type": "null"},
    ]
    assert properties["one"] == {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/other"}]}
    assert written["$defs"]["other"]["additionalProperties"] is False
    assert "additionalProperties" in written["$defs"]["other"]["description"]
    assert (written["required"], written["additionalProperties"]) == (["tags"], False)


# -- the official client's types ---------------------------------------------------------------------------------------

TYPED = {True: TypeAdapter[Any](MessageCreateParamsStreaming), False: TypeAdapter[Any](MessageCreateParamsNonStreaming)}


def plain(value: Any) -> Any:
    """What a typed model holds, with every lazy list read, which validates it."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [plain(one) for one in value]
    return value


@pytest.mark.parametrize("stream", [True, False])
def test_the_official_clients_types_hold_all_of_it(stream: bool) -> None:
    """Its typed models take the body, and no field is left over."""
    body, _ = sent(
        stream=stream,
        tools=[{**TOOL, "cache_control": CACHED}, {"type": "function", "function": {"name": "x", "strict": True}}]
        if not stream
        else [TOOL],
        tool_choice="auto",
        parallel_tool_calls=False,
        stop=["x"],
        user="u-1",
        service_tier="default",
        reasoning_effort="high",
        response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": {"a": {}}}}},
        messages=[
            {"role": "system", "content": [text("s", cache_control=CACHED)]},
            user(text("a"), image("https://x/y.png"), image(f"data:image/png;base64,{PIXEL}"),
                 {"type": "file", "file": {"file_data": PIXEL, "filename": "f"}}),
            {"role": "assistant", "content": "b", "tool_calls": [call("1"), call("2", arguments='{"a": 1}')],
             "thinking_blocks": [{"type": "thinking", "thinking": "t", "signature": "s"}]},
            {"role": "tool", "tool_call_id": "1", "content": "r"},
            {"role": "tool", "tool_call_id": "2", "content": [text("r")]},
            user("c"),
        ],
    )  # fmt: skip
    assert plain(TYPED[stream].validate_python(body)) == body
