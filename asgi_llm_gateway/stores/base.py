"""What a store must be able to do. One behavioural suite runs over every backend.

All verbs raise StoreError where the backend cannot be reached; the caller then decided nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ..records import ApiKey, Balance, CallRecord, Hold, Identity, Tenant


@runtime_checkable
class TenantStore(Protocol):
    """Tenants and their keys. A secret never reaches it: keys come and are found by the SHA-256 of it."""

    async def identify(self, digest: str) -> Identity | None:
        """The key with that digest and its tenant, also where revoked, expired or disabled; ``None`` if there is none."""
        ...

    async def tenant(self, tenant_id: str) -> Tenant | None:
        """The tenant with that id."""
        ...

    async def tenants(self) -> Sequence[Tenant]:
        """All tenants, by id."""
        ...

    async def add_tenant(self, tenant: Tenant) -> bool:
        """Keep a new tenant; False where the id is taken."""
        ...

    async def put_tenant(self, tenant: Tenant) -> None:
        """Keep a tenant, in the place of one with the same id."""
        ...

    async def add_key(self, key: ApiKey) -> None:
        """Keep a new key. A key whose digest is kept already is left as it is."""
        ...

    async def keys(self, tenant_id: str) -> Sequence[ApiKey]:
        """A tenant's keys, oldest first, revoked ones too."""
        ...

    async def revoke_key(self, key_id: str, now: float) -> bool:
        """End a key; False where there is none of that id. Revoking twice keeps the first time."""
        ...

    async def close(self) -> None:
        """Give back what the store holds open."""
        ...


@runtime_checkable
class Ledger(Protocol):
    """Money in nano-USD. Each verb is one atomic step at the store; ``now`` is Unix seconds, given by the caller."""

    async def hold(
        self, tenant: str, *, hold_id: str, least: int, wanted: int, limit: int | None, now: float, ttl: float
    ) -> Hold | None:
        """Set aside ``wanted``, or what is left of ``limit`` if that is at least ``least``; ``None`` if it is not.

        Idempotent by ``hold_id``, which the caller makes (``new_hold_id``): whoever lost the answer can release it.
        """
        ...

    async def raise_hold(self, hold: Hold, amount: int, *, limit: int | None) -> Hold | None:
        """Raise a hold to ``amount``; ``None``, and the hold as it was, where that would pass ``limit``."""
        ...

    async def renew(self, hold: Hold, *, now: float, ttl: float) -> Hold:
        """Let a hold live on until ``now + ttl``."""
        ...

    async def settle(self, hold: Hold, cost: int, record: CallRecord | None = None) -> bool:
        """End a hold and book ``cost`` and the record, in one step. Idempotent: False where the hold had ended."""
        ...

    async def release(self, hold: Hold) -> bool:
        """End a hold and book nothing: no call went out. Idempotent: False where the hold had ended."""
        ...

    async def sweep(self, now: float) -> int:
        """End the holds that lapsed before ``now``, charged whole (their process died); how many there were."""
        ...

    async def balance(self, tenant: str) -> Balance:
        """What a tenant spent and has on hold."""
        ...


class CallLog(Protocol):
    """The records of calls."""

    async def records(self, tenant: str, *, limit: int = 100) -> Sequence[CallRecord]:
        """A tenant's records, newest first."""
        ...


class Store(TenantStore, Ledger, CallLog, Protocol):
    """All of it: what the settings name."""
