"""The whole stack round a provider of media, a tenant with a budget, and the official SDK."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from asgi_llm_gateway import BudgetMiddleware, RateLimitMiddleware, TenantMiddleware, TracingMiddleware
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.prices import DEFAULT_PRICES, PriceTable
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import CallRecord, Tenant
from asgi_llm_gateway.stores.memory import MemoryLedger, MemoryStore
from asgi_llm_gateway.tracelog import TraceLog

from .media_provider import Provider, served
from .test_units import usd, wav


class House:
    """The stack round a stranger, a tenant with a budget, and the SDK."""

    def __init__(self, url: str, key: str, provider: Provider, ledger: MemoryLedger, traces: TraceLog) -> None:
        self.url = url
        self.key = key
        self.provider = provider
        self.ledger = ledger
        self.traces = traces
        self.client = openai.AsyncOpenAI(base_url=url + "/v1", api_key=key, max_retries=0)

    async def record(self) -> CallRecord:
        """The one record, when it is there; nothing is held any more."""
        async with asyncio.timeout(10):
            while True:
                found = (await self.ledger.records("acme")).records
                if found:
                    break
                await asyncio.sleep(0.01)
        (record,) = found
        balance = await self.ledger.balance("acme")
        assert (balance.spent, balance.held) == (record.cost, 0)
        return record

    async def post(self, path: str, **more: Any) -> httpx.Response:
        """A call without the SDK."""
        async with httpx.AsyncClient(trust_env=False) as client:
            headers = {"authorization": f"Bearer {self.key}", **more.pop("headers", {})}
            return await client.post(self.url + path, headers=headers, **more)


WAYS: list[str] = []


@pytest.fixture(autouse=True, params=["wrapped", "proxied"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether the layers stand round the stranger itself, or round a ProxyApp that asks it over the network."""
    WAYS.append(request.param)
    yield
    WAYS.pop()


MODELS = ("dall-e-2", "dall-e-3", "gpt-image-1", "mine", "whisper-1", "gpt-4o-transcribe", "tts-1", "gpt-4o-mini-tts",
          "omni-moderation-latest")  # fmt: skip


@asynccontextmanager
async def answering(provider: Provider) -> AsyncIterator[Any]:
    """Who answers, further in than all layers."""
    if WAYS[-1] == "wrapped":
        yield provider
        return
    async with served(provider) as url:
        router = Router(
            [OpenAIAdapter("openai", url + "/v1", "sk-theirs")], {name: [f"openai/{name}"] for name in MODELS}
        )
        app = ProxyApp(router=router)
        yield app
        await app.aclose()


@asynccontextmanager
async def house(budget: str = "100", *, prices: PriceTable = DEFAULT_PRICES, **fields: Any) -> AsyncIterator[House]:
    """A running one."""
    store, ledger, traces, provider = MemoryStore(), MemoryLedger(), TraceLog(), Provider()
    await store.add_tenant(Tenant("acme", budget=usd(budget), **fields))
    key, secret = new_key("acme")
    await store.add_key(key)
    async with answering(provider) as innermost:
        app: Any = BudgetMiddleware(innermost, ledger=ledger, prices=prices)
        app = TracingMiddleware(TenantMiddleware(RateLimitMiddleware(app), store=store), traces=traces)
        async with served(app) as url:
            made = House(url, secret, provider, ledger, traces)
            async with made.client:
                yield made


def file(seconds: float = 1.0) -> tuple[str, io.BytesIO, str]:
    """A WAV file as the SDK takes it."""
    return ("a.wav", io.BytesIO(wav(seconds)), "audio/wav")
