"""Tenants and keys in SQL: SQLite (aiosqlite) or PostgreSQL (asyncpg), through SQLAlchemy Core."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

try:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncConnection
except ImportError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError("a SQL store needs: pip install 'asgi-llm-gateway[sql]'", name=error.name) from None

from ..errors import StoreError
from ..records import ApiKey, Identity, Tenant
from ._database import engine
from .tables import KEYS, TENANTS


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
        budget_tokens=row.budget_tokens,
        period=row.period,
        soft_limit=row.soft_limit,
        max_output_tokens=row.max_output_tokens,
        rate_requests=row.rate_requests,
        rate_tokens=row.rate_tokens,
        concurrency=row.concurrency,
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
        budget=row.budget,
        account=row.account or "",
        kind=row.kind,
        rate_requests=row.rate_requests,
        rate_tokens=row.rate_tokens,
        concurrency=row.concurrency,
        parent=row.parent or "",
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
        "budget_tokens": tenant.budget_tokens,
        "period": tenant.period,
        "soft_limit": tenant.soft_limit,
        "max_output_tokens": tenant.max_output_tokens,
        "rate_requests": tenant.rate_requests,
        "rate_tokens": tenant.rate_tokens,
        "concurrency": tenant.concurrency,
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
        "budget": key.budget,
        "account": key.account or None,
        "kind": key.kind,
        "rate_requests": key.rate_requests,
        "rate_tokens": key.rate_tokens,
        "concurrency": key.concurrency,
        "parent": key.parent or None,
    }


def _key_of_kind(kind: str, digest: str) -> sa.Select[Any]:
    return sa.select(KEYS).where(KEYS.c.digest == digest, KEYS.c.kind == kind)


def _revoke(now: float) -> sa.Update:
    """An end at ``now``, which keeps an earlier one."""
    ended = sa.case((KEYS.c.revoked < now, KEYS.c.revoked), else_=sa.literal(now, sa.Float))
    return sa.update(KEYS).values(revoked=ended)


class SQLTenants:
    """Tenants and keys in a database whose tables are there (see ``migrate``).

    Args:
        url: A SQLAlchemy URL with an async driver: ``sqlite+aiosqlite:///...`` or ``postgresql+asyncpg://...``.
    """

    def __init__(self, url: str) -> None:
        self._engine = engine(url)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction; whatever the driver raises becomes a StoreError without the URL in it."""
        try:
            async with self._engine.begin() as connection:
                yield connection
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise StoreError(f"the database did not answer: {type(error).__name__}") from error

    async def identify(self, digest: str) -> Identity | None:
        """See TenantStore."""
        async with self._connection() as connection:
            row = (await connection.execute(_key_of_kind("tenant", digest))).first()
            if row is None:
                return None
            owner = (await connection.execute(sa.select(TENANTS).where(TENANTS.c.id == row.tenant))).first()
            return None if owner is None else Identity(_tenant(owner), _key(row))

    async def admin_key(self, digest: str) -> ApiKey | None:
        """See TenantStore."""
        async with self._connection() as connection:
            row = (await connection.execute(_key_of_kind("admin", digest))).first()
            return None if row is None else _key(row)

    async def tenant(self, tenant_id: str) -> Tenant | None:
        """See TenantStore."""
        async with self._connection() as connection:
            row = (await connection.execute(sa.select(TENANTS).where(TENANTS.c.id == tenant_id))).first()
            return None if row is None else _tenant(row)

    async def tenants(self) -> Sequence[Tenant]:
        """See TenantStore."""
        async with self._connection() as connection:
            found = [_tenant(row) for row in await connection.execute(sa.select(TENANTS))]
        return sorted(found, key=lambda tenant: tenant.id)  # here: a database orders by its locale

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

    async def drop_tenant(self, tenant_id: str, now: float) -> bool:
        """See TenantStore."""
        async with self._connection() as connection:
            done = await connection.execute(sa.delete(TENANTS).where(TENANTS.c.id == tenant_id))
            if done.rowcount:
                await connection.execute(_revoke(now).where(KEYS.c.tenant == tenant_id))
            return bool(done.rowcount)

    async def add_key(self, key: ApiKey) -> None:
        """See TenantStore."""
        async with self._connection() as connection:
            await connection.execute(self._insert(KEYS, _key_row(key)))

    async def keys(self, tenant_id: str) -> Sequence[ApiKey]:
        """See TenantStore."""
        lasting = (KEYS.c.tenant == tenant_id, KEYS.c.kind != "ephemeral")
        wanted = sa.select(KEYS).where(*lasting).order_by(KEYS.c.created)
        async with self._connection() as connection:
            return [_key(row) for row in await connection.execute(wanted)]

    async def client_secret(self, digest: str) -> ApiKey | None:
        """See ClientSecrets."""
        async with self._connection() as connection:
            row = (await connection.execute(_key_of_kind("ephemeral", digest))).first()
            return None if row is None else _key(row)

    async def add_client_secret(self, key: ApiKey, now: float) -> None:
        """See ClientSecrets."""
        ended = sa.delete(KEYS).where(KEYS.c.kind == "ephemeral", KEYS.c.expires <= now)
        async with self._connection() as connection:
            await connection.execute(ended)
            await connection.execute(self._insert(KEYS, _key_row(key)))

    async def revoke_key(self, key_id: str, now: float) -> bool:
        """See TenantStore."""
        async with self._connection() as connection:
            done = await connection.execute(_revoke(now).where(KEYS.c.id == key_id))
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
