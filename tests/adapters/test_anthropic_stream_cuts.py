"""Anthropic's streams however they are cut, and wherever they break off."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.records import Usage

from ..upstream import DONE
from .anthropic_events import (
    ADAPTER,
    PING,
    STOP,
    chunks,
    delta,
    event,
    read,
    reason,
    request,
    start,
    thought,
    use,
    words,
)

FULL = (
    start()
    + PING
    + thought(0, "hm ", "ü")
    + words(1, "Hello", " wörld", "\n\n")
    + use(2, "look", "", '{"city": "K', 'öln"}')
    + PING
    + use(3, "now", "")
    + event("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 3})
    + delta("tool_use", 30)
    + STOP
)
CRLF = FULL.replace(b"\n", b"\r\n")


def undated(found: list[Any]) -> list[Any]:
    """Chunks without the second at which they were made."""
    return [chunk if chunk == "[DONE]" else {**chunk, "created": 0} for chunk in found]


@pytest.mark.parametrize("said", [FULL, CRLF])
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_stream_reads_the_same_however_it_is_cut(said: bytes, size: int) -> None:
    """The same events and the same usage, byte by byte or in one piece, with any line ending."""
    whole, before = read(FULL, usage=True)
    found, stream = read(said, size=size, usage=True)
    assert undated(found) == undated(whole)
    assert (stream.usage, stream.events) == (before.usage, before.events)
    assert (stream.complete, stream.failed) == (True, False)
    assert stream.usage == Usage(135, 30, 100, 10)


@given(st.lists(st.integers(0, len(FULL)), max_size=12), st.booleans())
def test_a_stream_reads_the_same_wherever_it_is_cut(places: list[int], crlf: bool) -> None:
    """Any places at all."""
    said = CRLF if crlf else FULL
    stream = ADAPTER.stream(request(usage=True))
    edges = [0, *sorted(places), len(said)]
    out = b"".join([stream.feed(said[a:b]) for a, b in pairwise(edges)])
    assert undated(chunks(out + stream.finish())) == undated(read(FULL, usage=True)[0])


@given(st.integers(0, len(FULL)))
def test_a_stream_that_breaks_off_is_never_whole(place: int) -> None:
    """No ``[DONE]``, unless all that matters has come; and nothing is for free."""
    stream = ADAPTER.stream(request(usage=True))
    out = stream.feed(FULL[:place])
    used = stream.usage
    out += stream.finish()
    # The last blank line, and the last event of all, may be missing: the answer has said why it ended.
    known = FULL.index(b"message_stop") - len("event: ")
    assert (
        stream.complete is out.endswith(DONE) is (place in (known - 1, known, len(FULL) - 2, len(FULL) - 1, len(FULL)))
    )
    if place >= len(start()):
        assert used is not None
        assert used.prompt == 135
        assert used.completion >= 1
        assert used.estimated is (place < known)


@pytest.mark.parametrize(
    ("said", "complete"),
    [
        ((delta(), STOP), True),
        ((delta(), STOP[:-1]), True),
        ((delta(), STOP[:-2]), True),
        ((delta(),), True),
        ((delta()[:-2],), True),
        ((delta(), STOP[:-5]), False),
        ((delta()[:-5],), False),
        ((delta(None),), False),
        ((STOP,), True),
        ((), False),
    ],
)
def test_a_stream_is_complete_only_if_it_said_so(said: tuple[bytes, ...], complete: bool) -> None:
    """Its last event, also without the blank line, or the reason of its end and nothing half after it."""
    found, stream = read(start(), words(0, "a"), *said)
    assert stream.complete is complete
    assert (found[-1] == "[DONE]") is complete
    assert len(reason(found)) == complete
