"""Tokens that a provider reports: every dialect, JSON or stream, cut anywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.usage import MAX_COUNT, WHOLE_PARSE, UsageReader, usage_from, usage_of_answer

OPENAI = {
    "prompt_tokens": 12,
    "completion_tokens": 30,
    "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 20},
}
RESPONSES = {
    "input_tokens": 12,
    "output_tokens": 30,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens_details": {"reasoning_tokens": 20},
}
ANTHROPIC = {"input_tokens": 6, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2, "output_tokens": 30}


def sse(*events: dict[str, Any] | str, ending: str = "\n") -> bytes:
    """Events as a stream."""
    lines = []
    for event in events:
        if isinstance(event, dict) and "type" in event:
            lines.append(f"event: {event['type']}")
        lines += [f"data: {event if isinstance(event, str) else json.dumps(event)}", ""]
    return "".join(line + ending for line in lines).encode()


def word(text: str) -> dict[str, Any]:
    """One chunk of an OpenAI stream."""
    return {"choices": [{"index": 0, "delta": {"content": text}}], "usage": None}


OPENAI_STREAM = sse(word("a"), word('say "usage" and [DONE]'), word("c"), {"choices": [], "usage": OPENAI}, "[DONE]")
ANTHROPIC_STREAM = sse(
    {"type": "message_start", "message": {"usage": {**ANTHROPIC, "output_tokens": 1}}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}},
    {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 10}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 30}},
    {"type": "message_stop"},
)
RESPONSES_STREAM = sse(
    {"type": "response.created", "response": {"usage": None}},
    {"type": "response.output_text.delta", "delta": "a"},
    {"type": "response.completed", "response": {"usage": RESPONSES}},
)
STREAMS = {
    "openai": (OPENAI_STREAM, Usage(12, 30, 4, 2, 20)),
    "openai-crlf": (OPENAI_STREAM.replace(b"\n", b"\r\n"), Usage(12, 30, 4, 2, 20)),
    "anthropic": (ANTHROPIC_STREAM, Usage(12, 30, 4, 2)),
    "responses": (RESPONSES_STREAM, Usage(12, 30, 4, 0, 20)),
}


def read(data: bytes, cuts: list[int], *, stream: bool, limit: int = 8 * 2**20) -> UsageReader:
    """A reader that was fed the data in pieces, to its end."""
    reader = UsageReader(stream=stream, limit=limit)
    at = sorted({min(cut, len(data)) for cut in cuts})
    for start, end in zip([0, *at], [*at, len(data)], strict=True):
        reader.feed(data[start:end])
    reader.end()
    return reader


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        (OPENAI, Usage(12, 30, 4, 2, 20)),
        (RESPONSES, Usage(12, 30, 4, 0, 20)),
        (ANTHROPIC, Usage(12, 30, 4, 2)),
        ({"prompt_tokens": 5, "total_tokens": 5}, Usage(5, 0)),  # embeddings
        ({"completion_tokens": 5}, Usage(0, 5)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(0, 0)),
        ({"input_tokens": 0, "output_tokens": 0}, Usage(0, 0)),
        ({"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(1, 2)),
    ],
)
def test_each_dialects_counts_are_read(told: dict[str, Any], usage: Usage) -> None:
    """OpenAI's, Responses' and Anthropic's names; an explicit zero is zero."""
    assert usage_from(told) == usage


@pytest.mark.parametrize(
    "told", [None, {}, [], "12", 7, {"total_tokens": 4}, {"prompt_tokens": None, "input_tokens": None}]
)
def test_what_tells_no_counts_is_unknown(told: Any) -> None:
    """Unknown is unknown, never zero."""
    assert usage_from(told) is None


@pytest.mark.parametrize("bad", [-1, -(10**20), MAX_COUNT + 1, 10**30, 1.5, "12", True, [3], {"a": 1}])
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"])
def test_a_senseless_count_makes_the_usage_unknown(name: str, bad: Any) -> None:
    """A provider that lies must not make a call free: what can't be is no zero."""
    other = {"prompt_tokens": "completion_tokens", "completion_tokens": "prompt_tokens"}
    other |= {"input_tokens": "output_tokens", "output_tokens": "input_tokens"}
    assert usage_from({name: bad, other[name]: 7}) is None
    assert usage_from({name: bad}) is None


@pytest.mark.parametrize("details", [[], [1], "many", 7, True, {"cached_tokens": -3}, {"cached_tokens": "x"}, {}])
def test_senseless_details_are_no_details(details: Any) -> None:
    """They refine the counts, and never fail them."""
    for kind in ("prompt_tokens_details", "completion_tokens_details"):
        assert usage_from({"prompt_tokens": 1, "completion_tokens": 2, kind: details}) == Usage(1, 2)
    for kind in ("input_tokens_details", "output_tokens_details"):
        assert usage_from({"input_tokens": 1, "output_tokens": 2, kind: details}) == Usage(1, 2)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"null", b'{"usage": 3}', b'{"x": 1}', b'{"usage": {', b"\xff"]
)
def test_an_answer_without_usage_is_unknown(body: bytes) -> None:
    """Whatever it is, it does not fail."""
    assert usage_of_answer(body) is None


@pytest.mark.parametrize("tail", [b"}", b', "model": "m"}', b', "x": {"y": [1]}}  \n'])
def test_a_json_answer_over_a_mebibyte_is_read_at_its_end(tail: bytes) -> None:
    """The long part is not parsed; the usage is found where it stands at the top level."""
    told = json.dumps(OPENAI).encode()
    body = b'{"data": [' + b"0.123456," * (WHOLE_PARSE // 8) + b'1], "usage": ' + told + tail
    assert len(body) > WHOLE_PARSE
    assert usage_of_answer(body) == Usage(12, 30, 4, 2, 20)


def test_a_usage_deeper_in_a_long_answer_is_not_taken_for_the_calls() -> None:
    """Only the top level counts."""
    body = b'{"data": [' + b"1," * WHOLE_PARSE + b'1], "x": {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}}'
    assert usage_of_answer(body) is None
    quoted = b'{"data": "' + b"x" * WHOLE_PARSE + rb' \"usage\": {\"prompt_tokens\": 1}"}'
    assert usage_of_answer(quoted) is None


@pytest.mark.parametrize("size", [1000, 65536, 10**9])
def test_a_json_answer_too_long_to_keep_is_still_read(size: int) -> None:
    """Past the limit only the end is kept, whatever pieces it comes in."""
    body = b'{"data": [' + b"0.123456," * 20_000 + b'1], "usage": ' + json.dumps(OPENAI).encode() + b"}"
    cuts = list(range(0, len(body), size))
    assert read(body, cuts, stream=False, limit=100_000).usage == Usage(12, 30, 4, 2, 20)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(STREAMS)), st.lists(st.integers(0, 900), max_size=15))
def test_any_cut_of_a_stream_gives_the_same_usage(name: str, cuts: list[int]) -> None:
    """Usage, end and number of events do not depend on the pieces."""
    data, usage = STREAMS[name]
    cut, whole = read(data, cuts, stream=True), read(data, [], stream=True)
    assert cut.usage == whole.usage == usage
    assert (cut.complete, cut.final, cut.events) == (whole.complete, whole.final, whole.events)
    assert cut.complete
    assert cut.final


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=15))
def test_any_cut_of_a_json_answer_gives_the_same_usage(cuts: list[int]) -> None:
    """Also past the limit."""
    body = json.dumps({"choices": [{"message": {"content": "x" * 100}}], "usage": OPENAI}).encode()
    assert read(body, cuts, stream=False).usage == Usage(12, 30, 4, 2, 20)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_stream_reads_the_same_byte_by_byte(size: int) -> None:
    """The same events and the same usage, byte by byte or in one piece."""
    for data, usage in STREAMS.values():
        assert read(data, list(range(0, len(data), size)), stream=True).usage == usage


def test_anthropics_message_delta_is_cumulative() -> None:
    """Adding the events up would bill a stream twice; the prompt's counts stay those of its start."""
    assert read(ANTHROPIC_STREAM, [], stream=True).usage == Usage(12, 30, 4, 2)
    full = sse(
        {"type": "message_start", "message": {"usage": ANTHROPIC}},
        {"type": "message_delta", "usage": {**ANTHROPIC, "input_tokens": 7, "output_tokens": 31}},
    )
    assert read(full, [], stream=True).usage == Usage(13, 31, 4, 2)  # newer servers repeat the prompt's


def test_a_start_alone_is_not_final() -> None:
    """Anthropic's first event tells the prompt, and of the answer only its beginning."""
    reader = UsageReader(stream=True)
    reader.feed(ANTHROPIC_STREAM[: ANTHROPIC_STREAM.index(b"event: message_delta")])
    assert reader.usage == Usage(12, 1, 4, 2)
    assert not reader.final
    assert not reader.complete


def test_a_last_event_without_its_blank_line_counts() -> None:
    """Careless servers end a stream with its last line."""
    data = sse(word("a"), {"choices": [], "usage": OPENAI}).rstrip(b"\n")
    assert read(data, [], stream=True).usage == Usage(12, 30, 4, 2, 20)
    crs = sse(word("a"), {"choices": [], "usage": OPENAI}, ending="\r")
    assert read(crs, list(range(len(crs))), stream=True).usage == Usage(12, 30, 4, 2, 20)


def test_a_stream_without_usage_leaves_it_unknown_and_counts_its_events() -> None:
    """The estimate needs to know how long it was."""
    reader = read(sse(word("a"), word("b"), "[DONE]"), [], stream=True)
    assert reader.usage is None
    assert reader.complete
    assert reader.events == 3


def test_words_about_usage_are_not_usage() -> None:
    """What a model says is no count."""
    said = '{"usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
    assert read(sse(word(said), word("[DONE]")), [], stream=True).usage is None


def test_the_reader_bears_what_is_no_event() -> None:
    """Comments, broken JSON, other types: passed over."""
    data = b': keep-alive "usage"\n\ndata: {"usage": \n\ndata: ["usage"]\n\ndata: {"usage": [], "response": 3}\n\n'
    assert read(data, [], stream=True).usage is None
    assert read(data + OPENAI_STREAM, [], stream=True).usage == Usage(12, 30, 4, 2, 20)


def test_an_event_without_an_end_does_not_fill_the_memory() -> None:
    """The reader lets it go, and still reads what comes after it."""
    reader = UsageReader(stream=True, limit=10_000)
    for _ in range(1000):
        reader.feed(b"x" * 1000)
    assert reader._splitter is not None
    assert len(reader._splitter.rest) <= 10_000
    reader.feed(b"\n\n" + OPENAI_STREAM)
    assert reader.end() == Usage(12, 30, 4, 2, 20)
