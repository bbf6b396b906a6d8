"""The tables come to be: from nothing, from the development version's, by many processes at once; never on a network disk."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.records import ApiKey, Tenant
from asgi_llm_gateway.stores import _database, migrate
from asgi_llm_gateway.stores.migrate import ensure, network_file_system, upgrade
from asgi_llm_gateway.stores.sql import SQLTenants
from asgi_llm_gateway.stores.tables import METADATA

from ..servers import ROOT, free_port

# What the version without migrations made (its SQLAlchemy tables, as they came out).
OLD = """
CREATE TABLE tenants (
    id VARCHAR(64) NOT NULL, name VARCHAR(256) NOT NULL, budget BIGINT, enabled BOOLEAN NOT NULL,
    allowed_models TEXT, metadata TEXT NOT NULL, created FLOAT NOT NULL, PRIMARY KEY (id)
);
CREATE TABLE api_keys (
    id VARCHAR(64) NOT NULL, tenant VARCHAR(64) NOT NULL, digest VARCHAR(64) NOT NULL, name VARCHAR(256) NOT NULL,
    created FLOAT NOT NULL, expires FLOAT, revoked FLOAT, also_tenants TEXT NOT NULL, allowed_models TEXT,
    PRIMARY KEY (id), FOREIGN KEY(tenant) REFERENCES tenants (id), UNIQUE (digest)
);
CREATE INDEX ix_api_keys_tenant ON api_keys (tenant);
INSERT INTO tenants VALUES ('team', 'Team', 4611686018427387904, true, '["echo"]', '{"a": 1}', 12.5);
INSERT INTO api_keys VALUES ('key_1', 'team', 'd1', 'laptop', 1.5, 99.5, NULL, '["other"]', NULL);
INSERT INTO api_keys VALUES ('key_2', 'team', 'd2', '', 2.5, NULL, 7.0, '[]', '["echo"]');
"""


async def told(url: str, work: Any) -> Any:
    """What ``work`` finds with a plain connection."""
    engine = _database.engine(url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


async def old_database(url: str) -> None:
    """A database of the development version."""

    def make(connection: sa.Connection) -> None:
        for statement in OLD.split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)

    await told(url, make)


def differences(connection: sa.Connection) -> Any:
    """What Alembic would change to make the database what tables.py says."""
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return compare_metadata(context, METADATA)


def indexes(connection: sa.Connection) -> Any:
    """All of them, which Alembic compares by name."""
    look = sa.inspect(connection)
    return {(table, i["name"], *i["column_names"]) for table in look.get_table_names() for i in look.get_indexes(table)}


@pytest.mark.parametrize("old", [False, True], ids=["fresh", "old"])
async def test_a_migrated_database_is_what_the_tables_say(database_url: str, old: bool) -> None:
    """To the last type, default and index; from nothing, and from the development version."""
    if old:
        await old_database(database_url)
    upgrade(database_url)
    upgrade(database_url)
    ensure(database_url)
    assert await told(database_url, differences) == []
    wanted = {(t.name, i.name, *(c.name for c in i.columns)) for t in METADATA.tables.values() for i in t.indexes}
    assert wanted <= await told(database_url, indexes)
    assert await told(database_url, lambda connection: sa.inspect(connection).get_foreign_keys("api_keys")) == []


async def test_an_old_database_keeps_its_rows(database_url: str) -> None:
    """Tenants and keys are as they were, and what is new has its default; an admin's key, of no tenant, fits in."""
    await old_database(database_url)
    upgrade(database_url)
    store = SQLTenants(database_url)
    team = Tenant("team", "Team", 2**62, True, ("echo",), {"a": 1}, 12.5)
    first = ApiKey("key_1", "team", "d1", "laptop", 1.5, 99.5, None, ("other",), None)
    second = ApiKey("key_2", "team", "d2", "", 2.5, None, 7.0, (), ("echo",))
    assert list(await store.tenants()) == [team]
    assert list(await store.keys("team")) == [first, second]
    assert await store.identify("d1") == (team, first)
    admin = ApiKey("key_3", "", "d3", kind="admin")
    await store.add_key(admin)
    assert await store.admin_key("d3") == admin
    await store.close()


def test_the_revision_that_is_needed_is_the_last_one() -> None:
    """``HEAD``, which is known without Alembic, is what Alembic finds; and there is one line of revisions."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [migrate.HEAD]


def test_a_database_that_is_ready_is_opened_without_alembic(tmp_path: Path) -> None:
    """A worker's start imports neither Alembic nor SQLAlchemy for it."""
    url = f"sqlite:///{tmp_path}/gateway.db"
    ensure(url)
    code = f"""
import sys
from asgi_llm_gateway.stores.migrate import ensure
ensure({url!r})
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {{"alembic", "sqlalchemy", "asyncpg"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("old", [False, True], ids=["fresh", "old"])
def test_processes_that_start_together_all_succeed(database_url: str, old: bool) -> None:
    """Six at once on one database: one migrates, all find it done."""
    if old:
        asyncio.run(old_database(database_url))
    code = "import sys; from asgi_llm_gateway.stores import migrate; migrate.upgrade(sys.argv[1]); migrate.ensure(sys.argv[1])"
    started = [
        subprocess.Popen([sys.executable, "-c", code, database_url], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(6)
    ]
    ended = [(process.communicate(timeout=90)[1], process.returncode) for process in started]
    assert [code for _, code in ended] == [0] * 6, ended
    assert asyncio.run(told(database_url, differences)) == []


def test_sqlite_is_made_by_whoever_opens_it(tmp_path: Path) -> None:
    """Tables and WAL, by ``ensure`` alone; WAL again where somebody took it away."""
    path = tmp_path / "a folder" / "gateway.db"
    path.parent.mkdir()
    for _ in range(2):
        ensure(f"sqlite+aiosqlite:///{path}")
        connection = sqlite3.connect(path)
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
        connection.execute("pragma journal_mode=delete")
        connection.close()


def test_a_migration_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """All or nothing: the next start finds a fresh database, not half of one."""
    path = tmp_path / "gateway.db"
    code = f"""
import os
from asgi_llm_gateway.stores import migrate
from alembic import op
make = op.create_table
op.create_table = lambda name, *more, **most: os._exit(9) if name == "sums" else make(name, *more, **most)
migrate.ensure("sqlite:///{path}")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 9
    connection = sqlite3.connect(path)
    assert connection.execute("select count(*) from sqlite_master").fetchone() == (0,)
    connection.close()
    ensure(f"sqlite:///{path}")
    ensure(f"sqlite:///{path}")


async def test_postgresql_is_only_looked_at(postgres_url: str) -> None:
    """``ensure`` changes nothing there and names the command; also from within an event loop."""
    with pytest.raises(StoreError, match="python -m asgi_llm_gateway migrate"):
        ensure(postgres_url)
    upgrade(postgres_url)
    ensure(postgres_url)
    ensure(postgres_url.replace("postgresql://", "postgres://"))
    for revision, says in (("0000", "python -m asgi_llm_gateway migrate"), ("9999", "upgrade asgi-llm-gateway")):
        version = f"update alembic_version set version_num = '{revision}'"
        await told(postgres_url, lambda connection, version=version: connection.exec_driver_sql(version))
        with pytest.raises(StoreError, match=says):
            ensure(postgres_url)


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """Rather than written to in an old way."""
    path = tmp_path / "gateway.db"
    ensure(f"sqlite:///{path}")
    connection = sqlite3.connect(path)
    connection.execute("update alembic_version set version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="another version"):
        ensure(f"sqlite:///{path}")


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true", "mysql://u:hidden@h/d"]
)
def test_what_can_not_be_shared_is_refused(url: str) -> None:
    """A database in memory is nobody else's; another kind is not supported."""
    for verb in (upgrade, ensure):
        with pytest.raises(StoreError, match="sqlite:///"):
            verb(url)


def test_a_database_that_is_away_is_a_store_error(tmp_path: Path) -> None:
    """No server, no folder, no database file: and no password in what is said."""
    (tmp_path / "text.db").write_text("not a database at all" * 100, "utf-8")
    for url in (
        f"postgresql://gateway:hidden-word@127.0.0.1:{free_port()}/gateway",
        f"sqlite:///{tmp_path}/nowhere/gateway.db",
        f"sqlite:///{tmp_path}/text.db",
    ):
        for verb in (upgrade, ensure):
            with pytest.raises(StoreError) as refused:
                verb(url)
            assert "hidden-word" not in str(refused.value)


MOUNTS = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:44 / /srv/shared rw shared:2 - nfs4 server:/export rw,vers=4.2
31 30 8:2 / /srv/shared/disk rw - xfs /dev/sdb1 rw
32 21 0:45 / /srv/with\040space rw - cifs //server/x rw
33 21 0:46 / /srv/over rw - nfs server:/y rw
34 33 8:3 / /srv/over rw - ext4 /dev/sdc1 rw
35 21 0:47 / /home/me rw - fuse.sshfs me@host: rw
nonsense
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/gateway.db", None),
        ("/srv/shared/gateway.db", "nfs4"),
        ("/srv/sharedness/gateway.db", None),
        ("/srv/shared/disk/gateway.db", None),
        ("/srv/with space/gateway.db", "cifs"),
        ("/srv/over/gateway.db", None),
        ("/home/me/gateway.db", "fuse.sshfs"),
    ],
)
def test_a_network_disk_is_told_by_its_mount(path: str, kind: str | None) -> None:
    """The innermost mount counts, and of two on one point the later."""
    assert network_file_system(Path(path), MOUNTS) == kind


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="only Linux tells")
def test_sqlite_on_a_network_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the way out: PostgreSQL."""
    real = Path.read_text

    def mounted(path: Path, *more: Any) -> str:
        if str(path) == "/proc/self/mountinfo":
            return f"1 1 0:1 / {tmp_path} rw - nfs server:/x rw\n"
        return real(path, *more)

    monkeypatch.setattr(Path, "read_text", mounted)
    for verb in (upgrade, ensure):
        with pytest.raises(StoreError, match=r"network file system.*use PostgreSQL"):
            verb(f"sqlite:///{tmp_path}/gateway.db")
