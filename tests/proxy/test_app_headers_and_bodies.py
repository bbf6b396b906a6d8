"""ProxyApp: what of a request goes up to the provider, and which headers come back."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_llm_gateway.exchange import KEY, Exchange
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.wire import Table

from ..conversation import JSON, ask
from ..upstream import ANSWER, HOST, always, upstream, whole
from .single import ASKED, SECRET, gateway, provider


async def test_a_body_goes_up_byte_for_byte() -> None:
    """Unknown fields, spaces and the order of keys are the client's own."""
    raw = b'{ "model": "gpt-4o-mini",\n "messages":[{"role":"user","content":"h\\u00e9"}], "new_field": {"a": 1.50, "b":null} }'
    async with gateway(always(whole())) as (app, server):
        answer = await ask(app, raw)
        assert (answer.status, answer.json()) == (200, ANSWER)
        assert server.requests[0].body == raw
        assert (server.requests[0].method, server.requests[0].path) == ("POST", "/v1/chat/completions")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "gpt-4o-mini", "prompt": "once"}),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "once"}),
    ],
)
async def test_the_other_paths_go_where_they_belong(path: str, body: dict[str, Any]) -> None:
    """Completions and embeddings."""
    async with gateway(always(whole())) as (app, server):
        assert (await ask(app, body, path)).status == 200
        assert server.requests[0].path == path


async def test_the_clients_headers_stay_here() -> None:
    """The provider gets the gateway's key and nothing of what the client sent besides the body."""
    sent = [
        JSON,
        (b"authorization", b"Bearer client-key"),
        (b"cookie", b"session=1"),
        (b"x-foo", b"bar"),
        (b"x-api-key", b"client-key"),
        (b"openai-organization", b"org-1"),
        (b"x-forwarded-for", b"10.1.2.3"),
        (b"host", b"gateway.example.com"),
        (b"accept-encoding", b"gzip"),
        (b"user-agent", b"curl/8"),
    ]
    async with gateway(always(whole())) as (app, server):
        await ask(app, ASKED, headers=sent)
        up = server.requests[0].headers
    assert up["authorization"] == f"Bearer {SECRET}"
    assert up["host"] == f"{HOST}:{server.port}"
    assert up["accept-encoding"] == "identity"
    assert up["user-agent"].startswith("asgi-llm-gateway/")
    assert up["content-type"] == "application/json"
    assert set(up) == {
        "host", "content-type", "content-length", "accept", "accept-encoding", "user-agent", "authorization",
        "x-llm-gateway-hop",
    }  # fmt: skip


async def test_the_providers_headers_come_back_by_list() -> None:
    """No cookie, no server, no rate limit of the gateway's own account."""
    extra = [
        ("Set-Cookie", "a=b"), ("Server", "cloudflare"), ("x-ratelimit-remaining-requests", "7"), ("x-request-id", "up"),
        ("openai-organization", "org-secret"), ("openai-processing-ms", "12"), ("openai-version", "2020-10-01"),
        ("Access-Control-Allow-Origin", "*"), ("Connection", "keep-alive"), ("CF-Ray", "1"),
    ]  # fmt: skip
    async with gateway(always(whole(headers=extra))) as (app, _):
        answer = await ask(app, ASKED)
    assert answer.headers == {
        "content-type": "application/json",
        "content-length": str(len(answer.body)),
        "openai-processing-ms": "12",
        "openai-version": "2020-10-01",
        "x-llm-provider": "openai",
    }


async def test_the_tenant_field_stays_here() -> None:
    """It is the gateway's own."""
    async with gateway(always(whole())) as (app, server):
        assert (await ask(app, {**ASKED, "tenant": "default", "user": "u-1"})).status == 200
        assert server.requests[0].json() == {**ASKED, "user": "u-1"}


@pytest.mark.parametrize("field", ["api_base", "base_url", "api_key", "extra_headers"])
async def test_a_field_that_routes_money_or_trust_is_refused(field: str) -> None:
    """Only the operator says where calls go; nothing goes out."""
    async with gateway(always(whole())) as (app, server):
        answer = await ask(app, {**ASKED, field: "http://evil.example"})
        assert (answer.status, answer.error["param"]) == (400, field)
        assert server.requests == []


async def test_a_prefix_is_taken_off_the_model() -> None:
    """``openai/gpt-x`` is ``gpt-x`` there; what OpenRouter calls ``vendor/model`` stays."""
    async with upstream(always(whole())) as server:
        app = ProxyApp(router=Router([provider(server), provider(server, "openrouter")]))
        for name in ("openai/gpt-9", "gpt-9", "openrouter/mistral/large", "mistral/large"):
            assert (await ask(app, {**ASKED, "model": name})).status == 200
        await app.aclose()
        assert [asked.json()["model"] for asked in server.requests] == [
            "gpt-9", "gpt-9", "mistral/large", "mistral/large",
        ]  # fmt: skip


class Clamp:
    """What a budget does: it puts an output limit in where the client gave none."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(self, Table().match(scope), scope)
        receive = await exchange.read(receive, scope)
        exchange.amend(max_tokens=77)
        await self._app({**scope, KEY: exchange}, receive, send)


@pytest.mark.parametrize(
    ("name", "expected"), [("openai", {"max_completion_tokens": 77}), ("vllm", {"max_tokens": 77})]
)
async def test_a_limit_of_ours_goes_by_the_vendors_name(name: str, expected: dict[str, int]) -> None:
    """OpenAI's newer models refuse ``max_tokens``."""
    async with gateway(always(whole()), name=name) as (app, server):
        assert (await ask(Clamp(app), {**ASKED, "model": f"{name}/gpt-5"})).status == 200
        up = server.requests[0].json()
    assert {key: value for key, value in up.items() if key.startswith("max")} == expected


async def test_a_limit_of_the_clients_keeps_its_name() -> None:
    """It was asked for so."""
    async with gateway(always(whole())) as (app, server):
        await ask(app, {**ASKED, "max_tokens": 5})
        assert server.requests[0].json() == {**ASKED, "max_tokens": 5}
