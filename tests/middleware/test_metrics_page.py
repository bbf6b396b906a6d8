"""``GET /metrics``: who may read it, in which format, and what the store adds to it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from asgi_llm_gateway.admin.app import Admin
from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_admin_key, new_key
from asgi_llm_gateway.meters.breakers import breakers
from asgi_llm_gateway.meters.exposition import render
from asgi_llm_gateway.meters.meters import Meters
from asgi_llm_gateway.records import Adjustment, Amount, Limit, Tenant
from asgi_llm_gateway.stores.memory import MemoryStore

from ..conversation import ask, get
from ..metrics_parts import counting, samples, value

ADMIN = "an-admin-key-of-32-characters-or-more"
TOKEN = "a-token-for-prometheus"


def page(meters: Meters, store: Any, **more: Any) -> Any:
    """The admin app with the page, and with a key and a token unless said otherwise."""

    async def opened() -> Any:
        if store is None:
            raise StoreError("away")
        return store

    given: dict[str, Any] = {"admin_key": ADMIN, "metrics_token": TOKEN, **more}
    return Admin(tenants=opened, ledger=opened, log=opened, metrics=lambda: meters, **given).app()


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + key.encode())]


async def test_the_admins_key_the_token_and_a_stored_admin_key_open_it() -> None:
    """And nothing else does; a tenant's key would show it all the others."""
    store = MemoryStore()
    await store.add_tenant(Tenant("team"))
    key, secret = new_key("team")
    await store.add_key(key)
    stored, admins = new_admin_key()
    await store.add_key(stored)
    with counting() as meters:
        app = page(meters, store)
        for good in (ADMIN, TOKEN, admins):
            assert (await get(app, "/metrics", headers=bearer(good))).status == 200
        assert (await get(app, "/metrics", headers=bearer(secret))).status == 403
        for headers in (
            [],
            bearer("wrong"),
            bearer(TOKEN + "x"),
            bearer(TOKEN) * 2,
            [(b"authorization", b"Basic " + TOKEN.encode())],
        ):
            answer = await get(app, "/metrics", headers=headers)
            assert answer.status == 401
            assert TOKEN not in answer.body.decode()


async def test_the_token_opens_nothing_else() -> None:
    """It is in Prometheus's configuration, which more people can read."""
    with counting() as meters:
        app = page(meters, MemoryStore())
        assert (await get(app, "/api/tenants", headers=bearer(TOKEN))).status == 401
        assert (await ask(app, {}, "/metrics", headers=bearer(TOKEN))).status == 401  # it is for GET alone


async def test_without_any_key_it_is_closed_and_public_opens_it() -> None:
    """METRICS_PUBLIC=true."""
    with counting() as meters:
        closed = await get(page(meters, MemoryStore(), admin_key=None, metrics_token=None), "/metrics")
        assert closed.status == 403
        assert "GATEWAY_ADMIN_KEY" in closed.error["message"]
        public = page(meters, MemoryStore(), admin_key=None, metrics_token=None, metrics_public=True)
        answer = await get(public, "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text; version=1.0.0"),
        ("text/plain", "text/plain"),
        ("", "text/plain"),
        ("text/html", "text/plain"),
        ("application/openmetrics-text; version=no-number", "application/openmetrics-text"),
        ("text/plain; version=no-number; q=", "text/plain"),
        ("," * 5000, "text/plain"),
    ],
)
async def test_the_reader_chooses_the_format_and_junk_is_no_error(accept: str, kind: str) -> None:
    """What Prometheus sends, what a browser sends, and what nobody should."""
    with counting() as meters:
        headers = [*bearer(TOKEN), (b"accept", accept.encode())]
        answer = await get(page(meters, MemoryStore()), "/metrics", headers=headers)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith(kind)
    assert answer.body.endswith(b"# EOF\n") == kind.startswith("application/openmetrics")


async def test_budgets_and_holds_are_the_stores_as_they_stand_now() -> None:
    """Whatever process took them: the page asks the ledger."""
    store = MemoryStore()
    await store.add_tenant(Tenant("team", budget=5_000_000_000))
    await store.add_tenant(Tenant("free"))
    limit = (Limit("", 0, 5_000_000_000, None),)
    await store.hold("team", hold_id="h1", limits=limit, least=Amount(1_250_000_000, 5), wanted=Amount(1_250_000_000, 5),
                     now=1.0, ttl=1e12)  # fmt: skip
    await store.adjust(Adjustment("a1", "team", "credit", 1_000_000_000, "gift", 0, 1.0, "admin"))
    with counting() as meters:
        answer = await get(page(meters, store), "/metrics", headers=bearer(TOKEN))
    found = samples(answer.body.decode())
    assert found["llm_budget_usd"] == {(("tenant", "team"),): 6.0}
    assert found["llm_budget_left_usd"] == {(("tenant", "team"),): 4.75}
    assert found["llm_held_usd"] == {(("tenant", "team"),): 1.25}
    assert value(found, "llm_ledger_settled_usd") == 0
    assert value(found, "llm_store_up") == 1


async def test_tenants_beyond_the_bound_are_counted_and_not_listed() -> None:
    """A page of ten thousand budgets would help nobody."""
    store = MemoryStore()
    for at in range(30):
        await store.add_tenant(Tenant(f"team-{at}", budget=1))
    with counting(max_tenants=12) as meters:
        answer = await get(page(meters, store), "/metrics", headers=bearer(TOKEN))
    found = samples(answer.body.decode())
    assert len(found["llm_budget_usd"]) == 12
    assert value(found, "llm_budget_tenants_unlisted") == 18


async def test_a_store_that_is_away_costs_the_page_its_budgets_only() -> None:
    """And says so: that is when an operator looks at it."""
    with counting() as meters:
        answer = await get(page(meters, None), "/metrics", headers=bearer(TOKEN))
    assert answer.status == 200
    found = samples(answer.body.decode())
    assert value(found, "llm_store_up") == 0
    assert "llm_budget_usd" not in found


async def test_it_is_made_beside_the_event_loop_once_for_all_who_wait() -> None:
    """A page takes as long as it has samples; calls go on meanwhile, and impatient readers make no more work."""
    threads: set[int] = set()
    made = 0
    gate = threading.Event()

    def slow() -> Any:
        nonlocal made
        made += 1
        threads.add(threading.get_ident())
        gate.wait(10)
        return ()

    with counting() as meters:
        meters.sources.append(slow)
        app = page(meters, MemoryStore())
        readers = [asyncio.ensure_future(get(app, "/metrics", headers=bearer(TOKEN))) for _ in range(5)]
        while not threads:  # noqa: ASYNC110 - it is a thread that tells
            await asyncio.sleep(0.001)
        began = time.monotonic()
        await asyncio.sleep(0.01)  # the loop is free, though nobody has a page yet
        assert not any(reader.done() for reader in readers)
        assert time.monotonic() - began < 5
        readers[0].cancel()
        gate.set()
        answers = await asyncio.gather(*readers[1:])
    assert [answer.status for answer in answers] == [200] * 4
    assert made == 1
    assert threads.isdisjoint({threading.get_ident()})


def test_sources_are_asked_when_the_page_is_made() -> None:
    """Breakers, for one."""
    told: list[str] = []
    meters = Meters()
    for _ in range(2):  # two gateways of one process that go to the same target: a page has each series once
        meters.sources.append(breakers(lambda: [("openai", "gpt-4", told[-1])]))
    for state, shown in (("closed", 0), ("open", 1), ("half_open", 0.5)):
        told.append(state)
        found = samples(render(meters, "")[0].decode())
        assert found["llm_breaker_open"] == {(("model", "gpt-4"), ("provider", "openai")): shown}
