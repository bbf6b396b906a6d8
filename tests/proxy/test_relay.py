"""One call's way over its targets: rounds and pauses, the call's time, its money, and whom it may ask."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asgi_llm_gateway.adapters.compatible import VENDORS
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.calls import Call
from asgi_llm_gateway.exchange import KEY
from asgi_llm_gateway.proxy import failures
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.health import BreakerRules
from asgi_llm_gateway.proxy.routing import Model, Router
from asgi_llm_gateway.records import ApiKey, Tenant
from asgi_llm_gateway.settings import forget

from ..conversation import JSON, ask
from ..upstream import (
    DONE,
    STREAM_HEAD,
    Peer,
    always,
    chunk,
    event,
    once,
    silent,
    streaming,
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


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry waits a millisecond."""
    monkeypatch.setattr(failures, "BACKOFF", 0.001)


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


@pytest.mark.parametrize("targets", [["a/x"], ["a/x", "b/x"]])
async def test_a_failure_says_whose_it_is(targets: list[str]) -> None:
    """The provider that failed last, also where nobody answered."""
    bad = once(whole({"error": {"message": "no"}}, 500))
    async with house(bad, bad, model=Model(targets)) as at:
        answer = await at.ask()
        assert (answer.status, answer.headers["x-llm-provider"]) == (502, targets[-1][0])
        assert answer.headers.get("x-llm-attempts") == (None if len(targets) == 1 else "2")
