"""One suite for every TenantStore: memory, SQLite in a file, PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.records import ApiKey, Tenant
from asgi_llm_gateway.stores.base import TenantStore
from asgi_llm_gateway.stores.memory import MemoryStore
from asgi_llm_gateway.stores.migrate import upgrade

from .tenants_parts import FULL, key_for, sql_store

Open = Callable[[], Any]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the store under test; a second call gives another opening of the same one."""
    if request.param == "memory":
        memory = MemoryStore()

        @asynccontextmanager
        async def opened() -> Any:
            yield memory

        return opened
    url = f"sqlite:///{tmp_path}/gateway.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    upgrade(url)

    @asynccontextmanager
    async def opened_sql() -> Any:
        store = sql_store(url)
        try:
            yield store
        finally:
            await store.close()

    return opened_sql


async def test_a_store_keeps_its_protocol(open_store: Open) -> None:
    """Every backend is a TenantStore."""
    async with open_store() as store:
        assert isinstance(store, TenantStore)


async def test_a_fresh_store_is_empty(open_store: Open) -> None:
    """Nothing is there before somebody made it: no default tenant, no default key."""
    async with open_store() as store:
        assert list(await store.tenants()) == []
        assert await store.tenant("default") is None
        assert list(await store.keys("default")) == []
        assert list(await store.keys("")) == []
        assert await store.identify("0" * 64) is None
        assert await store.admin_key("0" * 64) is None
        assert await store.drop_tenant("default", 1.0) is False
        assert await store.revoke_key("key_none", 1.0) is False


async def test_a_tenant_comes_back_as_it_was(open_store: Open) -> None:
    """All fields, to the last nano-USD; and those that have defaults."""
    async with open_store() as store:
        assert await store.add_tenant(FULL) is True
        assert await store.add_tenant(Tenant("bare")) is True
        assert await store.tenant("team") == FULL
        assert await store.tenant("bare") == Tenant("bare")
        assert await store.tenant("Team") is None


async def test_tenants_are_listed_by_id(open_store: Open) -> None:
    """The order does not depend on the locale of a database, nor on when they came."""
    names = ["zoo", "a.b", "a-b", "a_b", "a", "ab", "1a", "a1"]
    async with open_store() as store:
        for name in names:
            await store.add_tenant(Tenant(name))
        assert [tenant.id for tenant in await store.tenants()] == sorted(names)


async def test_an_id_is_taken_once(open_store: Open) -> None:
    """The second ``add_tenant`` says no and changes nothing; ``put_tenant`` replaces."""
    async with open_store() as store:
        assert await store.add_tenant(FULL)
        assert await store.add_tenant(replace(FULL, name="other", budget=1)) is False
        assert await store.tenant("team") == FULL
        changed = Tenant("team", "new", None, False, (), {}, 99.0)
        await store.put_tenant(changed)
        assert await store.tenant("team") == changed
        await store.put_tenant(Tenant("fresh"))
        assert await store.tenant("fresh") == Tenant("fresh")


async def test_no_models_and_all_models_differ(open_store: Open) -> None:
    """An empty list allows nothing, none at all allows everything."""
    async with open_store() as store:
        await store.add_tenant(Tenant("none", allowed_models=()))
        await store.add_tenant(Tenant("all", allowed_models=None))
        assert (await store.tenant("none")).allowed_models == ()
        assert (await store.tenant("all")).allowed_models is None


async def test_a_key_is_found_by_its_digest(open_store: Open) -> None:
    """With its tenant, and all its fields; by nothing else."""
    rates: dict[str, Any] = {"rate_requests": 2, "rate_tokens": 2**40, "concurrency": 3}
    key = key_for(name="laptop", expires=99.5, also_tenants=("other",), allowed_models=("echo",), budget=2**62, **rates)
    async with open_store() as store:
        await store.add_tenant(FULL)
        await store.add_key(key)
        identity = await store.identify(key.digest)
        assert identity is not None
        assert (identity.tenant, identity.key) == (FULL, key)
        for wrong in (key.digest.upper(), key.digest[:-1], key.id, "", "' OR '1'='1", "%"):
            assert await store.identify(wrong) is None


async def test_a_key_shows_its_tenant_as_it_is_now(open_store: Open) -> None:
    """A tenant that was disabled meanwhile is seen so by the next look-up."""
    key = key_for()
    async with open_store() as store:
        await store.add_tenant(FULL)
        await store.add_key(key)
        await store.put_tenant(replace(FULL, enabled=False))
        assert not (await store.identify(key.digest)).tenant.enabled


async def test_a_digest_is_kept_once(open_store: Open) -> None:
    """Adding the same key again, as every start with a settings file does, leaves it as it is: revoked stays revoked."""
    key = key_for()
    async with open_store() as store:
        await store.add_tenant(FULL)
        await store.add_tenant(Tenant("other"))
        await store.add_key(key)
        await store.revoke_key(key.id, 5.0)
        await store.add_key(key)
        await store.add_key(replace(key, tenant="other", name="stolen"))
        assert (await store.identify(key.digest)).key == replace(key, revoked=5.0)
        assert list(await store.keys("other")) == []


async def test_keys_are_listed_by_age(open_store: Open) -> None:
    """A tenant's own, oldest first, revoked ones too."""
    keys = [key_for(secret=f"gw-secret-number-{number}", created=float(number)) for number in range(3)]
    async with open_store() as store:
        await store.add_tenant(FULL)
        await store.add_tenant(Tenant("other"))
        await store.add_key(key_for("other", "gw-secret-of-another"))
        for key in reversed(keys):
            await store.add_key(key)
        await store.revoke_key(keys[1].id, 7.0)
        assert list(await store.keys("team")) == [keys[0], replace(keys[1], revoked=7.0), keys[2]]


async def test_revoking_again_keeps_the_earlier_time(open_store: Open) -> None:
    """Both say that there is such a key; an end that was set ahead may be drawn nearer."""
    key = key_for()
    async with open_store() as store:
        await store.add_tenant(FULL)
        await store.add_key(key)
        for at, ends in ((9.0, 9.0), (5.0, 5.0), (7.5, 5.0)):
            assert await store.revoke_key(key.id, at) is True
            assert (await store.identify(key.digest)).key.revoked == ends


async def test_a_dropped_tenant_leaves_no_key_that_works(open_store: Open) -> None:
    """Its keys are revoked in the same step, those that were revoked earlier keep that time; another's are as they were."""
    keys = [key_for(secret=f"gw-secret-number-{number}", created=float(number)) for number in range(2)]
    other = key_for("other", "gw-secret-of-another")
    async with open_store() as store:
        await store.add_tenant(FULL)
        await store.add_tenant(Tenant("other"))
        for key in (*keys, other):
            await store.add_key(key)
        await store.revoke_key(keys[0].id, 3.0)
        assert await store.drop_tenant("team", 7.0) is True
        assert await store.drop_tenant("team", 8.0) is False
        assert await store.tenant("team") is None
        assert await store.identify(keys[1].digest) is None
        assert [key.revoked for key in await store.keys("team")] == [3.0, 7.0]
        assert list(await store.keys("other")) == [other]
        # Who makes the tenant anew does not wake its old keys.
        assert await store.add_tenant(FULL) is True
        assert (await store.identify(keys[1].digest)).key.revoked == 7.0


async def test_an_admin_key_opens_the_admin_api_only(open_store: Open) -> None:
    """It is found as an admin's and never as a tenant's, a tenant's never as an admin's; it is listed under no tenant."""
    key, admin = key_for(), key_for("", "gw-an-admins-secret", kind="admin", name="ops", expires=99.0)
    async with open_store() as store:
        await store.add_tenant(FULL)
        await store.add_key(key)
        await store.add_key(admin)
        assert await store.admin_key(admin.digest) == admin
        assert await store.admin_key(key.digest) is None
        assert await store.identify(admin.digest) is None
        assert list(await store.keys("")) == [admin]
        assert list(await store.keys("team")) == [key]
        await store.revoke_key(admin.id, 5.0)
        assert await store.admin_key(admin.digest) == replace(admin, revoked=5.0)


async def test_what_one_opening_writes_another_reads(open_store: Open) -> None:
    """Workers and the command line share the store: each sees at once what another did."""
    key = key_for()
    async with open_store() as one, open_store() as other:
        await one.add_tenant(FULL)
        await one.add_key(key)
        assert (await other.identify(key.digest)).tenant == FULL
        await other.revoke_key(key.id, 5.0)
        assert (await one.identify(key.digest)).key.revoked == 5.0


async def test_of_many_who_ask_for_an_id_one_gets_it(open_store: Open) -> None:
    """Twenty at once, over two openings: one yes, nineteen noes, no error."""
    async with open_store() as one, open_store() as other:
        wanted = [replace(FULL, name=f"number {number}") for number in range(20)]
        won = await asyncio.gather(*((one, other)[n % 2].add_tenant(tenant) for n, tenant in enumerate(wanted)))
        assert sum(won) == 1
        assert await one.tenant("team") == wanted[won.index(True)]


async def test_readers_and_writers_go_side_by_side(open_store: Open) -> None:
    """Look-ups while keys come and go: every one is answered, none with a lock error."""
    async with open_store() as one, open_store() as other:
        await one.add_tenant(FULL)
        keys = [key_for(secret=f"gw-secret-number-{number}") for number in range(30)]

        async def live(store: TenantStore, key: ApiKey) -> None:
            await store.add_key(key)
            assert (await store.identify(key.digest)) is not None
            await store.revoke_key(key.id, 1.0)

        await asyncio.gather(*(live((one, other)[n % 2], key) for n, key in enumerate(keys)))
        assert len(await one.keys("team")) == 30
        assert all(key.revoked == 1.0 for key in await other.keys("team"))


async def test_a_store_that_was_closed_opens_again(open_store: Open) -> None:
    """After a lifespan's end the next request finds everything."""
    async with open_store() as store:
        await store.add_tenant(FULL)
        await store.close()
        assert await store.tenant("team") == FULL
