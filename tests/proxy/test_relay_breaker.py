"""One call's way over its targets: the breaker and its probes, and what counts as a target's failure."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from asgi_llm_gateway.proxy import failures
from asgi_llm_gateway.proxy.health import BreakerRules, Health
from asgi_llm_gateway.proxy.routing import Model
from asgi_llm_gateway.proxy.transfer import BUFFER_LIMIT
from asgi_llm_gateway.records import Tenant

from ..upstream import STREAM_HEAD, USAGE, Peer, always, chunk, event, once, silent, then_stall, until, whole, word
from .house import ASKED, COST, NOBODY, STREAMED, house

BAD = always(whole({"error": {"message": "oops"}}, 500))
GOOD = always(whole())
BOTH = Model(["a/x", "b/x"])
TOUCHY = BreakerRules(failures=1, cooldown=0.05)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry waits a millisecond."""
    monkeypatch.setattr(failures, "BACKOFF", 0.001)


def trip(health: Health, failures: int = 1) -> None:
    """Make a target look broken."""
    for _ in range(failures):
        health.failed(time.monotonic(), "somebody")
    assert health.tripped


async def until_half_open(health: Health) -> None:
    """Wait until a probe may go there."""
    while health.opens_in(time.monotonic()):  # noqa: ASYNC110 - it is a clock
        await asyncio.sleep(0.005)


async def test_a_target_that_goes_on_failing_is_not_asked_for_a_while() -> None:
    """All of its calls are refused at once, with the time to come again."""
    async with house(BAD, breaker=BreakerRules(failures=2, cooldown=30)) as at:
        for _ in range(2):
            assert (await at.ask()).status == 502
        answer = await at.ask()
        assert (answer.status, answer.error["code"], at.asked("a")) == (503, "upstream_unavailable", 2)
        assert 20 <= int(answer.headers["retry-after"]) <= 30
        assert (at.trace.error, at.trace.attempts) == ("upstream_unavailable", ())
        assert await at.settled() == 0


async def test_another_target_takes_the_calls_meanwhile() -> None:
    """Without an attempt at the broken one."""
    async with house(BAD, GOOD, model=BOTH, breaker=BreakerRules(failures=2, cooldown=30)) as at:
        answers = [await at.ask() for _ in range(5)]
        assert [answer.status for answer in answers] == [200] * 5
        assert (at.asked("a"), at.asked("b")) == (2, 5)
        assert [answer.headers.get("x-llm-attempts") for answer in answers] == ["2", "2", None, None, None]


async def test_a_target_that_asked_for_a_rest_gets_it_while_another_one_answers() -> None:
    """One 429 with a ``retry-after`` is enough; it is no failure."""
    resting = always(whole({}, 429, headers=[("Retry-After", "30")]))
    async with house(resting, GOOD, model=BOTH) as at:
        assert [(await at.ask()).status for _ in range(3)] == [200] * 3
        assert (at.asked("a"), at.asked("b")) == (1, 3)
        assert at.health("a").state(time.monotonic()) == "closed"


async def test_one_call_probes_and_the_others_are_refused_until_it_is_answered() -> None:
    """Then all go there again."""
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await release.wait()
            await peer.send(whole())

    async with house(script, breaker=TOUCHY) as at:
        trip(at.health("a"))
        await until_half_open(at.health("a"))
        async with at.call() as probe:
            await until(lambda: at.asked("a") == 1)
            others = [await at.ask() for _ in range(5)]
            assert [(one.status, one.error["code"]) for one in others] == [(503, "upstream_unavailable")] * 5
            release.set()
            assert (await probe.answer()).status == 200
        assert (await at.ask()).status == 200
        assert at.asked("a") == 2


async def test_a_probe_that_streams_lets_the_others_go_with_its_first_event() -> None:
    """Nobody waits until it has streamed to its end."""
    scripts = [then_stall(STREAM_HEAD, chunk(word("a"))), GOOD]
    async with house(scripts, breaker=TOUCHY) as at:
        trip(at.health("a"))
        await until_half_open(at.health("a"))
        async with at.call(STREAMED) as probe:
            await probe.next()
            assert (await probe.next())["body"] == word("a")
            assert (await at.ask()).status == 200
            await probe.hang_up()


async def test_a_probe_whose_client_leaves_makes_way_for_the_next() -> None:
    """It has told nothing."""
    async with house([silent, GOOD], breaker=TOUCHY) as at:
        trip(at.health("a"))
        await until_half_open(at.health("a"))
        async with at.call() as probe:
            await until(lambda: at.servers["a"].connections == 1)
            await probe.hang_up()
        assert at.health("a").state(time.monotonic()) == "half_open"
        assert (await at.ask()).status == 200
        assert at.health("a").state(time.monotonic()) == "closed"


async def test_a_probe_that_is_not_sent_makes_way_for_the_next() -> None:
    """The budget refuses it; the provider never hears of it."""
    tenant = Tenant("t", budget=50_000)
    async with house(NOBODY, NOBODY, GOOD, model=Model(["c/x"]), tenant=tenant, breaker=TOUCHY) as at:
        trip(at.health("c"))
        await until_half_open(at.health("c"))
        refused = await at.ask({**ASKED, "max_tokens": 1000})
        assert (refused.status, refused.error["code"]) == (402, "would_exceed_budget")
        assert at.asked("c") == 0
        assert (await at.ask({**ASKED, "max_tokens": 10})).status == 200
        assert await at.settled() == 100 * COST


@pytest.mark.parametrize("last", [b"", chunk(event({"error": {"message": "x"}}))], ids=["cut", "an error"])
async def test_a_stream_that_breaks_off_is_the_targets_failure(last: bytes) -> None:
    """Also after its first event, when nobody else can be asked."""
    relayed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD, chunk(word("a")))
        await relayed.wait()
        await peer.send(last)

    async with house(script, breaker=BreakerRules(1, 30)) as at, at.call(STREAMED) as talk:
        for _ in range(2):
            await talk.next()
        relayed.set()
        assert (await talk.answer()).status == 200
        assert at.health("a").state(time.monotonic()) == "open"
        assert await at.settled() > 0


async def test_a_long_answer_that_breaks_off_is_the_targets_failure() -> None:
    """The client's connection is broken off, for its status has gone out."""
    body = json.dumps({"data": "x" * (BUFFER_LIMIT + 1_000_000), "usage": USAGE}).encode()
    async with house(once(whole(body)[:-100]), breaker=BreakerRules(1, 30)) as at:
        async with at.call() as talk:
            await asyncio.wait({talk.task}, timeout=20)
            assert talk.task.exception() is not None
        assert at.health("a").state(time.monotonic()) == "open"
        assert await at.settled() > 0


async def test_a_client_that_leaves_a_stream_is_not_the_targets_failure() -> None:
    """However often."""
    async with house(then_stall(STREAM_HEAD, chunk(word("a"))), breaker=BreakerRules(1, 30)) as at:
        for _ in range(3):
            async with at.call(STREAMED) as talk:
                await talk.next()
                await talk.next()
                await talk.hang_up()
        assert at.health("a").state(time.monotonic()) == "closed"
        assert at.health("a").pending == 0


async def test_a_refusal_of_the_request_is_not_the_targets_failure() -> None:
    """Nor is a rate limit, nor a refused key."""
    for status in (400, 401, 404, 422, 429):
        async with house(always(whole({}, status)), breaker=BreakerRules(1, 30)) as at:
            await at.ask()
            assert at.health("a").state(time.monotonic()) == "closed"
