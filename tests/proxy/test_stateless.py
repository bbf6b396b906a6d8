"""What is answered to those who ask for a stored response."""

from __future__ import annotations

import pytest

from asgi_llm_gateway.proxy.stateless import responses_route


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("GET", "/v1/responses/resp_1", "not stored here"),
        ("DELETE", "/v1/responses/resp_1", "No response 'resp_1'"),
        ("POST", "/v1/responses/resp_1/cancel", "No response 'resp_1'"),
        ("GET", "/v1/responses/resp_1/input_items", "send earlier items again in 'input'"),
        ("POST", "/v1/responses/input_tokens", "not served"),
        ("POST", "/v1/responses/compact", "sum them up"),
        ("POST", "/v1/responses/resp_1/else", "No such path: POST /v1/responses/resp_1/else"),
        ("GET", "/v1/responses/", "not stored here"),
    ],
)
def test_it_says_that_nothing_is_stored(method: str, path: str, words: str) -> None:
    """404, and what to do instead."""
    error = responses_route(path, method)
    assert (error.http_status, error.error_type) == (404, "invalid_request_error")
    assert words in error.message


def test_a_long_or_odd_path_is_told_short_and_plain() -> None:
    """What a client wrote does not fill the answer or a log."""
    message = responses_route("/v1/responses/" + "x" * 5000 + "/\r\n\x00" + "y" * 5000, "GET" * 100).message
    assert len(message) < 400
    assert message.isprintable()
