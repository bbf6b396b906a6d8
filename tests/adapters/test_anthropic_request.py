"""A chat request that goes to Anthropic: where, with which key and limit, and written as its official client would."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming, MessageCreateParamsStreaming
from pydantic import TypeAdapter

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import Adapter, Unsupported, UpstreamRequest

from .anthropic_asking import ADAPTER, CACHED, NEW, PIXEL, TOOL, call, image, request, sent, text, user


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
