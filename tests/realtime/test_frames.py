"""Frames: what they say, what is refused, and how big ones are cut and joined."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.realtime import frames
from asgi_llm_gateway.realtime.frames import Ask, BadFrame, Beat, Cancel, Joiner, Part, pieces, read, size_of
from asgi_llm_gateway.records import Usage

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=3000)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def frame(kind: str = "chat.completions.create", **fields: Any) -> str:
    """A frame's text."""
    return json.dumps({"type": kind, **fields})


def refused(text: str) -> BadFrame:
    """Why a frame is refused."""
    with pytest.raises(BadFrame) as caught:
        read(text)
    return caught.value


# -- what is said ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "path"), frames.ASKS.items())
def test_each_type_is_a_path_of_the_api(kind: str, path: str) -> None:
    """Id, path and body."""
    assert read(frame(kind, id="1", body={"model": "m"})) == Ask("1", path, b'{"model":"m"}', ())


def test_the_frames_about_a_call_and_the_session() -> None:
    """Cancel, signs of life, and the version where it is named."""
    assert read(frame("cancel", id="x", v=1)) == Cancel("x")
    assert read(frame("ping")) == Beat(True)
    assert read(frame("pong")) == Beat(False)


@given(st.dictionaries(texts, json_values, max_size=5))
def test_a_body_goes_through_without_a_digit_lost(body: dict[str, Any]) -> None:
    """Whole numbers of any length and doubles to the last bit, as the standard library reads them."""
    asked = read(frame(id="1", body=body))
    assert isinstance(asked, Ask)
    assert json.loads(asked.body) == body


def test_a_call_may_bring_headers_that_mean_something_for_it_alone() -> None:
    """Names in lower case."""
    asked = read(frame(id="1", body={}, headers={"Cache-Control": "no-cache", "anthropic-version": "2023-06-01"}))
    assert isinstance(asked, Ask)
    assert asked.headers == ((b"cache-control", b"no-cache"), (b"anthropic-version", b"2023-06-01"))


@pytest.mark.parametrize(
    ("text", "param", "code"),
    [
        ("", None, "invalid_frame"),
        ("[]", None, "invalid_frame"),
        ("null", None, "invalid_frame"),
        ('{"a":', None, "invalid_frame"),
        ("[" * 100_000, None, "invalid_frame"),
        (frame("chat"), "type", "invalid_frame"),
        (json.dumps({"id": "1", "type": ["ping"]}), "type", "invalid_frame"),
        (frame("ping", v=2), "v", "unsupported_version"),
        (frame("ping", v=True), "v", "unsupported_version"),
        (frame("ping", id="1"), "id", "invalid_frame"),
        (frame(body={}), "id", "invalid_frame"),
        (frame(id="", body={}), "id", "invalid_frame"),
        (frame(id="x" * 129, body={}), "id", "invalid_frame"),
        (frame(id=7, body={}), "id", "invalid_frame"),
        (frame("cancel"), "id", "invalid_frame"),
        (frame(id="1"), "body", "invalid_frame"),
        (frame(id="1", body="x"), "body", "invalid_frame"),
        (frame(id="1", body={}, model="m"), "model", "invalid_frame"),
        ('{"id":"1","type":"chat.completions.create","body":{"a":' + "[" * 500 + "]" * 500 + "}}", "body", "invalid_frame"),
        (frame(id="1", body={}, headers=[]), "headers", "invalid_frame"),
        (frame(id="1", body={}, headers={"authorization": "Bearer x"}), "headers", "invalid_frame"),
        (frame(id="1", body={}, headers={"x-api-key": "x"}), "headers", "invalid_frame"),
        (frame(id="1", body={}, headers={"x-tenant-id": "b"}), "headers", "invalid_frame"),
        (frame(id="1", body={}, headers={"cache-control": "a\r\nx-api-key: b"}), "headers", "invalid_frame"),
        (frame(id="1", body={}, headers={"cache-control": "é"}), "headers", "invalid_frame"),
        (frame(id="1", body={}, headers={"cache-control": 1}), "headers", "invalid_frame"),
        (frame(id="1", body={}, headers={"cache-control": "x" * 1025}), "headers", "invalid_frame"),
        (frame(id="1", body={}, headers={"Cache-Control": "a", "cache-control": "b"}), "headers", "invalid_frame"),
        (frame("part", part=-1, index=0, last=True, text=""), "part", "invalid_frame"),
        (frame("part", part=1, index="0", last=True, text=""), "index", "invalid_frame"),
        (frame("part", part=1, index=0, last=1, text=""), "last", "invalid_frame"),
        (frame("part", part=1, index=0, last=True), "text", "invalid_frame"),
    ],
)  # fmt: skip
def test_what_is_no_frame_is_refused_by_the_field_that_is_at_fault(text: str, param: str | None, code: str) -> None:
    """A 400 that names it, and the call's id where that can be told."""
    error = refused(text)
    assert (error.http_status, error.param, error.error_code) == (400, param, code)
    assert len(error.message) < 600


def test_a_refusal_names_the_call_it_is_about() -> None:
    """So that the peer knows which of its calls came to nothing."""
    assert refused(frame(id="mine", body=[])).id == "mine"
    assert refused(frame(id=["x"], body={})).id is None


@given(json_values | texts.map(lambda text: {"type": text}) | st.fixed_dictionaries(
    {"type": st.sampled_from([*frames.ASKS, "cancel", "ping", "part"])},
    optional=dict.fromkeys(("id", "v", "body", "headers", "part", "index", "last", "text"), json_values)))  # fmt: skip
def test_whatever_comes_is_read_or_refused(value: Any) -> None:
    """Never another exception."""
    try:
        read(json.dumps(value))
    except BadFrame as error:
        json.loads(frames.refused(error.id, error))


@given(texts)
def test_what_is_no_json_is_refused(text: str) -> None:
    """The same, for texts."""
    with suppress(BadFrame):
        read(text)


def test_the_end_of_a_call_tells_usage_and_exact_cost() -> None:
    """In nano-dollars, without a rounding."""
    said = frames.done("1", status=200, usage=Usage(3, 4, cached=1), cost=1_000_000_001, headers={"x-cache": "miss"})
    assert '"cost_usd":1.000000001' in said
    assert json.loads(said) == {
        "id": "1", "type": "response.done", "status": 200, "cost_usd": 1.000000001, "headers": {"x-cache": "miss"},
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "cached_tokens": 1,
                  "cache_write_tokens": 0, "reasoning_tokens": 0, "estimated": False},
    }  # fmt: skip


# -- big frames --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(json_values, st.integers(1024, 5000)), min_size=1, max_size=5), st.randoms())
def test_cut_and_mixed_with_others_every_frame_comes_out_as_it_was(sent: list[Any], chance: Any) -> None:
    """Each message within its limit; parts of several frames in any order that keeps each frame's own."""
    whole = [json.dumps(value, ensure_ascii=False) for value, _ in sent]
    queues = [
        list(pieces(text, most, number)) for number, (text, (_, most)) in enumerate(zip(whole, sent, strict=True))
    ]
    for queue, (_, most) in zip(queues, sent, strict=True):
        assert all(size_of(piece) <= most for piece in queue)
    joiner, found = Joiner(sum(map(size_of, whole))), []
    while any(queues):
        message = chance.choice([queue for queue in queues if queue]).pop(0)
        parsed = json.loads(message)
        if type(parsed) is dict and parsed.get("type") == "part":
            part = read(message)
            assert isinstance(part, Part)
            joined = joiner.feed(part)
            if joined is not None:
                found.append(joined)
        else:
            found.append(message)
    assert sorted(found) == sorted(whole)


def test_a_frame_that_fits_is_sent_as_it_is() -> None:
    """To the very byte."""
    text = json.dumps("x" * 1022)
    assert list(pieces(text, 1024, 1)) == [text]
    assert len(list(pieces(text + " ", 1024, 1))) > 1


def part(number: int, place: int, text: str, *, last: bool = False) -> Part:
    """A part."""
    return Part(number, place, last, text)


def test_parts_that_are_not_in_order_are_given_up() -> None:
    """One refusal; what follows of the same frame passes by, and the number may be used again then."""
    joiner = Joiner(100)
    joiner.feed(part(1, 0, "a"))
    with pytest.raises(BadFrame, match="must be 1"):
        joiner.feed(part(1, 2, "c"))
    assert joiner.feed(part(1, 1, "b")) is None
    assert joiner.feed(part(1, 3, "d", last=True)) is None
    assert joiner.feed(part(1, 0, "whole", last=True)) == "whole"


def test_parts_are_bounded_all_together() -> None:
    """413 for what passes the limit, and room again when it was given up."""
    joiner = Joiner(10)
    joiner.feed(part(1, 0, "123456"))
    with pytest.raises(BadFrame) as caught:
        joiner.feed(part(2, 0, "12345"))
    assert (caught.value.http_status, caught.value.error_code) == (413, "frame_too_large")
    assert joiner.feed(part(2, 1, "", last=True)) is None
    assert joiner.feed(part(1, 1, "7890", last=True)) == "1234567890"
    assert joiner.feed(part(3, 0, "1234567890", last=True)) == "1234567890"


def test_only_so_many_frames_may_be_open() -> None:
    """Numbers are no way to fill the memory."""
    joiner = Joiner(10**6)
    for number in range(frames.MAX_PARTS_OPEN):
        joiner.feed(part(number, 0, ""))
    with pytest.raises(BadFrame, match="At most 8"):
        joiner.feed(part(99, 0, ""))
