"""Who is calling: the tenant that a key acts for."""

from __future__ import annotations

import json

import pytest

from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import CHAT, JSON, ask
from .tenant_parts import served, setup


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
