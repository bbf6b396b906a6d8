"""Requests for images, audio, speech and moderation: which fields are read, and what is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.errors import BadRequest
from asgi_llm_gateway.multipart import read
from asgi_llm_gateway.wire import DEFAULT_MODERATION, FORM_ONLY, MEDIA, METERED, LLMRequest, Route, Table, parse

from .conversation import ask, scope_of
from .forms import FILE, B, form, part

FORM_TYPE = b"multipart/form-data; boundary=xYz"
PATHS = {dialect: path for path, dialect in METERED.items()}
GOOD: dict[str, dict[str, Any]] = {
    "moderations": {"model": "m", "input": "text"},
    "speech": {"model": "m", "input": "text", "voice": "alloy"},
    "images": {"model": "m", "prompt": "a cat"},
    "image_edits": {"model": "m", "prompt": "a cat", "images": [{"image_url": "https://x/y.png"}]},
}


def route(dialect: Any) -> Route:
    """The dialect's row in the table."""
    return Route("metered", dialect, PATHS[dialect])


def asked(dialect: str, **fields: Any) -> LLMRequest:
    """A JSON request."""
    return parse(route(dialect), json.dumps({**GOOD[dialect], **fields}).encode(), b"application/json")


def uploaded(*parts: bytes, dialect: str = "transcriptions") -> LLMRequest:
    """A form, with a file."""
    return parse(route(dialect), form(*parts), FORM_TYPE)


IMAGE = part("image[]", b"\x89PNG", filename="a.png")


@pytest.mark.parametrize("dialect", sorted(MEDIA, key=str))
def test_each_path_is_metered_wherever_it_is_mounted(dialect: Any) -> None:
    """And another spelling of it is no path."""
    table, path = Table(), PATHS[dialect]
    for found in (table.match(scope_of(path)), table.match(scope_of("/llm" + path))):
        assert (found.kind, found.dialect) == ("metered", dialect)
    assert table.match(scope_of(path.replace("/v1/", "/V1/"))).kind == "misspelt"
    assert table.match(scope_of(path + "/more")).kind == "authenticated"


@pytest.mark.parametrize("dialect", GOOD)
def test_a_json_request_is_read_like_any_other(dialect: str) -> None:
    """Its model, its stream, and its body byte for byte."""
    request = asked(dialect)
    assert (request.model, request.stream, request.max_tokens, request.tenant) == ("m", False, None, None)
    assert request.body is request.raw


def test_a_form_is_read_for_what_decides() -> None:
    """The fields have the types that JSON would give them; the file and all other fields stay where they are."""
    request = uploaded(
        part("model", b"gpt-image-1"), part("n", b"3"), part("stream", b"true"), part("size", b"1024x1024"),
        part("quality", b"high"), part("tenant", b"acme"), part("prompt", b"a cat" * 500), IMAGE, dialect="image_edits",
    )  # fmt: skip
    assert (request.model, request.choices, request.stream, request.tenant) == ("gpt-image-1", 3, True, "acme")
    assert request.data == {"model": "gpt-image-1", "n": 3, "stream": True, "size": "1024x1024", "quality": "high",
                            "tenant": "acme"}  # fmt: skip
    assert request.body is request.raw


def test_the_gateways_own_field_is_taken_out_of_a_form() -> None:
    """And nothing else of it changes."""
    request = uploaded(part("tenant", b"acme"), part("model", b"whisper-1"), FILE)
    changed = request.with_fields(tenant=None)
    assert changed.body == form(part("model", b"whisper-1"), FILE)
    assert changed.tenant == "acme"


@given(st.text("abc-/.123", min_size=1, max_size=30), st.integers(1, 128))
def test_a_form_says_what_it_was_changed_to(model: str, count: int) -> None:
    """Another model, another number: read again, it is what was written."""
    request = uploaded(part("model", b"m"), IMAGE, part("prompt", b"p"), dialect="image_edits")
    changed = request.with_fields(model=model, n=count).with_fields(stream=True)
    again = parse(request.route, changed.body, FORM_TYPE)
    assert (again.model, again.choices, again.stream) == (model, count, True)
    kept = [
        changed.body[one.start : one.end] for one in read(changed.body, B).parts if one.name in ("image[]", "prompt")
    ]
    assert kept == [b"\x89PNG", b"p"]


def test_a_moderation_without_a_model_names_the_default() -> None:
    """So that what was allowed is what answers; a null is written over."""
    request = parse(route("moderations"), b'{"input": "x"}')
    assert request.model == DEFAULT_MODERATION
    assert json.loads(request.body) == {"input": "x", "model": DEFAULT_MODERATION}
    null = parse(route("moderations"), b'{"model": null, "input": "x"}')
    assert json.loads(null.body) == {"input": "x", "model": DEFAULT_MODERATION}
    assert null.body.count(b"model") == 1
    assert json.loads(request.with_fields(model="other").body) == {"input": "x", "model": "other"}


def test_speech_streams_by_its_own_word() -> None:
    """``stream_format``: only as events it is a stream."""
    assert asked("speech", stream_format="sse").stream
    assert not asked("speech", stream_format="audio").stream


@pytest.mark.parametrize(
    ("dialect", "fields", "param"),
    [
        ("images", {"model": None}, "model"),
        ("images", {"n": 0}, "n"),
        ("images", {"n": 129}, "n"),
        ("images", {"n": "2"}, "n"),
        ("images", {"size": 1024}, "size"),
        ("images", {"quality": ["hd"]}, "quality"),
        ("images", {"prompt": {"text": "x"}}, "prompt"),
        ("images", {"partial_images": 4}, "partial_images"),
        ("images", {"partial_images": -1}, "partial_images"),
        ("images", {"partial_images": True}, "partial_images"),
        ("images", {"stream": "true"}, "stream"),
        ("image_edits", {"api_base": "http://evil"}, "api_base"),
        ("speech", {"input": None}, "input"),
        ("speech", {"input": ""}, "input"),
        ("speech", {"input": ["a"]}, "input"),
        ("speech", {"speed": 0.1}, "speed"),
        ("speech", {"speed": "fast"}, "speed"),
        ("speech", {"speed": True}, "speed"),
        ("speech", {"stream_format": 1}, "stream_format"),
        ("moderations", {"input": None}, "input"),
        ("moderations", {"input": 3}, "input"),
        ("moderations", {"model": 3}, "model"),
    ],
)
def test_a_wrong_field_is_named(dialect: str, fields: dict[str, Any], param: str) -> None:
    """400, before anybody is asked."""
    with pytest.raises(BadRequest) as caught:
        asked(dialect, **fields)
    assert (caught.value.http_status, caught.value.param) == (400, param)
    assert param in caught.value.message


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((FILE,), "model"),
        ((part("model", b""), FILE), "model"),
        ((part("model", b"m" * 257), FILE), "model"),
        ((part("model", b"a\nb"), FILE), "model"),
        ((part("model", b"m"),), "file"),
        ((part("model", b"m"), part("file", b"no file")), "file"),
        ((part("model", b"m"), part("image", b"x", filename="a")), "file"),
        ((part("model", b"m"), FILE, part("stream", b"1")), "stream"),
        ((part("model", b"m"), FILE, part("n", b"two")), "n"),
        ((part("model", b"m"), FILE, part("n", b"\xef\xbc\x92")), "n"),
        ((part("model", b"m"), FILE, part("n", b"999")), "n"),
        ((part("model", b"m"), FILE, part("tenant", b"a"), part("tenant", b"b")), "tenant"),
        ((part("model", b"m"), FILE, part("base_url", b"http://evil")), "base_url"),
        ((part("model", b"m"), FILE, part("_charset_", b"utf-7")), "_charset_"),
    ],
)
def test_a_wrong_part_is_named(parts: Any, param: str) -> None:
    """The same for forms."""
    with pytest.raises(BadRequest) as caught:
        uploaded(*parts)
    assert (caught.value.http_status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("dialect", "body", "name"),
    [
        ("images", b'{"model":"m","prompt":"p","quality":"low","quality":"high"}', "quality"),
        ("images", b'{"model":"m","prompt":"p","n":1,"\\u006e":9}', "n"),
        ("speech", b'{"model":"m","input":"a","input":"a long text"}', "input"),
        ("image_edits", b'{"model":"m","images":[],"images":[{}]}', "images"),
    ],
)
def test_what_is_charged_for_is_said_once(dialect: str, body: bytes, name: str) -> None:
    """Said twice, the provider and the gateway could each read another one."""
    with pytest.raises(BadRequest) as caught:
        parse(route(dialect), body)
    assert (caught.value.error_code, caught.value.param) == ("duplicate_field", name)


@pytest.mark.parametrize(
    ("dialect", "kind", "fine"),
    [
        ("transcriptions", FORM_TYPE, True),
        ("transcriptions", b"application/json", False),
        ("transcriptions", None, False),
        ("image_edits", FORM_TYPE, True),
        ("image_edits", b"application/json; charset=utf-8", True),
        ("image_edits", None, True),
        ("image_edits", b"text/plain", False),
        ("images", FORM_TYPE, False),
        ("chat", FORM_TYPE, False),
    ],
)
async def test_a_form_is_taken_only_where_a_file_can_come(dialect: str, kind: bytes | None, fine: bool) -> None:
    """Anything else is 415 and says what to send, before the body is read."""
    from asgi_llm_gateway import TracingMiddleware

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": (await receive())["body"]})

    class Reading(TracingMiddleware):
        async def handle(self, exchange: Any, scope: Any, receive: Any, send: Any) -> None:
            await super().handle(exchange, scope, await exchange.read(receive, scope), send)

    file = IMAGE if dialect == "image_edits" else FILE
    body: Any = form(part("model", b"m"), file) if kind == FORM_TYPE else GOOD.get(dialect, {})
    headers = [] if kind is None else [(b"content-type", kind)]
    answer = await ask(Reading(app), body, PATHS[dialect], headers=headers)  # type: ignore[index]
    assert answer.status == (200 if fine else 415)
    if not fine:
        assert answer.error["param"] == "content-type"
        assert ("multipart/form-data" if dialect in FORM_ONLY else "application/json") in answer.error["message"]
    else:
        assert answer.body == (body if isinstance(body, bytes) else json.dumps(body).encode())
