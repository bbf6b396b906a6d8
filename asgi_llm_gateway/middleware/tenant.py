"""Who is calling: an API key, and the tenant that it acts for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from .._asgi import ASGIApp, Headers, Receive, Scope, Send
from .._handshake import refuse
from ..allowed import check_model
from ..damping import Damping, source_of
from ..errors import BadRequest, Forbidden, GatewayError, InvalidKey, NotFound, SettingsError, Unavailable
from ..exchange import MAX_BODY, Exchange
from ..keys import CLIENT_SECRET, digest_of
from ..passport import PASSPORT, REALTIME, SECRET_PROTOCOL, Passport
from ..records import Identity
from ..stores.base import TenantStore
from ._tenant_directory import Directory
from .base import SOCKET, LLMMiddleware, Rank

log = logging.getLogger("asgi_llm_gateway")


class TenantMiddleware(LLMMiddleware):
    """Ask every call for an API key, and find the tenant behind it.

    The key comes as ``Authorization: Bearer KEY`` or ``x-api-key: KEY``; two that disagree are 400. No, unknown, revoked and
    expired keys get the same 401 by the same steps; the 401 of a source that shows many wrong keys waits a little, a right
    key never does (see ``damping``). A key acts for its own tenant, or for one of those listed on it if ``x-tenant-id`` or the
    body's ``tenant`` names it. A store that does not answer is 503, never 401.

    Realtime sessions (a websocket at ``/v1/realtime/ws``, where a RealtimeMiddleware stands directly within) are opened with a
    key, or with a client secret, also as the subprotocol ``llm-secret.SECRET``. Each of their messages comes here again, with
    the key's digest, and is asked for like any other call.

    Args:
        app: The ASGI app further in.
        store: Tenants and keys; ``None`` takes the shared store that the settings name.
        remember: Seconds for which a look-up holds: so long may a revoked key live on.
        damping: How long the refusals of wrong keys wait; ``None`` takes ``Damping()``, ``Damping(longest=0)`` none.
        clock: Unix time in seconds.
        paths: See LLMMiddleware.
        govern: See LLMMiddleware.
        max_body: See LLMMiddleware.
    """

    rank = Rank.TENANT

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: TenantStore | None = None,
        remember: float = 2.0,
        damping: Damping | None = None,
        clock: Callable[[], float] = time.time,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        super().__init__(
            app,
            settings=(id(store) if store is not None else None, remember, id(damping) if damping is not None else None),
            paths=paths,
            govern=govern,
            max_body=max_body,
        )
        self._directory = Directory(store, remember, clock)
        self._damping = Damping() if damping is None else damping
        self._hinted = False
        sessions: Any = app if getattr(type(app), "rank", None) == Rank.REALTIME else None
        self._sessions = sessions is not None
        self._counted = getattr(type(sessions.app if sessions else app), "rank", None) == Rank.RATE_LIMIT

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        began = time.perf_counter()
        headers = exchange.sent(scope)
        passport: Passport | None = scope.get(PASSPORT)
        if passport is not None and passport.digest is not None:  # a message of a session: it shows no key
            digest: str | None = passport.digest
            identity = self._directory.known(passport.digest) or await self._directory.find(passport.digest)
            if identity is None:
                raise InvalidKey
        else:
            key = _key_of(headers)
            digest = digest_of(key)
            identity = None if digest is None else self._directory.known(digest)
            if identity is None:
                if key.startswith(_SECRET) and exchange.route.path.startswith(REALTIME):
                    identity, passport = await self._opened_by(scope, key, digest)
                else:
                    identity = await self._found(scope, key, digest)
        wanted = list(headers.all(b"x-tenant-id")) if headers.get(b"x-tenant-id") is not None else []
        if passport is not None and passport.bound is not None:
            wanted.append(passport.bound.encode())
        if exchange.route.dialect is not None and scope["method"] == "POST":
            if exchange.request is None:
                try:
                    receive = await exchange.read(receive, scope)
                except GatewayError as error:
                    exchange.refusal = error
            if exchange.request is not None and exchange.request.tenant is not None:
                wanted.append(exchange.request.tenant.encode())
        if wanted and identity.tenant.enabled:
            identity = await self._directory.acting_for(identity, wanted)
        if not identity.tenant.enabled:
            raise Forbidden("The tenant is disabled.", code="tenant_disabled")
        if exchange.request is not None:
            try:
                check_model(identity, exchange.request.model)
            except NotFound as error:
                exchange.refusal = error
        exchange.identity = identity
        if exchange.record is not None:
            exchange.record.tenant = identity.tenant.id
        exchange.step("auth", began)
        if self._sessions and exchange.route.dialect is None and exchange.route.path.startswith(REALTIME):
            scope = {**scope, PASSPORT: passport or _passport_of(identity)}
        if (
            exchange.refusal is not None and self._counted
        ):  # a refused call is a call: it counts, and is told its limits
            await self.app(scope, receive, send)
            return
        await self.forward(exchange, scope, receive, send)

    async def _found(self, scope: Scope, key: bytes, digest: str | None) -> Identity:
        """The identity behind a key that is not remembered. Raises InvalidKey for whatever is wrong with it, Unavailable.

        A key is looked up first and only its refusal waits: a right one is served at once, however many wrong ones come
        from the same address.
        """
        found = None
        if digest is not None and not self._damping.knows(digest):
            found = await self._directory.find(digest)
        if found is not None:
            return found
        self._hint()
        if key:  # a call without any is no guess
            await self._damp(source_of(scope.get("client")), digest)
        raise InvalidKey

    async def _opened_by(self, scope: Scope, key: bytes, digest: str | None) -> tuple[Identity, Passport]:
        """Whom a client secret speaks for. Raises InvalidKey, Unavailable."""
        if digest is not None and not self._damping.knows(digest):
            secret = await self._directory.client_secret(digest)
            parent = None if secret is None else await self._directory.find(secret.parent)
            if secret is not None and parent is not None:
                return parent, Passport(secret.parent, secret.tenant, bound=secret.tenant, ephemeral=True)
        await self._damp(source_of(scope.get("client")), digest)
        raise InvalidKey

    async def websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A session's handshake is let in with a key or a client secret; see LLMMiddleware for any other."""
        if not self._sessions or self._table.match(scope) != SOCKET:
            await super().websocket(scope, receive, send)
            return
        try:
            passport = await self._admitted(scope)
        except GatewayError as error:
            await refuse(scope, receive, send, error)
        except SettingsError as error:
            log.error("a setting is wrong: %s", error)
            await refuse(scope, receive, send, Unavailable("The gateway's settings are wrong.", code="misconfigured"))
        else:
            await self.app({**scope, PASSPORT: passport}, receive, send)

    async def _admitted(self, scope: Scope) -> Passport:
        """Who opens a session. Raises GatewayError."""
        headers = Headers(scope.get("headers") or ())
        key = _key_of(headers)
        shown = [one[len(SECRET_PROTOCOL) :].encode() for one in scope.get("subprotocols") or ()
                 if one.startswith(SECRET_PROTOCOL)]  # fmt: skip
        if len({*shown, key} - {b""}) > 1:
            raise BadRequest("The handshake shows two different keys. Send one.", code="conflicting_credentials")
        if shown and not shown[0].startswith(_SECRET):
            # What stands in a page is not to be a key that lasts.
            raise BadRequest(f"'{SECRET_PROTOCOL}' takes a client secret ('{CLIENT_SECRET}...'), not an API key. Make one "
                             "with POST /v1/realtime/client_secrets.", code="not_a_client_secret",
                             param="sec-websocket-protocol")  # fmt: skip
        key = key or (shown[0] if shown else b"")
        digest = digest_of(key)
        if key.startswith(_SECRET):
            identity, passport = await self._opened_by(scope, key, digest)
        else:
            identity = (None if digest is None else self._directory.known(digest)) or await self._found(
                scope, key, digest
            )
            passport = _passport_of(identity)
        wanted = list(headers.all(b"x-tenant-id"))
        if passport.bound is not None:
            wanted.append(passport.bound.encode())
        if wanted and identity.tenant.enabled:
            identity = await self._directory.acting_for(identity, wanted)
        if not identity.tenant.enabled:
            raise Forbidden("The tenant is disabled.", code="tenant_disabled")
        passport.acting = identity.tenant.id
        return passport

    async def _damp(self, source: str, digest: str | None) -> None:
        delay = self._damping.failed(source, digest)
        if not delay:
            return
        try:
            if self._damping.alarm():
                log.warning(
                    "many calls with wrong API keys, now from %s; %d so far: answers to further ones wait",
                    source or "an unknown address",
                    self._damping.failures,
                )
            await asyncio.sleep(delay)
        finally:
            self._damping.waited()

    def _hint(self) -> None:
        """Say once, in the log, how a first key is made."""
        if not self._hinted:
            self._hinted = True
            log.warning(
                "a call without a valid API key was refused; make a tenant and a key with: "
                "python -m asgi_llm_gateway tenants create NAME && python -m asgi_llm_gateway keys create NAME"
            )


_SECRET = CLIENT_SECRET.encode()


def _passport_of(identity: Identity) -> Passport:
    return Passport(None if identity.key is None else identity.key.digest, identity.tenant.id)


def _key_of(headers: Headers) -> bytes:
    """The one key that a request shows; empty for none. Raises BadRequest for two that disagree."""
    if not headers.repeated and headers.get(b"x-api-key") is None:  # as most requests are
        value = headers.get(b"authorization") or b""
        return value[7:].strip() if value[:7].lower() == b"bearer " else b""
    shown = {value.strip() for value in headers.all(b"x-api-key")}
    for value in headers.all(b"authorization"):
        kind, _, key = value.partition(b" ")
        if kind.lower() == b"bearer":
            shown.add(key.strip())
    if len(shown) > 1:
        raise BadRequest(
            "The request shows two different API keys. Send one, as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
            code="conflicting_credentials",
        )
    return shown.pop() if shown else b""
