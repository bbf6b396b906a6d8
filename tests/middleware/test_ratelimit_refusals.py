"""A refused call is a call: it counts, and is told where its caller stands."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.stores.memory import MemoryStore

from ..conversation import JSON, ask

KEY = "gw-a-key-of-the-test-0123456789"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
}
LIMITS: list[dict[str, Any]] = [{}, {"tokens": 10**6}, {"queue_seconds": 1.0}, {"concurrency": 5}]


async def house(**limits: Any) -> TenantMiddleware:
    """Tenant and rate limit before the echo; three calls in a minute."""
    store = MemoryStore()
    await store.add_tenant(Tenant("acme", allowed_models=("echo",)))
    key, _ = new_key("acme", secret=KEY)
    await store.add_key(key)
    inner = RateLimitMiddleware(ProxyApp(router=Router([EchoAdapter()])), requests=3, window=60, **limits)
    return TenantMiddleware(inner, store=store)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("limits", LIMITS, ids=["requests", "tokens", "queue", "calls"])
async def test_a_refused_call_counts_and_tells_the_limits(path: str, limits: dict[str, Any]) -> None:
    """A bad body and a model that is not the caller's take a request each; then the window is full for good calls, too."""
    app = await house(**limits)
    headers = [JSON, (b"authorization", b"Bearer " + KEY.encode())]
    good = {"model": "echo", **BODIES[path]}
    for body, status, left in (
        ({**good, "model": 7}, 400, "2"),
        ({**good, "model": "other"}, 404, "1"),
        (good, 200, "0"),
    ):
        answer = await ask(app, body, path, headers=headers)
        assert (answer.status, answer.headers["x-ratelimit-remaining-requests"]) == (status, left)
    assert (await ask(app, good, path, headers=headers)).status == 429
    answer = await ask(app, {**good, "model": 7}, path, headers=headers)
    assert answer.status == 429  # nobody floods the gateway with what it refuses


@pytest.mark.parametrize("limits", LIMITS[1:], ids=["tokens", "queue", "calls"])
async def test_a_bad_body_counts_without_tenants_too(limits: dict[str, Any]) -> None:
    """The layer alone reads the body before it knows what to take."""
    app = RateLimitMiddleware(ProxyApp(router=Router([EchoAdapter()])), requests=2, window=60, **limits)
    for status in (400, 400, 429):
        answer = await ask(app, {"model": 7, "messages": []}, headers=[JSON])
        assert answer.status == status
        assert "x-ratelimit-remaining-requests" in answer.headers


async def test_what_is_refused_reaches_nobody_further_in() -> None:
    """Also where the layers stand in another order: no rate limit directly behind the tenant."""
    reached = []

    async def stranger(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    store = MemoryStore()
    await store.add_tenant(Tenant("acme", allowed_models=("echo",)))
    key, _ = new_key("acme", secret=KEY)
    await store.add_key(key)
    headers = [JSON, (b"authorization", b"Bearer " + KEY.encode())]
    for app in (
        TenantMiddleware(stranger, store=store),
        TenantMiddleware(RateLimitMiddleware(stranger, requests=9, window=60), store=store),
        TenantMiddleware(
            RateLimitMiddleware(RateLimitMiddleware(stranger, requests=9, window=60), requests=9, window=60),
            store=store,
        ),
    ):
        for body, status in (
            ({"model": 7, "messages": []}, 400),
            ({"model": "other", **BODIES["/v1/chat/completions"]}, 404),
        ):
            assert (await ask(app, body, headers=headers)).status == status
    assert not reached
