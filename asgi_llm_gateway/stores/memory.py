"""A store in memory: for tests, and for one process that may forget."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from ..records import (
    About,
    Adjustment,
    Amount,
    ApiKey,
    Balance,
    CallRecord,
    Hold,
    Identity,
    Limit,
    Refusal,
    Stats,
    Tenant,
    Usage,
)
from .base import KEEP_LAPSED, Course, Page, Spend
from .book import Book, Entry


class MemoryTenants:
    """Tenants and keys in dictionaries."""

    def __init__(self) -> None:
        self._tenants: dict[str, Tenant] = {}
        self._keys: dict[str, ApiKey] = {}  # by digest

    async def identify(self, digest: str) -> Identity | None:
        """See TenantStore."""
        key = self._keys.get(digest)
        tenant = self._tenants.get(key.tenant) if key is not None and key.kind == "tenant" else None
        return Identity(tenant, key) if tenant is not None else None

    async def admin_key(self, digest: str) -> ApiKey | None:
        """See TenantStore."""
        key = self._keys.get(digest)
        return key if key is not None and key.kind == "admin" else None

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

    async def drop_tenant(self, tenant_id: str, now: float) -> bool:
        """See TenantStore."""
        if self._tenants.pop(tenant_id, None) is None:
            return False
        for key in await self.keys(tenant_id):
            await self.revoke_key(key.id, now)
        return True

    async def add_key(self, key: ApiKey) -> None:
        """See TenantStore."""
        self._keys.setdefault(key.digest, key)

    async def keys(self, tenant_id: str) -> Sequence[ApiKey]:
        """See TenantStore."""
        lasting = [key for key in self._keys.values() if key.tenant == tenant_id and key.kind != "ephemeral"]
        return sorted(lasting, key=lambda key: key.created)

    async def client_secret(self, digest: str) -> ApiKey | None:
        """See ClientSecrets."""
        key = self._keys.get(digest)
        return key if key is not None and key.kind == "ephemeral" else None

    async def add_client_secret(self, key: ApiKey, now: float) -> None:
        """See ClientSecrets."""
        for digest, old in list(self._keys.items()):
            if old.kind == "ephemeral" and old.expires is not None and old.expires <= now:
                del self._keys[digest]
        self._keys[key.digest] = key

    async def revoke_key(self, key_id: str, now: float) -> bool:
        """See TenantStore."""
        for digest, key in self._keys.items():
            if key.id == key_id:
                if key.revoked is None or now < key.revoked:
                    self._keys[digest] = replace(key, revoked=now)
                return True
        return False

    async def close(self) -> None:
        """See TenantStore."""


class _Records(OrderedDict[str, Any]):
    """Records by hold, kept as plain tuples of plain values, which the garbage collector leaves alone (see TraceLog)."""

    def __setitem__(self, hold: str, record: CallRecord) -> None:
        super().__setitem__(hold, (*record[:_USAGE], *record.usage, *record[_USAGE + 1 :]))

    def all(self) -> list[CallRecord]:
        """All of them, in the order of their settling."""
        after = _USAGE + len(Usage._fields)
        return [CallRecord._make((*row[:_USAGE], Usage(*row[_USAGE:after]), *row[after:])) for row in self.values()]


_USAGE = CallRecord._fields.index("usage")


class MemoryLedger:
    """Money in dictionaries. Threads and event loops may share one; processes cannot.

    Args:
        records: How many call records are kept; the oldest are forgotten first.
    """

    def __init__(self, *, records: int = 2_000) -> None:
        self._lock = threading.Lock()  # never held across an await
        self._book = Book()
        self._most = records
        # What the book would have a store write it keeps itself, for good: records by hold, in the order of their settling.
        self._records = self._book.records = _Records()
        self._sums = self._book.sums
        self._notes: dict[str, Adjustment] = {}

    def _keep(self) -> None:
        """After a verb that booked something."""
        book = self._book
        while len(self._records) > self._most:
            self._records.popitem(last=False)
        if book.notes:
            self._notes.update((note.id, note) for note in book.notes)
            book.notes.clear()
        book.touched.clear()
        book.changed.clear()

    async def hold(
        self,
        tenant: str,
        *,
        hold_id: str,
        limits: tuple[Limit, ...],
        least: Amount,
        wanted: Amount,
        now: float,
        ttl: float,
        about: About = About(),  # noqa: B008 - a constant
    ) -> Hold | Refusal:
        """See Ledger."""
        with self._lock:
            # Nothing is to be written: what changed is forgotten when the call is settled.
            return self._book.hold(tenant, hold_id, limits, least, wanted, now + ttl, about)

    async def raise_hold(self, hold: Hold, amount: Amount, *, limits: tuple[Limit, ...]) -> Hold | Refusal:
        """See Ledger."""
        with self._lock:
            return self._book.raise_hold(hold, amount, limits)

    async def renew(self, hold: Hold, *, now: float, ttl: float) -> bool:
        """See Ledger."""
        with self._lock:
            return self._book.renew(hold, now + ttl)

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger."""
        with self._lock:
            settled = self._book.settle(hold, record)
            self._keep()
            return settled

    async def release(self, hold: Hold) -> bool:
        """See Ledger."""
        with self._lock:
            released = self._book.release(hold)
            self._keep()
            return released

    async def sweep(self, now: float, *, charge: bool = True) -> int:
        """See Ledger."""
        with self._lock:
            ended = [kept for kept in self._book.holds.values() if kept.hold.expires <= now]
            for kept in ended:
                if not kept.lapsed:
                    self._book.lapse(kept.hold.id, charge=charge)
                elif kept.hold.expires <= now - KEEP_LAPSED:
                    self._book.forget(kept.hold.id)
            self._keep()
            return sum(not kept.lapsed for kept in ended)

    async def balance(self, tenant: str, account: str = "", window: int = 0) -> Balance:
        """See Ledger."""
        with self._lock:
            return self._book.entries.get((tenant, account, window), _EMPTY).balance()

    async def adjust(self, adjustment: Adjustment) -> bool:
        """See Ledger."""
        with self._lock:
            if adjustment.id in self._notes:
                return False
            self._book.adjust(adjustment)
            self._keep()
            return True

    async def adjustments(self, tenant: str, *, limit: int = 100) -> Sequence[Adjustment]:
        """See Ledger."""
        with self._lock:
            return [note for note in reversed(self._notes.values()) if note.tenant == tenant][:limit]

    async def records(
        self,
        tenant: str,
        *,
        limit: int = 100,
        cursor: str | None = None,
        since: float | None = None,
        until: float | None = None,
        model: str | None = None,
    ) -> Page:
        """See CallLog. The cursor is the place in the order, counted from the oldest."""
        with self._lock:
            rows = [record for record in self._records.all() if record.tenant == tenant]
        end = len(rows)
        if cursor is not None:
            if not cursor.isdecimal() or len(cursor) > 12:
                raise ValueError("no cursor of this list")
            end = min(int(cursor), end)
        found: list[CallRecord] = []
        while end > 0 and len(found) < limit:
            end -= 1
            record = rows[end]
            if (
                (since is None or record.started >= since)
                and (until is None or record.started < until)
                and (model is None or record.model == model)
            ):
                found.append(record)
        return Page(found, str(end) if end else None)

    async def stats(self, *, tenant: str | None = None, since: float | None = None) -> Stats:
        """See CallLog."""
        with self._lock:
            if since is None:
                rows = [self._sums.get(tenant, Stats())] if tenant is not None else list(self._sums.values())
                return Stats(*(sum(column) for column in zip(*rows, strict=True))) if rows else Stats()
            found = [
                record
                for record in self._records.all()
                if (tenant is None or record.tenant == tenant) and record.started >= since
            ]
        return _sums_of(found)

    async def spend(self, *, since: float, until: float, step: float, tenant: str | None = None) -> Spend:
        """See CallLog. Over the records that are kept."""
        with self._lock:
            rows = self._records.all()
        over_time: dict[int, list[CallRecord]] = {}
        by_model: dict[tuple[str, str | None], list[CallRecord]] = {}
        for record in rows:
            if since <= record.started < until and (tenant is None or record.tenant == tenant):
                over_time.setdefault(int((record.started - since) / step), []).append(record)
                by_model.setdefault((record.tenant, record.model), []).append(record)
        return Spend(
            [(at, _sums_of(found)) for at, found in sorted(over_time.items())],
            [(owner, model, _sums_of(found)) for (owner, model), found in by_model.items()],
        )

    async def course(
        self, by: Literal["model", "tenant"], *, since: float, until: float, step: float, tenant: str | None = None,
        most: int = 5,
    ) -> Course:  # fmt: skip
        """See CallLog. Over the records that are kept."""
        with self._lock:
            rows = self._records.all()
        found: dict[str | None, list[CallRecord]] = {}
        for record in rows:
            if since <= record.started < until and (tenant is None or record.tenant == tenant):
                found.setdefault(getattr(record, by), []).append(record)
        dearest = sorted(found, key=lambda name: (-sum(one.cost for one in found[name]), -len(found[name]), name or ""))
        parts: dict[tuple[int, int], list[CallRecord]] = {}
        for place, name in enumerate(dearest):
            for record in found[name]:
                parts.setdefault((min(place, most), int((record.started - since) / step)), []).append(record)
        return Course(dearest[:most], [(*at, _sums_of(parts[at])) for at in sorted(parts)])

    async def close(self) -> None:
        """See Ledger."""


_EMPTY = Entry()


def _sums_of(found: Sequence[CallRecord]) -> Stats:
    return Stats(
        len(found),
        sum(record.usage.prompt for record in found),
        sum(record.usage.completion for record in found),
        sum(record.cost for record in found),
    )


class MemoryStore(MemoryTenants, MemoryLedger):
    """Everything in memory."""

    def __init__(self) -> None:
        MemoryTenants.__init__(self)
        MemoryLedger.__init__(self)

    async def close(self) -> None:
        """See TenantStore."""
