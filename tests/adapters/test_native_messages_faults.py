"""Messages passed on as they are: errors amid a stream, and how streams end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters._native_messages import MessagesStream
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import error_status, failure
from asgi_llm_gateway.errors import UpstreamError

from .native_messages_parts import END, STOP, accumulated, delta, event, piece, read, start, words


@pytest.mark.parametrize(
    ("kind", "told", "status"),
    [
        ("overloaded_error", "overloaded_error", 503), ("rate_limit_error", "rate_limit_error", 429),
        ("invalid_request_error", "invalid_request_error", 400), ("timeout_error", "timeout_error", 504),
        ("authentication_error", "api_error", 502), ("billing_error", "api_error", 502), ("api_error", "api_error", 502),
        ("something_new", "api_error", 502), (7, "api_error", 502),
    ],
)  # fmt: skip
@pytest.mark.parametrize("adapter", [None, AnthropicAdapter("a", "https://api.example.com", "the-secret-key")])
def test_an_error_amid_the_stream_is_told_in_our_words(
    kind: Any, told: str, status: int, adapter: AnthropicAdapter | None
) -> None:
    """As an error event without keys and hosts; nothing goes on after it."""
    message = "Overloaded at https://internal.example with sk-ant-abcdefgh1234"
    said = event("error", error={"type": kind, "message": message}, request_id="req_1")
    stream = MessagesStream("anthropic", adapter._failed if adapter else None)
    out = stream.feed(start() + words("a") + said + piece("late") + STOP)
    assert out.startswith(start() + words("a") + b"event: error\ndata: ")
    body = json.loads(out.rpartition(b"data: ")[2])
    assert (body["type"], body["error"]["type"]) == ("error", told)
    assert not any(word in out for word in (b"sk-ant", b"internal.example", b"late", b"message_stop"))
    assert (stream.failed, stream.ending, stream.complete) == (True, True, False)
    assert stream.feed(piece("later")) + stream.finish() == b""
    assert stream.usage is not None
    assert stream.usage.estimated
    assert failure("a", error_status(said.split(b"\n")[1][6:]), (), b"").http_status == status


@pytest.mark.parametrize(
    "said",
    [b'event: error\ndata: {"error":{"code":400,"message":"no"}}\n\n', b'data: {"error":{"message":"no"}}\n\n',
     b"event: error\ndata: no json\n\n", b'event:error\r\ndata: "no"\r\n\r\n', b'data: {"type":"error"}\n\n'],
)  # fmt: skip
def test_an_error_is_seen_however_it_is_written(said: bytes) -> None:
    """By its event's name, its type, or its one field."""
    out, stream = read(start(), words("a"), said)
    assert (stream.failed, out.count(b"event: error\n")) == (True, 1)


def test_an_error_after_the_end_changes_nothing() -> None:
    """The answer is whole."""
    out, stream = read(start(), words("a"), END, STOP, event("error", error={"type": "api_error", "message": "x"}))
    assert (out.endswith(STOP), stream.complete, stream.failed) == (True, True, False)


@pytest.mark.parametrize(
    ("body", "status"),
    [(b'{"error":{"type":"overloaded_error"}}', 529), (b'{"error":{"code":503}}', 503), (b'{"error":{"code":7}}', 502),
     (b"", 502), (b'{"error":{"type":"request_too_large","code":400}}', 400), (b'{"error":{"code":"429"}}', 429)],
)  # fmt: skip
def test_the_status_of_an_error(body: bytes, status: int) -> None:
    """By its code, or its type."""
    assert error_status(body) == status


@pytest.mark.parametrize(
    ("said", "complete"),
    [
        ((END, STOP), True), ((END, STOP[:-1]), True), ((END, STOP[:-2]), True), ((END,), True), ((END[:-2],), True),
        ((END, STOP[:-5]), False), ((END, STOP[:20]), False), ((END, b"event"), False),
        ((END[:-5],), False), ((delta(None, output_tokens=3),), False), ((STOP,), True), ((), False),
        ((piece("b")[:-2],), False),
    ],
)  # fmt: skip
def test_a_stream_is_complete_only_if_it_said_so(said: tuple[bytes, ...], complete: bool) -> None:
    """Its last event, also without the blank line, or the reason of its end and nothing half after it. Clients get the end."""
    out, stream = read(start(), words("a"), *said)
    assert stream.complete is complete
    assert out.endswith(STOP) is complete
    assert accumulated(out).content[0].text.startswith("a")


def test_a_failure_is_an_error_event() -> None:
    """That the official client raises."""
    assert MessagesStream("a").failure(UpstreamError("It broke.", code="upstream_cut")) == (
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"It broke.","code":"upstream_cut"}}\n\n'
    )


def test_what_is_no_stream_is_an_upstream_error() -> None:
    """News that are broken, and an event without an end."""
    for said in (b'event: message_delta\ndata: {"type":"message_delta",\n\n', b"data: message_start\n\n"):
        with pytest.raises(UpstreamError, match="not JSON"):
            MessagesStream("a").feed(said)
    stream = MessagesStream("a")
    for _ in range(128):
        assert stream.feed(b"x" * 65536) == b""
    with pytest.raises(UpstreamError, match="without an end"):
        stream.feed(b"x")


WORDS = st.sampled_from(["type", "message_start", "message_delta", "message_stop", "error", "usage", "delta", "stop_reason",
                         "output_tokens", "iterations", "message", "input_tokens"])  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.integers(-3, 10) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(st.dictionaries(WORDS, ANYTHING, max_size=5), max_size=6))
def test_whatever_comes_is_passed_on_or_refused(events: list[dict[str, Any]]) -> None:
    """Never with an exception of ours."""
    stream = MessagesStream("a")
    said = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in events]
    out = b"".join([stream.feed(one) for one in said]) + stream.finish()
    assert stream.failed or stream.complete or out == b"".join(said) or out.endswith(STOP)
    assert stream.usage is None or stream.usage.total >= 0
