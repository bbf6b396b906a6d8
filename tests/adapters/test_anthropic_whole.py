"""Anthropic's adapter in its place behind the proxy, and before senseless input."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.errors import GatewayError, UpstreamError
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

from ..conversation import ask
from ..upstream import DONE, Script, always, streaming, upstream, whole

KEY = "sk-ant-0123456789abcdef"
ASKED: dict[str, Any] = {"model": "claude-sonnet-4-6", "messages": [{"role": "user", "content": "hello"}]}
USAGE = {"input_tokens": 25, "cache_read_input_tokens": 100, "output_tokens": 7}
ANSWER = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "stop_reason": "end_turn",
          "content": [{"type": "text", "text": "hi"}], "usage": USAGE}  # fmt: skip
ADAPTER = AnthropicAdapter("anthropic", "https://api.example.com", KEY)


def event(type: str, **fields: Any) -> bytes:
    """An event as the provider sends it."""
    return f"event: {type}\r\ndata: {json.dumps({'type': type, **fields})}\r\n\r\n".encode()


STREAM = (
    event("message_start", message={**ANSWER, "content": [], "usage": {**USAGE, "output_tokens": 1}}),
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("ping"),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "hi"}),
    event("content_block_stop", index=0),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}),
    event("message_stop"),
)


async def through(script: Script, **fields: Any) -> tuple[Any, Any]:
    """What a client gets through a ProxyApp, and what the provider was asked."""
    async with upstream(script) as server:
        adapter = AnthropicAdapter("anthropic", server.url(), KEY)
        app = ProxyApp(router=Router([adapter]))
        answer = await ask(app, {**ASKED, **fields})
        await app.aclose()
        return answer, server.requests[0]


async def test_an_answer_through_the_proxy() -> None:
    """Asked there, told here."""
    answer, asked = await through(always(whole(ANSWER)))
    assert (answer.status, answer.json()["choices"][0]["message"]["content"]) == (200, "hi")
    assert answer.json()["usage"]["prompt_tokens"] == 125
    assert (asked.path, asked.headers["x-api-key"], asked.headers["anthropic-version"]) == (
        "/v1/messages",
        KEY,
        "2023-06-01",
    )
    assert "authorization" not in asked.headers
    assert asked.json()["max_tokens"] == 4096


async def test_a_stream_through_the_proxy() -> None:
    """Its usage with the cost of it, its end."""
    answer, asked = await through(streaming(*STREAM), stream=True, stream_options={"include_usage": True})
    assert asked.json()["stream"] is True
    assert answer.body.endswith(DONE)
    last = json.loads(answer.body.split(b"\n\n")[-3][6:])
    assert (last["choices"], last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == ([], 125, 7)


@pytest.mark.parametrize("at", range(1, len(STREAM) - 2))
async def test_a_stream_cut_short_through_the_proxy(at: int) -> None:
    """Before the reason of the end is known: one error, and no end."""
    answer, _ = await through(streaming(*STREAM[:at]), stream=True)
    assert DONE not in answer.body
    assert answer.body.count(b'"upstream_cut"') == 1


async def test_an_error_amid_a_stream_through_the_proxy() -> None:
    """One error, and no end."""
    failed = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    answer, _ = await through(streaming(*STREAM[:4], failed), stream=True)
    assert DONE not in answer.body
    assert answer.body.count(b'"error"') == 1
    assert b"Overloaded" in answer.body


async def test_a_failure_through_the_proxy() -> None:
    """In the client's envelope."""
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "r"}
    answer, _ = await through(always(whole(body, 529, headers=[("Retry-After", "3")])))
    assert (answer.status, answer.json()["error"]["message"]) == (503, "Overloaded")
    assert answer.headers["retry-after"] == "3"


# -- senseless input ---------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["", "a", " ", "text", "auto", "none", "required", "function", "image_url", "file", "refusal", "user", "assistant", "tool",
     "system", "data:image/png;base64,x", "https://x", "{}", "[]", "json_schema", "json_object", "high", "thinking",
     "tool_use", "allowed_tools", "object", "array", "end_turn", "text_delta", "input_json_delta", "thinking_delta",
     "signature_delta", "redacted_thinking", "error"]
)  # fmt: skip
NAMES = st.sampled_from(
    ["type", "text", "role", "content", "function", "name", "parameters", "arguments", "tool_calls", "tool_call_id", "id",
     "image_url", "url", "file", "file_data", "json_schema", "schema", "properties", "items", "anyOf", "oneOf", "format",
     "additionalProperties", "allowed_tools", "mode", "tools", "cache_control", "thinking_blocks", "signature", "thinking",
     "data", "input", "index", "delta", "content_block", "message", "usage", "input_tokens", "output_tokens", "iterations",
     "partial_json", "stop_reason", "stop_details", "explanation", "error", "citations", "model", "strict", "minItems"]
)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10) | st.floats(-1, 3) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
ROLES = st.sampled_from(["user", "assistant", "tool", "system", "developer"])
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": ROLES, "content": st.none() | WORDS | st.lists(ANYTHING, max_size=3)},
        optional=dict.fromkeys(("tool_calls", "tool_call_id", "thinking_blocks", "refusal", "cache_control"), ANYTHING),
    ),
    min_size=1,
    max_size=4,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["tools", "tool_choice", "parallel_tool_calls", "stop", "temperature", "top_p", "top_k", "response_format",
         "reasoning_effort", "thinking", "cache_control", "user", "safety_identifier", "service_tier", "seed", "metadata"]
    ),
    ANYTHING,
    max_size=4,
)  # fmt: skip
MODELS = st.sampled_from(["claude-3-5-sonnet-20241022", "claude-opus-4-5", "claude-sonnet-4-6", "claude-opus-5-5", "x"])


def request(**fields: Any) -> LLMRequest:
    """A parsed request."""
    path = "/v1/chat/completions"
    return parse(Route("metered", METERED[path], path), orjson.dumps({**ASKED, **fields}))


@given(MESSAGES, FIELDS, MODELS)
def test_a_request_is_written_or_refused(messages: list[Any], fields: dict[str, Any], model: str) -> None:
    """Whatever is in it; and what is written keeps the provider's rules."""
    try:
        asked = request(**fields, messages=messages)
        body = json.loads(ADAPTER.request(asked, model).body)
    except GatewayError as error:
        refused = error
        assert refused.http_status == 400
        return
    turns = body["messages"]
    assert turns[0]["role"] == "user"
    for before, now in pairwise(turns):
        assert before["role"] != now["role"]
    for turn in turns:
        kinds = [block["type"] for block in turn["content"]]
        assert kinds
        assert kinds == sorted(kinds, key=lambda kind: kind != "tool_result")
        assert all(block["text"].strip() for block in turn["content"] if block["type"] == "text")


@given(st.dictionaries(NAMES, ANYTHING, max_size=6), st.lists(ANYTHING, max_size=4))
def test_an_answer_is_read_or_refused(fields: dict[str, Any], content: list[Any]) -> None:
    """Whatever is in it."""
    for body in ({**fields, "content": content}, fields):
        try:
            found = ADAPTER.response(request(), orjson.dumps(body))
        except GatewayError:
            continue
        assert json.loads(found.body)["object"] == "chat.completion"


EVENTS = st.lists(
    st.dictionaries(NAMES, ANYTHING, max_size=4).flatmap(
        lambda fields: st.fixed_dictionaries(
            {
                "type": st.sampled_from(["message_start", "content_block_start", "content_block_delta", "content_block_stop",
                                         "message_delta", "message_stop", "error", "ping"]),
                "index": st.integers(0, 2),
                "delta": st.dictionaries(NAMES, ANYTHING, max_size=3),
                "content_block": st.dictionaries(NAMES, ANYTHING, max_size=3),
            }
        ).map(lambda known: {**known, **fields})
    ),
    max_size=8,
)  # fmt: skip


@given(EVENTS)
def test_a_stream_is_read_or_refused(events: list[dict[str, Any]]) -> None:
    """Whatever is in it, and what comes out are whole events."""
    stream = ADAPTER.stream(request(stream=True, stream_options={"include_usage": True}))
    try:
        out = b"".join([stream.feed(b"data: " + orjson.dumps(one) + b"\n\n") for one in events]) + stream.finish()
    except UpstreamError:
        return
    for line in out.split(b"\n\n")[:-1]:
        assert line in (b"data: [DONE]", b": ping") or type(json.loads(line.removeprefix(b"data: "))) is dict
    assert out.count(DONE) == int(stream.complete)
    assert stream.usage is None or stream.usage.total >= 0
