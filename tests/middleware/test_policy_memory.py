"""The memory of decisions: how long they hold, for whom, and what is asked once."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.middleware.policy import PolicyMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware

from ..conversation import CHAT, JSON, ask, call
from . import Stranger
from .policy_parts import Rules, always, team


async def test_a_decision_holds_for_a_while() -> None:
    """So many seconds, for yes and no alike; a clock that is set back prolongs nothing."""
    now = [1_000_000.0]
    rules = Rules(lambda question: question["model"] == "echo")
    layer = PolicyMiddleware(Stranger(), decide=rules, cache_seconds=10, omit=("time",), clock=lambda: now[0])
    for moment, asked in ((0, 2), (9.9, 2), (10, 4), (5, 6)):
        now[0] = 1_000_000.0 + moment
        assert (await ask(layer, CHAT)).status == 200
        assert (await ask(layer, {**CHAT, "model": "gpt-4"})).status == 403
        assert len(rules.asked) == asked


async def test_a_decision_does_not_outlive_its_minute() -> None:
    """The time is part of the question: a policy by the clock is right to the step."""
    now = [60 * 20_000 - 0.5]
    rules = Rules(lambda question: question["time"] == "1970-01-14T21:19:00Z")
    layer = PolicyMiddleware(Stranger(), decide=rules, cache_seconds=3600, clock=lambda: now[0])
    assert [(await ask(layer, CHAT)).status for _ in range(2)] == [200, 200]
    now[0] += 1
    assert [(await ask(layer, CHAT)).status for _ in range(2)] == [403, 403]
    assert len(rules.asked) == 2


async def test_nothing_is_remembered_where_that_is_switched_off() -> None:
    """Zero seconds."""
    rules = always(True)
    layer = PolicyMiddleware(Stranger(), decide=rules, cache_seconds=0)
    for _ in range(3):
        await ask(layer, CHAT)
    assert len(rules.asked) == 3


async def test_the_memory_is_bounded() -> None:
    """The oldest decision goes."""
    rules = always(True)
    layer = PolicyMiddleware(Stranger(), decide=rules, cache_size=2)
    for model in ("a", "b", "c", "c", "b", "a", "a"):
        await ask(layer, {**CHAT, "model": model})
    assert [question["model"] for question in rules.asked] == ["a", "b", "c", "a"]


async def test_calls_that_ask_the_same_ask_once() -> None:
    """However many wait; one that hangs up leaves the others their answer."""
    rules = always(True)
    rules.gate.clear()
    app = Stranger()
    layer = PolicyMiddleware(app, decide=rules, timeout=30)
    async with call(layer, CHAT) as first:
        await rules.reached.wait()
        others = [asyncio.ensure_future(ask(layer, CHAT)) for _ in range(20)]
        await asyncio.sleep(0)
        first.task.cancel()
        await asyncio.wait({first.task})
        rules.gate.set()
        assert [answer.status for answer in await asyncio.gather(*others)] == [200] * 20
    assert (len(rules.asked), app.calls) == (1, 20)


async def test_a_prompt_that_is_shown_is_part_of_what_is_remembered() -> None:
    """Another prompt, another decision; long ones too."""
    rules = Rules(lambda question: "bomb" not in question["body"]["messages"][0]["content"])
    layer = PolicyMiddleware(Stranger(), decide=rules, prompt=True)
    pad = "x" * 5000
    for content, status in ((pad + "cake", 200), (pad + "bomb", 403), (pad + "cake", 200)):
        body = {**CHAT, "messages": [{"role": "user", "content": content}]}
        assert (await ask(layer, body)).status == status
    assert len(rules.asked) == 2


CALLS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["small", "large"]), st.sampled_from([None, 1, 2])),
    min_size=1,
    max_size=12,
)


@given(
    calls=CALLS,
    allowed=st.sets(st.tuples(st.sampled_from("abc"), st.sampled_from(["small", "large"]))),
    rest=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_no_call_that_is_denied_reaches_the_app(calls: Any, allowed: Any, rest: bool) -> None:
    """Side by side and one after the other, with the memory on: each tenant and model gets its own decision, always."""

    async def run() -> None:
        store, shown = await team("a", "b", "c")

        async def decide(question: dict[str, Any]) -> Any:
            await asyncio.sleep(0)
            verdict = (question["tenant"]["id"], question["model"]) in allowed
            return verdict if rest else {"allow": verdict, "obligations": {"max_tokens": 5}}

        app = Stranger()
        layer = TenantMiddleware(PolicyMiddleware(app, decide=decide, timeout=30), store=store)

        async def one(tenant: str, model: str, seed: int | None) -> int:
            body = {**CHAT, "model": model} if seed is None else {**CHAT, "model": model, "seed": seed}
            return (await ask(layer, body, headers=(JSON, shown[tenant]))).status

        wanted = [200 if (tenant, model) in allowed else 403 for tenant, model, _ in calls]
        assert await asyncio.gather(*(one(*each) for each in calls)) == wanted
        assert [await one(*each) for each in calls] == wanted
        assert app.calls == 2 * wanted.count(200)

    asyncio.run(run())


def test_one_instance_serves_many_event_loops() -> None:
    """Each has a memory of its own."""
    asked: list[Any] = []

    def decide(question: dict[str, Any]) -> bool:
        asked.append(question)
        return True

    layer = PolicyMiddleware(Stranger(), decide=decide)
    for _ in range(2):
        assert asyncio.run(ask(layer, CHAT)).status == 200
    assert len(asked) == 2
