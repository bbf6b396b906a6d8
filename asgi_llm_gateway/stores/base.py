"""What a store must be able to do. One behavioural suite runs over every backend.

All verbs raise StoreError where the backend cannot be reached or does not answer in time; the caller then knows nothing,
and repeats the verb or undoes it by the hold's id: every verb of the ledger may be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

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
)

KEEP_LAPSED = 7 * 86400.0
"""Seconds for which a lapsed hold is kept for a settle that comes late."""


@runtime_checkable
class TenantStore(Protocol):
    """Tenants and their keys. A secret never reaches it: keys come and are found by the SHA-256 of it."""

    async def identify(self, digest: str) -> Identity | None:
        """The tenant's key with that digest and its tenant, also where revoked, expired or disabled; ``None`` for none."""
        ...

    async def admin_key(self, digest: str) -> ApiKey | None:
        """The admin key with that digest, also where revoked or expired; ``None`` for none."""
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

    async def drop_tenant(self, tenant_id: str, now: float) -> bool:
        """Forget a tenant and revoke its keys, in one step; its records stay. False where there is none."""
        ...

    async def add_key(self, key: ApiKey) -> None:
        """Keep a new key. A key whose digest is kept already is left as it is."""
        ...

    async def keys(self, tenant_id: str) -> Sequence[ApiKey]:
        """A tenant's keys, oldest first, revoked ones too; the admin keys for the empty id."""
        ...

    async def revoke_key(self, key_id: str, now: float) -> bool:
        """End a key at ``now`` (which may lie ahead); False where there is none of that id.

        Revoking again keeps the earlier time.
        """
        ...

    async def close(self) -> None:
        """Give back what the store holds open."""
        ...


@runtime_checkable
class ClientSecrets(Protocol):
    """Short-lived keys that open realtime sessions, beside the tenants' own; ``TenantStore.keys`` does not list them."""

    async def client_secret(self, digest: str) -> ApiKey | None:
        """The key of kind ``ephemeral`` with that digest, also where it has expired; ``None`` for none."""
        ...

    async def add_client_secret(self, key: ApiKey, now: float) -> None:
        """Keep one, and forget those that had expired by ``now`` (Unix seconds)."""
        ...


@runtime_checkable
class Ledger(Protocol):
    """Money in nano-USD, and tokens. Each verb is one atomic step at the store; ``now`` is Unix seconds, the caller's."""

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
        """Set aside ``wanted`` on all accounts of ``limits``, or on none.

        Where that does not fit, each measure is lowered to what does, but not below ``least``: then nothing is held, and
        the Refusal says which limit. Idempotent by ``hold_id``, which the caller makes (``new_hold_id``).
        """
        ...

    async def raise_hold(self, hold: Hold, amount: Amount, *, limits: tuple[Limit, ...]) -> Hold | Refusal:
        """Raise a hold to ``amount`` (never lower it); a Refusal, and the hold as it was, where that would pass a limit."""
        ...

    async def renew(self, hold: Hold, *, now: float, ttl: float) -> bool:
        """Let a hold live on until ``now + ttl``; False where it has ended or lapsed."""
        ...

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """End a hold, book the record's cost and tokens on its accounts and keep the record, in one step.

        Idempotent: False where the hold had been settled or released. A hold that had lapsed is charged the truth in the
        place of the whole. What the cost passes the hold by is noted in an ``overdraft`` row.
        """
        ...

    async def release(self, hold: Hold) -> bool:
        """End a hold and book nothing: no call went out. Idempotent: False where the hold had ended.

        Only the id and the tenant of ``hold`` matter: a caller that never learnt the outcome of ``hold`` gives those.
        """
        ...

    async def sweep(self, now: float, *, charge: bool = True) -> int:
        """End the holds that lapsed before ``now``, in as many steps as that takes; how many there were.

        A ledger may also do so by itself, when a call comes. They are charged whole and recorded as ``lapsed``; with
        ``charge=False`` they are released, and a late settle is charged on top of what was let in meanwhile.
        """
        ...

    async def balance(self, tenant: str, account: str = "", window: int = 0) -> Balance:
        """Where an account stands in a window."""
        ...

    async def adjust(self, adjustment: Adjustment) -> bool:
        """Book an operator's credit or debit on the tenant's account; False where one with that id was booked before."""
        ...

    async def close(self) -> None:
        """Give back what the store holds open. What was acknowledged is kept."""
        ...


class Page(NamedTuple):
    """Records, newest first, and where the next page begins; ``None`` at the end."""

    records: Sequence[CallRecord]
    next: str | None


class Spend(NamedTuple):
    """Sums over the records of one span of time, all of one moment: they agree with each other.

    Attributes:
        over_time: By the number of the bucket, in order; those with calls only. Bucket 0 begins at the span's begin.
        by_model: By tenant and by the model that was asked for (``None``: not known), in no order.
    """

    over_time: Sequence[tuple[int, Stats]]
    by_model: Sequence[tuple[str, str | None, Stats]]


class Course(NamedTuple):
    """Sums over time for each of the dearest models or tenants, all of one moment.

    Attributes:
        names: The dearest first; ``None``: calls of which it is not known.
        over_time: A place in ``names`` (one behind the last: all others together), the number of a bucket, and the sums of
            it; in that order, those with calls only.
    """

    names: Sequence[str | None]
    over_time: Sequence[tuple[int, int, Stats]]


class CallLog(Protocol):
    """The records of calls."""

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
        """A tenant's records, newest first, begun in [since, until). Raises ValueError for what is no cursor of ours."""
        ...

    async def stats(self, *, tenant: str | None = None, since: float | None = None) -> Stats:
        """Sums over the records of a tenant, or of all; of calls begun at or after ``since``, where given."""
        ...

    async def spend(self, *, since: float, until: float, step: float, tenant: str | None = None) -> Spend:
        """Sums over the records of a tenant, or of all, begun in [since, until): by ``step`` seconds and by model."""
        ...

    async def course(
        self, by: Literal["model", "tenant"], *, since: float, until: float, step: float, tenant: str | None = None,
        most: int = 5,
    ) -> Course:  # fmt: skip
        """As ``spend``, by ``step`` seconds for each of the ``most`` models or tenants that cost most, and for the others."""
        ...

    async def adjustments(self, tenant: str, *, limit: int = 100) -> Sequence[Adjustment]:
        """A tenant's adjustments and overdrafts, newest first."""
        ...

    async def close(self) -> None:
        """Give back what the log holds open."""
        ...


class EndedSessions(Protocol):
    """Sessions of the dashboard that were signed out before their end."""

    async def end(self, session: str, *, until: float, now: float) -> None:
        """Note that a session has ended, until ``until`` (Unix seconds); what was noted until ``now`` is forgotten."""
        ...

    async def ended(self, session: str) -> bool:
        """Whether it was noted."""
        ...

    async def close(self) -> None:
        """Give back what it holds open."""
        ...


class Archive(Protocol):
    """Where a ledger that may lose its data (Redis) has its records for good, and from where it starts again."""

    async def archive(self, calls: Sequence[tuple[Hold, CallRecord]]) -> None:
        """Book calls that were settled elsewhere; each once, however often it comes (see Book.archive)."""
        ...

    async def balance(self, tenant: str, account: str = "", window: int = 0) -> Balance:
        """See Ledger: what has been archived."""
        ...

    async def adjust(self, adjustment: Adjustment) -> bool:
        """See Ledger."""
        ...


class Books(Ledger, CallLog, Protocol):
    """The ledger and its records, which are booked in one step."""


class Store(TenantStore, Books, Protocol):
    """All of it."""
