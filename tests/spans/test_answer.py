"""What an answer says of itself, in every dialect, whole or cut, and from any bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.openai import OpenAIStream
from asgi_llm_gateway.spans.answer import NOTHING, Told, told_by
from asgi_llm_gateway.usage import UsageReader

CHAT = {
    "id": "c1",
    "model": "m",
    "choices": [{"index": 1, "finish_reason": "length"}, {"index": 0, "finish_reason": "stop"}],
}
RESPONSE = {"id": "r1", "object": "response", "model": "m", "status": "completed", "output": []}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (CHAT, Told("m", "c1", ("stop", "length"))),
        ({"id": "m1", "type": "message", "model": "c", "stop_reason": "end_turn"}, Told("c", "m1", ("end_turn",))),
        (RESPONSE, Told("m", "r1", ("stop",))),
        ({**RESPONSE, "output": [{"type": "function_call"}]}, Told("m", "r1", ("tool_calls",))),
        ({**RESPONSE, "status": "failed"}, Told("m", "r1", ("error",))),
        (
            {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            Told("m", "r1", ("length",)),
        ),
        (
            {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
            Told("m", "r1", ("content_filter",)),
        ),
        ({"object": "list", "model": "e", "data": []}, Told("e")),
        ([], NOTHING),
        ({"id": 7, "model": None, "choices": [None, {"finish_reason": 3}]}, Told()),
    ],
)
def test_a_json_answer(answer: Any, told: Told) -> None:
    """Of each dialect."""
    assert told_by(json.dumps(answer).encode()) == told


def test_a_long_answer_is_not_parsed() -> None:
    """Embeddings tell their model all the same; a text could hold anything that looks like it."""
    numbers = [{"object": "embedding", "embedding": [0.123456] * 40_000}]
    assert told_by(json.dumps({"data": numbers, "model": "e"}).encode()) == Told("e")
    text = 'x"model": "not me"' * 20_000
    assert told_by(json.dumps({"choices": [{"message": {"content": text}}], "model": "m"}).encode()) == NOTHING


def stream_of(*events: dict[str, Any] | bytes) -> bytes:
    """Events as they are sent."""
    return b"".join(one if isinstance(one, bytes) else b"data: " + json.dumps(one).encode() + b"\n\n" for one in events)


def choice(text: str, reason: str | None = None, at: int = 0) -> dict[str, Any]:
    """A chat's chunk."""
    return {"id": "c1", "model": "m", "choices": [{"index": at, "delta": {"content": text}, "finish_reason": reason}]}


MESSAGES = [
    {"type": "message_start", "message": {"id": "m1", "model": "c", "usage": {"input_tokens": 3}}},
    *[{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word"}}] * 2000,
    {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
]
STREAMS: dict[str, tuple[list[Any], Told]] = {
    "chat": (
        [choice("a"), choice("b", "stop"), choice("", "length", 1), {"choices": [], "usage": {}}, b"data: [DONE]\n\n"],
        Told("m", "c1", ("stop", "length")),
    ),
    "long chat": ([*[choice("word")] * 1000, choice("", "stop"), b"data: [DONE]\n\n"], Told("m", "c1", ("stop",))),
    "a chat that was cut": ([choice("a"), choice("b")], Told("m", "c1")),
    "messages": (MESSAGES, Told("c", "m1", ("max_tokens",))),
    "responses": (
        [
            {"type": "response.created", "response": {**RESPONSE, "status": "in_progress"}},
            *[{"type": "response.output_text.delta", "delta": "word"}] * 2000,
            {"type": "response.completed", "response": RESPONSE},
        ],
        Told("m", "r1", ("stop",)),
    ),
    "responses that were cut": (
        [{"type": "response.created", "response": {**RESPONSE, "status": "in_progress"}}],
        Told("m", "r1"),
    ),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [97, 4096, 10**9])
def test_a_stream(name: str, size: int) -> None:
    """However it is cut, and however long it was: its beginning and its end are kept."""
    events, told = STREAMS[name]
    data = stream_of(*events)
    reader = UsageReader(stream=True)
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size])
    reader.end()
    assert told_by(reader) == told


def test_a_decoder_knows_the_same() -> None:
    """What relays a stream keeps as much of it."""
    events, told = STREAMS["long chat"]
    decoder = OpenAIStream("a", drop_usage=True)
    decoder.feed(stream_of(*events))
    assert told_by(decoder) == told


def test_a_reader_of_json_knows_the_same() -> None:
    """And keeps nothing of an answer that was too long for it."""
    reader = UsageReader(stream=False)
    reader.feed(json.dumps(CHAT).encode())
    reader.end()
    assert told_by(reader) == Told("m", "c1", ("stop", "length"))
    short = UsageReader(stream=False, limit=10)
    short.feed(json.dumps(CHAT).encode())
    short.end()
    assert told_by(short) == NOTHING


WILD = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["id", "model", "choices", "finish_reason", "stop_reason", "delta", "response", "message", "status",
                         "object", "output", "type", "index", "incomplete_details", "reason", "usage"]), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(st.binary(max_size=60) | WILD.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_sound(data: bytes) -> None:
    """Nothing a provider sends raises, and nothing but short words comes back."""
    reader = UsageReader(stream=True)
    reader.feed(b"data: " + data + b"\n\ndata: response." + data + b"\n\n")
    for told in (told_by(data), told_by(reader), told_by(None), told_by(object())):
        assert all(one is None or (isinstance(one, str) and 0 < len(one) <= 128) for one in told[:2])
        assert all(isinstance(one, str) for one in told.reasons)
