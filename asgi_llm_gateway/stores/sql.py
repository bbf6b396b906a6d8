"""Tenants and keys in SQL: SQLite (aiosqlite) or PostgreSQL (asyncpg), through SQLAlchemy Core."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

try:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
    from sqlalchemy.schema import CreateIndex, CreateTable
except ImportError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError("a SQL store needs: pip install 'asgi-llm-gateway[sql]'", name=error.name) from None

from ..errors import StoreError
from ..records import ApiKey, Identity, Tenant

_meta = sa.MetaData()

TENANTS = sa.Table(
    "tenants",
    _meta,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(256), nullable=False, default=""),
    sa.Column("budget", sa.BigInteger, nullable=True),
    sa.Column("enabled", sa.Boolean, nullable=False, default=True),
    sa.Column("allowed_models", sa.Text, nullable=True),
    sa.Column("metadata", sa.Text, nullable=False, default="{}"),
    sa.Column("created", sa.Float, nullable=False),
)

KEYS = sa.Table(
    "api_keys",
    _meta,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(64), sa.ForeignKey("tenants.id"), nullable=False, index=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("name", sa.String(256), nullable=False, default=""),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float, nullable=True),
    sa.Column("revoked", sa.Float, nullable=True),
    sa.Column("also_tenants", sa.Text, nullable=False, default="[]"),
    sa.Column("allowed_models", sa.Text, nullable=True),
)


def _models(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(json.loads(text))


def _tenant(row: Any) -> Tenant:
    return Tenant(
        id=row.id,
        name=row.name,
        budget=row.budget,
        enabled=row.enabled,
        allowed_models=_models(row.allowed_models),
        metadata=json.loads(row.metadata),
        created=row.created,
    )


def _key(row: Any) -> ApiKey:
    return ApiKey(
        id=row.id,
        tenant=row.tenant,
        digest=row.digest,
        name=row.name,
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
        also_tenants=tuple(json.loads(row.also_tenants)),
        allowed_models=_models(row.allowed_models),
    )


def _tenant_row(tenant: Tenant) -> dict[str, Any]:
    models = tenant.allowed_models
    return {
        "id": tenant.id,
        "name": tenant.name,
        "budget": tenant.budget,
        "enabled": tenant.enabled,
        "allowed_models": None if models is None else json.dumps(models),
        "metadata": json.dumps(dict(tenant.metadata)),
        "created": tenant.created,
    }


def _key_row(key: ApiKey) -> dict[str, Any]:
    models = key.allowed_models
    return {
        "id": key.id,
        "tenant": key.tenant,
        "digest": key.digest,
        "name": key.name,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "also_tenants": json.dumps(key.also_tenants),
        "allowed_models": None if models is None else json.dumps(models),
    }


def _postgresql(url: str) -> AsyncEngine:
    """An engine whose URL the driver reads itself: it knows libpq's parameters (sslmode, application_name, ...)."""
    import asyncpg  # type: ignore[import-untyped]

    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    timeout = float(query.pop("connect_timeout", 0)) or 60.0  # seconds; asyncpg knows it by another name
    dsn = parts._replace(scheme="postgresql", query=urlencode(query)).geturl()
    return create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(dsn, timeout=timeout), pool_pre_ping=True
    )


_TABLES_LOCK = 0x6177_6C67
"""A number of our own for PostgreSQL's advisory locks."""


async def _make_tables(connection: AsyncConnection) -> None:
    """Make the tables that are missing. Workers that start together do not trip over each other."""
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_TABLES_LOCK)))
        await connection.run_sync(_meta.create_all)
        return
    for table in _meta.sorted_tables:
        await connection.execute(CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            await connection.execute(CreateIndex(index, if_not_exists=True))


class SQLTenants:
    """Tenants and keys in a database.

    Args:
        url: A SQLAlchemy URL with an async driver: ``sqlite+aiosqlite:///...`` or ``postgresql+asyncpg://...``.
    """

    def __init__(self, url: str) -> None:
        self._engine: AsyncEngine = _postgresql(url) if url.startswith("postgresql") else create_async_engine(url)
        self._ready = False

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction; whatever the driver raises becomes a StoreError without the URL in it."""
        try:
            if not self._ready:
                async with self._engine.begin() as connection:
                    await _make_tables(connection)
                self._ready = True  # only now, when they are committed, may others rely on them
            async with self._engine.begin() as connection:
                yield connection
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise StoreError(f"the database did not answer: {type(error).__name__}") from error

    async def identify(self, digest: str) -> Identity | None:
        """See TenantStore."""
        async with self._connection() as connection:
            row = (await connection.execute(sa.select(KEYS).where(KEYS.c.digest == digest))).first()
            if row is None:
                return None
            owner = (await connection.execute(sa.select(TENANTS).where(TENANTS.c.id == row.tenant))).first()
            return None if owner is None else Identity(_tenant(owner), _key(row))

    async def tenant(self, tenant_id: str) -> Tenant | None:
        """See TenantStore."""
        async with self._connection() as connection:
            row = (await connection.execute(sa.select(TENANTS).where(TENANTS.c.id == tenant_id))).first()
            return None if row is None else _tenant(row)

    async def tenants(self) -> Sequence[Tenant]:
        """See TenantStore."""
        async with self._connection() as connection:
            return [_tenant(row) for row in await connection.execute(sa.select(TENANTS).order_by(TENANTS.c.id))]

    async def add_tenant(self, tenant: Tenant) -> bool:
        """See TenantStore."""
        async with self._connection() as connection:
            done = await connection.execute(self._insert(TENANTS, _tenant_row(tenant)))
            return bool(done.rowcount)

    async def put_tenant(self, tenant: Tenant) -> None:
        """See TenantStore."""
        row = _tenant_row(tenant)
        async with self._connection() as connection:
            if not (await connection.execute(self._insert(TENANTS, row))).rowcount:
                await connection.execute(sa.update(TENANTS).where(TENANTS.c.id == tenant.id).values(row))

    async def add_key(self, key: ApiKey) -> None:
        """See TenantStore."""
        async with self._connection() as connection:
            await connection.execute(self._insert(KEYS, _key_row(key)))

    async def keys(self, tenant_id: str) -> Sequence[ApiKey]:
        """See TenantStore."""
        wanted = sa.select(KEYS).where(KEYS.c.tenant == tenant_id).order_by(KEYS.c.created)
        async with self._connection() as connection:
            return [_key(row) for row in await connection.execute(wanted)]

    async def revoke_key(self, key_id: str, now: float) -> bool:
        """See TenantStore."""
        ended = sa.func.coalesce(KEYS.c.revoked, now)
        async with self._connection() as connection:
            done = await connection.execute(sa.update(KEYS).where(KEYS.c.id == key_id).values(revoked=ended))
            return bool(done.rowcount)

    def _insert(self, table: sa.Table, row: dict[str, Any]) -> Any:
        """One atomic insert that leaves a row which is there already as it is."""
        if self._engine.dialect.name == "postgresql":
            from sqlalchemy.dialects.postgresql import insert as pg_insert

            return pg_insert(table).values(row).on_conflict_do_nothing()
        from sqlalchemy.dialects.sqlite import insert

        return insert(table).values(row).on_conflict_do_nothing()

    async def close(self) -> None:
        """See TenantStore."""
        await self._engine.dispose()
