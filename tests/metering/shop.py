"""A handler behind the gateway's layers, the purse that pays for it, and a provider that is played."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import httpx2

from asgi_llm_gateway._asgi import ASGIApp, Receive, Scope, Send, send_body
from asgi_llm_gateway.metering import MeteredTransport
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.records import CallRecord, Identity, Price, Tenant
from asgi_llm_gateway.stores.memory import MemoryLedger
from asgi_llm_gateway.tokens import FIXED_TOKENS
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import Answer, ask
from ..middleware import DONE, counts, words

PATHS = {"/ask": "metered"}
PRICES = PriceTable({"m": Price(1_000_000, 2_000_000), "dear": Price(10_000_000, 20_000_000)})
"""A prompt token of ``m`` costs one nano-USD, a completion token two; those of ``dear`` ten times as much."""
URL = "https://api.example/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
CEILING = len(json.dumps(ASKED, separators=(",", ":"))) + FIXED_TOKENS + 20
"""What ``ASKED`` can cost at most, as httpx writes it."""
COST = 3 + 2 * 4
"""What it does cost: three prompt tokens, four of completion."""
Handler = Callable[[], Awaitable[Any]]


class As(LLMMiddleware):
    """Says who is calling, in TenantMiddleware's place."""

    rank = Rank.TENANT

    def __init__(self, app: ASGIApp, tenant: Tenant, **more: Any) -> None:
        super().__init__(app, **more)
        self._tenant = tenant

    async def handle(self, exchange: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        exchange.identity = Identity(self._tenant, None)
        await self.forward(exchange, scope, receive, send)


class Shop:
    """A handler behind the gateway's layers, the purse that pays for it, and a provider that is played.

    Attributes:
        sent: What the provider was asked, in order.
        answers: What it does, in order; the last one again and again.
    """

    def __init__(self, handler: Handler, budget: int | None = None, *, package: Any = httpx2, **tenant: Any) -> None:
        self.ledger = MemoryLedger()
        self.sent: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[Any] = [answer]
        self.package = package
        self.traces = TraceLog()
        self.client = package.AsyncClient(transport=MeteredTransport(package.MockTransport(self._provide)))
        budgeted = BudgetMiddleware(
            self._app, ledger=self.ledger, prices=PRICES, paths=PATHS, default_max_output=50, prompt_bound="bytes"
        )
        layer = As(budgeted, Tenant("t", budget=budget, **tenant), paths=PATHS)
        self.stack = TracingMiddleware(layer, traces=self.traces, paths=PATHS)
        self.handler = handler
        self.later: list[Any] = []

    async def _provide(self, request: Any) -> Any:
        self.sent.append(json.loads(request.content))
        self.headers.append(dict(request.headers))
        play = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        played = play(self.package)
        if isinstance(played, Exception):
            raise played
        return await played if asyncio.iscoroutine(played) else played

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = json.dumps(await self.handler()).encode()
        await send_body(send, 200, said, [(b"content-type", b"application/json")])
        for work in self.later:  # as a framework does background tasks: after the answer, in the same call
            await work()

    async def post(self, body: Any = ASKED, url: str = URL) -> Any:
        """A call to the provider, read to its end."""
        return await self.client.post(url, json=body)

    async def ask(self, path: str = "/ask", body: Any = None) -> Answer:
        """A call of a client."""
        return await ask(self.stack, body, path)

    async def balance(self) -> tuple[int, int]:
        """Spent and held."""
        found = await self.ledger.balance("t")
        return found.spent, found.held

    async def records(self) -> list[CallRecord]:
        """The records of calls, the newest first."""
        return list((await self.ledger.records("t")).records)

    async def quiet(self) -> None:
        """Nothing is held any more, and the records are what was spent."""
        gc.collect()
        for _ in range(20):
            await asyncio.sleep(0)
        spent, held = await self.balance()
        assert held == 0
        assert spent == sum(record.cost for record in await self.records())


def answer(http: Any, usage: tuple[int, int] | None = (3, 4), status: int = 200, **headers: str) -> Any:
    """A JSON answer."""
    body: dict[str, Any] = {"choices": []}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return http.Response(status, json=body, headers=headers)


class Pieces(httpx2.AsyncByteStream, httpx.AsyncByteStream):
    """An answer's body in pieces; ``fault`` is what it ends with, ``endless`` that it never does."""

    def __init__(self, pieces: list[bytes], fault: Exception | None = None, *, endless: bool = False) -> None:
        self._pieces = pieces
        self._fault = fault
        self._endless = endless
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            await asyncio.sleep(0)
            yield piece
        if self._endless:
            await asyncio.Event().wait()
        if self._fault is not None:
            raise self._fault

    async def aclose(self) -> None:
        """Close it."""
        self.closed = True


def stream(http: Any, pieces: list[bytes] | None = None, fault: Exception | None = None, **more: Any) -> Any:
    """An event stream."""
    body = Pieces([*words(4), counts(3, 4), DONE] if pieces is None else pieces, fault, **more)
    return http.Response(200, headers={"content-type": "text/event-stream"}, stream=body)


STREAMED = {**ASKED, "stream": True}


async def read(shop: Shop, body: Any = STREAMED, *, most: int = 10**6) -> bytes:
    """A streamed call, of which so many pieces are read."""
    got = b""
    async with shop.client.stream("POST", URL, json=body) as response:
        async for piece in response.aiter_raw():
            got += piece
            most -= 1
            if not most:
                break
    return got
