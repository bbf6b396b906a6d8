"""A TenantStore in a database: opened by many, named by the settings, away, refusing, and back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from asgi_llm_gateway import settings
from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.stores.migrate import ensure, upgrade
from asgi_llm_gateway.stores.shared import close_shared, shared_tenants

from ..servers import ROOT, environment, free_port, gateway
from .tenants_parts import FULL, key_for, sql_store

GOODBYE = 0.2
"""Seconds in which aiosqlite's thread of an opening that failed tells the event loop that it ended."""


@pytest.fixture
def ready_url(database_url: str) -> str:
    """A fresh database of each kind. PostgreSQL's tables an operator makes; SQLite's come by themselves."""
    if not database_url.startswith("sqlite"):
        upgrade(database_url)
    return database_url


def test_a_fresh_database_may_be_opened_by_many_processes_at_once(ready_url: str, tmp_path: Path) -> None:
    """The same by real processes, each making a tenant of its own."""
    env = environment(tmp_path, DATABASE_URL=ready_url)
    command = [sys.executable, "-m", "asgi_llm_gateway", "tenants", "create"]
    started = [
        subprocess.Popen([*command, f"t{number}"], env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in range(4)
    ]
    ended = [(process.communicate(timeout=60), process.returncode) for process in started]
    assert [code for _, code in ended] == [0, 0, 0, 0], ended
    listed = gateway("tenants", "list", env=env)
    assert [line.split("\t")[0] for line in listed.stdout.splitlines()] == ["t0", "t1", "t2", "t3", "team"]


async def test_the_settings_name_the_store(ready_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``DATABASE_URL`` as a user writes it is what every middleware of the process shares, opened once."""
    monkeypatch.setenv("DATABASE_URL", ready_url)
    settings.forget()
    first, *others = await asyncio.gather(*(shared_tenants() for _ in range(5)))
    assert all(other is first for other in others)
    await first.add_tenant(FULL)
    await close_shared()
    again = await shared_tenants()
    assert again is not first
    assert await again.tenant("team") == FULL


async def test_the_files_tenants_are_planted_at_every_start(
    ready_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the file says replaces what is there, as often as it starts, and keeps its keys."""
    monkeypatch.setenv("DATABASE_URL", ready_url)
    monkeypatch.setenv("GATEWAY_CONFIG", str(tmp_path / "gateway.toml"))
    for budget in (5, 7):
        text = f'[tenants.team]\nbudget_usd = {budget}\nkeys = ["gw-key-of-the-file"]\n'
        (tmp_path / "gateway.toml").write_text(text, "utf-8")
        settings.forget()
        store = await shared_tenants()
        tenant = await store.tenant("team")
        assert tenant is not None
        assert tenant.budget == budget * 10**9
        assert await store.identify(key_for(secret="gw-key-of-the-file").digest) is not None
        assert len(await store.keys("team")) == 1
        await close_shared()


@pytest.mark.parametrize(
    "spelling",
    [
        lambda url: url.replace("postgresql://", "postgres://", 1),
        lambda url: url.replace("postgresql://", "postgresql+psycopg2://", 1),
        lambda url: url.replace("postgresql://", "postgresql+asyncpg://", 1),
        lambda url: url + "&sslmode=disable",
        lambda url: url + "&sslmode=prefer",
        lambda url: url + "&application_name=gateway&connect_timeout=5",
        lambda url: url + "&channel_binding=disable",
    ],
)
async def test_a_postgresql_url_works_as_it_is_written(postgres_url: str, spelling: Callable[[str], str]) -> None:
    """As hosting companies hand it out: with libpq's own parameters, by whatever scheme."""
    upgrade(spelling(postgres_url))
    ensure(spelling(postgres_url))
    store = sql_store(spelling(postgres_url))
    try:
        assert await store.add_tenant(FULL)
        assert await store.tenant("team") == FULL
    finally:
        await store.close()


@pytest.mark.parametrize(
    "act", ["tenants", "tenant", "identify", "admin_key", "add_tenant", "drop_tenant", "add_key", "revoke_key"]
)
async def test_a_database_that_is_away_is_a_store_error(act: str) -> None:
    """Nobody listens: every verb raises StoreError, and the password is not in it."""
    store = sql_store(f"postgresql://gateway:hidden-word@127.0.0.1:{free_port()}/gateway")
    verbs: dict[str, Callable[[], Awaitable[Any]]] = {
        "tenants": store.tenants,
        "tenant": lambda: store.tenant("team"),
        "identify": lambda: store.identify("0" * 64),
        "admin_key": lambda: store.admin_key("0" * 64),
        "add_tenant": lambda: store.add_tenant(FULL),
        "drop_tenant": lambda: store.drop_tenant("team", 1.0),
        "add_key": lambda: store.add_key(key_for()),
        "revoke_key": lambda: store.revoke_key("key_x", 1.0),
    }
    with pytest.raises(StoreError) as refused:
        await verbs[act]()
    assert "hidden-word" not in str(refused.value)
    await store.close()


async def test_a_database_that_refuses_is_a_store_error(postgres_url: str) -> None:
    """A database of that name does not exist: StoreError, not the driver's own."""
    parts = urlsplit(postgres_url)
    store = sql_store(parts._replace(path="/no_such_database").geturl())
    with pytest.raises(StoreError):
        await store.tenants()
    await store.close()


def test_a_protection_that_the_driver_lacks_is_refused_by_name() -> None:
    """``channel_binding=require`` is not dropped in silence."""
    with pytest.raises(StoreError, match="channel_binding=require"):
        sql_store("postgresql://u:p@h/d?sslmode=require&channel_binding=require")


async def test_a_database_that_is_no_database_is_a_store_error(tmp_path: Path) -> None:
    """A file of other content, and a folder."""
    (tmp_path / "text.db").write_text("not a database at all, but long enough to be taken for one" * 100, "utf-8")
    for path in (tmp_path / "text.db", tmp_path):
        store = sql_store(f"sqlite:///{path}")
        with pytest.raises(StoreError):
            await store.tenants()
        await store.close()
    await asyncio.sleep(GOODBYE)


async def test_a_database_that_comes_back_is_used_again(tmp_path: Path) -> None:
    """A store fault is not for ever: once the file's folder is there, the same store works."""
    store = sql_store(f"sqlite:///{tmp_path}/later/gateway.db")
    with pytest.raises(StoreError):
        await store.tenants()
    (tmp_path / "later").mkdir()
    ensure(f"sqlite:///{tmp_path}/later/gateway.db")
    assert await store.add_tenant(FULL)
    await store.close()
    await asyncio.sleep(GOODBYE)
