"""One SQLite file as the ledger writes to it: opened, written to at once or in turn, swept, checkpointed.

Nothing here knows an event loop. ``attempt`` never waits for another writer; all else may, and runs in a thread. At most
one of them runs at a time, except ``checkpoint``, which has a connection of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar
from weakref import WeakSet

from ..errors import StoreError
from . import _sqlite_rows as rows
from ._sqlite_turn import Turn

log = logging.getLogger("asgi_llm_gateway")

R = TypeVar("R")

Synchronous = Literal["NORMAL", "FULL"]

PAGES = 1000
"""Pages in the write-ahead log, as far as we can guess, after which it is copied to the database (SQLite's own number)."""

MANY_PAGES = 4 * PAGES
"""From so many on (16 MB) writers wait while the rest is copied: only then does SQLite begin the log anew. Without it the
log grew by 250 MB a second under full load."""

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
# What is wrong with the file, not with what was to be written.
_FILE_FAULTS = (sqlite3.OperationalError, sqlite3.DatabaseError, sqlite3.InternalError)


class Closing(Exception):
    """Given up, since the ledger is closed."""


class SQLiteFile:
    """The file, its connection, and its turn.

    Args:
        path: The database.
        synchronous: SQLite's setting.
        prepare: Makes or checks the tables; called before the file is opened. Raises StoreError.
    """

    def __init__(self, path: str, *, synchronous: Synchronous, prepare: Callable[[], None]) -> None:
        self.path = path
        self.pages = 0  # written since the last checkpoint, guessed
        self.restarts = False  # the next commit begins the log anew, and waits for the disk
        self.give_up = False  # the ledger is closed, and has waited long enough
        self._synchronous = synchronous
        self._prepare = prepare
        self._db: sqlite3.Connection | None = None
        self._turn: Turn | None = None
        self._copier: sqlite3.Connection | None = None
        # Closing a connection that is at work is the end of the process.
        self._using = threading.Lock()
        self._copying = threading.Lock()
        self._held: list[threading.Lock] = []  # for the time of a fork
        _files.add(self)

    @property
    def ready(self) -> bool:
        """It is open."""
        return self._db is not None

    def attempt(self, verbs: Sequence[rows.Verb]) -> list[Any] | None:
        """Carry a batch out now; ``None`` where another one is writing, or waits to."""
        reading, turn = _only_read(verbs), self._turn
        if turn is None or (not reading and not turn.take()):
            return None
        try:
            with self._using:
                return None if self._db is None or self.give_up else self._write(self._db, verbs)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in _BUSY:
                return None
            raise
        finally:
            if not reading:
                turn.give()

    def carry_out(self, verbs: Sequence[rows.Verb]) -> list[Any]:
        """Carry a batch out, however long that takes. The answers; a StoreError for each verb that failed."""
        try:
            return self._in_turn(lambda db: self._write(db, verbs))
        except Exception as error:  # sqlite3's own, and Python's for what can't be stored; ``_told`` names them
            told = self._told(error)
            # What can't be stored (a number over 64 bits) fails alone, and not whoever happens to come with it.
            if len(verbs) == 1 or isinstance(error, StoreError | OSError | Closing) or type(error) in _FILE_FAULTS:
                return [told] * len(verbs)
        return [self.carry_out([verb])[0] for verb in verbs]

    def sweep(self, now: float, charge: bool, *, whole: bool) -> int:
        """End what lapsed before ``now``: all of it, or a chunk. How many there were. Raises StoreError."""
        ended, more = 0, True
        try:
            while more:
                count, more = self._in_turn(lambda db: self._within(db, lambda: rows.sweep(db, now, charge)))
                ended += count
                self.pages += 5 + 3 * count
                more = more and whole
        except Exception as error:  # as above
            raise self._told(error) from error
        return ended

    def transaction(self, work: Callable[[sqlite3.Connection], R], pages: int) -> R:
        """One transaction that is no batch of the ledger's, when it is our turn; it writes about so many pages.

        Raises StoreError where the file is to blame, and as it is what SQLite says of a value that it can't keep.
        """
        try:
            done = self._in_turn(lambda db: self._within(db, lambda: work(db)))
        except Exception as error:  # the driver's and the file system's are told as the store's; all others go on
            if isinstance(error, StoreError | OSError | Closing) or type(error) in _FILE_FAULTS:
                raise self._told(error) from error
            raise
        self.pages += pages
        return done

    def checkpoint(self) -> None:
        """Copy the write-ahead log to the database, beside the writing; from MANY_PAGES on nobody writes meanwhile."""
        self.pages = 0
        with self._copying:
            self._copy()

    def _copy(self) -> None:
        if self.give_up:
            return
        try:
            if self._copier is None:
                self._copier = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
                self._copier.execute("PRAGMA wal_autocheckpoint = 0")
            _, pages, copied = self._copier.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages > MANY_PAGES:  # "copied" says only that all is copied that was there at the beginning
                turn = Turn(self.path)
                turn.wait()
                try:
                    _, pages, copied = self._copier.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                finally:
                    turn.give()
                    turn.close()
            self.restarts = 0 < pages == copied
        except sqlite3.Error as error:
            log.warning("the write-ahead log of %s could not be copied: %s", self.path, error)

    def close(self) -> None:
        """Close it for good; the last one to close a database copies its log."""
        self.give_up = True
        self._close_copier()
        self._reset()

    def before_fork(self) -> None:
        """Close the connections, and let nobody open one until ``after_fork``.

        SQLite keeps account of its file locks in the process, and the child has a copy of that account, not of the locks.
        A connection that the child opens while there is one in its account locks nothing, and calls get lost (seen).
        """
        self._held = [lock for lock in (self._copying, self._using) if lock.acquire(timeout=5.0)]
        if len(self._held) == 2:
            for db in (self._copier, self._db):
                if db is not None:
                    with contextlib.suppress(sqlite3.Error):
                        db.close()
            self._copier = self._db = None

    def after_fork(self) -> None:
        """Go on, in the parent."""
        for lock in self._held:
            lock.release()
        self._held = []

    # ------------------------------------------------------------------------------------------------------------------

    def _write(self, db: sqlite3.Connection, verbs: Sequence[rows.Verb]) -> list[Any]:
        if _only_read(verbs):
            return rows.carry_out(db, verbs)
        # As measured, a commit writes 5 pages and 2 for each verb.
        self.pages += 5 + 2 * len(verbs)
        return self._within(db, lambda: rows.carry_out(db, verbs))

    def _within(self, db: sqlite3.Connection, work: Callable[[], R]) -> R:
        db.execute("BEGIN IMMEDIATE")
        try:
            done = work()
            db.execute("COMMIT")
        except BaseException:  # no transaction stays open, whatever ended it
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self.restarts = False
        return done

    def _in_turn(self, work: Callable[[sqlite3.Connection], R]) -> R:
        """Work when it is our turn, and nobody else who knows of no turns (a shell, a migration) is writing."""
        self._check()
        if self._turn is None or (self._db is None and not self._turn.real):
            self._turn = Turn(self.path)
        pause = 0.0005
        self._turn.wait()
        try:
            while True:
                self._check()
                try:
                    with self._using:
                        return work(self._db or self._open())
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF not in _BUSY:
                        raise
                time.sleep(pause)
                pause = min(pause * 2, 0.02)
        finally:
            self._turn.give()

    def _check(self) -> None:
        if self.give_up:
            raise Closing("the ledger was closed before the database was free")

    def _open(self) -> sqlite3.Connection:
        self._prepare()
        db = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA synchronous = {self._synchronous}")
            db.execute("PRAGMA wal_autocheckpoint = 0")
            db.execute("PRAGMA secure_delete = OFF")  # some builds overwrite deleted rows; ours hold no secret
        except BaseException:  # no file stays open, whatever ended it
            db.close()
            raise
        self._db = db
        return db

    def _told(self, error: Exception) -> StoreError:
        """What callers are told. After a fault of the file it is opened anew: it may have been repaired or replaced."""
        if isinstance(error, StoreError):
            return error
        if type(error) in _FILE_FAULTS:
            self._reset()
        if isinstance(error, sqlite3.Error | OSError | Closing):
            return StoreError(f"SQLite ledger {self.path}: {error}")
        return StoreError(f"SQLite ledger {self.path}: {type(error).__name__}: {error}")

    def _reset(self) -> None:
        with self._using:
            db, self._db = self._db, None
            if db is not None:
                with contextlib.suppress(sqlite3.Error):
                    db.close()
        if self.give_up and self._turn is not None:
            self._turn.close()

    def _close_copier(self) -> None:
        with self._copying:
            copier, self._copier = self._copier, None
            if copier is not None:
                with contextlib.suppress(sqlite3.Error):
                    copier.close()


def _only_read(verbs: Sequence[rows.Verb]) -> bool:
    return all(verb.reads for verb in verbs)


_files: WeakSet[SQLiteFile] = WeakSet()


def _before_fork() -> None:
    for file in list(_files):
        file.before_fork()


def _after_fork() -> None:
    for file in list(_files):
        file.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_files.clear)
