"""What an answer costs by the bytes that pass, and when it is booked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_llm_gateway._asgi import Message, Receive, Scope, Send
from asgi_llm_gateway.records import Usage

from ..conversation import JSON
from . import DONE, Stranger, Streamer, counts, words
from .purse import ASKED, QUARTER, Purse, bound, limited


async def test_a_strangers_json_answer_is_metered() -> None:
    """By the usage in its bytes."""
    purse = Purse(Stranger((30, 40)), 10_000)
    await purse.ask()
    assert await purse.balance() == (30 + 80, 0)
    record = await purse.record()
    assert (record.usage, record.cost, record.model, record.status) == (Usage(30, 40), 110, "m", 200)
    assert (record.aborted, record.overdraft, record.tenant) == (False, 0, "t")


async def test_a_strangers_event_stream_is_metered() -> None:
    """By its usage event; every byte goes out as it came."""
    events = [*words(5), counts(30, 5), DONE]
    purse = Purse(Streamer(events), 10_000)
    answer = await purse.ask({**ASKED, "stream": True})
    assert answer.body == b"".join(events)
    assert await purse.balance() == (30 + 10, 0)
    assert (await purse.record()).usage == Usage(30, 5)


async def test_an_answer_that_tells_nothing_is_estimated_and_flagged() -> None:
    """Unknown is never zero: prompt and JSON answer by their length, a stream by its events."""
    plain = Purse(Stranger(None), 10_000)
    answer = await plain.ask(limited(100))
    guessed = Usage(-(-len(json.dumps(limited(100))) // 4), len(answer.body) // 4, estimated=True)
    assert (await plain.record()).usage == guessed
    streamed = Purse(Streamer([*words(5), DONE]), 10_000)
    await streamed.ask({**ASKED, "stream": True})
    record = await streamed.record()
    assert record.usage.estimated
    assert record.usage.completion >= 5
    assert record.cost > 0


@pytest.mark.parametrize("lie", [(-5, -5), (10**30, 1), (True, 0)])
async def test_a_senseless_usage_is_no_free_call(lie: tuple[int, int]) -> None:
    """It counts as unknown."""
    purse = Purse(Stranger(lie), 10_000)
    await purse.ask()
    record = await purse.record()
    assert record.usage.estimated
    assert record.cost >= QUARTER


async def test_an_explicit_zero_is_zero() -> None:
    """Who says so is believed."""
    purse = Purse(Stranger((0, 0)), 10_000)
    await purse.ask()
    assert await purse.balance() == (0, 0)
    assert (await purse.record()).usage == Usage()


async def test_what_costs_more_than_was_held_is_booked_and_flagged() -> None:
    """The provider billed it; the record says by how much it passed the hold."""
    body = limited(10)
    purse = Purse(Stranger((0, 1000)), 10_000)
    await purse.ask(body)
    assert await purse.balance() == (2000, 0)
    assert (await purse.record()).overdraft == 2000 - (bound(body) + 20)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_a_refusal_of_the_app_costs_nothing(status: int) -> None:
    """The hold is released and nothing is booked."""
    purse = Purse(Stranger((3, 4), status=status), 10_000)
    assert (await purse.ask()).status == status
    assert await purse.balance() == (0, 0)
    assert not (await purse.ledger.records("t")).records


async def test_the_call_is_settled_before_its_last_message_goes_out() -> None:
    """Who has the answer and asks for its balance finds it in there; a JSON answer waits for it as a whole."""
    purse = Purse(Stranger((3, 4)), 10_000)
    balances: list[tuple[int, int]] = []
    heads: list[Any] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(ASKED).encode()}

    async def send(message: Message) -> None:
        balances.append(await purse.balance())
        heads.extend(message.get("headers", ()))

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [JSON]}
    await purse.stack(scope, receive, send)
    assert balances == [(11, 0)] * 2
    assert dict(heads)[b"x-llm-cost-usd"] == b"0.000000011"


@pytest.mark.parametrize("asked", [True, False])
async def test_a_streams_cost_is_told_with_its_usage(asked: bool) -> None:
    """Beside ``usage``, in the event that the client asked for; it is booked before that event or ``[DONE]`` goes out."""
    body: dict[str, Any] = {**ASKED, "stream": True, **({"stream_options": {"include_usage": True}} if asked else {})}
    purse = Purse(Streamer([*words(3), counts(3, 4), DONE]), 10_000)
    seen: list[tuple[bytes, tuple[int, int]]] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(body).encode()}

    async def send(message: Message) -> None:
        seen.append((message.get("body", b""), await purse.balance()))

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [JSON]}
    await purse.stack(scope, receive, send)
    told, balance = next((piece, balance) for piece, balance in seen if b'"usage"' in piece)
    assert balance == (11, 0)
    assert (b'"cost_usd":0.000000011}' in told) == asked
    assert all(balance == (11, 0) for piece, balance in seen if b"[DONE]" in piece)
    assert b"".join(piece for piece, _ in seen).replace(b',"cost_usd":0.000000011', b"") == b"".join(
        [*words(3), counts(3, 4), DONE]
    )


async def test_a_long_json_answer_goes_on_before_its_cost_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: beyond the limit the start goes out, without the header, and every byte follows."""
    monkeypatch.setattr("asgi_llm_gateway.watching.HELD_BACK", 1000)
    usage = b'],"usage":{"prompt_tokens":3,"completion_tokens":4}}'

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [JSON]})
        for piece in (b'{"choices":[', b'"' + b"a" * 2000 + b'",', b'"b"', usage):
            await send({"type": "http.response.body", "body": piece, "more_body": piece != usage})

    purse = Purse(app, 10_000)
    answer = await purse.ask()
    assert answer.body == b'{"choices":["' + b"a" * 2000 + b'","b"' + usage
    assert "x-llm-cost-usd" not in answer.headers
    assert await purse.balance() == (11, 0)
