"""The body of an exchange: read once, refused before or while it is read, amended."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway._asgi import Message
from asgi_llm_gateway.errors import BadRequest, TooLarge
from asgi_llm_gateway.exchange import ClientGone
from asgi_llm_gateway.wire import Route

from .conversation import CHAT, JSON, scope_of
from .exchange_parts import RAW, Line, exchange_for, read

# -- reading -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(RAW)), max_size=10), st.text(max_size=20))
def test_the_body_is_replayed_whole_under_any_chunking(cuts: list[int], text: str) -> None:
    """However it came, whoever reads further in gets it once, whole and unchanged; then the truth."""
    body = json.dumps({**CHAT, "user": text}).encode()
    at = sorted(min(cut, len(body)) for cut in cuts)
    line = Line(body[start:end] for start, end in zip([0, *at], [*at, len(body)], strict=True))

    async def run() -> None:
        exchange = exchange_for()
        receive = await exchange.read(line.receive, scope_of(headers=[JSON]))
        assert exchange.request is not None
        assert exchange.request.raw == body
        assert await receive() == {"type": "http.request", "body": body, "more_body": False}
        assert (await receive())["type"] == "http.disconnect"

    asyncio.run(run())


async def test_the_body_is_read_once_however_many_ask() -> None:
    """The second asker gets its own ``receive`` back, and the client is not asked again."""
    exchange = exchange_for()
    line = Line([RAW[:10], RAW[10:]])
    first = await exchange.read(line.receive, scope_of(headers=[JSON]))
    request = exchange.request
    assert await exchange.read(first, scope_of(headers=[JSON])) == first
    assert exchange.request is request
    assert line.asked == 2


async def test_a_path_whose_body_is_not_read_keeps_its_receive() -> None:
    """The user's own paths and authenticated ones stream through."""
    exchange = exchange_for(Route("metered", None, "/ask"))
    line = Line([b"not json"])
    assert await exchange.read(line.receive, scope_of()) == line.receive
    assert line.asked == 0
    assert exchange.request is None


async def test_the_truth_is_the_servers_own_receive() -> None:
    """Who waits for the hang-up asks the server, and gets no body replayed later."""
    exchange = exchange_for()
    line = Line([RAW])
    receive = await exchange.read(line.receive, scope_of(headers=[JSON]))
    assert exchange.truth(receive) == line.receive
    assert (await receive())["type"] == "http.disconnect"

    async def foreign() -> Message:
        return {"type": "http.disconnect"}

    assert exchange.truth(foreign) is foreign  # one that stands before ours is asked itself


@pytest.mark.parametrize("gone_after", [0, 1])
async def test_a_client_that_leaves_while_its_body_is_read_is_gone(gone_after: int) -> None:
    """There is nobody to answer."""
    exchange = exchange_for()
    with pytest.raises(ClientGone):
        await exchange.read(Line([RAW[:5], RAW[5:]], gone_after=gone_after).receive, scope_of(headers=[JSON]))
    assert exchange.request is None


# -- what is refused before or while it is read ------------------------------------------------------------------------


@pytest.mark.parametrize("length", [b"100001", b"9999999999999999999"])
async def test_a_body_announced_as_too_long_is_refused_unread(length: bytes) -> None:
    """413 by the header alone."""
    exchange = exchange_for(max_body=100_000)
    line = Line([RAW])
    with pytest.raises(TooLarge, match="100000 bytes"):
        await exchange.read(line.receive, scope_of(headers=[JSON, (b"content-length", length)]))
    assert line.asked == 0


@pytest.mark.parametrize("headers", [[JSON], [JSON, (b"content-length", b"10")], [JSON, (b"Content-Length", b"junk")]])
async def test_a_body_that_is_too_long_is_refused_before_it_is_read_whole(headers: Any) -> None:
    """Also where content-length lies, is senseless or missing: no more is read than the limit and one piece."""
    exchange = exchange_for(max_body=5000)
    line = Line([b"x" * 1000] * 1000)
    with pytest.raises(TooLarge):
        await exchange.read(line.receive, scope_of(headers=headers))
    assert line.asked == 6


@pytest.mark.parametrize("cut", [0, 7])
async def test_a_body_of_just_the_limit_is_read(cut: int) -> None:
    """The limit is inclusive; one byte more is too long."""
    exchange, _ = await read(RAW, cut=cut, max_body=len(RAW))
    assert exchange.request is not None
    with pytest.raises(TooLarge):
        await read(RAW, cut=cut, max_body=len(RAW) - 1)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ((b"content-type", b"text/plain"), "unsupported_media_type"),
        ((b"content-type", b"multipart/form-data; boundary=x"), "unsupported_media_type"),
        ((b"Content-Type", b"application/xml"), "unsupported_media_type"),
        ((b"content-type", b""), "unsupported_media_type"),
        ((b"content-encoding", b"gzip"), "unsupported_content_encoding"),
        ((b"Content-Encoding", b"br, gzip"), "unsupported_content_encoding"),
    ],
)
async def test_a_type_or_encoding_that_cannot_be_read_is_refused_unread(header: tuple[bytes, bytes], code: str) -> None:
    """415, saying what to send."""
    line = Line([RAW])
    with pytest.raises(BadRequest) as caught:
        await exchange_for().read(line.receive, scope_of(headers=[header]))
    assert (caught.value.http_status, caught.value.error_code) == (415, code)
    assert line.asked == 0


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"application/json; charset=utf-8")],
        [(b"CONTENT-TYPE", b"Application/JSON")],
        [(b"content-type", b"application/vnd.api+json")],
        [JSON, (b"content-encoding", b"identity")],
    ],
)
async def test_json_by_any_of_its_names_is_read(headers: Any) -> None:
    """A missing type is taken for JSON, as the SDKs' own tools send it."""
    exchange, _ = await read(headers=headers)
    assert exchange.request is not None


# -- amending ----------------------------------------------------------------------------------------------------------


async def test_an_amended_body_is_what_those_further_in_read() -> None:
    """``amend`` after ``read`` still counts: the body is written when it is asked for."""
    exchange, receive = await read()
    exchange.amend(max_tokens=5)
    exchange.amend(max_tokens=6, model="other")
    message = await receive()
    assert json.loads(message["body"]) == {**CHAT, "max_tokens": 6, "model": "other"}
    assert exchange.amended


async def test_an_unamended_body_stays_byte_for_byte() -> None:
    """Nothing is written anew without need."""
    raw = b'{"model":"m" ,  "messages":[{"role":"user","content":"\\u00e9"}]} '
    exchange, receive = await read(raw)
    assert (await receive())["body"] == raw
    assert not exchange.amended


async def test_the_gateways_own_field_is_always_taken_out() -> None:
    """``tenant`` never reaches the one that answers, ``null`` neither."""
    for tenant in ("a", None):
        exchange, receive = await read(json.dumps({**CHAT, "tenant": tenant}).encode())
        assert json.loads((await receive())["body"]) == CHAT
        assert exchange.request is not None
        assert exchange.request.tenant == tenant


async def test_a_sealed_scope_has_the_amended_bodys_length() -> None:
    """One content-length, no chunked; the scope that was given is left as it was."""
    exchange, _ = await read()
    exchange.amend(max_tokens=123456)
    scope = scope_of(
        headers=[JSON, (b"Content-Length", b"3"), (b"transfer-encoding", b"chunked"), (b"x", b"1"), (b"x", b"2")]
    )
    before = list(scope["headers"])
    sealed = exchange.sealed(scope)
    assert sealed["headers"] == [JSON, (b"x", b"1"), (b"x", b"2"), (b"content-length", b"%d" % len(exchange.body))]
    assert scope["headers"] == before
    assert sealed is not scope
