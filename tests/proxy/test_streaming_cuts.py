"""Streams through a real uvicorn: the same however it is cut."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.openai import OpenAIStream
from asgi_llm_gateway.records import Usage

from ..upstream import DONE, LAST_CHUNK, STREAM_HEAD, Peer, chunk, event, upstream, usage_event, word
from .sockets import ASKED, Noting, answer_of, every_server, proxy, serving

ENDS = st.sampled_from([b"\n", b"\r\n"])
TEXT = st.one_of(st.text(max_size=20), st.sampled_from(["[DONE]", '"usage"', "data: x", "\r\n\r\n", "x" * 70_000]))


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """The events of a stream, as providers write them: any line end, comments, fields, several data lines."""
    events = []
    for kind in draw(st.lists(st.sampled_from("wwwwcfm"), max_size=12)):
        end = draw(ENDS)
        text = draw(TEXT)
        if kind == "w":
            events.append(word(text)[:-2] + end + end)
        elif kind == "c":
            events.append(b": ping" + end + end)
        elif kind == "f":
            events.append(b"event: delta" + end + b"id: 7" + end + word(text)[:-2] + end + end)
        else:
            events.append(b"data: {" + end + b'data:"choices":[]' + end + b"data: }" + end + end)
    end = draw(ENDS)
    events.append(word("", "stop")[:-2] + end + end)
    tail = draw(st.sampled_from(["usage", "null usage", "none"]))
    if tail == "usage":
        events.append(usage_event()[:-2] + end + end)
    elif tail == "null usage":
        events.append(event({"choices": [], "usage": None}))
    events += [b": bye" + end + end] * draw(st.integers(0, 6))
    if draw(st.booleans()):
        events.append(b"data: [DONE]" + end + end)
    return events


def cut(data: bytes, places: Sequence[float]) -> list[bytes]:
    """The bytes in pieces."""
    at = sorted({int(place * len(data)) for place in places} | {0, len(data)})
    return [data[start:stop] for start, stop in pairwise(at)]


def wanted(events: Sequence[bytes], *, asked: bool) -> bytes:
    """What the client shall have."""
    return b"".join(one for one in events if asked or b'"usage":{' not in one)


PLACES = st.lists(st.floats(0, 1, exclude_max=True), max_size=40)


@settings(max_examples=400, deadline=None)
@given(events=streams(), places=PLACES, asked=st.booleans())
def test_a_stream_reads_the_same_however_it_is_cut(events: list[bytes], places: list[float], asked: bool) -> None:
    """The same bytes, the same usage, the same end."""
    reader = OpenAIStream("openai", drop_usage=not asked)
    out = b"".join(reader.feed(piece) for piece in cut(b"".join(events), places)) + reader.finish()
    assert out == wanted(events, asked=asked)
    assert reader.usage == (Usage(3, 5) if any(b'"usage":{' in one for one in events) else None)
    assert reader.complete
    assert not reader.failed
    assert reader.events == sum(len(re.findall(rb"(?:^|[\r\n])data:", one)) for one in events)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 4096])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [DONE, b": bye\n\n" * 9], ids=["done", "comments"])
def test_a_stream_reads_the_same_in_even_pieces(size: int, end: bytes, last: bytes) -> None:
    """Byte by byte too, with or without a ``[DONE]``."""
    events = [b": hi\n\n", word("a"), word("b", "stop"), usage_event(), last]
    data = b"".join(events).replace(b"\n", end)
    reader = OpenAIStream("openai", drop_usage=True)
    out = b"".join(reader.feed(data[at : at + size]) for at in range(0, len(data), size)) + reader.finish()
    assert out == data.replace(usage_event().replace(b"\n", end), b"")
    assert (reader.usage, reader.complete) == (Usage(3, 5), True)


@every_server
def test_a_stream_is_relayed_the_same_however_it_is_cut(server: str) -> None:
    """The whole way: real sockets, any cut, the fast path and the slow one."""
    plan: list[list[bytes]] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(STREAM_HEAD)
            for piece in plan[-1]:
                await peer.send(chunk(piece))
                await asyncio.sleep(0.0005 if len(plan[-1]) < 20 else 0)  # mostly in a read of its own
            await peer.send(LAST_CHUNK)

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        provider = runner.run(stack.enter_async_context(upstream(script)))
        app = Noting(proxy(provider))
        with serving(app, server) as port:

            @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
            @given(events=streams(), places=PLACES, asked=st.booleans())
            def check(events: list[bytes], places: list[float], asked: bool) -> None:
                plan.append(cut(b"".join(events), places))
                body = {**ASKED, "stream_options": {"include_usage": True}} if asked else ASKED
                assert runner.run(answer_of(port, body)) == wanted(events, asked=asked)
                usage = app.exchanges[-1].usage
                assert usage is not None
                assert usage.estimated is not any(b'"usage":{' in one for one in events)
                assert usage.estimated or usage == Usage(3, 5)

            check()
        runner.run(stack.aclose())
