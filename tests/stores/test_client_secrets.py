"""Client secrets, over memory, SQLite and PostgreSQL: found by digest, listed nowhere, forgotten when they have ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from asgi_llm_gateway.keys import new_client_secret, new_key
from asgi_llm_gateway.records import ApiKey, Tenant
from asgi_llm_gateway.settings import Settings
from asgi_llm_gateway.stores.base import ClientSecrets, TenantStore
from asgi_llm_gateway.stores.memory import MemoryStore
from asgi_llm_gateway.stores.migrate import upgrade
from asgi_llm_gateway.stores.shared import store_url
from asgi_llm_gateway.stores.sql import SQLTenants


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> TenantStore:
    """The store under test."""
    if request.param == "memory":
        return MemoryStore()
    url = f"sqlite:///{tmp_path}/gateway.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    upgrade(url)
    return SQLTenants(store_url(Settings.load({"DATABASE_URL": url})))


async def parent_in(store: TenantStore) -> ApiKey:
    """A tenant's key."""
    await store.add_tenant(Tenant("team"))
    key, _ = new_key("team")
    await store.add_key(key)
    return key


async def test_a_client_secret_is_found_as_such_and_in_no_other_way(store: TenantStore) -> None:
    """With all its fields; it identifies nobody, opens no admin page and stands in no list."""
    assert isinstance(store, ClientSecrets)
    parent = await parent_in(store)
    made, secret = new_client_secret(parent, "team", now=100.0, seconds=60)
    await store.add_client_secret(made, 100.0)
    assert await store.client_secret(made.digest) == made
    assert (made.kind, made.parent, made.expires, made.created) == ("ephemeral", parent.digest, 160.0, 100.0)
    assert secret.startswith("ek_")
    assert await store.client_secret(parent.digest) is None
    assert await store.client_secret("0" * 64) is None
    assert await store.identify(made.digest) is None
    assert await store.admin_key(made.digest) is None
    assert list(await store.keys("team")) == [parent]
    await store.close()


async def test_those_that_have_ended_go_when_another_is_added(store: TenantStore) -> None:
    """And none else: no key of a tenant, expired or not, and no secret that is good."""
    assert isinstance(store, ClientSecrets)
    parent = await parent_in(store)
    expired = replace(new_key("team")[0], expires=1.0)
    await store.add_key(expired)
    old, _ = new_client_secret(parent, "team", now=100.0, seconds=60)
    good, _ = new_client_secret(parent, "team", now=100.0, seconds=61)
    for key in (old, good):
        await store.add_client_secret(key, 100.0)
    fresh, _ = new_client_secret(parent, "team", now=160.0, seconds=60)
    await store.add_client_secret(fresh, 160.0)
    assert await store.client_secret(old.digest) is None
    assert await store.client_secret(good.digest) == good
    assert await store.client_secret(fresh.digest) == fresh
    assert {key.id for key in await store.keys("team")} == {parent.id, expired.id}
    await store.close()


async def test_dropping_a_tenant_ends_its_client_secrets(store: TenantStore) -> None:
    """With its keys."""
    assert isinstance(store, ClientSecrets)
    parent = await parent_in(store)
    made, _ = new_client_secret(parent, "team", now=100.0, seconds=60)
    await store.add_client_secret(made, 100.0)
    assert await store.drop_tenant("team", 110.0)
    assert await store.identify(parent.digest) is None
    await store.close()
