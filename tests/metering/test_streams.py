"""A handler's streamed calls: counted as they pass, whoever leaves or breaks them."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway._metered_stream import without_usage
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.records import Tenant

from ..conversation import ask
from ..middleware import DONE, counts, event, words
from .shop import COST, PRICES, STREAMED, URL, As, Pieces, Shop, read, stream


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_a_stream_is_counted_as_it_passes(size: int, asked: bool) -> None:
    """Its usage is asked for; a caller who did not ask gets every byte but that event, however it is cut."""
    whole = b"".join([*words(4), counts(3, 4), DONE])
    body = {**STREAMED, **({"stream_options": {"include_usage": True}} if asked else {})}

    async def handler() -> Any:
        return (await read(shop, body)).decode()

    shop = Shop(handler, 10_000)
    shop.answers = [lambda http: stream(http, [whole[at : at + size] for at in range(0, len(whole), size)])]
    assert (await shop.ask()).json().encode() == (whole if asked else b"".join([*words(4), DONE]))
    assert shop.sent[0]["stream_options"] == {"include_usage": True}
    assert await shop.balance() == (COST, 0)


async def test_an_anthropic_stream_passes_unchanged() -> None:
    """Its usage stands in it anyway."""
    events = [
        event({"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}}),
        event({"type": "message_delta", "usage": {"output_tokens": 4}}),
        event({"type": "message_stop"}),
    ]

    async def handler() -> Any:
        async with shop.client.stream("POST", "https://api.anthropic.com/v1/messages", json=STREAMED) as response:
            return [piece.decode() async for piece in response.aiter_raw()]

    shop = Shop(handler, 10_000)
    shop.answers = [lambda http: stream(http, events)]
    assert (await shop.ask()).json() == [one.decode() for one in events]
    assert shop.sent == [STREAMED]
    assert await shop.balance() == (COST, 0)


async def test_a_stream_left_early_costs_what_came() -> None:
    """At least its events, marked as an estimate."""

    async def handler() -> Any:
        await read(shop, most=3)

    shop = Shop(handler, 10_000)
    shop.answers = [stream]
    await shop.ask()
    (record,) = await shop.records()
    assert (record.usage.completion, record.usage.estimated) == (3, True)
    await shop.quiet()


async def test_a_stream_that_breaks_costs_what_came() -> None:
    """The error reaches the handler; nothing is free."""

    async def handler() -> Any:
        with pytest.raises(httpx2.ReadError):
            await read(shop)

    shop = Shop(handler, 10_000)
    shop.answers = [lambda http: stream(http, words(3), http.ReadError("cut"))]
    await shop.ask()
    (record,) = await shop.records()
    assert (record.usage.completion, record.usage.estimated) == (3, True)
    await shop.quiet()


async def test_a_stream_that_nobody_reads_or_closes_is_ended_with_its_response() -> None:
    """The hold stays as long as somebody could read on."""
    kept: list[Any] = []

    async def handler() -> Any:
        request = shop.client.build_request("POST", URL, json=STREAMED)
        kept.append(await shop.client.send(request, stream=True))

    shop = Shop(handler, 10_000)
    shop.answers = [lambda http: stream(http, endless=True)]
    said = await shop.ask()
    assert "x-llm-cost-usd" not in said.headers
    assert (await shop.balance())[1] > 0
    kept.clear()
    await shop.quiet()
    assert len(await shop.records()) == 1


async def test_an_answer_that_can_not_be_read_costs_all_that_was_allowed() -> None:
    """The caller gets it as it is."""
    import gzip

    packed = gzip.compress(b'{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}')

    def provide(http: Any) -> Any:
        head = {"content-type": "application/json", "content-encoding": "gzip"}
        return http.Response(200, headers=head, stream=Pieces([packed]))

    async def handler() -> Any:
        return (await shop.post()).json()

    shop = Shop(handler, 10_000)
    shop.answers = [provide]
    assert (await shop.ask()).json()["usage"]["prompt_tokens"] == 3
    (record,) = await shop.records()
    assert (record.usage.completion, record.usage.estimated) == (10, True)


def test_only_the_usage_event_is_left_out() -> None:
    """Usage beside content stays, and so does what only looks like it."""
    beside = event({"choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    quoted = event({"choices": [{"delta": {"content": '"usage":{'}}], "usage": None})
    odd = event(b'{"usage": {')
    assert without_usage(beside + quoted + counts(1, 2) + odd + DONE) == beside + quoted + odd + DONE


async def test_an_answer_that_breaks_is_ended_before_it_is_closed() -> None:
    """A caller that iterates and never closes has the call ended all the same, while it holds the response."""

    async def handler() -> Any:
        request = shop.client.build_request("POST", URL, json=STREAMED)
        response = await shop.client.send(request, stream=True)
        with pytest.raises(httpx2.ReadError):
            async for _ in response.aiter_raw():
                pass
        kept.append(response)

    kept: list[Any] = []
    shop = Shop(handler, 10_000)
    shop.answers = [lambda http: stream(http, words(3), http.ReadError("cut"))]
    await shop.ask()
    assert len(await shop.records()) == 1
    assert (await shop.balance())[1] == 0


async def test_a_relayed_stream_is_settled_before_its_end() -> None:
    """A handler that hands the provider's stream on, on the API's own path: one settle, of what the provider said."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        async with shop.client.stream("POST", URL, json=STREAMED) as response:
            async for piece in response.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def handler() -> Any:
        return None

    shop = Shop(handler, 10_000)
    shop.answers = [stream]
    layer = BudgetMiddleware(app, ledger=shop.ledger, prices=PRICES)
    said = await ask(As(layer, Tenant("t", budget=10_000)), STREAMED)
    assert said.body == b"".join([*words(4), DONE])
    assert [record.cost for record in await shop.records()] == [COST]
    await shop.quiet()
