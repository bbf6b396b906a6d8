"""Who is calling: an API key, and the tenant that it acts for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Literal

from .._asgi import ASGIApp, Headers, Receive, Scope, Send
from ..allowed import check_model
from ..damping import Damping, source_of
from ..errors import BadRequest, Forbidden, GatewayError, InvalidKey, NotFound
from ..exchange import MAX_BODY, Exchange
from ..keys import digest_of
from ..records import Identity
from ..stores.base import TenantStore
from ._tenant_directory import Directory
from .base import LLMMiddleware, Rank

log = logging.getLogger("asgi_llm_gateway")


class TenantMiddleware(LLMMiddleware):
    """Ask every call for an API key, and find the tenant behind it.

    The key comes as ``Authorization: Bearer KEY`` or ``x-api-key: KEY``; two that disagree are 400. No, unknown, revoked and
    expired keys get the same 401 by the same steps; the 401 of a source that shows many wrong keys waits a little, a right
    key never does (see ``damping``). A key acts for its own tenant, or for one of those listed on it if ``x-tenant-id`` or the
    body's ``tenant`` names it. A store that does not answer is 503, never 401.

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
        self._counted = getattr(type(app), "rank", None) == Rank.RATE_LIMIT

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        began = time.perf_counter()
        headers = exchange.sent(scope)
        key = _key_of(headers)
        digest = digest_of(key)
        identity = None if digest is None else self._directory.known(digest)
        if identity is None:
            identity = await self._found(scope, key, digest)
        wanted = list(headers.all(b"x-tenant-id")) if headers.get(b"x-tenant-id") is not None else []
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
