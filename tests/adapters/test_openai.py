"""OpenAI's dialect: requests, answers, streams, and failures in words that may leave the house."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.base import (
    MAX_ERROR_TEXT,
    FailedAnswer,
    Unsupported,
    clean,
    error_fields,
    failure,
    retry_after,
)
from asgi_llm_gateway.adapters.compatible import VENDORS
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.errors import GatewayError, UpstreamError
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

from ..upstream import USAGE

KEY = "sk-proj-abcdefghijklmnop"
ADAPTER = OpenAIAdapter("openai", "https://api.example.com/v1/", KEY)


def request(path: str = "/v1/chat/completions", **fields: Any) -> LLMRequest:
    """A parsed request."""
    dialect = METERED[path]
    told: dict[str, Any] = {"model": "m", **fields}
    if dialect == "chat":
        told.setdefault("messages", [{"role": "user", "content": "a"}])
    return parse(Route("metered", dialect, path), json.dumps(told).encode())


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields", "url"),
    [
        ("/v1/chat/completions", {}, "https://api.example.com/v1/chat/completions"),
        ("/v1/completions", {"prompt": "x"}, "https://api.example.com/v1/completions"),
        ("/v1/embeddings", {"input": "x"}, "https://api.example.com/v1/embeddings"),
    ],
)
def test_a_request_goes_to_its_path(path: str, fields: dict[str, Any], url: str) -> None:
    """The same endpoint each time, so that the client renders it once; the body untouched."""
    asked = request(path, **fields)
    sent = ADAPTER.request(asked, "m")
    assert (sent.endpoint.method, sent.endpoint.url, sent.body) == ("POST", url, asked.raw)
    assert ADAPTER.request(asked, "m").endpoint is sent.endpoint


def test_an_api_without_a_path_is_refused() -> None:
    """Not sent somewhere in hope."""
    asked = request("/v1/messages", max_tokens=1, messages=[{"role": "user", "content": "a"}])
    with pytest.raises(Unsupported, match="openai"):
        ADAPTER.request(asked, "m")


def test_another_model_is_written_into_the_body() -> None:
    """And nothing else changes."""
    asked = request(temperature=0.1, seed=2**70, new={"x": [1.0, None]})
    body = json.loads(ADAPTER.request(asked, "other").body)
    assert body == {**json.loads(asked.raw), "model": "other"}


def test_a_key_that_would_split_the_head_is_refused() -> None:
    """At the start, not at the first call."""
    for key in ("a\r\nb", "a\nb", "a\0b"):
        with pytest.raises(ValueError, match="line breaks"):
            OpenAIAdapter("x", "http://h/v1", key)


def test_no_repr_holds_the_key() -> None:
    """An endpoint is shown by method and URL."""
    sent = ADAPTER.request(request(), "m")
    assert repr(sent.endpoint) == "Endpoint(POST https://api.example.com/v1/chat/completions)"
    assert KEY not in repr(sent) + repr(ADAPTER)


# -- answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_is_passed_on_byte_for_byte_with_its_usage() -> None:
    """Read, not rewritten."""
    body = b'{ "choices" : [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "cost": 0.01} }'
    assert ADAPTER.response(request(), body) == (body, Usage(3, 5, provider_cost=10_000_000))
    assert ADAPTER.response(request(), b'{"choices": []}') == (b'{"choices": []}', None)
    assert ADAPTER.response(request(), b'{"choices": [], "error": null}').usage is None


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a": ', b"[]", b'"text"', b"7", b"null", b"\xff\xfe"])
def test_what_is_no_answer_is_an_upstream_error(body: bytes) -> None:
    """502, whatever it is."""
    with pytest.raises(UpstreamError) as caught:
        ADAPTER.response(request(), body)
    assert caught.value.http_status == 502


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "m"}, 502),
        ({"message": "m", "code": 429}, 429),
        ({"message": "m", "code": 503}, 503),
        ({"message": "m", "code": 401}, 502),
        ({"message": "m", "code": 200}, 502),
        ({"message": "m", "code": 99999}, 502),
        ({"message": "m", "code": "rate_limit"}, 502),
        ("just words", 502),
    ],
)
def test_an_error_inside_a_200_is_an_error(error: Any, status: int) -> None:
    """OpenRouter's way of saying it; its code is the status."""
    with pytest.raises(GatewayError) as caught:
        ADAPTER.response(request(), json.dumps({"error": error}).encode())
    assert caught.value.http_status == status


def test_a_reply_by_another_model_is_passed_on() -> None:
    """A router may have chosen it; the client is told its name, byte for byte."""
    body = b'{"model": "vendor/other-2026", "choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}'
    assert ADAPTER.response(request(), body) == (body, Usage(3, 0))


@pytest.mark.parametrize("text", ["quiet", '\\"error\\": {\\"code\\": 402}'])
def test_a_response_whose_error_is_null_is_passed_on(text: str) -> None:
    """As all of them have it that did not fail; usage is that of Responses."""
    body = f'''{{"object": "response", "status": "completed", "error": null, "output": [{{"text": "{text}"}}],
               "usage": {{"input_tokens": 3, "output_tokens": 5}}}}'''.encode()
    assert ADAPTER.response(request("/v1/responses", input="x"), body) == (body, Usage(3, 5))


def test_a_response_that_failed_is_an_error_and_its_tokens_are_kept() -> None:
    """A 200 is no proof."""
    body = {"object": "response", "status": "failed", "error": {"code": "server_error", "message": "m"},
            "usage": {"input_tokens": 3, "output_tokens": 5}}  # fmt: skip
    with pytest.raises(FailedAnswer) as caught:
        ADAPTER.response(request("/v1/responses", input="x"), json.dumps(body).encode())
    assert (caught.value.http_status, caught.value.usage) == (502, Usage(3, 5))


def test_arguments_as_an_object_become_text_where_a_vendor_sends_them_so() -> None:
    """Ollama's way; everybody else's answer goes on as it came."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": [1, 2.5]}}}
    body = json.dumps({"choices": [{"message": {"tool_calls": [call]}}], "usage": {"prompt_tokens": 3}}).encode()
    ollama = OpenAIAdapter("o", "http://h/v1", vendor=VENDORS["ollama"])
    told = ollama.response(request(), body)
    assert json.loads(told.body)["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"a":[1,2.5]}'
    assert told.usage == Usage(3, 0)
    assert ADAPTER.response(request(), body).body is body


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected", "kind", "code"),
    [
        (400, 400, "invalid_request_error", "upstream_refused"),
        (401, 502, "upstream_error", "upstream_auth"),
        (402, 502, "upstream_error", "upstream_auth"),
        (403, 502, "upstream_error", "upstream_auth"),
        (404, 404, "invalid_request_error", "upstream_refused"),
        (408, 504, "upstream_error", "upstream_timeout"),
        (409, 409, "invalid_request_error", "upstream_refused"),
        (413, 413, "invalid_request_error", "upstream_refused"),
        (422, 422, "invalid_request_error", "upstream_refused"),
        (429, 429, "rate_limit_error", "upstream_rate_limited"),
        (500, 502, "upstream_error", "upstream_error"),
        (502, 502, "upstream_error", "upstream_error"),
        (503, 503, "upstream_error", "upstream_unavailable"),
        (504, 504, "upstream_error", "upstream_timeout"),
        (508, 508, "server_error", "gateway_loop"),
        (524, 504, "upstream_error", "upstream_timeout"),
        (529, 503, "upstream_error", "upstream_unavailable"),
        (599, 502, "upstream_error", "upstream_error"),
    ],
)
def test_a_status_is_told_as_what_it_is_for_the_client(status: int, expected: int, kind: str, code: str) -> None:
    """The client's own fault keeps its status; the gateway's credentials and the provider's faults are 5xx."""
    for body in (b"", b"<html>", b'{"error": {"message": "words"}}'):
        error = failure("openai", status, (), body)
        assert (error.http_status, error.error_type, error.error_code) == (expected, kind, code)
        assert "openai" in error.message or error.message == "words"


def test_the_providers_code_and_param_are_kept() -> None:
    """If they are names; numbers only repeat the status."""
    told = {"error": {"message": "m", "code": "context_length_exceeded", "param": "messages"}}
    error = failure("x", 400, (), json.dumps(told).encode())
    assert (error.error_code, error.param) == ("context_length_exceeded", "messages")
    for code in (400, "400", None, {"a": 1}):
        error = failure("x", 400, (), json.dumps({"error": {"message": "m", "code": code, "param": 7}}).encode())
        assert (error.error_code, error.param) == ("upstream_refused", None)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
        "request (12024 tokens) exceeds the available context size (2048 tokens), try increasing it",
        "The input exceeds the model's context window.",
        "Context length exceeded",
    ],
)
def test_a_prompt_that_is_too_long_has_one_name_for_all_vendors(message: str) -> None:
    """``context_length_exceeded``, whatever the vendor calls it, so that a longer model can be tried."""
    for code in (400, "400", None, "invalid_prompt"):
        told = {"error": {"message": message, "code": code}}
        error = ADAPTER.error(400, (), json.dumps(told).encode())
        assert (error.http_status, error.error_code, error.param) == (400, "context_length_exceeded", "messages")
        assert error.message == message
    assert ADAPTER.error(500, (), json.dumps({"error": {"message": message}}).encode()).http_status == 502


@pytest.mark.parametrize("kind", ["insufficient_quota", "budget_exceeded", "team_model_access_denied", "expired_key"])
@pytest.mark.parametrize("field", ["type", "code"])
def test_the_gateways_own_account_is_not_the_tenants(kind: str, field: str) -> None:
    """A tenant would take ``insufficient_quota`` for the end of its own budget, and its SDK would not come again."""
    for status in (400, 402, 403, 422, 429):
        error = ADAPTER.error(status, (), json.dumps({"error": {"message": "Top up at x", field: kind}}).encode())
        assert (error.http_status, error.error_code) == (502, "upstream_account")
        assert "Top up" not in error.message


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": {"message": "a"}}', {"message": "a"}),
        (b'{"error": "a"}', {"message": "a"}),
        (b'{"message": "a", "object": "error"}', {"message": "a", "object": "error"}),
        (b'[{"error": {"message": "a"}}]', {"message": "a"}),
        (b'{"error": 7}', {}),
        (b'{"error": null}', {}),
        (b"[]", {}),
        (b"7", {}),
        (b"", {}),
        (b"<html>", {}),
    ],
)
def test_an_error_is_read_in_any_shape(body: bytes, expected: dict[str, Any]) -> None:
    """OpenAI's, vLLM's, Gemini's array, a lone string, or none."""
    assert error_fields(body) == expected


def test_the_wish_to_come_again_is_kept() -> None:
    """Both headers that SDKs obey."""
    headers = [(b"retry-after", b"3"), (b"retry-after-ms", b"2900"), (b"x-ratelimit-reset", b"1")]
    assert retry_after(headers) == tuple(headers[:2])
    assert failure("x", 429, headers, b"").headers == tuple(headers[:2])
    assert failure("x", 500, headers, b"").headers == ()


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abc123456789", "sk-ant-api03-AAAA_BBBB", "sk-or-v1-0123456789abcdef", "sk-abc***********wxyz",
        "gsk_abcdefgh12345678", "xai-abcdefgh12345678", "AIzaSyA1234567890abcdef", "Bearer eyJhbGciOi.J9.x",
        "http://10.0.0.5:8000/v1/chat", "https://api.openai.com/v1/x?key=1", "postgresql://u:p@db/x", "10.1.2.3",
        "10.1.2.3:8000", "llm.prod.internal", "vllm-0.vllm.default.svc:8000", "gpu.local", "localhost:8000",
        "[::1]:8000", "fe80::1ff:fe23:4567:890a", "llm.corp.example.com:8443",
    ],
)  # fmt: skip
def test_keys_and_places_are_taken_out_of_words(secret: str) -> None:
    """Wherever they stand in a message."""
    for text in (secret, f"at {secret}.", f"'{secret}'", f"({secret}) failed", f"key={secret}, sorry", f"{secret}: no"):
        assert secret not in clean(text)


@pytest.mark.parametrize(
    "text",
    [
        "Rate limit reached for gpt-4o-mini in organization on tokens per min (TPM): Limit 200000, Used 199000.",
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
        "Invalid value: 'foo'. Supported values are: 'system', 'assistant', 'user', and 'tool'.",
        "Unknown parameter: 'messages[0].content[1].image_url.detail'.",
        "The model claude-3.5-sonnet:beta is not available at 12:30:45.",
        "version 1.2.3 of llama-3.1-8b-instruct",
    ],
)
def test_plain_words_stay(text: str) -> None:
    """A message that tells the client what to do is not blackened."""
    assert clean(text) == text


def test_the_gateways_own_key_is_taken_out_whatever_it_looks_like() -> None:
    """The adapter knows its own secrets: its key, and the place that it asks."""
    adapter = OpenAIAdapter("x", "http://models-a100:9000/v1", "plain words as key")
    told = {"error": {"message": "models-a100:9000 refused 'plain words as key'"}}
    assert adapter.error(400, (), json.dumps(told).encode()).message == "[redacted] refused '[redacted]'"


@given(st.text())
def test_cleaning_never_fails_and_is_bounded(text: str) -> None:
    """Whatever a provider says."""
    assert len(clean(text * 10)) <= MAX_ERROR_TEXT


def test_cleaning_is_quick_on_long_words() -> None:
    """A megabyte of anything is read in no time: the patterns do not run wild."""
    for text in ("a." * 500_000, "1." * 500_000, "sk-" * 300_000, "a" * 10**6, "://" * 300_000, ":" * 10**6):
        assert len(clean(text)) <= MAX_ERROR_TEXT


def test_usage_in_the_tests_is_what_the_tests_say() -> None:
    """The scripted provider's numbers."""
    assert USAGE["prompt_tokens"] + USAGE["completion_tokens"] == USAGE["total_tokens"]
