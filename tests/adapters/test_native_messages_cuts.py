"""Messages passed on as they are: streams however they are cut, and wherever they break off."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters._native_messages import MessagesStream
from asgi_llm_gateway.records import Usage

from .native_messages_parts import PING, STOP, accumulated, delta, event, piece, read, start

NUMBERS = st.integers(1, 10_000)
PROMPT = st.fixed_dictionaries(
    {"input_tokens": NUMBERS},
    optional={"cache_read_input_tokens": NUMBERS, "cache_creation_input_tokens": NUMBERS},
)
TEXTS = st.lists(st.text(max_size=12) | st.sampled_from(["message_stop", "\n\n", "error", '"usage":{']), max_size=4)
BLOCKS = st.lists(st.sampled_from(["text", "thinking", "tool_use"]).flatmap(lambda kind: st.tuples(st.just(kind), TEXTS)),
                  max_size=4)  # fmt: skip
DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}
FIELDS = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}
EMPTY: dict[str, dict[str, Any]] = {
    "text": {"text": ""},
    "thinking": {"thinking": "", "signature": ""},
    "tool_use": {"id": "toolu_1", "name": "look", "input": {}},
}


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Any legal stream."""
    said = [start(**draw(PROMPT), output_tokens=draw(st.integers(0, 3)))]
    for index, (kind, texts) in enumerate(draw(BLOCKS)):
        said.append(event("content_block_start", index=index, content_block={"type": kind, **EMPTY[kind]}))
        whole = texts if kind != "tool_use" else [json.dumps({"a": texts})[at : at + 5] for at in range(0, 200, 5)]
        for text in whole:
            if text:
                inner = {"type": DELTAS[kind], FIELDS[kind]: text}
                said.append(event("content_block_delta", index=index, delta=inner))
            if draw(st.booleans()):
                said.append(PING)
        said.append(event("content_block_stop", index=index))
    if draw(st.booleans()):
        said.append(delta(None, output_tokens=draw(NUMBERS)))
    said.append(delta("end_turn", output_tokens=draw(NUMBERS), **draw(st.just({}) | PROMPT)))
    said.append(STOP)
    return b"".join(said).replace(b"\n", draw(st.sampled_from([b"\n", b"\r\n", b"\r"])))


@given(streams(), st.lists(st.floats(0, 1), max_size=8))
def test_a_stream_is_the_same_wherever_it_is_cut(said: bytes, places: list[float]) -> None:
    """The same bytes, and the counts that the official client adds up."""
    edges = [0, *sorted(int(place * len(said)) for place in places), len(said)]
    stream = MessagesStream("anthropic")
    out = b"".join([stream.feed(said[a:b]) for a, b in pairwise(edges)]) + stream.finish()
    # A last line that ends with CR is held until it is known that no LF follows.
    assert out == said if not said.endswith(b"\r") else out.rstrip() == said.rstrip()
    assert (stream.complete, stream.ending, stream.failed) == (True, True, False)
    usage = accumulated(said).usage
    prompt = [usage.input_tokens, usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0]
    assert stream.usage == Usage(sum(prompt), usage.output_tokens, prompt[1], prompt[2])


@given(streams(), st.floats(0, 1))
def test_a_stream_that_breaks_off_is_never_whole(said: bytes, place: float) -> None:
    """What came goes on as whole events, nothing is made up, and nothing is for free."""
    said = said.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    cut = said[: int(place * len(said))]
    stream = MessagesStream("anthropic")
    out = stream.feed(cut)
    used, made = stream.usage, stream.tokens()
    assert cut.startswith(out)
    out += stream.finish()
    known = len(said) - len(STOP)
    ends = (*range(known - 2, known + 1), *range(len(said) - 2, len(said) + 1))  # blank lines may be missing
    assert stream.complete is (len(cut) in ends)
    if stream.complete:
        assert out == said
    if len(cut) < known:
        assert used is None or (used.estimated and used.completion >= made)


def test_a_cut_stream_is_paid_for_by_its_text() -> None:
    """At least a token an event; the first event's count is no count of what was made."""
    _, stream = read(start(), *(piece("several words in a piece ") for _ in range(10)))
    assert stream.usage is not None
    assert (stream.usage.prompt, stream.usage.estimated) == (135, True)
    assert stream.usage.completion == stream.tokens("claude-x") >= 50
