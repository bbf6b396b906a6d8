"""Answers of every dialect in the convention's words, whole and as streams."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.caching import _chat, _messages, _responses
from asgi_llm_gateway.contents.read import answered
from asgi_llm_gateway.wire import Dialect

from . import CHAT_ANSWER, MESSAGES_ANSWER, RESPONSES_ANSWER

ROOM = 64 * 1024
CALL = {"type": "tool_call", "name": "look", "arguments": {"at": "paw"}}
THOUGHT = {"type": "reasoning", "content": "Closer."}
CAT = {"type": "text", "content": "A cat."}

ANSWERS: dict[Dialect, tuple[dict[str, Any], list[Any]]] = {
    "chat": (CHAT_ANSWER, [
        {"role": "assistant", "parts": [CAT], "finish_reason": "stop"},
        {"role": "assistant", "parts": [THOUGHT, {**CALL, "id": "call_2"}], "finish_reason": "tool_call"},
    ]),
    "completions": ({"choices": [{"index": 0, "text": "A cat.", "finish_reason": "length"}]}, [
        {"role": "assistant", "parts": [CAT], "finish_reason": "length"}]),
    "messages": (MESSAGES_ANSWER, [
        {"role": "assistant", "parts": [THOUGHT, CAT, {**CALL, "id": "toolu_2"}], "finish_reason": "tool_call"}]),
    "responses": (RESPONSES_ANSWER, [
        {"role": "assistant", "parts": [THOUGHT, CAT, {**CALL, "id": "call_2"}], "finish_reason": "tool_call"}]),
}  # fmt: skip


def stream_of(dialect: Dialect, answer: dict[str, Any]) -> bytes:
    """A stream that tells an answer, as the cache makes it."""
    if dialect == "messages":
        return b"".join(_messages.events(answer))
    if dialect == "responses":
        return b"".join(_responses.events(answer))
    return b"".join(_chat.events(answer, dialect)[0]) + b"data: [DONE]\n\n"


def read(dialect: Dialect, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What a JSON answer says."""
    return answered(dialect, orjson.dumps(answer), stream=False, limit=ROOM)


@pytest.mark.parametrize("dialect", ANSWERS)
def test_an_answer(dialect: Dialect) -> None:
    """What was thought, said and asked for, and why it ended, in the convention's words."""
    answer, expected = ANSWERS[dialect]
    assert read(dialect, answer) == expected


@pytest.mark.parametrize("dialect", ANSWERS)
def test_a_stream_says_the_same(dialect: Dialect) -> None:
    """Put together from its pieces it is the same content."""
    answer, expected = ANSWERS[dialect]
    assert answered(dialect, stream_of(dialect, answer), stream=True, limit=ROOM) == expected


@given(dialect=st.sampled_from(tuple(ANSWERS)), data=st.data())
def test_a_stream_that_was_cut_says_what_came_until_then(dialect: Dialect, data: st.DataObject) -> None:
    """Wherever it is cut: a beginning of what the whole says, and the end is an error until it is told."""
    answer, expected = ANSWERS[dialect]
    stream = stream_of(dialect, answer)
    cut = data.draw(st.integers(0, len(stream)))
    found = answered(dialect, stream[:cut], stream=True, limit=ROOM)
    assert len(found) <= len(expected)
    for message, whole in zip(found, expected, strict=False):
        assert message["finish_reason"] in ("error", whole["finish_reason"])
        for part, entire in zip(message["parts"], whole["parts"], strict=False):
            assert part["type"] == entire["type"]
            assert entire.get("content", "").startswith(part.get("content", ""))


@pytest.mark.parametrize(
    ("reason", "word"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("tool_calls", "tool_call"),
     ("function_call", "tool_call"), (None, "error"), ("eos", "eos")],
)  # fmt: skip
def test_why_a_chat_ended(reason: str | None, word: str) -> None:
    """The convention's word where it has one, the provider's own where not, and an error for one that never did."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": reason}
    assert read("chat", {"choices": [choice]})[0]["finish_reason"] == word


@pytest.mark.parametrize(
    ("reason", "word"),
    [("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_call"),
     ("refusal", "content_filter"), ("pause_turn", "pause_turn"), (None, "error")],
)  # fmt: skip
def test_why_a_message_ended(reason: str | None, word: str) -> None:
    """The same for Anthropic's words."""
    answer = {"content": [{"type": "text", "text": "x"}], "stop_reason": reason}
    assert read("messages", answer)[0]["finish_reason"] == word


@pytest.mark.parametrize(
    ("end", "word"),
    [({"status": "completed"}, "stop"), ({"status": "failed"}, "error"), ({"status": "cancelled"}, "error"),
     ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
     ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "content_filter"),
     ({"status": "in_progress"}, "error"), ({}, "error")],
)  # fmt: skip
def test_why_a_response_ended(end: dict[str, Any], word: str) -> None:
    """The status, and for an incomplete one its reason."""
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}]
    assert read("responses", {**end, "output": output})[0]["finish_reason"] == word


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"error": {"message": "no"}}', b"\xff\xfe", b'{"a":'])
@pytest.mark.parametrize("dialect", ANSWERS)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_answer_says_nothing(dialect: Dialect, body: bytes, stream: bool) -> None:
    """Errors, halves and other things."""
    assert answered(dialect, body, stream=stream, limit=ROOM) == []


def test_embeddings_say_nothing() -> None:
    """Numbers are no content that the convention has a word for."""
    assert answered("embeddings", b'{"data": [{"embedding": [1.0]}]}', stream=False, limit=ROOM) == []
