"""Any chat stream, cut anywhere, is a Responses stream that the official SDK reads with the same words, calls and usage."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.base import StreamDecoder
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.adapters.translated import Translated
from asgi_llm_gateway.errors import GatewayError, UpstreamError

from .responses import DONE, FRONT, call_piece, chunk, event, events_of, read_by_sdk, request, texts, usage_chunk

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=6)
COUNTS = st.integers(0, 10**6)
USAGES = st.builds(
    lambda prompt, completion: {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    },
    COUNTS,
    COUNTS,
)


@st.composite
def deltas(draw: st.DrawFn) -> tuple[list[bytes], dict[str, Any]]:
    """The middle of a legal chat stream, and what it says."""
    said: dict[str, Any] = {"content": "", "reasoning_content": "", "refusal": ""}
    calls: list[list[str]] = []
    chunks: list[bytes] = []
    for kind in draw(
        st.lists(st.sampled_from(["content", "reasoning_content", "refusal", "call", "more", "ping"]), max_size=14)
    ):
        if kind == "ping":
            chunks.append(draw(st.sampled_from([b": ping\n\n", chunk({}), chunk({"content": None})])))
        elif kind == "call":
            name = draw(st.sampled_from(["f", "g_2"]))
            first = draw(st.sampled_from(["", "{", '{"a":']))
            chunks.append(call_piece(len(calls), f"call_{len(calls)}", name, first))
            calls.append([f"call_{len(calls)}", name, first])
        elif kind == "more":
            if calls:
                at = draw(st.integers(0, len(calls) - 1))
                piece = draw(WORDS)
                chunks.append(call_piece(at, arguments=piece))
                calls[at][2] += piece
        else:
            word = draw(WORDS)
            chunks.append(chunk({kind: word}))
            said[kind] += word
    said["calls"] = [(id, name, arguments if arguments.strip() else "{}") for id, name, arguments in calls]
    return chunks, said


FINISH = st.sampled_from(["stop", "tool_calls", "length", "content_filter"])
ENDINGS = st.sampled_from(["\n", "\r\n", "\r"])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data, cut at these places."""
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def translating() -> tuple[StreamDecoder, Any]:
    """A provider that speaks chat, asked for a Responses stream."""
    adapter = Translated(OpenAIAdapter("p", "http://h/v1"), FRONT, "responses")
    asked = request(stream=True)
    adapter.request(asked, "m")
    return adapter.stream(asked), asked


@settings(deadline=None, max_examples=60)
@given(deltas(), FINISH, st.none() | USAGES, st.booleans(), ENDINGS, st.lists(st.integers(0, 10**5), max_size=8))
def test_a_stream_is_read_by_the_sdk_as_it_was_meant(
    middle: tuple[list[bytes], dict[str, Any]], finish: str, usage: Any, done: bool, newline: str, places: list[int]
) -> None:
    """Through the provider's decoder and the front, with any line ending, and also without ``[DONE]``."""
    chunks, said = middle
    done = done or newline == "\r"  # else the last CR might be half of a CRLF, and its event would be no whole one
    whole = b"".join([chunk({"role": "assistant", "content": ""}), *chunks, chunk({}, finish)])
    whole += (usage_chunk(usage) if usage else b"") + (DONE if done else b"")
    decoder, _ = translating()
    out = (
        b"".join([decoder.feed(piece) for piece in cut(whole.replace(b"\n", newline.encode()), places)])
        + decoder.finish()
    )
    events = events_of(out)
    assert decoder.complete
    assert events[-1]["type"] == (
        "response.incomplete" if finish in ("length", "content_filter") else "response.completed"
    )
    assert sum(told["type"] in ("response.completed", "response.incomplete", "response.failed") for told in events) == 1
    assert texts(events, "output_text") == said["content"]
    assert texts(events, "reasoning_summary_text") == said["reasoning_content"]
    assert texts(events, "refusal") == said["refusal"]
    response = events[-1]["response"]
    items = response["output"]
    assert [(one["call_id"], one["name"], one["arguments"]) for one in items if one["type"] == "function_call"] == said[
        "calls"
    ]
    told_usage = response["usage"]
    assert (told_usage and told_usage["total_tokens"]) == (usage and usage["total_tokens"])
    each_item_begins_and_ends_once(events, items)
    reader = read_by_sdk(out)
    if finish not in ("length", "content_filter"):
        final = reader.get_final_response()
        assert final.output_text == said["content"]
        assert [one.arguments for one in final.output if one.type == "function_call"] == [
            one[2] for one in said["calls"]
        ]


def each_item_begins_and_ends_once(events: list[dict[str, Any]], items: list[dict[str, Any]]) -> None:
    """At its place in the output, and its pieces come between the two."""
    open_items: dict[int, str] = {}
    ended: dict[int, dict[str, Any]] = {}
    for told in events:
        at = told.get("output_index")
        if at is None:
            continue
        if told["type"] == "response.output_item.added":
            assert at == len(open_items)
            open_items[at] = told["item"]["id"]
        elif told["type"] == "response.output_item.done":
            assert told["item"]["id"] == open_items[at]
            assert at not in ended
            ended[at] = told["item"]
        else:
            assert told["item_id"] == open_items[at]
            assert at not in ended
    assert [ended[at] for at in sorted(ended)] == items
    assert ended.keys() == open_items.keys()


@settings(deadline=None, max_examples=60)
@given(deltas(), st.integers(0, 10**5), st.lists(st.integers(0, 10**5), max_size=4))
def test_a_stream_that_breaks_off_never_ends(
    middle: tuple[list[bytes], dict[str, Any]], at: int, places: list[int]
) -> None:
    """Wherever it was cut: what came is legal, and one error follows."""
    chunks, _ = middle
    whole = b"".join([chunk({"role": "assistant", "content": ""}), *chunks])
    decoder, _ = translating()
    out = b"".join([decoder.feed(piece) for piece in cut(whole[: at % (len(whole) + 1)], places)]) + decoder.finish()
    assert not decoder.complete
    out += decoder.failure(UpstreamError("cut", code="upstream_cut"))
    found = [told["type"] for told in events_of(out)]
    assert found.count("error") == 1
    assert found[-1] == "error"
    assert not {"response.completed", "response.incomplete", "response.failed"} & set(found)


NAMES = st.sampled_from(
    ["choices", "delta", "content", "refusal", "reasoning_content", "tool_calls", "function", "name", "arguments", "index",
     "id", "finish_reason", "usage", "prompt_tokens", "completion_tokens", "logprobs", "token", "logprob", "annotations",
     "url_citation", "function_call", "created", "model", "service_tier"]
)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10) | st.sampled_from(["", "a", "stop", "length", "{}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
CHUNKS = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries({"delta": st.dictionaries(NAMES, ANYTHING, max_size=4), "finish_reason": ANYTHING}),
            max_size=2,
        )
        | ANYTHING
    },
    optional={"usage": ANYTHING, "model": ANYTHING, "created": ANYTHING},
)


@settings(deadline=None, max_examples=150)
@given(st.lists(CHUNKS | ANYTHING, max_size=6))
def test_a_senseless_stream_is_a_legal_one(chunks: list[Any]) -> None:
    """Whatever is in it: no exception, and what comes out the SDK can read."""
    stream = FRONT.stream(request(stream=True))
    try:
        out = b"".join([stream.feed(event(one)) for one in chunks]) + stream.finish()
    except GatewayError:
        return
    events = events_of(out)
    each_item_begins_and_ends_once(events, events[-1]["response"]["output"])
