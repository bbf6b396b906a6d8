"""Messages passed on as they are: streams however cut, whatever is in them and however they end; and whole answers."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from anthropic import Anthropic
from anthropic._streaming import Stream
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters._native_messages import (
    CountsTokens,
    MessagesStream,
    counted,
    native_answer,
)
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import StreamDecoder, error_status, failure
from asgi_llm_gateway.errors import GatewayError, UpstreamError
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.usage import with_cost

TOLD = {"input_tokens": 25, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 10, "output_tokens": 1}


def event(type: str, newline: str = "\n", **fields: Any) -> bytes:
    """An event as the provider sends it."""
    data = json.dumps({"type": type, **fields}, separators=(",", ":"), ensure_ascii=False)
    return f"event: {type}{newline}data: {data}{newline}{newline}".encode()


def start(**usage: Any) -> bytes:
    """The first event."""
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [],
               "stop_reason": None, "stop_sequence": None, "usage": usage or TOLD}  # fmt: skip
    return event("message_start", message=message)


def piece(text: str, index: int = 0) -> bytes:
    """A piece of text."""
    return event("content_block_delta", index=index, delta={"type": "text_delta", "text": text})


def words(*texts: str, index: int = 0) -> bytes:
    """A block of text."""
    opened = event("content_block_start", index=index, content_block={"type": "text", "text": ""})
    return b"".join([opened, *(piece(text, index) for text in texts), event("content_block_stop", index=index)])


def delta(reason: str | None = "end_turn", **usage: Any) -> bytes:
    """The news of the end."""
    told: dict[str, Any] = {"usage": usage} if usage else {}
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, **told)


END = delta(output_tokens=7)
STOP = event("message_stop")
PING = event("ping")


def read(*said: bytes, size: int | None = None) -> tuple[bytes, MessagesStream]:
    """What goes on of a stream."""
    stream = MessagesStream("anthropic")
    whole = b"".join(said)
    step = size or len(whole) or 1
    out = b"".join([stream.feed(whole[at : at + step]) for at in range(0, len(whole), step)])
    return out + stream.finish(), stream


def test_a_stream_goes_on_as_it_is() -> None:
    """Comments, pings and what is new included; its counts are read in passing."""
    stream: StreamDecoder = MessagesStream("anthropic")
    assert (stream.usage, stream.events) == (None, 0)
    said = b": hello\n\n" + start() + PING + words("Hel", "lo") + event("something_new", a=1) + END + STOP
    out, stream = read(said)
    assert out == said
    assert stream.usage == Usage(135, 7, 100, 10)
    assert (stream.complete, stream.ending, stream.failed, stream.events) == (True, True, False, 8)


def test_each_event_goes_on_when_it_came() -> None:
    """And not before it is whole; the money can be settled when the reason of the end is known, before that is told."""
    stream = MessagesStream("anthropic")
    for one in (start(), words("a"), piece("b"), PING):
        assert stream.feed(one[:20]) == b""
        assert stream.feed(one[20:]) == one
        assert not stream.ending
    out = stream.feed(END)
    assert (out, stream.ending, stream.complete) == (END, True, False)
    told = json.loads(with_cost(out, 1_000).split(b"\n")[1][6:])
    assert told == {**json.loads(END.split(b"\n")[1][6:]), "cost_usd": pytest.approx(1e-6)}
    assert (stream.feed(STOP), stream.complete) == (STOP, True)


@pytest.mark.parametrize(
    "text",
    ["message_stop", '"type":"message_delta"', 'event: error\ndata: {"type":"error"}', '{"error": {"message": "x"}}',
     "\n\nevent: message_stop\n\n", '"usage":{"output_tokens":9}', "\r\n\r",
     'event: content_block_delta\ndata: {"type":"content_block_delta"', "message_start error"],
)  # fmt: skip
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_words_in_a_text_are_no_news(text: str, newline: str) -> None:
    """Whatever a model says, it is content."""
    said = (start() + words(text, text) + PING + piece(text)).replace(b"\n", newline.encode())
    out, stream = read(said)
    assert out == said
    assert (stream.ending, stream.complete, stream.failed) == (False, False, False)
    assert stream.usage is not None
    assert (stream.usage.prompt, stream.usage.estimated) == (135, True)
    inside = event("content_block_start", index=0, content_block={"type": "tool_use", "input": {"error": {"a": text}}})
    out, stream = read(start(), inside, END, STOP)
    assert (stream.failed, stream.complete) == (False, True)


NEWS = b'"delta":{"stop_reason":"x"},"usage":{"output_tokens":7}'


@pytest.mark.parametrize(
    "said",
    [
        # no event line, other spaces, the type not first, several data lines
        b'data: {"type":"message_delta",%b}\n\n' % NEWS,
        b'event: message_delta\ndata: { "type" : "message_delta", %b }\n\n' % NEWS,
        b'event:message_delta\ndata:{%b,"type":"message_delta"}\n\n' % NEWS,
        b'event: message_delta\ndata: {"type":"message_delta",\ndata: %b}\n\n' % NEWS,
        b'id: 1\rdata: {"type":"message_delta",%b}\r\r' % NEWS,
        # the line says one thing, the data another: clients go by the data
        b'event: content_block_delta\ndata: {"type":"message_delta",%b}\n\n' % NEWS,
    ],
)  # fmt: skip
def test_news_are_seen_however_they_are_written(said: bytes) -> None:
    """Alone, and in one piece with others."""
    for together in (start() + words("a") + said, start() + piece("a") + said + piece("b"), start() + said):
        out, stream = read(together + piece("c") + STOP)
        assert out == together + piece("c") + STOP
        assert (stream.complete, stream.usage) == (True, Usage(135, 7, 100, 10))
    stream = MessagesStream("a")
    stream.feed(start())
    stream.feed(piece("a") + said + PING)
    assert stream.ending


# -- however it is cut -------------------------------------------------------------------------------------------------

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


CLIENT = Anthropic(api_key="x")


def accumulated(said: bytes) -> Any:
    """The message that the official client puts together."""
    response = httpx2.Response(
        200, content=said, headers={"content-type": "text/event-stream"}, request=httpx2.Request("POST", "http://x")
    )
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    kind: Any = RawMessageStreamEvent
    events: Any = Stream(cast_to=kind, response=response, client=CLIENT)
    for one in events:
        snapshot = accumulate_event(event=one, current_snapshot=snapshot, json_bufs=buffers)
    return snapshot


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


# -- counts ------------------------------------------------------------------------------------------------------------


LEGS = [{"input_tokens": 135, "output_tokens": 5}, {"input_tokens": 30, "output_tokens": 7}]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([END], Usage(135, 7, 100, 10)),
        ([delta(None, output_tokens=3), END], Usage(135, 7, 100, 10)),
        ([delta(input_tokens=30, output_tokens=7)], Usage(140, 7, 100, 10)),
        ([delta(input_tokens=None, cache_read_input_tokens=None, output_tokens=7)], Usage(135, 7, 100, 10)),
        ([delta(input_tokens=0, cache_read_input_tokens=0, output_tokens=7)], Usage(135, 7, 100, 10)),
        ([delta(output_tokens=7, output_tokens_details={"thinking_tokens": 4})], Usage(135, 7, 100, 10, 4)),
        ([delta(output_tokens=7, iterations=LEGS)], Usage(165, 12)),
        # the counts come after the reason
        ([delta(), delta(None, output_tokens=7)], Usage(135, 7, 100, 10)),
    ],
)  # fmt: skip
def test_counts_are_merged(ends: list[bytes], expected: Usage) -> None:
    """Cumulative: the latest wins, what is left out stands, all legs are paid for."""
    _, stream = read(start(), words("a"), *ends, STOP)
    assert stream.usage == expected


def test_the_money_waits_for_counts_that_are_late() -> None:
    """Where the reason of the end comes without any, to the next news."""
    stream = MessagesStream("a")
    stream.feed(start() + words("a") + delta())
    assert not stream.ending
    stream.feed(STOP)
    assert stream.ending
    assert stream.usage is not None
    assert stream.usage.estimated


# -- errors and ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "told", "status"),
    [
        ("overloaded_error", "overloaded_error", 503), ("rate_limit_error", "rate_limit_error", 429),
        ("invalid_request_error", "invalid_request_error", 400), ("timeout_error", "timeout_error", 504),
        ("authentication_error", "api_error", 502), ("billing_error", "api_error", 502), ("api_error", "api_error", 502),
        ("something_new", "api_error", 502), (7, "api_error", 502),
    ],
)  # fmt: skip
@pytest.mark.parametrize("adapter", [None, AnthropicAdapter("a", "https://api.example.com", "the-secret-key")])
def test_an_error_amid_the_stream_is_told_in_our_words(
    kind: Any, told: str, status: int, adapter: AnthropicAdapter | None
) -> None:
    """As an error event without keys and hosts; nothing goes on after it."""
    message = "Overloaded at https://internal.example with sk-ant-abcdefgh1234"
    said = event("error", error={"type": kind, "message": message}, request_id="req_1")
    stream = MessagesStream("anthropic", adapter._failed if adapter else None)
    out = stream.feed(start() + words("a") + said + piece("late") + STOP)
    assert out.startswith(start() + words("a") + b"event: error\ndata: ")
    body = json.loads(out.rpartition(b"data: ")[2])
    assert (body["type"], body["error"]["type"]) == ("error", told)
    assert not any(word in out for word in (b"sk-ant", b"internal.example", b"late", b"message_stop"))
    assert (stream.failed, stream.ending, stream.complete) == (True, True, False)
    assert stream.feed(piece("later")) + stream.finish() == b""
    assert stream.usage is not None
    assert stream.usage.estimated
    assert failure("a", error_status(said.split(b"\n")[1][6:]), (), b"").http_status == status


@pytest.mark.parametrize(
    "said",
    [b'event: error\ndata: {"error":{"code":400,"message":"no"}}\n\n', b'data: {"error":{"message":"no"}}\n\n',
     b"event: error\ndata: no json\n\n", b'event:error\r\ndata: "no"\r\n\r\n', b'data: {"type":"error"}\n\n'],
)  # fmt: skip
def test_an_error_is_seen_however_it_is_written(said: bytes) -> None:
    """By its event's name, its type, or its one field."""
    out, stream = read(start(), words("a"), said)
    assert (stream.failed, out.count(b"event: error\n")) == (True, 1)


def test_an_error_after_the_end_changes_nothing() -> None:
    """The answer is whole."""
    out, stream = read(start(), words("a"), END, STOP, event("error", error={"type": "api_error", "message": "x"}))
    assert (out.endswith(STOP), stream.complete, stream.failed) == (True, True, False)


@pytest.mark.parametrize(
    ("body", "status"),
    [(b'{"error":{"type":"overloaded_error"}}', 529), (b'{"error":{"code":503}}', 503), (b'{"error":{"code":7}}', 502),
     (b"", 502), (b'{"error":{"type":"request_too_large","code":400}}', 400), (b'{"error":{"code":"429"}}', 429)],
)  # fmt: skip
def test_the_status_of_an_error(body: bytes, status: int) -> None:
    """By its code, or its type."""
    assert error_status(body) == status


@pytest.mark.parametrize(
    ("said", "complete"),
    [
        ((END, STOP), True), ((END, STOP[:-1]), True), ((END, STOP[:-2]), True), ((END,), True), ((END[:-2],), True),
        ((END, STOP[:-5]), False), ((END, STOP[:20]), False), ((END, b"event"), False),
        ((END[:-5],), False), ((delta(None, output_tokens=3),), False), ((STOP,), True), ((), False),
        ((piece("b")[:-2],), False),
    ],
)  # fmt: skip
def test_a_stream_is_complete_only_if_it_said_so(said: tuple[bytes, ...], complete: bool) -> None:
    """Its last event, also without the blank line, or the reason of its end and nothing half after it. Clients get the end."""
    out, stream = read(start(), words("a"), *said)
    assert stream.complete is complete
    assert out.endswith(STOP) is complete
    assert accumulated(out).content[0].text.startswith("a")


def test_a_failure_is_an_error_event() -> None:
    """That the official client raises."""
    assert MessagesStream("a").failure(UpstreamError("It broke.", code="upstream_cut")) == (
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"It broke.","code":"upstream_cut"}}\n\n'
    )


def test_what_is_no_stream_is_an_upstream_error() -> None:
    """News that are broken, and an event without an end."""
    for said in (b'event: message_delta\ndata: {"type":"message_delta",\n\n', b"data: message_start\n\n"):
        with pytest.raises(UpstreamError, match="not JSON"):
            MessagesStream("a").feed(said)
    stream = MessagesStream("a")
    for _ in range(128):
        assert stream.feed(b"x" * 65536) == b""
    with pytest.raises(UpstreamError, match="without an end"):
        stream.feed(b"x")


WORDS = st.sampled_from(["type", "message_start", "message_delta", "message_stop", "error", "usage", "delta", "stop_reason",
                         "output_tokens", "iterations", "message", "input_tokens"])  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.integers(-3, 10) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(st.dictionaries(WORDS, ANYTHING, max_size=5), max_size=6))
def test_whatever_comes_is_passed_on_or_refused(events: list[dict[str, Any]]) -> None:
    """Never with an exception of ours."""
    stream = MessagesStream("a")
    said = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in events]
    out = b"".join([stream.feed(one) for one in said]) + stream.finish()
    assert stream.failed or stream.complete or out == b"".join(said) or out.endswith(STOP)
    assert stream.usage is None or stream.usage.total >= 0


# -- whole answers -----------------------------------------------------------------------------------------------------

ANSWER = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
          "content": [{"type": "text", "text": "hi"}]}  # fmt: skip


def refuse(body: bytes) -> GatewayError:
    """What an error is called."""
    return failure("a", error_status(body), (), body)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"usage": {"input_tokens": 5, "output_tokens": 7}}, Usage(5, 7)),
        ({"usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 7}, "context": {}}, Usage(8, 7, 3)),
        ({"usage": {"input_tokens": 30, "output_tokens": 7, "iterations": LEGS}}, Usage(165, 12)),
        ({"usage": {"input_tokens": 5, "output_tokens": 7}, "content": [
            {"type": "tool_use", "input": {"usage": {"input_tokens": 1, "output_tokens": 1}, "error": 1}}]}, Usage(5, 7)),
        ({"content": [{"type": "text", "text": '"usage":{"input_tokens":1,"output_tokens":1}}'}]}, None),
        ({"usage": None}, None),
        ({"usage": {"input_tokens": -1, "output_tokens": 7}}, None),
    ],
)  # fmt: skip
def test_an_answer_goes_on_byte_for_byte(fields: dict[str, Any], expected: Usage | None) -> None:
    """And its counts are read, wherever they stand."""
    for told in ({**ANSWER, **fields}, {**fields, **ANSWER, **fields}):
        body = json.dumps(told).encode()
        found = native_answer("a", body, refuse)
        assert (found.body, found.usage) == (body, expected)
    Message.model_validate_json(
        json.dumps({**ANSWER, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}})
    )


def test_a_long_answer_is_not_parsed() -> None:
    """Its counts are read from the end."""
    body = json.dumps({**ANSWER, "content": [{"type": "text", "text": "x" * 2**21}], "usage": TOLD}).encode()
    assert native_answer("a", body, refuse).usage == Usage(135, 1, 100, 10)
    assert native_answer("a", body.replace(b'"usage"', b'"no"'), refuse).usage is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 502), (b"<html>", 502), (b"[]", 502), (b"7", 502), (b"{}", 502), (b'{"content":"a"}', 502),
        (b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}', 502),
        (b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}', 503),
        (b'{"error":{"type":"rate_limit_error","message":"m"},"usage":{"input_tokens":1,"output_tokens":1}}', 429),
        (b'{"error":{"code":400,"message":"m"}}', 400),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_an_error(body: bytes, status: int) -> None:
    """Also where it comes with a 200."""
    with pytest.raises(GatewayError) as caught:
        native_answer("a", body, refuse)
    assert caught.value.http_status == status


def test_a_count_is_read() -> None:
    """A whole number, or 502."""
    assert counted("a", b'{"input_tokens":22}') == 22
    for body in (b"", b"[]", b'{"input_tokens":"1"}', b'{"input_tokens":-1}', b'{"input_tokens":true}', b"{}"):
        with pytest.raises(UpstreamError):
            counted("a", body)
    assert isinstance(AnthropicAdapter("a", "http://h"), CountsTokens)
