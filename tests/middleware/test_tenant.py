"""Who is calling: a key, and the tenant that it acts for."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.records import ApiKey, Identity, Tenant
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.stores.memory import MemoryStore
from asgi_llm_gateway.stores.shared import shared_tenants
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import CHAT, JSON, Answer, ask, call, get
from . import Stranger


class Clock:
    """Time, moved by hand."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Unix time in seconds."""
        return self.now


class Asked(MemoryStore):
    """A store that counts its look-ups, waits where the test wants it, and fails where the test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.lookups = 0
        self.broken = False
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def identify(self, digest: str) -> Identity | None:
        """See TenantStore."""
        self.lookups += 1
        self.asked.set()
        await self.gate.wait()
        if self.broken:
            raise StoreError("the database is away")
        return await super().identify(digest)

    async def tenant(self, tenant_id: str) -> Tenant | None:
        """See TenantStore."""
        if self.broken:
            raise StoreError("the database is away")
        return await super().tenant(tenant_id)


class Setup:
    """A store with tenants a and b, a key for a, and a middleware round an app."""

    def __init__(self, tenant: Tenant, key: ApiKey, secret: str, **settings: Any) -> None:
        self.tenant, self.key, self.secret = tenant, key, secret
        self.app = Stranger()
        self.store = Asked()
        self.clock = Clock()
        self.layer = TenantMiddleware(self.app, store=self.store, clock=self.clock, **settings)

    async def ask(self, body: Any = CHAT, *headers: tuple[bytes, bytes], path: str = "/v1/chat/completions") -> Answer:
        """A call with the key."""
        shown = (b"authorization", b"Bearer " + self.secret.encode())
        return await ask(self.layer, body, path, headers=[JSON, shown, *headers])


async def setup(*, key: dict[str, Any] | None = None, remember: float = 2.0, **tenant: Any) -> Setup:
    """See Setup; ``key`` and the others are fields of the key and of the tenant."""
    made, secret = new_key("a")
    found = Setup(Tenant("a", **tenant), replace(made, **(key or {})), secret, remember=remember)
    await found.store.add_tenant(found.tenant)
    await found.store.add_tenant(Tenant("b"))
    await found.store.add_key(found.key)
    return found


def served(answer: Answer) -> bool:
    """Whether the call went through."""
    return answer.status == 200


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


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_a_good_key_is_let_in_either_way() -> None:
    """As OpenAI's SDK sends it and as Anthropic's does; both at once if they agree."""
    one = await setup()
    secret = one.secret.encode()
    for shown in (
        [(b"authorization", b"Bearer " + secret)],
        [(b"Authorization", b"bearer  " + secret + b" ")],
        [(b"x-api-key", secret)],
        [(b"X-Api-Key", secret)],
        [(b"x-api-key", secret), (b"authorization", b"Bearer " + secret)],
        [(b"authorization", b"Basic Zm9vOmJhcg=="), (b"x-api-key", secret)],
    ):
        assert served(await ask(one.layer, CHAT, headers=[JSON, *shown])), shown


async def test_no_unknown_revoked_and_expired_keys_get_the_same_401() -> None:
    """Byte for byte the same, so that nothing can be learnt."""
    one = await setup()
    expired, old = new_key("a", expires=999.0)
    revoked, gone = new_key("a")
    orphan, lost = new_key("nobody")
    for key in (expired, replace(revoked, revoked=5.0), orphan):
        await one.store.add_key(key)
    _, unknown = new_key("a")
    headers: list[list[tuple[bytes, bytes]]] = [
        [],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Basic eDp5")],
    ]
    headers += [[(b"x-api-key", secret.encode())] for secret in (old, gone, lost, unknown)]
    answers = [await ask(one.layer, CHAT, headers=[JSON, *shown]) for shown in headers]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].error["code"] == "invalid_api_key"
    assert answers[0].headers["x-should-retry"] == "false"
    assert one.app.calls == 0


@pytest.mark.parametrize(
    "junk",
    [
        b"' OR '1'='1",
        b"gw-x'; DROP TABLE api_keys; --",
        b"gw-%00%27 UNION SELECT * FROM api_keys",
        b"\x00\xff\xfe",
        b"x" * 300,
        b"short",
        b"gw-\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9",
        b"gw-abcdefgh\nx: y",
        b"*" * 20,
        b'{"$gt": ""}',
    ],
)  # fmt: skip
async def test_what_can_be_no_key_never_reaches_the_store(junk: bytes) -> None:
    """Injections and junk are 401 without a look-up."""
    one = await setup()
    answer = await ask(one.layer, CHAT, headers=[JSON, (b"x-api-key", junk)])
    assert (answer.status, one.store.lookups, one.app.calls) == (401, 0, 0)


async def test_a_wrong_key_is_401_from_the_sql_store_too() -> None:
    """Shaped like a key, it is a value of a statement and no part of it."""
    layer = TenantMiddleware(Stranger())
    for secret in (b"gw-OR-1=1--", b"gw-/../../etc/passwd", b"=" * 40):
        assert (await ask(layer, CHAT, headers=[JSON, (b"x-api-key", secret)])).status == 401


async def test_two_keys_that_disagree_are_400() -> None:
    """Which of them acts must not be a matter of order."""
    one = await setup()
    _, other = new_key("b")
    answer = await one.ask(CHAT, (b"x-api-key", other.encode()))
    assert (answer.status, answer.error["code"]) == (400, "conflicting_credentials")
    assert one.secret not in answer.body.decode()
    assert one.app.calls == 0


async def test_a_key_is_asked_for_before_the_body_is_read() -> None:
    """A stranger can't make the gateway buffer."""
    one = await setup()
    async with call(one.layer, b"x" * 10_000, headers=[JSON], cut=10) as talk:
        answer = await talk.answer()
        assert answer.status == 401
        assert len(talk._pieces) == 1000


async def test_every_governed_path_asks_for_a_key() -> None:
    """Also those whose body is not read, and any method."""
    one = await setup()
    for path in ("/v1/models", "/v1/models/Qwen3", "/v1/files", "/v1/realtime/sessions", "/v1/chat/completions"):
        assert (await get(one.layer, path)).status == 401, path
        shown = [(b"x-api-key", one.secret.encode())]
        assert served(await get(one.layer, path, headers=shown)), path
    assert (await get(one.layer, "/health")).status == 200


async def test_govern_all_asks_on_every_path_but_health() -> None:
    """For model servers, whose other paths cost money too."""
    one = await setup()
    layer = TenantMiddleware(one.app, store=one.store, govern="all", paths={"/metrics": "open"})
    assert [(await get(layer, path)).status for path in ("/invocations", "/", "/health", "/metrics")] == [
        401,
        401,
        200,
        200,
    ]


# -- tenants -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["header", "body", "both"])
async def test_a_key_may_name_its_own_tenant(how: str) -> None:
    """By ``x-tenant-id``, by the body's ``tenant``, or by both; the field goes no further."""
    one = await setup()
    body = CHAT if how == "header" else {**CHAT, "tenant": "a"}
    headers = [] if how == "body" else [(b"x-tenant-id", b"a")]
    assert served(await one.ask(body, *headers))
    assert json.loads(one.app.bodies[0]) == CHAT


@pytest.mark.parametrize("name", ["b", "nobody", "", "A", "a ", "é", "' OR 1=1", "x" * 5000])
@pytest.mark.parametrize("how", ["header", "body"])
async def test_a_tenant_that_a_key_may_not_name_is_403_existing_or_not(name: str, how: str) -> None:
    """One code path: the answer does not tell whether there is such a tenant."""
    one = await setup()
    if how == "body":
        answer = await one.ask({**CHAT, "tenant": name})
    else:
        answer = await one.ask(CHAT, (b"x-tenant-id", name.encode()))
    other = await one.ask({**CHAT, "tenant": "surely-not-there"})
    assert (answer.status, answer.error["code"]) == (403, "tenant_not_found")
    assert answer.body == other.body
    assert one.app.calls == 0


async def test_header_and_body_that_disagree_are_refused() -> None:
    """Also two headers; even where the key may act for each of them."""
    one = await setup(key={"also_tenants": ("b",)})
    assert (await one.ask({**CHAT, "tenant": "a"}, (b"x-tenant-id", b"b"))).status == 403
    assert (await one.ask(CHAT, (b"x-tenant-id", b"a"), (b"x-tenant-id", b"b"))).status == 403
    assert one.app.calls == 0


async def test_a_key_acts_for_the_tenants_listed_on_it() -> None:
    """The call is then that tenant's; a listed one that does not exist is refused as any other."""
    one = await setup(key={"also_tenants": ("b", "gone")})
    traces = TraceLog()
    layer = TracingMiddleware(one.layer, traces=traces)
    headers = [JSON, (b"x-api-key", one.secret.encode())]
    assert served(await ask(layer, {**CHAT, "tenant": "b"}, headers=headers))
    assert served(await ask(layer, CHAT, headers=headers))
    assert [record.tenant for record in traces.recent()] == ["a", "b"]
    answer = await one.ask({**CHAT, "tenant": "gone"})
    assert (answer.status, answer.error["code"]) == (403, "tenant_not_found")


async def test_a_disabled_tenant_is_403() -> None:
    """Known, and not served."""
    one = await setup(enabled=False)
    answer = await one.ask()
    assert (answer.status, answer.error["code"]) == (403, "tenant_disabled")
    assert one.app.calls == 0


async def test_acting_for_a_disabled_tenant_is_403() -> None:
    """It is the tenant acted for that counts."""
    one = await setup(key={"also_tenants": ("b",)})
    await one.store.put_tenant(Tenant("b", enabled=False))
    assert (await one.ask({**CHAT, "tenant": "b"})).error["code"] == "tenant_disabled"


@pytest.mark.parametrize("where", ["tenant", "key"])
async def test_a_model_that_is_not_allowed_is_404_naming_what_is(where: str) -> None:
    """In the words used for a model that does not exist."""
    allowed = {"allowed_models": ("gpt-4", "small")}
    one = await setup(**({"key": allowed} if where == "key" else allowed))
    answer = await one.ask({**CHAT, "model": "dear"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert "gpt-4, small" in answer.error["message"]
    assert served(await one.ask({**CHAT, "model": "small"}))
    assert one.app.calls == 1


async def test_a_tenant_without_models_gets_none() -> None:
    """An empty list is not "all"."""
    one = await setup(allowed_models=())
    assert (await one.ask()).status == 404


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
