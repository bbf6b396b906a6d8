"""What a handler's own calls cost: held before each, booked once, whatever the handler does with them."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway import _serving
from asgi_llm_gateway._asgi import ASGIApp, Receive, Scope, Send, send_body
from asgi_llm_gateway._metered_stream import without_usage
from asgi_llm_gateway.errors import GatewayError
from asgi_llm_gateway.metering import MeteredTransport, NoExchange, current_exchange, record_usage
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.records import CallRecord, Identity, Price, Tenant, Usage
from asgi_llm_gateway.stores.memory import MemoryLedger
from asgi_llm_gateway.tokens import FIXED_TOKENS
from asgi_llm_gateway.tracelog import TraceLog

from .conversation import Answer, ask, call, scope_of
from .middleware import DONE, Stranger, counts, event, words

PATHS = {"/ask": "metered"}
PRICES = PriceTable({"m": Price(1_000_000, 2_000_000), "dear": Price(10_000_000, 20_000_000)})
"""A prompt token of ``m`` costs one nano-USD, a completion token two; those of ``dear`` ten times as much."""
URL = "https://api.example/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
CEILING = len(json.dumps(ASKED, separators=(",", ":"))) + FIXED_TOKENS + 20
"""What ``ASKED`` can cost at most, as httpx writes it."""
COST = 3 + 2 * 4
"""What it does cost: three prompt tokens, four of completion."""

Handler = Callable[[], Awaitable[Any]]


class As(LLMMiddleware):
    """Says who is calling, in TenantMiddleware's place."""

    rank = Rank.TENANT

    def __init__(self, app: ASGIApp, tenant: Tenant, **more: Any) -> None:
        super().__init__(app, **more)
        self._tenant = tenant

    async def handle(self, exchange: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        exchange.identity = Identity(self._tenant, None)
        await self.forward(exchange, scope, receive, send)


class Shop:
    """A handler behind the gateway's layers, the purse that pays for it, and a provider that is played.

    Attributes:
        sent: What the provider was asked, in order.
        answers: What it does, in order; the last one again and again.
    """

    def __init__(self, handler: Handler, budget: int | None = None, *, package: Any = httpx2, **tenant: Any) -> None:
        self.ledger = MemoryLedger()
        self.sent: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[Any] = [answer]
        self.package = package
        self.traces = TraceLog()
        self.client = package.AsyncClient(transport=MeteredTransport(package.MockTransport(self._provide)))
        budgeted = BudgetMiddleware(
            self._app, ledger=self.ledger, prices=PRICES, paths=PATHS, default_max_output=50, prompt_bound="bytes"
        )
        layer = As(budgeted, Tenant("t", budget=budget, **tenant), paths=PATHS)
        self.stack = TracingMiddleware(layer, traces=self.traces, paths=PATHS)
        self.handler = handler
        self.later: list[Any] = []

    async def _provide(self, request: Any) -> Any:
        self.sent.append(json.loads(request.content))
        self.headers.append(dict(request.headers))
        play = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        played = play(self.package)
        if isinstance(played, Exception):
            raise played
        return await played if asyncio.iscoroutine(played) else played

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = json.dumps(await self.handler()).encode()
        await send_body(send, 200, said, [(b"content-type", b"application/json")])
        for work in self.later:  # as a framework does background tasks: after the answer, in the same call
            await work()

    async def post(self, body: Any = ASKED, url: str = URL) -> Any:
        """A call to the provider, read to its end."""
        return await self.client.post(url, json=body)

    async def ask(self, path: str = "/ask", body: Any = None) -> Answer:
        """A call of a client."""
        return await ask(self.stack, body, path)

    async def balance(self) -> tuple[int, int]:
        """Spent and held."""
        found = await self.ledger.balance("t")
        return found.spent, found.held

    async def records(self) -> list[CallRecord]:
        """The records of calls, the newest first."""
        return list((await self.ledger.records("t")).records)

    async def quiet(self) -> None:
        """Nothing is held any more, and the records are what was spent."""
        gc.collect()
        for _ in range(20):
            await asyncio.sleep(0)
        spent, held = await self.balance()
        assert held == 0
        assert spent == sum(record.cost for record in await self.records())


def answer(http: Any, usage: tuple[int, int] | None = (3, 4), status: int = 200, **headers: str) -> Any:
    """A JSON answer."""
    body: dict[str, Any] = {"choices": []}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return http.Response(status, json=body, headers=headers)


class Pieces(httpx2.AsyncByteStream, httpx.AsyncByteStream):
    """An answer's body in pieces; ``fault`` is what it ends with, ``endless`` that it never does."""

    def __init__(self, pieces: list[bytes], fault: Exception | None = None, *, endless: bool = False) -> None:
        self._pieces = pieces
        self._fault = fault
        self._endless = endless
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            await asyncio.sleep(0)
            yield piece
        if self._endless:
            await asyncio.Event().wait()
        if self._fault is not None:
            raise self._fault

    async def aclose(self) -> None:
        """Close it."""
        self.closed = True


def stream(http: Any, pieces: list[bytes] | None = None, fault: Exception | None = None, **more: Any) -> Any:
    """An event stream."""
    body = Pieces([*words(4), counts(3, 4), DONE] if pieces is None else pieces, fault, **more)
    return http.Response(200, headers={"content-type": "text/event-stream"}, stream=body)


STREAMED = {**ASKED, "stream": True}


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


# -- streams -----------------------------------------------------------------------------------------------------------


async def read(shop: Shop, body: Any = STREAMED, *, most: int = 10**6) -> bytes:
    """A streamed call, of which so many pieces are read."""
    got = b""
    async with shop.client.stream("POST", URL, json=body) as response:
        async for piece in response.aiter_raw():
            got += piece
            most -= 1
            if not most:
                break
    return got


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


# -- beyond the request ------------------------------------------------------------------------------------------------


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


# -- outside -----------------------------------------------------------------------------------------------------------


async def test_outside_a_request_a_call_is_refused() -> None:
    """403 with a message that says how to go on."""

    async def handler() -> Any:
        return None

    shop = Shop(handler)
    refused = await shop.post()
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "no_exchange")
    assert refused.headers["x-should-retry"] == "false"
    assert "outside='pass'" in refused.json()["error"]["message"]
    assert shop.sent == []
    assert (await shop.post({}, "https://api.example/other")).status_code == 200
    await shop.ask()
    assert (await shop.post()).status_code == 403  # the context variable is reset


async def test_outside_a_request_a_call_may_pass() -> None:
    """Untouched, and not counted."""

    async def handler() -> Any:
        return None

    shop = Shop(handler)
    transport = MeteredTransport(httpx2.MockTransport(shop._provide), outside="pass")
    async with httpx2.AsyncClient(transport=transport) as client:
        assert (await client.post(URL, json={"model": "m"})).status_code == 200
    assert shop.sent == [{"model": "m"}]


async def test_outside_a_request_a_tenant_may_pay() -> None:
    """``outside="hold"``: a job is held and booked like a request, and refused beyond the tenant's budget."""

    async def handler() -> Any:
        return None

    shop = Shop(handler)
    tenant = Tenant("t", budget=CEILING + COST)
    inner = httpx2.MockTransport(shop._provide)
    transport = MeteredTransport(inner, outside="hold", tenant=tenant, ledger=shop.ledger, prices=PRICES)
    async with httpx2.AsyncClient(transport=transport) as client:
        statuses = [(await client.post(URL, json=ASKED)).status_code for _ in range(3)]
    assert statuses == [200, 200, 402]
    assert await shop.balance() == (2 * COST, 0)
    assert [record.cost for record in await shop.records()] == [COST, COST]
    inner = httpx2.MockTransport(shop._provide)
    nobody = MeteredTransport(inner, outside="hold", tenant="nobody", ledger=shop.ledger)
    async with httpx2.AsyncClient(transport=nobody) as client:
        assert (await client.post(URL, json=ASKED)).json()["error"]["code"] == "tenant_not_found"
    off = MeteredTransport(inner, outside="hold", tenant=Tenant("t", enabled=False), ledger=shop.ledger)
    async with httpx2.AsyncClient(transport=off) as client:
        assert (await client.post(URL, json=ASKED)).json()["error"]["code"] == "tenant_disabled"


def test_settings_that_can_not_be_meant_are_named() -> None:
    """Where they are given, not at the first call."""
    with pytest.raises(ValueError, match="outside='maybe'"):
        MeteredTransport(outside="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outside='hold'"):
        MeteredTransport(tenant="t")


def test_without_an_http_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither package is installed."""
    monkeypatch.setattr("asgi_llm_gateway.metering.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'asgi-llm-gateway\[httpx\]'"):
        MeteredTransport()


# -- the context -------------------------------------------------------------------------------------------------------


async def test_only_an_app_that_is_not_ours_sets_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our own layers, and for our own proxy, nothing is set; and nothing stays set."""
    served: list[Any] = []
    serve = _serving.serve

    def counting(app: Any, *rest: Any) -> Any:
        served.append(app)
        return serve(app, *rest)

    monkeypatch.setattr("asgi_llm_gateway.middleware.base.serve", counting)

    class Ours(Stranger):
        joins_exchange = True

    for app, times in ((Stranger(), 1), (Ours(), 0)):
        served.clear()
        await ask(As(BudgetMiddleware(app, ledger=MemoryLedger(), prices=PRICES), Tenant("t")), ASKED)
        assert len(served) == times
        assert current_exchange() is None


async def test_the_context_is_reset_in_the_servers_task() -> None:
    """A server that keeps one task for a connection finds nothing of the last request, also where the handler raised."""
    served: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(current_exchange())
        raise RuntimeError("the handler's own")

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        """Take it."""

    with pytest.raises(RuntimeError, match="own"):
        await TracingMiddleware(app, traces=TraceLog(), paths=PATHS)(scope_of("/ask"), receive, send)
    assert served[0] is not None
    assert current_exchange() is None


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


async def test_a_stack_without_a_budget_serves_metered_calls() -> None:
    """Nothing is held, nothing is booked, and the trace knows them."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with httpx2.AsyncClient(transport=MeteredTransport(httpx2.MockTransport(answer_of))) as client:
            assert (await client.post(URL, json=ASKED)).status_code == 200
        await send_body(send, 200, b"")

    def answer_of(request: Any) -> Any:
        assert json.loads(request.content) == ASKED
        return answer(httpx2)

    traces = TraceLog()
    said = await ask(TracingMiddleware(app, traces=traces, paths=PATHS), None, "/ask")
    trace = traces.find(said.headers["x-trace-id"])
    assert trace is not None
    assert (trace.usage, trace.model) == (Usage(3, 4), "m")


async def test_on_a_path_of_the_api_the_answer_is_not_read() -> None:
    """The handler's calls are what is paid, not what its answer says of itself; the entry hold covers the first of them."""

    async def handler() -> Any:
        await shop.post()
        return {"choices": [], "usage": {"prompt_tokens": 500, "completion_tokens": 500}}

    shop = Shop(handler, 10_000)
    await shop.ask("/v1/chat/completions", ASKED)
    assert await shop.balance() == (COST, 0)


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


# -- threads -----------------------------------------------------------------------------------------------------------


async def test_a_waiting_client_serves_a_handler_in_a_thread() -> None:
    """``def`` handlers: held, refused, streamed and counted like others."""

    def provide(request: Any) -> Any:
        shop.sent.append(json.loads(request.content))
        if shop.sent[-1].get("stream"):
            return httpx2.Response(
                200, headers={"content-type": "text/event-stream"}, content=b"".join([*words(4), counts(3, 4), DONE])
            )
        return answer(httpx2)

    def work() -> Any:
        with httpx2.Client(transport=MeteredTransport(httpx2.MockTransport(provide))) as client:
            one = client.post(URL, json=ASKED).status_code
            with client.stream("POST", URL, json=STREAMED) as response:
                two = b"".join(response.iter_raw())
            three = client.post(URL, json={**ASKED, "max_tokens": 10**6}).status_code
            return [one, two.decode(), three]

    async def handler() -> Any:
        return await asyncio.to_thread(work)

    shop = Shop(handler, 10_000)
    assert (await shop.ask()).json() == [200, b"".join([*words(4), DONE]).decode(), 402]
    assert len(shop.sent) == 2
    assert [record.cost for record in await shop.records()] == [2 * COST]
    await shop.quiet()


async def test_an_async_client_may_run_on_a_loop_of_its_own() -> None:
    """``asyncio.run`` in a thread: the guards are asked on the loop that they belong to."""

    def work() -> int:
        async def inner() -> int:
            async with httpx2.AsyncClient(transport=MeteredTransport(httpx2.MockTransport(shop._provide))) as client:
                await record_usage(prompt=1, completion=1, model="m")
                return (await client.post(URL, json=ASKED)).status_code

        return asyncio.run(inner())

    async def handler() -> Any:
        return await asyncio.to_thread(work)

    shop = Shop(handler, 10_000)
    assert (await shop.ask()).json() == 200
    assert await shop.balance() == (COST + 3, 0)


async def test_a_waiting_client_in_an_async_handler_is_refused() -> None:
    """It would wait for the loop that it stops."""

    async def handler() -> Any:
        with httpx2.Client(transport=MeteredTransport(httpx2.MockTransport(lambda request: answer(httpx2)))) as client:
            return client.post(URL, json=ASKED).json()

    shop = Shop(handler, 10_000)
    assert (await shop.ask()).json()["error"]["code"] == "blocking_call"


def test_a_waiting_client_outside_a_request_is_refused() -> None:
    """As the other is; and it can't hold anything, for want of a loop."""
    inner = httpx.MockTransport(lambda request: answer(httpx))
    for transport in (MeteredTransport(inner), MeteredTransport(inner, outside="hold")):
        with httpx.Client(transport=transport) as client:
            assert client.post(URL, json=ASKED).json()["error"]["code"] == "no_exchange"
    with httpx.Client(transport=MeteredTransport(inner, outside="pass")) as client:
        assert client.post(URL, json=ASKED).status_code == 200


# -- record_usage ------------------------------------------------------------------------------------------------------


class SDKUsage:
    """As the SDKs have it."""

    def model_dump(self) -> Any:
        """As Pydantic has it."""
        return {"input_tokens": 3, "output_tokens": 4}


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (Usage(3, 4), {}),
        ({"prompt_tokens": 3, "completion_tokens": 4}, {}),
        (SDKUsage(), {}),
        (None, {"prompt": 3, "completion": 4}),
    ],
)
async def test_reports_add_up(usage: Any, counted: dict[str, Any]) -> None:
    """In whatever form; they are priced, and held at once."""
    held: list[int] = []

    async def handler() -> Any:
        for _ in range(2):
            await record_usage(usage, model="m", **counted)
            held.append((await shop.balance())[1])
        await shop.post()

    shop = Shop(handler, 10_000)
    await shop.ask()
    assert held == [COST, 2 * COST]
    (record,) = await shop.records()
    assert (record.cost, record.overdraft) == (3 * COST, 0)
    await shop.quiet()


async def test_a_report_beyond_the_budget_is_an_overdraft() -> None:
    """Used is used; but the next call of the handler's is refused."""

    async def handler() -> Any:
        await record_usage(prompt=1000, completion=0, model="m")
        return (await shop.post()).status_code

    shop = Shop(handler, 900)
    assert (await shop.ask()).json() == 402
    (record,) = await shop.records()
    assert (record.cost, record.overdraft) == (1000, 1000)
    await shop.quiet()


async def test_a_report_after_the_answer_is_booked() -> None:
    """A background task's."""

    async def handler() -> Any:
        shop.later.append(partial(record_usage, prompt=3, completion=4, model="m", provider="own"))

    shop = Shop(handler, 10_000)
    await shop.ask()
    late, _ = await shop.records()
    assert (late.cost, late.provider, late.overdraft) == (COST, "own", 0)
    await shop.quiet()


async def test_a_report_without_a_request_says_so() -> None:
    """Or does nothing, where that was said."""
    with pytest.raises(NoExchange, match="outside a request"):
        await record_usage(prompt=1, completion=1, model="m")
    await record_usage(prompt=1, completion=1, model="m", outside="ignore")


@pytest.mark.parametrize(
    "given_",
    [
        {},
        {"prompt": -1, "completion": 1},
        {"usage": Usage(-5, 1)},
        {"usage": object()},
        {"usage": {"prompt_tokens": "x"}},
    ],
)
async def test_a_report_without_counts_is_refused(given_: dict[str, Any]) -> None:
    """Nobody gets money back."""
    with pytest.raises(ValueError, match="no usage"):
        await record_usage(model="m", **given_)


async def test_a_report_of_a_model_without_a_price_is_refused() -> None:
    """The guard says so, as for a call."""

    async def handler() -> Any:
        with pytest.raises(GatewayError) as refused:
            await record_usage(prompt=1, completion=1, model="nobodys")
        return refused.value.error_code

    shop = Shop(handler, 10_000)
    assert (await shop.ask()).json() == "unpriced_model"
    await shop.quiet()


async def test_a_report_from_a_thread() -> None:
    """``anyio.from_thread.run``, as frameworks run ``def`` handlers."""
    import anyio.to_thread

    def work() -> None:
        anyio.from_thread.run(partial(record_usage, prompt=3, completion=4, model="m"))

    async def handler() -> Any:
        await anyio.to_thread.run_sync(work)

    shop = Shop(handler, 10_000)
    await shop.ask()
    assert await shop.balance() == (COST, 0)


# -- whatever the handler does -----------------------------------------------------------------------------------------

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


@settings(max_examples=25, deadline=None)
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
