"""Who may open a session: keys, client secrets in a subprotocol, origins, and how many."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st_

from asgi_llm_gateway.errors import Forbidden, SettingsError
from asgi_llm_gateway.middleware.realtime import RealtimeMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.passport import PROTOCOL, SECRET_PROTOCOL
from asgi_llm_gateway.realtime.origins import Origins
from asgi_llm_gateway.stores.memory import MemoryStore

from ..conversation import scope_of
from .stage import LIVELY, Peer, Stage, stage

ORIGIN = b"origin"


async def secret_of(st: Stage, **asked: int) -> str:
    """A client secret of tenant a."""
    answer = await st.http("POST", "/v1/realtime/client_secrets", {"expires_after": asked} if asked else None)
    assert answer.status == 200, answer.body
    value: str = answer.json()["value"]
    return value


# -- keys ----------------------------------------------------------------------------------------------------------------


async def test_a_key_in_a_header_opens_a_session() -> None:
    """Either header; a subprotocol is answered where one was offered."""
    async with stage() as st:
        for headers in ([st.bearer()], [(b"x-api-key", st.secrets["a"].encode())]):
            peer = st.dial(headers)
            assert await peer.message() == {"type": "websocket.accept", "subprotocol": None}
        peer = st.dial([st.bearer()], subprotocols=["other", PROTOCOL])
        assert (await peer.message())["subprotocol"] == PROTOCOL
        hello = await peer.hear()
        assert (hello["type"], hello["v"]) == ("session.created", 1)
        assert hello["session"]["limits"]["max_messages"] == 16


async def test_no_key_and_wrong_keys_are_refused_with_the_same_words() -> None:
    """An HTTP answer to the handshake, as to any other request; where the server can't give one, the socket is closed."""
    async with stage() as st:
        for headers in (
            [],
            [(b"authorization", b"Bearer gw-wrong-key-of-nobody")],
            [(b"x-api-key", b"ek_wrong-secret-x")],
        ):
            assert await st.refused(headers) == (401, "invalid_api_key")
        assert await st.refused(subprotocols=[PROTOCOL, SECRET_PROTOCOL + "ek_unknown-unknown"], headers=[]) == (
            401,
            "invalid_api_key",
        )
        peer = st.dial([], extensions={})
        closed = await peer.message()
        assert (closed["type"], closed["code"], closed["reason"]) == ("websocket.close", 1008, "invalid_api_key")


async def test_two_keys_in_one_handshake_are_refused() -> None:
    """As over HTTP."""
    async with stage() as st:
        other = [st.bearer(), (b"x-api-key", b"gw-another-key-of-nobody")]
        assert await st.refused(other) == (400, "conflicting_credentials")
        shown = [PROTOCOL, SECRET_PROTOCOL + await secret_of(st)]
        assert await st.refused([st.bearer()], subprotocols=shown) == (400, "conflicting_credentials")


async def test_an_unknown_subprotocol_is_refused() -> None:
    """A browser that offers some wants one of them back, or fails without a word."""
    async with stage() as st:
        assert await st.refused(subprotocols=["llm-stream.v2"]) == (400, "unsupported_protocol")


@pytest.mark.parametrize(
    "path", ["/v1/realtime", "/v1/realtime/ws/", "/v1/realtime//ws", "/v1/Realtime/ws", "/v1/chat/completions"]
)
async def test_a_websocket_elsewhere_is_closed(path: str) -> None:
    """With a right key, too."""
    async with stage() as st:
        peer = st.dial(path=path, raw_path=path.encode())
        assert (await peer.message())["type"] == "websocket.close"


async def test_a_plain_request_where_a_websocket_is_wanted_is_told_so() -> None:
    """426, with the header that says which protocol."""
    async with stage() as st:
        answer = await st.http("GET", "/v1/realtime/ws")
        assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")


async def test_a_tenant_has_so_many_sessions() -> None:
    """429 for one more; room again when one has ended, and others' are not counted."""
    async with stage(limits=replace(LIVELY, sessions=2)) as st:
        await st.tenant("b")
        first, _ = await st.connect(), await st.connect()
        assert await st.refused() == (429, "too_many_sessions")
        await st.connect([st.bearer("b")])
        await first.end()
        await st.connect()


# -- client secrets in a subprotocol -------------------------------------------------------------------------------------


async def test_a_page_opens_a_session_with_a_client_secret() -> None:
    """Its second subprotocol; only the first is answered. The session speaks for the key, also when the secret has ended."""
    now = [1000.0]
    async with stage(clock=lambda: now[0]) as st:
        secret = await secret_of(st, seconds=10)
        peer = st.dial([(ORIGIN, b"https://gateway.example")], subprotocols=[PROTOCOL, SECRET_PROTOCOL + secret])
        assert (await peer.message())["subprotocol"] == PROTOCOL
        await peer.hear()
        assert (await peer.ask("1"))[-1]["type"] == "response.done"
        now[0] = 1010.0
        assert (await peer.ask("2"))[-1]["type"] == "response.done"
        shown = [PROTOCOL, SECRET_PROTOCOL + secret]
        assert await st.refused([], subprotocols=shown) == (401, "invalid_api_key")
        assert {record.key for record in (await st.store.records("a")).records} == {st.keys["a"].id}


async def test_a_key_that_lasts_is_not_taken_from_a_subprotocol() -> None:
    """What stands in a page is read by many; the refusal does not repeat it."""
    async with stage() as st:
        peer = st.dial([], subprotocols=[PROTOCOL, SECRET_PROTOCOL + st.secrets["a"]])
        assert (await peer.message())["status"] == 400
        body = json.loads((await peer.message())["body"])
        assert body["error"]["code"] == "not_a_client_secret"
        assert st.secrets["a"] not in json.dumps(body)


# -- origins -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (b"https://gateway.example", True),
        (b"http://gateway.example", True),
        (b"https://app.example:8443", True),
        (b"https://APP.example:8443", True),
        (b"https://app.example", False),
        (b"http://app.example:8443", False),
        (b"https://gateway.example.evil.example", False),
        (b"https://gateway.example@evil.example", False),
        (b"null", False),
        (b"file://", False),
        (b"https://[::1", False),
        (b"", False),
    ],
)
async def test_pages_of_other_origins_may_not(origin: bytes, allowed: bool) -> None:
    """The gateway's own and those listed; the same over a websocket and for the paths beside it."""
    async with stage(origins=["https://app.example:8443"]) as st:
        sent = [st.bearer(), (ORIGIN, origin)]
        answer = await st.http("GET", "/v1/realtime/ice", headers=sent)
        if allowed:
            await st.connect(sent)
            assert answer.status == 200
            assert answer.headers["access-control-allow-origin"] == origin.decode()
        else:
            assert await st.refused(sent) == (403, "origin_not_allowed")
            assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")


async def test_a_browser_may_ask_before_it_calls() -> None:
    """CORS preflight for our own paths: allowed origins are told so; other paths are the app's to answer."""
    async with stage(origins=["https://app.example"]) as st:
        asked = [(b"access-control-request-method", b"POST")]
        for origin, status in ((b"https://app.example", 204), (b"https://evil.example", 403)):
            answer = await st.http("OPTIONS", "/v1/realtime/client_secrets", headers=[*asked, (ORIGIN, origin)])
            assert answer.status == status
            assert ("access-control-allow-origin" in answer.headers) == (status == 204)
            assert "access-control-allow-credentials" not in answer.headers
        other = await st.http("OPTIONS", "/v1/chat/completions", headers=[*asked, (ORIGIN, b"https://app.example")])
        assert "access-control-allow-origin" not in other.headers


def test_every_origin_may_where_that_is_said() -> None:
    """``*``."""
    Origins(["*"]).check(b"https://anything.example", b"gateway.example")


@pytest.mark.parametrize(
    "listed", ["app.example", "https://app.example/", "ftp://app.example", "https://a:b@c.example", "https://x:99999"]
)
def test_what_is_no_origin_cannot_be_listed(listed: str) -> None:
    """It would never match, and somebody would wonder."""
    with pytest.raises(SettingsError, match="REALTIME_ORIGINS"):
        Origins([listed])


@given(st_.binary(max_size=40), st_.none() | st_.binary(max_size=40))
def test_whatever_a_browser_names_is_judged(origin: bytes, host: bytes | None) -> None:
    """Allowed only where it ends with the host itself."""
    try:
        Origins().check(origin, host)
    except Forbidden:
        return
    assert host is not None
    assert origin.lower().startswith((b"http://", b"https://"))


async def test_the_hosts_own_websocket_may_stand_at_that_path() -> None:
    """Where ``paths=`` says that it is open: nobody is asked for a key, and no session begins."""
    seen: list[str] = []

    async def own(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])

    paths = {"/v1/realtime/ws": "open"}
    layer = TenantMiddleware(RealtimeMiddleware(own, paths=paths), store=MemoryStore(), paths=paths)
    peer = Peer(layer, {**scope_of("/v1/realtime/ws"), "type": "websocket", "subprotocols": []})
    await peer.end()
    assert seen == ["/v1/realtime/ws"]
