"""Who is calling: an API key, and the tenant that it acts for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Literal

from .._asgi import ASGIApp, Headers, Receive, Scope, Send
from ..errors import BadRequest, Forbidden, InvalidKey, NotFound, StoreError, Unavailable
from ..exchange import MAX_BODY, Exchange
from ..keys import digest_of
from ..records import Identity, Tenant
from ..stores.base import TenantStore
from .base import LLMMiddleware, Rank

log = logging.getLogger("asgi_llm_gateway")

_KNOWN_LIMIT = 10_000  # look-ups remembered; beyond it all are forgotten, which costs one look-up each


class TenantMiddleware(LLMMiddleware):
    """Ask every call for an API key, and find the tenant behind it.

    The key comes as ``Authorization: Bearer KEY`` or ``x-api-key: KEY``. No, unknown, revoked and expired keys get the
    same 401. A key acts for its own tenant, or for one of those listed on it if ``x-tenant-id`` or the body's
    ``tenant`` names it. A store that does not answer is 503, never 401.

    Args:
        app: The ASGI app further in.
        store: Tenants and keys; ``None`` takes the shared store that the settings name.
        remember: Seconds for which a look-up holds: so long may a revoked key live on.
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
        clock: Callable[[], float] = time.time,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        super().__init__(
            app,
            settings=(id(store) if store is not None else None, remember),
            paths=paths,
            govern=govern,
            max_body=max_body,
        )
        self._directory = _Directory(store, remember, clock)

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        headers = exchange.sent(scope)
        digest = digest_of(_key_of(headers))
        if digest is None:
            self._directory.hint()
            raise InvalidKey
        identity = self._directory.known(digest)
        if identity is None:
            identity = await self._directory.find(digest)
        wanted = list(headers.all(b"x-tenant-id")) if headers.get(b"x-tenant-id") is not None else []
        if exchange.route.dialect is not None and scope["method"] == "POST":
            if exchange.request is None:
                receive = await exchange.read(receive, scope)
            if exchange.request is not None and exchange.request.tenant is not None:
                wanted.append(exchange.request.tenant.encode())
        if wanted and identity.tenant.enabled:
            identity = await self._directory.acting_for(identity, wanted)
        if not identity.tenant.enabled:
            raise Forbidden("The tenant is disabled.", code="tenant_disabled")
        if exchange.request is not None:
            check_model(identity, exchange.request.model)
        exchange.identity = identity
        if exchange.record is not None:
            exchange.record.tenant = identity.tenant.id
        await self.forward(exchange, scope, receive, send)


def check_model(identity: Identity, model: str) -> None:
    """Refuse a model that the tenant or the key may not use, in the words used for one that does not exist."""
    for allowed in (identity.tenant.allowed_models, identity.key.allowed_models if identity.key else None):
        if allowed is not None and model not in allowed:
            listed = ", ".join(sorted(allowed)[:20]) or "none"
            raise NotFound(
                f"The model '{model}' does not exist or you do not have access to it. Yours: {listed}.",
                code="model_not_found",
                param="model",
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


class _Directory:
    """Look-ups of keys: remembered briefly, and asked once however many calls wait for the same."""

    def __init__(self, store: TenantStore | None, remember: float, clock: Callable[[], float]) -> None:
        self._store = store
        self._remember = remember
        self._clock = clock
        self._known: dict[str, tuple[Identity, float]] = {}
        self._asked: dict[tuple[int, str], asyncio.Task[Identity | None]] = {}
        self._hinted = False

    def known(self, digest: str) -> Identity | None:
        """A look-up that is fresh enough and still valid."""
        found = self._known.get(digest)
        if found is None or found[1] <= self._clock():
            return None
        return found[0]

    async def find(self, digest: str) -> Identity:
        """The identity behind a digest. Raises InvalidKey, Unavailable."""
        loop = asyncio.get_running_loop()
        asked = (id(loop), digest)
        task = self._asked.get(asked)
        if task is None:
            # A task of its own: the first caller may hang up, the others wait on.
            task = self._asked[asked] = loop.create_task(self._identify(digest))
            task.add_done_callback(lambda done: self._answered(asked, done))
        try:
            identity = await asyncio.shield(task)
        except StoreError as error:
            raise _unavailable(error) from error
        now = self._clock()
        if identity is None or identity.key is None or _ended(identity, now):
            self.hint()
            raise InvalidKey
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        until = now + self._remember
        for end in (identity.key.revoked, identity.key.expires):  # a rotated key's end may lie ahead
            if end is not None:
                until = min(until, end)
        self._known[digest] = (identity, until)
        return identity

    def _answered(self, asked: tuple[int, str], task: asyncio.Task[Identity | None]) -> None:
        self._asked.pop(asked, None)
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody left is no fault of the loop's

    async def _identify(self, digest: str) -> Identity | None:
        store = await self._opened()
        return await store.identify(digest)

    async def _opened(self) -> TenantStore:
        if self._store is not None:
            return self._store
        from ..stores.shared import shared_tenants

        return await shared_tenants()

    async def acting_for(self, identity: Identity, wanted: list[bytes]) -> Identity:
        """The identity for the tenant that the caller names. One refusal for all it may not name, existing or not."""
        refusal = Forbidden("The tenant does not exist, or this key may not act for it.", code="tenant_not_found")
        names = {value.decode("latin-1") for value in wanted}
        if len(names) != 1:
            raise refusal
        name = names.pop()
        if name == identity.tenant.id:
            return identity
        if identity.key is None or name not in identity.key.also_tenants:
            raise refusal
        try:
            tenant: Tenant | None = await (await self._opened()).tenant(name)
        except StoreError as error:
            raise _unavailable(error) from error
        if tenant is None:
            raise refusal
        return Identity(tenant, identity.key)

    def hint(self) -> None:
        """Say once, in the log, how a first key is made."""
        if not self._hinted:
            self._hinted = True
            log.warning(
                "a call without a valid API key was refused; make a tenant and a key with: "
                "python -m asgi_llm_gateway tenants create NAME && python -m asgi_llm_gateway keys create NAME"
            )


def _ended(identity: Identity, now: float) -> bool:
    key = identity.key
    return key is None or any(end is not None and end <= now for end in (key.revoked, key.expires))


def _unavailable(error: StoreError) -> Unavailable:
    log.error("tenants and keys can't be read: %s", error)
    return Unavailable(f"Tenants and keys can't be read now: {error}.", code="store_unavailable")
