"""One call's way over its targets: rounds and pauses, the breaker, the call's time, its money, and whom it may ask."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from asgi_llm_gateway.adapters.compatible import VENDORS
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.exchange import KEY, Call
from asgi_llm_gateway.proxy import failures
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.health import BreakerRules, Health
from asgi_llm_gateway.proxy.routing import Model, Router
from asgi_llm_gateway.proxy.transfer import BUFFER_LIMIT
from asgi_llm_gateway.records import ApiKey, Tenant
from asgi_llm_gateway.settings import forget

from ..conversation import JSON, ask
from ..upstream import (
    DONE,
    STREAM_HEAD,
    USAGE,
    Peer,
    always,
    chunk,
    event,
    once,
    silent,
    streaming,
    then_stall,
    until,
    upstream,
    usage_event,
    whole,
    word,
)
from .house import ASKED, COST, NOBODY, PATIENT, SECRET, STREAMED, ceiling, guessed, house

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


def asks(at: Any) -> list[str]:
    """The providers that the last call tried, in order."""
    return [provider for provider, _, _ in at.attempts]


# -- rounds ------------------------------------------------------------------------------------------------------------


async def test_a_call_that_succeeds_at_once_tells_of_no_attempts() -> None:
    """Only its provider."""
    async with house(GOOD, model=BOTH) as at:
        answer = await at.ask()
        assert (answer.headers["x-llm-provider"], "x-llm-attempts" in answer.headers) == ("a", False)
        assert (at.trace.attempts, at.trace.provider) == ((), "a")
        assert await at.settled() == COST


@pytest.mark.parametrize("retries", [0, 1, 2])
async def test_all_targets_are_tried_in_each_round(retries: int) -> None:
    """So many rounds after the first; the last failure is the answer, and each is in the trace."""
    async with house(BAD, always(whole({}, 503)), NOBODY, model=Model(["a/x", "b/x", "c/x"]), retries=retries) as at:
        answer = await at.ask()
        assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
        assert at.attempts == [
            ("a", 500, "upstream_error"), ("b", 503, "upstream_unavailable"), ("c", None, "upstream_unreachable"),
        ] * (retries + 1)  # fmt: skip
        assert answer.headers["x-llm-attempts"] == str(3 * (retries + 1))
        assert [one.after for one in at.trace.attempts] == sorted(one.after for one in at.trace.attempts)
        assert await at.settled() == 0


async def test_the_settings_say_how_many_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """GATEWAY_MAX_RETRIES, 2 where it is not set."""
    async with upstream(BAD) as server:
        adapter = OpenAIAdapter("a", server.url(), SECRET)
        for expected in (3, 2):
            app = ProxyApp(router=Router([adapter], {"m": ["a/x"]}))
            before = len(server.requests)
            assert (await ask(app, ASKED)).headers["x-llm-attempts"] == str(expected)
            assert len(server.requests) - before == expected
            await app.aclose()
            monkeypatch.setenv("GATEWAY_MAX_RETRIES", "1")
            forget()


async def test_a_target_without_hope_is_left_out_of_the_next_round() -> None:
    """A refused key stays refused; the other one is asked again."""
    flaky = [once(whole({}, 500)), GOOD]
    async with house(flaky, always(whole({}, 401)), model=BOTH, retries=2) as at:
        answer = await at.ask()
        assert (answer.status, answer.headers["x-llm-attempts"]) == (200, "3")
        assert at.attempts == [("a", 500, "upstream_error"), ("b", 401, "upstream_auth"), ("a", 200, None)]


async def test_a_call_makes_no_more_than_sixteen_attempts() -> None:
    """However many targets a name has."""
    async with house(BAD, model=Model([f"a/x{at}" for at in range(30)]), retries=10) as at:
        answer = await at.ask()
        assert (answer.status, at.asked("a"), answer.headers["x-llm-attempts"]) == (502, 16, "16")


async def test_a_request_that_is_wrong_is_told_so_at_once() -> None:
    """Neither the next target nor the next round would say otherwise."""
    async with house(always(whole({"error": {"message": "no"}}, 422)), GOOD, model=BOTH, retries=2) as at:
        assert (await at.ask()).status == 422
        assert (at.asked("a"), at.asked("b")) == (1, 0)


async def test_a_target_that_lacks_a_word_is_passed_over() -> None:
    """Without a call; if no other one answers either, their failure is told, and if there is no other, the word."""
    asked = {**ASKED, "n": 2}
    async with upstream(GOOD) as one, upstream(BAD) as bad, upstream(GOOD) as good:
        adapters = [
            OpenAIAdapter("one", one.url(), vendor=VENDORS["ollama"], models=[]),
            OpenAIAdapter("bad", bad.url(), models=[]),
            OpenAIAdapter("good", good.url(), models=[]),
        ]
        models = {"m": ["one/x", "good/x"], "n": ["one/x", "bad/x"], "k": ["bad/x", "one/x"], "l": ["one/x"]}
        app = ProxyApp(router=Router(adapters, models), max_retries=1)
        assert (await ask(app, asked)).headers["x-llm-provider"] == "good"
        for name in ("n", "k"):
            assert (await ask(app, {**asked, "model": name})).error["code"] == "upstream_error"
        only = await ask(app, {**asked, "model": "l"})
        assert (only.status, only.error["param"]) == (400, "n")
        assert (len(one.requests), len(bad.requests), len(good.requests)) == (0, 4, 1)
        await app.aclose()


# -- the call's time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("told", "tries"), [(b"0.5", 1), (b"600", 2), (b"garbage", 2), (b"-1", 2), (b"nan", 2)])
async def test_no_retry_is_begun_that_the_client_would_not_wait_for(
    told: bytes, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official SDKs say how long they read: a pause beyond that is for nobody."""
    monkeypatch.setattr(failures, "BACKOFF", 0.001 if tries == 2 else 8.0)
    async with house(BAD, retries=1) as at:
        async with asyncio.timeout(3):  # the pause would be longer
            answer = await at.ask(headers=[JSON, (b"x-stainless-read-timeout", told)])
        assert (answer.status, at.asked("a")) == (502, tries)


async def test_a_pause_beyond_the_calls_time_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """TOTAL_TIMEOUT_SECONDS is for all attempts together."""
    monkeypatch.setattr(failures, "BACKOFF", 8.0)
    async with house(BAD, retries=2, timeouts=PATIENT._replace(total=2.0)) as at:
        async with asyncio.timeout(3):
            assert (await at.ask()).status == 502
        assert at.asked("a") == 1


async def test_all_attempts_together_end_when_the_calls_time_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """A later attempt gets what is left of it, and then nobody else is asked."""

    async def slow(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.1)
        await peer.send(whole({}, 500))

    every = Model(["a/x", "b/x", "c/x"])
    async with house(slow, silent, GOOD, model=every, retries=2, timeouts=PATIENT._replace(total=0.8)) as at:
        answer = await at.ask()
        assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
        assert (asks(at), at.asked("c")) == (["a", "b"], 0)
        assert "over all attempts" in caplog.text
        await until(lambda: at.servers["b"].open == 0)
        assert await at.settled() == 10 * guessed()


# -- the breaker -------------------------------------------------------------------------------------------------------


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


# -- whom it asks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tenants", "keys", "status"),
    [
        (None, None, 200),
        (("m",), None, 502),
        (("m", "b/x"), None, 200),
        (None, ("m",), 502),
        (("m", "b/x"), ("m",), 502),
    ],
)
async def test_a_fallback_is_only_for_those_who_may_use_it(
    tenants: tuple[str, ...] | None, keys: tuple[str, ...] | None, status: int
) -> None:
    """``allowed_models`` of tenant and key hold for it too."""
    tenant = Tenant("t", budget=10**12, allowed_models=tenants)
    key = ApiKey("k", "t", "0" * 64, allowed_models=keys)
    async with house(BAD, GOOD, model=Model(["a/x"], fallbacks=["b/x"]), tenant=tenant, key=key) as at:
        assert (await at.ask()).status == status
        assert at.asked("b") == (status == 200)


async def test_the_target_with_fewer_pending_calls_is_asked_first() -> None:
    """Calls under way count, until they end."""
    async with house(silent, GOOD, model=Model(["a/x", "b/x"], "least_pending")) as at:
        at.health("b").pending += 1  # so that the first one goes to "a"
        async with at.call() as talk:
            await until(lambda: at.servers["a"].connections == 1)
            at.health("b").pending -= 1
            for _ in range(5):
                assert (await at.ask()).headers["x-llm-provider"] == "b"
            assert at.health("a").pending == 1
            await talk.hang_up()
        await at.settled()


async def test_weights_spread_the_calls() -> None:
    """Each target gets some of them."""
    async with house(GOOD, GOOD, model=Model([("a/x", 1.0), ("b/x", 1.0)], "weighted")) as at:
        for _ in range(40):
            await at.ask()
        assert at.asked("a") + at.asked("b") == 40
        assert min(at.asked("a"), at.asked("b")) > 0


# -- the money ---------------------------------------------------------------------------------------------------------


async def test_an_attempt_that_the_money_does_not_pay_for_is_not_made() -> None:
    """What the last one said is the answer, not the budget's refusal."""
    tenant = Tenant("t", budget=5_000)
    async with house(BAD, NOBODY, GOOD, model=Model(["a/x", "c/x"]), tenant=tenant) as at:
        answer = await at.ask()
        assert (answer.status, answer.error["code"], at.asked("c")) == (502, "upstream_error", 0)
        assert await at.settled() == 0


async def test_the_hold_covers_what_failed_attempts_may_have_used() -> None:
    """Each attempt of unknown usage stays held; when the sum does not fit any more, no further one is made."""
    tenant = Tenant("t", budget=ceiling() + 2 * guessed())
    async with house(once(whole()[:-9]), retries=10, tenant=tenant, breaker=BreakerRules(failures=0)) as at:
        answer = await at.ask()
        assert (answer.status, answer.error["code"]) == (502, "upstream_cut")
        assert at.asked("a") == 3
        assert await at.settled() == 3 * guessed()


class Guarding:
    """Asks for the money slowly."""

    joins_exchange = ends_exchange = True

    def __init__(self, app: Any) -> None:
        self._app = app
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        scope[KEY].guard(self)
        await self._app(scope, receive, send)

    async def begin(self, call: Call) -> None:
        """See Guard."""
        self.reached.set()
        await self.open.wait()


async def test_a_client_that_leaves_while_the_money_is_asked_for_asks_nobody() -> None:
    """And pays nothing."""
    made: list[Guarding] = []

    def guarding(app: Any) -> Any:
        made.append(Guarding(app))
        return made[0]

    async with house(GOOD, inner=guarding) as at, at.call() as talk:
        await made[0].reached.wait()
        leaving = asyncio.ensure_future(talk.hang_up())
        await asyncio.sleep(0.1)  # several times what a hang-up takes to be noticed
        made[0].open.set()
        await leaving
        assert (at.servers["a"].connections, at.trace.aborted) == (0, True)
        assert await at.settled() == 0


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_a_stream_that_begins_with_signs_of_life_is_waited_for() -> None:
    """They are no answer; they reach the client with the first event."""
    pieces = [b": wait\n\n", b": wait\n\n", word("a", "stop"), usage_event(), DONE]
    async with house(streaming(*pieces, gap=0.01), model=BOTH) as at:
        answer = await at.ask(STREAMED)
        assert answer.body == b"".join(pieces[:3]) + DONE
        assert await at.settled() == COST


async def test_words_that_came_with_an_error_are_paid_for_and_not_shown() -> None:
    """In one piece with it: nothing has gone out, so another target may answer, but tokens were made."""
    piece = STREAM_HEAD + chunk(word("a") + event({"error": {"message": "x"}}))
    async with house(once(piece), streaming(word("good", "stop"), usage_event(), DONE), model=BOTH) as at:
        answer = await at.ask(STREAMED)
        assert (answer.body, asks(at)) == (word("good", "stop") + DONE, ["a", "b"])
        assert await at.settled() > guessed(STREAMED) + 10 * COST


async def test_a_stream_whose_only_word_is_that_it_is_done_ends_so() -> None:
    """Also without the blank line that belongs behind it."""
    async with house(once(STREAM_HEAD, chunk(b"data: [DONE]"), b"0\r\n\r\n"), retries=0) as at:
        answer = await at.ask(STREAMED)
        assert (answer.status, answer.body) == (200, DONE)
