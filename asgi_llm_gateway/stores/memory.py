"""A store in memory: for tests, and for one process that may forget."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from ..records import ApiKey, Balance, CallRecord, Hold, Identity, Tenant


class MemoryTenants:
    """Tenants and keys in dictionaries."""

    def __init__(self) -> None:
        self._tenants: dict[str, Tenant] = {}
        self._keys: dict[str, ApiKey] = {}  # by digest

    async def identify(self, digest: str) -> Identity | None:
        """See TenantStore."""
        key = self._keys.get(digest)
        tenant = self._tenants.get(key.tenant) if key is not None else None
        return Identity(tenant, key) if tenant is not None else None

    async def tenant(self, tenant_id: str) -> Tenant | None:
        """See TenantStore."""
        return self._tenants.get(tenant_id)

    async def tenants(self) -> Sequence[Tenant]:
        """See TenantStore."""
        return sorted(self._tenants.values(), key=lambda tenant: tenant.id)

    async def add_tenant(self, tenant: Tenant) -> bool:
        """See TenantStore."""
        return self._tenants.setdefault(tenant.id, tenant) is tenant

    async def put_tenant(self, tenant: Tenant) -> None:
        """See TenantStore."""
        self._tenants[tenant.id] = tenant

    async def add_key(self, key: ApiKey) -> None:
        """See TenantStore."""
        self._keys.setdefault(key.digest, key)

    async def keys(self, tenant_id: str) -> Sequence[ApiKey]:
        """See TenantStore."""
        return sorted((key for key in self._keys.values() if key.tenant == tenant_id), key=lambda key: key.created)

    async def revoke_key(self, key_id: str, now: float) -> bool:
        """See TenantStore."""
        for digest, key in self._keys.items():
            if key.id == key_id:
                if key.revoked is None:
                    self._keys[digest] = replace(key, revoked=now)
                return True
        return False

    async def close(self) -> None:
        """See TenantStore."""


class MemoryLedger:
    """Money in dictionaries. Threads and event loops may share one; processes cannot.

    Args:
        records: How many call records are kept; the oldest are forgotten first.
    """

    def __init__(self, *, records: int = 10_000) -> None:
        self._lock = threading.Lock()  # never held across an await
        self._spent: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._holds: dict[str, Hold] = {}
        self._records: deque[CallRecord] = deque(maxlen=records)

    async def hold(
        self, tenant: str, *, hold_id: str, least: int, wanted: int, limit: int | None, now: float, ttl: float
    ) -> Hold | None:
        """See Ledger."""
        with self._lock:
            if hold_id in self._holds:
                return self._holds[hold_id]
            held = self._held.get(tenant, 0)
            if limit is not None:
                room = limit - self._spent.get(tenant, 0) - held
                if room < least:
                    return None
                wanted = min(wanted, room)
            hold = Hold(hold_id, tenant, wanted, now + ttl)
            self._holds[hold.id] = hold
            self._held[tenant] = held + wanted
            return hold

    async def raise_hold(self, hold: Hold, amount: int, *, limit: int | None) -> Hold | None:
        """See Ledger."""
        with self._lock:
            current = self._holds.get(hold.id)
            if current is None:
                return None
            if amount <= current.amount:
                return current
            held = self._held[hold.tenant] + amount - current.amount
            if limit is not None and self._spent.get(hold.tenant, 0) + held > limit:
                return None
            raised = current._replace(amount=amount)
            self._holds[hold.id] = raised
            self._held[hold.tenant] = held
            return raised

    async def renew(self, hold: Hold, *, now: float, ttl: float) -> Hold:
        """See Ledger."""
        with self._lock:
            current = self._holds.get(hold.id)
            if current is None:
                return hold
            renewed = self._holds[hold.id] = current._replace(expires=now + ttl)
            return renewed

    async def settle(self, hold: Hold, cost: int, record: CallRecord | None = None) -> bool:
        """See Ledger."""
        with self._lock:
            if not self._end(hold):
                return False
            self._spent[hold.tenant] = self._spent.get(hold.tenant, 0) + cost
            if record is not None:
                self._records.append(record)
            return True

    async def release(self, hold: Hold) -> bool:
        """See Ledger."""
        with self._lock:
            return self._end(hold)

    def _end(self, hold: Hold) -> bool:
        current = self._holds.pop(hold.id, None)
        if current is None:
            return False
        self._held[hold.tenant] -= current.amount
        return True

    async def sweep(self, now: float) -> int:
        """See Ledger."""
        with self._lock:
            lapsed = [hold for hold in self._holds.values() if hold.expires <= now]
            for hold in lapsed:
                self._end(hold)
                self._spent[hold.tenant] = self._spent.get(hold.tenant, 0) + hold.amount
            return len(lapsed)

    async def balance(self, tenant: str) -> Balance:
        """See Ledger."""
        with self._lock:
            return Balance(self._spent.get(tenant, 0), self._held.get(tenant, 0))

    async def records(self, tenant: str, *, limit: int = 100) -> Sequence[CallRecord]:
        """See CallLog."""
        with self._lock:
            return list(itertools.islice((one for one in reversed(self._records) if one.tenant == tenant), limit))


class MemoryStore(MemoryTenants, MemoryLedger):
    """Everything in memory."""

    def __init__(self) -> None:
        MemoryTenants.__init__(self)
        MemoryLedger.__init__(self)
