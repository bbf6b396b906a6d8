"""A rival for a slow call: the faster one is relayed, the other ends at once, and both are paid for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.proxy import failures
from asgi_llm_gateway.proxy.health import BreakerRules
from asgi_llm_gateway.proxy.routing import Model
from asgi_llm_gateway.proxy.ways import Hedge
from asgi_llm_gateway.records import Price, Tenant

from ..upstream import (
    ANSWER,
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Peer,
    Script,
    always,
    chunk,
    once,
    silent,
    streaming,
    then_stall,
    until,
    usage_event,
    whole,
    word,
)
from .house import ASKED, COST, NOBODY, PATIENT, STREAMED, House, ceiling, guessed, house

SAID = [word("good", "stop"), usage_event(), DONE]
DEAR = 10**9
BAD = once(whole({}, 500))


def hedged(*targets: str, after: float = 0.03, most: int = DEAR, **more: Any) -> Model:
    """A name whose slow calls get a rival."""
    return Model(targets or ("a/x", "b/x"), hedge=Hedge(after, most), **more)


class Held:
    """A provider that answers when it is told to, JSON or a stream as it is asked."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        """The script."""
        while True:
            asked = (await peer.request()).json()
            await self.release.wait()
            if asked.get("stream"):
                await peer.send(STREAM_HEAD, *(chunk(one) for one in SAID), LAST_CHUNK)
            else:
                await peer.send(whole())


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry waits a millisecond."""
    monkeypatch.setattr(failures, "BACKOFF", 0.001)


async def both_asked(at: House) -> None:
    """Wait until the rival runs beside the first."""
    await until(lambda: all(at.servers[name].connections == 1 for name in "ab"))


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_the_rival_of_a_silent_call_answers_and_the_call_ends(stream: bool) -> None:
    """Its connection is closed at once; what it may have used is booked with the rival's tokens."""
    body = STREAMED if stream else ASKED
    async with house(silent, streaming(*SAID) if stream else always(whole()), model=hedged()) as at:
        answer = await at.ask(body)
        assert (answer.status, answer.complete) == (200, True)
        assert (answer.headers["x-llm-provider"], answer.headers["x-llm-attempts"]) == ("b", "2")
        assert answer.body == SAID[0] + DONE if stream else answer.json() == ANSWER
        await until(lambda: at.servers["a"].aborted == 1 and at.servers["a"].open == 0)
        assert at.attempts == [("a", None, "outrun"), ("b", 200, None)]
        assert await at.settled() == guessed(body) + 10 * COST
        (record,) = await at.records()
        assert (record.provider, record.usage.estimated) == ("b", True)
        assert at.trace.provider == "b"


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_call_that_is_faster_than_its_rival_answers_itself(stream: bool) -> None:
    """The rival ends at once, and the record names who answered."""
    first, body = Held(), STREAMED if stream else ASKED
    async with house(first, silent, model=hedged()) as at, at.call(body) as talk:
        await both_asked(at)
        first.release.set()
        answer = await talk.answer()
        assert (answer.status, answer.headers["x-llm-provider"]) == (200, "a")
        assert answer.headers["x-llm-attempts"] == "2"
        await until(lambda: at.servers["b"].aborted == 1 and at.servers["b"].open == 0)
        assert at.attempts == [("b", None, "outrun"), ("a", 200, None)]
        assert await at.settled() == COST + 10 * guessed(body)
        assert [record.provider for record in await at.records()] == ["a"]
        assert at.trace.provider == "a"


async def test_a_stream_counts_as_begun_with_its_first_event() -> None:
    """A head and signs of life are not yet an answer."""
    mute: Script = then_stall(STREAM_HEAD, chunk(b": ping\n\n"))
    async with house(mute, streaming(*SAID), model=hedged()) as at:
        answer = await at.ask(STREAMED)
        assert (answer.headers["x-llm-provider"], answer.body) == ("b", SAID[0] + DONE)
        assert at.attempts == [("a", 200, "outrun"), ("b", 200, None)]


async def test_a_stream_that_has_begun_gets_no_rival() -> None:
    """However slowly it goes on."""

    async def slow(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD + chunk(word("a")))
        await asyncio.sleep(0.6)
        await peer.send(*(chunk(one) for one in SAID), LAST_CHUNK)

    async with house(slow, always(whole()), model=hedged(after=0.5)) as at:
        answer = await at.ask(STREAMED)
        assert (answer.headers["x-llm-provider"], at.servers["b"].connections) == ("a", 0)
        assert "x-llm-attempts" not in answer.headers
        assert await at.settled() == COST


@pytest.mark.parametrize("model", [Model(["a/x", "b/x"]), hedged("a/x")], ids=["not set", "one target"])
async def test_without_a_hedge_or_a_second_target_there_is_no_rival(model: Model) -> None:
    """It is off unless the operator sets it."""
    first = Held()
    async with house(first, always(whole()), model=model) as at, at.call() as talk:
        await until(lambda: at.servers["a"].connections == 1)
        await asyncio.sleep(0.1)
        assert at.servers["b"].connections == 0
        first.release.set()
        assert (await talk.answer()).headers["x-llm-provider"] == "a"


RIVAL = 10 * guessed() + 20 * ASKED["max_tokens"]
"""Nano-USD of a rival at "b" at most: the estimated prompt, and all of its output limit."""

CAPS: dict[str, tuple[Model, dict[str, Any]]] = {
    "over the cap": (hedged(most=RIVAL - 1), {}),
    "without a price": (hedged(), {"prices": PriceTable({"a/x": Price(1_000_000, 2_000_000)}), "tenant": Tenant("t")}),
    "not allowed": (
        hedged("a/x", fallbacks=["b/x"]), {"tenant": Tenant("t", budget=10**12, allowed_models=("m",))}
    ),
    "not in the budget": (hedged(), {"tenant": Tenant("t", budget=1000)}),
}  # fmt: skip


@pytest.mark.parametrize("cap", CAPS)
async def test_there_is_no_rival_that_may_not_be(cap: str) -> None:
    """The first call goes on alone."""
    model, more = CAPS[cap]
    first = Held()
    async with house(first, always(whole()), model=model, **more) as at, at.call() as talk:
        await until(lambda: at.servers["a"].connections == 1)
        await asyncio.sleep(0.1)
        assert at.servers["b"].connections == 0
        first.release.set()
        answer = await talk.answer()
        assert (answer.status, answer.headers["x-llm-provider"]) == (200, "a")
        assert "x-llm-attempts" not in answer.headers
        assert await at.settled() == COST


async def test_a_rival_that_costs_just_the_cap_may_be() -> None:
    """The cap is in nano-USD for one rival."""
    async with house(silent, always(whole()), model=hedged(most=RIVAL)) as at:
        assert (await at.ask()).headers["x-llm-provider"] == "b"


async def test_a_target_that_is_left_alone_is_no_rival() -> None:
    """The next one is."""
    every = hedged("a/x", "b/x", "c/x")
    async with house(silent, always(whole()), always(whole()), model=every, breaker=BreakerRules(1, 30)) as at:
        at.health("b").failed(asyncio.get_running_loop().time(), "somebody")
        answer = await at.ask()
        assert (answer.headers["x-llm-provider"], at.asked("b")) == ("c", 0)
        assert await at.settled() == guessed() + 100 * COST


async def test_a_rival_that_the_budget_refused_is_still_there_as_the_next_target() -> None:
    """When the first one fails for certain, the money suffices for the other."""
    held = Held()

    async def failing(peer: Peer) -> None:
        await peer.request()
        await held.release.wait()
        await peer.send(whole({}, 500))

    only_one = Tenant("t", budget=10 * ceiling())  # that of the rival alone
    async with house(failing, always(whole()), model=hedged(), tenant=only_one) as at, at.call() as talk:
        await until(lambda: at.servers["a"].connections == 1)
        await asyncio.sleep(0.1)
        tried_early = at.servers["b"].connections
        held.release.set()
        answer = await talk.answer()
        assert (answer.status, answer.headers["x-llm-provider"], tried_early) == (200, "b", 0)
        assert at.attempts == [("a", 500, "upstream_error"), ("b", 200, None)]
        assert await at.settled() == 10 * COST


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_a_first_that_fails_before_its_time_is_followed_by_the_next() -> None:
    """As without a hedge."""
    async with house(BAD, always(whole()), model=hedged(after=20)) as at:
        assert (await at.ask()).headers["x-llm-provider"] == "b"
        assert at.attempts == [("a", 500, "upstream_error"), ("b", 200, None)]
        assert await at.settled() == 10 * COST


async def test_a_rival_that_fails_leaves_the_first_alone() -> None:
    """It is in the trace."""
    first = Held()
    async with house(first, BAD, model=hedged()) as at, at.call() as talk:
        await until(lambda: at.servers["a"].connections == 1 and at.asked("b") == 1 and at.servers["b"].open == 0)
        await asyncio.sleep(0.02)
        first.release.set()
        assert (await talk.answer()).headers["x-llm-provider"] == "a"
        assert at.attempts == [("b", 500, "upstream_error"), ("a", 200, None)]
        assert await at.settled() == COST


async def test_a_first_that_fails_beside_its_rival_leaves_that_one_alone() -> None:
    """The other way round."""
    second, release = Held(), asyncio.Event()

    async def failing(peer: Peer) -> None:
        await peer.request()
        await release.wait()
        await peer.send(whole({}, 503))

    async with house(failing, second, model=hedged()) as at, at.call() as talk:
        await both_asked(at)
        release.set()
        await until(lambda: at.servers["a"].open == 0)
        await asyncio.sleep(0.02)
        second.release.set()
        assert (await talk.answer()).headers["x-llm-provider"] == "b"
        assert at.attempts == [("a", 503, "upstream_unavailable"), ("b", 200, None)]
        assert await at.settled() == 10 * COST


@pytest.mark.parametrize("retries", [0, 1])
async def test_where_both_fail_the_call_goes_on_or_fails(retries: int) -> None:
    """With the next target, with the next round, or with the last error."""
    release = asyncio.Event()

    async def failing(peer: Peer) -> None:
        while True:
            await peer.request()
            await release.wait()
            await peer.send(whole({}, 500))

    async with house(
        failing, failing, always(whole({}, 503)), model=hedged("a/x", "b/x", "c/x"), retries=retries
    ) as at:
        async with at.call() as talk:
            await both_asked(at)
            release.set()
            answer = await talk.answer()
        assert (answer.status, answer.error["code"]) == (503, "upstream_unavailable")
        assert sorted(at.attempts[:2]) == [("a", 500, "upstream_error"), ("b", 500, "upstream_error")]
        assert len(at.attempts) == 3 * (retries + 1)
        assert await at.settled() == 0


# -- a client that leaves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [ASKED, STREAMED], ids=["json", "stream"])
async def test_a_client_that_leaves_ends_both(body: Any) -> None:
    """At once, and pays for what both may have used; nothing is pending any more."""
    async with house(silent, silent, model=hedged(), timeouts=PATIENT) as at, at.call(body) as talk:
        await both_asked(at)
        await asyncio.sleep(0.05)
        await talk.hang_up()
        await until(lambda: all(at.servers[name].aborted == 1 and at.servers[name].open == 0 for name in "ab"))
        assert at.trace.aborted
        assert await at.settled() == 11 * guessed(body)


async def test_a_server_that_cancels_the_call_ends_both() -> None:
    """As some do when a client leaves, or when they shut down."""
    async with house(silent, silent, model=hedged()) as at, at.call() as talk:
        await both_asked(at)
        await asyncio.sleep(0.05)
        talk.task.cancel()
        await asyncio.wait({talk.task})
        assert talk.task.cancelled()
        await until(lambda: all(at.servers[name].open == 0 for name in "ab"))
        assert await at.settled() == 11 * guessed()


async def test_a_client_that_leaves_before_the_rival_ends_the_first() -> None:
    """No rival is opened for nobody."""
    async with house(silent, always(whole()), model=hedged(after=20)) as at, at.call() as talk:
        await until(lambda: at.servers["a"].connections == 1)
        await asyncio.sleep(0.05)
        await talk.hang_up(timeout=5)
        assert at.servers["b"].connections == 0
        assert await at.settled() == guessed()


async def test_many_hedged_calls_leave_nothing_behind() -> None:
    """Side by side, some hung up: no pending call, no task, no open connection, no held money."""
    before = len(asyncio.all_tasks())
    async with house(silent, NOBODY, always(whole()), model=hedged("a/x", "c/x")) as at:

        async def one(number: int) -> None:
            if number % 3:
                assert (await at.ask()).headers["x-llm-provider"] == "c"
                return
            async with at.call() as talk:
                await asyncio.sleep(0.002 * number)
                await talk.hang_up()

        await asyncio.gather(*(one(number) for number in range(30)))
        await until(lambda: at.servers["a"].open == 0)
        assert await at.settled() >= 20 * 100 * COST
        await until(lambda: len(asyncio.all_tasks()) <= before + at.servers["c"].open + 2)
