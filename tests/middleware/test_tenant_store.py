"""Who is calling, by the word of the store: the shared one, faults, and the memory of look-ups."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.stores.shared import shared_tenants

from ..conversation import CHAT, JSON, ask
from . import Stranger
from .tenant_parts import served, setup

# -- alone -------------------------------------------------------------------------------------------------------------


async def test_alone_it_asks_the_shared_store_for_keys() -> None:
    """``TenantMiddleware(app)`` and nothing else: SQLite under GATEWAY_DATA_DIR, which the command line fills."""
    app = Stranger()
    layer = TenantMiddleware(app)
    store = await shared_tenants()
    await store.add_tenant(Tenant("team"))
    key, secret = new_key("team")
    await store.add_key(key)
    assert served(await ask(layer, CHAT, headers=[JSON, (b"authorization", b"Bearer " + secret.encode())]))
    data = os.environ["GATEWAY_DATA_DIR"]
    assert "gateway.db" in os.listdir(data)
    assert os.stat(data).st_mode & 0o777 == 0o700


async def test_alone_it_makes_no_tenant_and_tells_once_how_to(caplog: pytest.LogCaptureFixture) -> None:
    """401 for everybody until somebody makes a key; the log says how, once, and shows no secret."""
    layer = TenantMiddleware(Stranger())
    with caplog.at_level(logging.WARNING, "asgi_llm_gateway"):
        for _ in range(3):
            answer = await ask(layer, CHAT, headers=[JSON, (b"x-api-key", b"gw-some-wrong-secret")])
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert caplog.text.count("keys create") == 1
    assert "some-wrong-secret" not in caplog.text
    assert await (await shared_tenants()).tenants() == []


async def test_a_data_folder_that_cannot_be_made_is_503_naming_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Never 401, never a private memory; and it recovers by itself."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GATEWAY_DATA_DIR", str(tmp_path / "file" / "data"))
    forget()
    app = Stranger()
    layer = TenantMiddleware(app)
    headers = [JSON, (b"x-api-key", b"gw-12345678")]
    for _ in range(2):
        answer = await ask(layer, CHAT, headers=headers)
        assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
        assert "GATEWAY_DATA_DIR" in answer.error["message"]
    (tmp_path / "file").unlink()
    assert (await ask(layer, CHAT, headers=headers)).status == 401
    assert app.calls == 0


# -- the store ---------------------------------------------------------------------------------------------------------


async def test_a_store_fault_is_503_and_over_when_the_store_is_back() -> None:
    """Never 401: nothing was decided. No restart is needed."""
    one = await setup()
    one.store.broken = True
    answer = await one.ask()
    assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
    assert one.app.calls == 0
    one.store.broken = False
    assert served(await one.ask())


async def test_a_store_fault_while_a_tenant_is_looked_up_is_503() -> None:
    """The tenant acted for comes from the store as well."""
    one = await setup(key={"also_tenants": ("b",)})
    assert served(await one.ask())
    one.store.broken = True
    assert (await one.ask({**CHAT, "tenant": "b"})).status == 503


async def test_look_ups_are_asked_once_however_many_wait() -> None:
    """A thundering herd is one question."""
    one = await setup()
    one.store.gate.clear()
    calls = [asyncio.ensure_future(one.ask()) for _ in range(50)]
    await one.store.asked.wait()
    one.store.gate.set()
    assert all(map(served, await asyncio.gather(*calls)))
    assert one.store.lookups == 1


async def test_a_first_caller_that_leaves_takes_no_one_with_it() -> None:
    """The others wait on the same question."""
    one = await setup()
    one.store.gate.clear()
    first = asyncio.ensure_future(one.ask())
    await one.store.asked.wait()
    second = asyncio.ensure_future(one.ask())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    one.store.gate.set()
    assert served(await second)
    assert one.store.lookups == 1


async def test_look_ups_are_remembered_briefly() -> None:
    """A revoked key lives on for ``remember`` seconds and no longer."""
    one = await setup(remember=2.0)
    assert served(await one.ask())
    assert served(await one.ask())
    assert one.store.lookups == 1
    await one.store.revoke_key(one.key.id, one.clock.now)
    one.clock.now += 1.9
    assert served(await one.ask())
    one.clock.now += 0.1
    assert (await one.ask()).status == 401


async def test_nothing_is_remembered_where_zero_is_asked_for() -> None:
    """``remember=0``: each call asks the store."""
    one = await setup(remember=0.0)
    await one.ask()
    await one.ask()
    assert one.store.lookups == 2


async def test_an_expiring_key_ends_when_it_says() -> None:
    """Remembered or not."""
    one = await setup(key={"expires": 1001.0}, remember=60.0)
    assert served(await one.ask())
    one.clock.now = 1001.0
    assert (await one.ask()).status == 401


async def test_an_unknown_key_is_not_remembered() -> None:
    """A key that was made a moment ago works at once."""
    one = await setup()
    key, secret = new_key("b")
    headers = [JSON, (b"x-api-key", secret.encode())]
    assert (await ask(one.layer, CHAT, headers=headers)).status == 401
    await one.store.add_key(key)
    assert served(await ask(one.layer, CHAT, headers=headers))


async def test_memory_of_look_ups_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tenants' keys do not fill the process."""
    monkeypatch.setattr("asgi_llm_gateway.middleware._tenant_directory.KNOWN_LIMIT", 3)
    one = await setup()
    for _ in range(10):
        key, secret = new_key("b")
        await one.store.add_key(key)
        assert served(await ask(one.layer, CHAT, headers=[JSON, (b"x-api-key", secret.encode())]))
    assert len(one.layer._directory._known) <= 3
