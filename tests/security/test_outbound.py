"""Where the gateway is made to go: the attacker wants its keys, its place in the network, or another's answer."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import pytest

from asgi_llm_gateway.validation import REFUSED_FIELDS

from ..fuzz import ended
from ..upstream import (
    DONE,
    STREAM_HEAD,
    always,
    chunk,
    head,
    once,
    streaming,
    until,
    upstream,
    usage_event,
    whole,
    word,
)
from .house import chat, house, up

KEY_UP = "sk-the-providers-own-key-123456"


@pytest.mark.parametrize("field", sorted(REFUSED_FIELDS))
async def test_a25_no_field_leads_a_call_or_its_key_elsewhere(field: str) -> None:
    """Gain: the provider's key, sent to the attacker (CVE-2024-6587). The field is refused by name, whatever it holds."""
    async with upstream(always(whole())) as evil:
        made = await house()
        for value in (evil.url(), {"x": evil.url()}, None, ""):
            answer = await made.ask(chat(**{field: value}))
            assert (answer.status, answer.error["param"]) == (400, field)
        assert evil.connections == 0


async def test_a25_neither_query_nor_header_leads_elsewhere() -> None:
    """Gain: the same by another door. Neither reaches the provider."""
    async with upstream(always(whole())) as server, upstream(always(whole())) as evil:
        made = await house([up(server.url(""))])
        more = [(name.encode(), evil.url().encode()) for name in ("x-portkey-custom-host", "x-api-base", "openai-base-url",
                                                                   "x-forwarded-host", "x-upstream")]  # fmt: skip
        more += [(b"openai-organization", b"org-evil"), (b"cookie", b"a=b"), (b"helicone-target-url", b"http://evil")]
        query = f"api_base={evil.url()}&base_url={evil.url()}".encode()
        assert (await made.ask(chat(model="up/m", max_tokens=9), query_string=query, more=more)).status == 200
        asked = server.requests[0]
        assert asked.path == "/v1/chat/completions"
        assert set(asked.headers) <= {"host", "authorization", "content-type", "content-length", "accept", "accept-encoding",
                                      "user-agent", "x-llm-gateway-hop"}  # fmt: skip
        assert asked.headers["authorization"] == f"Bearer {KEY_UP}"
        assert evil.connections == 0
        await made.proxy.aclose()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a26_a_redirect_is_not_followed(status: int) -> None:
    """Gain: the key and the prompt, carried to where a provider (or who stands before it) points. It is an upstream error."""
    async with upstream(always(whole())) as evil:
        moved = head(status, ("Location", evil.url()), ("Content-Length", "0"))
        async with upstream(always(moved)) as server:
            made = await house([up(server.url(""))])
            answer = await made.ask(chat(model="up/m", max_tokens=9))
            assert answer.status == 502
            assert "location" not in answer.headers
            assert evil.connections == 0
            await made.proxy.aclose()


PLACES = ["http://{host}/x.png", "http://0.0.0.0:{port}/", "http://[::ffff:127.0.0.1]:{port}/", "http://2130706433:{port}/",
          "http://0x7f.1:{port}/", "http://localhost:{port}/", "file:///etc/passwd", "unix:///var/run/docker.sock",
          "http://169.254.169.254/latest/meta-data/", "gopher://{host}/"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
async def test_a26_the_gateway_loads_no_url_of_a_clients(place: str) -> None:
    """Gain: a look into the gateway's network (one-api#2388). URLs go on as text, or are refused; nobody connects to them."""
    async with upstream(always(whole())) as server, upstream(always(whole())) as inside:
        made = await house([up(server.url(""))])
        url = place.format(host=f"127.0.0.1:{inside.port}", port=inside.port)
        parts: list[Any] = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": url}}]
        for model in ("up/m", "echo"):
            answer = await made.ask(chat(model=model, max_tokens=9, messages=[{"role": "user", "content": parts}]))
            assert answer.status in (200, 400)
        schema = {"type": "object", "properties": {"a": {"$ref": url}}, "$id": url}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
        assert (await made.ask(chat(response_format=form, max_tokens=9))).status == 400
        assert inside.connections == 0
        await made.proxy.aclose()


NAMES = ["up/../../admin", "up/m/../../../x", "up/m?api-version=1", "up/m#x", "up/%2e%2e/x", "up/m\\..\\x",
         "up//evil.example/x", "up/m@evil.example", "up/http://evil.example/"]  # fmt: skip


@pytest.mark.parametrize("model", NAMES)
async def test_a27_a_models_name_is_no_path(model: str) -> None:
    """Gain: another endpoint of the provider (or another host) by way of the name. It stands in the body and nowhere else."""
    async with upstream(always(whole())) as server:
        made = await house([up(server.url(""))])
        await made.tenant("free", budget=None)
        answer = await made.ask(chat(model=model, max_tokens=9), tenant="free")
        assert answer.status == 200
        assert server.requests[0].path == "/v1/chat/completions"
        assert server.requests[0].headers["host"] == f"127.0.0.1:{server.port}"
        assert server.requests[0].json()["model"] == model.removeprefix("up/")
        await made.proxy.aclose()


@pytest.mark.parametrize("model", ["up/m\r\nx-evil: 1", "up/m\x00", "up/m\u202e", "up/m\n", "\x1b[31m"])
async def test_a27_a_name_that_cannot_be_printed_is_refused(model: str) -> None:
    """A36, too. Gain: a line of a header or of the log."""
    made = await house()
    answer = await made.ask(chat(model=model))
    assert (answer.status, answer.error["param"]) == (400, "model")


async def test_a28_no_header_of_a_clients_frames_the_call_upstream() -> None:
    """Gain: a second request, smuggled upstream. Hop-by-hop headers and lengths stop here."""
    async with upstream(always(whole())) as server:
        made = await house([up(server.url(""))])
        more = [(b"connection", b"authorization, close"), (b"te", b"trailers"), (b"upgrade", b"h2c"), (b"keep-alive", b"x"),
                (b"proxy-authorization", b"Basic x"), (b"trailer", b"x"), (b"expect", b"100-continue")]  # fmt: skip
        assert (await made.ask(chat(model="up/m", max_tokens=9), more=more)).status == 200
        asked = server.requests[0]
        assert not {"te", "upgrade", "keep-alive", "proxy-authorization", "trailer", "expect"} & set(asked.headers)
        assert asked.headers["authorization"] == f"Bearer {KEY_UP}"
        assert int(asked.headers["content-length"]) == len(asked.body)
        for name, value in ((b"content-length", b"5"), (b"transfer-encoding", b"chunked")):
            twice = [(b"content-length", b"9"), (name, value)]
            assert (await made.ask(chat(), more=twice)).error["code"] == "malformed_headers"
        await made.proxy.aclose()


async def test_a28_a_providers_headers_set_nothing_at_the_client() -> None:
    """Gain: a cookie, an origin or a policy for the gateway's own host. Only those on a list come back."""
    said = [("Set-Cookie", "a=b"), ("Server", "evil"), ("Access-Control-Allow-Origin", "*"), ("X-Powered-By", "x"),
            ("Strict-Transport-Security", "max-age=0"), ("Content-Security-Policy", "default-src *"), ("Location", "http://x"),
            ("WWW-Authenticate", "Basic"), ("Alt-Svc", "h3"), ("Clear-Site-Data", '"*"'), ("X-LLM-Cost-USD", "0"),
            ("Connection", "x-request-id"), ("Refresh", "0"), ("Link", "<x>")]  # fmt: skip
    for answer in (whole(headers=said), whole({"error": {"message": "no"}}, 400, headers=said)):
        async with upstream(always(answer)) as server:
            made = await house([up(server.url(""))])
            got = await made.ask(chat(model="up/m", max_tokens=9))
            for name, _ in said:
                assert name.lower() not in got.headers or got.headers[name.lower()] not in dict(said).values(), name
            assert got.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
            await made.proxy.aclose()


BOMB = gzip.compress(b"\0" * 2**24)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x-gzip"])
async def test_a30_a_packed_body_is_not_unpacked(coding: str) -> None:
    """Gain: gigabytes of memory for kilobytes sent. It is refused by its header, unread; packed without one, it is no JSON."""
    made = await house()
    body = zlib.compress(b"\0" * 2**20) if coding == "deflate" else BOMB
    answer = await made.ask(body, more=[(b"content-encoding", coding.encode())])
    assert (answer.status, answer.error["code"]) == (415, "unsupported_content_encoding")
    for claim in ([], [(b"content-encoding", b"identity")]):
        answer = await made.ask(body, more=claim)
        assert (answer.status, answer.error["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "gzip, gzip"])
async def test_a30_a_providers_bomb_is_not_unpacked(coding: str) -> None:
    """Gain (of a provider): the same from the other side. Nothing packed is asked for, and what comes so is no answer."""
    for kind, body in (("application/json", BOMB), ("text/event-stream", BOMB)):
        async with upstream(always(whole(body, kind=kind, headers=[("Content-Encoding", coding)]))) as server:
            made = await house([up(server.url(""))])
            answer = await made.ask(chat(model="up/m", max_tokens=9, stream=kind != "application/json"))
            assert server.requests[0].headers.get("accept-encoding", "identity") == "identity"
            assert len(answer.body) < 2**20
            assert answer.status >= 500 or b"error" in answer.body
            assert await made.held() == 0
            await made.proxy.aclose()


async def test_a32_a_line_without_end_is_given_up_on() -> None:
    """Gain (of a provider): all of the memory. Some megabytes are kept, then the stream ends in one error."""

    async def endless(peer: Any) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD, chunk(word("hi")))
        while True:
            await peer.send(chunk(b"x" * 2**16))

    async with upstream(endless) as server:
        made = await house([up(server.url(""))])
        answer = await made.ask(chat(model="up/m", stream=True, max_tokens=9))
        assert len(answer.body) < 2**20
        assert b'"error"' in answer.body
        assert b"[DONE]" not in answer.body
        await until(lambda: server.open == 0)
        await made.proxy.aclose()


async def test_a32_a_flood_of_empty_events_takes_no_more_than_its_length() -> None:
    """Gain (of a provider): the loop, kept busy for every other client. Another call is answered meanwhile."""
    flood = b": \n\n" * 50_000
    with ended(60):
        async with upstream(streaming(flood, word("hi"), usage_event(), DONE)) as server:
            made = await house([up(server.url(""))])
            long = asyncio.ensure_future(made.ask(chat(model="up/m", stream=True, max_tokens=9)))
            assert (await made.ask(chat(max_tokens=3))).status == 200
            assert b"[DONE]" in (await long).body
            await made.proxy.aclose()


async def test_a38_a_providers_wish_to_wait_is_bounded() -> None:
    """Gain (of a provider): callers that wait for ever. An absurd ``retry-after`` is told to the client, not slept through."""
    for wish in ("0", "-1", "1e9", "1000000000", "Wed, 21 Oct 2099 07:28:00 GMT", "soon", "9" * 400, "nan"):
        busy = whole({"error": {"message": "busy"}}, 429, headers=[("Retry-After", wish)])
        async with upstream(once(busy)) as server:
            made = await house([up(server.url(""))])
            with ended(20):
                answer = await made.ask(chat(model="up/m", max_tokens=9))
            assert answer.status == 429
            assert await made.spent() == 0
            await made.proxy.aclose()
