"""Sessions that ended before their time, for all workers: in memory, or in SQL (SQLite, PostgreSQL).

A session of the dashboard is a signed token and kept nowhere. Only one that was signed out has a row, until it would have
ended by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class MemorySessions:
    """For one process."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    async def end(self, session: str, *, until: float, now: float) -> None:
        """See EndedSessions."""
        self._until = {one: end for one, end in self._until.items() if end > now}
        self._until[session] = until

    async def ended(self, session: str) -> bool:
        """See EndedSessions."""
        return session in self._until

    async def close(self) -> None:
        """See EndedSessions."""


class SQLSessions:
    """In a database whose tables are there (see ``migrate``).

    Args:
        url: A SQLAlchemy URL with an async driver: ``sqlite+aiosqlite:///...`` or ``postgresql+asyncpg://...``.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._own: AsyncEngine | None = None

    async def _run(self, statement: Any) -> Any:
        """A statement's first row, in a transaction. Raises StoreError without the URL in it."""
        import sqlalchemy as sa

        from ._database import engine

        if self._own is None:
            self._own = engine(self._url)
        try:
            async with self._own.begin() as connection:
                done = await connection.execute(statement)
                return done.first() if done.returns_rows else None
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise StoreError(f"the database did not answer: {type(error).__name__}") from error

    async def end(self, session: str, *, until: float, now: float) -> None:
        """See EndedSessions."""
        import sqlalchemy as sa

        from .tables import ENDED_SESSIONS

        await self._run(sa.delete(ENDED_SESSIONS).where(ENDED_SESSIONS.c.until <= now))
        if not await self.ended(session):
            try:
                await self._run(sa.insert(ENDED_SESSIONS).values(id=session, until=until))
            except StoreError:
                if not await self.ended(session):  # else another worker was faster
                    raise

    async def ended(self, session: str) -> bool:
        """See EndedSessions."""
        import sqlalchemy as sa

        from .tables import ENDED_SESSIONS

        return await self._run(sa.select(ENDED_SESSIONS.c.id).where(ENDED_SESSIONS.c.id == session)) is not None

    async def close(self) -> None:
        """See EndedSessions."""
        if self._own is not None:
            await self._own.dispose()
