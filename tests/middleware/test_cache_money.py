"""Who pays for an answer that many get: the key that asked first, once, and whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from asgi_llm_gateway import TraceLog, TracingMiddleware
from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.exchange import Exchange
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.cache import CacheMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import CallRecord, Price, Tenant
from asgi_llm_gateway.stores.memory import MemoryLedger, MemoryStore

from ..caching import JSON, Counting, asking, saying, streaming, text_of_stream
from ..conversation import Answer, ask, call
from ..structured import GOOD
from ..structured import asking as asking_person
from ..upstream import LAST_CHUNK, STREAM_HEAD, Peer, Script, Upstream, chunk, until, upstream, whole

# A prompt token costs one nano-USD, a completion token two: the scripted answers cost 10 + 40.
PRICES = PriceTable({"m": Price(1_000_000, 2_000_000)})
COST = 50


class Bank:
    """A whole stack round an app, with two keys of one tenant and one of another."""

    def __init__(self, app: Any, *, budget: int | None = 10**9, inside: Any = None, **more: Any) -> None:
        self.store = MemoryStore()
        self.ledger = MemoryLedger()
        self.log = TraceLog()
        self.cache = CacheMiddleware(
            BudgetMiddleware(inside(app) if inside else app, ledger=self.ledger, prices=PRICES), **more
        )
        limited = RateLimitMiddleware(self.cache, requests=10**6, tokens=10**9, concurrency=100)
        self.stack = TracingMiddleware(TenantMiddleware(limited, store=self.store), traces=self.log)
        self.budget = budget
        self.keys: dict[str, str] = {}

    async def open(self) -> Bank:
        """Make the tenants."""
        for tenant, names in (("t", ("a", "b")), ("other", ("c",))):
            await self.store.put_tenant(Tenant(tenant, budget=self.budget))
            for name in names:
                key, self.keys[name] = new_key(tenant, name=name)
                await self.store.add_key(key)
        return self

    def headers(self, who: str) -> tuple[Any, ...]:
        """Of a key's call."""
        return (JSON, (b"authorization", b"Bearer " + self.keys[who].encode()))

    async def ask(self, who: str = "a", **more: Any) -> Answer:
        """A call."""
        return await ask(self.stack, asking("chat", max_tokens=100, **more), headers=self.headers(who))

    def talk(self, who: str = "a", **more: Any) -> Any:
        """A call under way."""
        return call(self.stack, asking("chat", max_tokens=100, **more), headers=self.headers(who))

    async def records(self) -> list[CallRecord]:
        """What was booked of the tenant."""
        return list((await self.ledger.records("t"))[0])

    def settled(self) -> bool:
        """No call is under way any more."""
        here = self.cache._open.get()
        return here is None or not here.running

    async def balance(self, tenant: str = "t") -> tuple[int, int]:
        """Spent and held, in nano-USD."""
        found = await self.ledger.balance(tenant)
        return found.spent, found.held


def provider(step: asyncio.Semaphore | None = None, before: asyncio.Event | None = None) -> Script:
    """An OpenAI-like server that tells its usage where it is asked to."""

    async def script(peer: Peer) -> None:
        while True:
            asked = (await peer.request()).json()
            if before is not None:
                await before.wait()
            if not asked.get("stream"):
                await peer.send(whole(saying("chat", "one two three")))
                continue
            await peer.send(STREAM_HEAD)
            for one in streaming("chat", "one two three"):
                if step is not None:
                    await step.acquire()
                await peer.send(chunk(one))
            await peer.send(LAST_CHUNK)

    return script


@asynccontextmanager
async def proxied(script: Script, **more: Any) -> AsyncIterator[tuple[Bank, Upstream]]:
    """The stack before ProxyApp and a scripted provider."""
    async with upstream(script) as server:
        router = Router([OpenAIAdapter("openai", server.url(), "sk-x")], {"m": ["openai/m"]})
        app = ProxyApp(router=router, max_retries=0)
        yield await Bank(app, **more).open(), server
        await app.aclose()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hit_is_not_booked(stream: bool) -> None:
    """It costs nothing, and the trace says what it saved."""
    async with proxied(provider()) as (bank, server):
        first = await bank.ask(stream=stream)
        again = await bank.ask("b", stream=stream)
        assert (first.headers["x-cache"], again.headers["x-cache"]) == ("miss", "hit")
        assert len(server.requests) == 1
        assert await bank.balance() == (COST, 0)
        assert len(await bank.records()) == 1
        hit, miss = bank.log.recent(2)
        assert (miss.cost, miss.saved, hit.cost, hit.saved) == (COST, None, 0, COST)
        assert again.headers["x-llm-cost-usd"] == "0.0"
        assert again.headers["x-llm-provider"] == "openai"
        assert (miss.provider, hit.provider) == ("openai", None)
        if not stream:
            assert first.headers["x-llm-cost-usd"] == "0.00000005"


async def test_what_the_first_call_cost_is_not_told_with_the_next_answer() -> None:
    """``cost_usd`` stands in the usage event of the one who paid only; all of them see the same counts."""
    wants = {"stream": True, "stream_options": {"include_usage": True}}
    ready = asyncio.Event()
    async with proxied(provider(before=ready)) as (bank, server):
        tasks = [asyncio.ensure_future(bank.ask(who, **wants)) for who in ("a", "b")]
        await until(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.05)
        ready.set()
        answers = [*await asyncio.gather(*tasks), await bank.ask("b", **wants)]
        assert [one.headers["x-cache"] for one in answers] == ["miss", "joined", "hit"]
        assert [one.body.count(b'"cost_usd":5e-8') + one.body.count(b'"cost_usd":0.00000005') for one in answers] == [
            1,
            0,
            0,
        ]
        assert [one.body.count(b'"total_tokens":30') for one in answers] == [1, 1, 1]
        assert await bank.balance() == (COST, 0)


async def test_a_hit_needs_no_budget() -> None:
    """A tenant that has spent all it had gets what was answered before, and is refused what was not."""
    async with proxied(provider(), budget=500) as (bank, _):
        assert (await bank.ask()).status == 200
        while (await bank.ask(text=str(await bank.balance()))).status == 200:
            pass
        again = await bank.ask()
        assert (again.status, again.headers["x-cache"]) == (200, "hit")
        assert (await bank.ask(text="new")).status == 402


async def test_many_at_once_are_booked_once_on_the_key_that_asked_first() -> None:
    """The others used nothing: their traces say that they joined."""
    ready = asyncio.Event()
    async with proxied(provider(before=ready)) as (bank, server):
        tasks = [asyncio.ensure_future(bank.ask("ab"[at % 2], stream=bool(at % 3))) for at in range(20)]
        await until(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.05)
        held = (await bank.balance())[1]
        ready.set()
        answers = await asyncio.gather(*tasks)
        assert {one.status for one in answers} == {200}
        assert len(server.requests) == 1
        assert held > 0
        assert await bank.balance() == (COST, 0)
        (record,) = await bank.records()
        ids = {key.name: key.id for key in await bank.store.keys("t")}
        assert (record.key, record.cost, record.usage.total, record.status, record.aborted) == (
            ids["a"],
            COST,
            30,
            200,
            False,
        )
        traces = bank.log.recent(30)
        assert sorted(one.cache or "" for one in traces) == ["joined"] * 19 + ["miss"]
        assert {(one.cost, one.saved) for one in traces if one.cache == "joined"} == {(0, COST)}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["hang_up", "cancel"])
async def test_the_one_who_left_pays_whole_while_others_read_on(stream: bool, how: str) -> None:
    """The answer was made for its call; nothing is aborted, nothing stays held, and the upstream is not cut."""
    ready, step = asyncio.Event(), asyncio.Semaphore(0)
    async with proxied(provider(step, ready)) as (bank, server):
        async with bank.talk("a", stream=stream) as first:
            await until(lambda: len(server.requests) == 1)
            async with bank.talk("b", stream=stream) as second:
                await asyncio.sleep(0.05)
                if how == "cancel":
                    first.task.cancel()
                    await asyncio.wait({first.task})
                    leaving = None
                else:
                    leaving = asyncio.ensure_future(first.hang_up())
                    await asyncio.sleep(0.1)
                ready.set()
                for _ in range(30):
                    step.release()
                answer = await second.answer()
                if leaving is not None:
                    await leaving
        assert answer.headers["x-cache"] == "joined"
        assert await bank.balance() == (COST, 0)
        (record,) = await bank.records()
        ids = {key.id: key.name for key in await bank.store.keys("t")}
        assert (ids[record.key or ""], record.cost, record.usage.total, record.aborted) == ("a", COST, 30, False)
        assert server.aborted == 0
        left = next(one for one in bank.log.recent(5) if one.cache == "miss")
        assert left.aborted
        if how == "hang_up":
            assert left.cost == COST


async def silent(peer: Peer) -> None:
    """Begins a stream, or nothing, and then says no more."""
    if (await peer.request()).json().get("stream"):
        await peer.send(STREAM_HEAD, *(chunk(one) for one in streaming("chat", "one two three")[:3]))
    await peer.stall()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["hang_up", "cancel"])
async def test_when_the_last_one_leaves_the_upstream_is_closed_at_once(stream: bool, how: str) -> None:
    """And what was made until then is paid for, by the one who asked first; it is not kept."""
    async with proxied(silent) as (bank, server):
        async with bank.talk("a", stream=stream) as first, bank.talk("b", stream=stream) as second:
            await until(lambda: len(server.requests) == 1)
            if stream:
                await first.next()
                await second.next()
            await asyncio.sleep(0.05)
            if how == "cancel":
                for one in (first, second):
                    assert server.aborted == 0
                    one.task.cancel()
                    await asyncio.wait({one.task})
            else:
                await asyncio.gather(first.hang_up(), second.hang_up())
            await until(lambda: server.aborted == 1)
        await until(lambda: bank.settled())
        assert (await bank.balance())[1] == 0
        (record,) = await bank.records()
        ids = {key.id: key.name for key in await bank.store.keys("t")}
        assert (ids[record.key or ""], record.aborted) == ("a", True)
        assert record.cost > 0
        async with bank.talk("a", stream=stream) as again:
            await until(lambda: len(server.requests) == 2)
            await again.hang_up()


async def test_a_refusal_of_one_keys_money_is_not_anothers() -> None:
    """A key that has spent its own budget is refused; others that joined it ask for themselves. What they got it gets, too."""
    bank = await Bank(Counting()).open()
    key, bank.keys["poor"] = new_key("t", name="poor")
    await bank.store.add_key(replace(key, budget=0))
    answers = await asyncio.gather(*(bank.ask(who) for who in ("poor", "a", "b", "c", "poor")))
    assert [one.status for one in answers] == [402, 200, 200, 200, 402]
    assert [one.headers["x-cache"] for one in answers] == ["miss", "miss", "miss", "miss", "joined"]
    assert (await bank.ask("poor")).headers["x-cache"] == "hit"


async def test_a_stranger_behind_the_stack_is_metered_whole_after_its_client_left() -> None:
    """An app that knows nothing of the gateway: its bytes are read for all that they tell, not only until its client left."""
    step = asyncio.Semaphore(0)
    bank = await Bank(Counting(between=step)).open()
    wants = {"stream": True, "stream_options": {"include_usage": True}}
    async with bank.talk("a", **wants) as first:
        await first.next()
        async with bank.talk("b", **wants) as second:
            await second.next()
            leaving = asyncio.ensure_future(first.hang_up())
            await asyncio.sleep(0.1)
            for _ in range(50):
                step.release()
            assert text_of_stream("chat", (await second.answer()).body)
            await leaving
    assert await bank.balance() == (COST, 0)
    (record,) = await bank.records()
    assert (record.usage.total, record.usage.estimated, record.aborted, record.status) == (30, False, False, 200)


class Booking(LLMMiddleware):
    """A layer further out that has work to do when the content is complete."""

    rank = Rank.TENANT

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.seen: list[str] = []

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""

        async def book() -> None:
            self.seen.append(f"booked {exchange.usage.total if exchange.usage else None}")

        async def watching(message: Any) -> None:
            body = message.get("body", b"")
            if b"[DONE]" in body or body.startswith(b"{"):
                self.seen.append("end")
            await send(message)

        exchange.at_end(book)
        await self.forward(exchange, scope, receive, watching)


@pytest.mark.parametrize("stream", [True, False])
async def test_those_further_out_do_their_work_before_the_answer_ends(stream: bool) -> None:
    """For the one who pays, those who joined, and a hit: once each, with what the call used."""
    ready = asyncio.Event()
    app = Booking(CacheMiddleware(model := Counting(before=ready)))
    wants: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    for expected in (["booked 30", "end"], ["booked 0", "end"]):
        app.seen.clear()
        ready.set()
        await ask(app, asking("chat", **wants))
        assert app.seen == expected
    ready.clear()
    app.seen.clear()
    tasks = [asyncio.ensure_future(ask(app, asking("chat", "other", **wants))) for _ in range(2)]
    await until(lambda: model.calls == 2)
    await asyncio.sleep(0.02)
    ready.set()
    await asyncio.gather(*tasks)
    assert sorted(app.seen) == ["booked 0", "booked 30", "end", "end"]
    assert app.seen.index("booked 30") < app.seen.index("end")


async def test_limits_of_tokens_count_what_was_used_and_nothing_for_a_hit() -> None:
    """Behind a strange app, too."""
    for app in (Counting(), Counting(usage=False)):
        limited = RateLimitMiddleware(CacheMiddleware(app), requests=100, tokens=10_000)
        first = await ask(limited, asking("chat", max_tokens=100))
        again = await ask(limited, asking("chat", max_tokens=100))
        third = await ask(limited, asking("chat", "two one", max_tokens=100))
        left = [int(one.headers["x-ratelimit-remaining-tokens"]) for one in (first, again, third)]
        assert again.headers["x-cache"] == "hit"
        # Before each call as much is set aside as it can use: the same for each, less what was really used before.
        assert abs((left[0] - left[1]) - 30) <= 1
        assert abs(left[1] - left[2]) <= 1


async def test_an_answer_that_had_to_be_asked_for_twice_is_kept_once_it_is_valid() -> None:
    """StructuredOutput stands further in: what is kept has been validated, its correction is paid for once."""
    answers = ['{"name": "Ada"}', GOOD]

    class Learner(Counting):
        def words(self, scope: Any, body: dict[str, Any]) -> str:
            return answers[min(self.calls, 2) - 1]

    model = Learner()
    bank = await Bank(model, inside=StructuredOutputMiddleware).open()
    body = asking_person("chat", temperature=0, max_tokens=100)
    first, again = [await ask(bank.stack, body, headers=bank.headers("a")) for _ in range(2)]
    assert (model.calls, first.headers["x-llm-structured"], again.headers["x-cache"]) == (2, "retried", "hit")
    assert again.json()["choices"] == first.json()["choices"]
    assert await bank.balance() == (2 * COST, 0)
    hit = bank.log.recent(1)[0]
    assert hit.saved == 2 * COST
