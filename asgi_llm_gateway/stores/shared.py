"""The store that the settings name, opened on first use: one per URL and event loop, however many middlewares ask."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from .._closing import on_close
from ..errors import StoreError
from ..keys import check_tenant_id, new_key
from ..records import Tenant
from ..settings import FileConfig, Settings, current, current_file, secret
from ._database import sqlite_path
from .base import CallLog, EndedSessions, Ledger, TenantStore

if TYPE_CHECKING:
    from .postgres import PostgresLedger
    from .sqlite import SQLiteLedger

T = TypeVar("T")


def store_url(settings: Settings) -> str:
    """The database's URL as SQLAlchemy wants it, from how users write it. Raises StoreError naming the setting."""
    text = secret(settings.database_url)
    if text is None:
        return f"sqlite+aiosqlite:///{_data_dir(settings) / 'gateway.db'}"
    scheme, mark, rest = text.partition("://")
    scheme = scheme.partition("+")[0].lower()
    if not mark or not rest:
        raise StoreError("DATABASE_URL is no URL; write sqlite:///file.db or postgresql://user:password@host/name")
    if scheme == "sqlite":
        return "sqlite+aiosqlite://" + rest
    if scheme in ("postgresql", "postgres"):
        return "postgresql+asyncpg://" + _without_channel_binding(rest)
    raise StoreError(f"DATABASE_URL: '{scheme}' is not supported; write sqlite:///... or postgresql://...")


def _without_channel_binding(rest: str) -> str:
    """What stands behind ``://`` less libpq's ``channel_binding``, which the driver does not have."""
    front, mark, query = rest.partition("?")
    fields = query.split("&")
    if "channel_binding=require" in fields:
        raise StoreError("DATABASE_URL: channel_binding=require is not supported; write sslmode=verify-full instead")
    return front + mark + "&".join(field for field in fields if not field.startswith("channel_binding="))


def _data_dir(settings: Settings) -> Path:
    path = settings.gateway_data_dir
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"GATEWAY_DATA_DIR={path} can't be made: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise StoreError(f"GATEWAY_DATA_DIR={path} is not writable")
    return path


class _Opened:
    """What one event loop has open of one database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.tenants: asyncio.Task[TenantStore] | None = None
        self.books: asyncio.Task[Ledger] | None = None
        self.log: CallLog | None = None
        self.sessions: EndedSessions | None = None


_opened: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Opened]] = WeakKeyDictionary()


def _here() -> _Opened:
    loop = asyncio.get_running_loop()
    if loop not in _opened:
        _opened[loop] = {}
        on_close(close_shared)
    settings = current()
    url = store_url(settings)
    key = f"{url} {secret(settings.redis_url) or ''}"
    here = _opened[loop].get(key)
    if here is None:
        here = _opened[loop][key] = _Opened(url)
    return here


async def shared_tenants() -> TenantStore:
    """Tenants and keys of this process's settings. Raises StoreError; the next call tries again."""
    here = _here()
    if here.tenants is None:  # a task, so that many first requests open it once and none of them can cancel it
        here.tenants = asyncio.get_running_loop().create_task(_named(_open_tenants(here.url, current_file())))
    try:
        return await _opening(here.tenants)
    except StoreError:
        here.tenants = None
        raise


async def shared_ledger() -> Ledger:
    """The ledger of this process's settings: Redis where REDIS_URL is set, else the database. Raises StoreError."""
    here = _here()
    if here.books is None:
        here.books = asyncio.get_running_loop().create_task(_named(_open_ledger(here.url, current())))
    try:
        return await _opening(here.books)
    except StoreError:
        here.books = None
        raise


async def shared_log() -> CallLog:
    """The records of calls, in the database. Raises StoreError."""
    here = _here()
    await shared_tenants()  # makes the tables, where that is to be done
    if here.log is None:
        from .calllog import SQLCallLog

        here.log = SQLCallLog(here.url)
    return here.log


async def shared_sessions() -> EndedSessions:
    """The sessions of the dashboard that were signed out, in the database. Raises StoreError."""
    here = _here()
    await shared_tenants()
    if here.sessions is None:
        from .sessions import SQLSessions

        here.sessions = SQLSessions(here.url)
    return here.sessions


async def _opening(task: asyncio.Task[T]) -> T:
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        raise
    except StoreError:
        raise
    except Exception as error:  # a driver's words may hold the URL, and the URL a password
        raise StoreError(f"the store could not be opened: {type(error).__name__}") from error


async def _named(opening: Coroutine[Any, Any, T]) -> T:
    try:
        return await opening
    except ModuleNotFoundError as error:
        raise StoreError(str(error)) from None


async def _prepare(url: str) -> None:
    """See that the tables are there."""
    from .migrate import ensure

    await asyncio.to_thread(ensure, url)


async def _open_tenants(url: str, file: FileConfig) -> TenantStore:
    await _prepare(url)
    from .sql import SQLTenants

    store = SQLTenants(url)
    await plant(store, file)
    return store


async def _open_ledger(url: str, settings: Settings) -> Ledger:
    await _prepare(url)
    ledger = _sql_ledger(url, settings)
    redis_url = secret(settings.redis_url)
    if redis_url is None:
        return ledger
    from .redis import RedisLedger

    return RedisLedger(redis_url, archive=ledger, lapsed=settings.hold_lapsed)


def _sql_ledger(url: str, settings: Settings) -> SQLiteLedger | PostgresLedger:
    path = sqlite_path(url)
    if path is not None:
        from .sqlite import SQLiteLedger

        return SQLiteLedger(path, synchronous=settings.sqlite_synchronous, lapsed=settings.hold_lapsed)
    from .postgres import PostgresLedger

    return PostgresLedger(url, lapsed=settings.hold_lapsed)


async def plant(store: TenantStore, file: FileConfig) -> None:
    """Put the tenants of the settings file into a store; what the file says replaces what is there."""
    for tenant_id, wanted in file.tenants.items():
        try:
            check_tenant_id(tenant_id)
            keys = [new_key(tenant_id, name="file", secret=one.get_secret_value())[0] for one in wanted.keys]
        except ValueError as error:
            raise StoreError(f"[tenants.{tenant_id}]: {error}") from None
        known = await store.tenant(tenant_id)
        tenant = Tenant(
            id=tenant_id,
            name=wanted.name,
            budget=wanted.budget_usd,
            budget_tokens=wanted.budget_tokens,
            period=wanted.budget_period,
            soft_limit=wanted.soft_limit_usd,
            max_output_tokens=wanted.max_output_tokens,
            rate_requests=wanted.rate_requests,
            rate_tokens=wanted.rate_tokens,
            concurrency=wanted.concurrency,
            allowed_models=wanted.allowed_models,
            created=time.time() if known is None else known.created,
        )
        await store.put_tenant(tenant)
        for key in keys:
            await store.add_key(key)


async def close_shared() -> None:
    """Close what this event loop opened; a later request opens it anew."""
    for here in _opened.pop(asyncio.get_running_loop(), {}).values():
        for opening in (here.books, here.tenants):
            try:
                store = await opening if opening is not None else None
            except Exception:  # noqa: S112 - what never opened needs no closing
                continue
            if store is not None:
                await store.close()
        if here.log is not None:
            await here.log.close()
        if here.sessions is not None:
            await here.sessions.close()
