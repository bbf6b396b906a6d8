"""The ledger in PostgreSQL: what many processes and machines share, exact to the last nano-USD.

Operations that arrive together are one transaction, on one connection: it locks the rows that they are about, does their sums
in a Book, and writes what changed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from ..errors import StoreError
from ..records import About, Adjustment, Amount, Balance, CallRecord, Hold, Limit, Refusal
from . import _pg_book as rows
from ._batch import PATIENCE, Batches, Job
from ._database import postgresql_dsn
from ._pg_lane import BAD_VALUES, CONFLICTS, Lane, Lost
from .base import KEEP_LAPSED
from .book import AccountKey, Book

CHUNK = 500
"""Lapsed holds that one transaction ends."""

SWEEP_EVERY = 15.0
"""Seconds after which a batch first ends what has lapsed, so that it is swept wherever calls come."""

_TRIES = 5
_MOST_KNOWN = 100_000  # accounts of which we remember that they have a row

Apply = Callable[[Book, "_Past"], Any]


class _Past:
    """What the database has of holds and adjustments that are done with.

    ``unsure`` are holds which an attempt of unknown outcome was about: where their row is gone, it was this attempt that
    ended them.
    """

    __slots__ = ("notes", "records", "unsure")

    def __init__(self) -> None:
        self.notes: set[str] = set()
        self.records: dict[str, CallRecord] = {}
        self.unsure: set[str] = set()

    def settled(self, hold_id: str) -> bool:
        """The first attempt settled it; the first to ask is told so."""
        record = self.records.get(hold_id)
        return self._take(hold_id) and record is not None and not record.lapsed

    def released(self, hold_id: str) -> bool:
        """The first attempt released it; the first to ask is told so."""
        return self._take(hold_id) and hold_id not in self.records

    def _take(self, hold_id: str) -> bool:
        there = hold_id in self.unsure
        self.unsure.discard(hold_id)
        return there


class _Op:
    """One verb: which rows it is about, and what it does to them."""

    __slots__ = ("apply", "archived", "fresh", "ids", "keys", "note", "now")

    def __init__(
        self,
        apply: Apply,
        *,
        ids: Sequence[str] = (),
        keys: Iterable[AccountKey] = (),
        fresh: bool = False,
        archived: Sequence[str] = (),
        note: str | None = None,
        now: float | None = None,
    ) -> None:
        self.apply = apply
        self.ids = ids
        self.keys = keys
        self.fresh = fresh  # the hold of ids is to be made: a row of it there is found out by the insert
        self.archived = archived
        self.note = note
        self.now = now


class PostgresLedger:
    """Money in a PostgreSQL database whose tables are there (see ``migrate``). One object belongs to one event loop.

    It keeps two connections: one for the verbs, in their order, and one for what is only read.

    Args:
        dsn: ``postgresql://user:password@host/name``, also with a driver (``+asyncpg``), with libpq's parameters.
        patience: Seconds that a caller waits for the database.
        lapsed: What happens to a hold that nobody came back for: ``charge`` it whole, or ``release`` it.
    """

    def __init__(
        self, dsn: str, *, patience: float = PATIENCE, lapsed: Literal["charge", "release"] = "charge"
    ) -> None:
        where = postgresql_dsn(dsn)
        self._patience = patience
        self._charge = lapsed == "charge"
        self._writes = Lane(where, patience)
        self._reads = Lane(where, patience)
        self._batches: Batches[_Op] | None = None
        self._made: set[AccountKey] = set()
        self._next_sweep = 0.0
        # An attempt whose connection broke may be at work on the server still. The next one waits here until it has ended,
        # and then sees all of it or nothing.
        fence = secrets.randbits(62)
        self._begin = f"begin isolation level read committed; select pg_advisory_xact_lock({fence})"

    # -- the verbs -----------------------------------------------------------------------------------------------------

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

        def apply(book: Book, _past: _Past) -> Hold | Refusal:
            return book.hold(tenant, hold_id, limits, least, wanted, now + ttl, about)

        keys = [(tenant, limit[0], limit[1]) for limit in limits]
        held: Hold | Refusal = await self._do(_Op(apply, ids=(hold_id,), keys=keys, fresh=True, now=now))
        return held

    async def raise_hold(self, hold: Hold, amount: Amount, *, limits: tuple[Limit, ...]) -> Hold | Refusal:
        """See Ledger."""
        op = _Op(lambda book, _: book.raise_hold(hold, amount, limits), ids=(hold.id,))
        raised: Hold | Refusal = await self._do(op)
        return raised

    async def renew(self, hold: Hold, *, now: float, ttl: float) -> bool:
        """See Ledger."""
        return bool(await self._do(_Op(lambda book, _: book.renew(hold, now + ttl), ids=(hold.id,), now=now)))

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger."""
        return bool(
            await self._do(_Op(lambda book, past: book.settle(hold, record) or past.settled(hold.id), ids=(hold.id,)))
        )

    async def release(self, hold: Hold) -> bool:
        """See Ledger."""
        return bool(
            await self._do(_Op(lambda book, past: book.release(hold) or past.released(hold.id), ids=(hold.id,)))
        )

    async def adjust(self, adjustment: Adjustment) -> bool:
        """See Ledger."""

        def apply(book: Book, past: _Past) -> bool:
            if adjustment.id in past.notes:
                return False
            past.notes.add(adjustment.id)
            book.adjust(adjustment)
            return True

        keys = [(adjustment.tenant, "", adjustment.window)]
        return bool(await self._do(_Op(apply, keys=keys, note=adjustment.id)))

    async def archive(self, calls: Sequence[tuple[Hold, CallRecord]]) -> None:
        """See Archive."""
        for at in range(0, len(calls), CHUNK):
            await self._do(_archive(calls[at : at + CHUNK]))

    async def balance(self, tenant: str, account: str = "", window: int = 0) -> Balance:
        """See Ledger."""
        row = await self._read(lambda connection: connection.fetchrow(rows.BALANCE, tenant, account, window))
        return Balance() if row is None else Balance(*row)

    async def sweep(self, now: float, *, charge: bool = True) -> int:
        """See Ledger. In chunks, so that calls are let in between."""
        ended = 0
        while True:
            ids = await self._expired(now)
            if ids:
                ended += await self._do(_lapse(ids, now, charge))
            if len(ids) < CHUNK:
                break
        while await self._forget(now) >= CHUNK:
            pass
        return ended

    async def close(self) -> None:
        """See Ledger."""
        batches, self._batches = self._batches, None
        if batches is not None:
            await batches.close()
        await self._writes.close()
        await self._reads.close()

    # -- batches -------------------------------------------------------------------------------------------------------

    async def _do(self, op: _Op) -> Any:
        if self._batches is None:
            self._batches = Batches(self._run, patience=self._patience)
        return await self._batches.submit(op)

    async def _run(self, jobs: list[Job[_Op]]) -> None:
        await self._sweep_now_and_then(jobs)
        try:
            results = await self._twice([job.work for job in jobs])
        except BAD_VALUES:
            if len(jobs) == 1:
                raise  # as the StoreError that Batches makes of it
            for job in jobs:  # one at a time, so that it fails nobody but the one that asked for it
                await self._run_alone(job)
            return
        for job, result in zip(jobs, results, strict=True):
            job.done(result)

    async def _run_alone(self, job: Job[_Op]) -> None:
        try:
            job.done((await self._twice([job.work]))[0])
        except BAD_VALUES as error:
            job.failed(StoreError(f"PostgreSQL cannot keep this: {type(error).__name__}"))

    async def _twice(self, ops: list[_Op]) -> list[Any]:
        """Carry out operations; where the connection breaks, once more on a fresh one."""
        try:
            return await self._writes.run(lambda connection: self._attempt(connection, ops, unsure=False))
        except Lost:
            pass
        try:
            return await self._writes.run(lambda connection: self._attempt(connection, ops, unsure=True))
        except Lost as error:
            raise StoreError(f"PostgreSQL went away: {type(error.__cause__).__name__}") from error

    async def _attempt(self, connection: Any, ops: list[_Op], *, unsure: bool) -> list[Any]:
        careful = unsure
        for _ in range(_TRIES):
            try:
                results = await self._transaction(connection, ops, careful=careful, unsure=unsure)
            except CONFLICTS:
                results = None
            if results is not None:
                return results
            await connection.execute("rollback")
            self._made.clear()
            careful = True
        raise StoreError(f"PostgreSQL let others go first {_TRIES} times")

    async def _transaction(self, connection: Any, ops: list[_Op], *, careful: bool, unsure: bool) -> list[Any] | None:
        """All operations, committed; ``None`` where an account that had a row has none.

        Args:
            careful: Look whether holds that are to be made are there, rather than leave it to the insert.
            unsure: An earlier attempt may have been committed.
        """
        book, past = Book(), _Past()
        keys = {key for op in ops for key in op.keys}
        ids = {hold_id for op in ops if careful or not op.fresh for hold_id in op.ids}
        await connection.execute(self._begin)
        new = keys - self._made
        if new:
            await rows.make_balances(connection, new)
        if ids:
            keys |= await rows.lock_holds(connection, book, ids)
        loaded = set(book.holds)
        if keys and not await rows.lock_balances(connection, book, keys):
            return None
        # Only behind the locks: whoever books the same call or the same adjustment has the same account, and is done now.
        past.unsure = ids - loaded if unsure else set()
        looked = past.unsure.union(*(op.archived for op in ops))
        if looked:
            past.records = await rows.recorded(connection, looked)
        notes = [op.note for op in ops if op.note is not None]
        if notes:
            past.notes = {row[0] for row in await connection.fetch(rows.NOTED, notes)}
        results = [op.apply(book, past) for op in ops]
        if not careful:
            refused = [
                op.ids[0] for op, result in zip(ops, results, strict=True) if op.fresh and isinstance(result, Refusal)
            ]
            if refused and await connection.fetchval("select 1 from holds where id = any($1) limit 1", refused):
                return None  # one that was granted before is asked for again: no insert has told so
        await rows.save(connection, book, loaded)
        await connection.execute("commit")
        if len(self._made) > _MOST_KNOWN:
            self._made.clear()
        self._made |= keys
        return results

    # -- what lapsed ---------------------------------------------------------------------------------------------------

    async def _sweep_now_and_then(self, jobs: list[Job[_Op]]) -> None:
        """End a chunk of what has lapsed, if it is time to; the batch that comes behind it finds the room."""
        now = next((job.work.now for job in jobs if job.work.now is not None), None)
        clock = asyncio.get_running_loop().time()
        if now is None or clock < self._next_sweep:
            return
        self._next_sweep = clock + SWEEP_EVERY
        try:
            ids = await self._expired(now)
            if ids:
                await self._twice([_lapse(ids, now, self._charge)])
            if len(ids) == CHUNK:
                self._next_sweep = clock  # there is more: the next batch goes on
            await self._forget(now)
        except (StoreError, *BAD_VALUES):
            return  # the batch will say what is the matter

    async def _expired(self, now: float) -> list[str]:
        found = await self._read(lambda connection: connection.fetch(rows.EXPIRED, now, CHUNK))
        return [row[0] for row in found]

    async def _forget(self, now: float) -> int:
        """Delete a chunk of the lapsed holds that no settle will come for."""
        done = await self._read(lambda connection: connection.execute(rows.FORGET, now - KEEP_LAPSED, CHUNK))
        return int(done.rpartition(" ")[2])

    async def _read(self, work: Callable[[Any], Any]) -> Any:
        """What may be done twice, done once more where the connection had broken."""
        for last in (False, True):
            try:
                return await self._reads.run(work)
            except Lost as error:
                if last:
                    raise StoreError(f"PostgreSQL went away: {type(error.__cause__).__name__}") from error
            except BAD_VALUES as error:
                raise StoreError(f"PostgreSQL cannot keep this: {type(error).__name__}") from error
        raise AssertionError("unreachable")


def _lapse(ids: list[str], now: float, charge: bool) -> _Op:
    """End these holds, but for those that were ended or renewed since they were looked up."""

    def apply(book: Book, _past: _Past) -> int:
        ended = [
            hold_id
            for hold_id in ids
            if (kept := book.holds.get(hold_id)) is not None and not kept.lapsed and kept.hold.expires <= now
        ]
        for hold_id in ended:
            book.lapse(hold_id, charge=charge)
        return len(ended)

    return _Op(apply, ids=ids)


def _archive(calls: Sequence[tuple[Hold, CallRecord]]) -> _Op:
    def apply(book: Book, past: _Past) -> None:
        for hold, record in calls:
            book.archive(hold, record, book.records.get(hold.id) or past.records.get(hold.id))

    keys = [(hold.tenant, account, window) for hold, _ in calls for account, window in hold.accounts]
    return _Op(apply, keys=keys, archived=[hold.id for hold, _ in calls])
