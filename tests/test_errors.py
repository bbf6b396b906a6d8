"""Errors: both envelopes, the event of a stream that broke, and the headers that tell a client what to do."""

from __future__ import annotations

import inspect
import json

import pytest

from asgi_llm_gateway import errors
from asgi_llm_gateway._asgi import send_error
from asgi_llm_gateway.errors import (
    NO_RETRY,
    BadRequest,
    BudgetError,
    GatewayError,
    InvalidKey,
    MisorderedStack,
    NotFound,
    RateLimited,
    StoreError,
    TooLarge,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)

from .conversation import Answer


def test_openais_envelope_names_message_type_param_and_code() -> None:
    """The OpenAI SDK reads these four."""
    error = BadRequest("'model' is required.", param="model", code="missing_required_parameter")
    assert json.loads(error.body()) == {
        "error": {
            "message": "'model' is required.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "missing_required_parameter",
        }
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequest("x"), "invalid_request_error"),
        (InvalidKey(), "authentication_error"),
        (BudgetError("x"), "billing_error"),
        (errors.Forbidden("x"), "permission_error"),
        (NotFound("x"), "not_found_error"),
        (TooLarge("x"), "request_too_large"),
        (RateLimited("x"), "rate_limit_error"),
        (MisorderedStack("x"), "api_error"),
        (UpstreamError("x"), "api_error"),
        (Unavailable("x"), "overloaded_error"),
        (UpstreamTimeout("x"), "timeout_error"),
        (BadRequest("x", status=415), "invalid_request_error"),
    ],
)
def test_anthropics_envelope_names_its_own_types(error: GatewayError, kind: str) -> None:
    """The Anthropic SDK reads ``type: error`` and the type that goes with the status."""
    body = json.loads(error.body("anthropic"))
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["message"] == error.message


def test_a_failure_within_a_stream_is_one_event() -> None:
    """One whole event in the caller's dialect, and no ``[DONE]``."""
    error = UpstreamError("The provider went away.")
    assert error.event() == b"data: " + error.body() + b"\n\n"
    assert error.event("anthropic") == b"event: error\ndata: " + error.body("anthropic") + b"\n\n"
    assert error.event().count(b"\n") == 2


def test_a_message_with_line_breaks_stays_one_event() -> None:
    """Nothing that is quoted can end the event early."""
    assert UpstreamError("one\n\ndata: [DONE]\r\n").event().count(b"\n") == 2


def test_what_is_given_stands_before_the_classs_own() -> None:
    """Status, type and code may be set for one failure."""
    error = GatewayError("x", status=418, type="teapot", code="short", headers=((b"a", b"b"),))
    assert (error.http_status, error.error_type, error.error_code, error.headers) == (
        418,
        "teapot",
        "short",
        ((b"a", b"b"),),
    )
    plain = GatewayError("x")
    assert (plain.http_status, plain.error_type, plain.error_code, plain.headers) == (
        500,
        "server_error",
        "internal_error",
        (),
    )


@pytest.mark.parametrize("error", [InvalidKey(), BudgetError("x")])
def test_a_refusal_that_stays_one_tells_sdks_not_to_retry(error: GatewayError) -> None:
    """Both official SDKs obey ``x-should-retry``."""
    assert NO_RETRY in error.headers


def test_an_invalid_key_is_always_the_same_words() -> None:
    """Nothing can be learnt from the refusal."""
    assert InvalidKey().body() == InvalidKey().body()
    assert (b"www-authenticate", b"Bearer") in InvalidKey().headers


def test_every_error_has_a_status_a_type_and_a_code() -> None:
    """One tree; each class knows what it is."""
    found = [
        one
        for _, one in inspect.getmembers(errors, inspect.isclass)
        if issubclass(one, GatewayError) and one is not GatewayError
    ]
    assert len(found) >= 12
    for one in found:
        assert 400 <= one.status <= 599, one
        assert one.type, one
        assert one.code, one
    assert not issubclass(StoreError, GatewayError)  # never shown as it is


async def test_an_error_is_answered_with_its_length_and_headers() -> None:
    """A whole JSON answer."""
    messages: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        messages.append(message)

    await send_error(send, RateLimited("slow down", headers=((b"retry-after", b"3"),)))
    answer = Answer(messages)
    assert answer.status == 429
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["retry-after"] == "3"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.error["message"] == "slow down"
