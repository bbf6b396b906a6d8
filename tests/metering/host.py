"""A FastAPI app that is wrapped by the gateway's layers, whose SDK clients call a provider on loopback."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx2
import openai
from fastapi import FastAPI

from asgi_llm_gateway import BudgetMiddleware, MemoryStore, MeteredTransport, Tenant, TenantMiddleware
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.records import Price
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import JSON, Answer, ask
from ..upstream import DONE, Script, Upstream, upstream, usage_event, word

PATHS = {"/ask": "metered"}
PRICES = PriceTable({"m": Price(1_000_000, 2_000_000)})
COST = 3 + 2 * 5
"""What a call costs: the provider played here says three prompt tokens and five of completion."""
HELLO: Any = [{"role": "user", "content": "hi"}]
SECRET = "gw-a-key-for-the-handlers-of-these-tests"
CHAT_STREAM = (word("one"), word(" two"), word("", "stop"), usage_event(), DONE)


class Host:
    """A FastAPI app with a route ``/ask``, the layers round it, and SDK clients whose calls they meter."""

    def __init__(self, provider: Upstream, budget: int | None) -> None:
        self.provider = provider
        self.store = MemoryStore()
        self.tenant = Tenant("team", budget=budget)
        self.traces = TraceLog()
        self.app = FastAPI()
        self.app.add_middleware(BudgetMiddleware, ledger=self.store, prices=PRICES, paths=PATHS)
        self.app.add_middleware(TenantMiddleware, store=self.store, paths=PATHS)
        self.app.add_middleware(TracingMiddleware, traces=self.traces, paths=PATHS)
        self.http = httpx2.AsyncClient(transport=MeteredTransport())
        self.openai = openai.AsyncOpenAI(base_url=provider.url(), api_key="sk-theirs", http_client=self.http)
        self.anthropic = anthropic.AsyncAnthropic(base_url=provider.url(""), api_key="sk-theirs", http_client=self.http)

    def route(self, handler: Callable[..., Any]) -> None:
        """What ``/ask`` does."""
        self.app.post("/ask", response_model=None)(handler)

    async def ask(self, body: Any = None) -> Answer:
        """A call of the tenant's."""
        return await ask(self.app, body, "/ask", headers=self.headers)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """With the tenant's key."""
        return [JSON, (b"authorization", b"Bearer " + SECRET.encode())]

    async def spent(self) -> int:
        """What was spent; nothing is held any more, and the records are the same."""
        gc.collect()
        async with asyncio.timeout(5):
            while (balance := await self.store.balance("team")).held:  # noqa: ASYNC110 - the store tells nobody
                await asyncio.sleep(0.005)
        records = (await self.store.records("team")).records
        assert balance.spent == sum(record.cost for record in records)
        return balance.spent


@asynccontextmanager
async def host(*scripts: Script, budget: int | None = 100_000) -> AsyncIterator[Host]:
    """A host for the length of a test."""
    async with upstream(*scripts) as provider:
        made = Host(provider, budget)
        await made.store.add_tenant(made.tenant)
        await made.store.add_key(new_key("team", secret=SECRET)[0])
        try:
            yield made
        finally:
            await made.http.aclose()


async def chat(host: Host, **more: Any) -> Any:
    """A chat."""
    return await host.openai.chat.completions.create(model="m", messages=HELLO, max_tokens=50, **more)
