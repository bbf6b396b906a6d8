"""Whatever a handler does with its calls, in the end the books are right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx2
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.errors import GatewayError
from asgi_llm_gateway.metering import record_usage

from ..conversation import call
from ..middleware import words
from .shop import STREAMED, URL, Shop, answer, read, stream

ANSWERS: dict[str, Callable[[Any], Any]] = {
    "json": answer,
    "no usage": lambda http: answer(http, None),
    "error": lambda http: answer(http, None, 500),
    "stream": stream,
    "cut": lambda http: stream(http, words(2), http.ReadError("cut")),
    "unfinished": lambda http: stream(http, [words(1)[0][:-3]]),
    "connect": lambda http: http.ConnectError("no"),
    "read": lambda http: http.ReadError("no"),
}
STEPS = ("call", "half", "leak", "report", "task", "later", "dear", "raise")
LETTERS = st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(sorted(ANSWERS))), max_size=6)


@settings(max_examples=12, deadline=None)
@given(steps=LETTERS, budget=st.integers(100, 1500), cancel=st.booleans())
def test_whatever_a_handler_does_the_books_are_right(steps: list[tuple[str, str]], budget: int, cancel: bool) -> None:
    """In the end nothing is held, what is spent is what the records say, and but for reports it is within the budget."""

    async def play() -> None:
        tasks: list[asyncio.Task[Any]] = []

        async def go(step: str) -> None:
            try:
                if step == "report":
                    await record_usage(prompt=5, completion=5, model="m")
                elif step == "leak":
                    request = shop.client.build_request("POST", URL, json=STREAMED)
                    await shop.client.send(request, stream=True)
                else:
                    model = {"model": "dear"} if step == "dear" else {}
                    await read(shop, {**STREAMED, **model}, most=2 if step == "half" else 10**6)
            except (httpx2.HTTPError, httpx2.StreamError, GatewayError):
                pass

        async def handler() -> Any:
            for step, played in steps:
                shop.answers[:] = [ANSWERS[played]]
                if step == "raise":
                    raise RuntimeError("the handler's own")
                if step == "task":
                    tasks.append(asyncio.create_task(go("call")))
                    await asyncio.sleep(0)
                elif step == "later":
                    shop.later.append(partial(go, "call"))
                else:
                    await go(step)
            if cancel:
                await asyncio.sleep(30)

        shop = Shop(handler, budget)
        async with call(shop.stack, None, "/ask") as talk:
            if cancel:
                await asyncio.sleep(0.002)
                talk.task.cancel()
            await asyncio.wait({talk.task})
            talk.task.cancelled() or talk.task.exception()
        await asyncio.gather(*tasks)
        await shop.quiet()
        spent, _ = await shop.balance()
        reported = any(step == "report" for step, _ in steps)
        assert reported or spent <= budget
        assert len(shop.ledger._book.holds) == 0

    asyncio.run(play())
