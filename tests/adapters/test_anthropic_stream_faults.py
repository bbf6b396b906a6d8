"""Anthropic's streams with what is strange or wrong in them: passed over, or told as an error."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_llm_gateway.errors import UpstreamError

from .anthropic_events import (
    ADAPTER,
    PING,
    STOP,
    block,
    delta,
    deltas,
    event,
    read,
    reason,
    request,
    start,
    use,
    words,
)


def test_what_is_not_known_is_passed_over() -> None:
    """Events, deltas and blocks that are new, tools of the provider's own, pings, comments, events without data."""
    found, stream = read(
        b": hello\n\n", PING, start(), b"event: ping\n\n", b"data:\n\n", event("something_new", index=0, delta={"text": "x"}),
        block(0, "server_tool_use", {"type": "input_json_delta", "partial_json": "{}"}, name="x", id="y", input={}),
        block(1, "web_search_tool_result", content=[]),
        block(2, "text", {"type": "citations_delta", "citation": {}}, {"type": "new_delta", "text": "x"},
              {"type": "text_delta", "text": ""}, {"type": "text_delta", "text": "a"}, {"type": "text_delta"}, text=""),
        event("content_block_delta", index=9, delta={"type": "input_json_delta", "partial_json": "x"}),
        event("content_block_delta"), event("content_block_start"), event("content_block_stop"), event("message_delta"),
        event("content_block_delta", index=[], delta=[]), b'data: {"type": []}\n\n', b'data: {}\n\n',
        delta(), STOP, words(3, "late"), STOP,
    )  # fmt: skip
    assert deltas(found)[1:] == [{"content": "a"}, {}]
    assert (found.count("[DONE]"), stream.complete) == (1, True)


def test_text_in_a_blocks_start_is_not_lost() -> None:
    """Servers that are only like Anthropic's send some there."""
    found, _ = read(start(), block(0, "thinking", thinking="t"), block(1, "text", text="a"), delta(), STOP)
    assert deltas(found)[1:-1] == [{"reasoning_content": "t"}, {"content": "a"}]


@pytest.mark.parametrize(
    "said", [b"data: {\n\n", b"data: nonsense\n\n", b"data: [1]\n\n", b"data: \xff\n\n", b"data: 7\n\n"]
)
def test_a_broken_event_is_an_upstream_error(said: bytes) -> None:
    """A piece may be missing: to go on would be to lose it in silence."""
    stream = ADAPTER.stream(request())
    stream.feed(start() + words(0, "a"))
    with pytest.raises(UpstreamError, match="not JSON"):
        stream.feed(said)
    assert not stream.complete


def test_a_stream_begins_once() -> None:
    """Also where the provider begins anew."""
    found, stream = read(start(), start(input_tokens=9, output_tokens=1), words(0, "a"), delta(), STOP)
    assert [one.get("role") for one in deltas(found)] == ["assistant", None, None]
    assert stream.usage is not None


def test_a_call_that_is_nested_too_deeply_is_an_upstream_error() -> None:
    """Not an exception of ours, neither then nor at the end."""
    said = use(0, "f", input={"a": 0}, stop=False).replace(b'"a": 0', b'"a": ' + b"[" * 400 + b"]" * 400)
    stream = ADAPTER.stream(request())
    with pytest.raises(UpstreamError, match="deeply"):
        stream.feed(start() + said)
    assert stream.finish() == b""


def test_an_event_without_an_end_is_given_up_on() -> None:
    """After 8 MiB."""
    stream = ADAPTER.stream(request())
    for _ in range(128):
        assert stream.feed(b"x" * 65536) == b""
    with pytest.raises(UpstreamError, match="without an end"):
        stream.feed(b"x")


@pytest.mark.parametrize(
    ("kind", "code", "type"),
    [
        ("overloaded_error", "upstream_unavailable", "upstream_error"),
        ("api_error", "upstream_error", "upstream_error"),
        ("rate_limit_error", "upstream_rate_limited", "rate_limit_error"),
        ("authentication_error", "upstream_auth", "upstream_error"),
        ("billing_error", "upstream_auth", "upstream_error"),
        ("timeout_error", "upstream_timeout", "upstream_error"),
        ("something_new", "upstream_error", "upstream_error"),
        (None, "upstream_error", "upstream_error"),
    ],
)
def test_an_error_amid_the_stream_is_told_as_one(kind: Any, code: str, type: str) -> None:
    """In OpenAI's shape, cleaned, with no end after it: not a normal finish, and not swallowed."""
    said = event(
        "error", error={"type": kind, "message": "Overloaded at https://internal.example with sk-ant-abcdefgh1234"}
    )
    found, stream = read(start(), words(0, "a"), said, words(1, "late"), delta(), STOP)
    assert (found[-1]["error"]["code"], found[-1]["error"]["type"]) == (code, type)
    assert "sk-ant" not in str(found)
    assert "internal" not in str(found)
    assert not reason(found)
    assert (stream.failed, stream.ending, stream.complete) == (True, True, False)
    assert stream.usage is not None
    assert stream.usage.estimated
