"""Whatever happens to a call, its spans are one tree, and each of them ends once."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import StatusCode

from asgi_llm_gateway._closing import close_all
from asgi_llm_gateway.exchange import exchange_of
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.cache import CacheMiddleware
from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware
from asgi_llm_gateway.proxy import failures
from asgi_llm_gateway.proxy.health import BreakerRules
from asgi_llm_gateway.proxy.routing import Model
from asgi_llm_gateway.proxy.ways import Hedge
from asgi_llm_gateway.stores.memory import MemoryLedger

from ..conversation import ask, call
from ..middleware import Gate, Stranger
from ..proxy.house import ASKED, PRICES, STREAMED, house
from ..upstream import DONE, LAST_CHUNK, STREAM_HEAD, Peer, always, chunk, once, until, usage_event, whole, word
from .seen import Seen, about, own

EVENTS = [word("one"), word("two"), word("", "stop"), usage_event(), DONE]


class Turns:
    """A provider that does one thing after the other, whatever connection it is asked on; the last one stays."""

    def __init__(self, turns: Sequence[str]) -> None:
        self._turns = list(turns)

    async def __call__(self, peer: Peer) -> None:
        """The script of one connection."""
        while True:
            asked = (await peer.request()).json()
            turn = self._turns.pop(0) if len(self._turns) > 1 else self._turns[0]
            if turn == "ok" and asked.get("stream"):
                await peer.send(STREAM_HEAD, *(chunk(one) for one in EVENTS), LAST_CHUNK)
            elif turn == "ok":
                await peer.send(whole())
            elif turn == "cut":
                await peer.send(STREAM_HEAD, chunk(EVENTS[0]), LAST_CHUNK)
            elif turn == "reset":
                peer.reset()
                return
            elif turn == "stall":
                await peer.stall()
            elif turn == "half":
                await peer.send(STREAM_HEAD, chunk(EVENTS[0]))
                await peer.stall()
            else:
                await peer.send(whole({"error": {"message": "PRIVATE"}}, int(turn)))


TURNS = st.lists(st.sampled_from(["ok", "cut", "reset", "400", "429", "500", "503"]), min_size=1, max_size=4)


@given(
    a=TURNS,
    b=TURNS,
    stream=st.booleans(),
    hedge=st.booleans(),
    retries=st.integers(0, 2),
    leaves=st.sampled_from(["stays", "hangs up", "is cancelled"]),
    after=st.integers(0, 4),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_call_is_one_tree(
    monkeypatch: pytest.MonkeyPatch,
    a: list[str], b: list[str], stream: bool, hedge: bool, retries: int, leaves: str, after: int,
) -> None:  # fmt: skip
    """Answered, failed, tried again, outrun, left or cancelled: as many spans end as began, in one tree."""
    monkeypatch.setattr(failures, "backoff", lambda retries: 0.0)
    seen = Seen()

    async def run() -> None:
        model = Model(["a/x", "b/x"], hedge=Hedge(0.02, 10**9) if hedge else None)
        async with house(Turns(a), Turns(b), model=model, retries=retries, breaker=BreakerRules(failures=0)) as home:
            async with call(seen(home.app), STREAMED if stream else ASKED) as talk:
                for _ in range(after if leaves != "stays" else 0):
                    if talk.task.done():
                        break
                    await asyncio.sleep(0.002)
                if leaves == "hangs up":
                    await talk.hang_up()
                elif leaves == "is cancelled":
                    talk.task.cancel()
                    await asyncio.wait({talk.task})
                else:
                    await talk.answer()
            if seen.started:  # else it was cancelled before it had begun
                seen.check()
            if leaves == "stays" and not hedge and "reset" not in a + b:  # a kept connection that is lost is made anew
                assert len(seen.attempts) == sum(len(server.requests) for server in home.servers.values())
        await close_all()

    asyncio.run(run())
    assert "PRIVATE" not in repr([(about(one), one.name) for one in seen.spans])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_corrected_answer_has_a_span_for_each_call(stream: bool) -> None:
    """The second question is another one: it is not the first sent again."""
    seen = Seen()
    said = ["no JSON", '{"a": 1}']

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            told = {"choices": [{"index": 0, "message": {"role": "assistant", "content": said.pop(0)},
                                 "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}  # fmt: skip
            await peer.send(whole(told))

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": False}}
    async with house(script, inner=lambda app: StructuredOutputMiddleware(app, retries=1)) as home:
        answer = await ask(seen(home.app), {**ASKED, "response_format": format})
        seen.check()
    assert answer.status == 200
    first, second = seen.attempts
    assert "http.request.resend_count" not in about(first) | about(second)
    assert about(seen.logical)["gen_ai.usage.output_tokens"] == 10
    assert about(seen.logical)["gen_ai.output.type"] == "json"


async def test_a_call_that_many_have_joined() -> None:
    """One of them pays and has the attempt below its span; the others have a span without one, and saved the cost."""
    seen, go = Seen(), asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.send(whole())

    async with house(script) as home:
        paid = BudgetMiddleware(home.proxy, ledger=home.ledger, prices=PRICES, prompt_bound="bytes")
        app = seen(CacheMiddleware(paid, redis_url=""))
        tasks = [asyncio.ensure_future(ask(app, {**ASKED, "temperature": 0})) for _ in range(4)]
        await until(lambda: bool(home.servers["a"].requests))
        await asyncio.sleep(0.02)
        go.set()
        await asyncio.gather(*tasks)
    (attempt,) = seen.attempts
    found = {own(one)["cache"]: own(one) for one in seen.logicals}
    assert len(seen.logicals) == 4
    assert len(seen.spans) == seen.started == 9
    assert (found["miss"]["attempts"], found["miss"]["cost_usd"]) == (1, 13e-9)
    assert (found["joined"]["attempts"], found["joined"]["cost_usd"]) == (0, 0.0)
    assert attempt.parent is not None
    assert attempt.parent.span_id in {one.context.span_id for one in seen.logicals if one.context is not None}


async def test_a_call_that_goes_on_for_others_ends_its_spans_when_it_ends() -> None:
    """A server that cancels the one who pays, while another reads along: the attempt's span lasts as long as the attempt."""
    seen, go = Seen(), asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.send(whole())

    async with house(script) as home:
        paid = BudgetMiddleware(home.proxy, ledger=home.ledger, prices=PRICES, prompt_bound="bytes")
        app = seen(CacheMiddleware(paid, redis_url=""))
        async with call(app, {**ASKED, "temperature": 0}) as pays:
            await until(lambda: bool(home.servers["a"].requests))
            joined = asyncio.ensure_future(ask(app, {**ASKED, "temperature": 0}))
            await asyncio.sleep(0.02)
            pays.task.cancel()
            await asyncio.wait({pays.task})
        assert not seen.attempts
        go.set()
        assert (await joined).status == 200
        await until(lambda: len(seen.spans) == seen.started)
    (attempt,) = seen.attempts
    assert about(attempt)["http.response.status_code"] == 200
    assert attempt.status.status_code is StatusCode.UNSET
    assert len(seen.spans) == 5


async def test_a_crash_is_an_error_of_the_servers() -> None:
    """By the exception's name; its words could be anything, and are nowhere."""
    seen = Seen()

    async def crashing(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError("PRIVATE-WORDS")

    with pytest.raises(ZeroDivisionError):
        await ask(seen(crashing), ASKED)
    (server,) = seen.spans
    assert server.status.status_code is StatusCode.ERROR
    assert (about(server)["error.type"], about(server)["http.response.status_code"]) == ("ZeroDivisionError", 500)
    assert "PRIVATE" not in repr((about(server), server.events, server.status.description))


async def test_a_cancelled_call_ends_its_span() -> None:
    """Where a server cancels the task of a client that has left."""
    seen, gate = Seen(), Gate(Stranger())
    async with call(seen(gate), ASKED) as talk:
        await gate.reached.wait()
        talk.task.cancel()
        await asyncio.wait({talk.task})
    (server,) = seen.spans
    assert own(server)["aborted"] is True
    assert "error.type" not in about(server)


async def test_layers_that_stand_twice_make_one_tree() -> None:
    """Another TracingMiddleware further in, otherwise set, records and makes no spans; the ids are the outer one's."""
    seen = Seen()
    inner = seen(BudgetMiddleware(Stranger(), ledger=MemoryLedger(), prices=PRICES), parent="ignore")
    answer = await ask(seen(inner), ASKED)
    seen.check()
    ids = [name for name, _ in answer.messages[0]["headers"] if name in (b"x-trace-id", b"x-request-id")]
    assert len(ids) == 2
    assert len(seen.spans) == 2


class Broken(SpanProcessor, Sampler):
    """What somebody plugged into the SDK, and that fails at one thing."""

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def _at(self, what: str) -> None:
        if what == self._fault:
            raise ValueError("PRIVATE")

    def should_sample(self, *args: Any, **more: Any) -> SamplingResult:
        """See Sampler."""
        self._at("sampling")
        self._at(f"sampling {args[2].split()[0]}")
        return ALWAYS_ON.should_sample(*args, **more)

    def get_description(self) -> str:
        """See Sampler."""
        return "broken"

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """See SpanProcessor."""
        self._at("start")

    def on_end(self, span: Any) -> None:
        """See SpanProcessor."""
        self._at("end")


@pytest.mark.parametrize("fault", ["sampling", "sampling chat", "start", "end"])
async def test_what_is_plugged_into_the_sdk_may_fail(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each call is answered all the same, and settled; the log tells of it, and not in its own words."""
    seen = Seen(Broken(fault))
    seen.provider.add_span_processor(Broken(fault))
    async with house(always(whole())) as home:
        answer = await ask(seen(home.app), ASKED)
        assert (answer.status, await home.settled()) == (200, 13)
    assert "x-trace-id" in answer.headers
    assert "ValueError" in caplog.text
    assert "PRIVATE" not in caplog.text


class _Mark:
    """Something to look for."""


async def test_nothing_is_left_that_only_a_garbage_collector_ends() -> None:
    """What refers back is let go of when the spans have ended."""
    kept: list[weakref.ref[Any]] = []

    class Looking:
        joins_exchange = True

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            exchange = exchange_of(scope)
            assert exchange is not None
            await self.app(scope, receive, send)
            assert exchange.tracer is not None
            assert exchange.record is not None
            mark = _Mark()
            exchange.calls[-1].told = mark  # as long as the exchange lives, so does this
            kept.append(weakref.ref(mark))

    seen = Seen()
    async with house(once(whole())) as home:
        gc.collect()
        gc.disable()
        try:
            await ask(seen(Looking(home.app)), json.dumps(ASKED).encode())
            await asyncio.sleep(0)
            assert [one() for one in kept] == [None]
        finally:
            gc.enable()
