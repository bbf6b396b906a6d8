"""ProxyApp before a provider that does what providers do, and what they should not."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
import pytest

from asgi_llm_gateway import settings
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import Adapter
from asgi_llm_gateway.adapters.compatible import OPENAI, VENDORS
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.exchange import KEY, Exchange
from asgi_llm_gateway.proxy.app import HOP, ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.proxy.transfer import BUFFER_LIMIT, Timeouts
from asgi_llm_gateway.records import ApiKey, Identity, Tenant, Usage
from asgi_llm_gateway.wire import Table

from ..conversation import CHAT, JSON, Answer, ask, call, get, scope_of
from ..upstream import (
    ANSWER,
    DONE,
    HOST,
    LAST_CHUNK,
    STREAM_HEAD,
    USAGE,
    Peer,
    Script,
    Upstream,
    always,
    chunk,
    event,
    head,
    once,
    refused_port,
    streaming,
    then_stall,
    until,
    upstream,
    usage_event,
    whole,
    word,
)

SECRET = "sk-provider-0123456789abcdef"
ASKED: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
STREAMED = {**ASKED, "stream": True}
QUICK = Timeouts(connect=0.3, write=0.3, first_byte=0.3, idle=0.3, total=20)
GENEROUS = Timeouts(connect=20, write=20, first_byte=20, idle=20, total=40)


def provider(server: Upstream, name: str = "openai", **more: Any) -> OpenAIAdapter:
    """An adapter that asks the server."""
    return OpenAIAdapter(name, server.url(), SECRET, **{"vendor": VENDORS.get(name, OPENAI), **more})


@asynccontextmanager
async def gateway(*scripts: Script, name: str = "openai", **more: Any) -> AsyncIterator[tuple[ProxyApp, Upstream]]:
    """A ProxyApp before one provider."""
    async with upstream(*scripts) as server:
        app = ProxyApp(router=Router([provider(server, name)]), **{"timeouts": GENEROUS, "max_retries": 0, **more})
        yield app, server
        await app.aclose()


def without_secrets(answer: Answer, server: Upstream) -> None:
    """Nothing that the client gets names the key or the place."""
    shown = answer.body.decode("utf-8", "replace") + repr(answer.headers)
    for secret in (SECRET, HOST, str(server.port), "localhost", "Traceback"):
        assert secret not in shown


async def used(app: ProxyApp, body: dict[str, Any]) -> tuple[Answer, Exchange]:
    """An answer, and the exchange that saw it."""
    scope = scope_of(headers=(JSON,))
    exchange = Exchange(app, Table().match(scope), scope)
    return await ask(app, body, **kept(exchange)), exchange


def kept(exchange: Exchange) -> dict[str, Any]:
    """The scope's part that carries an exchange."""
    return {KEY: exchange}


# -- what goes up ------------------------------------------------------------------------------------------------------


async def test_a_body_goes_up_byte_for_byte() -> None:
    """Unknown fields, spaces and the order of keys are the client's own."""
    raw = b'{ "model": "gpt-4o-mini",\n "messages":[{"role":"user","content":"h\\u00e9"}], "new_field": {"a": 1.50, "b":null} }'
    async with gateway(always(whole())) as (app, server):
        answer = await ask(app, raw)
        assert (answer.status, answer.json()) == (200, ANSWER)
        assert server.requests[0].body == raw
        assert (server.requests[0].method, server.requests[0].path) == ("POST", "/v1/chat/completions")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "gpt-4o-mini", "prompt": "once"}),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "once"}),
    ],
)
async def test_the_other_paths_go_where_they_belong(path: str, body: dict[str, Any]) -> None:
    """Completions and embeddings."""
    async with gateway(always(whole())) as (app, server):
        assert (await ask(app, body, path)).status == 200
        assert server.requests[0].path == path


async def test_the_clients_headers_stay_here() -> None:
    """The provider gets the gateway's key and nothing of what the client sent besides the body."""
    sent = [
        JSON,
        (b"authorization", b"Bearer client-key"),
        (b"cookie", b"session=1"),
        (b"x-foo", b"bar"),
        (b"x-api-key", b"client-key"),
        (b"openai-organization", b"org-1"),
        (b"x-forwarded-for", b"10.1.2.3"),
        (b"host", b"gateway.example.com"),
        (b"accept-encoding", b"gzip"),
        (b"user-agent", b"curl/8"),
    ]
    async with gateway(always(whole())) as (app, server):
        await ask(app, ASKED, headers=sent)
        up = server.requests[0].headers
    assert up["authorization"] == f"Bearer {SECRET}"
    assert up["host"] == f"{HOST}:{server.port}"
    assert up["accept-encoding"] == "identity"
    assert up["user-agent"].startswith("asgi-llm-gateway/")
    assert up["content-type"] == "application/json"
    assert set(up) == {
        "host", "content-type", "content-length", "accept", "accept-encoding", "user-agent", "authorization",
        "x-llm-gateway-hop",
    }  # fmt: skip


async def test_the_providers_headers_come_back_by_list() -> None:
    """No cookie, no server, no rate limit of the gateway's own account."""
    extra = [
        ("Set-Cookie", "a=b"), ("Server", "cloudflare"), ("x-ratelimit-remaining-requests", "7"), ("x-request-id", "up"),
        ("openai-organization", "org-secret"), ("openai-processing-ms", "12"), ("openai-version", "2020-10-01"),
        ("Access-Control-Allow-Origin", "*"), ("Connection", "keep-alive"), ("CF-Ray", "1"),
    ]  # fmt: skip
    async with gateway(always(whole(headers=extra))) as (app, _):
        answer = await ask(app, ASKED)
    assert answer.headers == {
        "content-type": "application/json",
        "content-length": str(len(answer.body)),
        "openai-processing-ms": "12",
        "openai-version": "2020-10-01",
        "x-llm-provider": "openai",
    }


async def test_the_tenant_field_stays_here() -> None:
    """It is the gateway's own."""
    async with gateway(always(whole())) as (app, server):
        assert (await ask(app, {**ASKED, "tenant": "default", "user": "u-1"})).status == 200
        assert server.requests[0].json() == {**ASKED, "user": "u-1"}


@pytest.mark.parametrize("field", ["api_base", "base_url", "api_key", "extra_headers"])
async def test_a_field_that_routes_money_or_trust_is_refused(field: str) -> None:
    """Only the operator says where calls go; nothing goes out."""
    async with gateway(always(whole())) as (app, server):
        answer = await ask(app, {**ASKED, field: "http://evil.example"})
        assert (answer.status, answer.error["param"]) == (400, field)
        assert server.requests == []


async def test_a_prefix_is_taken_off_the_model() -> None:
    """``openai/gpt-x`` is ``gpt-x`` there; what OpenRouter calls ``vendor/model`` stays."""
    async with upstream(always(whole())) as server:
        app = ProxyApp(router=Router([provider(server), provider(server, "openrouter")]))
        for name in ("openai/gpt-9", "gpt-9", "openrouter/mistral/large", "mistral/large"):
            assert (await ask(app, {**ASKED, "model": name})).status == 200
        await app.aclose()
        assert [asked.json()["model"] for asked in server.requests] == [
            "gpt-9", "gpt-9", "mistral/large", "mistral/large",
        ]  # fmt: skip


class Clamp:
    """What a budget does: it puts an output limit in where the client gave none."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(self, Table().match(scope), scope)
        receive = await exchange.read(receive, scope)
        exchange.amend(max_tokens=77)
        await self._app({**scope, KEY: exchange}, receive, send)


@pytest.mark.parametrize(
    ("name", "expected"), [("openai", {"max_completion_tokens": 77}), ("vllm", {"max_tokens": 77})]
)
async def test_a_limit_of_ours_goes_by_the_vendors_name(name: str, expected: dict[str, int]) -> None:
    """OpenAI's newer models refuse ``max_tokens``."""
    async with gateway(always(whole()), name=name) as (app, server):
        assert (await ask(Clamp(app), {**ASKED, "model": f"{name}/gpt-5"})).status == 200
        up = server.requests[0].json()
    assert {key: value for key, value in up.items() if key.startswith("max")} == expected


async def test_a_limit_of_the_clients_keeps_its_name() -> None:
    """It was asked for so."""
    async with gateway(always(whole())) as (app, server):
        await ask(app, {**ASKED, "max_tokens": 5})
        assert server.requests[0].json() == {**ASKED, "max_tokens": 5}


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_usage_is_asked_for_and_its_event_dropped() -> None:
    """The client did not ask for it; the gateway needs it."""
    said = [word("a"), word("b", "stop"), usage_event(), DONE]
    async with gateway(streaming(*said)) as (app, server):
        answer, exchange = await used(app, STREAMED)
        assert answer.body == b"".join([said[0], said[1], said[3]])
        assert server.requests[0].json()["stream_options"] == {"include_usage": True}
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.complete
    assert exchange.usage == Usage(3, 5)
    assert [one.usage for one in exchange.calls] == [Usage(3, 5)]


@pytest.mark.parametrize("options", [{"include_usage": False}, {"other": 1}])
async def test_the_clients_stream_options_are_kept(options: dict[str, Any]) -> None:
    """Only ``include_usage`` is set."""
    async with gateway(streaming(word("a", "stop"), usage_event(), DONE)) as (app, server):
        answer = await ask(app, {**STREAMED, "stream_options": options})
        assert server.requests[0].json()["stream_options"] == {**options, "include_usage": True}
        assert answer.body == word("a", "stop") + DONE


async def test_a_client_that_asks_for_usage_gets_it() -> None:
    """Then the request goes up and the stream comes down byte for byte."""
    said = [
        word("a", "stop"),
        b'data: {"choices" : [], "usage" : {"prompt_tokens": 3, "completion_tokens": 5}}\n\n',
        DONE,
    ]
    raw = json.dumps({**STREAMED, "stream_options": {"include_usage": True}}, indent=1).encode()
    async with gateway(streaming(*said)) as (app, server):
        answer = await ask(app, raw)
        assert answer.body == b"".join(said)
        assert server.requests[0].body == raw


async def test_a_usage_event_that_holds_content_is_kept() -> None:
    """Some vendors report on the last chunk of content."""
    last = event({"choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": "stop"}], "usage": USAGE})
    async with gateway(streaming(word("a"), last, DONE)) as (app, _):
        answer, exchange = await used(app, STREAMED)
    assert answer.body == word("a") + last + DONE
    assert exchange.usage == Usage(3, 5)


async def test_usage_is_not_asked_for_where_the_vendor_does_not_know_it() -> None:
    """A row of the table says so."""
    async with gateway(streaming(word("a", "stop"), DONE), name="mistral") as (app, server):
        await ask(app, {**STREAMED, "model": "mistral/large"})
        assert server.requests[0].json() == {**STREAMED, "model": "large"}


async def test_a_stream_that_reports_no_usage_is_estimated() -> None:
    """Never nothing, and marked so."""
    async with gateway(streaming(word("a"), word("b", "stop"), DONE)) as (app, _):
        _, exchange = await used(app, STREAMED)
    assert exchange.usage is not None
    assert exchange.usage.estimated
    assert exchange.usage.completion >= 2
    assert exchange.usage.prompt > 0


async def test_a_stream_that_was_not_asked_for_is_relayed() -> None:
    """The provider's content type decides, not the request."""
    async with gateway(streaming(word("a", "stop"), DONE)) as (app, _):
        assert (await ask(app, ASKED)).body == word("a", "stop") + DONE


async def test_json_in_place_of_a_stream_is_relayed() -> None:
    """The other way round."""
    async with gateway(always(whole())) as (app, _):
        assert (await ask(app, STREAMED)).json() == ANSWER


async def test_an_error_in_a_stream_ends_it() -> None:
    """The provider's words in the gateway's envelope, once, and no ``[DONE]`` after it."""
    said = [word("a"), event({"error": {"message": "overloaded", "code": 502}})]
    async with gateway(streaming(*said, gap=0.05)) as (app, _):
        answer = await ask(app, STREAMED)
    assert answer.body.startswith(said[0])
    assert json.loads(answer.events[-1])["error"]["message"] == "overloaded"
    assert len(answer.events) == 2
    assert answer.complete


CUT_STREAMS: dict[str, Sequence[bytes]] = {
    "cut": (STREAM_HEAD, chunk(word("a"))),
    "ended early": (STREAM_HEAD, chunk(word("a")), LAST_CHUNK),
    "half an event": (STREAM_HEAD, chunk(word("a")), chunk(word("b")[:-4]), LAST_CHUNK),
    "broken framing": (STREAM_HEAD, chunk(word("a")), b"zz\r\n"),
    "finished, then half an event": (STREAM_HEAD, chunk(word("a")), chunk(word("b", "stop")[:-4]), LAST_CHUNK),
}


@pytest.mark.parametrize("fault", CUT_STREAMS)
async def test_a_stream_that_dies_ends_in_one_error(fault: str) -> None:
    """One in-band event, no ``[DONE]``, and what was whole before it."""
    async with gateway(once(*CUT_STREAMS[fault])) as (app, server):
        answer = await ask(app, STREAMED)
        without_secrets(answer, server)
    assert answer.status == 200
    assert answer.complete
    *before, last = answer.events
    assert json.loads(last)["error"]["type"] == "upstream_error"
    assert answer.body.startswith(word("a"))
    assert len(before) == 1
    assert "[DONE]" not in answer.events


async def test_a_stream_that_stalls_ends_in_one_error() -> None:
    """The idle time-out, in the stream."""
    async with gateway(then_stall(STREAM_HEAD, chunk(word("a"))), timeouts=QUICK) as (app, server):
        answer = await ask(app, STREAMED)
        assert json.loads(answer.events[-1])["error"]["code"] == "upstream_timeout"
        assert len(answer.events) == 2
        await until(lambda: server.aborted == 1)


@pytest.mark.parametrize(
    "later", [(), (b": bye\n\n",) * 5, (usage_event(),), (usage_event(), b": bye\n\n", b": bye\n\n")]
)
async def test_a_stream_without_done_that_was_finished_ends_as_it_came(later: tuple[bytes, ...]) -> None:
    """``finish_reason`` said that it is whole, whatever trails after it."""
    async with gateway(streaming(word("a"), word("b", "stop"), *later)) as (app, _):
        answer = await ask(app, STREAMED)
    assert answer.body == word("a") + word("b", "stop") + b"".join(one for one in later if b"usage" not in one)
    assert answer.complete


async def test_an_event_without_end_is_given_up_on() -> None:
    """Its beginning is not held for ever."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD, chunk(word("a")), chunk(b"data: "))
        for _ in range(1000):
            await peer.send(chunk(b"x" * 65536))

    async with gateway(script) as (app, server):
        answer = await ask(app, STREAMED)
        assert len(answer.events) == 2
        assert json.loads(answer.events[-1])["error"]["type"] == "upstream_error"
        await until(lambda: server.aborted == 1)


async def test_streaming_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """By argument, and by ENABLE_STREAMING."""
    async with gateway(always(whole()), streaming=False) as (app, server):
        answer = await ask(app, STREAMED)
        assert (answer.status, answer.error["code"]) == (400, "streaming_disabled")
        assert (await ask(app, ASKED)).status == 200
        assert len(server.requests) == 1
    monkeypatch.setenv("ENABLE_STREAMING", "false")
    settings.forget()
    answer = await ask(ProxyApp(router=Router([EchoAdapter()])), {**CHAT, "stream": True})
    assert (answer.status, answer.error["code"]) == (400, "streaming_disabled")


# -- what goes wrong up there ------------------------------------------------------------------------------------------

LEAK = f"no route to http://{HOST}:8000/v1 with key {SECRET} at llm.prod.internal"
ERRORS: dict[str, tuple[bytes, int, str | None]] = {
    "400": (whole({"error": {"message": "bad " + LEAK, "code": "bad_thing", "param": "top_p"}}, 400), 400, "bad_thing"),
    "401": (whole({"error": {"message": f"Incorrect API key: {SECRET}"}}, 401), 502, "upstream_auth"),
    "402": (whole({"error": {"message": "Pay first"}}, 402), 502, "upstream_auth"),
    "403": (whole({"error": {"message": "Not you"}}, 403), 502, "upstream_auth"),
    "404": (
        whole({"error": {"message": "no such model " + LEAK, "code": "model_not_found"}}, 404),
        404,
        "model_not_found",
    ),
    "408": (whole({"error": {"message": "slow"}}, 408), 504, "upstream_timeout"),
    "413": (whole({"error": {"message": "too long"}}, 413), 413, "upstream_refused"),
    "422": (whole({"detail": [{"msg": "wrong"}]}, 422), 422, "upstream_refused"),
    "429": (
        whole({"error": {"message": "slow down " + LEAK}}, 429, headers=[("Retry-After", "7")]),
        429,
        "upstream_rate_limited",
    ),
    "500": (whole({"error": {"message": "oops " + LEAK}}, 500), 502, "upstream_error"),
    "500 in HTML": (whole(b"<html>nginx</html>", 500, kind="text/html"), 502, "upstream_error"),
    "500 without words": (whole(b"", 500), 502, "upstream_error"),
    "502": (whole(b"Bad Gateway", 502, kind="text/plain"), 502, "upstream_error"),
    "503": (whole({"error": {"message": "loading"}}, 503, headers=[("Retry-After", "3")]), 503, "upstream_unavailable"),
    "504": (whole(b"", 504), 504, "upstream_timeout"),
    "529": (whole({"error": {"message": "overloaded"}}, 529), 503, "upstream_unavailable"),
    "a redirect": (whole(b"", 302, headers=[("Location", "http://127.0.0.1/v1")]), 502, "upstream_error"),
    "201": (whole(status=201), 502, "upstream_error"),
    "204": (head(204, reason="No Content"), 502, "upstream_error"),
    "HTML": (whole(b"<html>hello</html>", kind="text/html"), 502, "upstream_error"),
    "no content type": (head(200, ("Content-Length", "2")) + b"{}", 502, "upstream_error"),
    "half JSON": (whole(b'{"choices": ['), 502, "upstream_error"),
    "an array": (whole(b"[]"), 502, "upstream_error"),
    "empty": (whole(b""), 502, "upstream_error"),
    "an error inside a 200": (whole({"error": {"message": "no luck " + LEAK}}), 502, "upstream_error"),
    "a 429 inside a 200": (whole({"error": {"message": "slow", "code": 429}}), 429, "upstream_rate_limited"),
    "a 401 inside a 200": (whole({"error": {"message": "who?", "code": 401}}), 502, "upstream_auth"),
    "a stream's error": (whole(b"data: {}\n\n", 503, kind="text/event-stream"), 503, "upstream_unavailable"),
    "gzip": (whole(gzip.compress(b"{}"), headers=[("Content-Encoding", "gzip")]), 502, "upstream_error"),
    "an unknown encoding": (whole(headers=[("Content-Encoding", "zstd-x")]), 502, "upstream_error"),
    "cut": (whole()[:-9], 502, "upstream_cut"),
    "cut at once": (b"", 502, "upstream_cut"),
    "no HTTP": (b"220 smtp.example.com ESMTP\r\n", 502, "upstream_protocol"),
    "length and chunks": (
        head(200, ("Content-Length", "2"), ("Transfer-Encoding", "chunked")),
        502,
        "upstream_protocol",
    ),
}


@pytest.mark.parametrize("fault", ERRORS)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_what_fails_upstream_is_told_in_the_envelope(fault: str, stream: bool) -> None:
    """The right status and code, and no word of keys and places."""
    raw, status, code = ERRORS[fault]
    async with gateway(once(raw)) as (app, server):
        answer = await ask(app, {**ASKED, "stream": stream})
        without_secrets(answer, server)
        assert len(server.requests) == 1
    assert (answer.status, answer.error["code"]) == (status, code)
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert answer.error["message"]
    assert "internal" not in answer.error["message"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.complete


async def test_the_providers_wish_when_to_come_again_is_kept() -> None:
    """``retry-after`` with 429 and 503, and not elsewhere."""
    for status, kept in ((429, "7"), (503, "7"), (500, None), (400, None)):
        async with gateway(once(whole(status=status, headers=[("Retry-After", "7")]))) as (app, _):
            assert (await ask(app, ASKED)).headers.get("retry-after") == kept


async def test_a_provider_that_refuses_connections_is_502() -> None:
    """Nothing was sent, so nothing was used."""
    taken, port = refused_port()
    with taken:
        app = ProxyApp(router=Router([OpenAIAdapter("openai", f"http://{HOST}:{port}/v1", SECRET)]), max_retries=0)
        answer, exchange = await used(app, ASKED)
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
    assert str(port) not in answer.body.decode()
    assert [one.usage for one in exchange.calls] == [Usage()]


async def test_a_host_that_does_not_exist_is_502() -> None:
    """Its name is not told."""
    app = ProxyApp(router=Router([OpenAIAdapter("openai", "http://llm.prod.invalid/v1", SECRET)]))
    answer = await ask(app, ASKED)
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
    assert "invalid" not in answer.error["message"]


async def test_a_connection_that_never_opens_used_nothing() -> None:
    """The handshake's time is over before anything was sent."""
    async with upstream(then_stall()) as server:
        router = Router([OpenAIAdapter("openai", f"https://{HOST}:{server.port}/v1", SECRET)])
        answer, exchange = await used(ProxyApp(router=router, timeouts=QUICK, max_retries=0), ASKED)
    assert answer.status == 502
    assert [one.usage for one in exchange.calls] == [Usage()]


@pytest.mark.parametrize("beginning", [b"", whole()[:-9]], ids=["never begins", "stops"])
async def test_an_answer_that_does_not_come_is_504(beginning: bytes) -> None:
    """It may have been worked on, so its tokens are estimated."""
    async with gateway(then_stall(beginning), timeouts=QUICK) as (app, server):
        answer, exchange = await used(app, ASKED)
        without_secrets(answer, server)
        await until(lambda: server.aborted == 1)
    assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
    assert exchange.calls[0].usage is not None
    assert exchange.calls[0].usage.estimated


async def test_a_refusal_used_nothing_and_a_cut_answer_did() -> None:
    """What the provider refused costs nothing; what broke off may have been paid for there."""
    async with gateway(once(whole(status=429))) as (app, _):
        assert (await used(app, ASKED))[1].calls[0].usage == Usage()
    async with gateway(once(whole()[:-9])) as (app, _):
        usage = (await used(app, ASKED))[1].calls[0].usage
        assert usage is not None
        assert usage.estimated
        assert usage.prompt > 0


async def test_the_key_is_in_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever happens."""
    caplog.set_level(logging.DEBUG)
    for raw in (whole(), whole({"error": {"message": LEAK}}, 401), b"junk\r\n\r\n", whole()[:-4]):
        async with gateway(once(raw)) as (app, _):
            await ask(app, ASKED, headers=[JSON, (b"authorization", b"Bearer client-key-1234")])
    assert "ASGI" not in caplog.text
    assert SECRET not in caplog.text
    assert "client-key-1234" not in caplog.text
    assert "hello" not in caplog.text


# -- long answers ------------------------------------------------------------------------------------------------------


async def test_a_long_answer_goes_on_in_pieces_with_its_usage() -> None:
    """Over 8 MiB it is not put together; its usage stands at the end."""
    body = json.dumps({"data": "x" * (BUFFER_LIMIT + 3_000_000), "usage": USAGE}).encode()
    async with gateway(always(whole(body))) as (app, _):
        answer, exchange = await used(app, ASKED)
    assert answer.status == 200
    assert answer.body == body
    assert len(answer.messages) > 3
    assert exchange.usage == Usage(3, 5)


async def test_an_answer_of_middle_size_is_one_piece() -> None:
    """Some megabytes of embeddings, say; the usage is read."""
    body = json.dumps({"data": "x" * 3_000_000, "usage": USAGE}).encode()
    async with gateway(always(whole(body))) as (app, _):
        answer, exchange = await used(app, ASKED)
    assert (answer.body == body, len(answer.messages), exchange.usage) == (True, 2, Usage(3, 5))


async def test_a_long_answer_that_is_cut_is_not_complete() -> None:
    """The client must not take it for whole."""
    body = json.dumps({"data": "x" * (BUFFER_LIMIT + 3_000_000), "usage": USAGE}).encode()
    async with gateway(once(whole(body)[:-100])) as (app, _), call(app, ASKED) as talk:
        await asyncio.wait({talk.task}, timeout=20)
        assert talk.task.exception() is not None
        messages = [await talk.next() for _ in range(2)]
    assert messages[0]["status"] == 200
    assert messages[1]["more_body"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_to_be_done_at_the_end_is_done_before_the_end_goes_out(stream: bool) -> None:
    """The money is settled before the client has the last of its answer."""
    async with gateway(streaming(word("a", "stop"), usage_event(), DONE) if stream else always(whole())) as (app, _):
        scope = scope_of(headers=(JSON,))
        exchange = Exchange(app, Table().match(scope), scope)
        released = asyncio.Event()
        done: list[Usage | None] = []

        async def settle() -> None:
            await released.wait()
            done.append(exchange.usage)

        exchange.at_end(settle)
        async with call(app, {**ASKED, "stream": stream}, **kept(exchange)) as talk:
            if stream:
                await talk.next()
                assert (await talk.next())["body"] == word("a", "stop")
            with pytest.raises(TimeoutError):
                await talk.next(timeout=0.1)
            assert done == []
            released.set()
            answer = await talk.answer()
        assert answer.complete
        assert done == [Usage(3, 5)]


# -- hang-ups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beginning", [(), (whole()[:-9],), (STREAM_HEAD,), (STREAM_HEAD, chunk(word("a")))])
async def test_a_client_that_leaves_ends_the_call_upstream(beginning: tuple[bytes, ...]) -> None:
    """Before the answer, in it, before the first token and after it."""
    async with gateway(then_stall(*beginning)) as (app, server), call(app, STREAMED) as talk:
        await until(lambda: len(server.requests) == 1)
        if len(beginning) == 2:
            await talk.next()
            await talk.next()
        await talk.hang_up()
        await until(lambda: server.aborted == 1)
        assert server.open == 0


async def test_a_client_that_leaves_while_its_body_comes_asks_nothing() -> None:
    """No request goes up for nobody."""
    messages = [{"type": "http.request", "body": b'{"model"', "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    async with gateway(always(whole())) as (app, server):
        await app(scope_of(headers=(JSON,)), receive, send)
        assert server.connections == 0


# -- paths, models, loops ----------------------------------------------------------------------------------------------


async def test_an_unknown_model_names_what_exists() -> None:
    """404 ``model_not_found``."""
    app = ProxyApp(router=Router([EchoAdapter()]))
    answer = await ask(app, {**CHAT, "model": "gpt-17"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert "echo" in answer.error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/embeddings", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/v1/models/echo", 405),
        ("GET", "/", 404),
        ("GET", "/v1/files", 404),
        ("POST", "/v1/audio/voices", 404),
        ("POST", "/v1//chat/completions", 404),
        ("POST", "/V1/Chat/Completions", 404),
        ("GET", "/v1/models/nonsense", 404),
        ("GET", "/v1/modelsandmore", 404),
    ],
)
async def test_what_is_not_there_is_told_so(method: str, path: str, status: int) -> None:
    """405 for another method, 404 for another path."""
    app = ProxyApp(router=Router([EchoAdapter()]))
    async with call(app, CHAT, path, method=method) as talk:
        answer = await talk.answer()
    assert answer.status == status
    assert answer.error["message"]
    assert ("allow" in answer.headers) is (status == 405)


async def test_an_api_that_the_provider_does_not_speak_is_refused() -> None:
    """What it has no word for at all; of the chat APIs each is put into another's words."""
    app = ProxyApp(router=Router([AnthropicAdapter("anthropic", f"http://{HOST}:9", SECRET)]))
    for path, body in (("/v1/embeddings", {"input": "x"}), ("/v1/completions", {"prompt": "x"})):
        answer = await ask(app, {"model": "claude-haiku-5-5", **body}, path)
        assert (answer.status, answer.error["code"]) == (400, "unsupported_api")


async def test_the_models_are_listed() -> None:
    """All of them, and each by its name, slashes included."""
    router = Router(
        [EchoAdapter(), OpenAIAdapter("openai", "http://host/v1", "k", models=["gpt-9"]),
         OpenAIAdapter("local", "http://host/v1", models=["org/model:7b"])],
        {"fast": ["openai/gpt-9"]},
    )  # fmt: skip
    app = ProxyApp(router=router)
    listed = (await get(app, "/v1/models")).json()
    assert listed["object"] == "list"
    owners = {model["id"]: model["owned_by"] for model in listed["data"]}
    assert owners == {"fast": "openai", "echo": "echo", "gpt-9": "openai", "local/org/model:7b": "local"}
    for name, owner in owners.items():
        found = await get(app, f"/v1/models/{name}")
        assert (found.status, found.json()["id"], found.json()["owned_by"]) == (200, name, owner)
        assert found.json()["object"] == "model"
    missing = await get(app, "/v1/models/gone")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


async def test_models_that_are_not_allowed_are_not_listed() -> None:
    """The tenant's list and the key's list, both."""
    router = Router([EchoAdapter(models=("a", "b", "c"))])
    app = ProxyApp(router=router)
    scope = scope_of("/v1/models", method="GET")
    exchange = Exchange(app, Table().match(scope), scope)
    key = ApiKey("k", "t", "0" * 64, allowed_models=("b", "c"))
    exchange.identity = Identity(Tenant("t", allowed_models=("a", "b")), key)
    listed = (await get(app, "/v1/models", **kept(exchange))).json()
    assert [model["id"] for model in listed["data"]] == ["b"]
    one = Exchange(app, Table().match(scope_of("/v1/models/a")), scope)
    one.identity = exchange.identity
    assert (await get(app, "/v1/models/a", **kept(one))).status == 404


async def test_a_request_that_comes_back_is_a_loop() -> None:
    """The mark that goes up is the one that is known again."""
    async with gateway(always(whole())) as (app, server):
        await ask(app, ASKED)
        mark = server.requests[0].headers["x-llm-gateway-hop"].encode()
        for value in (mark, b"0123456789abcdef, " + mark, b"a, b, c, d"):
            answer = await ask(app, ASKED, headers=[JSON, (HOP, value)])
            assert (answer.status, answer.error["code"]) == (508, "gateway_loop")
        assert len(server.requests) == 1
        await ask(app, ASKED, headers=[JSON, (HOP, b"0123456789abcdef"), (HOP, b'"; drop')])
        assert server.requests[1].headers["x-llm-gateway-hop"].encode() == b"0123456789abcdef, " + mark


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"model": "echo"}', 400),
        (b'{"model": 7, "messages": []}', 400),
        (b'{"model": "echo", "messages": []}', 400),
        (b'{"model": "echo", "model": "x", "messages": [{"role": "user", "content": "a"}]}', 400),
        (b'{"model": "echo", "temperature": NaN, "messages": [{"role": "user", "content": "a"}]}', 400),
        (b'{"model": "echo", "messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400),
        (b'{"model": "echo", "messages": [{"role": "user", "content": "' + b"x" * 2000 + b'"}]}', 413),
    ],
)
async def test_a_bad_body_is_refused_before_anything_goes_up(raw: bytes, status: int) -> None:
    """With no middleware before the app too."""
    async with gateway(always(whole()), max_body=1500 if status == 413 else 2**20) as (app, server):
        answer = await ask(app, raw)
        assert (answer.status, answer.error["type"]) == (status, "invalid_request_error")
        assert server.connections == 0


async def test_a_body_of_another_kind_is_refused() -> None:
    """Forms, and compressed JSON."""
    app = ProxyApp(router=Router([EchoAdapter()]))
    assert (await ask(app, CHAT, headers=[(b"content-type", b"text/plain")])).status == 415
    assert (await ask(app, CHAT, headers=[JSON, (b"content-encoding", b"gzip")])).status == 415


async def test_a_websocket_is_closed_and_the_lifespan_answered() -> None:
    """The app is alone, so it answers for all scopes."""
    app = ProxyApp(router=Router([EchoAdapter()]))
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message["type"])

    incoming = [{"type": "websocket.connect"}, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Any:
        return incoming.pop(0)

    await app({**scope_of("/v1/realtime"), "type": "websocket"}, receive, send)
    await app({"type": "lifespan"}, receive, send)
    assert said == ["websocket.close", "lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_another_client_can_be_given(library: Any) -> None:
    """JSON, streams and failures go through it alike; its own headers for bodies it could not read are not sent."""
    said = [word("a"), word("b", "stop"), usage_event(), DONE]
    async with library.AsyncClient(trust_env=False) as inner:
        async with gateway(always(whole()), http_client=inner) as (app, server):
            assert (await ask(app, ASKED)).json() == ANSWER
            assert server.requests[0].headers["accept-encoding"] == "identity"
            assert server.requests[0].headers["authorization"] == f"Bearer {SECRET}"
        async with gateway(streaming(*said), http_client=inner) as (app, _):
            assert (await ask(app, STREAMED)).body == said[0] + said[1] + said[3]
        async with gateway(once(whole()[:-9]), http_client=inner) as (app, _):
            assert (await ask(app, ASKED)).error["code"] == "upstream_cut"
        async with gateway(once(STREAM_HEAD, chunk(word("a"))), http_client=inner) as (app, _):
            assert json.loads((await ask(app, STREAMED)).events[-1])["error"]["code"] == "upstream_cut"
        async with gateway(then_stall(STREAM_HEAD), http_client=inner) as (app, server), call(app, STREAMED) as talk:
            await until(lambda: len(server.requests) == 1)
            await talk.hang_up()
            await until(lambda: server.aborted == 1)


async def test_a_clients_own_test_transport_can_be_given() -> None:
    """No socket at all."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url == "http://host/v1/chat/completions"
        return httpx.Response(200, json=ANSWER)

    adapters: list[Adapter] = [OpenAIAdapter("openai", "http://host/v1", SECRET)]
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as inner:
        assert (await ask(ProxyApp(router=Router(adapters), http_client=inner), ASKED)).json() == ANSWER


async def test_the_app_opens_again_after_it_was_closed() -> None:
    """A mounted app may be shut down and used again."""
    async with gateway(always(whole())) as (app, server):
        for _ in range(2):
            assert (await ask(app, ASKED)).status == 200
            await app.aclose()
            await until(lambda: server.open == 0)
        assert server.connections == 2


def test_one_app_serves_several_event_loops() -> None:
    """Each has connections of its own, also where one ended without closing them."""
    taken, port = refused_port()
    taken.close()
    app = ProxyApp(router=Router([OpenAIAdapter("openai", f"http://{HOST}:{port}/v1", SECRET)]))

    async def serve() -> None:
        async with upstream(always(whole()), port=port) as server:
            assert (await ask(app, ASKED)).status == 200
            assert server.connections == 1

    for _ in range(3):
        asyncio.run(serve())
