"""Structured answers under a budget: every pass is held before it is made and paid for, once, in one record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest

from asgi_llm_gateway import MeteredTransport
from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.exchange import Exchange
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.records import CallRecord, Identity, Price, Tenant
from asgi_llm_gateway.stores.memory import MemoryLedger

from ..conversation import Answer, ask, call
from ..structured import BAD, DIALECTS, GOOD, PATHS, SSE, Model, asking, calling, saying, streaming, tooling
from ..upstream import always, upstream, whole

# A prompt token costs one nano-USD, a completion token two.
PRICES = PriceTable({"m": Price(1_000_000, 2_000_000)})
LIMIT = {"chat": "max_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}


class As(LLMMiddleware):
    """Says who is calling, in TenantMiddleware's place."""

    rank = Rank.TENANT

    def __init__(self, app: Any, tenant: Tenant) -> None:
        super().__init__(app)
        self._tenant = tenant
        self.exchange: Exchange | None = None

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        exchange.identity = Identity(self._tenant, None)
        self.exchange = exchange
        await self.forward(exchange, scope, receive, send)


class Purse:
    """A tenant with a budget in nano-USD, and the stack round an app."""

    def __init__(self, app: Any, budget: int | None = 10**9, **more: Any) -> None:
        self.ledger = MemoryLedger()
        layer = BudgetMiddleware(StructuredOutputMiddleware(app, **more), ledger=self.ledger, prices=PRICES)
        self.stack = As(layer, Tenant("t", budget=budget))

    async def ask(self, dialect: str = "chat", body: Any = None, **more: Any) -> Answer:
        """A call with an output limit of 50 tokens."""
        asked = asking(dialect) if body is None else body
        return await ask(self.stack, {**asked, LIMIT[dialect]: 50, **more}, PATHS[dialect])

    async def balance(self) -> tuple[int, int]:
        """Spent and held."""
        balance = await self.ledger.balance("t")
        return balance.spent, balance.held

    async def record(self) -> CallRecord:
        """The one record there is."""
        (record,) = (await self.ledger.records("t")).records
        return record


def cost(*tokens: tuple[int, int]) -> int:
    """Nano-USD of these calls."""
    return sum(prompt + 2 * completion for prompt, completion in tokens)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_one_pass_costs_what_it_says(dialect: str) -> None:
    """As without the layer."""
    purse = Purse(Model(saying(dialect, GOOD)))
    answer = await purse.ask(dialect)
    assert answer.headers["x-llm-cost-usd"] == "0.00000005"
    assert await purse.balance() == (cost((10, 20)), 0)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_both_passes_are_paid_for_in_one_record(dialect: str) -> None:
    """The sum, told with the answer that goes out."""
    purse = Purse(Model(saying(dialect, BAD, tokens=(10, 20)), saying(dialect, GOOD, tokens=(30, 40))))
    answer = await purse.ask(dialect)
    assert answer.status == 200
    assert answer.headers["x-llm-cost-usd"] == "0.00000016"
    assert await purse.balance() == (cost((10, 20), (30, 40)), 0)
    record = await purse.record()
    assert (record.usage.prompt, record.usage.completion, record.status, record.aborted) == (40, 60, 200, False)
    assert record.overdraft == 0
    exchange = purse.stack.exchange
    assert exchange is not None
    assert exchange.usage is not None
    assert exchange.usage.total == 100


async def test_a_refused_answer_is_paid_for_before_the_client_hears_of_it() -> None:
    """Its cost stands on the refusal, and the record has the refusal's status."""
    purse = Purse(Model(saying("chat", BAD)))
    answer = await purse.ask()
    assert (answer.status, answer.headers["x-llm-cost-usd"]) == (422, "0.0000001")
    assert await purse.balance() == (cost((10, 20), (10, 20)), 0)
    assert (await purse.record()).status == 422


async def test_a_first_answer_that_is_refused_at_once_is_paid_for() -> None:
    """One that can't be read as well."""
    for model, retries in ((Model(saying("chat", BAD)), 0), (Model({"usage": saying("chat")["usage"]}), 1)):
        purse = Purse(model, retries=retries)
        assert (await purse.ask()).status in (422, 502)
        assert await purse.balance() == (cost((10, 20)), 0)


async def test_the_hold_covers_both_passes_before_the_second_is_made() -> None:
    """What the first cost, and the most that the second can."""
    held: list[int] = []
    answers = [saying("chat", BAD), saying("chat", GOOD)]

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        held.append((await purse.balance())[1])
        message = await receive()
        if len(held) == 2:
            # A prompt token a byte, 50 tokens of answer at two nano-USD each, and what the first pass did cost.
            assert held[1] >= len(message["body"]) + 2 * 50 + cost((10, 20))
        body = json.dumps(answers[len(held) - 1]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})

    purse = Purse(watched)
    assert (await purse.ask()).status == 200
    assert len(held) == 2
    assert held[1] > held[0]


async def test_a_budget_for_one_pass_makes_one_pass() -> None:
    """The refusal of the first answer says why there was no second."""
    model = Model(saying("chat", BAD, tokens=(1, 1)))
    rich = Purse(model)
    await rich.ask()
    assert len(model.asked) == 2
    poor_model = Model(saying("chat", BAD, tokens=(1, 1)))
    body = {**asking("chat"), "max_tokens": 50}
    entry = len(json.dumps(body)) + 128 + 100
    poor = Purse(poor_model, entry)
    answer = await poor.ask()
    assert (answer.status, len(poor_model.asked)) == (422, 1)
    assert "It could not be asked for again: would_exceed_budget" in answer.error["message"]
    assert await poor.balance() == (cost((1, 1)), 0)


async def test_an_instruction_is_held_for_before_it_is_sent() -> None:
    """It makes the prompt longer than the entry hold was taken for."""
    body = {**asking("chat"), "max_tokens": 50}
    entry = len(json.dumps(body)) + 128 + 100
    model = Model(saying("chat", GOOD))
    poor = Purse(model, entry, native="never")
    answer = await poor.ask()
    assert (answer.status, answer.error["code"], model.asked) == (402, "would_exceed_budget", [])
    assert await poor.balance() == (0, 0)
    rich = Purse(model, native="never")
    assert (await rich.ask()).headers["x-llm-cost-usd"] == "0.00000005"
    assert await rich.balance() == (cost((10, 20)), 0)


async def test_a_providers_refusal_of_the_field_costs_nothing() -> None:
    """Only the answer is paid for."""
    purse = Purse(Model((400, {"error": {"message": "response_format?"}}), saying("chat", GOOD)))
    assert (await purse.ask()).status == 200
    assert await purse.balance() == (cost((10, 20)), 0)


@pytest.mark.parametrize("mode", ["pass", "hold"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_stream_is_paid_for_whatever_the_verdict(dialect: str, mode: Any) -> None:
    """Once if it is relayed, twice if it was made twice."""
    for text, held in ((GOOD, cost((10, 20))), (BAD, 2 * cost((10, 20)))):
        purse = Purse(Model(streaming(dialect, text)), streams=mode)
        await purse.ask(dialect, stream=True)
        spent = held if mode == "hold" else cost((10, 20))
        assert await purse.balance() == (spent, 0)


async def test_an_instructed_stream_is_paid_for_once() -> None:
    """Its call is begun here, and ended with what its last event says."""
    for mode in ("pass", "hold"):
        purse = Purse(Model(streaming("chat", GOOD)), streams=mode, native="never")
        answer = await purse.ask(stream=True, stream_options={"include_usage": True})
        assert answer.events[-1] == "[DONE]"
        assert await purse.balance() == (cost((10, 20)), 0)
        assert (await purse.record()).usage.estimated is False


async def test_unknown_usage_is_estimated_for_each_pass() -> None:
    """Never zero."""
    first, second = saying("chat", BAD), saying("chat", GOOD)
    del first["usage"], second["usage"]
    purse = Purse(Model(first, second))
    assert (await purse.ask()).status == 200
    record = await purse.record()
    assert record.usage.estimated
    assert record.usage.completion >= 2
    assert record.usage.prompt > 60


# -- hang-ups ----------------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_during_the_second_pass_pays_for_both() -> None:
    """What the second had used is estimated; no hold stays."""
    reached = asyncio.Event()

    class Hanging(Model):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if self.asked:
                await receive()
                reached.set()
                assert (await receive())["type"] == "http.disconnect"
                return
            await super().__call__(scope, receive, send)

    purse = Purse(Hanging(saying("chat", BAD)))
    async with call(purse.stack, {**asking("chat"), "max_tokens": 50}) as talk:
        async with asyncio.timeout(10):
            await reached.wait()
        await talk.hang_up()
    spent, held = await purse.balance()
    assert held == 0
    assert spent > cost((10, 20))
    assert talk.messages == []


async def test_a_client_that_has_left_is_not_asked_for_again() -> None:
    """The first pass is paid for; there is no second."""
    begun, go = asyncio.Event(), asyncio.Event()

    class Slow(Model):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            begun.set()
            await go.wait()
            await super().__call__(scope, receive, send)

    model = Slow(saying("chat", BAD))
    purse = Purse(model)
    async with call(purse.stack, {**asking("chat"), "max_tokens": 50}) as talk:
        async with asyncio.timeout(10):
            await begun.wait()
        talk._gone.set()
        go.set()
        await talk.hang_up()
    assert len(model.asked) == 1
    assert await purse.balance() == (cost((10, 20)), 0)
    assert (await purse.record()).aborted


@pytest.mark.parametrize("mode", ["pass", "hold"])
async def test_a_call_that_is_cancelled_in_a_stream_pays_for_what_was_made(mode: Any) -> None:
    """Held back or not."""
    events = [one for _ in range(30) for one in streaming("chat", "word ")[:1]]
    made = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [SSE]})
        for one in events:
            await send({"type": "http.response.body", "body": one, "more_body": True})
        made.set()
        await asyncio.Event().wait()

    purse = Purse(endless, streams=mode)
    async with call(purse.stack, {**asking("chat", stream=True), "max_tokens": 50}) as talk:
        async with asyncio.timeout(10):
            await made.wait()
        talk.task.cancel()
        await asyncio.wait({talk.task})
    spent, held = await purse.balance()
    assert held == 0
    assert spent >= 2 * 30
    assert (await purse.record()).usage.estimated


# -- a handler that calls with an SDK ----------------------------------------------------------------------------------


async def test_a_metered_handlers_calls_are_counted_once() -> None:
    """They are held by themselves; a second pass makes a second call."""
    scripts: list[Callable[..., Any]] = [always(whole(saying("chat", BAD))), always(whole(saying("chat", GOOD)))]
    async with upstream(*scripts) as provider:

        async def handler(scope: Scope, receive: Receive, send: Send) -> None:
            body = json.loads((await receive())["body"])
            http = httpx2.AsyncClient(transport=MeteredTransport())
            async with openai.AsyncOpenAI(base_url=provider.url(), api_key="k", http_client=http) as client:
                answer = await client.chat.completions.create(**body)
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer.model_dump_json().encode()})

        purse = Purse(handler)
        answer = await purse.ask()
        assert answer.status == 200
        assert len(provider.requests) == 2
    assert await purse.balance() == (cost((10, 20), (10, 20)), 0)
    assert (await purse.record()).usage.completion == 40


async def test_strict_tools_are_paid_for_like_text() -> None:
    """Both passes."""
    purse = Purse(Model(calling("chat", BAD), calling("chat", GOOD)))
    assert (await purse.ask(body=tooling("chat"))).status == 200
    assert await purse.balance() == (cost((10, 20), (10, 20)), 0)
