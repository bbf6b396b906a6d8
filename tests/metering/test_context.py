"""Whose call it is: the request that is served, or, outside of one, nobody or a tenant that was named."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from asgi_llm_gateway import _serving
from asgi_llm_gateway._asgi import Receive, Scope, Send, send_body
from asgi_llm_gateway.metering import MeteredTransport, current_exchange
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.records import Tenant, Usage
from asgi_llm_gateway.stores.memory import MemoryLedger
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import ask, scope_of
from ..middleware import Stranger
from .shop import ASKED, CEILING, COST, PATHS, PRICES, URL, As, Shop, answer

# -- outside -----------------------------------------------------------------------------------------------------------


async def test_outside_a_request_a_call_is_refused() -> None:
    """403 with a message that says how to go on."""

    async def handler() -> Any:
        return None

    shop = Shop(handler)
    refused = await shop.post()
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "no_exchange")
    assert refused.headers["x-should-retry"] == "false"
    assert "outside='pass'" in refused.json()["error"]["message"]
    assert shop.sent == []
    assert (await shop.post({}, "https://api.example/other")).status_code == 200
    await shop.ask()
    assert (await shop.post()).status_code == 403  # the context variable is reset


async def test_outside_a_request_a_call_may_pass() -> None:
    """Untouched, and not counted."""

    async def handler() -> Any:
        return None

    shop = Shop(handler)
    transport = MeteredTransport(httpx2.MockTransport(shop._provide), outside="pass")
    async with httpx2.AsyncClient(transport=transport) as client:
        assert (await client.post(URL, json={"model": "m"})).status_code == 200
    assert shop.sent == [{"model": "m"}]


async def test_outside_a_request_a_tenant_may_pay() -> None:
    """``outside="hold"``: a job is held and booked like a request, and refused beyond the tenant's budget."""

    async def handler() -> Any:
        return None

    shop = Shop(handler)
    tenant = Tenant("t", budget=CEILING + COST)
    inner = httpx2.MockTransport(shop._provide)
    transport = MeteredTransport(inner, outside="hold", tenant=tenant, ledger=shop.ledger, prices=PRICES)
    async with httpx2.AsyncClient(transport=transport) as client:
        statuses = [(await client.post(URL, json=ASKED)).status_code for _ in range(3)]
    assert statuses == [200, 200, 402]
    assert await shop.balance() == (2 * COST, 0)
    assert [record.cost for record in await shop.records()] == [COST, COST]
    inner = httpx2.MockTransport(shop._provide)
    nobody = MeteredTransport(inner, outside="hold", tenant="nobody", ledger=shop.ledger)
    async with httpx2.AsyncClient(transport=nobody) as client:
        assert (await client.post(URL, json=ASKED)).json()["error"]["code"] == "tenant_not_found"
    off = MeteredTransport(inner, outside="hold", tenant=Tenant("t", enabled=False), ledger=shop.ledger)
    async with httpx2.AsyncClient(transport=off) as client:
        assert (await client.post(URL, json=ASKED)).json()["error"]["code"] == "tenant_disabled"


def test_settings_that_can_not_be_meant_are_named() -> None:
    """Where they are given, not at the first call."""
    with pytest.raises(ValueError, match="outside='maybe'"):
        MeteredTransport(outside="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outside='hold'"):
        MeteredTransport(tenant="t")


def test_without_an_http_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither package is installed."""
    monkeypatch.setattr("asgi_llm_gateway.metering.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'asgi-llm-gateway\[httpx\]'"):
        MeteredTransport()


# -- the context -------------------------------------------------------------------------------------------------------


async def test_only_an_app_that_is_not_ours_sets_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our own layers, and for our own proxy, nothing is set; and nothing stays set."""
    served: list[Any] = []
    serve = _serving.serve

    def counting(app: Any, *rest: Any) -> Any:
        served.append(app)
        return serve(app, *rest)

    monkeypatch.setattr("asgi_llm_gateway.middleware.base.serve", counting)

    class Ours(Stranger):
        joins_exchange = True

    for app, times in ((Stranger(), 1), (Ours(), 0)):
        served.clear()
        await ask(As(BudgetMiddleware(app, ledger=MemoryLedger(), prices=PRICES), Tenant("t")), ASKED)
        assert len(served) == times
        assert current_exchange() is None


async def test_the_context_is_reset_in_the_servers_task() -> None:
    """A server that keeps one task for a connection finds nothing of the last request, also where the handler raised."""
    served: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(current_exchange())
        raise RuntimeError("the handler's own")

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        """Take it."""

    with pytest.raises(RuntimeError, match="own"):
        await TracingMiddleware(app, traces=TraceLog(), paths=PATHS)(scope_of("/ask"), receive, send)
    assert served[0] is not None
    assert current_exchange() is None


async def test_a_stack_without_a_budget_serves_metered_calls() -> None:
    """Nothing is held, nothing is booked, and the trace knows them."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with httpx2.AsyncClient(transport=MeteredTransport(httpx2.MockTransport(answer_of))) as client:
            assert (await client.post(URL, json=ASKED)).status_code == 200
        await send_body(send, 200, b"")

    def answer_of(request: Any) -> Any:
        assert json.loads(request.content) == ASKED
        return answer(httpx2)

    traces = TraceLog()
    said = await ask(TracingMiddleware(app, traces=traces, paths=PATHS), None, "/ask")
    trace = traces.find(said.headers["x-trace-id"])
    assert trace is not None
    assert (trace.usage, trace.model) == (Usage(3, 4), "m")


async def test_on_a_path_of_the_api_the_answer_is_not_read() -> None:
    """The handler's calls are what is paid, not what its answer says of itself; the entry hold covers the first of them."""

    async def handler() -> Any:
        await shop.post()
        return {"choices": [], "usage": {"prompt_tokens": 500, "completion_tokens": 500}}

    shop = Shop(handler, 10_000)
    await shop.ask("/v1/chat/completions", ASKED)
    assert await shop.balance() == (COST, 0)
