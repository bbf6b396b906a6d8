"""One connection to PostgreSQL that is opened on first use, given up on any doubt, and opened anew by the next who needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

try:
    import asyncpg  # type: ignore[import-untyped]
except ImportError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError("PostgreSQL needs: pip install 'asgi-llm-gateway[sql]'", name=error.name) from None

from ..errors import StoreError
from ._database import Dsn

T = TypeVar("T")

CONFLICTS = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.UniqueViolationError,  # a row that another made between our look and our insert
)
"""What the same transaction, tried again, does not meet again."""

# asyncpg tells a value that a column can't hold in one of these ways, before or after it went to the server.
BAD_VALUES = (asyncpg.DataError, ValueError, TypeError, OverflowError)
"""The fault is in what was asked, not in the database."""

_BROKEN = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionError,
)


class Lost(Exception):
    """The connection broke while it was used: whether the last statement was carried out, nobody knows."""


class Lane:
    """One connection, one user at a time.

    Args:
        dsn: The database.
        patience: Seconds that one use may take, connecting included; then the connection is given up.
    """

    def __init__(self, dsn: Dsn, patience: float) -> None:
        self._dsn = dsn
        self._patience = patience
        self._lock = asyncio.Lock()
        self._connection: Any = None

    async def run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """What ``work`` makes of the connection.

        Raises Lost where it broke, one of BAD_VALUES as it is, and StoreError where the database could not be reached, did
        not answer in time, or refused.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(self._patience):
                    connection = self._connection
                    if connection is None or connection.is_closed():
                        connection = self._connection = await self._open()
                    return await work(connection)
            except BaseException as error:  # cancelled, too
                # Whatever it was, a transaction may be open there, or an answer be on its way.
                self.drop()
                if isinstance(error, (TimeoutError, asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError)):
                    raise StoreError(f"PostgreSQL gave no answer within {self._patience:g} s") from error
                if isinstance(error, BAD_VALUES):
                    raise
                if isinstance(error, _BROKEN):
                    raise Lost from error
                if isinstance(error, asyncpg.PostgresError):
                    raise StoreError(f"PostgreSQL refused: {type(error).__name__}") from error
                raise

    async def _open(self) -> Any:
        try:
            connection = await asyncpg.connect(self._dsn.url, timeout=min(self._dsn.timeout, self._patience))
            # A gateway that hangs in the middle of a transaction must not keep the others from its accounts.
            limit = max(1, round(self._patience * 1000))  # milliseconds
            await connection.execute(
                f"set statement_timeout = {limit}; set lock_timeout = {limit}; "
                f"set idle_in_transaction_session_timeout = {2 * limit}; set jit = off"
            )
        except TimeoutError:
            raise
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
            raise StoreError(f"PostgreSQL cannot be reached: {type(error).__name__}") from error
        return connection

    def drop(self) -> None:
        """Give the connection up at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """Say goodbye to the server."""
        async with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                try:
                    await connection.close(timeout=self._patience)
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    connection.terminate()
