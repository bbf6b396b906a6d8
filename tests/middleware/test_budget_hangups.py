"""Hang-ups and crashes: no hold stays, and what was used is paid."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.records import Balance, Hold, Refusal, Usage
from asgi_llm_gateway.stores.memory import MemoryLedger

from ..conversation import call
from . import DONE, Gate, Stranger, Streamer, counts, event, words
from .purse import ASKED, QUARTER, Counting, Purse, limited


@pytest.mark.parametrize("how", ["told", "cancelled"])
async def test_a_hang_up_mid_stream_is_settled_once_and_is_not_free(how: str) -> None:
    """A client that leaves pays for the events it got, and its hold is gone; by ``receive`` or by cancelling."""
    ledger = Counting()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for one in words(6):
            await send({"type": "http.response.body", "body": one, "more_body": True})
        await receive()  # as frameworks do: it ends without a last message

    purse = Purse(app, 10_000, ledger=ledger)
    async with call(purse.stack, {**ASKED, "stream": True}) as talk:
        for _ in range(7):
            await talk.next()
        if how == "told":
            await talk.hang_up()
        else:
            talk.task.cancel()
            await asyncio.wait({talk.task})
    record = await purse.record()
    assert record.usage == Usage(-(-len(json.dumps({**ASKED, "stream": True})) // 4), 6, estimated=True)
    assert record.aborted
    assert await purse.balance() == (record.cost, 0)
    assert ledger.ended == ["settle"]


async def test_a_hang_up_after_the_counts_is_settled_exactly() -> None:
    """Many clients leave at ``[DONE]``, before the connection's own end: nothing is to be estimated then."""
    purse = Purse(Streamer([*words(3), counts(30, 3), DONE], endless=True), 10_000)
    async with call(purse.stack, {**ASKED, "stream": True}) as talk:
        for _ in range(6):
            await talk.next()
        await talk.hang_up()
    assert (await purse.record()).usage == Usage(30, 3)


async def test_a_hang_up_amid_anthropics_stream_counts_its_events() -> None:
    """Its start tells the prompt exactly, and of the answer only the beginning."""
    start = event({"type": "message_start", "message": {"usage": {"input_tokens": 30, "output_tokens": 1}}})
    deltas = [event({"type": "content_block_delta", "delta": {"text": f"w{at}"}}) for at in range(9)]
    purse = Purse(Streamer([start, *deltas], endless=True), 10_000)
    async with call(purse.stack, {**ASKED, "stream": True}, "/v1/messages") as talk:
        for _ in range(11):
            await talk.next()
        await talk.hang_up()
    assert (await purse.record()).usage == Usage(30, 9, estimated=True)


async def test_a_hang_up_before_the_first_byte_is_not_free() -> None:
    """The model may have worked all the same; nobody said that it did not."""
    gate = Gate(Stranger())
    purse = Purse(gate, 10_000)
    async with call(purse.stack, ASKED) as talk:
        await gate.reached.wait()
        talk.task.cancel()
        await asyncio.wait({talk.task})
    record = await purse.record()
    assert (record.usage, record.aborted, record.status) == (Usage(QUARTER, 0, estimated=True), True, None)
    assert await purse.balance() == (QUARTER, 0)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_crash_is_not_free(begun: bool) -> None:
    """Before the answer or within it."""

    async def crashing(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    purse = Purse(crashing, 10_000)
    with pytest.raises(ZeroDivisionError):
        await purse.ask()
    assert (await purse.record()).aborted
    assert await purse.balance() == (QUARTER, 0)


async def test_a_client_that_leaves_while_the_hold_is_taken_leaves_no_hold() -> None:
    """The ledger may have said yes already: the hold is released by the id that the gateway made."""

    class Slow(MemoryLedger):
        async def hold(self, tenant: str, **more: Any) -> Hold | Refusal:
            found = await super().hold(tenant, **more)
            taken.set()
            await asyncio.Event().wait()
            return found

    taken = asyncio.Event()
    ledger = Slow()
    async with call(BudgetMiddleware(Stranger(None), ledger=ledger), limited(10)) as talk:
        await taken.wait()
        talk.task.cancel()
        await asyncio.wait({talk.task})
    assert await ledger.balance("default") == Balance()
