"""Images, audio, speech and moderation at a provider: asked byte for byte, and relayed the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters import _media
from asgi_llm_gateway.adapters.base import PATHS, Endpoint
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.adapters.vendors import adapter_of
from asgi_llm_gateway.errors import GatewayError, Unsupported, UpstreamError
from asgi_llm_gateway.media_usage import MAX_MEDIA_EVENT
from asgi_llm_gateway.records import Units, Usage
from asgi_llm_gateway.wire import MEDIA, METERED, LLMRequest, Route, Table, parse

from ..forms import FILE, form, part
from ..media_provider import IMAGE_USAGE, PNG, SPOKEN
from ..test_media_usage import STREAMS, event
from ..test_units import asked, audio

ADAPTER = OpenAIAdapter("shop", "https://shop.example/v1", "sk-secret-key")
THERE = Endpoint("POST", "https://shop.example/v1/x", _media.headers_of([(b"content-type", b"application/json"),
                 (b"accept", b"application/json"), (b"authorization", b"Bearer k")]))  # fmt: skip


def uploaded(boundary: bytes, kind: bytes) -> LLMRequest:
    """A transcription whose boundary is written so."""
    path = next(path for path, dialect in METERED.items() if dialect == "transcriptions")
    body = form(part("model", b"m"), FILE, boundary=boundary)
    return parse(Route("metered", "transcriptions", path), body, kind)


def test_each_dialect_has_its_path() -> None:
    """Below the provider's base URL, as OpenAI has it."""
    ours = {dialect: path for path, dialect in METERED.items()}
    for dialect in MEDIA:
        assert dialect is not None
        assert "/v1" + PATHS[dialect] == ours[dialect]


@pytest.mark.parametrize("dialect", ["images", "speech", "moderations", "image_edits"])
def test_json_goes_as_it_came(dialect: str) -> None:
    """Byte for byte, with one content type; with the provider's own name for the model where it has one."""
    request = asked(dialect)
    sent = _media.upstream(THERE, request, "m")
    assert sent.body is request.raw
    assert dict(sent.headers) == {b"content-type": b"application/json", b"accept": b"*/*"}
    assert dict(sent.endpoint.headers) == {b"authorization": b"Bearer k"}
    other = json.loads(_media.upstream(THERE, request, "theirs").body)
    assert other == {**request.data, "model": "theirs"}


def test_a_form_goes_as_it_came() -> None:
    """With its own boundary; another model is written into it and nothing else."""
    request = uploaded(b"xYz", b"multipart/form-data; charset=utf-8; boundary=xYz")
    sent = _media.upstream(THERE, request, "m")
    assert sent.body is request.raw
    assert dict(sent.headers)[b"content-type"] == b"multipart/form-data; boundary=xYz"
    assert _media.upstream(THERE, request, "theirs").body == form(part("model", b"theirs"), FILE)


def test_an_odd_boundary_is_quoted() -> None:
    """RFC 2046: characters that are no token stand in quotes."""
    request = uploaded(b"a b:c", b'multipart/form-data; boundary="a b:c"')
    assert (
        dict(_media.upstream(THERE, request, "m").headers)[b"content-type"] == b'multipart/form-data; boundary="a b:c"'
    )


def test_a_whole_answer_is_passed_on_and_read() -> None:
    """Its bytes are not touched."""
    body = json.dumps({"created": 1, "data": [{"b64_json": PNG}], "usage": IMAGE_USAGE}).encode()
    answer = _media.answer(ADAPTER, asked("images"), body)
    assert answer.body is body
    assert answer.usage == Usage(50, 272, units=Units(images=1, media_in=40, media_out=272))
    assert _media.answer(ADAPTER, audio(b"x"), b'{"text": "a b"}').usage is None
    assert _media.answer(ADAPTER, audio(b"x"), b'"a b"').body == b'"a b"'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"<html>", 502),
        (b"", 502),
        (b'{"error": {"message": "no", "code": 429}}', 429),
        (b'{"error": {"message": "sk-secret-key is bad"}}', 502),
    ],
)
def test_what_is_no_answer_is_an_error(body: bytes, status: int) -> None:
    """Also with a status of 200; without the provider's secrets."""
    with pytest.raises(GatewayError) as caught:
        _media.answer(ADAPTER, asked("images"), body)
    assert caught.value.http_status == status
    assert "sk-secret-key" not in caught.value.message


@pytest.mark.parametrize("name", STREAMS)
@given(cuts=st.lists(st.integers(0, 10**5), max_size=8))
def test_a_stream_is_relayed_byte_for_byte(name: str, cuts: list[int]) -> None:
    """In whole events, with the same usage, however it is cut."""
    request, body, usage = STREAMS[name]
    stream = _media.MediaStream("shop", request)
    out, at = b"", 0
    for cut in (*sorted(cut % (len(body) + 1) for cut in cuts), len(body)):
        piece = stream.feed(body[at:cut])
        assert not piece or piece.endswith(b"\n\n")
        out += piece
        at = cut
    assert out + stream.finish() == body
    assert (stream.usage, stream.complete, stream.ending, stream.failed) == (usage, True, True, False)
    assert stream.events == body.count(b"data:")


def test_a_last_event_without_its_blank_line_gets_one() -> None:
    """Clients would lose it."""
    stream = _media.MediaStream("shop", asked("speech"))
    last = event("speech.audio.done", usage=SPOKEN)
    assert stream.feed(last[:-1]) == b""
    assert stream.finish() == last
    assert stream.usage == Usage(5, 60, units=Units(media_out=60))


def test_a_stream_that_breaks_off_is_told_so() -> None:
    """Half an event is not passed on; the failure is an event of its own."""
    stream = _media.MediaStream("shop", asked("images"))
    assert stream.feed(b'data: {"type": "image_gen') == b""
    assert stream.finish() == b""
    assert (stream.complete, stream.usage, stream.tokens("m")) == (False, None, 0)
    assert b"upstream_cut" in stream.failure(UpstreamError("gone", code="upstream_cut"))


def test_of_several_images_one_is_no_usage() -> None:
    """Until the provider has ended its stream, or made all of them."""
    stream = _media.MediaStream("shop", asked("images", n=3))
    stream.feed(event("image_generation.completed", b64_json=PNG, usage=IMAGE_USAGE))
    assert (stream.usage, stream.ending, stream.complete) == (None, False, True)
    stream.finish()
    assert stream.usage == Usage(50, 272, units=Units(images=1, media_in=40, media_out=272))


def test_an_event_without_an_end_is_given_up_on() -> None:
    """Memory is bounded, with room for the largest image."""
    stream = _media.MediaStream("shop", asked("images"))
    assert stream.feed(b"data: " + bytes(MAX_MEDIA_EVENT - 6)) == b""
    with pytest.raises(UpstreamError):
        stream.feed(b"x")


@pytest.mark.parametrize(
    ("kind", "fine"),
    [
        (b"audio/mpeg", True), (b"audio/wav", True), (b"text/plain; charset=utf-8", True), (b"text/vtt", True),
        (b"application/octet-stream", True), (b"application/x-subrip", True), (b"text/html", False), (b"", False),
        (b"image/png", False),
    ],
)  # fmt: skip
def test_only_sound_and_transcripts_pass_unread(kind: bytes, fine: bool) -> None:
    """A login page of a proxy on the way is none."""
    assert _media.passes(kind) is fine


def test_a_broken_stream_is_no_place_for_secrets() -> None:
    """The name of the provider, and no more."""
    told: Any = _media.MediaStream("shop", asked("speech")).failure(UpstreamError("The provider 'shop' broke off."))
    assert b"shop" in told


@pytest.mark.parametrize("place", ["images[1].image_url", "mask.image_url"])
def test_an_address_of_a_picture_is_refused_where_the_model_server_would_load_it(place: str) -> None:
    """A tenant's URL would be fetched from within the operator's network; a picture in the request itself would not."""
    inside, outside = {"image_url": "data:image/png;base64,AAAA"}, {"image_url": "http://169.254.169.254/latest"}
    body = {"model": "m", "prompt": "p", "images": [inside, inside], "mask": inside}
    route = Table().match({"type": "http", "path": "/v1/images/edits"})
    adapter = adapter_of("vllm", "vllm", "http://127.0.0.1:9/v1", None)
    assert adapter.request(parse(route, json.dumps(body).encode()), "m")
    body |= {"mask": outside} if place.startswith("mask") else {"images": [inside, outside]}
    with pytest.raises(Unsupported) as caught:
        adapter.request(parse(route, json.dumps(body).encode()), "m")
    assert caught.value.param == place
