"""Sums over time by model and by tenant, over every kind of store: those of ``spend``, cut in another way."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from asgi_llm_gateway.records import Stats
from asgi_llm_gateway.stores.base import Course

from .conftest import Backend
from .test_spend import NOON, book, fresh, total


async def test_the_dearest_have_a_course_of_their_own(backend: Backend) -> None:
    """In the order of what they cost; all behind ``most`` are one; calls of no known model have a place like any."""
    ledger = await backend.opened()
    for tenant, seconds, cost, model in (
        ("a", 0, 5, "small"), ("a", 61, 50, "large"), ("b", 0, 7, "large"), ("b", 62, 20, None), ("b", 63, 1, "tiny"),
        ("b", 240, 900, "tiny"), ("a", -1, 900, "tiny"),
    ):  # fmt: skip
        await book(ledger, tenant, NOON + seconds, cost, model=model)
    await backend.settled(ledger)
    log = backend.log()
    span: Any = {"since": NOON, "until": NOON + 240, "step": 60}
    assert await log.course("model", **span, most=2) == Course(["large", None], [
        (0, 0, Stats(1, 3, 6, 7)), (0, 1, Stats(1, 3, 6, 50)), (1, 1, Stats(1, 3, 6, 20)),
        (2, 0, Stats(1, 3, 6, 5)), (2, 1, Stats(1, 3, 6, 1)),
    ])  # fmt: skip
    assert (await log.course("model", **span)).names == ["large", None, "small", "tiny"]
    assert await log.course("tenant", **span) == Course(["a", "b"], [
        (0, 0, Stats(1, 3, 6, 5)), (0, 1, Stats(1, 3, 6, 50)), (1, 0, Stats(1, 3, 6, 7)), (1, 1, Stats(2, 6, 12, 21)),
    ])  # fmt: skip
    own = await log.course("model", **span, tenant="b", most=1)
    assert own == Course([None], [(0, 1, Stats(1, 3, 6, 20)), (1, 0, Stats(1, 3, 6, 7)), (1, 1, Stats(1, 3, 6, 1))])
    assert await log.course("model", since=NOON + 300, until=NOON + 400, step=60) == Course([], [])
    await ledger.close()


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.floats(0, 500, allow_nan=False),
        st.integers(0, 2**50),
        st.sampled_from([None, "m", "n", "o"]),
    ),
    max_size=12,
)


def test_no_call_is_lost_or_counted_twice(backend: Backend) -> None:
    """However calls are told apart, the parts sum up to the overview's sums, bucket by bucket, the dearest first."""

    @hypothesis_settings(max_examples=25, deadline=None, derandomize=True)
    @given(CALLS, st.sampled_from(["model", "tenant"]), st.integers(1, 4), st.sampled_from([None, "a"]))
    def check(
        calls: list[tuple[str, float, int, str | None]], by: Literal["model", "tenant"], most: int, tenant: str | None
    ) -> None:
        async def run() -> None:
            ledger, log = await backend.opened(), fresh(backend)
            try:
                for owner, started, cost, model in calls:
                    await book(ledger, owner, started, cost, model=model)
                await backend.settled(ledger)
                span: Any = {"since": 10.0, "until": 400.0, "step": 70.0}
                found = await log.course(by, **span, tenant=tenant, most=most)
                spend = await log.spend(**span, tenant=tenant)
                for bucket, stats in spend.over_time:
                    assert total([one for _, at, one in found.over_time if at == bucket]) == stats
                assert {at for _, at, _ in found.over_time} == {at for at, _ in spend.over_time}
                costs: dict[str | None, int] = {}
                for owner, model, stats in spend.by_model:
                    name = model if by == "model" else owner
                    costs[name] = costs.get(name, 0) + stats.cost
                assert len(found.names) == len(set(found.names)) == min(most, len(costs))
                mine = [
                    sum(one.cost for place, _, one in found.over_time if place == at) for at in range(len(found.names))
                ]
                assert mine == [costs[name] for name in found.names] == sorted(costs.values(), reverse=True)[:most]
            finally:
                await ledger.close()
                if backend.url is not None:
                    await log.close()

        asyncio.run(run())

    check()
