"""Messages passed on as they are: events as they come, whatever is in them, and their counts."""

from __future__ import annotations

import json

import pytest

from asgi_llm_gateway.adapters._native_messages import MessagesStream
from asgi_llm_gateway.adapters.base import StreamDecoder
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.usage import with_cost

from .native_messages_parts import END, LEGS, PING, STOP, delta, event, piece, read, start, words


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
