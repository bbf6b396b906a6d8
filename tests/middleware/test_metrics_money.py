"""The money on the page is the money on the ledger, to the nano-dollar, whatever goes wrong."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.meters.families import COST
from asgi_llm_gateway.meters.meters import Meters
from asgi_llm_gateway.meters.rows import Counts, Files
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.cache import CacheMiddleware
from asgi_llm_gateway.middleware.metrics import MetricsMiddleware
from asgi_llm_gateway.records import CallRecord, Hold, Usage
from asgi_llm_gateway.stores.base import Ledger
from asgi_llm_gateway.stores.keeper import Keeper
from asgi_llm_gateway.stores.memory import MemoryLedger

from ..conversation import CHAT, ask, call
from ..metrics_parts import counting, shown, value
from . import DONE, Stranger, Streamer, counts, words

PAID = {**CHAT, "model": "gpt-4"}


class Failing:
    """A ledger whose ``settle`` fails so many times, before it has done its work or (``after``) when it has."""

    def __init__(self, ledger: Ledger, times: int, *, after: bool = False) -> None:
        self._ledger = ledger
        self._times = times
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """The ledger's, or a fault."""
        if self._times <= 0:
            return await self._ledger.settle(hold, record)
        self._times -= 1
        if self._after:
            await self._ledger.settle(hold, record)
        raise StoreError("away")


@pytest.mark.parametrize("after", [False, True])
async def test_a_call_that_is_settled_late_is_counted_once_and_then(after: bool) -> None:
    """Also where the store had booked it and only its answer was lost."""
    ledger = MemoryLedger()
    with counting() as meters:
        app = BudgetMiddleware(Stranger(), ledger=Failing(ledger, 2, after=after))
        assert (await ask(MetricsMiddleware(app, meters=meters), PAID)).status == 200
        assert value(shown(meters), "llm_cost_total") == 0
        async with asyncio.timeout(30):
            while not (found := value(shown(meters), "llm_cost_total")):  # noqa: ASYNC110 - the keeper tells nobody
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert found == value(shown(meters), "llm_cost_total")
    assert round(found * 1e9) == (await ledger.stats()).cost > 0


async def test_a_settle_that_was_cancelled_half_way_is_counted_once() -> None:
    """The keeper repeats it; whether the first one was carried out, nobody knows."""
    ledger = MemoryLedger()

    class Slow(Failing):
        async def settle(self, hold: Hold, record: CallRecord) -> bool:
            done = await self._ledger.settle(hold, record)
            if self._times:
                self._times = 0
                await asyncio.sleep(60)
            return done

    with counting() as meters:
        keeper = Keeper(Slow(ledger, 1), ttl=60.0)
        hold = await _hold(ledger)
        record = CallRecord(hold.id, "team", usage=Usage(1, 1), cost=11, status=200)
        settling = asyncio.ensure_future(_settle(keeper, hold, record))
        await asyncio.sleep(0.05)
        settling.cancel()
        await asyncio.wait({settling})
        await keeper.close()
        assert value(shown(meters), "llm_cost_total", tenant="team") == 11e-9
    assert (await ledger.stats()).cost == 11


async def _hold(ledger: MemoryLedger) -> Hold:
    from asgi_llm_gateway.records import Amount, Limit

    hold = await ledger.hold("team", hold_id="h1", limits=(Limit("", 0, None, None),), least=Amount(20, 20),
                             wanted=Amount(20, 20), now=1.0, ttl=1e9)  # fmt: skip
    assert isinstance(hold, Hold)
    return hold


async def _settle(keeper: Keeper, hold: Hold, record: CallRecord) -> None:
    """As Account.settle does where it is cancelled."""
    try:
        await keeper.ledger.settle(hold, record)
    except asyncio.CancelledError:
        keeper.later(hold, record)
        raise


async def test_after_a_mixed_load_with_faults_the_metrics_are_the_sum_of_the_records() -> None:
    """Streams, hang-ups, refusals, crashes, a store that comes and goes: money, tokens and calls agree."""
    ledger = MemoryLedger()

    async def crashing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise ZeroDivisionError

    def stack(app: Any, faults: int = 0) -> Any:
        return MetricsMiddleware(BudgetMiddleware(app, ledger=Failing(ledger, faults)), meters=meters)

    async def one(at: int) -> None:
        kind = at % 6
        if kind == 0:
            await ask(stack(Stranger((at, 2 * at))), PAID)
        elif kind == 1:
            await ask(stack(Streamer([*words(3), counts(at, 3), DONE])), {**PAID, "stream": True})
        elif kind == 2:
            async with call(stack(Streamer(words(4), endless=True)), {**PAID, "stream": True}) as talk:
                for _ in range(1 + at % 4):
                    await talk.next()
                talk.task.cancel()
                await asyncio.wait({talk.task})
        elif kind == 3:
            await ask(stack(Stranger((at, 1)), faults=2), PAID)
        elif kind == 4:
            await ask(stack(Stranger(None, status=500)), PAID)
        else:
            with pytest.raises(ZeroDivisionError):
                await ask(stack(crashing), PAID)

    with counting() as meters:
        await asyncio.gather(*(one(at) for at in range(120)))
        async with asyncio.timeout(30):
            while (  # noqa: ASYNC110 - the keepers tell nobody
                value(shown(meters), "llm_calls_total") < (await ledger.stats()).requests
                or (await ledger.balance("default")).held
            ):
                await asyncio.sleep(0.05)
        found, sums = shown(meters), await ledger.stats()
    assert sums.requests >= 80
    assert abs(Decimal(value(found, "llm_cost_total")) - Decimal(sums.cost) / 10**9) < Decimal("1e-9")
    assert value(found, "llm_tokens_total", type="prompt") == sums.tokens_in
    assert value(found, "llm_tokens_total", type="completion") == sums.tokens_out
    assert value(found, "llm_calls_total") == sums.requests
    assert value(found, "http_requests_total") == 120


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200))
@settings(deadline=None)
def test_a_million_small_amounts_lose_nothing(amounts: list[int]) -> None:
    """Floats that are added up would drift; integers do not, and are divided once."""
    counts = Counts(COST, None)
    for amount in amounts:
        counts.add(("team",), amount)
    row = counts.rows[("team",)]
    assert row.value == sum(amounts)
    assert abs(Decimal(row.value / COST.scale) - Decimal(sum(amounts)) / 10**9) < Decimal("1e-9")


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20), st.data())
@settings(max_examples=30, deadline=None)
def test_a_file_of_several_processes_is_as_exact(
    tmp_path_factory: pytest.TempPathFactory, amounts: list[int], data: st.DataObject
) -> None:
    """Also one that is gone on with, because a process got the number of one that died."""
    folder: Path = tmp_path_factory.mktemp("metrics")
    files = Files(folder)
    cut = data.draw(st.integers(0, len(amounts)))
    for part in (amounts[:cut], amounts[cut:]):
        counts = Counts(COST, files)
        for amount in part:
            counts.add(("team",), amount)
        files.close()
    with_folder = Meters(folder=folder)
    shown_usd = value(shown(with_folder), "llm_cost_total", tenant="team")
    with_folder.close()
    assert abs(Decimal(shown_usd) - Decimal(sum(amounts)) / 10**9) < Decimal("1e-9")


async def test_behind_a_cache_money_and_tokens_are_the_ledgers_too() -> None:
    """A miss is paid, hits and those who joined are not, and a settle that comes late is counted when it comes."""
    ledger = MemoryLedger()
    with counting() as meters:
        inner = BudgetMiddleware(Stranger((10, 20)), ledger=Failing(ledger, 2))
        app = MetricsMiddleware(CacheMiddleware(inner, calls="all"), meters=meters)
        answers = await asyncio.gather(*(ask(app, PAID) for _ in range(5)))
        answers.append(await ask(app, PAID))
        assert {answer.status for answer in answers} == {200}
        async with asyncio.timeout(30):
            while (await ledger.balance("default")).held:  # noqa: ASYNC110 - the keeper tells nobody
                await asyncio.sleep(0.01)
        found, sums = shown(meters), await ledger.stats()
    assert 1 <= sums.requests < 6  # an answer whose settle is late is not kept
    assert value(found, "llm_tokens_total") == sums.tokens_in + sums.tokens_out == 30 * sums.requests
    assert round(value(found, "llm_cost_total") * 1e9) == sums.cost
    events = {dict(labels)["event"]: count for labels, count in found["llm_cache_events_total"].items()}
    assert events["miss"] == sums.requests
    assert events.get("joined", 0) + events.get("hit", 0) == 6 - sums.requests
