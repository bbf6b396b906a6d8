"""Traces written to a SQLite file: in turn with the ledger, in transactions too short for anybody to wait for."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..tracelog import Packed
from ._sqlite_file import PAGES, SQLiteFile
from ._traces_rows import COLUMNS, PRUNED, row_of

_INSERT = f"INSERT INTO traces ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - our own
_TOO_OLD = "DELETE FROM traces WHERE seq IN (SELECT seq FROM traces WHERE started < ? ORDER BY started, seq LIMIT ?)"
_OLDEST = "DELETE FROM traces WHERE seq IN (SELECT seq FROM traces ORDER BY started, seq LIMIT ?)"
_SPAN = "SELECT coalesce(max(seq) - min(seq) + 1, 0) FROM traces"
_COUNT = "SELECT count(*) FROM traces"
_SLICE = 25  # rows that are made in one go: about a quarter of a millisecond


class SQLiteRows:
    """The ``Rows`` of a SQLite file (see traces.writer), on a connection of its own.

    Args:
        path: The database.
        retention: Seconds after which a row is deleted.
        max_rows: Rows that stay.
        clock: Unix time in seconds.
    """

    most = 100  # about two milliseconds of writing, in which no call's money can be booked

    def __init__(self, path: str, *, retention: float, max_rows: int, clock: Callable[[], float]) -> None:
        self._path = path
        self._retention = retention
        self._max_rows = max_rows
        self._clock = clock
        self._file: SQLiteFile | None = None

    def write(self, calls: Sequence[Packed]) -> None:
        """See Rows."""
        rows: list[tuple[Any, ...]] = []
        for at in range(0, len(calls), _SLICE):
            rows += map(row_of, calls[at : at + _SLICE])
            time.sleep(0)  # the event loop wants the interpreter, too
        file = self._opened()
        if file.pages >= 2 * PAGES:
            file.checkpoint()  # now: it is our own commit that begins the log anew, and waits for the disk
        file.transaction(lambda db: db.executemany(_INSERT, rows), 5 + 2 * len(rows))

    def prune(self) -> bool:
        """See Rows."""
        done: bool = self._opened().transaction(self._prune, 5)
        if done and self._file is not None:
            self._file.pages += 2 * PRUNED
        return done

    def _prune(self, db: sqlite3.Connection) -> bool:
        if db.execute(_TOO_OLD, (self._clock() - self._retention, PRUNED)).rowcount >= PRUNED:
            return True
        # Numbers that were never used are counted too; the rows themselves only where there may be too many.
        if db.execute(_SPAN).fetchone()[0] <= self._max_rows:
            return False
        above: int = db.execute(_COUNT).fetchone()[0] - self._max_rows
        if above > 0:
            db.execute(_OLDEST, (min(above, PRUNED),))
        return above > PRUNED

    def _opened(self) -> SQLiteFile:
        if self._file is None:
            self._file = SQLiteFile(self._path, synchronous="NORMAL", prepare=self._prepare)
        return self._file

    def _prepare(self) -> None:
        from .migrate import ensure

        ensure("sqlite:///" + self._path)

    def close(self) -> None:
        """See Rows."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


__all__ = ["SQLiteRows"]
