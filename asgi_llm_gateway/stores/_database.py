"""A database's URL, as users and SQLAlchemy write it, read for each driver. Nothing heavy is imported to read one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from ..errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

CONNECT_TIMEOUT = 60.0
"""Seconds in which a connection must stand where the URL's ``connect_timeout`` says no other."""


class Dsn(NamedTuple):
    """What asyncpg is called with, which reads libpq's parameters (sslmode, application_name, ...) itself."""

    url: str
    timeout: float

    def __repr__(self) -> str:
        return "Dsn(...)"  # there may be a password in it


def sqlite_path(url: str) -> str | None:
    """The file that a ``sqlite[+driver]:///file`` URL names; ``None`` for another database. Raises StoreError."""
    scheme, _, rest = url.partition("://")
    if scheme.partition("+")[0].lower() != "sqlite":
        return None
    path = rest.partition("?")[0].removeprefix("/")
    if path in ("", ":memory:") or path.startswith("file:"):
        raise StoreError("a SQLite URL must name a file: sqlite:///file.db, or sqlite:////folder/file.db")
    return path


def postgresql_dsn(url: str) -> Dsn:
    """The database that a ``postgresql[+driver]://`` URL names. Raises StoreError."""
    parts = urlsplit(url)
    if parts.scheme.partition("+")[0].lower() not in ("postgresql", "postgres"):
        raise StoreError(f"'{parts.scheme}' is not supported; write sqlite:///... or postgresql://...")
    query = dict(parse_qsl(parts.query))
    query.pop("channel_binding", None)  # libpq's, and unknown to the driver
    try:
        timeout = float(query.pop("connect_timeout", 0)) or CONNECT_TIMEOUT  # asyncpg knows it by another name
    except ValueError:
        raise StoreError("connect_timeout is seconds: a number") from None
    return Dsn(parts._replace(scheme="postgresql", query=urlencode(query)).geturl(), timeout)


def engine(url: str, **options: Any) -> AsyncEngine:
    """A SQLAlchemy engine for a URL, over aiosqlite or asyncpg."""
    from sqlalchemy.ext.asyncio import create_async_engine

    if sqlite_path(url) is not None:
        return create_async_engine("sqlite+aiosqlite://" + url.partition("://")[2], **options)
    import asyncpg  # type: ignore[import-untyped]

    dsn = postgresql_dsn(url)
    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(dsn.url, timeout=dsn.timeout),
        pool_pre_ping=True,
        # A server takes 100 connections unless told otherwise (PostgreSQL, max_connections), and there are many workers.
        pool_size=2,
        max_overflow=3,
        **options,
    )
