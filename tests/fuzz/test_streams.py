"""What a provider may send in the place of a stream: read, passed on or given up on, within bounds."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway._sse import EventSplitter, EventTooLong, data_of, split
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import Adapter
from asgi_llm_gateway.adapters.translated import speaking
from asgi_llm_gateway.adapters.vendors import adapter_of
from asgi_llm_gateway.usage import UsageReader
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

from . import JUNK, ended, examples, outcome, spoilt

PIECES = st.sampled_from([
    b"data:", b"data: ", b"event: ", b"id:", b":", b"retry: 5", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"{", b"}", b'"',
    b"[DONE]", b'{"choices":[]}', b"\xff", b"\xe2\x82", b"\xef\xbb\xbf", b"\0", b"x" * 100,
])  # fmt: skip
BYTES = st.lists(PIECES, max_size=40).map(b"".join) | st.binary(max_size=200)
CUTS = st.lists(st.integers(0, 300), max_size=8)

CHUNK: dict[str, Any] = {
    "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]}, "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8,
              "prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 1}},
    "error": None,
}  # fmt: skip
MESSAGE_EVENTS: tuple[dict[str, Any], ...] = (
    {"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
     "stop_reason": None, "usage": {"input_tokens": 3, "output_tokens": 1, "cache_read_input_tokens": 0}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
    {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}},
)  # fmt: skip
ANSWERS: tuple[dict[str, Any], ...] = (
    {**CHUNK, "object": "chat.completion", "choices": [{"index": 0, "message": CHUNK["choices"][0]["delta"],
                                                        "finish_reason": "stop"}]},
    {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "x"}], "model": "m",
     "stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 2}},
    {"error": {"message": "no", "type": "t", "param": None, "code": "c"}},
    {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 1]}], "usage": {"prompt_tokens": 1}},
    {"id": "resp_1", "object": "response", "status": "completed", "output": [], "usage": {"input_tokens": 1,
                                                                                          "output_tokens": 2}},
)  # fmt: skip


def cut(text: bytes, cuts: list[int]) -> list[bytes]:
    """The text in pieces."""
    at = sorted({min(one, len(text)) for one in cuts})
    return [text[begin:end] for begin, end in zip([0, *at], [*at, len(text)], strict=True)]


@examples(300)
@given(text=BYTES, cuts=CUTS)
def test_any_bytes_are_split_without_loss(text: bytes, cuts: list[int]) -> None:
    """A32: whatever they are and however cut: no byte is lost, added or moved, and each event can be read."""
    splitter = EventSplitter()
    out = b""
    for piece in cut(text, cuts):
        for event in splitter.feed(piece):
            data = data_of(event)
            assert data is None or len(data) <= len(event)
            out += event
    assert out + splitter.rest == text
    assert b"".join(split(text)) == text


@examples(100)
@given(pieces=st.lists(BYTES, max_size=20), limit=st.integers(1, 64))
def test_what_waits_is_bounded(pieces: list[bytes], limit: int) -> None:
    """A32: an event without an end is given up on, and a reader that goes on all the same holds no more."""
    splitter = EventSplitter(limit)
    for piece in pieces:
        try:
            splitter.feed(piece)
        except EventTooLong:
            assert splitter.rest == b""
        assert len(splitter.rest) <= limit


@pytest.mark.parametrize("filler", [b"data: x\n", b"\r", b": \n\n", b"\n", b"data:\r\n\r\n", b"x"])
def test_a_flood_of_tiny_events_takes_no_more_than_its_length(filler: bytes) -> None:
    """A32: ten megabytes of next to nothing, in small pieces."""
    splitter = EventSplitter()
    piece = filler * (4096 // len(filler))
    with ended(60):
        for _ in range(1000):
            with contextlib.suppress(EventTooLong):
                splitter.whole(piece)


URL = "http://provider.invalid/v1"
ADAPTERS: dict[str, Adapter] = {
    **{kind: adapter_of(kind, kind, URL, "sk-x") for kind in ("openai", "openrouter", "llamacpp", "ollama")},
    "anthropic": AnthropicAdapter("anthropic", URL, "sk-x"),
}
WORDS = [{"role": "user", "content": "one two three"}]
PLAIN: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": WORDS, "stream": True},
    "/v1/messages": {"model": "m", "messages": WORDS, "stream": True, "max_tokens": 9},
    "/v1/responses": {"model": "m", "input": WORDS, "stream": True},
    "/v1/completions": {"model": "m", "prompt": "one", "stream": True},
}


def asked(name: str, path: str) -> tuple[Adapter, LLMRequest] | None:
    """A provider's adapter for a dialect, and a request that it was given; ``None`` where it has no word for it."""
    adapter = speaking(ADAPTERS[name], METERED[path])
    if adapter is None or METERED[path] not in adapter.speaks:
        return None
    request = parse(Route("metered", METERED[path], path), json.dumps(PLAIN[path]).encode())
    adapter.request(request, "m")
    return adapter, request


EVENTS = st.one_of(
    spoilt(CHUNK).map(lambda data: b"data: " + orjson_or_json(data) + b"\n\n"),
    spoilt(MESSAGE_EVENTS).map(lambda data: b"event: x\ndata: " + orjson_or_json(data) + b"\n\n"),
    st.sampled_from([b"data: " + json.dumps(one).encode() + b"\n\n" for one in (CHUNK, *MESSAGE_EVENTS)]),
    st.just(b"data: [DONE]\n\n"),
    JUNK.map(lambda data: b"data: " + json.dumps(data).encode() + b"\n\n"),
    BYTES,
)


def orjson_or_json(data: Any) -> bytes:
    """JSON, of numbers beyond 64 bits too."""
    try:
        return orjson.dumps(data)
    except TypeError:
        return json.dumps(data).encode()


@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize("name", ADAPTERS)
@examples(80)
@given(events=st.lists(EVENTS, max_size=6), cuts=CUTS)
def test_a_senseless_stream_is_passed_on_or_given_up_on(
    name: str, path: str, events: list[bytes], cuts: list[int]
) -> None:
    """A16, A32: an upstream error at worst; counts are never negative, and what was streamed has a size."""
    found = asked(name, path)
    if found is None:
        return
    decoder = found[0].stream(found[1])
    _, refusal = outcome(lambda: [*map(decoder.feed, cut(b"".join(events), cuts)), decoder.finish()])
    if refusal is not None:
        assert refusal.http_status >= 400
        decoder.failure(refusal)
    usage = decoder.usage
    assert usage is None or min(usage.prompt, usage.completion, usage.cached, usage.cache_write, usage.reasoning) >= 0
    assert decoder.tokens("m") >= 0
    assert decoder.events >= 0


@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize("name", ADAPTERS)
@examples(80)
@given(answer=spoilt(ANSWERS).map(orjson_or_json) | BYTES, status=st.integers(400, 599))
def test_a_senseless_answer_is_passed_on_or_an_upstream_error(name: str, path: str, answer: bytes, status: int) -> None:
    """A16: whole answers and failures alike; no count below zero."""
    found = asked(name, path)
    if found is None:
        return
    adapter, request = found
    given, refusal = outcome(lambda: adapter.response(request, answer))
    assert refusal is None or refusal.http_status >= 400
    usage = given.usage if given is not None else None
    assert usage is None or min(usage.prompt, usage.completion, usage.cached, usage.cache_write) >= 0
    told = adapter.error(status, [(b"retry-after", answer[:20])], answer)
    assert told.http_status >= 400
    assert len(told.message) < 2000


@examples(200)
@given(events=st.lists(EVENTS, max_size=6), cuts=CUTS, stream=st.booleans())
def test_a_strangers_answer_tells_a_sound_usage_or_none(events: list[bytes], cuts: list[int], stream: bool) -> None:
    """A16: the reader of apps that are not ours."""
    reader = UsageReader(stream=stream)
    for piece in cut(b"".join(events), cuts):
        reader.feed(piece)
    usage = reader.end()
    assert usage is None or min(usage.prompt, usage.completion, usage.cached, usage.reasoning) >= 0
