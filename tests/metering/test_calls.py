"""A handler's own call: held before, booked once after, and what goes out to the provider."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import httpx2
import pytest

from asgi_llm_gateway.metering import MeteredTransport
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.tokens import FIXED_TOKENS

from .shop import ASKED, CEILING, COST, URL, Shop, answer

# -- one call ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [httpx, httpx2])
async def test_a_call_is_held_before_and_booked_after(package: Any) -> None:
    """Its ceiling while it runs, its cost when the request has ended; and the answer says what that was."""
    seen: list[tuple[int, int]] = []

    async def handler() -> Any:
        seen.append(await shop.balance())
        return (await shop.post()).json()

    async def provide(http: Any) -> Any:
        seen.append(await shop.balance())
        return answer(http)

    shop = Shop(handler, 10_000, package=package)
    shop.answers = [provide]
    said = await shop.ask()
    assert seen == [(0, 0), (0, CEILING)]
    assert said.json()["usage"] == {"prompt_tokens": 3, "completion_tokens": 4}
    assert said.headers["x-llm-cost-usd"] == "0.000000011"
    (record,) = await shop.records()
    assert (record.cost, record.usage, record.model, record.provider) == (COST, Usage(3, 4), "m", "api.example")
    assert (record.overdraft, record.status, record.aborted) == (0, 200, False)
    await shop.quiet()


async def test_it_is_recorded_as_a_trace() -> None:
    """Model, provider, tokens and money stand in the trace of the request that was served."""

    async def handler() -> Any:
        await shop.post()
        await shop.post()

    shop = Shop(handler)
    said = await shop.ask()
    trace = shop.traces.find(said.headers["x-trace-id"])
    assert trace is not None
    assert (trace.model, trace.provider, trace.usage, trace.cost) == ("m", "api.example", Usage(6, 8), 2 * COST)


async def test_calls_add_up_and_are_held_together() -> None:
    """Side by side, all ceilings are held; in the end there is one record of their sum."""
    held: list[int] = []
    all_there = asyncio.Event()

    async def provide(http: Any) -> Any:
        if len(shop.sent) == 3:
            held.append((await shop.balance())[1])
            all_there.set()
        await all_there.wait()
        return answer(http)

    async def handler() -> Any:
        await asyncio.gather(*(shop.post() for _ in range(3)))

    shop = Shop(handler, 10_000)
    shop.answers = [provide]
    await shop.ask()
    assert held == [3 * CEILING]
    assert [record.cost for record in await shop.records()] == [3 * COST]
    await shop.quiet()


async def test_what_does_not_fit_is_not_sent() -> None:
    """The second call is refused: a synthetic 402 in the dialect's envelope, which no SDK asks for again."""
    answers: list[Any] = []

    async def handler() -> Any:
        answers.append(await shop.post())
        answers.append(await shop.post())
        answers.append(await shop.post(ASKED, "https://api.anthropic.com/v1/messages"))

    shop = Shop(handler, CEILING + COST - 1)
    assert (await shop.ask()).status == 200
    assert [one.status_code for one in answers] == [200, 402, 402]
    assert answers[1].json()["error"]["code"] == "would_exceed_budget"
    assert answers[2].json() == {"type": "error", "error": {**answers[2].json()["error"], "type": "billing_error"}}
    assert answers[1].headers["x-should-retry"] == answers[2].headers["x-should-retry"] == "false"
    assert len(shop.sent) == 1
    assert await shop.balance() == (COST, 0)


async def test_a_refused_call_leaves_nothing_behind() -> None:
    """Where no call was sent at all, nothing is spent; the next request finds all that is left."""

    async def handler() -> Any:
        return (await shop.post({**ASKED, "max_tokens": 10**6})).status_code

    shop = Shop(handler, CEILING)
    assert (await shop.ask()).json() == 402
    assert await shop.balance() == (0, 0)
    await shop.quiet()


async def test_a_budget_that_begins_anew_refuses_with_429() -> None:
    """The status is the budget's own."""

    async def handler() -> Any:
        return (await shop.post()).status_code

    shop = Shop(handler, 5, period="daily")
    assert (await shop.ask()).json() == 429


async def test_a_model_without_a_price_is_refused() -> None:
    """As it is when a client asks for it."""

    async def handler() -> Any:
        return (await shop.post({**ASKED, "model": "nobodys"})).json()

    shop = Shop(handler, 10_000)
    assert (await shop.ask()).json()["error"]["code"] == "unpriced_model"
    assert shop.sent == []


async def test_each_retry_is_a_call_of_its_own() -> None:
    """An error costs nothing, so that trying again needs no more than the first try."""

    async def handler() -> Any:
        return [(await shop.post()).status_code for _ in range(3)]

    shop = Shop(handler, CEILING)
    shop.answers = [lambda http: answer(http, None, 503), lambda http: answer(http, None, 429), answer]
    assert (await shop.ask()).json() == [503, 429, 200]
    assert await shop.balance() == (COST, 0)


@pytest.mark.parametrize(
    ("fault", "cost"), [("ConnectError", 0), ("ConnectTimeout", 0), ("ReadTimeout", None), ("ReadError", None)]
)
@pytest.mark.parametrize("package", [httpx, httpx2])
async def test_a_connection_that_fails_costs_what_was_sent(package: Any, fault: str, cost: int | None) -> None:
    """Nothing where nothing was sent; an estimate of the prompt where nobody knows."""

    async def handler() -> Any:
        with pytest.raises(getattr(package, fault)):
            await shop.post()

    shop = Shop(handler, 10_000, package=package)
    shop.answers = [lambda http: getattr(http, fault)("no")]
    await shop.ask()
    (record,) = await shop.records()
    assert record.cost == (-(-(CEILING - FIXED_TOKENS - 20) // 4) if cost is None else cost)
    assert record.usage.estimated == (cost is None)
    await shop.quiet()


# -- what goes out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "field"),
    [
        (URL, "max_tokens"),
        ("https://api.openai.com/v1/chat/completions", "max_completion_tokens"),
        ("https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=1", "max_completion_tokens"),
        ("https://openrouter.ai/api/v1/completions", "max_tokens"),
        ("https://api.openai.com/v1/responses", "max_output_tokens"),
        ("https://api.anthropic.com/v1/messages", "max_tokens"),
        ("https://api.openai.com/v1/embeddings", None),
    ],
)
async def test_a_missing_output_limit_is_chosen(url: str, field: str | None) -> None:
    """Under the name that the provider knows, so that what is held is a true upper bound; embeddings have no output."""
    body = {"model": "m", "messages": ASKED["messages"], "input": "x", "prompt": "x"}

    async def handler() -> Any:
        return (await shop.post(body, url)).status_code

    shop = Shop(handler)
    assert (await shop.ask()).json() == 200
    assert shop.sent == [body if field is None else {**body, field: 50}]
    assert shop.headers[0]["accept-encoding"] == "identity"
    await shop.quiet()


async def test_the_tenants_own_output_limit_comes_first() -> None:
    """Where it is lower than the settings'."""

    async def handler() -> Any:
        return (await shop.post({"model": "m", "messages": ASKED["messages"]})).status_code

    shop = Shop(handler, 10_000, max_output_tokens=7)
    await shop.ask()
    assert shop.sent[0]["max_tokens"] == 7


async def test_what_is_no_llm_call_passes() -> None:
    """Other paths and other methods are none of our business."""

    async def handler() -> Any:
        one = await shop.post({"a": 1}, "https://api.openai.com/v1/vector_stores")
        other = await shop.client.request("GET", URL, content=b"{}")
        third = await shop.post({"role": "user"}, "https://api.openai.com/v1/threads/thread_1/messages")
        return [one.status_code, other.status_code, third.status_code]

    shop = Shop(handler, 0)
    assert (await shop.ask()).json() == [200, 200, 200]
    assert "identity" not in shop.headers[0]["accept-encoding"]
    assert await shop.balance() == (0, 0)


async def test_a_body_that_is_no_request_is_refused() -> None:
    """What can't be understood can't be bounded."""

    async def handler() -> Any:
        return (await shop.client.post(URL, content=b"{")).json()

    shop = Shop(handler)
    assert (await shop.ask()).json()["error"]["code"] == "invalid_json"
    assert shop.sent == []


async def test_the_provider_may_be_named() -> None:
    """A model on an own machine costs nothing, also where the tenant has a budget."""

    async def handler() -> Any:
        transport = MeteredTransport(httpx2.MockTransport(shop._provide), provider="vllm")
        async with httpx2.AsyncClient(transport=transport) as client:
            return (
                await client.post("http://127.0.0.1:8000/v1/chat/completions", json={**ASKED, "model": "own"})
            ).status_code

    shop = Shop(handler, 10)
    assert (await shop.ask()).json() == 200
    (record,) = await shop.records()
    assert (record.provider, record.cost, record.local) == ("vllm", 0, True)
