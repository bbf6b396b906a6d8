"""A gateway before several scripted providers, with money and traces round it: what the tests of the routing look at."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.adapters.compatible import OPENAI
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.exchange import Exchange
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.health import BreakerRules, Health
from asgi_llm_gateway.proxy.routing import Model, Router
from asgi_llm_gateway.proxy.transfer import Timeouts
from asgi_llm_gateway.records import ApiKey, CallRecord, Identity, Price, Tenant, TraceRecord
from asgi_llm_gateway.stores.memory import MemoryLedger
from asgi_llm_gateway.tokens import estimate, plain_bound
from asgi_llm_gateway.tracelog import TraceLog
from asgi_llm_gateway.wire import Route, parse

from ..conversation import Answer, ask, call
from ..upstream import HOST, USAGE, Script, Upstream, refused_port, upstream

SECRET = "sk-provider-0123456789abcdef"
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
STREAMED = {**ASKED, "stream": True}
QUICK = Timeouts(connect=2, write=2, first_byte=0.3, idle=0.3, total=20, first_event=0.3)
PATIENT = Timeouts(connect=20, write=20, first_byte=20, idle=20, total=40, first_event=20)

# Nano-USD per million tokens: a prompt token of "a" costs 1 nano-USD, of "b" ten times that; of an answer twice as much.
PRICES = PriceTable({
    "m": Price(1_000_000, 2_000_000),
    "a/x": Price(1_000_000, 2_000_000),
    "b/x": Price(10_000_000, 20_000_000),
    "c/x": Price(100_000_000, 200_000_000),
})  # fmt: skip
COST = USAGE["prompt_tokens"] + 2 * USAGE["completion_tokens"]
"""Nano-USD of a whole answer of "a"; of "b" ten times that, of "c" a hundred times."""

NOBODY: Script | None = None
"""A provider that refuses connections."""


def guessed(body: Mapping[str, Any] = ASKED) -> int:
    """Nano-USD of a call of "a" of which nobody knows what it used."""
    return estimate(parse(Route("metered", "chat", ""), json.dumps(body).encode())).prompt


def ceiling(body: Mapping[str, Any] = ASKED) -> int:
    """Nano-USD that are held for a call of "a"; for one of "b" ten times that."""
    most = plain_bound(parse(Route("metered", "chat", ""), json.dumps(body).encode()))
    assert most is not None
    return most + 2 * int(body["max_tokens"])


class _As(LLMMiddleware):
    """Says who is calling, in TenantMiddleware's place."""

    rank = Rank.TENANT

    def __init__(self, app: Any, identity: Identity) -> None:
        super().__init__(app)
        self._identity = identity

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        exchange.identity = self._identity
        await self.forward(exchange, scope, receive, send)


@dataclass
class House:
    """A running gateway.

    Attributes:
        app: Its outermost layer.
        proxy: Its innermost.
        router: Its targets.
        servers: The providers by name; one that refuses connections is not there.
        ledger: Its money, of the tenant ``t``.
        traces: Its traces.
    """

    app: Any
    proxy: ProxyApp
    router: Router
    servers: dict[str, Upstream]
    ledger: MemoryLedger
    traces: TraceLog

    async def ask(self, body: Any = ASKED, **more: Any) -> Answer:
        """A call to its end."""
        return await ask(self.app, body, **more)

    def call(self, body: Any = ASKED, **more: Any) -> Any:
        """A call by hand."""
        return call(self.app, body, **more)

    def asked(self, name: str) -> int:
        """How many requests a provider got."""
        return len(self.servers[name].requests)

    def health(self, name: str) -> Health:
        """The health of a provider's model ``x``."""
        return self.router.way(f"{name}/x").places[0].health

    @property
    def trace(self) -> TraceRecord:
        """The last call's."""
        return self.traces.recent(1)[0]

    @property
    def attempts(self) -> list[tuple[str, int | None, str | None]]:
        """What the last call tried: provider, its status, what came of it."""
        return [(one.provider, one.status, one.error) for one in self.trace.attempts]

    async def settled(self) -> int:
        """Nano-USD that were booked; nothing is held any more, and what was booked is what was recorded."""
        balance = await self.ledger.balance("t")
        assert (balance.held, balance.tokens_held) == (0, 0)
        assert balance.spent == sum(record.cost for record in await self.records())
        assert all(self.health(name).pending == 0 for name in ("a", "b", "c"))
        return balance.spent

    async def records(self) -> Sequence[CallRecord]:
        """What was recorded, newest first."""
        return (await self.ledger.records("t", limit=100)).records


@asynccontextmanager
async def house(
    a: Script | Sequence[Script] | None,
    b: Script | Sequence[Script] | None = NOBODY,
    c: Script | Sequence[Script] | None = NOBODY,
    *,
    model: Model | None = None,
    models: Mapping[str, Model] | None = None,
    tenant: Tenant | None = None,
    key: ApiKey | None = None,
    breaker: BreakerRules | None = None,
    retries: int = 0,
    timeouts: Timeouts = PATIENT,
    prices: PriceTable = PRICES,
    inner: Callable[[Any], Any] = lambda app: app,
) -> AsyncIterator[House]:
    """Providers "a", "b" and "c", each with a model "x", and the name "m" for "a/x" (or what ``model`` says).

    ``inner`` puts something round the ProxyApp, inside the budget.
    """
    async with AsyncExitStack() as stack:
        servers: dict[str, Upstream] = {}
        adapters = []
        for name, scripts in (("a", a), ("b", b), ("c", c)):
            if scripts is None:
                taken, port = refused_port()
                stack.enter_context(taken)
                url = f"http://{HOST}:{port}/v1"
            else:
                server = await stack.enter_async_context(upstream(*([scripts] if callable(scripts) else scripts)))
                servers[name] = server
                url = server.url()
            adapters.append(OpenAIAdapter(name, url, SECRET, vendor=OPENAI, models=["x"]))
        router = Router(adapters, {"m": model or Model(["a/x"]), **(models or {})}, breaker=breaker)
        proxy = ProxyApp(router=router, timeouts=timeouts, max_retries=retries, prices=prices)
        ledger, traces = MemoryLedger(), TraceLog()
        identity = Identity(tenant or Tenant("t", budget=10**12), key)
        app = TracingMiddleware(
            _As(BudgetMiddleware(inner(proxy), ledger=ledger, prices=prices, prompt_bound="bytes"), identity),
            traces=traces,
        )
        yield House(app, proxy, router, servers, ledger, traces)
        await proxy.aclose()
