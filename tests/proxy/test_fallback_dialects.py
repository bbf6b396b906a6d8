"""From one provider to one of the other kind, for clients of every dialect: fallback, retry and hedge, and the money of them.

The providers are as strict as the real ones: a body that was written for the wrong kind is refused.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import Adapter
from asgi_llm_gateway.adapters.compatible import OPENAI
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.proxy import failures
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Model, Router
from asgi_llm_gateway.proxy.ways import Hedge
from asgi_llm_gateway.records import Identity, Tenant
from asgi_llm_gateway.stores.memory import MemoryLedger
from asgi_llm_gateway.tokens import estimate
from asgi_llm_gateway.tracelog import TraceLog
from asgi_llm_gateway.wire import METERED, Route, parse

from ..caching import PATHS, text_of, text_of_stream
from ..conversation import JSON, Answer
from ..matrix import speaks_chat, speaks_messages, speaks_responses
from ..matrix.model import HELLO, think
from ..upstream import HOST, LAST_CHUNK, STREAM_HEAD, Peer, Request, Script, chunk, once, silent, until, upstream, whole
from .house import PATIENT, PRICES, House, _As

FRONTS = ("chat", "messages", "responses")
KINDS = {"openai": "sk-openai-0123456789abcdef", "anthropic": "sk-ant-0123456789abcdef"}
OTHER = {"openai": "anthropic", "anthropic": "openai"}
LIMITED = {"openai": "rate_limit_exceeded", "anthropic": "upstream_rate_limited"}
"""What a 429 is called: as the provider calls it, if it does."""
BOTH = Model(["a/x", "b/x"])
COST = 1000 + 2 * 17
"""Nano-USD of the answer of "a"; of "b" ten times that."""
HEADERS = (JSON, (b"anthropic-version", b"2023-06-01"))

every_front = pytest.mark.parametrize("front", FRONTS)
either_first = pytest.mark.parametrize("first", list(KINDS))
both_forms = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry waits a millisecond, where the provider does not say how long."""
    monkeypatch.setattr(failures, "BACKOFF", 0.001)


def asking(front: str, stream: bool) -> dict[str, Any]:
    """A client's request."""
    limit = {"chat": "max_completion_tokens", "messages": "max_tokens", "responses": "max_output_tokens"}[front]
    said = [{"role": "user", "content": "hello"}]
    return {"model": "m", limit: 50, "stream": stream, "input" if front == "responses" else "messages": said}


def guessed(front: str, stream: bool) -> int:
    """Nano-USD of a call of "a" of which nobody knows what it used."""
    path = PATHS[front]
    return estimate(parse(Route("metered", METERED[path], path), json.dumps(asking(front, stream)).encode())).prompt


# -- the providers -----------------------------------------------------------------------------------------------------


def dialect_of(asked: Request) -> str:
    """Which one the provider is asked in."""
    return {"/v1/chat/completions": "chat", "/v1/messages": "messages", "/v1/responses": "responses"}[asked.path]


def spoken(asked: Request, kind: str) -> bytes:
    """What a provider of that kind says to a request that it understands."""
    body, dialect = asked.json(), dialect_of(asked)
    key = asked.headers["x-api-key"] if kind == "anthropic" else asked.headers["authorization"].removeprefix("Bearer ")
    assert (key, body["model"], dialect == "messages") == (KINDS[kind], "x", kind == "anthropic")
    if dialect == "messages":
        heard = speaks_messages.hear(body, asked.headers, counting=False)
        said = think(heard)
        answer, events = speaks_messages.whole(said, "x"), speaks_messages.stream(said, "x")
    elif dialect == "responses":
        heard = speaks_responses.hear(body)
        said = think(heard)
        answer, events = speaks_responses.whole(said, "x", body), speaks_responses.stream(said, "x", body)
    else:
        heard = speaks_chat.hear(body, strict=True)
        said = think(heard)
        wanted = bool((body.get("stream_options") or {}).get("include_usage"))
        answer = speaks_chat.whole(said, "x", thoughts=False)
        events = speaks_chat.stream(said, "x", thoughts=False, asked=wanted)
    if not heard.stream:
        return whole(answer)
    return STREAM_HEAD + b"".join(chunk(one) for some in events for one in some) + LAST_CHUNK


def good(kind: str, release: asyncio.Event | None = None) -> Script:
    """A provider that answers; ``release``: not before it is told to."""

    async def script(peer: Peer) -> None:
        while True:
            asked = await peer.request()
            if release is not None:
                await release.wait()
            await peer.send(spoken(asked, kind))

    return script


def failing(kind: str, status: int, **headers: str) -> Script:
    """A provider that refuses with a status."""
    speaks: Any = speaks_messages if kind == "anthropic" else speaks_chat
    told = speaks.failure(status, f"broken, key {KINDS[kind]}")
    return once(whole(told, status, headers=[(name.replace("_", "-"), value) for name, value in headers.items()]))


def failing_in_a_200(kind: str) -> Script:
    """A provider whose first event is an error; of a JSON answer all of it."""
    speaks: Any = speaks_messages if kind == "anthropic" else speaks_chat

    async def script(peer: Peer) -> None:
        asked = await peer.request()
        if asked.json().get("stream"):
            told = speaks_responses if dialect_of(asked) == "responses" else speaks
            await peer.send(STREAM_HEAD, chunk(told.error_event("broken")), LAST_CHUNK)
        else:
            await peer.send(whole(speaks.failure(500, "broken")))

    return script


@asynccontextmanager
async def mixed(
    kind: str, a: Script | list[Script], b: Script, *, model: Model = BOTH, retries: int = 0
) -> AsyncIterator[House]:
    """A gateway before "a", which is of that kind, and "b", which is of the other."""
    async with AsyncExitStack() as stack:
        servers = {
            "a": await stack.enter_async_context(upstream(*(a if isinstance(a, list) else [a]))),
            "b": await stack.enter_async_context(upstream(b)),
        }
        adapters: list[Adapter] = [OpenAIAdapter("c", f"http://{HOST}:9/v1")]  # which nobody asks
        for name, of in (("a", kind), ("b", OTHER[kind])):
            url = servers[name].url()
            adapters.append(
                AnthropicAdapter(name, url, KINDS[of]) if of == "anthropic"
                else OpenAIAdapter(name, url, KINDS[of], vendor=OPENAI)
            )  # fmt: skip
        router = Router(adapters, {"m": model})
        proxy = ProxyApp(router=router, timeouts=PATIENT, max_retries=retries, prices=PRICES)
        ledger, traces = MemoryLedger(), TraceLog()
        paid = BudgetMiddleware(proxy, ledger=ledger, prices=PRICES, prompt_bound="bytes")
        app = TracingMiddleware(_As(paid, Identity(Tenant("t", budget=10**12), None)), traces=traces)
        yield House(app, proxy, router, servers, ledger, traces)
        await proxy.aclose()


# -- what the client sees ----------------------------------------------------------------------------------------------


async def ask(at: House, front: str, stream: bool) -> Answer:
    """A client's call."""
    return await at.ask(asking(front, stream), path=PATHS[front], headers=HEADERS)


def check(answer: Answer, front: str, stream: bool, provider: str, attempts: int) -> None:
    """A whole answer in the client's dialect, which tells who gave it, and nothing of those who did not."""
    assert (answer.status, answer.complete) == (200, True), answer.body
    assert (answer.headers["x-llm-provider"], answer.headers["x-llm-attempts"]) == (provider, str(attempts))
    assert (text_of_stream(front, answer.body) if stream else text_of(front, answer.json())) == HELLO
    assert b"broken" not in answer.body
    if stream:
        ends = {"chat": "[DONE]", "messages": '"message_stop"', "responses": '"response.completed"'}[front]
        assert ends in answer.events[-1]
        assert sum(ends in one for one in answer.events) == 1


async def check_money(at: House, provider: str, cost: int, *, estimated: bool = False) -> None:
    """One record of the whole cost; settled once, nothing held."""
    assert await at.settled() == cost
    (record,) = await at.records()
    assert (record.provider, record.status, record.usage.estimated) == (provider, 200, estimated)
    assert (at.trace.provider, at.trace.cost, at.trace.error) == (provider, cost, None)


# -- fallback ----------------------------------------------------------------------------------------------------------


@every_front
@both_forms
@either_first
@pytest.mark.parametrize("fault", ["500", "in a 200", "429"])
async def test_a_provider_of_the_other_kind_answers_where_the_first_fails(
    front: str, first: str, stream: bool, fault: str
) -> None:
    """In the client's dialect; only the answer is paid for."""
    bad, status, codes = {
        "500": (failing(first, 500), 500, {"upstream_error"}),
        "in a 200": (failing_in_a_200(first), 200, {"upstream_error", "upstream_unavailable"}),
        "429": (failing(first, 429, retry_after_ms="60000"), 429, {LIMITED[first]}),
    }[fault]
    async with mixed(first, bad, good(OTHER[first])) as at:
        check(await ask(at, front, stream), front, stream, "b", 2)
        (failed, answered) = at.attempts
        assert (failed[:2], answered) == (("a", status), ("b", 200, None))
        assert failed[2] in codes
        await check_money(at, "b", 10 * COST)


@every_front
@either_first
@both_forms
async def test_where_all_fail_the_client_is_told_in_its_own_dialect(front: str, first: str, stream: bool) -> None:
    """And it costs nothing."""
    async with mixed(first, failing(first, 500), failing(OTHER[first], 529)) as at:
        answer = await ask(at, front, stream)
        assert (answer.status, answer.headers["x-llm-attempts"]) == (503, "2")
        told = answer.json()
        assert (told.get("type"), told["error"]["code"]) == (
            "error" if front == "messages" else None, "upstream_unavailable"
        )  # fmt: skip
        assert not any(key in answer.body.decode() for key in KINDS.values())
        assert await at.settled() == 0


# -- retry -------------------------------------------------------------------------------------------------------------


@every_front
@either_first
@both_forms
async def test_a_provider_that_says_when_is_asked_again_then(front: str, first: str, stream: bool) -> None:
    """429 with ``retry-after-ms``: not before, and soon after."""
    scripts = [failing(first, 429, retry_after_ms="40", retry_after="1"), good(first)]
    async with mixed(first, scripts, silent, model=Model(["a/x"]), retries=1) as at:
        started = time.monotonic()
        check(await ask(at, front, stream), front, stream, "a", 2)
        assert 0.04 <= time.monotonic() - started < 0.9
        assert at.attempts == [("a", 429, LIMITED[first]), ("a", 200, None)]
        assert [one.body for one in at.servers["a"].requests] == [at.servers["a"].requests[0].body] * 2
        await check_money(at, "a", COST)


# -- hedge -------------------------------------------------------------------------------------------------------------

HEDGED = Model(["a/x", "b/x"], hedge=Hedge(0.02, 10**9))


@every_front
@either_first
@both_forms
async def test_a_rival_of_the_other_kind_answers_for_a_slow_first(front: str, first: str, stream: bool) -> None:
    """Both are paid for, in one record: the answer, and what the first may have used."""
    async with mixed(first, silent, good(OTHER[first]), model=HEDGED) as at:
        check(await ask(at, front, stream), front, stream, "b", 2)
        await until(lambda: at.servers["a"].aborted == 1 and at.servers["a"].open == 0)
        assert at.attempts == [("a", None, "outrun"), ("b", 200, None)]
        await check_money(at, "b", 10 * COST + guessed(front, stream), estimated=True)


@every_front
@either_first
@both_forms
async def test_a_first_that_is_faster_than_its_rival_of_the_other_kind_answers(
    front: str, first: str, stream: bool
) -> None:
    """The other way round."""
    release = asyncio.Event()
    async with mixed(first, good(first, release), silent, model=HEDGED) as at:
        async with at.call(asking(front, stream), path=PATHS[front], headers=HEADERS) as talk:
            await until(lambda: all(at.servers[name].connections == 1 for name in "ab"))
            release.set()
            check(await talk.answer(), front, stream, "a", 2)
        await until(lambda: at.servers["b"].aborted == 1 and at.servers["b"].open == 0)
        assert at.attempts == [("b", None, "outrun"), ("a", 200, None)]
        await check_money(at, "a", COST + 10 * guessed(front, stream), estimated=True)
