"""Structured answers in front of ProxyApp and a scripted provider, under a real ledger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asgi_llm_gateway import TraceLog, TracingMiddleware
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.stores.memory import MemoryLedger

from ..conversation import call
from ..structured import BAD, GOOD, asking, saying, text_of
from ..structured import streaming as stream_of
from ..upstream import LAST_CHUNK, STREAM_HEAD, Peer, Script, Upstream, chunk, until, upstream, whole
from .test_structured_money import PRICES, As, Purse, cost


def turns(*answers: Any) -> Script:
    """One answer a request, in order over all connections; the last for ever. A list of events is a stream."""
    given: list[int] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            answer = answers[min(len(given), len(answers) - 1)]
            given.append(1)
            if isinstance(answer, list):
                await peer.send(STREAM_HEAD, *(chunk(one) for one in answer), LAST_CHUNK)
            elif isinstance(answer, bytes):
                await peer.send(answer)
            else:
                await peer.send(whole(answer))

    return script


def proxy_before(server: Upstream) -> ProxyApp:
    """A ProxyApp that finds the model ``m`` at the scripted provider."""
    return ProxyApp(router=Router([OpenAIAdapter("openai", server.url(), "sk-x")], {"m": ["openai/m"]}), max_retries=0)


class Traced(Purse):
    """A purse with a TracingMiddleware round it."""

    def __init__(self, app: Any, budget: int | None, **more: Any) -> None:
        super().__init__(app, budget, **more)
        self.log = TraceLog()
        self.who = self.stack
        self.stack = TracingMiddleware(self.who, traces=self.log)  # type: ignore[assignment]


@asynccontextmanager
async def purse(*answers: Any, budget: int | None = 10**9, **more: Any) -> AsyncIterator[tuple[Traced, Upstream]]:
    """The whole stack before one provider."""
    async with upstream(turns(*answers)) as server:
        app = proxy_before(server)
        yield Traced(app, budget, **more), server
        await app.aclose()


async def test_a_valid_answer_is_settled_once() -> None:
    """With its cost, before it goes out."""
    async with purse(saying("chat", GOOD)) as (bag, server):
        answer = await bag.ask()
        assert (answer.status, text_of("chat", answer.json())) == (200, GOOD)
        assert answer.headers["x-llm-cost-usd"] == "0.00000005"
        assert await bag.balance() == (cost((10, 20)), 0)
        assert len(server.requests) == 1


async def test_a_retry_is_one_call_with_two_passes() -> None:
    """One hold, raised; one settle, of the sum; one record and one trace."""
    async with purse(saying("chat", BAD), saying("chat", GOOD, tokens=(30, 40))) as (bag, server):
        answer = await bag.ask()
        assert (answer.status, answer.headers["x-llm-structured"]) == (200, "retried")
        assert answer.headers["x-llm-cost-usd"] == "0.00000016"
        assert await bag.balance() == (cost((10, 20), (30, 40)), 0)
        record = await bag.record()
        assert (record.usage.prompt, record.usage.completion, record.provider, record.overdraft) == (
            40,
            60,
            "openai",
            0,
        )
        (trace,) = bag.log.recent()
        assert (trace.status, trace.error) == (200, None)
        first, second = (one.json() for one in server.requests)
        assert second["messages"][:-2] == first["messages"]
        assert second["response_format"] == first["response_format"]
        assert second["max_completion_tokens" if "max_completion_tokens" in second else "max_tokens"] == 50


async def test_the_hold_is_raised_for_the_second_pass() -> None:
    """While it runs, the ledger holds what the first cost and the most that the second can."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(whole(saying("chat", BAD)))
        asked = await peer.request()
        held.append((len(asked.body), (await bag.balance())[1]))
        await peer.send(whole(saying("chat", GOOD)))

    held: list[tuple[int, int]] = []
    async with upstream(script) as server:
        app = proxy_before(server)
        bag = Traced(app, 10**9)
        assert (await bag.ask()).status == 200
        ((size, money),) = held
        assert money >= cost((10, 20)) + size + 2 * 50
        await app.aclose()


async def test_a_budget_that_does_not_pay_for_a_second_pass_makes_none() -> None:
    """The refusal of the first answer stands, with what it cost."""
    body = {**asking("chat"), "max_tokens": 50}
    async with purse(saying("chat", BAD, tokens=(1, 1)), budget=len(json.dumps(body)) + 128 + 100) as (bag, server):
        answer = await bag.ask()
        assert (answer.status, answer.error["code"], len(server.requests)) == (422, "structured_output_invalid", 1)
        assert await bag.balance() == (cost((1, 1)), 0)
        (trace,) = bag.log.recent()
        assert trace.error == "structured_output_invalid"


async def test_a_refused_answer_is_settled_before_its_refusal() -> None:
    """The cost stands on the 422."""
    async with purse(saying("chat", BAD)) as (bag, _):
        answer = await bag.ask()
        assert (answer.status, answer.headers["x-llm-cost-usd"]) == (422, "0.0000001")
        assert (await bag.record()).status == 422
        assert await bag.balance() == (cost((10, 20), (10, 20)), 0)


async def test_a_provider_that_fails_the_second_time_is_not_the_answer() -> None:
    """The first answer's refusal is."""
    gone = whole({"error": {"message": "down"}}, 503)
    async with purse(saying("chat", BAD), gone) as (bag, _):
        answer = await bag.ask()
        assert (answer.status, answer.error["code"]) == (422, "structured_output_invalid")
        assert await bag.balance() == (cost((10, 20)), 0)


async def test_a_provider_without_support_is_asked_in_words() -> None:
    """Its refusal costs nothing and leaves no trace."""
    refusal = whole({"error": {"message": "Unknown parameter", "param": "response_format"}}, 400)
    async with purse(refusal, saying("chat", GOOD)) as (bag, server):
        answer = await bag.ask()
        assert (answer.status, answer.headers["x-llm-structured"]) == (200, "instructed")
        assert "response_format" not in server.requests[1].json()
        assert await bag.balance() == (cost((10, 20)), 0)
        (trace,) = bag.log.recent()
        assert trace.error is None


@pytest.mark.parametrize("mode", ["pass", "hold"])
async def test_streams_are_settled_and_tell_their_cost(mode: Any) -> None:
    """Relayed before they are judged, or held until they are right: the last event tells the sum."""
    good = stream_of("chat", *GOOD.split(" "))
    async with purse(stream_of("chat", BAD), good, streams=mode) as (bag, server):
        asked: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        answer = await bag.ask(**asked)
        if mode == "pass":
            assert json.loads(answer.events[-1])["error"]["code"] == "structured_output_invalid"
            assert await bag.balance() == (cost((10, 20)), 0)
            (trace,) = bag.log.recent()
            assert trace.error == "structured_output_invalid"
            return
        assert (answer.status, answer.headers["x-llm-structured"], answer.events[-1]) == (200, "retried", "[DONE]")
        assert json.loads(answer.events[-2])["cost_usd"] == 0.0000001
        assert await bag.balance() == (cost((10, 20), (10, 20)), 0)
        assert len(server.requests) == 2


async def test_a_hang_up_in_the_second_pass_closes_the_provider_at_once() -> None:
    """Both passes are paid for, and no hold stays."""
    second = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(whole(saying("chat", BAD)))
        await peer.request()
        second.set()
        await peer.stall()

    async with upstream(script) as server:
        app = proxy_before(server)
        bag = Traced(app, 10**9)
        async with call(bag.stack, {**asking("chat"), "max_tokens": 50}) as talk:
            async with asyncio.timeout(10):
                await second.wait()
            await talk.hang_up()
        assert talk.messages == []
        await until(lambda: server.aborted == 1)
        spent, held = await bag.balance()
        assert held == 0
        assert spent > cost((10, 20))
        assert (await bag.record()).aborted
        await app.aclose()


async def test_many_calls_side_by_side_never_pass_the_budget() -> None:
    """Settled and held together, with a retry in each."""
    async with upstream(turns(*[saying("chat", BAD), saying("chat", GOOD)] * 40)) as server:
        app = proxy_before(server)
        ledger = MemoryLedger()
        budget = 3000
        layer = BudgetMiddleware(StructuredOutputMiddleware(app), ledger=ledger, prices=PRICES)
        bag = Purse(app)
        bag.stack, bag.ledger = As(layer, Tenant("t", budget=budget)), ledger
        answers = await asyncio.gather(*(bag.ask() for _ in range(20)))
        assert {answer.status for answer in answers} <= {200, 402, 422}
        spent, held = await bag.balance()
        assert held == 0
        assert spent <= budget
        assert spent == cost(*[(10, 20)] * len(server.requests))
        await app.aclose()
