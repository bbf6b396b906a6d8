"""Traces written to PostgreSQL, by a thread with a connection and an event loop of its own."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

try:
    import asyncpg  # type: ignore[import-untyped]
except ImportError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError("PostgreSQL needs: pip install 'asgi-llm-gateway[sql]'", name=error.name) from None

from ..errors import StoreError
from ..tracelog import Packed
from ._database import postgresql_dsn
from ._pg_lane import Lane, Lost
from ._traces_rows import COLUMNS, PRUNED, row_of

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that one batch may take, connecting included."""

_TYPES = {
    "started": "float8", "duration": "float8", "first_byte": "float8", "status": "int4", "attempts": "int4",
    "tokens_in": "int8", "tokens_out": "int8", "tokens_cached": "int8", "cost": "int8", "saved": "int8",
    "stream": "bool", "aborted": "bool",
}  # fmt: skip
_VALUES = ", ".join(f"${at}::{_TYPES.get(name, 'text')}" for at, name in enumerate(COLUMNS, 1))
_INSERT = f"insert into traces ({', '.join(COLUMNS)}) select {_VALUES}"
# Of a batch whose outcome nobody knows: those that are there were all written by it.
_INSERT_ONCE = (
    f"{_INSERT} where not exists (select from traces where trace_id = $1 and request_id = $2 and started = $3)"
)
_TOO_OLD = (
    "delete from traces where seq in (select seq from traces where started < $1 order by started, seq limit $2 "
    "for update skip locked)"
)
_OLDEST = (
    "delete from traces where seq in (select seq from traces order by started, seq limit $1 for update skip locked)"
)
_SPAN = "select coalesce(max(seq) - min(seq) + 1, 0) from traces"
_COUNT = "select count(*) from traces"
_SLICE = 25  # as in _traces_sqlite


class PostgresRows:
    """The ``Rows`` of a PostgreSQL database (see traces.writer) whose tables are there (see ``migrate``).

    Args:
        url: See PostgresLedger.
        retention: Seconds after which a row is deleted.
        max_rows: Rows that stay.
        clock: Unix time in seconds.
    """

    most = 500

    def __init__(self, url: str, *, retention: float, max_rows: int, clock: Callable[[], float]) -> None:
        self._dsn = postgresql_dsn(url)
        self._retention = retention
        self._max_rows = max_rows
        self._clock = clock
        self._runner: asyncio.Runner | None = None
        self._lane: Lane | None = None
        self._unsure = False
        # An attempt whose connection broke may be at work on the server still: the next one waits for its end here.
        fence = secrets.randbits(62)
        self._begin = f"begin isolation level read committed; select pg_advisory_xact_lock({fence})"

    def write(self, calls: Sequence[Packed]) -> None:
        """See Rows."""
        rows: list[tuple[Any, ...]] = []
        for at in range(0, len(calls), _SLICE):
            rows += map(row_of, calls[at : at + _SLICE])
            time.sleep(0)
        statement = _INSERT_ONCE if self._unsure else _INSERT

        async def insert(connection: Any) -> None:
            await connection.execute(self._begin)
            await connection.executemany(statement, rows)
            await connection.execute("commit")

        self._unsure = True  # until we know
        self._run(insert)
        self._unsure = False

    def prune(self) -> bool:
        """See Rows."""

        async def delete(connection: Any) -> bool:
            done = await connection.execute(_TOO_OLD, self._clock() - self._retention, PRUNED)
            if int(done.rpartition(" ")[2]) >= PRUNED:
                return True
            if await connection.fetchval(_SPAN) <= self._max_rows:
                return False
            above: int = await connection.fetchval(_COUNT) - self._max_rows
            if above > 0:
                await connection.execute(_OLDEST, min(above, PRUNED))
            return above > PRUNED

        return self._run(delete)

    def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        if self._runner is None or self._lane is None:
            self._runner, self._lane = asyncio.Runner(), Lane(self._dsn, PATIENCE)
        try:
            return self._runner.run(self._lane.run(work))
        except Lost as error:
            raise StoreError(f"PostgreSQL went away: {type(error.__cause__).__name__}") from error
        except StoreError as error:
            if isinstance(error.__cause__, asyncpg.IntegrityConstraintViolationError):  # the row's fault, for ever
                raise ValueError(type(error.__cause__).__name__) from error
            raise
        except RuntimeError as error:  # no thread to look a name up any more: the interpreter ends
            raise StoreError(f"PostgreSQL cannot be reached: {type(error).__name__}") from error

    def close(self) -> None:
        """See Rows."""
        runner, lane = self._runner, self._lane
        self._runner = self._lane = None
        if runner is not None and lane is not None:
            try:
                runner.run(lane.close())
            finally:
                runner.close()


__all__ = ["PostgresRows"]
