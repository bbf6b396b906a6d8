"""Who may ask the admin API: admins for everything, a tenant for what is its own to read."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from ..errors import Forbidden, InvalidKey
from ..keys import digest_of
from ..records import ApiKey
from ..stores.base import TenantStore


class Caller(NamedTuple):
    """Who asks. ``tenant`` is the one tenant that it may read; ``None`` for an admin, who may do all.

    ``name`` is what an adjustment is signed with: ``admin`` for the key of the settings, else a key's id.
    """

    tenant: str | None
    name: str


class Access:
    """Finds out who asks.

    Args:
        admin_key: The key of the settings; ``None`` where there is none.
        tenants: Opens the store of tenants and keys.
    """

    def __init__(self, admin_key: str | None, tenants: Callable[[], Awaitable[TenantStore]]) -> None:
        self._digest = hashlib.sha256(admin_key.encode()).digest() if admin_key else None
        self._tenants = tenants

    async def caller(self, shown: list[bytes], now: float) -> Caller:
        """Who shows these ``Authorization`` headers. Raises InvalidKey, Forbidden, StoreError.

        Without a key in the settings the API is open to stored admin keys only: to all others it is closed, tenants
        included, and says so.
        """
        kind, _, key = shown[0].partition(b" ") if len(shown) == 1 else (b"", b"", b"")
        return await self.holder(key.strip() if kind.lower() == b"bearer" else b"", now)

    async def holder(self, key: bytes, now: float) -> Caller:
        """Whose key this is. Raises as ``caller`` does."""
        return await self.known(self.digest(key), now, at_store=digest_of(key) is not None)

    @staticmethod
    def digest(key: bytes) -> bytes:
        """What a key is known by."""
        return hashlib.sha256(key).digest()

    async def known(self, sha256: bytes, now: float, *, at_store: bool = True) -> Caller:
        """Whose key has this digest; ``at_store``: the store may have it. Raises as ``caller`` does."""
        # Digests are compared, in constant time: how long it takes tells nothing of the key.
        if self._digest is not None and hmac.compare_digest(sha256, self._digest):
            return Caller(None, "admin")
        digest = sha256.hex() if at_store else None
        if digest is not None:
            store = await self._tenants()
            stored = await store.admin_key(digest)
            if stored is not None and not _ended(stored, now):
                return Caller(None, stored.id)
        if self._digest is None:
            raise Forbidden(
                "The admin API is closed. Set GATEWAY_ADMIN_KEY (at least 32 characters) to open it, or make an admin "
                "key: python -m asgi_llm_gateway keys create --admin.",
                code="admin_disabled",
            )
        identity = None if digest is None else await store.identify(digest)
        if identity is None or identity.key is None or _ended(identity.key, now):
            raise InvalidKey
        if not identity.tenant.enabled:
            raise Forbidden("The tenant is disabled.", code="tenant_disabled")
        return Caller(identity.tenant.id, identity.key.id)


def refuse_tenant() -> Forbidden:
    """The one refusal for all that a tenant's key may not do, whether what it asks for exists or not."""
    return Forbidden(
        "A tenant's key may read its own tenant, statistics, records, adjustments and traces, and nothing else here."
    )


def _ended(key: ApiKey, now: float) -> bool:
    """A key whose end lies ahead (it is being rotated) is good until then."""
    return (key.revoked is not None and key.revoked <= now) or (key.expires is not None and key.expires <= now)
