"""Usage of images, audio and speech, read as the answer passes by: whatever its form, however it is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway._counted import so_far
from asgi_llm_gateway.media_usage import MediaReader, media_usage, reader_of
from asgi_llm_gateway.records import Price, UnitPrice, Units, Usage
from asgi_llm_gateway.units import completed
from asgi_llm_gateway.usage import WHOLE_PARSE, UsageReader

from .media_provider import HEARD, IMAGE_USAGE, PNG, SPOKEN
from .test_units import asked, audio

EVENTS = b"text/event-stream; charset=utf-8"
DRAWN = Usage(50, 272, units=Units(images=1, media_in=40, media_out=272))


def event(kind: str, **fields: Any) -> bytes:
    """One event."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), json.dumps({"type": kind, **fields}).encode())


def read(reader: UsageReader, body: bytes, cuts: list[int]) -> Usage | None:
    """Feed a body in pieces."""
    at = 0
    for cut in sorted(cut % (len(body) + 1) for cut in cuts):
        reader.feed(body[at:cut])
        at = cut
    reader.feed(body[at:])
    return reader.end()


@pytest.mark.parametrize(
    ("dialect", "answer", "usage"),
    [
        ("images", {"data": [{"url": "x"}, {"url": "y"}]}, Usage(units=Units(images=2))),
        ("images", {"data": [{"b64_json": "x"}], "usage": IMAGE_USAGE}, DRAWN),
        ("images", {"data": []}, None),
        ("images", {"error": {"message": "no"}}, None),
        (
            "images",
            {"data": [{}], "usage": {**IMAGE_USAGE, "output_tokens_details": {"text_tokens": 72, "image_tokens": 200}}},
            Usage(50, 272, units=Units(1, 0, 0, 40, 200)),
        ),
        ("transcriptions", {"text": "a", "usage": {"type": "duration", "seconds": 7}}, Usage(units=Units(seconds=7))),
        (
            "transcriptions",
            {"text": "a", "usage": {"type": "duration", "seconds": 6.01}},
            Usage(units=Units(seconds=7)),
        ),
        ("transcriptions", {"text": "a", "usage": HEARD}, Usage(110, 20, units=Units(media_in=100))),
        ("transcriptions", {"text": "a", "duration": 8.47}, Usage(units=Units(seconds=9))),
        ("translations", {"text": "a", "duration": "8.470000059604645"}, Usage(units=Units(seconds=9))),
        ("translations", {"text": "a", "duration": "long"}, None),
        ("translations", {"text": "a", "duration": "nan"}, None),
        ("translations", {"text": "a", "duration": "1e400"}, None),
        ("transcriptions", {"text": "a", "duration": -1}, None),
        ("transcriptions", {"text": "a", "duration": True}, None),
        ("transcriptions", {"text": "a", "usage": {"type": "duration", "seconds": None}}, None),
        ("transcriptions", {"usage": {"input_tokens": 9, "output_tokens": 1}}, Usage(9, 1, units=Units(media_in=9))),
        ("speech", {"usage": SPOKEN}, Usage(5, 60, units=Units(media_out=60))),
        ("moderations", {"results": []}, None),
        ("moderations", {"usage": {"prompt_tokens": 4, "total_tokens": 4}}, Usage(4, units=Units())),
        ("images", [1], None),
        ("images", {"data": 3, "usage": "much"}, None),
    ],
)
def test_what_an_answer_tells(dialect: Any, answer: Any, usage: Usage | None) -> None:
    """By every name that it has; nonsense tells nothing."""
    assert media_usage(dialect, answer) == usage


@given(st.lists(st.integers(0, 10**6), max_size=6), st.integers(1, 4))
def test_images_are_counted_however_the_answer_is_cut(cuts: list[int], count: int) -> None:
    """Pretty-printed or not, whole or in pieces; a word in a prompt is no image."""
    data = [{"revised_prompt": 'a "url": "x" on a wall', "url": "https://x", "b64_json": None}] * count
    for body in (
        json.dumps({"data": data}, indent=1).encode(),
        json.dumps({"data": data}, separators=(",", ":")).encode(),
    ):
        assert read(MediaReader(asked("images", n=count), b"application/json"), body, cuts) == Usage(
            units=Units(images=count)
        )


@given(st.lists(st.integers(0, 4 * 10**6), max_size=12), st.booleans())
def test_a_long_answer_is_counted_and_not_kept(cuts: list[int], told: bool) -> None:
    """Images in base64: the usage stands at the end, or there is none; then their number is known all the same."""
    picture = {"b64_json": PNG * (WHOLE_PARSE // len(PNG))}
    answer = {"created": 1, "data": [picture, picture, picture], **({"usage": IMAGE_USAGE} if told else {})}
    body = json.dumps(answer).encode()
    reader = MediaReader(asked("images", n=3), b"application/json")
    found = read(reader, body, cuts)
    assert found == (DRAWN._replace(units=Units(3, 0, 0, 40, 272)) if told else Usage(units=Units(images=3)))


def test_sound_and_texts_are_not_kept() -> None:
    """A reader of sound holds none of it, and a text is no JSON."""
    for kind, request in ((b"audio/mpeg", asked("speech")), (b"text/plain", audio(b"x"))):
        reader = MediaReader(request, kind)
        for _ in range(100):
            reader.feed(bytes(65536))
        assert reader._body == []
        assert reader.end() is None


STREAMS: dict[str, tuple[Any, bytes, Usage | None]] = {
    "image": (
        asked("images"),
        event("image_generation.partial_image", b64_json=PNG)
        + event("image_generation.completed", b64_json=PNG, usage=IMAGE_USAGE),
        DRAWN,
    ),
    "two images": (
        asked("images", n=2),
        event("image_edit.completed", b64_json=PNG, usage=IMAGE_USAGE) * 2,
        Usage(100, 544, units=Units(2, 0, 0, 80, 544)),
    ),
    "image without usage": (asked("images"), event("image_generation.completed", b64_json=PNG), Usage(units=Units(images=1))),
    "transcript": (
        audio(b"x"),
        event("transcript.text.delta", delta="a") + event("transcript.text.done", text="a", usage=HEARD),
        Usage(110, 20, units=Units(media_in=100)),
    ),
    "transcript without usage": (audio(b"x"), event("transcript.text.done", text="a") + b"data: [DONE]\n\n", None),
    "speech": (
        asked("speech"),
        event("speech.audio.delta", audio=PNG) + event("speech.audio.done", usage=SPOKEN),
        Usage(5, 60, units=Units(media_out=60)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
@given(cuts=st.lists(st.integers(0, 10**5), max_size=8))
def test_a_stream_tells_the_same_however_it_is_cut(name: str, cuts: list[int]) -> None:
    """Its usage, and that it is complete."""
    request, body, usage = STREAMS[name]
    reader = MediaReader(request, EVENTS)
    assert read(reader, body, cuts) == usage
    assert (reader.complete, reader.ending, reader.failed) == (True, True, False)


@given(st.integers(1, 10**4))
def test_a_stream_that_is_cut_is_not_complete(size: int) -> None:
    """Before its last event, nothing is final."""
    request, body, _ = STREAMS["image"]
    reader = MediaReader(request, EVENTS)
    reader.feed(body[: min(size, len(body) - 3)])
    assert (reader.complete, reader.usage) == (False, None)


def test_of_several_images_the_first_is_not_the_end() -> None:
    """The money is settled once, after the last of them; a stream that is cut before that is paid in full."""
    request = asked("images", n=2)
    reader = MediaReader(request, EVENTS)
    done = event("image_generation.completed", b64_json=PNG, usage=IMAGE_USAGE)
    reader.feed(done)
    assert not reader.ending
    cut = so_far(request, reader)
    assert completed(cut, request, Price(0, 0, units=UnitPrice(image=1))).units == Units(images=2)
    reader.feed(done)
    assert reader.ending
    assert so_far(request, reader) == Usage(100, 544, units=Units(2, 0, 0, 80, 544))


@pytest.mark.parametrize("body", [event("error", error={"message": "no"}), b'data: {"error": {"message": "no"}}\n\n'])
def test_an_error_in_a_stream_is_seen(body: bytes) -> None:
    """It is no usage, and no end of its own."""
    reader = MediaReader(asked("images"), EVENTS)
    reader.feed(body)
    assert (reader.failed, reader.ending, reader.complete, reader.end()) == (True, True, False, None)


@pytest.mark.parametrize(
    "body", [b"data: {\n\n", b"data: [1]\n\n", b": ping\n\n", b'data: "usage"\n\n', b"\n\n\n", b"data: {}.done\n\n"]
)
def test_nonsense_in_a_stream_tells_nothing(body: bytes) -> None:
    """And raises nothing."""
    reader = MediaReader(asked("images"), EVENTS)
    reader.feed(body)
    assert reader.end() is None


def test_other_dialects_have_their_reader() -> None:
    """Chat, and what nobody read, as before."""
    assert type(reader_of(None, EVENTS)) is UsageReader
    assert type(reader_of(asked("images"), b"application/json")) is MediaReader
