"""The scripted providers themselves: they take what the official SDKs send them, and refuse what the real ones refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from ..servers import fetch, serving
from .clients import PARAMETERS
from .model import HELLO
from .provider import KEYS, Providers

USER: dict[str, Any] = {"role": "user", "content": "hello"}
TOOL: dict[str, Any] = {"name": "weather", "input_schema": PARAMETERS}
USE: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}
ASKS: dict[str, Any] = {"role": "assistant", "content": [USE]}
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLS: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TELLS: dict[str, Any] = {"role": "tool", "tool_call_id": "c", "content": "x"}
FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
OPEN: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Where they are."""
    with serving(Providers()) as found:
        yield found


def user(*blocks: Any) -> dict[str, Any]:
    """A user's turn."""
    return {"role": "user", "content": list(blocks)}


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": None},
        {"messages": []},
        {"seed": 1},
        {"context_management": {"edits": []}},  # without its beta header
        {"metadata": {"team": "x"}},
        {"messages": [{"role": "assistant", "content": "a"}, USER]},
        {"messages": [USER, {"role": "assistant", "content": "a"}]},
        {"messages": [user({"type": "text", "text": ""})]},
        {"messages": [user({"type": "text", "text": "a", "name": "b"})]},
        {"messages": [USER, ASKS, USER], "tools": [TOOL]},
        {"messages": [USER, ASKS, user({"type": "text", "text": "a"}, RESULT)], "tools": [TOOL]},
        {"messages": [USER, ASKS, user(RESULT, RESULT)], "tools": [TOOL]},
        {"messages": [USER, ASKS, user(RESULT)]},
        {"messages": [user(RESULT)], "tools": [TOOL]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "a", "signature": "b"}]}, USER]},
        {"messages": [USER, ASKS, user(RESULT)], "tools": [TOOL], "max_tokens": 4000,
         "thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"tools": [{**TOOL, "name": "a.b"}]},
        {"tools": [{"type": "function", "function": {"name": "a"}}]},
        {"tool_choice": {"type": "any"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1024},
        {"thinking": {"type": "enabled", "budget_tokens": 500}},
        {"thinking": {"type": "adaptive"}, "tools": [TOOL], "tool_choice": {"type": "any"}},
        {"thinking": {"type": "adaptive"}, "temperature": 0.5},
        {"output_config": {"format": {"type": "json_schema", "schema": OPEN}}},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "integer", "minimum": 1}}}},
        {"stop_sequences": [" "]},
        {"system": [{"type": "text", "text": str(number), "cache_control": {"type": "ephemeral"}} for number in range(5)]},
    ],
)  # fmt: skip
def test_anthropic_refuses(url: str, fields: dict[str, Any]) -> None:
    """400 in its own envelope."""
    good = {"model": "m", "max_tokens": 2000, "messages": [USER]}
    headers = {"x-api-key": KEYS["anthropic"], "anthropic-version": "2023-06-01"}

    def ask(body: Any) -> Any:
        return fetch(url + "/anthropic/v1/messages", body, key=None, headers=headers)

    assert ask(good).status == 200
    reply = ask({name: value for name, value in {**good, **fields}.items() if value is not None})
    assert (reply.status, reply.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 9},
        {"top_k": 1},
        {"messages": []},
        {"stream_options": {"include_usage": True}},
        {"tools": []},
        {"parallel_tool_calls": False},
        {"tool_choice": "required"},
        {"tools": [{**FUNCTION, "function": {"name": "a" * 65}}]},
        {"tools": [{"type": "function", "function": {"name": "a", "strict": True, "parameters": OPEN}}]},
        {"tools": [TOOL]},
        {"messages": [USER, CALLS, USER], "tools": [FUNCTION]},
        {"messages": [USER, CALLS], "tools": [FUNCTION]},
        {"messages": [USER, TELLS]},
        {"messages": [USER, CALLS, {**TELLS, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "assistant", "content": None}, USER]},
        {"messages": [{**USER, "cache_control": {"type": "ephemeral"}}]},
        {"messages": [user({"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AA=="}})]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": OPEN, "strict": True}}},
    ],
)
def test_openai_refuses(url: str, fields: dict[str, Any]) -> None:
    """400 in its own envelope."""
    good = {"model": "m", "messages": [USER]}
    assert fetch(url + "/openai/v1/chat/completions", good, key=KEYS["openai"]).status == 200
    reply = fetch(url + "/openai/v1/chat/completions", {**good, **fields}, key=KEYS["openai"])
    assert (reply.status, reply.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"messages": [USER]},
        {"max_output_tokens": 15},
        {"input": []},
        {"include": ["usage"]},
        {"tools": [FUNCTION]},
        {"tools": [{"type": "function", "name": "a", "parameters": OPEN}]},  # strict where nothing is said
        {"input": [USER, {"type": "function_call", "call_id": "c", "name": "a", "arguments": "{}"}]},
        {"input": [USER, {"type": "function_call_output", "call_id": "c", "output": "x"}]},
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}, USER]},
        {"input": [{"type": "message", "role": "assistant", "id": "x_1", "content": []}, USER]},
        {"input": [{**USER, "content": [{"type": "text", "text": "a"}]}]},
    ],
)
def test_openais_responses_refuse(url: str, fields: dict[str, Any]) -> None:
    """400 in its own envelope."""
    good = {"model": "m", "input": "hello", "store": False}
    assert fetch(url + "/openai/v1/responses", good, key=KEYS["openai"]).status == 200
    reply = fetch(url + "/openai/v1/responses", {**good, **fields}, key=KEYS["openai"])
    assert (reply.status, reply.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_vendor_passes_over_what_it_does_not_know(url: str) -> None:
    """But not the one field that would be no limit then."""
    good = {"model": "m", "messages": [USER], "top_k": 1, "max_tokens": 9}
    assert fetch(url + "/vendor/v1/chat/completions", good, key=KEYS["vendor"]).status == 200
    limit = {"max_completion_tokens": 9}
    assert fetch(url + "/vendor/v1/chat/completions", {**good, **limit}, key=KEYS["vendor"]).status == 400


def test_each_wants_its_own_key(url: str) -> None:
    """401 for any other."""
    for path in ("openai/v1/chat/completions", "vendor/v1/chat/completions", "anthropic/v1/messages"):
        assert fetch(f"{url}/{path}", {"model": "m", "messages": [USER]}, key="sk-other").status == 401


def test_the_sdks_read_them_without_a_gateway(url: str) -> None:
    """Whole and streamed, each event valid by the SDK's own types."""
    strict: Any = {"max_retries": 0, "_strict_response_validation": True}
    with openai.OpenAI(base_url=url + "/openai/v1", api_key=KEYS["openai"], **strict) as client:
        said: Any = [USER]
        assert client.chat.completions.create(model="m", messages=said).choices[0].message.content == HELLO
        with client.chat.completions.stream(model="m", messages=said) as chunks:
            assert chunks.get_final_completion().choices[0].message.content == HELLO
        more: Any = {"reasoning": {"effort": "low"}, "store": False}
        assert client.responses.create(model="m", input="hello", **more).output_text == HELLO
        with client.responses.stream(model="m", input="hello", **more) as events:
            assert events.get_final_response().output_text == HELLO
    with anthropic.Anthropic(base_url=url + "/anthropic", api_key=KEYS["anthropic"], **strict) as other:
        asked: Any = {"model": "m", "max_tokens": 3000, "messages": [USER], "thinking": {"type": "adaptive"}}
        for message in (other.messages.create(**asked), _streamed(other, asked)):
            assert [block.type for block in message.content] == ["thinking", "text"]
            assert message.content[1].text == HELLO


def _streamed(client: anthropic.Anthropic, asked: Any) -> Any:
    with client.messages.stream(**asked) as events:
        return events.get_final_message()
