"""Security headers: on every answer, once, and never in the place of the app's own."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from asgi_llm_gateway._asgi import Message, Receive, Scope, Send
from asgi_llm_gateway._stepping import steppable
from asgi_llm_gateway.middleware._security_incoming import Bounded, Limits
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.security import HEADERS, PAGE_POLICY, SecurityHeadersMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.stores.memory import MemoryLedger, MemoryStore

from ..conversation import CHAT, JSON, Answer, ask, call, get, scope_of
from ..servers import environment, fetch, serving, uvicorn
from ..upstream import until
from . import DONE, Stranger, Streamer, words

HTTPS: dict[str, Any] = {"scheme": "https"}


class Own:
    """An app that sets headers of its own, here and there in capitals."""

    def __init__(self, *headers: tuple[bytes, bytes]) -> None:
        self.headers = list(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"x"})


def values(answer: Answer, name: str) -> list[str]:
    """All values of a header, in whatever case it was sent."""
    return [value.decode() for key, value in answer.messages[0]["headers"] if key.decode().lower() == name]


def assert_secured(answer: Answer, *, but: tuple[str, ...] = ("strict-transport-security",)) -> None:
    """Each header, once."""
    for name, value in HEADERS.items():
        assert values(answer, name) == ([] if name in but else [value]), name


# -- where they stand --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/files", "/hello", "/api/stats", "/v1//x"])
@pytest.mark.parametrize("status", [200, 404, 500])
async def test_every_answer_has_them(path: str, status: int) -> None:
    """On the LLM API's paths and all others, good and bad."""
    assert_secured(await ask(SecurityHeadersMiddleware(Stranger(status=status)), CHAT, path))


async def test_a_refusal_further_in_has_them() -> None:
    """The gatekeepers' 401, and the preflight that passes them."""
    layer = SecurityHeadersMiddleware(TenantMiddleware(Stranger(), store=MemoryStore()))
    refused = await ask(layer, CHAT)
    assert refused.status == 401
    assert_secured(refused)
    async with call(layer, None, method="OPTIONS") as talk:
        assert_secured(await talk.answer())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/hello"])
async def test_a_stream_has_them_and_goes_out_as_it_comes(path: str) -> None:
    """Byte for byte, one message an event."""
    events = [*words(50), DONE]
    answer = await ask(SecurityHeadersMiddleware(Streamer(events)), {**CHAT, "stream": True}, path)
    assert_secured(answer)
    assert [message["body"] for message in answer.messages[1:]] == [*events, b""]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/hello"])
async def test_a_slow_reader_slows_its_app(path: str) -> None:
    """Nothing is kept for it: the app waits with its second message (A32)."""
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            sent += 1
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with call(SecurityHeadersMiddleware(app), CHAT, path) as talk:
        talk.pause()
        for _ in range(100):
            await asyncio.sleep(0)
        assert sent == 0
        talk.resume()
        assert len((await talk.answer()).body) == 1000


@pytest.mark.parametrize("kind", ["lifespan", "yet.unknown"])
async def test_other_scopes_pass_untouched(kind: str) -> None:
    """The very objects that came."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((scope, receive, send))

    async def never(*_: Any) -> Any:
        raise AssertionError

    scope = {"type": kind}
    await SecurityHeadersMiddleware(app)(scope, never, never)
    assert [id(one) for one in seen] == [id(scope), id(never), id(never)]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/hello"])
async def test_twice_is_as_good_as_once(path: str) -> None:
    """Equal layers, and one within the gateway's own."""
    twice = SecurityHeadersMiddleware(SecurityHeadersMiddleware(Stranger()))
    assert_secured(await ask(twice, CHAT, path))
    within = TracingMiddleware(SecurityHeadersMiddleware(Stranger()))
    assert_secured(await ask(within, CHAT, path))


async def test_what_is_given_is_not_edited() -> None:
    """Neither the app's message nor its list of headers."""
    message: Message = {"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(message)
        await send({"type": "http.response.body", "body": b""})

    for path in ("/hello", "/v1/models"):
        await get(SecurityHeadersMiddleware(app), path)
        assert message == {"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]}


# -- which, and whose --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/hello"])
async def test_what_the_app_set_itself_stays(path: str) -> None:
    """In any spelling; ``override`` puts ours there."""
    app = Own((b"X-Frame-Options", b"SAMEORIGIN"), (b"content-security-policy", b"default-src *"))
    answer = await get(SecurityHeadersMiddleware(app), path)
    assert values(answer, "x-frame-options") == ["SAMEORIGIN"]
    assert values(answer, "content-security-policy") == ["default-src *"]
    assert values(answer, "x-content-type-options") == ["nosniff"]
    answer = await get(SecurityHeadersMiddleware(app, override=True), path)
    assert_secured(answer)


@pytest.mark.parametrize("path", ["/v1/models", "/hello"])
async def test_each_can_be_switched_off_and_changed(path: str) -> None:
    """By name, in any case; new ones too."""
    layer = SecurityHeadersMiddleware(
        Stranger(), headers={"X-Frame-Options": None, "referrer-policy": "origin", "permissions-policy": "camera=()"}
    )
    answer = await get(layer, path)
    assert (values(answer, "x-frame-options"), values(answer, "referrer-policy")) == ([], ["origin"])
    assert values(answer, "permissions-policy") == ["camera=()"]


@pytest.mark.parametrize("path", ["/v1/models", "/hello"])
async def test_strict_transport_is_asked_for_over_https_only(path: str) -> None:
    """RFC 6797, 7.2: never over plain HTTP."""
    layer = SecurityHeadersMiddleware(Stranger())
    assert_secured(await get(layer, path, **HTTPS), but=())
    assert values(await get(layer, path), "strict-transport-security") == []


async def test_a_page_has_a_policy_that_lets_it_work() -> None:
    """Its own scripts and styles; switchable, and one given by name holds for both."""
    page = Own((b"content-type", b"text/html; charset=utf-8"))
    name = "content-security-policy"
    assert values(await get(SecurityHeadersMiddleware(page), "/"), name) == [PAGE_POLICY]
    assert values(await get(SecurityHeadersMiddleware(page, page_policy=None), "/"), name) == []
    own = SecurityHeadersMiddleware(page, headers={name: "default-src 'self'"})
    assert values(await get(own, "/"), name) == ["default-src 'self'"]
    assert values(await get(SecurityHeadersMiddleware(Stranger()), "/"), name) == [HEADERS[name]]


@pytest.mark.parametrize(
    "wrong",
    [{"headers": {"x-a": "b\r\nx-c: d"}}, {"headers": {"x a": "b"}}, {"headers": {"": "b"}}, {"headers": {"x-a": "ü"}},
     {"max_body": 0}, {"receive_seconds": -1}, {"allowed_hosts": "example.com"}, {"allowed_hosts": ["http://x"]},
     {"allowed_hosts": ["x:80"]}, {"allowed_hosts": ["*"]}, {"allowed_hosts": ["*.[::1]"]}],
)  # fmt: skip
def test_an_argument_that_cannot_be_meant_is_refused(wrong: Any) -> None:
    """When the layer is made."""
    with pytest.raises(ValueError):  # noqa: PT011 - each names its own argument
        SecurityHeadersMiddleware(Stranger(), **wrong)


# -- with real servers -------------------------------------------------------------------------------------------------


def test_a_whole_stack_answers_with_each_header_once() -> None:
    """Where the proxy writes to the server directly too, and where it streams."""
    stack = SecurityHeadersMiddleware(TracingMiddleware(BudgetMiddleware(ProxyApp(), ledger=MemoryLedger())))
    with serving(stack) as url:
        for body in (CHAT, {**CHAT, "stream": True}, {**CHAT, "messages": 7}):
            with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 30) as wire:
                raw = json.dumps(body).encode()
                wire.sendall(
                    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(raw), raw)
                )
                said = b""
                while piece := wire.recv(65536):
                    said += piece
            head = said.partition(b"\r\n\r\n")[0].decode().lower()
            for name in HEADERS:
                assert head.count(f"\r\n{name}:") == (0 if name == "strict-transport-security" else 1), (name, head)
            assert head.count("\r\nx-request-id:") == 1


def test_the_hang_up_is_still_noticed_without_a_task() -> None:
    """What the gateway awaits for it is known as the server's own, once the body has come."""

    class Cycle:
        async def receive(self) -> Message:
            return {"type": "http.request", "body": b"{}", "more_body": False}

    Cycle.__module__ = "uvicorn.protocols.http.httptools_impl"
    cycle = Cycle()
    bounded = Bounded(cycle.receive, Limits(100, 100, 1000, 10, 5.0, None), json=True)
    assert steppable(bounded)
    assert asyncio.run(_once(bounded))["body"] == b"{}"
    assert bounded.complete
    again = bounded()
    assert asyncio.iscoroutine(again)
    again.close()


async def _once(receive: Any) -> Any:
    return await receive()


async def test_a_client_that_leaves_mid_stream_is_noticed() -> None:
    """Through the layer, over TCP: the app is told of the disconnect."""
    told = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        if (await receive())["type"] == "http.disconnect":
            told.set()

    with serving(SecurityHeadersMiddleware(app)) as url:
        port = int(url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        await reader.readuntil(b"first")
        writer.close()
        await until(told.is_set)


def test_a_frameworks_pages_and_routes_have_them() -> None:
    """FastAPI: a page of its own and JSON, with the policy that fits each."""
    app = FastAPI()

    @app.get("/page", response_class=HTMLResponse)
    async def page() -> str:
        return "<p>hi</p>"

    @app.get("/data")
    async def data() -> dict[str, int]:
        return {"a": 1}

    with serving(SecurityHeadersMiddleware(app)) as url:
        assert fetch(url + "/page").headers["content-security-policy"] == PAGE_POLICY
        assert fetch(url + "/data").headers["content-security-policy"] == HEADERS["content-security-policy"]
        assert fetch(url + "/nowhere").headers["x-content-type-options"] == "nosniff"


def test_the_cors_example_answers_a_page_of_another_origin(tmp_path: Path) -> None:
    """Preflight, call and refusal can be read by the origin that is named, and by no other."""
    origin = {"origin": "https://app.example.com"}
    preflight = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with uvicorn("examples.cors_fastapi:app", environment(tmp_path), tmp_path) as server:
        url = server.url + "/llm/v1/chat/completions"
        found = fetch(url, method="OPTIONS", key=None, headers=preflight)
        assert (found.status, found.headers["access-control-allow-origin"]) == (200, origin["origin"])
        assert found.headers["x-content-type-options"] == "nosniff"
        for key, status in (("gw-nobodys-key-at-all", 401), (None, 401)):
            refused = fetch(url, CHAT, key=key, headers=origin)
            assert (refused.status, refused.headers["access-control-allow-origin"]) == (status, origin["origin"])
        answer = fetch(url, CHAT, headers=origin)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin["origin"])
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
        stranger = fetch(url, CHAT, headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers
        assert fetch(server.url + "/hello", key=None).json() == {"hello": "world"}


def test_nothing_of_the_gateways_is_in_the_scope_of_another_route() -> None:
    """A route that is not governed gets no exchange."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope))

    scope = scope_of("/hello", headers=(JSON,))
    before = dict(scope)

    async def never(*_: Any) -> Any:
        raise AssertionError

    asyncio.run(SecurityHeadersMiddleware(app)(scope, never, never))
    assert seen == [before]


async def test_an_app_that_fails_is_answered_with_them() -> None:
    """500 in the dialect's envelope; the exception goes on to the server, which logs it."""

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a secret of the app")

    for path, kind in (("/v1/chat/completions", "server_error"), ("/v1/messages", "api_error")):
        async with call(SecurityHeadersMiddleware(fails), CHAT, path) as talk:
            answer = Answer([await talk.next(), await talk.next()])
            assert_secured(answer)
            assert (answer.status, answer.error["type"]) == (500, kind)
            assert "secret" not in answer.body.decode()
            with pytest.raises(RuntimeError):
                await talk.task
