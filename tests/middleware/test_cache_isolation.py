"""One tenant's answers are invisible to another: a cache that is asked by many never mixes two of them up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.exchange import Exchange
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.middleware.cache import CacheMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.records import ApiKey, Identity, Tenant
from asgi_llm_gateway.stores.memory import MemoryStore

from ..caching import JSON, PATHS, Counting, asking, text_of, text_of_stream
from ..conversation import ask
from ..stores.redis_servers import RedisServer, redis_server
from ..upstream import until


class AsTold(LLMMiddleware):
    """Believes the header ``x-test-tenant``, in TenantMiddleware's place."""

    rank = Rank.TENANT

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        name, _, models = (exchange.sent(scope).get(b"x-test-tenant") or b"").decode().partition("|")
        allowed = tuple(models.split(",")) if models else None
        exchange.identity = Identity(Tenant(name), ApiKey("k", name, "", allowed_models=allowed))
        await self.forward(exchange, scope, receive, send)


class Named(Counting):
    """Its answer names the tenant as well."""

    def words(self, scope: Scope, body: dict[str, Any]) -> str:
        """See Counting."""
        exchange = scope["asgi_llm_gateway.exchange"]
        seen = [exchange.identity.tenant.id, exchange.identity.key.allowed_models]
        headers = sorted((n.decode(), v.decode()) for n, v in scope["headers"] if n in (b"anthropic-beta", b"cookie"))
        query = scope["query_string"].decode()
        fields = sorted((name, value) for name, value in body.items() if name not in ("stream", "stream_options"))
        return json.dumps([*seen, headers, query, scope["path"], fields]).replace('"', "'")


TENANT = st.sampled_from(["a", "b", "a b", "ab", "", "default", "a,b"])
CALL = st.fixed_dictionaries(
    {
        "tenant": TENANT,
        "models": st.sampled_from(["", "m", "m,n"]),
        "dialect": st.sampled_from(["chat", "completions", "messages", "responses", "embeddings"]),
        "path": st.sampled_from(["", "/other"]),
        "query": st.sampled_from([b"", b"beta=true"]),
        "headers": st.sampled_from([(), ((b"anthropic-beta", b"x"),), ((b"cookie", b"who=1"),), ((b"cookie", b"who=2"),)]),
        "stream": st.booleans(),
        "body": st.fixed_dictionaries(
            {"model": st.sampled_from(["m", "n"])},
            optional={
                "user": st.sampled_from(["u", "v"]), "top_p": st.sampled_from([0.1, 1]), "seed": st.integers(0, 1),
                "system": st.sampled_from(["s", "t"]), "tools": st.sampled_from([[{"name": "f"}], [{"name": "g"}]]),
                "temperature": st.just(0), "metadata": st.sampled_from([{"user_id": "1"}, {"user_id": "2"}]),
            },
        ),
        "text": st.sampled_from(["one", "two"]),
    }
)  # fmt: skip


async def said(app: Any, one: dict[str, Any]) -> str:
    """What a call is answered."""
    dialect = one["dialect"]
    body = {**asking(dialect, one["text"]), **one["body"]}
    stream = one["stream"] and dialect != "embeddings"
    if stream:
        body["stream"] = True
    who = f"{one['tenant']}|{one['models']}".encode()
    answer = await ask(
        app, body, one["path"] + PATHS[dialect], query_string=one["query"],
        headers=(JSON, (b"x-test-tenant", who), *one["headers"]),
    )  # fmt: skip
    assert answer.status == 200
    return text_of_stream(dialect, answer.body) if stream else text_of(dialect, answer.json())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CALL, min_size=2, max_size=12), st.booleans())
def test_nobody_gets_an_answer_to_another_request(calls: list[dict[str, Any]], at_once: bool) -> None:
    """Whatever differs: tenant, what its key may use, dialect, path, headers, model, messages, tools, sampling, user; one
    after the other or at once, streamed or not: each gets what an app without a cache would have answered."""

    async def run() -> None:
        cached, plain = AsTold(CacheMiddleware(Named())), AsTold(Named())
        if at_once:
            answers = await asyncio.gather(*(said(cached, one) for one in calls * 2))
        else:
            answers = [await said(cached, one) for one in calls * 2]
        assert answers == [await said(plain, one) for one in calls * 2]

    asyncio.run(run())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis that all share."""
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


def as_(tenant: str) -> dict[str, Any]:
    """Headers of a tenant's call."""
    return {"headers": (JSON, (b"x-test-tenant", tenant.encode()))}


async def cache_of(app: Any, tenant: str, **more: Any) -> str:
    """What the cache did."""
    return str((await ask(app, asking("chat", **more), **as_(tenant))).headers["x-cache"])


@pytest.mark.parametrize("redis", [False, True])
async def test_tenants_share_only_where_they_are_named(redis: bool, server: RedisServer) -> None:
    """Each of the named with each other, and with nobody else; in Redis too."""
    server.ask("FLUSHALL")
    app = AsTold(CacheMiddleware(Counting(), shared=["a", "b"], redis_url=server.url if redis else ""))
    assert [await cache_of(app, tenant) for tenant in ("a", "b", "c", "d", "c", "a")] == [
        "miss", "hit", "miss", "miss", "hit", "hit",
    ]  # fmt: skip


async def test_tenants_do_not_share_a_call_under_way() -> None:
    """Nor do they join each other."""
    ready = asyncio.Event()
    model = Counting(before=ready)
    app = AsTold(CacheMiddleware(model))
    tasks = [asyncio.ensure_future(cache_of(app, tenant)) for tenant in ("a", "b", "a", "b")]
    await until(lambda: model.calls == 2)
    await asyncio.sleep(0.05)
    ready.set()
    assert sorted(await asyncio.gather(*tasks)) == ["joined", "joined", "miss", "miss"]


async def test_without_tenants_the_credentials_are_the_owner() -> None:
    """An app that authenticates its own users stays in charge: nobody gets in on another's key, or on none."""
    app = CacheMiddleware(Counting())
    shown = [(), ((b"authorization", b"Bearer a"),), ((b"authorization", b"Bearer b"),), ((b"x-api-key", b"a"),),
             ((b"api-key", b"a"),)]  # fmt: skip
    for _ in range(2):
        found = [(await ask(app, asking("chat"), headers=(JSON, *one))).headers["x-cache"] for one in shown]
    assert found == ["hit"] * 5
    fresh = CacheMiddleware(Counting())
    found = [(await ask(fresh, asking("chat"), headers=(JSON, *one))).headers["x-cache"] for one in shown]
    assert found == ["miss"] * 5


async def test_a_key_that_is_no_more_gets_nothing() -> None:
    """The tenant gate stands outside: a revoked, unknown or missing key never reaches the cache."""
    store = MemoryStore()
    await store.put_tenant(Tenant("a"))
    key, secret = new_key("a")
    await store.add_key(key)
    app = TenantMiddleware(CacheMiddleware(Counting()), store=store, remember=0.0)
    auth = (b"authorization", b"Bearer " + secret.encode())
    assert [(await ask(app, asking("chat"), headers=(JSON, auth))).headers["x-cache"] for _ in range(2)] == [
        "miss",
        "hit",
    ]
    await store.revoke_key(key.id, 0.0)
    assert (await ask(app, asking("chat"), headers=(JSON, auth))).status == 401
    assert (await ask(app, asking("chat"))).status == 401


@pytest.mark.parametrize("header", [b"x-cache-key", b"x-cache-namespace", b"x-tenant-id", b"x-litellm-cache-key"])
async def test_no_header_leads_to_anothers_answers(header: bytes) -> None:
    """What a client sends can take a hit away from it, and give it none."""
    app = AsTold(CacheMiddleware(Counting()))
    await cache_of(app, "a")
    answer = await ask(app, asking("chat"), headers=(JSON, (b"x-test-tenant", b"b"), (header, b"a")))
    assert answer.headers["x-cache"] == "miss"


async def test_more_headers_can_be_said_to_matter() -> None:
    """Such as one by which the app chooses a language, or its host."""
    app = CacheMiddleware(Counting(headers=[(b"vary", b"accept-encoding")]), headers=["Accept-Language"])
    found = [
        (await ask(app, asking("chat"), headers=(JSON, (b"accept-language", tongue)))).headers["x-cache"]
        for tongue in (b"de", b"en", b"de")
    ]
    assert found == ["miss", "miss", "hit"]


async def test_namespaces_keep_gateways_apart(server: RedisServer) -> None:
    """Two that have one Redis and not the same models."""
    server.ask("FLUSHALL")
    one, other = [CacheMiddleware(Counting(), redis_url=server.url, namespace=name) for name in ("live", "test")]
    same = CacheMiddleware(Counting(), redis_url=server.url, namespace="live")
    found = [(await ask(app, asking("chat"))).headers["x-cache"] for app in (one, other)]
    await until(lambda: server.ask("DBSIZE") == ":2")
    assert [*found, (await ask(same, asking("chat"))).headers["x-cache"]] == ["miss", "miss", "hit"]


async def test_no_prompt_and_no_secret_stands_in_the_names_or_the_log(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What is kept is the answer; what was asked, and by whom, is a digest."""
    server.ask("FLUSHALL")
    caplog.set_level("DEBUG")
    app = CacheMiddleware(Counting(), redis_url=server.url)
    await ask(app, asking("chat", "my-secret-prompt"), headers=(JSON, (b"authorization", b"Bearer my-secret-key")))
    await until(lambda: server.ask("DBSIZE") == ":1")
    (name,) = [line for line in server.ask("KEYS", "*").split("\r\n") if line.startswith("gw:")]
    assert len(name) == len("gw:cache:") + 64
    stored = server.ask("GET", name)
    for text in (name, stored, caplog.text, repr(app)):
        assert "my-secret" not in text
