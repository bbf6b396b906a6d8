"""Under random calls at once, settled and held never pass the budget."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway._asgi import Message, Receive, Scope, Send

from ..conversation import call
from . import DONE, Stranger, Streamer, counts, words
from .purse import ASKED, Counting, Purse


class Obedient:
    """A model that uses no more than it was allowed: answers, streams, refuses, crashes or waits, as the call says."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        body = json.loads((await receive())["body"])
        how, part = body["user"].split(":")
        made = int(body["max_tokens"] * body.get("n", 1) * float(part))
        await asyncio.sleep(0)
        if how == "crash":
            raise ZeroDivisionError
        if how == "refuse":
            await Stranger((1, 1), status=500)(scope, nothing, send)
        elif how == "json":
            await Stranger((int(20 * float(part)), made))(scope, nothing, send)
        elif how == "stream":
            await Streamer([*words(min(made, 3)), counts(5, made), DONE])(scope, nothing, send)
        else:  # a stream that ends when the client leaves, or is cancelled
            await Streamer(words(min(made, 4)), endless=True)(scope, once_read(receive), send)


def once_read(receive: Receive) -> Receive:
    """A ``receive`` whose body was read already, and that then tells the truth."""
    first = [nothing]

    async def receive_on() -> Message:
        return await (first.pop() if first else receive)()

    return receive_on


async def nothing() -> Message:
    """A body that was read already."""
    return {"type": "http.request", "body": b""}


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["json", "json", "stream", "refuse", "crash", "hang", "cancel"]),
        st.sampled_from(["0.0", "0.3", "1.0"]),
        st.one_of(st.none(), st.integers(1, 300)),
        st.integers(1, 3),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(CALLS, st.integers(0, 6000))
def test_settled_and_held_never_pass_the_budget(calls: list[Any], budget: int) -> None:
    """P1 and P2 under random calls at once, hang-ups and crashes: checked after every verb; every hold ends once."""

    async def run() -> None:
        ledger = Counting(budget)
        purse = Purse(Obedient(), budget, ledger=ledger, default_max_output=200)

        async def one(how: str, part: str, limit: int | None, choices: int, steps: int) -> None:
            body: dict[str, Any] = {**ASKED, "user": f"{how}:{part}", "n": choices}
            if limit is not None:
                body["max_tokens"] = limit
            async with call(purse.stack, body) as talk:
                for _ in range(steps):
                    await asyncio.sleep(0)
                if how == "cancel":
                    talk.task.cancel()
                elif how == "hang":
                    await talk.hang_up()
                async with asyncio.timeout(10):
                    await asyncio.wait({talk.task})
                if not talk.task.cancelled():
                    talk.task.exception()

        await asyncio.gather(*(one(*made) for made in calls))
        await ledger.check()
        spent, held = await purse.balance()
        assert held == 0
        records = (await ledger.records("t")).records
        assert sum(record.cost for record in records) == spent  # P3, within one ledger
        assert len(records) == ledger.ended.count("settle")
        assert not ledger._book.holds

    asyncio.run(run())
