"""Any stream that Anthropic may send, as the official OpenAI SDK reads it: nothing is lost and nothing is added."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from ..upstream import DONE
from .anthropic_events import ADAPTER, PING, STOP, block, chunks, event, request, start, thought, use

WORDS = st.text(st.characters(codec="utf-8"), max_size=6)
VALUES = st.none() | st.booleans() | st.integers(-99, 99) | WORDS | st.lists(WORDS, max_size=2)
INPUTS = st.dictionaries(WORDS, VALUES | st.dictionaries(WORDS, VALUES, max_size=2), max_size=3)
CUTS = st.lists(st.integers(0, 2**16), max_size=8)
REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "pause_turn": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
"""What OpenAI calls each reason of the end."""


class Legal(NamedTuple):
    """A stream, and what it says."""

    raw: bytes
    text: str
    calls: list[tuple[str, str, Any]]
    thoughts: list[dict[str, Any]]
    ended: str
    refusal: str | None
    usage: tuple[int, int, int]


def pieces(text: str, at: list[int]) -> list[str]:
    """A text cut at those places; some pieces may be empty."""
    edges = [0, *sorted(place % (len(text) + 1) for place in at), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@st.composite
def legal(draw: st.DrawFn) -> Legal:
    """Blocks of every kind in any order, signs of life between all events, and counts that grow."""
    text, calls, thoughts, said = "", [], [], []
    kinds = st.sampled_from(["text", "cited", "tool_use", "thinking", "redacted_thinking", "server_tool_use"])
    for index, kind in enumerate(draw(st.lists(kinds, max_size=6))):
        id, parts = f"toolu_{index}", draw(st.lists(WORDS, max_size=3))
        if kind in ("text", "cited"):
            cited = {"type": "citations_delta", "citation": {"type": "char_location", "cited_text": "not said"}}
            told = [{"type": "text_delta", "text": part} for part in parts]
            said.append(block(index, "text", *([cited] if kind == "cited" else []), *told, text=""))
            text += "".join(parts)
        elif kind == "tool_use":
            given = draw(INPUTS)
            written = json.dumps(given, ensure_ascii=draw(st.booleans()))
            silent = not given and draw(st.booleans())  # a call without arguments may come without a word of them
            name = draw(st.sampled_from(["look", "now"]))  # the same one may be called twice
            said.append(
                use(index, name, *(draw(st.sampled_from([(), ("",)])) if silent else pieces(written, draw(CUTS))))
            )
            calls.append((id, name, given))
        elif kind == "thinking":
            said.append(thought(index, *parts, signature="sig"))
            thoughts.append({"type": "thinking", "thinking": "".join(parts), "signature": "sig"})
        elif kind == "redacted_thinking":
            said.append(block(index, kind, data="hidden"))
            thoughts.append({"type": kind, "data": "hidden"})
        else:  # what the provider does by itself is no call of the client's
            own = {"type": "input_json_delta", "partial_json": '{"query": "not said"}'}
            said.append(block(index, kind, own, id=f"srv{id}", name="web_search", input={}))
    ended = draw(st.sampled_from(list(REASONS)))
    made = draw(st.lists(st.integers(1, 500), min_size=1, max_size=3).map(sorted))
    prompt = draw(st.none() | st.integers(25, 900))  # told again, when a server's tool has read more
    for count in made[:-1]:
        said.append(event("message_delta", delta={"stop_reason": None}, usage={"output_tokens": count}))
    counts = {"output_tokens": made[-1], **({} if prompt is None else {"input_tokens": prompt})}
    refusal = draw(st.none() | WORDS.filter(bool)) if ended == "refusal" else None
    details = {"type": "refusal", "category": None, "explanation": refusal} if ended == "refusal" else None
    end = {"stop_reason": ended, "stop_sequence": None, "stop_details": details}
    said.append(event("message_delta", delta=end, usage=counts))
    raw = b"".join([start(), *said, STOP])
    if draw(st.booleans()):
        raw = raw.replace(b"event: content_block_delta", PING + b"event: content_block_delta")
    if draw(st.booleans()):
        raw = raw.replace(b"\n", b"\r\n")
    return Legal(raw, text, calls, thoughts, ended, refusal, (110 + (25 if prompt is None else prompt), made[-1], 100))


def accumulated(out: bytes) -> Any:
    """What the SDK makes of a stream; it raises where it would raise for a client."""
    found = chunks(out)
    assert found.pop() == "[DONE]"
    state: Any = ChatCompletionStreamState()
    for one in found:
        state.handle_chunk(ChatCompletionChunk.model_validate(one))
    return state.current_completion_snapshot


@settings(max_examples=300)
@given(legal(), CUTS)
def test_the_sdk_reads_what_was_said(one: Legal, cuts: list[int]) -> None:
    """Text, calls, thoughts, the end and the counts, however the stream was cut on its way."""
    stream = ADAPTER.stream(request(usage=True))
    edges = [0, *sorted(cut % (len(one.raw) + 1) for cut in cuts), len(one.raw)]
    out = b"".join(stream.feed(one.raw[a:b]) for a, b in pairwise(edges)) + stream.finish()
    assert (stream.complete, stream.failed, out.count(DONE)) == (True, False, 1)
    answer = accumulated(out)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content or "") == ("assistant", one.text)
    called = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    assert [(id, name, json.loads(arguments)) for id, name, arguments in called] == one.calls
    assert (choice.finish_reason, choice.message.refusal) == (REASONS[one.ended], one.refusal)
    more = choice.message.model_extra
    thinking = "".join(thought.get("thinking", "") for thought in one.thoughts)
    assert more.get("reasoning_content", "") == thinking
    blocks = [
        {name: value for name, value in told.items() if name != "index"} for told in more.get("thinking_blocks", ())
    ]
    assert blocks == one.thoughts
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens) == one.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert stream.usage is not None
    assert (stream.usage.prompt, stream.usage.completion, stream.usage.cached) == one.usage
    assert not stream.usage.estimated


@given(legal(), st.floats(0, 1))
def test_a_stream_that_breaks_off_is_never_told_as_whole(one: Legal, part: float) -> None:
    """There is no end before the provider has said why it ended."""
    some = one.raw[: int(len(one.raw) * part)]
    stream = ADAPTER.stream(request(usage=True))
    out = stream.feed(some) + stream.finish()
    said = b'"stop_reason": "%b"' % one.ended.encode() in some
    assert said or not (DONE in out or stream.complete)
