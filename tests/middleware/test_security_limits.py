"""Limits on what comes in: heads, bodies, depth, time; on the LLM API's paths and on all others."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway._asgi import Message, Receive, Scope, Send
from asgi_llm_gateway.middleware._security_incoming import Depth, host_of
from asgi_llm_gateway.middleware.security import SecurityHeadersMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.stores.memory import MemoryStore

from ..conversation import CHAT, JSON, Talk, ask, get, scope_of
from ..servers import fetch, serving
from . import Stranger

BOTH = pytest.mark.parametrize("path", ["/v1/chat/completions", "/hello", "/v1/messages"])


def chat(path: str, **more: Any) -> dict[str, Any]:
    """A sound request for a path."""
    return {**CHAT, "max_tokens": 5, **more} if path.startswith("/v1") else more


def code(answer: Any) -> tuple[int, str]:
    """Status and code."""
    return answer.status, answer.json()["error"]["code"]


def sized(body: bytes, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Headers of a body of known length."""
    return [JSON, (b"content-length", b"%d" % len(body)), *more]


# -- heads -------------------------------------------------------------------------------------------------------------

BAD_HOSTS = [b"x/health?", b"x#", b"x?", b"x y", b"", b"x:y", b"x:99999", b"x:80:80", b"a@b", b"a%2fb", b"x\\y", b"\xc3\xa4",
             b"[::1", b"[x]", b"[::1]x", b"[fe80::1%25eth0]", b"..", b".x", b"x" * 300, b"x,y", b"x\x00"]  # fmt: skip


@pytest.mark.parametrize("host", BAD_HOSTS)
@BOTH
async def test_a_malformed_host_is_refused_whatever_the_path(host: bytes, path: str) -> None:
    """400, before anybody decides by it (A01)."""
    app = Stranger()
    answer = await ask(SecurityHeadersMiddleware(app), chat(path), path, headers=(JSON, (b"host", host)))
    assert code(answer) == (400, "malformed_headers")
    assert "x-content-type-options" in answer.headers
    assert app.calls == 0


@pytest.mark.parametrize(
    ("host", "name"),
    [(b"example.com", "example.com"), (b"EXAMPLE.com:8080", "example.com"), (b"example.com.", "example.com"),
     (b"127.0.0.1:1", "127.0.0.1"), (b"[::1]:80", "[::1]"), (b"[0:0::1]", "[::1]"), (b"my_service:", "my_service")],
)  # fmt: skip
def test_a_sound_host_is_read(host: bytes, name: str) -> None:
    """Without its port, in lower case."""
    assert host_of(host) == name


@pytest.mark.parametrize(
    "headers",
    [
        [(b"host", b"a"), (b"host", b"a")],
        [(b"Host", b"a"), (b"host", b"b")],
        [(b"content-length", b"5"), (b"content-length", b"6")],
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"-5")],
        [(b"content-length", b"+5")],
        [(b"content-length", b"5, 6")],
        [(b"content-length", b"0x5")],
        [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"gzip")],
        [(b"x-a", b"b\r\nx-c: d")],
        [(b"x-a", b"b\nc")],
        [(b"x-a", b"b\0")],
    ],
)
@BOTH
async def test_a_head_that_two_servers_could_read_differently_is_refused(headers: Any, path: str) -> None:
    """Twins, lengths that disagree, line breaks (A28)."""
    app = Stranger()
    answer = await ask(SecurityHeadersMiddleware(app), chat(path), path, headers=(JSON, *headers))
    assert code(answer) == (400, "malformed_headers")
    assert app.calls == 0


@BOTH
async def test_too_many_and_too_long_headers_are_refused(path: str) -> None:
    """431; a limit that is met exactly is kept (A31)."""
    app = Stranger()
    layer = SecurityHeadersMiddleware(app, max_headers=20, max_header_bytes=2000)
    many = [JSON, *((b"x-%d" % at, b"") for at in range(20))]
    long = [JSON, (b"x-pad", b"y" * 1980)]
    assert code(await ask(layer, chat(path), path, headers=many)) == (431, "headers_too_large")
    assert code(await ask(layer, chat(path), path, headers=long)) == (431, "headers_too_large")
    assert (await ask(layer, chat(path), path, headers=many[:-1])).status == 200
    assert (await ask(layer, chat(path), path, headers=[JSON, (b"x-pad", b"y" * 1967)])).status == 200
    assert app.calls == 2


async def test_a_hundred_thousand_headers_are_refused_unread() -> None:
    """By their number alone."""
    headers = [(b"x", b"y")] * 100_000
    assert code(await get(SecurityHeadersMiddleware(Stranger()), "/hello", headers=headers)) == (
        431,
        "headers_too_large",
    )


@BOTH
async def test_allowed_hosts_are_opt_in(path: str) -> None:
    """Exact names and names below one; a request without a Host has none of them."""
    layer = SecurityHeadersMiddleware(Stranger(), allowed_hosts=["api.example.com", "*.internal.example", "[::1]"])
    seen = {}
    for host in ("api.example.com", "API.example.com:8443", "a.internal.example", "a.b.internal.example", "[::1]:80",
                 "example.com", "internal.example", "xapi.example.com", "evil-internal.example", "127.0.0.1"):  # fmt: skip
        answer = await ask(layer, chat(path), path, headers=(JSON, (b"host", host.encode())))
        seen[host] = answer.status
    assert list(seen.values()) == [200] * 5 + [421] * 5
    assert code(await ask(layer, chat(path), path)) == (421, "host_not_allowed")


async def test_a_websocket_with_a_malformed_host_is_closed() -> None:
    """Before the app hears of it; a sound one passes."""
    app = Stranger()
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    layer = SecurityHeadersMiddleware(app)
    await layer({"type": "websocket", "path": "/ws", "headers": [(b"host", b"x/y")]}, receive, send)
    assert (app.calls, sent[0]["type"], sent[0]["code"]) == (0, "websocket.close", 1008)
    reached: list[Any] = []

    async def socket(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope)

    await SecurityHeadersMiddleware(socket)(
        {"type": "websocket", "path": "/ws", "headers": [(b"host", b"x")]}, receive, send
    )
    assert len(reached) == 1


# -- bodies ------------------------------------------------------------------------------------------------------------


@BOTH
async def test_a_body_over_the_limit_is_refused_by_its_length(path: str) -> None:
    """Nothing of it is read (A31)."""
    app = Stranger()
    headers = [JSON, (b"content-length", b"10000000000")]
    answer = await ask(SecurityHeadersMiddleware(app), b"", path, headers=headers)
    assert code(answer) == (413, "request_too_large")
    assert answer.headers["connection"] == "close"
    assert app.calls == 0


@BOTH
@pytest.mark.parametrize("cut", [0, 1, 100])
async def test_a_body_that_turns_out_too_long_is_refused(path: str, cut: int) -> None:
    """No length, or one that lies; in one piece or in many. The app never has it whole."""
    app = Stranger()
    layer = SecurityHeadersMiddleware(app, max_body=1000)
    body = json.dumps(chat(path, pad="x" * 1000)).encode()
    answer = await ask(layer, body, path, headers=[JSON, (b"transfer-encoding", b"chunked")], cut=cut)
    assert code(answer) == (413, "request_too_large")
    assert all(len(body) <= 1000 for body in app.bodies)
    lying = await ask(layer, body, path, headers=[JSON, (b"content-length", b"5")], cut=cut)
    assert code(lying) == (413, "request_too_large")


@BOTH
async def test_a_body_of_many_tiny_pieces_is_taken(path: str) -> None:
    """Up to the limit; it arrives unchanged."""
    app = Stranger()
    body = json.dumps(chat(path, pad="x" * 20_000)).encode()
    headers = [JSON, (b"transfer-encoding", b"chunked")]
    assert (await ask(SecurityHeadersMiddleware(app), body, path, headers=headers, cut=1)).status == 200
    assert app.bodies == [body]


async def test_the_lower_of_two_limits_holds_on_an_llm_path() -> None:
    """The layer's own, though those further in would take more."""
    layer = SecurityHeadersMiddleware(TenantMiddleware(Stranger(), store=MemoryStore()), max_body=10)
    assert code(await ask(layer, CHAT, headers=sized(json.dumps(CHAT).encode()))) == (413, "request_too_large")


class Slow(Talk):
    """A client that sends half of its body, and no more."""

    async def _receive(self) -> Message:
        if self._pieces:
            return {"type": "http.request", "body": self._pieces.pop(0), "more_body": True}
        await self._gone.wait()
        return {"type": "http.disconnect"}


async def ask_slowly(app: Any, path: str) -> Any:
    """Half a body, announced whole."""
    scope = scope_of(path, headers=[JSON, (b"content-length", b"1000")])
    return await Slow(app, scope, [b'{"model": "ec']).answer()


@BOTH
async def test_a_body_that_does_not_arrive_in_time_is_refused(path: str) -> None:
    """408, and the connection is closed (A31); the app is told that the client left."""
    app = Stranger()
    answer = await ask_slowly(SecurityHeadersMiddleware(app, receive_seconds=0.05), path)
    assert code(answer) == (408, "request_timeout")
    assert answer.headers["connection"] == "close"
    traced = TracingMiddleware(Stranger())
    answer = await ask_slowly(SecurityHeadersMiddleware(traced, receive_seconds=0.05), path)
    assert code(answer) == (408, "request_timeout")


async def test_the_time_is_that_of_the_whole_body() -> None:
    """A byte now and then does not prolong it."""
    pieces = 0

    async def dripping() -> Message:
        nonlocal pieces
        pieces += 1
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = scope_of("/hello", headers=[JSON, (b"content-length", b"100000")])
    await SecurityHeadersMiddleware(Stranger(), receive_seconds=0.2)(scope, dripping, send)
    assert sent[0]["status"] == 408
    assert pieces < 50


async def test_a_client_that_waits_for_its_answer_is_in_no_hurry() -> None:
    """The time ends with the body: a long call is not cut."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        later = asyncio.ensure_future(receive())
        await asyncio.sleep(0.1)
        assert not later.done()
        later.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    for path in ("/hello", "/v1/chat/completions"):
        layer = SecurityHeadersMiddleware(app, receive_seconds=0.02)
        body = json.dumps(CHAT).encode()
        assert (await ask(layer, body, path, headers=sized(body))).body == b"done"


async def test_an_app_that_answers_before_the_body_is_left_alone() -> None:
    """Its answer has begun: it is not spoilt by a limit, and what the app raises is its own."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.body", "body": b"done"})

    body = b"x" * 100
    for path in ("/hello", "/v1/models"):
        layer = SecurityHeadersMiddleware(app, max_body=10)
        answer = await ask(layer, body, path, headers=[(b"transfer-encoding", b"chunked")])
        assert (answer.status, answer.body) == (200, b"done")


# -- depth -------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("cut", [0, 7])
@pytest.mark.parametrize("opener", ["[", '{"a":'])
async def test_a_body_nested_too_deeply_is_refused(path: str, cut: int, opener: str) -> None:
    """A hundred thousand levels, before any parser sees them (A33)."""
    app = Stranger()
    body = json.dumps(chat(path, x=1)).encode()[:-2] + opener.encode() * 100_000
    answer = await ask(SecurityHeadersMiddleware(app), body, path, headers=sized(body), cut=cut * 10_000)
    assert code(answer) == (400, "invalid_json")
    assert "128 levels" in answer.json()["error"]["message"]


@BOTH
async def test_brackets_that_are_text_and_many_keys_are_no_depth(path: str) -> None:
    """Code in a prompt, and a hundred thousand keys, pass."""
    app = Stranger()
    text: dict[str, Any] = {"text": '[[{{"\\"[' * 500}
    keys: dict[str, Any] = {f"k{at}": [] for at in range(100_000)}
    for more in (text, keys):
        body = json.dumps(chat(path, metadata=more)).encode()
        assert (await ask(SecurityHeadersMiddleware(app), body, path, headers=sized(body))).status == 200


async def test_only_json_is_measured() -> None:
    """A picture's bytes are brackets by chance."""
    app = Stranger()
    body = b"[" * 1000
    headers = [(b"content-type", b"image/png"), (b"content-length", b"1000")]
    assert (await ask(SecurityHeadersMiddleware(app), body, "/hello", headers=headers)).status == 200
    assert app.bodies == [body]


def depth_of(value: Any) -> int:
    """Levels of nesting."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


NESTED = st.recursive(
    st.text('ab"\\[]{}é\n', max_size=6) | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a"\\[{', max_size=3), inner, max_size=3),
    max_leaves=25,
)


@given(value=NESTED, most=st.integers(1, 6), cut=st.integers(1, 9), ascii_only=st.booleans())
def test_depth_is_told_exactly_however_the_text_is_cut(value: Any, most: int, cut: int, ascii_only: bool) -> None:
    """Strings, escapes and all: the same as what a parser finds."""
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    fits = depth_of(value) <= most
    assert Depth(most).passes(raw, whole=True) == fits
    meter = Depth(most)
    assert all(meter.passes(raw[at : at + cut]) for at in range(0, len(raw), cut)) == fits


# -- with real servers and frameworks ----------------------------------------------------------------------------------


def hosted() -> FastAPI:
    """A framework that would make 400 or 500 of what its parser meets."""
    app = FastAPI()

    @app.post("/hello")
    @app.post("/v1/chat/completions")
    async def hello(body: dict[str, Any]) -> dict[str, int]:
        return {"keys": len(body)}

    return app


def test_a_frameworks_route_is_guarded_too() -> None:
    """The refusals are ours, over real HTTP; and what is fine is served afterwards."""
    with serving(SecurityHeadersMiddleware(hosted(), max_body=100_000)) as url:
        assert code(fetch(url + "/hello", b'{"a":' * 5000)) == (400, "invalid_json")
        assert code(fetch(url + "/hello", {"a": "x" * 200_000})) == (413, "request_too_large")
        assert code(fetch(url + "/hello", {}, headers={"host": "x/y"})) == (400, "malformed_headers")
        assert fetch(url + "/hello", {"a": 1}).json() == {"keys": 1}


@pytest.mark.parametrize("path", ["/hello", "/v1/chat/completions"])
async def test_a_slow_body_over_tcp_is_answered_and_cut_off(path: str) -> None:
    """408 to the client, and the server closes."""
    with serving(SecurityHeadersMiddleware(hosted(), receive_seconds=0.2)) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        writer.write(
            b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
            % path.encode()
        )
        said = await asyncio.wait_for(reader.read(-1), 30)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b'"request_timeout"' in said
        writer.close()


# -- settings ----------------------------------------------------------------------------------------------------------


async def test_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by its name; arguments go first."""
    for name, value in {"ALLOWED_HOSTS": " a.example, *.b.example ", "MAX_BODY_BYTES": "1024", "MAX_HEADER_BYTES": "1024",
                        "MAX_HEADER_COUNT": "10", "MAX_JSON_DEPTH": "8"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    forget()
    host = (b"host", b"a.example")
    layer = SecurityHeadersMiddleware(Stranger())
    deep = b"[" * 9 + b"]" * 9
    assert code(await get(layer, "/x", headers=[(b"host", b"c.example")])) == (421, "host_not_allowed")
    assert code(await get(layer, "/x", headers=[host] + [(b"x%d" % at, b"") for at in range(10)]))[0] == 431
    assert code(await get(layer, "/x", headers=[host, (b"x", b"y" * 1024)]))[0] == 431
    assert code(await ask(layer, deep, "/x", headers=sized(deep, host))) == (400, "invalid_json")
    assert code(await ask(layer, b"", "/x", headers=[host, (b"content-length", b"1025")]))[0] == 413
    own = SecurityHeadersMiddleware(Stranger(), max_depth=9)
    assert (await ask(own, deep, "/x", headers=sized(deep, host))).status == 200


async def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """503 on every path, naming it."""
    monkeypatch.setenv("ALLOWED_HOSTS", "http://a.example")
    forget()
    for path in ("/hello", "/v1/models"):
        answer = await get(SecurityHeadersMiddleware(Stranger()), path)
        assert code(answer) == (503, "misconfigured")
        assert "ALLOWED_HOSTS" in answer.json()["error"]["message"]
