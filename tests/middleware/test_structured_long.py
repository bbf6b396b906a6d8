"""Answers that take long to validate: other calls go on meanwhile, and a client that leaves then has its call settled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware

from ..conversation import ask, call
from ..structured import BAD, DIALECTS, GOOD, PATHS, PERSON, Model, asking, saying, streaming, text_of, texts_of_stream
from ..structured.engines import uninstall
from .test_structured_money import LIMIT, Purse, cost

PEOPLE = {"type": "array", "items": PERSON}


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower engine, which takes a thread for what is long."""
    uninstall(monkeypatch, "jsonschema_rs")


def people(count: int, last: str = GOOD) -> str:
    """So many of them, as JSON."""
    return "[" + ",".join([GOOD] * (count - 1) + [last]) + "]"


@asynccontextmanager
async def others() -> AsyncIterator[list[int]]:
    """Another task on the same event loop, and how often its turn came."""
    turns = [0]

    async def turning() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(turning())
    try:
        yield turns
    finally:
        task.cancel()


async def turns_with(text: str) -> int:
    """How often another task had its turn while this answer was given and judged."""
    layer = StructuredOutputMiddleware(Model(saying("chat", text)))
    async with others() as turns:
        answer = await ask(layer, asking("chat", PEOPLE))
    assert answer.status == 200
    return turns[0]


async def test_other_calls_go_on_while_a_long_answer_is_judged() -> None:
    """A short one is judged at once; a long one beside the event loop."""
    short = await turns_with(people(3))
    assert short < 30
    assert await turns_with(people(5000)) > 2 * short


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_long_answer_is_judged_as_a_short_one(dialect: str) -> None:
    """Passed byte for byte, asked for again, or refused by its place."""
    good = saying(dialect, people(2000))
    answer = await ask(StructuredOutputMiddleware(Model(good)), asking(dialect, PEOPLE), PATHS[dialect])
    assert (answer.status, answer.body) == (200, json.dumps(good).encode())
    model = Model(saying(dialect, people(2000, BAD)), saying(dialect, people(2)))
    answer = await ask(StructuredOutputMiddleware(model), asking(dialect, PEOPLE), PATHS[dialect])
    assert text_of(dialect, answer.json()) == people(2)
    model = Model(saying(dialect, people(2000, BAD)))
    answer = await ask(StructuredOutputMiddleware(model), asking(dialect, PEOPLE), PATHS[dialect])
    assert answer.status == 422
    assert "at '/1999/age': must meet 'type'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("mode", ["pass", "hold"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_long_stream_is_judged_before_its_end_goes_out(dialect: str, mode: Any) -> None:
    """All of it arrives where it is right; where it is not, its own end never does."""
    good = streaming(dialect, people(2000))
    body = asking(dialect, PEOPLE, stream=True)
    layer = StructuredOutputMiddleware(Model(good), streams=mode)
    answer = await ask(layer, body, PATHS[dialect])
    assert answer.body == b"".join(good)
    assert texts_of_stream(dialect, answer.body) == {people(2000)}
    layer = StructuredOutputMiddleware(Model(streaming(dialect, people(2000, BAD))), streams=mode, retries=0)
    answer = await ask(layer, body, PATHS[dialect])
    assert answer.status == (200 if mode == "pass" else 422)
    assert b"/1999/age" in answer.body
    assert not answer.body.endswith(good[-1])


async def test_an_answer_that_takes_too_long_is_refused() -> None:
    """It is known before, and nothing of it is looked at."""
    layer = StructuredOutputMiddleware(Model(saying("chat", people(40_000))), retries=0)
    answer = await ask(layer, asking("chat", PEOPLE))
    assert (answer.status, answer.error["code"]) == (422, "structured_output_invalid")
    assert "takes too long to validate" in answer.error["message"]


@pytest.mark.parametrize("mode", [None, "pass", "hold"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_call_that_is_cancelled_while_it_is_judged_is_settled(dialect: str, mode: Any) -> None:
    """By what the answer said it cost: it was whole by then."""
    answered = asyncio.Event()
    text = people(9000)
    model = Model(streaming(dialect, text) if mode else saying(dialect, text))

    async def told(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            body = message.get("body", b"")
            ends = mode == "pass" and any(end in body for end in (b"[DONE]", b"response.completed", b"message_stop"))
            if ends or (mode != "pass" and message["type"] == "http.response.body" and not message.get("more_body")):
                answered.set()
            await send(message)

        await model(scope, receive, sending)

    purse = Purse(told, streams=mode)
    body = {**asking(dialect, PEOPLE, stream=bool(mode)), LIMIT[dialect]: 50}
    async with call(purse.stack, body, PATHS[dialect]) as talk:
        async with asyncio.timeout(20):
            await answered.wait()  # what comes next waits for nothing but the verdict
        talk.task.cancel()
        await asyncio.wait({talk.task})
    assert talk.task.cancelled()
    assert await purse.balance() == (cost((10, 20)), 0)
