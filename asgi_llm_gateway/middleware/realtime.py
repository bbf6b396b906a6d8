"""Sessions: many calls over one open channel, each of them metered like any other call."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import orjson

from .._asgi import JSON, ASGIApp, Receive, Scope, Send, header, send_body
from .._handshake import refuse
from ..draining import ShuttingDown, drain
from ..errors import (
    Forbidden,
    GatewayError,
    Header,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    SettingsError,
    StoreError,
    TooLarge,
    Unavailable,
)  # fmt: skip
from ..exchange import MAX_BODY, ClientGone, Exchange
from ..keys import new_client_secret
from ..passport import CALLS_PATH, ENTRY, ICE_PATH, PASSPORT, REALTIME, SECRETS_PATH, SOCKET_PATH, Passport
from ..rates.windows import Windows
from ..realtime import minting
from ..realtime.ice import IceServers
from ..realtime.limits import Census, Limits
from ..realtime.origins import PREFLIGHT, Origins, cors
from ..realtime.session import Session
from ..records import DEFAULT_TENANT
from ..stores.base import ClientSecrets, TenantStore
from ._realtime_calls import CLIENT_PATH, Script, hung_up, offered, own_path
from ._realtime_socket import Sessions, Socket, listen, subprotocol_of
from .base import SOCKET, LLMMiddleware, Rank

if TYPE_CHECKING:
    from ..realtime.webrtc import Lane

log = logging.getLogger("asgi_llm_gateway")

_NO_STORE: Header = (b"cache-control", b"no-store")


class _Terms(NamedTuple):
    """What the settings say, read on first use."""

    limits: Limits
    origins: Origins
    ice: IceServers


class RealtimeMiddleware(LLMMiddleware):
    """Take sessions at ``/v1/realtime/ws``, whose messages are calls through the whole stack.

    It stands directly within TenantMiddleware, which lets the handshake in. Each message of a session is a fresh request to
    the outermost gateway layer, so that every layer runs for every message; it carries the digest of the session's key, and
    the key is asked for each time. docs/realtime.md describes the frames.

    With ``webrtc``, ``POST /v1/realtime/calls`` takes the offer of a WebRTC peer (extra ``webrtc``), whose data channel carries
    the same frames. ``/realtime/client.js`` is the browser's client for both.

    ``POST /v1/realtime/client_secrets`` makes a short-lived secret for browsers, ``GET /v1/realtime/ice`` tells of STUN and
    TURN servers.

    Args:
        app: The ASGI app further in.
        store: Where client secrets are kept; ``None`` takes the shared store that the settings name.
        limits: What sessions may take; ``None`` takes the settings (REALTIME_*).
        origins: Pages of these origins may open sessions, beside the gateway's own; ``None`` takes REALTIME_ORIGINS.
        ice: STUN and TURN servers; ``None`` takes STUN_URLS, TURN_URLS, TURN_SECRET and TURN_TTL_SECONDS.
        webrtc: Take WebRTC peers; ``None`` takes ENABLE_WEBRTC. Raises ModuleNotFoundError without the extra ``webrtc``.
        clock: Unix time in seconds.
        paths: See LLMMiddleware.
        govern: See LLMMiddleware.
        max_body: See LLMMiddleware.
    """

    rank = Rank.REALTIME

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: TenantStore | None = None,
        limits: Limits | None = None,
        origins: Iterable[str] | None = None,
        ice: IceServers | None = None,
        webrtc: bool | None = None,
        clock: Callable[[], float] = time.time,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        named = None if origins is None else Origins(origins)
        listed = None if named is None else named.listed
        super().__init__(
            app,
            settings=(id(store) if store is not None else None, limits, listed, ice, webrtc),
            paths=paths,
            govern=govern,
            max_body=max_body,
        )
        self._store = store
        self._given = limits, named, ice
        self._clock = clock
        self._terms: _Terms | None = None
        self._census = Census()
        self._minted = Windows(60.0)
        self._sessions = Sessions()
        self._webrtc = webrtc
        self._lane: Lane | None = self._make_lane() if webrtc else None
        self._script = Script()
        self._counted = getattr(type(app), "rank", None) == Rank.RATE_LIMIT

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        passport: Passport | None = scope.get(PASSPORT)
        if exchange.route.dialect is None and exchange.route.path.startswith(REALTIME):
            answer = self._own(exchange.route.path)
            if answer is not None:
                if exchange.refusal is not None:
                    raise exchange.refusal
                self._check_origin(exchange, scope)
                await answer(exchange, scope, receive, send)
                return
        elif passport is not None:  # a message of a session, which asks later what the call used and cost
            passport.exchange = exchange
        if exchange.refusal is not None and self._counted:  # a refused call is a call: it counts
            await self.app(scope, receive, send)
            return
        await self.forward(exchange, scope, receive, send)

    def _own(self, path: str) -> Callable[[Exchange, Scope, Receive, Send], Awaitable[None]] | None:
        """Who answers a path; ``None``: somebody further in."""
        if path == SECRETS_PATH:
            return self._client_secret
        if path == ICE_PATH:
            return self._ice
        if path == SOCKET_PATH:
            return _upgrade
        if path == CALLS_PATH or path.startswith(CALLS_PATH + "/"):
            return self._calls if self._webrtc is not False else _no_webrtc
        return None

    # -- sessions ------------------------------------------------------------------------------------------------------

    async def websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A session over a websocket; on other governed paths see LLMMiddleware."""
        if self._table.match(scope) != SOCKET:
            await super().websocket(scope, receive, send)
            return
        passport: Passport = scope.get(PASSPORT) or Passport(None, DEFAULT_TENANT)
        try:
            terms = self._terms or self._load()
            terms.origins.check(header(scope, b"origin"), header(scope, b"host"))
            protocol = subprotocol_of(scope)
            if drain().refusing:
                raise ShuttingDown
            self._census.enter(passport.acting, terms.limits.sessions)
        except GatewayError as error:
            await refuse(scope, receive, send, error)
            return
        except SettingsError as error:
            log.error("a setting is wrong: %s", error)
            told = Unavailable(f"The gateway's settings are wrong: {error}.", code="misconfigured")
            await refuse(scope, receive, send, told)
            return
        try:
            if (await receive())["type"] != "websocket.connect":
                return
            await send({"type": "websocket.accept", "subprotocol": protocol})
            session = Session(scope.get(ENTRY, self), scope, passport, terms.limits, Socket(send))
            listening = asyncio.get_running_loop().create_task(listen(receive, session))
            try:
                await self._sessions.live(session)
            finally:
                listening.cancel()
        finally:
            self._census.leave(passport.acting)

    def _load(self) -> _Terms:
        from ..settings import current

        settings = current()
        limits, origins, ice = self._given
        self._terms = _Terms(
            Limits.of(settings) if limits is None else limits,
            Origins(settings.realtime_origins.split(",")) if origins is None else origins,
            IceServers.of(settings) if ice is None else ice,
        )
        return self._terms

    def _make_lane(self) -> Lane:
        from ..realtime.webrtc import Lane  # its extra is needed only where it is wanted

        return Lane(self._sessions.live, self._census)

    async def _calls(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebRTC peer's offer, or the end of its call."""
        if self._webrtc is None:
            from ..settings import current

            self._webrtc = current().enable_webrtc
            if not self._webrtc:
                await _no_webrtc(exchange, scope, receive, send)
        if self._lane is None:
            try:
                self._lane = self._make_lane()
            except ModuleNotFoundError as error:
                raise SettingsError(f"ENABLE_WEBRTC is set, and {error}") from None
        path = exchange.route.path.rstrip("/")
        if path != CALLS_PATH:
            await hung_up(self._lane, path, scope, send)
            return
        _only("POST", scope)
        terms = self._terms or self._load()
        body = await _read(receive)
        await offered(self._lane, terms.limits, terms.ice.stun, exchange, scope, body, send)

    # -- the paths beside them -----------------------------------------------------------------------------------------

    def _check_origin(self, exchange: Exchange, scope: Scope) -> None:
        origin = exchange.sent(scope).get(b"origin")
        if origin is not None:
            (self._terms or self._load()).origins.check(origin, exchange.sent(scope).get(b"host"))
            exchange.headers += cors(origin)

    async def _client_secret(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Make a client secret for the caller's tenant and key."""
        _only("POST", scope)
        terms = self._terms or self._load()
        tenant, key = exchange.identity
        passport: Passport | None = scope.get(PASSPORT)
        if key is None:
            raise Forbidden("Client secrets speak for API keys, and this gateway asks for none.", code="no_api_keys")
        if passport is None or passport.ephemeral:
            raise Forbidden("A client secret can't make another; use the API key.", code="ephemeral_key")
        body = await _read(receive)
        seconds = minting.seconds_of(body, terms.limits)
        admitted, _, _, retry = self._minted.hit(tenant.id, terms.limits.secrets)
        if not admitted:
            raise RateLimited(
                f"The tenant may make {terms.limits.secrets} client secrets in a minute. Each opens many sessions.",
                headers=((b"retry-after", b"%d" % max(1, round(retry))),),
            )
        made, secret = new_client_secret(key, tenant.id, now=self._clock(), seconds=seconds)
        try:
            store = self._store if self._store is not None else await _shared()
            if not isinstance(store, ClientSecrets):
                raise Unavailable("This gateway's store keeps no client secrets.", status=501, code="no_client_secrets")
            await store.add_client_secret(made, self._clock())
        except StoreError as error:
            log.error("a client secret could not be kept: %s", error)
            raise Unavailable(f"The client secret could not be kept: {error}.", code="store_unavailable") from error
        await send_body(send, 200, minting.answer(made, secret), (JSON, _NO_STORE))

    async def _ice(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """The STUN and TURN servers, with credentials of the caller's own."""
        _only("GET", scope)
        terms = self._terms or self._load()
        told = terms.ice.told(exchange.identity.tenant.id, self._clock())
        await send_body(send, 200, orjson.dumps(told), (JSON, _NO_STORE))

    def _pass(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """See LLMMiddleware; what a browser asks before it calls one of our paths is answered here, and its client."""
        if (
            scope["method"] == "OPTIONS"
            and header(scope, b"access-control-request-method") is not None
            and self._own(self._table.match(scope).path) is not None
        ):
            return self._preflight(scope, send)
        if (
            scope["method"] in ("GET", "HEAD")
            and scope["path"].endswith(CLIENT_PATH)
            and own_path(scope) == CLIENT_PATH
        ):
            return self._script.send(scope, receive, send)
        return super()._pass(scope, receive, send)

    async def _preflight(self, scope: Scope, send: Send) -> None:
        origin = header(scope, b"origin")
        allowed: tuple[Header, ...] = ()
        if origin is not None and (self._terms or self._load()).origins.allows(origin, header(scope, b"host")):
            allowed = (*cors(origin), *PREFLIGHT)
        await send_body(send, 204 if allowed else 403, b"", allowed)


async def _upgrade(exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
    """Source: RFC 9110, 15.5.22."""
    headers = ((b"upgrade", b"websocket"), (b"connection", b"upgrade"))
    raise GatewayError("Open a WebSocket here.", status=426, type="invalid_request_error", code="upgrade_required",
                       headers=headers if scope.get("http_version", "1.1").startswith("1") else headers[:1])  # fmt: skip


async def _no_webrtc(exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound(f"There is no WebRTC here. Open a WebSocket at {SOCKET_PATH}: it speaks the same frames.",
                   code="webrtc_disabled")  # fmt: skip


def _only(method: str, scope: Scope) -> None:
    if scope["method"] != method:
        raise MethodNotAllowed(f"Use {method} here.", headers=((b"allow", method.encode()),))


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > minting.LONGEST_BODY:
            raise TooLarge(f"The body is over the limit of {minting.LONGEST_BODY} bytes.")
        more = message.get("more_body", False)
    return b"".join(parts)


async def _shared() -> TenantStore:
    from ..stores.shared import shared_tenants

    return await shared_tenants()


__all__ = ["RealtimeMiddleware"]
