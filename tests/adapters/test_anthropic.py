"""Anthropic's answers and failures in OpenAI's words, and calls there and back again."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.errors import GatewayError, UpstreamError
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

KEY = "sk-ant-abcdefghijklmnop"
ADAPTER = AnthropicAdapter("anthropic", "https://api.example.com", KEY)
USAGE = {"input_tokens": 25, "output_tokens": 7}


def request(**fields: Any) -> LLMRequest:
    """A parsed request."""
    told: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}], **fields}
    return parse(Route("metered", METERED["/v1/chat/completions"], "/v1/chat/completions"), json.dumps(told).encode())


def message(*content: dict[str, Any], stop_reason: Any = "end_turn", **fields: Any) -> bytes:
    """An answer as the provider sends it."""
    told = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": content,
            "stop_reason": stop_reason, "stop_sequence": None, "usage": USAGE, **fields}  # fmt: skip
    return json.dumps(told).encode()


def answer(body: bytes, **fields: Any) -> tuple[dict[str, Any], Usage | None]:
    """The answer as the client reads it, checked by the official client's types, and the counts."""
    found = ADAPTER.response(request(**fields), body)
    ChatCompletion.model_validate_json(found.body, strict=True)
    return json.loads(found.body), found.usage


def said(*content: dict[str, Any], **fields: Any) -> Any:
    """The message in it."""
    return answer(message(*content, **fields))[0]["choices"][0]["message"]


def text(words: str, **more: Any) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": words, **more}


# -- answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_of_text() -> None:
    """All of it."""
    found, usage = answer(message(text("Hel"), text("lo")))
    created = found.pop("created")
    assert type(created) is int
    assert found == {
        "id": "msg_1",
        "object": "chat.completion",
        "model": "claude-x",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 25,
            "completion_tokens": 7,
            "total_tokens": 32,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
    assert usage == Usage(25, 7)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"),
        ("model_context_window_exceeded", "length"), ("pause_turn", "length"), ("compaction", "length"),
        ("refusal", "content_filter"), ("something_new", "stop"), (None, "stop"),
    ],
)  # fmt: skip
def test_a_reason_in_openais_words(told: Any, expected: str) -> None:
    """No word that clients do not know."""
    assert answer(message(text("a"), stop_reason=told))[0]["choices"][0]["finish_reason"] == expected


def test_calls_in_an_answer() -> None:
    """Several, beside text or without: then the content is null. No arguments are an empty object."""
    uses = [
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"b": 1, "a": [None, "ü"]}},
        {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
    ]
    calls = [
        {"id": "toolu_1", "type": "function", "function": {"name": "look", "arguments": '{"b":1,"a":[null,"ü"]}'}},
        {"id": "toolu_2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
    ]
    for content, expected in (((), None), ((text(""),), None), ((text("so"),), "so")):
        assert said(*content, *uses, stop_reason="tool_use") == {
            "role": "assistant",
            "content": expected,
            "refusal": None,
            "tool_calls": calls,
        }
    assert answer(message(*uses, stop_reason=None))[0]["choices"][0]["finish_reason"] == "tool_calls"


def test_arguments_keep_every_digit() -> None:
    """Also those that do not fit 64 bits."""
    body = message({"type": "tool_use", "id": "t", "name": "n", "input": {"a": 123456789012345678901234567890}})
    found = json.loads(ADAPTER.response(request(), body).body)
    arguments = found["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert arguments == '{"a":123456789012345678901234567890}'


def test_thoughts_in_an_answer() -> None:
    """As words, and as the blocks that must be sent back; one without a signature can't be."""
    blocks = [{"type": "thinking", "thinking": "a", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}]
    found = said(*blocks, {"type": "thinking", "thinking": "b"}, text("c"))
    assert (found["reasoning_content"], found["thinking_blocks"], found["content"]) == ("ab", blocks, "c")


def test_a_refusal_says_why() -> None:
    """Where the provider does."""
    details = {"type": "refusal", "category": None, "explanation": "No."}
    assert said(stop_reason="refusal", stop_details=details) == {"role": "assistant", "content": "", "refusal": "No."}
    assert said(text("a"), stop_reason="refusal", stop_details=None)["refusal"] is None


def test_sources_with_an_address_are_told() -> None:
    """For the piece of text that they belong to."""
    cited = [{"type": "web_search_result_location", "url": "https://x/y", "title": "T"}, {"type": "char_location"}]
    assert said(text("ab"), text("cde", citations=cited), text("f", citations=None))["annotations"] == [
        {"type": "url_citation", "url_citation": {"start_index": 2, "end_index": 5, "title": "T", "url": "https://x/y"}}
    ]


def test_what_is_not_known_is_passed_over() -> None:
    """Blocks that are new, tools of the provider's own, and what is no block."""
    strange: Any = [
        {"type": "server_tool_use", "name": "x"},
        {"type": []},
        {},
        7,
        {"type": "text"},
        {"type": "tool_use"},
    ]
    assert said(*strange, text("a")) == {"role": "assistant", "content": "a", "refusal": None}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"input_tokens": 5, "output_tokens": 7}, Usage(5, 7)),
        ({"input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 10, "output_tokens": 7},
         Usage(115, 7, 100, 10)),
        ({"input_tokens": 5, "cache_read_input_tokens": None, "output_tokens": 7, "cache_creation": {
            "ephemeral_5m_input_tokens": 3}}, Usage(5, 7)),
        ({"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"thinking_tokens": 4}},
         Usage(5, 7, reasoning=4)),
        ({"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"thinking_tokens": 400}}, Usage(5, 7)),
        ({"input_tokens": 5, "output_tokens": 7, "iterations": [{"input_tokens": 9, "output_tokens": 1},
                                                               {"input_tokens": 5, "output_tokens": 7}]}, Usage(14, 8)),
        ({"input_tokens": 5, "output_tokens": 7, "iterations": []}, Usage(5, 7)),
        ({"input_tokens": 0, "output_tokens": 0}, Usage(0, 0)),
        ({"input_tokens": -5, "output_tokens": 7}, None),
        ({}, None),
        (None, None),
        ("many", None),
    ],
)  # fmt: skip
def test_counts_of_an_answer(usage: Any, expected: Usage | None) -> None:
    """What was read from a cache and written to it is part of the prompt, once."""
    found, counted = answer(message(text("a"), usage=usage))
    assert counted == expected
    assert ("usage" in found) == (expected is not None)
    if expected is not None:
        assert found["usage"]["prompt_tokens"] == expected.prompt
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == expected.cached
        assert found["usage"]["prompt_tokens_details"]["cache_write_tokens"] == expected.cache_write


def test_the_tier_is_told() -> None:
    """In OpenAI's words, where it has one."""
    for tier, expected in (("priority", "priority"), ("standard", "default"), ("batch", None), (None, None)):
        found, _ = answer(message(text("a"), usage={**USAGE, "service_tier": tier}))
        assert found.get("service_tier") == expected


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a": ', b"[]", b'"text"', b"7", b"null", b"\xff", b"{}", b"1" * 5000,
                                  b'{"content": "a"}', b'{"choices": []}'])  # fmt: skip
def test_what_is_no_answer_is_an_upstream_error(body: bytes) -> None:
    """502, whatever it is."""
    with pytest.raises(UpstreamError) as caught:
        ADAPTER.response(request(), body)
    assert caught.value.http_status == 502


def test_an_answer_that_is_nested_too_deeply_is_an_upstream_error() -> None:
    """What can't be written at all; the arguments of a call are text, and may be deep."""
    deep = b"[" * 300 + b"]" * 300
    thought = message({"type": "thinking", "thinking": "t", "signature": "s", "x": 0}).replace(
        b'"x": 0', b'"x": ' + deep
    )
    with pytest.raises(UpstreamError, match="deeply"):
        ADAPTER.response(request(), thought)
    call = message({"type": "tool_use", "id": "t", "name": "n", "input": {"a": 0}}).replace(b'"a": 0', b'"a": ' + deep)
    assert deep in ADAPTER.response(request(), call).body
    with contextlib.suppress(UpstreamError):  # or it is read, where Python's own limit is higher
        ADAPTER.response(request(), call.replace(deep, b"[" * 1000 + b"]" * 1000))


def test_an_error_inside_a_200_is_an_error() -> None:
    """By its type."""
    for kind, status in (
        ("overloaded_error", 503),
        ("rate_limit_error", 429),
        ("invalid_request_error", 400),
        (7, 502),
    ):
        with pytest.raises(GatewayError) as caught:
            ADAPTER.response(request(), json.dumps({"type": "error", "error": {"type": kind, "message": "m"}}).encode())
        assert caught.value.http_status == status


# -- there and back again ----------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.tuples(
        st.from_regex(r"[a-zA-Z0-9_.:/-]{1,70}", fullmatch=True),
        st.dictionaries(st.text(max_size=5), VALUES, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@given(CALLS)
def test_calls_go_there_and_back(made: list[tuple[str, dict[str, Any]]]) -> None:
    """Also several at once: names, order and arguments are what they were, in an answer and in a stream."""
    names = list(dict.fromkeys(name for name, _ in made))
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    calls = [
        {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for at, (name, arguments) in enumerate(made)
    ]
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "r"} for call in calls]
    asked = request(tools=tools, messages=[*history, *results])
    body = json.loads(ADAPTER.request(asked, "claude-sonnet-4-6").body)
    uses = body["messages"][1]["content"]
    assert [result["tool_use_id"] for result in body["messages"][2]["content"]] == [use["id"] for use in uses]
    assert {use["name"] for use in uses} == {tool["name"] for tool in body["tools"]}

    back = json.loads(ADAPTER.response(asked, message(*uses, stop_reason="tool_use")).body)
    got = back["choices"][0]["message"]["tool_calls"]
    assert [(one["id"], one["function"]["name"], json.loads(one["function"]["arguments"])) for one in got] == [
        (f"call_{at}", name, arguments) for at, (name, arguments) in enumerate(made)
    ]

    stream = ADAPTER.stream(asked)
    out = stream.feed(b"".join(_streamed(uses)))
    put: list[list[str]] = []
    for line in out.decode().split("\n\n")[:-2]:
        for one in json.loads(line[6:])["choices"][0]["delta"].get("tool_calls", ()):
            if "id" in one:
                assert one["index"] == len(put)
                put.append([one["id"], one["function"]["name"], ""])
            put[one["index"]][2] += one["function"]["arguments"]
    assert [(id, name, json.loads(told)) for id, name, told in put] == [
        (f"call_{at}", name, arguments) for at, (name, arguments) in enumerate(made)
    ]


def _streamed(uses: list[dict[str, Any]]) -> list[bytes]:
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"id": "m", "model": "c", "usage": USAGE}}]
    for at, use in enumerate(uses, 1):
        told = json.dumps(use["input"]) if use["input"] else ""
        events.append({"type": "content_block_start", "index": at, "content_block": {**use, "input": {}}})
        for piece in (told[:3], told[3:]):
            delta = {"type": "input_json_delta", "partial_json": piece}
            events.append({"type": "content_block_delta", "index": at, "delta": delta})
        events.append({"type": "content_block_stop", "index": at})
    events.append({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}})
    events.append({"type": "message_stop"})
    return [f"data: {json.dumps(event)}\r\n\r\n".encode() for event in events]


# -- failures ----------------------------------------------------------------------------------------------------------


def error(status: int, kind: str, words: str = "words", headers: Any = (), **more: Any) -> GatewayError:
    """What the client is told of the provider's failure."""
    told = {"type": "error", "error": {"type": kind, "message": words, **more}, "request_id": "req_1"}
    return ADAPTER.error(status, headers, json.dumps(told).encode())


@pytest.mark.parametrize(
    ("status", "kind", "expected", "code"),
    [
        (400, "invalid_request_error", 400, "upstream_refused"),
        (401, "authentication_error", 502, "upstream_auth"),
        (402, "billing_error", 502, "upstream_auth"),
        (403, "permission_error", 502, "upstream_auth"),
        (404, "not_found_error", 404, "upstream_refused"),
        (409, "conflict_error", 409, "upstream_refused"),
        (413, "request_too_large", 413, "upstream_refused"),
        (429, "rate_limit_error", 429, "upstream_rate_limited"),
        (500, "api_error", 502, "upstream_error"),
        (504, "timeout_error", 504, "upstream_timeout"),
        (529, "overloaded_error", 503, "upstream_unavailable"),
    ],
)
def test_a_failure_in_openais_words(status: int, kind: str, expected: int, code: str) -> None:
    """The client's own fault keeps its status; the gateway's key and the provider's faults are 5xx."""
    found = error(status, kind)
    assert (found.http_status, found.error_code) == (expected, code)
    assert set(found.as_dict()["error"]) == {"message", "type", "param", "code"}
    assert ADAPTER.error(status, (), b"<html>").http_status == expected


def test_the_wish_to_come_again_is_kept() -> None:
    """Of limits and of overload."""
    headers = ((b"retry-after", b"3"), (b"anthropic-ratelimit-requests-limit", b"5"))
    for status, kind in ((429, "rate_limit_error"), (529, "overloaded_error")):
        assert error(status, kind, headers=headers).headers == headers[:1]


@pytest.mark.parametrize(
    ("status", "kind", "words", "more"),
    [
        (429, "rate_limit_error", "m", {"details": {"error_code": "enforced_spend_limit_reached"}}),
        (429, "rate_limit_error", "m", {"details": {"error_code": "contract_spend_limit_reached"}}),
        (400, "invalid_request_error", "m", {"details": {"error_code": "organization_on_hold"}}),
        (400, "invalid_request_error", "Your credit balance is too low to access the API.", {}),
        (400, "invalid_request_error", "This workspace has reached its spend limit.", {}),
        (400, "invalid_request_error", "You have reached your specified API usage limits.", {}),
    ],
)
def test_the_gateways_own_account_is_not_the_clients_affair(status: int, kind: str, words: str, more: Any) -> None:
    """Never a 402 or 429, which would be the tenant's own budget, or a reason to come again."""
    found = error(status, kind, words, headers=((b"retry-after", b"9"),), **more)
    assert (found.http_status, found.error_code, found.headers) == (502, "upstream_auth", ())
    assert words == "m" or words not in found.message


def test_a_prompt_that_is_too_long_has_openais_code() -> None:
    """Clients cut their history by it."""
    found = error(400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")
    assert (found.http_status, found.error_code, found.param) == (400, "context_length_exceeded", "messages")


def test_secrets_are_taken_out_of_words() -> None:
    """The key, and the place that is asked."""
    adapter = AnthropicAdapter("a", "http://models-a100:9000", "plain words as key")
    told = {"error": {"message": f"models-a100:9000 refused 'plain words as key' and {KEY}; prompt is too long"}}
    for status in (400, 404, 429, 500, 529):
        assert adapter.error(status, (), json.dumps(told).encode()).message == (
            "[redacted] refused '[redacted]' and [redacted]; prompt is too long"
        )
    for body in (b"", b"[]", b'{"error": "a"}', b'{"error": {"message": 7, "details": [], "type": {}}}'):
        assert adapter.error(400, (), body).http_status == 400
