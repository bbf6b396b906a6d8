"""Anthropic's streams in OpenAI's words: roles and texts, why the answer ended, and signs of life."""

from __future__ import annotations

import pytest
from openai.types.chat import ChatCompletionChunk

from asgi_llm_gateway.adapters._anthropic_stream import AnthropicStream
from asgi_llm_gateway.adapters.base import StreamDecoder
from asgi_llm_gateway.records import Usage

from ..upstream import DONE
from .anthropic_events import (
    ADAPTER,
    PING,
    STOP,
    delta,
    deltas,
    read,
    reason,
    request,
    start,
    thought,
    use,
    words,
)


def test_a_stream_of_text() -> None:
    """Role, words, reason, end; one id; usage only where it was asked for."""
    stream: StreamDecoder = ADAPTER.stream(request())
    assert isinstance(stream, AnthropicStream)
    found, stream = read(start(), words(0, "Hel", "lo"), delta(), STOP)
    assert deltas(found) == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert (reason(found), found[-1]) == (["stop"], "[DONE]")
    assert {(chunk["id"], chunk["model"], chunk["object"]) for chunk in found[:-1]} == {
        ("msg_1", "claude-x", "chat.completion.chunk")
    }
    assert not any("usage" in chunk for chunk in found[:-1])
    assert stream.usage == Usage(135, 7, 100, 10)
    assert (stream.complete, stream.ending, stream.failed) == (True, True, False)


def test_the_official_client_reads_each_chunk() -> None:
    """With its typed model."""
    found, _ = read(
        start(), thought(0, "hm"), words(1, "a"), use(2, "look", '{"a":', "1}"), delta("tool_use"), STOP, usage=True
    )
    for chunk in found[:-1]:
        ChatCompletionChunk.model_validate(chunk, strict=True)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"),
        ("model_context_window_exceeded", "length"), ("pause_turn", "length"), ("compaction", "length"),
        ("refusal", "content_filter"), ("something_new", "stop"),
    ],
)  # fmt: skip
def test_a_reason_in_openais_words(told: str, expected: str) -> None:
    """Once, and never a word that clients do not know."""
    assert reason(read(start(), words(0, "a"), delta(told), STOP)[0]) == [expected]


def test_a_refusal_says_why() -> None:
    """Where the provider does."""
    details = {"type": "refusal", "category": "bio", "explanation": "No."}
    found, _ = read(start(), words(0, "a"), delta("refusal", stop_details=details), STOP)
    assert deltas(found)[-2:] == [{"refusal": "No."}, {}]
    assert reason(found) == ["content_filter"]


def test_signs_of_life_go_on_as_comments() -> None:
    """Also before the first event and while the model thinks; none is an event, and none comes after the end."""
    stream = ADAPTER.stream(request())
    assert (stream.feed(PING + b"event: ping\n\n"), stream.events) == (b": ping\n\n", 0)
    stream.feed(start() + words(0, "a"))
    before = stream.events
    assert (stream.feed(PING), stream.events) == (b": ping\n\n", before)
    assert stream.feed(delta() + STOP).endswith(DONE)
    assert stream.feed(PING) == b""
