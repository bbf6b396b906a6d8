"""Calls that end otherwise than their request: after it, beside it, or cut off with it."""

from __future__ import annotations

import asyncio
from typing import Any

from asgi_llm_gateway.metering import current_exchange

from ..conversation import call
from ..middleware import words
from .shop import ASKED, CEILING, COST, STREAMED, URL, Pieces, Shop, answer, read, stream


async def test_a_call_after_the_answer_has_a_hold_of_its_own() -> None:
    """A background task finds the request settled: its call is held, booked and refused for the same tenant."""
    held: list[tuple[int, int]] = []

    async def provide(http: Any) -> Any:
        held.append(await shop.balance())
        return answer(http)

    async def work() -> None:
        assert (await shop.post()).status_code == 200
        assert (await shop.post({**ASKED, "max_tokens": 10**6})).status_code == 402

    async def handler() -> Any:
        shop.later.append(work)

    shop = Shop(handler, 10_000)
    shop.answers = [provide]
    await shop.ask()
    assert held == [(0, CEILING)]
    late, request = await shop.records()
    assert (late.cost, late.model, late.status, request.cost) == (COST, "m", 200, 0)
    assert late.request_id == request.request_id
    await shop.quiet()


async def test_a_task_that_outlives_the_request_pays() -> None:
    """Its context still knows whose call it is, long after the request is gone."""
    tasks: list[asyncio.Task[Any]] = []
    go = asyncio.Event()

    async def work() -> Any:
        await go.wait()
        exchange = current_exchange()
        assert exchange is not None
        assert exchange.ended
        return await read(shop)

    async def handler() -> Any:
        tasks.append(asyncio.create_task(work()))

    shop = Shop(handler, 10_000)
    shop.answers = [stream]
    await shop.ask()
    go.set()
    await tasks[0]
    assert [record.cost for record in await shop.records()] == [COST, 0]
    await shop.quiet()


async def test_a_call_that_runs_on_keeps_the_requests_hold() -> None:
    """A task begun in time and not waited for: the request is settled when it ends, for what it cost."""
    tasks: list[asyncio.Task[Any]] = []
    begun, go = asyncio.Event(), asyncio.Event()

    async def provide(http: Any) -> Any:
        begun.set()
        await go.wait()
        return answer(http)

    async def handler() -> Any:
        tasks.append(asyncio.create_task(shop.post()))
        await begun.wait()

    shop = Shop(handler, 10_000)
    shop.answers = [provide]
    said = await shop.ask()
    assert said.complete
    assert "x-llm-cost-usd" not in said.headers
    assert await shop.balance() == (0, CEILING)
    go.set()
    await tasks[0]
    assert await shop.balance() == (COST, 0)
    (record,) = await shop.records()
    assert (record.aborted, record.overdraft) == (False, 0)


async def test_a_hang_up_ends_the_call() -> None:
    """The handler's task is cancelled: the upstream is closed, and what came of the stream is paid."""
    reached = asyncio.Event()
    bodies: list[Pieces] = []

    def provide(http: Any) -> Any:
        bodies.append(Pieces(words(3), endless=True))
        return http.Response(200, headers={"content-type": "text/event-stream"}, stream=bodies[0])

    async def handler() -> Any:
        got = 0
        async with shop.client.stream("POST", URL, json=STREAMED) as response:
            async for _ in response.aiter_raw():
                got += 1
                if got == 3:
                    reached.set()

    shop = Shop(handler, 10_000)
    shop.answers = [provide]
    async with call(shop.stack, None, "/ask") as talk:
        await reached.wait()
        talk.task.cancel()
        await asyncio.wait({talk.task})
    assert bodies[0].closed
    (record,) = await shop.records()
    assert (record.usage.completion, record.usage.estimated, record.aborted) == (3, True, True)
    await shop.quiet()


async def test_a_hang_up_before_the_answer_ends_the_call() -> None:
    """It was sent, so that its prompt counts."""
    reached = asyncio.Event()

    async def provide(http: Any) -> Any:
        reached.set()
        await asyncio.Event().wait()

    async def handler() -> Any:
        await shop.post()

    shop = Shop(handler, 10_000)
    shop.answers = [provide]
    async with call(shop.stack, None, "/ask") as talk:
        await reached.wait()
        talk.task.cancel()
        await asyncio.wait({talk.task})
    (record,) = await shop.records()
    assert record.usage.prompt > 0
    await shop.quiet()
