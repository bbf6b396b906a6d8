"""A tenant's purse before an app, and the handlers and ledgers that the tests of the budget play."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.exchange import KEY, Exchange
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.records import Amount, CallRecord, Hold, Identity, Limit, Price, Refusal, Target, Tenant, Usage
from asgi_llm_gateway.stores.memory import MemoryLedger
from asgi_llm_gateway.tokens import FIXED_TOKENS

from ..conversation import Answer, ask

# A prompt token costs one nano-USD, a completion token two.
PRICES = PriceTable({"m": Price(1_000_000, 2_000_000), "dear": Price(1_000_000, 20_000_000)})
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "one two three"}]}
BOUND = len(json.dumps(ASKED)) + FIXED_TOKENS
"""At most so many prompt tokens, and so many nano-USD for them."""
QUARTER = -(-len(json.dumps(ASKED)) // 4)
"""The estimate of the same prompt."""


class As(LLMMiddleware):
    """Says who is calling, in TenantMiddleware's place."""

    rank = Rank.TENANT

    def __init__(self, app: Any, tenant: Tenant, **settings: Any) -> None:
        super().__init__(app, **settings)
        self._tenant = tenant

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        exchange.identity = Identity(self._tenant, None)
        await self.forward(exchange, scope, receive, send)


class Purse:
    """A tenant with a budget in nano-USD, and a stack round an app."""

    def __init__(self, app: Any, budget: int | None, *, ledger: MemoryLedger | None = None, **more: Any) -> None:
        self.app = app
        self.ledger = ledger or MemoryLedger()
        paths = more.pop("paths", None)
        layer = BudgetMiddleware(app, ledger=self.ledger, prices=more.pop("prices", PRICES), paths=paths, **more)
        self.stack = As(layer, Tenant("t", budget=budget), paths=paths)

    async def ask(self, body: Any = ASKED, path: str = "/v1/chat/completions") -> Answer:
        """A call."""
        return await ask(self.stack, body, path)

    async def balance(self) -> tuple[int, int]:
        """Spent and held."""
        balance = await self.ledger.balance("t")
        return balance.spent, balance.held

    async def record(self) -> CallRecord:
        """The one record there is."""
        (record,) = (await self.ledger.records("t")).records
        return record


def limited(tokens: int, **more: Any) -> dict[str, Any]:
    """A request with an output limit, of the same length as ASKED's bound plus what that adds."""
    return {**ASKED, "max_tokens": tokens, **more}


def bound(body: dict[str, Any]) -> int:
    """At most so many prompt tokens."""
    return len(json.dumps(body)) + FIXED_TOKENS


class Calling:
    """A handler that makes upstream calls itself, and tells the exchange of them."""

    def __init__(self, *models: str, usage: Usage | None = Usage(1, 1), together: bool = False) -> None:  # noqa: B008
        self._models = models
        self._usage = usage
        self._together = together
        self.made: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        exchange: Exchange = scope[KEY]
        exchange.exact = True
        targets = [Target("p", model) for model in self._models]
        if self._together:
            calls = await asyncio.gather(*(exchange.begin_call(target) for target in targets))
            self.made += self._models
            for one in calls:
                one.end(self._usage)
        else:
            for target in targets:
                one = await exchange.begin_call(target)
                self.made.append(target.model)
                one.end(self._usage)
        await exchange.end()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


class Counting(MemoryLedger):
    """A ledger that takes its time, notes how holds end, and watches what must never happen."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.ended: list[str] = []
        self.limit = limit

    async def check(self) -> None:
        """``settled + held <= budget``, after every verb."""
        balance = await self.balance("t")
        assert balance.held >= 0
        if self.limit is not None:
            assert balance.spent + balance.held <= self.limit

    async def hold(self, tenant: str, **more: Any) -> Hold | Refusal:
        """See Ledger."""
        await asyncio.sleep(0)
        found = await super().hold(tenant, **more)
        await self.check()
        return found

    async def raise_hold(self, hold: Hold, amount: Amount, *, limits: tuple[Limit, ...]) -> Hold | Refusal:
        """See Ledger."""
        await asyncio.sleep(0)
        found = await super().raise_hold(hold, amount, limits=limits)
        await self.check()
        await asyncio.sleep(0)
        return found

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger."""
        await asyncio.sleep(0)
        done = await super().settle(hold, record)
        if done:
            self.ended.append("settle")
        await self.check()
        await asyncio.sleep(0)
        return done

    async def release(self, hold: Hold) -> bool:
        """See Ledger."""
        await asyncio.sleep(0)
        done = await super().release(hold)
        if done:
            self.ended.append("release")
        await self.check()
        return done
