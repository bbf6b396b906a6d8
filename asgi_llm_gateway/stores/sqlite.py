"""The ledger in a SQLite file: the embedded default, for one machine and any number of its processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Literal

from ..errors import StoreError
from ..records import About, Adjustment, Amount, Balance, CallRecord, Hold, Limit, Refusal
from . import _sqlite_rows as rows
from ._batch import PATIENCE
from ._sqlite_file import SQLiteFile, Synchronous
from ._sqlite_writer import Sweep, Writer
from .book import Book

Lapsed = Literal["charge", "release"]


class SQLiteLedger:
    """Money in a SQLite file. What arrives in one turn of the event loop is one transaction (group commit).

    One object serves one event loop of one process; several objects and processes may share the file, and take turns.
    The file is opened, and its tables are made, on first use; after a fork the child opens it anew.

    Args:
        path: The database; its folder must be there. Beside it appear ``-wal`` and ``-shm`` (SQLite's own), ``.turn`` and
            ``.next`` (who writes next). It must be on a disk of this machine: SQLite's log does not work over a network.
        synchronous: ``NORMAL``: what was acknowledged outlives the death of any process, but a power cut or a crash of
            the operating system may lose the last moments (as far back as the last checkpoint), never half a call.
            ``FULL``: it outlives those too, as far as the disk keeps its word; each batch waits for the disk (some ms).
        lapsed: What becomes of holds that nobody settled: ``charge`` them whole, or ``release`` them. See Ledger.sweep.
        patience: Seconds that a caller waits before StoreError; the verb is carried out all the same when it can be.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "NORMAL",
        lapsed: Lapsed = "charge",
        patience: float = PATIENCE,
    ) -> None:
        if synchronous not in ("NORMAL", "FULL"):
            raise ValueError("synchronous is NORMAL or FULL")
        if lapsed not in ("charge", "release"):
            raise ValueError("lapsed is charge or release")
        self._path = os.path.abspath(os.fspath(path))  # where the process goes later does not matter
        if "?" in self._path or os.path.basename(self._path) in ("", ":memory:"):
            raise ValueError("path must name a file, without a '?'")
        self._synchronous: Synchronous = synchronous
        self._charge = lapsed == "charge"
        self._patience = patience
        self._own: Writer | None = None
        self._closed = False

    @property
    def _writer(self) -> Writer:
        writer, loop = self._own, asyncio.get_running_loop()
        if writer is None or writer.loop is not loop or writer.pid != os.getpid():
            writer = self._own = self._new_writer(writer)
        return writer

    def _new_writer(self, old: Writer | None) -> Writer:
        if self._closed:
            raise StoreError("the ledger is closed")
        if old is not None and old.pid == os.getpid():
            if not old.loop.is_closed():
                raise StoreError("a SQLiteLedger serves one event loop; make one for each")
            old.drop()
        file = SQLiteFile(self._path, synchronous=self._synchronous, prepare=self._prepare)
        # With FULL each commit waits for the disk, and the loop must not.
        return Writer(file, charge=self._charge, thread_only=self._synchronous == "FULL", patience=self._patience)

    def _prepare(self) -> None:
        from .migrate import ensure

        ensure("sqlite:///" + self._path)

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
        writer = self._writer
        writer.clock = now
        accounts = [(tenant, account, window) for account, window, _, _ in limits]
        args = (tenant, hold_id, limits, least, wanted, now + ttl, about)
        held: Hold | Refusal = await writer.submit(rows.Verb(Book.hold, args, hold_id, accounts))
        return held

    async def raise_hold(self, hold: Hold, amount: Amount, *, limits: tuple[Limit, ...]) -> Hold | Refusal:
        """See Ledger."""
        verb = rows.Verb(Book.raise_hold, (hold, amount, limits), hold.id)
        raised: Hold | Refusal = await self._writer.submit(verb)
        return raised

    async def renew(self, hold: Hold, *, now: float, ttl: float) -> bool:
        """See Ledger."""
        writer = self._writer
        writer.clock = now
        renewed: bool = await writer.submit(rows.Verb(Book.renew, (hold, now + ttl), hold.id))
        return renewed

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger."""
        settled: bool = await self._writer.submit(rows.Verb(Book.settle, (hold, record), hold.id))
        return settled

    async def release(self, hold: Hold) -> bool:
        """See Ledger."""
        released: bool = await self._writer.submit(rows.Verb(Book.release, (hold,), hold.id))
        return released

    async def sweep(self, now: float, *, charge: bool = True) -> int:
        """See Ledger. Done in transactions of 500 holds each, so that others get their turn in between."""
        ended: int = await self._writer.submit(Sweep(now, charge))
        return ended

    async def balance(self, tenant: str, account: str = "", window: int = 0) -> Balance:
        """See Ledger."""
        key = (tenant, account, window)
        balance: Balance = await self._writer.submit(rows.Verb(rows.look, (key,), None, (key,), True))
        return balance

    async def adjust(self, adjustment: Adjustment) -> bool:
        """See Ledger."""
        accounts = ((adjustment.tenant, "", adjustment.window),)
        adjusted: bool = await self._writer.submit(rows.Verb(rows.adjust, (adjustment,), None, accounts))
        return adjusted

    async def archive(self, calls: Sequence[tuple[Hold, CallRecord]]) -> None:
        """See Archive."""
        accounts = [(hold.tenant, account, window) for hold, _ in calls for account, window in hold.accounts]
        await self._writer.submit(rows.Verb(rows.archive, (calls,), None, accounts))

    async def close(self) -> None:
        """See Ledger. What waits is carried out first, if the database is free within GRACE seconds."""
        self._closed = True
        writer, self._own = self._own, None
        if writer is not None and writer.pid == os.getpid():
            if writer.loop is asyncio.get_running_loop():
                await writer.close()
            else:
                writer.drop()
