"""A kept answer told again in either form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.caching.complete import stream_parts, whole_parts
from asgi_llm_gateway.caching.kept import Kept
from asgi_llm_gateway.caching.replay import UsageFilter, told_again
from asgi_llm_gateway.records import Usage

from . import DONE, TEXTS, asking, event, request_of, saying, streaming, text_of_stream

HEAD = ((b"content-type", b"x"), (b"x-llm-provider", b"p"))


def kept_whole(dialect: str, answer: Any) -> Kept:
    """A document that is kept."""
    parts = whole_parts(dialect, json.dumps(answer).encode(), limited=True)  # type: ignore[arg-type]
    assert parts is not None
    return Kept(False, HEAD, *parts)


def kept_stream(dialect: str, events: list[bytes]) -> Kept:
    """A stream that is kept."""
    parts = stream_parts(dialect, b"".join(events), limited=True)  # type: ignore[arg-type]
    assert parts is not None
    return Kept(True, HEAD, *parts)


def asked(dialect: str, *, stream: bool, usage: bool = False) -> Any:
    """A request for a form."""
    more: dict[str, Any] = {"stream": True} if stream else {}
    if usage and stream and dialect in ("chat", "completions"):
        more["stream_options"] = {"include_usage": True}
    return request_of(dialect, **asking(dialect, **more))


def as_whole(dialect: str, kept: Kept) -> Any:
    """The kept answer as JSON."""
    told = told_again(kept, asked(dialect, stream=False))
    assert told is not None
    assert dict(told.head)[b"x-llm-provider"] == b"p"
    assert kept.stream is False or dict(told.head)[b"content-type"] == b"application/json"
    return json.loads(told.body)


def as_stream(dialect: str, kept: Kept, *, usage: bool = True) -> bytes:
    """The kept answer as events."""
    told = told_again(kept, asked(dialect, stream=True, usage=usage))
    assert told is not None
    assert kept.stream or dict(told.head)[b"content-type"] == b"text/event-stream; charset=utf-8"
    return told.body


@pytest.mark.parametrize("dialect", TEXTS)
@given(text=st.text(max_size=40))
def test_a_stream_and_the_document_tell_the_same(dialect: str, text: str) -> None:
    """A kept stream as JSON is what the provider would have said in JSON; a kept document as a stream has its text."""
    whole, events = saying(dialect, text), streaming(dialect, text)
    assert as_whole(dialect, kept_stream(dialect, events)) == whole
    again = as_stream(dialect, kept_whole(dialect, whole))
    assert text_of_stream(dialect, again) == text
    assert text_of_stream(dialect, as_stream(dialect, kept_stream(dialect, events))) == text
    # And round again, with nothing lost.
    assert as_whole(dialect, kept_stream(dialect, [again])) == whole


CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
    {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}},
    {"id": "call_3", "type": "custom", "custom": {"name": "h", "input": "free text"}},
]
LOGPROBS = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}], "refusal": None}


def chat(*messages: dict[str, Any], reason: str = "stop", **choice: Any) -> dict[str, Any]:
    """A chat completion of these messages, one a choice."""
    choices = [
        {"index": at, "message": {"refusal": None, **one}, "finish_reason": reason, "logprobs": None, **choice}
        for at, one in enumerate(messages)
    ]
    return {**saying("chat", ""), "choices": choices, "system_fingerprint": "fp", "service_tier": "default"}


@pytest.mark.parametrize(
    "answer",
    [
        chat({"role": "assistant", "content": None, "tool_calls": CALLS}, reason="tool_calls"),
        chat({"role": "assistant", "content": "a", "reasoning_content": "hm"}),
        chat({"role": "assistant", "content": None, "refusal": "no"}),
        chat({"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}),
        chat({"role": "assistant", "content": "a"}, logprobs=LOGPROBS),
        chat(
            {
                "role": "assistant",
                "content": "a",
                "annotations": [{"type": "url_citation", "url_citation": {"url": "u"}}],
            }
        ),
        chat(
            {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}},
            reason="function_call",
        ),
    ],
)
def test_all_of_a_chat_answer_survives_the_other_form(answer: dict[str, Any]) -> None:
    """Calls, thoughts, refusals, choices, log probabilities, sources, and the vendor's own fields."""
    again = as_stream("chat", kept_whole("chat", answer))
    assert again.endswith(DONE)
    assert as_whole("chat", kept_stream("chat", [again])) == answer


def message(*blocks: dict[str, Any], reason: str = "end_turn") -> dict[str, Any]:
    """A message of these blocks."""
    usage = {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 9}
    return {**saying("messages", ""), "content": list(blocks), "stop_reason": reason, "usage": usage}


@pytest.mark.parametrize(
    "answer",
    [
        message({"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "a"}),
        message({"type": "tool_use", "id": "t1", "name": "f", "input": {"b": 1, "a": [2]}}, reason="tool_use"),
        message({"type": "tool_use", "id": "t1", "name": "f", "input": {}}, reason="tool_use"),
        message({"type": "text", "text": "a", "citations": [{"type": "char_location", "cited_text": "x"}]}),
        message({"type": "redacted_thinking", "data": "xx"}, {"type": "text", "text": ""}),
        message(),
    ],
)
def test_all_of_a_message_survives_the_other_form(answer: dict[str, Any]) -> None:
    """Thoughts with their signature, calls, sources, and the counts of the provider's own cache."""
    assert (
        as_whole("messages", kept_stream("messages", [as_stream("messages", kept_whole("messages", answer))])) == answer
    )


def response(*items: dict[str, Any]) -> dict[str, Any]:
    """A response of these items."""
    return {**saying("responses", ""), "output": list(items)}


@pytest.mark.parametrize(
    "answer",
    [
        response(
            {
                "id": "fc_1",
                "type": "function_call",
                "call_id": "c",
                "name": "f",
                "arguments": "{}",
                "status": "completed",
            }
        ),
        response(
            {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            *saying("responses", "a")["output"],
        ),
        response({"id": "ct_1", "type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"}),
        response(
            {"id": "m", "type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
        ),
        response({"id": "o", "type": "of_a_day_to_come", "x": 1}),
    ],
)
def test_all_of_a_response_survives_the_other_form(answer: dict[str, Any]) -> None:
    """Its last event holds it whole; the events before are numbered without a gap."""
    body = as_stream("responses", kept_whole("responses", answer))
    told = [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: ")]
    assert [one["sequence_number"] for one in told] == list(range(len(told)))
    assert (told[0]["type"], told[-1]["type"]) == ("response.created", "response.completed")
    assert [one["item"] for one in told if one["type"] == "response.output_item.done"] == answer["output"]
    assert as_whole("responses", kept_stream("responses", [body])) == answer


@pytest.mark.parametrize("dialect", ["chat", "completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_usage_event_is_told_to_those_who_ask(dialect: str, stream: bool) -> None:
    """Whichever form is kept."""
    kept = kept_stream(dialect, streaming(dialect, "a")) if stream else kept_whole(dialect, saying(dialect, "a"))
    assert as_stream(dialect, kept, usage=True).count(b'"prompt_tokens"') == 1
    silent = as_stream(dialect, kept, usage=False)
    assert b'"prompt_tokens"' not in silent
    assert silent.endswith(DONE)


def test_an_answer_that_never_told_its_usage_is_none_for_those_who_ask() -> None:
    """A stream without it serves streams only that do not want it."""
    kept = kept_stream("chat", streaming("chat", "a", usage=False))
    assert told_again(kept, asked("chat", stream=True)) is not None
    assert told_again(kept, asked("chat", stream=True, usage=True)) is None
    assert told_again(kept, asked("chat", stream=False)) is None


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        ("chat", chat({"role": "assistant", "content": None, "audio": {"id": "a", "data": "xx"}})),
        ("chat", chat({"role": "assistant", "content": "a", "tool_calls": ["x"]})),
        ("messages", message({"type": "text", "text": "a"}) | {"content": ["x"]}),
        ("responses", response() | {"output": ["x"]}),
        ("responses", response({"type": "message", "content": [{"type": "of_a_day_to_come"}]})),
    ],
)
def test_what_the_other_form_has_no_words_for_is_asked_anew(dialect: str, answer: dict[str, Any]) -> None:
    """Nothing is left out in silence."""
    assert told_again(kept_whole(dialect, answer), asked(dialect, stream=True)) is None


@pytest.mark.parametrize(
    ("dialect", "odd"),
    [
        (
            "chat",
            {
                "choices": [
                    {"index": 0, "delta": {"audio": {"data": "aa"}}},
                    {"index": 0, "delta": {"audio": {"data": "bb"}}},
                ]
            },
        ),
        ("messages", {"type": "content_block_delta", "index": 0, "delta": {"type": "of_a_day_to_come"}}),
        (
            "messages",
            {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{"}},
        ),
    ],
)
def test_a_stream_with_unknown_pieces_is_told_as_a_stream_only(dialect: str, odd: dict[str, Any]) -> None:
    """As it came, it is whole."""
    events = streaming(dialect, "a")
    at = 1 if dialect == "chat" else 4
    kept = kept_stream(dialect, [*events[:at], event(odd, odd.get("type")), *events[at:]])
    assert told_again(kept, asked(dialect, stream=False)) is None
    assert told_again(kept, asked(dialect, stream=True)) is not None


def test_two_calls_of_one_number_are_not_mixed() -> None:
    """Servers that give every call the same index."""
    calls = [
        {"tool_calls": [{"index": 0, "id": f"c{at}", "function": {"name": "f", "arguments": "{}"}}]} for at in (1, 2)
    ]
    events = [event({"choices": [{"index": 0, "delta": one}]}) for one in calls]
    kept = kept_stream("chat", [*events, *streaming("chat", "")[1:]])
    assert told_again(kept, asked("chat", stream=False)) is None


@given(wanted=st.booleans(), told=st.booleans(), size=st.integers(1, 40))
def test_the_usage_filter_gives_each_reader_its_own(wanted: bool, told: bool, size: int) -> None:
    """However the stream is cut, the text is the same, and the usage stands in it once or not at all."""
    whole = b"".join(streaming("chat", "one two three", usage=told))
    filter = UsageFilter(wanted=wanted)
    out = (
        b"".join(filter.feed(whole[at : at + size], Usage(10, 20)) for at in range(0, len(whole), size)) + filter.rest()
    )
    assert text_of_stream("chat", out) == "one two three"
    assert out.count(b'"prompt_tokens"') == wanted
    assert out.endswith(DONE)
