"""The store that the settings name, opened on first use: one per URL and event loop, however many middlewares ask."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from .._closing import on_close
from ..errors import StoreError
from ..keys import check_tenant_id, new_key
from ..records import Tenant
from ..settings import FileConfig, Settings, current, current_file, secret
from .base import Ledger, TenantStore
from .memory import MemoryLedger

_opened: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Task[TenantStore]]] = WeakKeyDictionary()
_ledger = MemoryLedger()


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


async def shared_tenants() -> TenantStore:
    """Tenants and keys of this process's settings. Raises StoreError; the next call tries again."""
    settings = current()
    loop = asyncio.get_running_loop()
    if loop not in _opened:
        _opened[loop] = {}
        on_close(close_shared)
    stores = _opened[loop]
    url = store_url(settings)
    task = stores.get(url)
    if task is None:  # a task, so that many first requests open it once and none of them can cancel it
        task = stores[url] = loop.create_task(_named(_open(url, current_file())))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        stores.pop(url, None)
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"the store could not be opened: {type(error).__name__}") from error


async def _named(opening: Coroutine[Any, Any, TenantStore]) -> TenantStore:
    try:
        return await opening
    except ModuleNotFoundError as error:
        raise StoreError(str(error)) from None


async def _open(url: str, file: FileConfig) -> TenantStore:
    from .sql import SQLTenants

    store = SQLTenants(url)
    await store.tenants()  # makes the tables, and fails here rather than in a request
    await plant(store, file)
    return store


async def plant(store: TenantStore, file: FileConfig) -> None:
    """Put the tenants of the settings file into a store; what the file says replaces what is there."""
    for tenant_id, wanted in file.tenants.items():
        try:
            check_tenant_id(tenant_id)
            keys = [new_key(tenant_id, name="file", secret=one.get_secret_value())[0] for one in wanted.keys]
        except ValueError as error:
            raise StoreError(f"[tenants.{tenant_id}]: {error}") from None
        tenant = Tenant(tenant_id, wanted.name, wanted.budget_usd, True, wanted.allowed_models, {}, time.time())
        await store.put_tenant(tenant)
        for key in keys:
            await store.add_key(key)


async def shared_ledger() -> Ledger:
    """The ledger of this process."""
    return _ledger


async def close_shared() -> None:
    """Close what this event loop opened; a later request opens it anew."""
    for task in _opened.pop(asyncio.get_running_loop(), {}).values():
        try:
            store = await task
        except Exception:  # noqa: S112 - what never opened needs no closing
            continue
        await store.close()
