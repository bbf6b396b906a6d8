"""Traces in SQL: written by a thread of their own (see traces.writer), read through SQLAlchemy, off the event loop.

Percentiles are worked out by the database: each is the time of a real call (nearest rank). Where more than SAMPLE calls are
in the range, it takes every second, third, ... of them, by their numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .._closing import on_close
from .._perloop import PerLoop
from ..errors import StoreError
from ..records import TraceRecord
from ..traces.base import Bucket, Group, Spread, Trace, TracePage, TraceQuery, What, buckets_of
from ..traces.writer import GRACE, Rows, TraceWriter
from ._database import engine, sqlite_path
from ._traces_rows import trace_from
from .cursors import cursor_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

FLUSH = 2.0
"""Seconds that a reader waits until what this process has queued is written; then it gets what there is."""

SAMPLE = 100_000
"""Calls of which percentiles are made."""


class SQLTraces:
    """The TraceStore of a database. One object serves all event loops and threads of a process.

    Args:
        url: Gives ``sqlite:///file`` or ``postgresql://...``, also with a driver, when it is first used. Raises StoreError.
        queue: Calls that wait to be written; of more, the oldest are lost.
        flush_seconds: Seconds after which a call is written: what is lost, at most, when the process is killed.
        retention: Seconds for which a call is kept.
        max_rows: Calls that are kept, of all processes together.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        url: Callable[[], str],
        *,
        queue: int = 10_000,
        flush_seconds: float = 1.0,
        retention: float = 72 * 3600.0,
        max_rows: int = 1_000_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = url
        self._retention = retention
        self._max_rows = max_rows
        self._clock = clock
        self._writer = TraceWriter(self._rows, most=queue, every=flush_seconds)
        self._engines: PerLoop[AsyncEngine] = PerLoop()
        self._joined: PerLoop[bool] = PerLoop()

    @property
    def lost(self) -> int:
        """Calls of this process that were not kept: see TraceWriter."""
        return self._writer.lost

    def add(self, record: TraceRecord) -> None:
        """See TraceSink."""
        self._writer.add(record)
        try:
            if self._joined.get() is None:
                self._join()
        except RuntimeError:  # no event loop runs here: the end of the process is told
            pass

    def _join(self) -> None:
        self._joined.put(True)
        on_close(self.close)

    def _rows(self) -> Rows:
        """Who writes the table. Called in the writer's thread."""
        url = self._url()
        path = sqlite_path(url)
        if path is not None:
            from ._traces_sqlite import SQLiteRows

            path = os.path.abspath(path)
            return SQLiteRows(path, retention=self._retention, max_rows=self._max_rows, clock=self._clock)
        try:
            from ._traces_pg import PostgresRows
        except ModuleNotFoundError as error:
            raise StoreError(str(error)) from None
        return PostgresRows(url, retention=self._retention, max_rows=self._max_rows, clock=self._clock)

    # -- reading -------------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """See TraceStore. Waits for FLUSH seconds at most."""
        try:
            async with asyncio.timeout(FLUSH):
                await asyncio.wrap_future(self._writer.flush())
        except TimeoutError:
            raise StoreError(f"traces could not be written within {FLUSH:g} s") from None

    async def _read(self, query: Any) -> Sequence[Any]:
        """The rows of a query, this process's own included. Raises StoreError."""
        found = self._engines.get()
        if found is None:
            found = await self._open()
        with contextlib.suppress(StoreError):  # what is there is better than nothing; one that is away says so below
            await self.flush()
        import sqlalchemy as sa

        try:
            async with found.connect() as connection:
                rows: Sequence[Any] = (await connection.execute(query)).all()
                return rows
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise StoreError(f"the database did not answer: {type(error).__name__}") from error

    async def _open(self) -> AsyncEngine:
        from .migrate import ensure

        url = self._url()
        try:
            await asyncio.to_thread(ensure, url)  # nothing may have been written yet
            found = self._engines.get()
            if found is None:  # others may have come meanwhile
                found = self._engines.put(engine(url))
                on_close(self._leave)
        except ModuleNotFoundError as error:
            raise StoreError(str(error)) from None
        return found

    def _oldest(self, since: float | None = None) -> float:
        """From when on calls are shown: what is to be deleted is gone already."""
        oldest = self._clock() - self._retention
        return oldest if since is None else max(since, oldest)

    async def recent(self, query: TraceQuery = TraceQuery()) -> TracePage:  # noqa: B008 - a constant
        """See TraceStore. The order is by ``started``, and by ``seq`` where that is equal."""
        from . import _traces_queries as queries

        limit = max(1, query.limit)
        wanted = query._replace(limit=limit + 1, since=self._oldest(query.since))
        page = [trace_from(row) for row in await self._read(queries.page(wanted))]
        more = len(page) > limit
        page = page[:limit]
        return TracePage(page, cursor_of(page[-1].started, page[-1].seq) if more else None)

    async def find(self, id: str, *, tenant: str | None = None) -> Sequence[Trace]:
        """See TraceStore."""
        from . import _traces_queries as queries

        rows = await self._read(queries.of_a_trace(id, tenant, self._oldest()))
        return [trace_from(row) for row in reversed(rows)]

    async def series(self, *, since: float, until: float, step: float, tenant: str | None = None) -> Sequence[Bucket]:
        """See TraceStore."""
        from . import _traces_queries as queries

        count = buckets_of(since, until, step)
        within = queries.Range(self._oldest(since), until, tenant)
        bucket = queries.bucket(since, step, count)
        sums = {row[0]: queries.sums_from(row) for row in await self._read(queries.sums(bucket, within))}
        spreads = await self._spreads(bucket, within, sum(one.calls for one in sums.values()))
        return [
            Bucket(
                since + at * step,
                sums.get(at, queries.NOTHING),
                spreads["duration"].get(at, Spread()),
                spreads["first_byte"].get(at, Spread()),
            )
            for at in range(count)
        ]

    async def by(self, what: What, *, since: float, until: float, tenant: str | None = None) -> Sequence[Group]:
        """See TraceStore."""
        from . import _traces_queries as queries

        within = queries.Range(self._oldest(since), until, tenant)
        column = queries.named(what)
        sums = {row[0]: queries.sums_from(row) for row in await self._read(queries.greatest(column, within))}
        total = sum(one.calls for one in sums.values())
        spreads = await self._spreads(column, within._replace(only=(column, tuple(sums))), total)
        return [
            Group(name, one, spreads["duration"].get(name, Spread()), spreads["first_byte"].get(name, Spread()))
            for name, one in sums.items()
        ]

    async def _spreads(self, group: Any, within: Any, calls: int) -> dict[str, dict[Any, Spread]]:
        """The percentiles of each group, of how long calls took and of the time to their first byte."""
        from . import _traces_queries as queries

        every = -(-calls // SAMPLE)
        found: dict[str, dict[Any, Spread]] = {}
        for name in ("duration", "first_byte"):
            rows = await self._read(queries.ranked(group, name, within, every)) if calls else ()
            found[name] = queries.spreads_from(rows)
        return found

    # -- the end -------------------------------------------------------------------------------------------------------

    async def _leave(self) -> None:
        """This event loop reads no more."""
        found = self._engines.pop()
        if found is not None:
            await found.dispose()

    async def close(self) -> None:
        """See TraceStore. Waits for GRACE seconds at most; a later call opens all of it anew."""
        self._joined.pop()
        await asyncio.to_thread(self._writer.end, GRACE)
        await self._leave()


__all__ = ["FLUSH", "SAMPLE", "SQLTraces"]
