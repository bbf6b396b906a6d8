"""Server-sent events: cut anywhere, any line ending, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asgi_llm_gateway._sse import EventSplitter, EventTooLong, data_of, split

ENDINGS = (b"\n", b"\r\n", b"\r")

LINES = st.sampled_from(
    [b"data: one", b"data:two", b"data", b"data: ", b": a comment", b"event: ping", b"id: 7", b'data: {"a": 1}', b"x"]
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes | None]]:
    """A stream whose every line may end differently, and the data of its events."""
    text = b""
    told: list[bytes | None] = []
    for lines in draw(st.lists(st.lists(LINES, min_size=1, max_size=4), max_size=6)):
        for line in lines:
            text += line + draw(st.sampled_from(ENDINGS))
        blank = draw(st.sampled_from(ENDINGS))
        if text.endswith(b"\r") and blank == b"\n":
            blank = b"\r\n"  # CR and LF side by side would be one ending
        text += blank
        values = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:") or line == b"data"]
        told.append(b"\n".join(values) if values else None)
        # A blank line that ends with CR is not seen to be one before the next byte, which must not be an LF then.
    return text, told


def pieces_of(text: bytes, cuts: list[int]) -> list[bytes]:
    """The text cut at the given places."""
    at = sorted({min(cut, len(text)) for cut in cuts})
    return [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]


@settings(max_examples=150, deadline=None)
@given(streams(), st.lists(st.integers(0, 200), max_size=12))
@example((b"data: one\r\n\r\ndata: two\r\n\r\n", [b"one", b"two"]), [10, 11, 12, 13])
@example((b"data: one\r\r", [b"one"]), [10])
def test_any_cut_gives_the_same_events_and_the_same_bytes(
    stream: tuple[bytes, list[bytes | None]], cuts: list[int]
) -> None:
    """However a stream is cut, its events are the same, each byte for byte, and no byte is lost."""
    text, told = stream
    splitter = EventSplitter()
    events = [event for piece in pieces_of(text, cuts) for event in splitter.feed(piece)]
    assert b"".join(events) + splitter.rest == text
    last = split(splitter.rest)  # a final CR may be half of a CRLF until the stream ends
    assert [data_of(event) for event in (*events, *last)] == told


@pytest.mark.parametrize("size", [1, 2, 3, 7, 4096])
def test_mixed_endings_in_one_stream_are_understood(size: int) -> None:
    """LF, CRLF and CR may stand in one stream."""
    text = b"data: a\n\ndata: b\r\n\r\ndata: c\r\rdata: d\r\n\ndata: e\n\r\n: end\n\n"
    splitter = EventSplitter()
    events = [event for at in range(0, len(text), size) for event in splitter.feed(text[at : at + size])]
    assert [data_of(event) for event in events] == [b"a", b"b", b"c", b"d", b"e", None]
    assert b"".join(events) == text


@pytest.mark.parametrize("size", [1, 2, 5, 4096])
def test_whole_gives_all_ended_events_in_one_piece(size: int) -> None:
    """What has come to an end goes on at once and unchanged; the rest waits."""
    text = b"data: a\n\ndata: b\n\ndata: unfinished"
    splitter = EventSplitter()
    out = b"".join(splitter.whole(text[at : at + size]) for at in range(0, len(text), size))
    assert out == b"data: a\n\ndata: b\n\n"
    assert splitter.rest == b"data: unfinished"


def test_a_comment_is_an_event_without_data() -> None:
    """Keep-alive comments go through as they are and carry nothing."""
    (event,) = EventSplitter().feed(b": OPENROUTER PROCESSING\n\n")
    assert event == b": OPENROUTER PROCESSING\n\n"
    assert data_of(event) is None


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: one\n\n", b"one"),
        (b"data:one\n\n", b"one"),
        (b"data:  two spaces\n\n", b" two spaces"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b"data: a\rdata: b\r\r", b"a\nb"),
        (b"event: x\nid: 3\ndata: a\n\n", b"a"),
        (b"data\n\n", b""),
        (b"data:\n\n", b""),
        (b"id: 3\n\n", None),
        (b"database: x\n\n", None),
        (b"\n\n", None),
        (b"", None),
    ],
)
def test_data_is_read_as_the_standard_says(event: bytes, data: bytes | None) -> None:
    """The data lines joined by LF, one space after the colon taken off; other fields left out."""
    assert data_of(event) == data


def test_a_long_event_in_many_pieces_comes_out_whole() -> None:
    """An event of some megabytes is one event, whatever it is cut into."""
    event = b"data: " + b"x" * 3_000_000 + b"\n\n"
    splitter = EventSplitter()
    events = [one for at in range(0, len(event), 4096) for one in splitter.feed(event[at : at + 4096])]
    assert events == [event]


def test_an_event_without_an_end_is_given_up_on() -> None:
    """Past the limit the splitter raises, and holds no more than the limit whoever goes on feeding it."""
    splitter = EventSplitter(limit=100)
    with pytest.raises(EventTooLong, match="100 bytes"):
        splitter.whole(b"data: " + b"x" * 100)
    for _ in range(50):
        try:
            splitter.whole(b"x" * 60)
        except EventTooLong:
            continue
    assert len(splitter.rest) <= 100


def test_an_event_of_just_the_limit_passes() -> None:
    """The limit is inclusive."""
    splitter = EventSplitter(limit=20)
    assert splitter.feed(b"data: " + b"x" * 14) == []
    assert splitter.feed(b"\n\n") == [b"data: " + b"x" * 14 + b"\n\n"]
