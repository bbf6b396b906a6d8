"""Look-ups of keys and tenants: remembered briefly, and asked once however many calls wait for the same."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from ..errors import Forbidden, StoreError, Unavailable
from ..records import ApiKey, Identity, Tenant
from ..stores.base import ClientSecrets, TenantStore

log = logging.getLogger("asgi_llm_gateway")

KNOWN_LIMIT = 10_000
"""Look-ups remembered; beyond it all are forgotten, which costs one look-up each."""

# In the place of a key that is not there, so that it is refused by the same steps as one that has ended.
_NOBODYS = ApiKey("", "", "", revoked=0.0)
_NOBODY = Identity(Tenant(""), _NOBODYS)


class Directory:
    """The keys of a store, by their digests.

    Args:
        store: Tenants and keys; ``None`` takes the shared store that the settings name.
        remember: Seconds for which a look-up holds.
        clock: Unix time in seconds.
    """

    def __init__(self, store: TenantStore | None, remember: float, clock: Callable[[], float]) -> None:
        self._store = store
        self._remember = remember
        self._clock = clock
        self._known: dict[str, tuple[Identity, float]] = {}
        self._asked: dict[tuple[int, str], asyncio.Task[Identity | None]] = {}

    def known(self, digest: str) -> Identity | None:
        """A look-up that is fresh enough and still valid."""
        found = self._known.get(digest)
        if found is None or found[1] <= self._clock():
            return None
        return found[0]

    async def find(self, digest: str) -> Identity | None:
        """The identity behind a digest; ``None`` for one that is unknown, revoked or expired. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        asked = (id(loop), digest)
        task = self._asked.get(asked)
        if task is None:
            # A task of its own: the first caller may hang up, the others wait on.
            task = self._asked[asked] = loop.create_task(self._identify(digest))
            task.add_done_callback(lambda done: self._answered(asked, done))
        try:
            identity = await asyncio.shield(task) or _NOBODY
        except StoreError as error:
            raise unavailable(error) from error
        now = self._clock()
        key = identity.key or _NOBODYS
        end = min(math.inf if one is None else one for one in (key.revoked, key.expires))
        if end <= now:  # a rotated key's end may lie ahead
            return None
        if len(self._known) >= KNOWN_LIMIT:
            self._known.clear()
        self._known[digest] = (identity, min(now + self._remember, end))
        return identity

    async def client_secret(self, digest: str) -> ApiKey | None:
        """The client secret with that digest, if it has not expired; never remembered. Raises Unavailable."""
        try:
            store = await self._opened()
            key = await store.client_secret(digest) if isinstance(store, ClientSecrets) else None
        except StoreError as error:
            raise unavailable(error) from error
        if key is None or key.revoked is not None or (key.expires or 0.0) <= self._clock():
            return None
        return key

    def _answered(self, asked: tuple[int, str], task: asyncio.Task[Identity | None]) -> None:
        self._asked.pop(asked, None)
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody left is no fault of the loop's

    async def _identify(self, digest: str) -> Identity | None:
        return await (await self._opened()).identify(digest)

    async def _opened(self) -> TenantStore:
        if self._store is not None:
            return self._store
        from ..stores.shared import shared_tenants

        return await shared_tenants()

    async def acting_for(self, identity: Identity, wanted: list[bytes]) -> Identity:
        """The identity for the tenant that the caller names. One refusal for all it may not name, existing or not.

        Raises Forbidden, Unavailable.
        """
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
            raise unavailable(error) from error
        if tenant is None:
            raise refusal
        return Identity(tenant, identity.key)


def unavailable(error: StoreError) -> Unavailable:
    """What a caller is told while the store does not answer: nothing was decided."""
    log.error("tenants and keys can't be read: %s", error)
    return Unavailable(f"Tenants and keys can't be read now: {error}.", code="store_unavailable")
