"""Who pays, and how much: the attacker wants tokens for nothing, or on somebody else's account."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.proxy.routing import Model
from asgi_llm_gateway.records import Price

from ..fuzz.requests import BY_PATH
from ..middleware import Stranger, Streamer, counts, event, words
from ..upstream import DONE, STREAM_HEAD, always, chunk, once, streaming, upstream, usage_event, whole, word
from .house import DEAR, House, chat, house, raw, up

ROOM = 2 * 10**6
"""Nano-USD that pay for a few short calls and no long one."""

TOKENS: list[Any] = [-1, 0, 1.5, 2**31, 2**63, 10**30, True, "9", [], {}]
CHOICES: list[Any] = [-1, 0, 129, 10**6, 1.5, True, "2", []]
LIMITS: list[tuple[str, Any]] = [
    *((name, value) for name in ("max_tokens", "max_completion_tokens") for value in TOKENS),
    *((name, value) for name in ("n", "best_of") for value in CHOICES),
]


@pytest.mark.parametrize(("name", "value"), LIMITS)
async def test_a14_a_limit_that_makes_no_sense_is_refused_by_its_name(name: str, value: Any) -> None:
    """Gain: a bound that is read as small here and as large there. 400, and nothing is held or spent."""
    made = await house()
    path = "/v1/completions" if name == "best_of" else "/v1/chat/completions"
    answer = await made.ask({**chat(), "prompt": "x", name: value}, path)
    assert (answer.status, answer.error["param"]) == (400, name)
    assert (await made.spent(), await made.held()) == (0, 0)


@pytest.mark.parametrize("text", ['"max_tokens": NaN', '"max_tokens": Infinity', '"max_tokens": 1e308', '"n": 1e999',
                                  '"max_tokens": 0x10', '"max_tokens": 1_0', '"max_tokens": 09'])  # fmt: skip
async def test_a14_a_number_that_json_does_not_have_is_refused(text: str) -> None:
    """Gain: as above, by what only some parsers read."""
    made = await house()
    assert (await made.ask(raw(text))).status == 400
    assert await made.spent() == 0


async def test_a14_two_limits_that_disagree_are_refused() -> None:
    """Gain: the small one is held, the large one is served."""
    made = await house()
    answer = await made.ask(chat(max_tokens=1, max_completion_tokens=4000))
    assert answer.status == 400
    assert "max_" in answer.error["param"]


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None}])
async def test_a14_hidden_usage_is_charged_all_the_same(options: Any) -> None:
    """Gain: a stream whose counts the client has switched off. They are asked for upstream, and not shown."""
    async with upstream(streaming(word("hi"), usage_event(), DONE)) as server:
        made = await house([up(server.url(""))])
        answer = await made.ask(chat(model="up/m", stream=True, stream_options=options, max_tokens=9))
        assert answer.status == 200
        assert b"prompt_tokens" not in answer.body
        assert server.requests[0].json()["stream_options"]["include_usage"] is True
        assert await made.spent() == (3 * DEAR.prompt + 5 * DEAR.completion) // 10**6
        await made.proxy.aclose()


async def test_a15_the_model_that_is_paid_is_the_one_that_is_asked() -> None:
    """Gain: a cheap model in the query or a header, a dear one in the body. The body alone counts, upstream too."""
    async with upstream(always(whole())) as server:
        dear = PriceTable({"up/m": DEAR, "echo": Price(0, 0)})
        made = await house([up(server.url(""))], prices=dear)
        answer = await made.ask(
            chat(model="up/m", max_tokens=9),
            query_string=b"model=echo&api_base=http://evil.example",
            more=[(b"x-model", b"echo"), (b"x-llm-model", b"echo")],
        )
        assert answer.status == 200
        assert (server.requests[0].path, server.requests[0].json()["model"]) == ("/v1/chat/completions", "m")
        assert await made.spent() > 0
        await made.proxy.aclose()


TWINS = ['{"model": "up/m", "model": "echo", "messages": [{"role": "user", "content": "x"}]}',
         '{"model": "echo", "mod\\u0065l": "up/m", "messages": [{"role": "user", "content": "x"}]}',
         '{"model": "echo", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4000}',
         '{"model": "echo", "messages": [{"role": "user", "content": "x"}], "n": 1, "\\u006e": 100}',
         '{"model": "echo", "tenant": "a", "messages": [{"role": "user", "content": "x"}], "tenant": "b"}']  # fmt: skip


@pytest.mark.parametrize("body", TWINS)
async def test_a15_a_deciding_field_twice_is_refused(body: str) -> None:
    """Gain: the first is checked, the last is served. 400, escapes or not."""
    made = await house()
    answer = await made.ask(body.encode())
    assert (answer.status, answer.error["code"]) == (400, "duplicate_field")
    assert await made.spent() == 0


async def test_a15_a_model_without_a_price_is_not_free() -> None:
    """Gain: a name that nobody has priced. Refused where there is a budget, before anything is asked."""
    async with upstream(always(whole())) as server:
        made = await house([up(server.url(""))], prices=PriceTable({"echo": DEAR}))
        answer = await made.ask(chat(model="up/other-model-of-nobody", max_tokens=9))
        assert (answer.status, answer.error["code"]) == (400, "unpriced_model")
        assert server.requests == []
        await made.proxy.aclose()


async def test_a15_an_alias_leads_to_no_model_that_is_not_allowed() -> None:
    """Gain: a name that may be used, whose target may not. A fallback that the caller may not use is passed by."""
    async with upstream(always(whole(status=500, body={"error": {"message": "no"}}))) as server:
        made = House([up(server.url(""))], models={"cheap": Model(("up/m",), fallbacks=("echo",))},
                     prices=PriceTable({"cheap": DEAR, "up/m": DEAR, "echo": DEAR}))  # fmt: skip
        await made.tenant("a", allowed_models=("cheap",))
        assert (await made.ask(chat(model="echo", max_tokens=9))).status == 404
        assert (await made.ask(chat(model="up/m", max_tokens=9))).status == 404
        answer = await made.ask(chat(model="cheap", max_tokens=9))
        assert answer.status >= 500, "the fallback 'echo' answered, which this tenant may not use"
        await made.proxy.aclose()


LIES: dict[str, Any] = {
    "negative": {"prompt_tokens": -5, "completion_tokens": -(10**9)},
    "text": {"prompt_tokens": "3", "completion_tokens": "5"},
    "a fraction": {"prompt_tokens": 3.5, "completion_tokens": 0.1},
    "true": {"prompt_tokens": True, "completion_tokens": True},
    "absurd": {"prompt_tokens": 10**30, "completion_tokens": 10**30},
    "null": {"prompt_tokens": None, "completion_tokens": None},
    "a list": [],
    "missing": None,
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a16_a_provider_that_lies_about_usage_makes_nothing_free(name: str, stream: bool) -> None:
    """Gain: credit from a negative count, a crash from an absurd one. What can't be is unknown, and estimated."""
    answer = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello there"}, "finish_reason": "stop"}]
    }
    told = {} if LIES[name] is None else {"usage": LIES[name]}
    script = (
        streaming(word("hello"), word(" there", "stop"), event({"choices": [], **told}), DONE)
        if stream
        else always(whole({**answer, **told}))
    )
    async with upstream(script) as server:
        made = await house([up(server.url(""))])
        got = await made.ask(chat(model="up/m", max_tokens=9, stream=stream))
        assert got.status == 200
        spent = await made.spent()
        page = await made.store.records("a")
        assert 0 < spent < 2**62
        assert page.records[0].usage.estimated
        assert page.records[0].cost == spent
        assert await made.held() == 0
        await made.proxy.aclose()


async def test_a16_explicit_zeros_are_zero_and_two_counts_are_the_last() -> None:
    """Gain (of the operator, over the tenant): a local estimate in the place of a count that says zero."""
    zero = counts(0, 0)
    twice = [counts(100, 100), counts(1, 1)]
    for events, expected in ((zero, 0), (b"".join(twice), (DEAR.prompt + DEAR.completion) // 10**6)):
        made = House(terminal=Streamer([*words(1), events, DONE]))
        await made.tenant("a")
        assert (await made.ask(chat(stream=True, max_tokens=300))).status == 200
        assert await made.spent() == expected


async def test_a17_tries_that_fail_over_cost_no_more_than_was_held() -> None:
    """Gain (of nobody): a budget that is passed because one call became three. The sum stays within it."""
    async with upstream(*[once(STREAM_HEAD, chunk(word("w")))] * 2, always(whole())) as server:
        made = House([up(server.url(""))], models={"many": ["up/m", "up/m2", "echo"]},
                     prices=PriceTable({"many": DEAR, "up/m": DEAR, "up/m2": DEAR, "echo": DEAR}))  # fmt: skip
        await made.tenant("a", budget=ROOM)
        for _ in range(12):
            await made.ask(chat(model="many", max_tokens=300))
        assert await made.spent() <= ROOM
        assert await made.held() == 0
        await made.proxy.aclose()


async def test_a12_first_calls_side_by_side_never_pass_the_budget() -> None:
    """Gain: N calls that each see the money for one. Through the whole stack, as many pass as are paid for."""
    made = House(terminal=Stranger(usage=(100, 100)))
    await made.tenant("a", budget=ROOM)
    answers = await asyncio.gather(*(made.ask(chat(max_tokens=100)) for _ in range(100)))
    passed = sum(answer.status == 200 for answer in answers)
    assert 0 < passed < 100
    assert {answer.status for answer in answers} == {200, 402}
    assert await made.spent() == passed * 300 * DEAR.prompt // 10**6
    assert await made.spent() <= ROOM


async def test_a20_an_idempotency_key_makes_no_call_free() -> None:
    """Gain: one payment for many answers, or another's answer. The header is the provider's affair; each call is paid."""
    made = await house()
    more = [(b"idempotency-key", b"same"), (b"x-request-id", b"same")]
    for tenant in "aab":
        assert (await made.ask(chat(max_tokens=3), tenant=tenant, more=more)).status == 200
    assert await made.spent("a") == 2 * await made.spent("b") > 0


@pytest.mark.parametrize("path", sorted(set(BY_PATH) - {"/v1/messages/count_tokens"}))
async def test_a21_every_dialect_asks_for_money(path: str) -> None:
    """Gain: a second protocol that skips the budget. With nothing left, each is refused before the app is called."""
    app = Stranger()
    made = House(terminal=app, prices=PriceTable({"echo": DEAR, "gpt-image-1": DEAR, "tts-1": DEAR}))
    await made.tenant("a", budget=0)
    answer = await made.ask(BY_PATH[path][-1], path)
    assert answer.status in (400, 402, 403), answer.body  # what can't be priced is refused as such
    assert app.calls == 0


async def test_a21_a_path_without_a_price_is_refused_where_there_is_a_budget() -> None:
    """Gain: an endpoint that nobody counts (batches, files, fine-tuning)."""
    app = Stranger()
    made = House(terminal=app)
    await made.tenant("a")
    for path in ("/v1/batches", "/v1/fine_tuning/jobs", "/v1/files", "/v1/responses/resp_1/cancel", "/v1/assistants"):
        answer = await made.ask({}, path)
        assert (answer.status, answer.error["code"]) == (403, "unpriced_endpoint"), path
    assert app.calls == 0


ENDS = [
    (chunk(word("a few words here")),),
    (chunk(word("a few words here")), chunk(event({"error": {"message": "overloaded", "code": 503}}))),
    (chunk(word("a few words here")), chunk(b"data: not json\n\n")),
    (chunk(word("a few words here")), b"zz\r\n"),
]  # fmt: skip


@pytest.mark.parametrize("pieces", ENDS)
async def test_a22_content_that_came_before_a_failure_is_paid(pieces: tuple[bytes, ...]) -> None:
    """Gain: answers for nothing, by making the provider fail after it has answered. What was streamed is charged."""
    async with upstream(once(STREAM_HEAD, *pieces)) as server:
        made = await house([up(server.url(""))])
        answer = await made.ask(chat(model="up/m", stream=True, max_tokens=300))
        assert b"a few words here" in answer.body
        assert b"[DONE]" not in answer.body
        assert await made.spent() > 0
        assert await made.held() == 0
        await made.proxy.aclose()


async def test_a13_whoever_leaves_pays() -> None:
    """Gain: the answer without its price, by hanging up at any point. Nothing stays held, and no point is free once asked."""
    made = House(terminal=Streamer(words(6), endless=True))
    await made.tenant("a")
    for messages in range(7):
        before = await made.spent()
        async with made.talk(chat(stream=True, max_tokens=50)) as talk:
            for _ in range(messages):
                await talk.next()
            await talk.hang_up()
        assert await made.held() == 0
        assert await made.spent() > before


async def test_a19_amounts_near_the_largest_pass_no_budget() -> None:
    """Gain: a sum that overflows to less. The largest request there is against the largest budget there is."""
    made = House(prices=PriceTable({"echo": Price(2**53, 2**53)}))
    await made.tenant("a", budget=2**62)
    answer = await made.ask(chat(max_tokens=2**31 - 1, n=128))
    assert answer.status == 402
    assert (await made.spent(), await made.held()) == (0, 0)
    assert json.loads(answer.body)["error"]["code"] == "would_exceed_budget"


async def test_a18_a_clock_that_is_set_back_gives_no_second_budget() -> None:
    """Gain: the same window twice. What was spent in it is still spent; only the next window is a new one."""
    now = [1_792_065_600.0]  # noon, UTC
    made = House(terminal=Stranger(usage=(500, 500)), clock=lambda: now[0])
    await made.tenant("a", budget=ROOM, period="daily")
    seen = []
    for moved in (0, 0, -6 * 3600, 3600, 20 * 3600):
        now[0] += moved
        seen.append((await made.ask(chat(max_tokens=500))).status)
    assert seen == [200, 429, 429, 429, 200]
