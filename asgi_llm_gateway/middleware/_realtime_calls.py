"""The HTTP side of the WebRTC lane: an offer is answered, a call is hung up, and the browser's client is served."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING

import orjson

from .._asgi import JSON, Receive, Scope, Send, header, send_body
from ..errors import Header, MethodNotAllowed, NotFound
from ..exchange import Exchange
from ..passport import CALLS_PATH, PASSPORT, Passport
from ..realtime import sdp
from ..realtime.limits import Limits
from ..records import DEFAULT_TENANT

if TYPE_CHECKING:
    from ..realtime.webrtc import Lane

CLIENT_PATH = "/realtime/client.js"
"""Where the browser's client is."""

_NO_STORE: Header = (b"cache-control", b"no-store")
_SDP: Header = (b"content-type", b"application/sdp")
_HANG_UP = "/hangup"


def passport_of(scope: Scope) -> Passport:
    """Whom a session speaks for; in a stack without a TenantMiddleware, the one tenant there is."""
    return scope.get(PASSPORT) or Passport(None, DEFAULT_TENANT)


async def offered(
    lane: Lane, limits: Limits, stun: tuple[str, ...], exchange: Exchange, scope: Scope, body: bytes, send: Send
) -> None:
    """``POST /v1/realtime/calls``: 201 with our SDP, in the form that the offer came in, and where to hang up."""
    text, as_json = sdp.sdp_of(body, exchange.sent(scope).get(b"content-type"))
    offer = sdp.read(text)
    id, answer = await lane.open(exchange.entry, scope, passport_of(scope), limits, offer, stun)
    headers = ((b"location", f"{_full_path(scope)}/{id}".encode()), _NO_STORE)
    if as_json:
        told = orjson.dumps({"id": id, "sdp": answer, "type": "answer"})
        await send_body(send, 201, told, (JSON, *headers))
    else:
        await send_body(send, 201, answer.encode(), (_SDP, *headers))


def own_path(scope: Scope) -> str:
    """The path less what we are mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path") or ""
    return path[len(root) :] if path.startswith(root) else path


def _full_path(scope: Scope) -> str:
    """The path as the client wrote it, with what we are mounted at. Source: ASGI specification, ``root_path``."""
    path: str = scope["path"].rstrip("/")
    root: str = scope.get("root_path") or ""
    return path if path.startswith(root) else root + path


async def hung_up(lane: Lane | None, path: str, scope: Scope, send: Send) -> None:
    """``DELETE /v1/realtime/calls/ID``, and OpenAI's ``POST .../ID/hangup``."""
    id = path[len(CALLS_PATH) + 1 :]
    if id.endswith(_HANG_UP) and scope["method"] == "POST":
        id, status = id.removesuffix(_HANG_UP), 200
    elif scope["method"] == "DELETE":
        status = 204
    else:
        raise MethodNotAllowed("Use DELETE here.", headers=((b"allow", b"DELETE"),))
    if lane is None or not lane.hang_up(id, passport_of(scope).acting):
        raise NotFound("You have no such call here: it has ended, or another process has it.", code="call_not_found")
    await send_body(send, status, b"", (_NO_STORE,))


class Script:
    """The browser's client, read once."""

    def __init__(self) -> None:
        self._body: bytes | None = None
        self._tag = b""

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with it. It is public, and pages of all origins may load it."""
        if self._body is None:
            self._body = (files("asgi_llm_gateway.realtime") / "static" / "client.js").read_bytes()
            self._tag = b'"' + hashlib.sha256(self._body).hexdigest()[:32].encode() + b'"'
        headers = (
            (b"content-type", b"text/javascript; charset=utf-8"),
            (b"access-control-allow-origin", b"*"),
            (b"cross-origin-resource-policy", b"cross-origin"),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-cache"),
            (b"etag", self._tag),
        )
        if header(scope, b"if-none-match") == self._tag:
            await send({"type": "http.response.start", "status": 304, "headers": list(headers[1:])})
            await send({"type": "http.response.body", "body": b""})
            return
        await send_body(send, 200, b"" if scope["method"] == "HEAD" else self._body, headers)


__all__ = ["CLIENT_PATH", "Script", "hung_up", "offered", "own_path", "passport_of"]
