"""ProxyApp: what goes wrong at the provider, as the client is told it and as it is paid."""

from __future__ import annotations

import gzip
import logging

import pytest

from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import Usage

from ..conversation import JSON, ask
from ..upstream import HOST, head, once, refused_port, then_stall, until, upstream, whole
from .single import ASKED, QUICK, SECRET, gateway, used, without_secrets

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
