"""The tables of a database, brought to what this version needs. Safe when many processes start at once.

SQLite is brought there by whoever opens it; PostgreSQL by an operator, with ``python -m asgi_llm_gateway migrate``.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import StoreError
from ._database import engine, postgresql_dsn, sqlite_path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: there BEGIN IMMEDIATE alone keeps migrations apart
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")

HEAD = "0005"
"""The revision that this version needs: known without Alembic, so that opening a database that has it loads nothing."""

COMMAND = "python -m asgi_llm_gateway migrate"

LOCK = 0x6177_6C67
"""A number of our own for PostgreSQL's advisory locks: one process migrates, the others wait and find it done."""

PATIENCE = 60.0
"""Seconds for which one process waits while another migrates."""

# proc(5), /proc/pid/mountinfo: the names of file systems that other machines share. SQLite's WAL keeps its index in memory
# that all who write must share, which no network gives ("Write-Ahead Logging", sqlite.org/wal.html, disadvantage 2).
_NETWORK = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ncpfs",
        "afs",
        "ceph",
        "glusterfs",
        "fuse.glusterfs",
        "fuse.sshfs",
        "lustre",
    )
)


def upgrade(url: str) -> None:
    """Bring a database to HEAD, whatever it was; a database of the development version keeps its rows.

    Args:
        url: ``sqlite:///file`` or ``postgresql://...``, also with a driver (``+aiosqlite``, ``+asyncpg``).

    Raises StoreError.
    """
    path = sqlite_path(url)
    if path is None:
        _run(lambda: _upgrade_postgresql(url))
        return
    _refuse_network(path)
    _upgrade_sqlite(path)


def ensure(url: str) -> None:
    """See to it that a database can be used: SQLite is upgraded where that is needed, PostgreSQL is looked at only.

    Raises StoreError, which says what to do.
    """
    path = sqlite_path(url)
    if path is None:
        _check(_run(lambda: _revision_postgresql(url)))
        return
    _refuse_network(path)
    if _state_sqlite(path) != (HEAD, "wal"):
        _upgrade_sqlite(path)


def _check(found: str | None) -> None:
    """PostgreSQL at HEAD, or a StoreError."""
    if found is None:
        raise StoreError(f"the database has no tables yet: run '{COMMAND}' once")
    if found > HEAD:
        raise StoreError(
            f"the database is at revision {found}, this version knows {HEAD} at most: upgrade asgi-llm-gateway"
        )
    if found != HEAD:
        raise StoreError(f"the database is at revision {found}, this version needs {HEAD}: run '{COMMAND}'")


# -- SQLite ------------------------------------------------------------------------------------------------------------


@contextmanager
def _sqlite(path: str) -> Iterator[sqlite3.Connection]:
    """A connection; what SQLite raises becomes a StoreError."""
    try:
        with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise StoreError(f"the database {path} cannot be used: {error}") from error


def _state_sqlite(path: str) -> tuple[str | None, str]:
    """A file's revision, and its journal mode."""
    with _sqlite(path) as connection:
        mode: str = connection.execute("pragma journal_mode").fetchone()[0]
        if connection.execute("select 1 from sqlite_master where name = 'alembic_version'").fetchone() is None:
            return None, mode
        row = connection.execute("select version_num from alembic_version").fetchone()
        return None if row is None else row[0], mode


def _upgrade_sqlite(path: str) -> None:
    with _locked(path):
        found, mode = _state_sqlite(path)  # again: another process may have been faster
        if mode != "wal":
            with _sqlite(path) as connection:
                connection.execute("pragma journal_mode=wal")
        if found != HEAD:
            _migrate_sqlite(path)


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """One process at a time, by a lock on a file beside the database; it goes with the process that has it."""
    if fcntl is None:  # pragma: no cover - Windows
        yield
        return
    try:
        file = Path(path + ".lock").open("a")  # noqa: SIM115 - it is closed below
    except OSError as error:
        raise StoreError(f"the database {path} cannot be made: {error.strerror}") from None
    end = time.monotonic() + PATIENCE
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > end:
                    raise StoreError(f"another process has been migrating {path} for {PATIENCE:g} s") from None
                time.sleep(0.02)
        yield


def _migrate_sqlite(path: str) -> None:
    sa = _sqlalchemy()
    made = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": PATIENCE})

    # The driver commits before each change of a table unless it is told to leave transactions alone (SQLAlchemy, "SQLite:
    # transactions with pysqlite"). With this a migration is all or nothing, wherever the process is killed.
    def leave_transactions_alone(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sa.event.listen(made, "connect", leave_transactions_alone)
    sa.event.listen(made, "begin", begin)
    try:
        with made.begin() as connection:
            _to_head(connection)
    except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
        raise StoreError(f"the database {path} cannot be migrated: {type(error).__name__}: {error}") from error
    finally:
        made.dispose()


def _refuse_network(path: str) -> None:
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace")
    except OSError:  # not Linux: nobody to ask
        return
    kind = network_file_system(Path(path).resolve(), mounts)
    if kind is not None:
        raise StoreError(
            f"{path} is on a network file system ({kind}); SQLite needs a local disk, use PostgreSQL for many machines"
        )


def network_file_system(path: Path, mounts: str) -> str | None:
    """The type of the file system that a path is on if machines share it, else ``None``.

    Args:
        mounts: What /proc/self/mountinfo says: proc(5), fields 5 (mount point) and, behind the ``-``, the type.
    """
    best, kind = -1, ""
    for line in mounts.splitlines():
        front, dash, back = line.partition(" - ")
        fields, types = front.split(" "), back.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = fields[4].encode().decode("unicode_escape").encode("latin-1", "replace").decode("utf-8", "replace")
        depth = len(Path(point).parts)
        if depth >= best and path.is_relative_to(point):  # of two on one point, the later covers the earlier
            best, kind = depth, types[0]
    return kind if kind in _NETWORK else None


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


async def _upgrade_postgresql(url: str) -> None:
    sa = _sqlalchemy()
    made = engine(url)
    try:
        async with made.begin() as connection:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            await connection.run_sync(_to_head)
    except (sa.exc.SQLAlchemyError, OSError) as error:
        raise StoreError(f"the database cannot be migrated: {type(error).__name__}") from error
    finally:
        await made.dispose()


async def _revision_postgresql(url: str) -> str | None:
    asyncpg = _asyncpg()
    dsn = postgresql_dsn(url)
    try:
        connection = await asyncpg.connect(dsn.url, timeout=dsn.timeout)
        try:
            found: str | None = await connection.fetchval("select version_num from alembic_version")
        finally:
            await connection.close()
    except asyncpg.UndefinedTableError:
        return None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        raise StoreError(f"the database did not answer: {type(error).__name__}") from error
    return found


def _run(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, from wherever: in a thread, where this one's event loop runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(lambda: asyncio.run(make())).result()


# -- Alembic -----------------------------------------------------------------------------------------------------------


def _to_head(connection: Connection) -> None:
    """Run the revisions that are missing, in the transaction that the connection is in."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreError(f"the database was made by another version of asgi-llm-gateway: {error}") from error


def _sqlalchemy() -> Any:
    try:
        import alembic  # noqa: F401 - so that a half-installed extra says so here
        import sqlalchemy
    except ImportError as error:
        raise StoreError(f"a database needs: pip install 'asgi-llm-gateway[sql]' (no {error.name})") from None
    return sqlalchemy


def _asyncpg() -> Any:
    try:
        import asyncpg  # type: ignore[import-untyped]
    except ImportError:
        raise StoreError("PostgreSQL needs: pip install 'asgi-llm-gateway[sql]'") from None
    return asyncpg
