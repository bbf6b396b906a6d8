"""Messages passed on as they are: whole answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message

from asgi_llm_gateway.adapters._native_messages import CountsTokens, counted, native_answer
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import error_status, failure
from asgi_llm_gateway.errors import GatewayError, UpstreamError
from asgi_llm_gateway.records import Usage

from .native_messages_parts import LEGS, TOLD

ANSWER = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
          "content": [{"type": "text", "text": "hi"}]}  # fmt: skip


def refuse(body: bytes) -> GatewayError:
    """What an error is called."""
    return failure("a", error_status(body), (), body)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"usage": {"input_tokens": 5, "output_tokens": 7}}, Usage(5, 7)),
        ({"usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 7}, "context": {}}, Usage(8, 7, 3)),
        ({"usage": {"input_tokens": 30, "output_tokens": 7, "iterations": LEGS}}, Usage(165, 12)),
        ({"usage": {"input_tokens": 5, "output_tokens": 7}, "content": [
            {"type": "tool_use", "input": {"usage": {"input_tokens": 1, "output_tokens": 1}, "error": 1}}]}, Usage(5, 7)),
        ({"content": [{"type": "text", "text": '"usage":{"input_tokens":1,"output_tokens":1}}'}]}, None),
        ({"usage": None}, None),
        ({"usage": {"input_tokens": -1, "output_tokens": 7}}, None),
    ],
)  # fmt: skip
def test_an_answer_goes_on_byte_for_byte(fields: dict[str, Any], expected: Usage | None) -> None:
    """And its counts are read, wherever they stand."""
    for told in ({**ANSWER, **fields}, {**fields, **ANSWER, **fields}):
        body = json.dumps(told).encode()
        found = native_answer("a", body, refuse)
        assert (found.body, found.usage) == (body, expected)
    Message.model_validate_json(
        json.dumps({**ANSWER, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}})
    )


def test_a_long_answer_is_not_parsed() -> None:
    """Its counts are read from the end."""
    body = json.dumps({**ANSWER, "content": [{"type": "text", "text": "x" * 2**21}], "usage": TOLD}).encode()
    assert native_answer("a", body, refuse).usage == Usage(135, 1, 100, 10)
    assert native_answer("a", body.replace(b'"usage"', b'"no"'), refuse).usage is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 502), (b"<html>", 502), (b"[]", 502), (b"7", 502), (b"{}", 502), (b'{"content":"a"}', 502),
        (b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}', 502),
        (b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}', 503),
        (b'{"error":{"type":"rate_limit_error","message":"m"},"usage":{"input_tokens":1,"output_tokens":1}}', 429),
        (b'{"error":{"code":400,"message":"m"}}', 400),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_an_error(body: bytes, status: int) -> None:
    """Also where it comes with a 200."""
    with pytest.raises(GatewayError) as caught:
        native_answer("a", body, refuse)
    assert caught.value.http_status == status


def test_a_count_is_read() -> None:
    """A whole number, or 502."""
    assert counted("a", b'{"input_tokens":22}') == 22
    for body in (b"", b"[]", b'{"input_tokens":"1"}', b'{"input_tokens":-1}', b'{"input_tokens":true}', b"{}"):
        with pytest.raises(UpstreamError):
            counted("a", body)
    assert isinstance(AnthropicAdapter("a", "http://h"), CountsTokens)
