"""Which answers are whole, and what of them is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.caching.complete import stream_parts, whole_parts, without_cost
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.usage import with_cost

from . import DONE, TEXTS, event, saying, streaming

HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def stream(dialect: str, **more: Any) -> bytes:
    """A whole stream."""
    return b"".join(streaming(dialect, "one two three", **more))


@pytest.mark.parametrize("dialect", TEXTS)
def test_a_whole_answer_is_kept_as_it_came(dialect: str) -> None:
    """Byte for byte, and it is known whether it tells its usage."""
    body = json.dumps(saying(dialect, "one")).encode()
    parts = whole_parts(dialect, body, limited=False)  # type: ignore[arg-type]
    assert parts is not None
    assert (parts.body, parts.told) == (body, True)


@pytest.mark.parametrize("dialect", TEXTS)
@pytest.mark.parametrize("form", ["whole", "stream"])
@pytest.mark.parametrize(
    ("finish", "limited", "kept"),
    [(None, False, True), ("limit", False, False), ("limit", True, True), ("filter", True, False)],
)
def test_an_answer_that_was_cut_is_kept_only_where_its_request_said_where(
    dialect: str, form: str, finish: str | None, limited: bool, kept: bool
) -> None:
    """A limit that somebody else chose (a budget that was nearly spent) makes no answer for others; nor does a filter."""
    names = {"messages": ("max_tokens", "refusal"), "responses": ("max_output_tokens", "content_filter")}
    limit, filtered = names.get(dialect, ("length", "content_filter"))
    reason = {"limit": limit, "filter": filtered, None: None}[finish]
    if form == "whole":
        parts = whole_parts(dialect, json.dumps(saying(dialect, "one", finish=reason)).encode(), limited=limited)  # type: ignore[arg-type]
    else:
        parts = stream_parts(dialect, stream(dialect, finish=reason), limited=limited)  # type: ignore[arg-type]
    assert (parts is not None) is kept


@pytest.mark.parametrize("dialect", TEXTS)
@given(cut=st.integers(0, 5000))
def test_half_a_stream_is_never_kept(dialect: str, cut: int) -> None:
    """Wherever it broke off; only what follows the answer's own end may be missing."""
    whole = stream(dialect)
    part = whole[:cut]
    reason = b'"finish_reason":"stop","logprobs":null}]}\n\n'
    last = {"messages": b'"message_stop"}', "responses": b"event: response.completed"}
    ended = last.get(dialect, reason)
    parts = stream_parts(dialect, part, limited=False)  # type: ignore[arg-type]
    if parts is not None:
        assert ended in part
        assert len(part) >= len(whole) - 400


@pytest.mark.parametrize("dialect", TEXTS)
def test_a_last_event_without_its_blank_line_is_none(dialect: str) -> None:
    """What follows it when it is told again would become part of it; an end mark alone is mended."""
    events = streaming(dialect, "one", usage=False)
    whole = b"".join(events if dialect in ("messages", "responses") else events[:-1])
    assert stream_parts(dialect, whole, limited=True) is not None  # type: ignore[arg-type]
    assert stream_parts(dialect, whole.rstrip(), limited=True) is None  # type: ignore[arg-type]
    if dialect == "chat":
        parts = stream_parts("chat", whole + b"data: [DONE]", limited=True)
        assert parts is not None
        assert parts.tail == DONE


@pytest.mark.parametrize("dialect", TEXTS)
@given(data=st.binary(max_size=200))
def test_no_bytes_make_it_fail(dialect: str, data: bytes) -> None:
    """What is no answer is none."""
    for raw in (
        data,
        b"data: " + data + b"\n\n",
        b"data: {" + data + b"}\n\n",
        b'data: {"type":"message_stop"}\n\n' + data,
    ):
        stream_parts(dialect, raw, limited=True)  # type: ignore[arg-type]
        whole_parts(dialect, raw, limited=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[5]}', b'{"error":{"message":"x"},"choices":[{}]}', b"<html>",
        b'{"choices":[{"error":{"code":500}}]}', b'{"choices":[{"finish_reason":"error"}]}',
        b'{"choices":[{"finish_reason":5}]}',
    ],
)  # fmt: skip
def test_a_200_that_is_no_answer_is_not_kept(body: bytes) -> None:
    """Half a document, an error in a 200."""
    assert whole_parts("chat", body, limited=True) is None


@pytest.mark.parametrize(
    "spoilt",
    [
        event({"error": {"message": "x"}}), event({**HEAD, "choices": [{"index": 0, "error": {"code": 1}}]}),
        event({**HEAD, "choices": [{"index": 1, "delta": {"content": "b"}}]}), event(b"{no json"),
    ],
)  # fmt: skip
def test_a_stream_with_an_error_or_an_unfinished_choice_is_not_kept(spoilt: bytes) -> None:
    """Even if it says that it is done."""
    events = streaming("chat", "one")
    assert stream_parts("chat", b"".join([*events[:1], spoilt, *events[1:]]), limited=True) is None


@pytest.mark.parametrize(
    ("dialect", "kind"), [("messages", "error"), ("responses", "error"), ("responses", "response.failed")]
)
def test_a_stream_that_failed_is_not_kept(dialect: str, kind: str) -> None:
    """In the dialect's own words."""
    events = streaming(dialect, "one")
    failed = event({"type": kind, "sequence_number": 9}, kind)
    assert stream_parts(dialect, b"".join([*events[:2], failed, *events[2:]]), limited=True) is None  # type: ignore[arg-type]


def test_signs_of_life_are_not_kept() -> None:
    """Comments and pings were of one call."""
    events = streaming("messages", "one")
    parts = stream_parts("messages", b": still there\n\n".join(events), limited=True)
    assert parts is not None
    assert parts.body == b"".join(one for one in events if b"ping" not in one)


def test_the_usage_event_stands_apart() -> None:
    """For those who do not want to be told."""
    events = streaming("chat", "one")
    parts = stream_parts("chat", b"".join(events), limited=True)
    assert parts is not None
    assert (parts.body, parts.usage, parts.tail, parts.told) == (b"".join(events[:-2]), events[-2], DONE, True)


def test_a_usage_that_was_not_told_is_put_in() -> None:
    """The one who asked did not want it; the next may. An estimate is not passed off as a count."""
    silent = stream("chat", usage=False)
    parts = stream_parts("chat", silent, limited=True, usage=Usage(10, 20, cached=4, reasoning=3))
    assert parts is not None
    told = json.loads(parts.usage[6:])
    assert told["usage"] == {
        "prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }  # fmt: skip
    assert (told["id"], told["model"], told["choices"]) == ("c1", "m", [])
    for usage in (None, Usage(10, 20, estimated=True)):
        parts = stream_parts("chat", silent, limited=True, usage=usage)
        assert parts is not None
        assert (parts.usage, parts.told) == (b"", False)


@pytest.mark.parametrize("dialect", TEXTS)
def test_what_the_call_cost_is_not_kept(dialect: str) -> None:
    """``cost_usd`` beside the usage is the gateway's word about one call; all else stays byte for byte."""
    events = streaming(dialect, "one")
    paid = [with_cost(one, 1234) for one in events]
    assert paid != events
    parts = stream_parts(dialect, b"".join(paid), limited=True)  # type: ignore[arg-type]
    plain = stream_parts(dialect, b"".join(events), limited=True)  # type: ignore[arg-type]
    assert parts is not None
    assert plain is not None
    assert b"cost_usd" not in b"".join([parts.body, parts.usage])
    assert [json.loads(x[x.find(b"{") :]) for x in (parts.body + parts.usage).split(b"\n\n") if b"{" in x] == [
        json.loads(x[x.find(b"{") :]) for x in (plain.body + plain.usage).split(b"\n\n") if b"{" in x
    ]
    assert b"cost_usd" not in without_cost(b"".join(paid))


def test_padding_is_not_kept() -> None:
    """``obfuscation`` hides the length of one call's pieces. Words about it in a text are words."""
    padded = event(
        {**HEAD, "choices": [{"index": 0, "delta": {"content": 'say "cost_usd": 5'}}], "obfuscation": "xxxx"}
    )
    events = streaming("chat", "one")
    parts = stream_parts("chat", b"".join([events[0], padded, *events[1:]]), limited=True)
    assert parts is not None
    assert b"xxxx" not in parts.body
    assert b'say \\"cost_usd\\": 5' in parts.body
