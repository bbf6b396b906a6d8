"""How much, and how many at once: tokens that are corrected to the truth, and places that are given back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.exchange import exchange_of
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import Price, Target, Tenant, Usage
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.stores.memory import MemoryLedger, MemoryStore

from ..conversation import CHAT, JSON, ask, call, get
from ..upstream import until
from . import DONE, Gate, Stranger, Streamer, counts, words

LONG = 1e6
LIMIT = 1000
WITH_MAX = {**CHAT, "max_tokens": 100}
PROMPT = -(-len(json.dumps(WITH_MAX)) // 4)
"""The estimate of its prompt."""


def layer_of(app: Any, **limits: Any) -> RateLimitMiddleware:
    """A layer that limits tokens, and nothing else that matters."""
    return RateLimitMiddleware(app, **{"requests": 10**6, "tokens": LIMIT, "window": LONG, **limits})


async def left_of(layer: Any) -> int:
    """Tokens of the window that are used, as the next answer tells: its own estimate is not among them."""
    answer = await ask(layer, WITH_MAX)
    assert answer.status == 200
    return LIMIT - int(answer.headers["x-ratelimit-remaining-tokens"]) - PROMPT - 100


async def test_an_answer_tells_both_limits() -> None:
    """The tokens that it was admitted on are taken off already."""
    answer = await ask(layer_of(Stranger(), requests=5), WITH_MAX)
    assert answer.headers["x-ratelimit-limit-requests"] == "5"
    assert answer.headers["x-ratelimit-limit-tokens"] == str(LIMIT)
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(LIMIT - PROMPT - 100)
    assert answer.headers["x-ratelimit-reset-tokens"] == "277h46m40s"


@pytest.mark.parametrize("dialect", ["chat/completions", "completions", "responses", "messages", "embeddings"])
async def test_tokens_are_corrected_to_what_was_used(dialect: str) -> None:
    """On every dialect, of a stranger that tells its usage."""
    body: dict[str, Any] = {"model": "m"}
    body |= {"messages": CHAT["messages"]} if dialect in ("chat/completions", "messages") else {"input": "words"}
    if dialect == "completions":
        body = {"model": "m", "prompt": "words"}
    body |= {} if dialect == "embeddings" else {"max_output_tokens" if dialect == "responses" else "max_tokens": 50}
    layer = layer_of(Stranger((30, 40)))
    assert (await ask(layer, body, f"/v1/{dialect}")).status == 200
    assert await left_of(layer) == 70


async def test_a_stream_is_corrected_when_it_ends() -> None:
    """By its usage event; nobody else reads it."""
    layer = layer_of(Streamer([*words(3), counts(11, 22), DONE]))
    await ask(layer, {**WITH_MAX, "stream": True})
    assert await left_of(layer) == 33


async def test_a_stream_that_was_cut_counts_what_it_had() -> None:
    """The prompt by its length, and a token for each event at least."""
    layer = layer_of(Streamer(words(3), endless=True))
    async with call(layer, {**WITH_MAX, "stream": True}) as talk:
        for _ in range(4):
            await talk.next()
        await talk.hang_up()
    layer.app = Stranger()
    streamed = -(-len(json.dumps({**WITH_MAX, "stream": True})) // 4)
    assert await left_of(layer) == streamed + 3


async def test_an_aborted_call_counts_its_prompt() -> None:
    """Cancelled before anything came: it had been asked."""
    gate = Gate(Stranger())
    layer = layer_of(gate)
    async with call(layer, WITH_MAX):
        await gate.reached.wait()
    gate.open.set()
    layer.app = Stranger()
    assert await left_of(layer) == PROMPT


@pytest.mark.parametrize(("status", "taken"), [(500, 0), (404, 0)])
async def test_a_call_that_failed_took_nothing(status: int, taken: int) -> None:
    """What it was admitted on is given back."""
    layer = layer_of(Stranger(status=status))
    await ask(layer, WITH_MAX)
    layer.app = Stranger()
    assert await left_of(layer) == taken


async def test_a_crash_counts_the_prompt_and_frees_the_place() -> None:
    """The exception goes on to the server."""

    async def crashing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("no")

    layer = layer_of(crashing, concurrency=1)
    with pytest.raises(RuntimeError, match="no"):
        await ask(layer, WITH_MAX)
    layer.app = Stranger()
    assert await left_of(layer) == PROMPT


async def test_the_sum_of_all_upstream_calls_counts() -> None:
    """Of a handler that makes several, and of one that still runs the estimate stands."""

    def handler(*told: Usage | None) -> Callable[..., Awaitable[None]]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            exchange = exchange_of(scope)
            assert exchange is not None
            exchange.exact = True
            for usage in told:
                one = await exchange.begin_call(Target("p", "m"))
                if usage is not None:
                    one.end(usage)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

        return app

    layer = layer_of(handler(Usage(1, 2), Usage(10, 20)))
    await ask(layer, WITH_MAX)
    layer.app = handler(Usage(1, 2), None)
    await ask(layer, WITH_MAX)
    layer.app = Stranger()
    assert await left_of(layer) == 33 + PROMPT + 100


async def test_a_call_that_is_answered_without_a_provider_takes_no_tokens() -> None:
    """As a cache does: it knows better (``exact``), and nothing was used."""

    async def cached(scope: Any, receive: Any, send: Any) -> None:
        exchange = exchange_of(scope)
        assert exchange is not None
        exchange.exact = True
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"usage":{"prompt_tokens":5,"completion_tokens":5}}'})

    layer = layer_of(cached)
    await ask(layer, WITH_MAX)
    assert await left_of(layer) == 0


async def test_under_load_no_window_holds_more_tokens_than_the_limit() -> None:
    """Calls that run count whole; those that ended count what they used."""
    gate = Gate(Stranger((30, 40)))
    layer = layer_of(gate)
    each = PROMPT + 100
    calls = [asyncio.ensure_future(ask(layer, WITH_MAX)) for _ in range(30)]
    await until(lambda: sum(one.done() for one in calls) == 30 - LIMIT // each)
    assert gate.waiting == LIMIT // each
    gate.open.set()
    answers = await asyncio.gather(*calls)
    assert [answer.status for answer in answers].count(200) == LIMIT // each
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.error["code"] == "rate_limit_exceeded"
    assert f"{each} asked for" in refused.error["message"]
    assert int(refused.headers["retry-after-ms"]) > 0
    assert await left_of(layer) == LIMIT // each * 70


async def test_a_request_larger_than_the_limit_is_told_so() -> None:
    """It can never be admitted: no retry-after, and SDKs are told not to try again."""
    layer = layer_of(Stranger(), tokens=50)
    answer = await ask(layer, WITH_MAX)
    assert answer.status == 429
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert "fewer tokens" in answer.error["message"]


async def test_where_no_output_limit_is_named_no_more_than_a_window_has_is_assumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DEFAULT_MAX_OUTPUT_TOKENS may be more than a small tenant's window."""
    monkeypatch.setenv("DEFAULT_MAX_OUTPUT_TOKENS", "5000")
    forget()
    layer = layer_of(Stranger())
    answer = await ask(layer, CHAT)
    assert (answer.status, answer.headers["x-ratelimit-remaining-tokens"]) == (200, "0")


async def test_a_path_whose_body_nobody_reads_takes_one_token_to_begin_with() -> None:
    """Its body reaches the app as it came."""
    app = Stranger()
    layer = layer_of(app, paths={"/ask": "metered"})
    answer = await ask(layer, b"not json", "/ask")
    assert (answer.status, answer.headers["x-ratelimit-remaining-tokens"]) == (200, str(LIMIT - 1))
    assert app.bodies == [b"not json"]


async def test_a_path_that_costs_nothing_is_not_refused_for_tokens() -> None:
    """Such as the list of models: it tells where the caller stands."""
    layer = layer_of(Stranger((LIMIT, LIMIT)))
    await ask(layer, WITH_MAX)
    assert (await ask(layer, WITH_MAX)).status == 429
    answer = await get(layer, "/v1/models")
    assert (answer.status, answer.headers["x-ratelimit-remaining-tokens"]) == (200, "0")


async def test_tenants_and_keys_have_limits_of_their_own() -> None:
    """From their records."""
    store = MemoryStore()
    layer = TenantMiddleware(RateLimitMiddleware(Stranger(), window=LONG), store=store)
    await store.add_tenant(Tenant("a", rate_tokens=5 * LIMIT, concurrency=3))
    key, secret = new_key("a")
    await store.add_key(replace(key, rate_tokens=130))
    headers = [JSON, (b"x-api-key", secret.encode())]
    answer = await ask(layer, WITH_MAX, headers=headers)
    assert answer.status == 200
    assert answer.headers["x-ratelimit-limit-tokens"] == "130"
    assert "of this key" in (await ask(layer, {**WITH_MAX, "max_tokens": 101}, headers=headers)).error["message"]


# -- at once -----------------------------------------------------------------------------------------------------------


async def test_so_many_calls_at_once_and_no_more() -> None:
    """A place is free as soon as a call is over."""
    gate = Gate(Stranger())
    layer = RateLimitMiddleware(gate, concurrency=2)
    async with call(layer, CHAT) as first, call(layer, CHAT) as second:
        await until(lambda: gate.waiting == 2)
        answer = await ask(layer, CHAT)
        assert answer.status == 429
        assert "2 calls at once" in answer.error["message"]
        assert answer.headers["retry-after"] == "1"
        gate.open.set()
        assert [(await first.answer()).status, (await second.answer()).status] == [200, 200]
    assert (await ask(layer, CHAT)).status == 200


async def test_a_place_is_free_when_the_last_byte_is_sent() -> None:
    """The app's own background tasks may go on; while a byte is still to be sent, it is not free."""
    last, more = asyncio.Event(), asyncio.Event()

    async def lingering(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        await last.wait()
        await send({"type": "http.response.body", "body": b"}"})
        await more.wait()

    layer = RateLimitMiddleware(lingering, concurrency=1)
    async with call(layer, CHAT) as talk:
        assert [(await talk.next())["type"] for _ in range(2)][1] == "http.response.body"
        talk.pause()
        last.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert (await ask(layer, CHAT)).status == 429
        talk.resume()
        assert (await talk.next())["body"] == b"}"
        async with call(layer, CHAT) as other:
            assert (await other.next())["status"] == 200
            assert not talk.task.done()
            more.set()
            await other.answer()


@pytest.mark.parametrize("way", ["hang up", "cancel", "refused further in"])
async def test_a_place_is_free_after_any_abort(way: str) -> None:
    """Before the first byte, within a stream, and without any upstream call."""
    app: Any = Streamer(words(2), endless=True)
    if way == "refused further in":
        app = BudgetMiddleware(Stranger(), ledger=MemoryLedger(), prices=PriceTable({}), unknown_price="refuse")
    layer = RateLimitMiddleware(app, concurrency=1)
    if way == "refused further in":
        assert (await ask(layer, b"{")).status == 400
    else:
        async with call(layer, {**CHAT, "stream": True}) as talk:
            await talk.next()
            assert (await ask(layer, CHAT)).status == 429
            if way == "hang up":
                await talk.hang_up()
    layer.app = Stranger()
    assert (await ask(layer, CHAT)).status == 200


async def test_in_the_whole_stack_tokens_and_places_are_right() -> None:
    """Tracing, Tenant, RateLimit, Budget and ProxyApp, whole and streamed, with the echo adapter."""
    store, ledger = MemoryStore(), MemoryLedger()
    await store.add_tenant(Tenant("a", rate_tokens=LIMIT, concurrency=1, budget=10**9))
    key, secret = new_key("a")
    await store.add_key(key)
    prices = PriceTable({"echo": Price(1000, 1000)})
    proxy = ProxyApp(router=router())
    inner = BudgetMiddleware(proxy, ledger=ledger, prices=prices)
    app = TracingMiddleware(TenantMiddleware(RateLimitMiddleware(inner, window=LONG), store=store))
    headers = [JSON, (b"x-api-key", secret.encode())]
    used = 0
    for streamed in (False, True, False):
        body = {**WITH_MAX, "stream": streamed, "stream_options": {"include_usage": True}} if streamed else WITH_MAX
        answer = await ask(app, body, headers=headers)
        assert answer.status == 200
        told = json.loads(answer.events[-2])["usage"] if streamed else answer.json()["usage"]
        admitted_on = -(-len(json.dumps(body)) // 4) + 100
        assert answer.headers["x-ratelimit-remaining-tokens"] == str(LIMIT - used - admitted_on)
        used += told["total_tokens"]


def router() -> Router:
    """One model, played back."""
    return Router([EchoAdapter()])
