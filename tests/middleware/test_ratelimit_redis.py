"""Limits that processes share in Redis: one step for all limits, and places that are given back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.middleware._rate_redis import Lane
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.rates.windows import STEPS

from ..conversation import CHAT, ask, call
from ..stores.redis_servers import RedisServer, redis_server
from ..upstream import until
from . import Gate, Stranger
from .redis_lanes import LONG, PATIENT, calls, lanes, numbers, requests, shared, tenant, tokens, yes

__all__ = ["shared", "tenant"]


# -- Redis is there ----------------------------------------------------------------------------------------------------


async def test_all_processes_together_admit_the_limit_and_no_more(shared: RedisServer, tenant: str) -> None:
    """However their calls interleave; and remaining counts down without a gap."""
    async with lanes(shared, 3) as made:
        said = await asyncio.gather(*(made[at % 3].admit(tenant, [requests(tenant, 100)]) for at in range(300)))
    admitted = [verdict.stands[0].remaining for verdict, _ in said if verdict.admitted]
    assert sorted(admitted) == list(range(100))


async def test_no_window_holds_more_than_the_limit_and_none_fewer_than_allowed(
    shared: RedisServer, tenant: str
) -> None:
    """By the times at which calls were sent and answered: what the server saw lies between them."""
    limit, seconds = 7, 0.25
    admitted: list[tuple[float, float]] = []
    refused: list[tuple[float, float]] = []

    async def caller(lane: Lane) -> None:
        for _ in range(120):
            sent = time.monotonic()
            inside = await yes(lane, tenant, requests(tenant, limit))
            (admitted if inside else refused).append((sent, time.monotonic()))
            await asyncio.sleep(0.005)

    async with lanes(shared, 3, seconds=seconds) as made:
        await asyncio.gather(*map(caller, made))
        assert all(lane.up for lane in made)
    admitted.sort()
    check(admitted, refused, limit, seconds)
    assert len(admitted) >= 2 * limit
    assert refused


def check(
    admitted: Sequence[tuple[float, float]], refused: Sequence[tuple[float, float]], limit: int, seconds: float
) -> None:
    """Each is a pair of times: sent and answered."""
    ends = sorted(end for _, end in admitted)
    starts = sorted(start for start, _ in admitted)
    for at in range(len(admitted) - limit):
        assert ends[at + limit] - starts[at] >= seconds - 1e-5, "a window holds more than the limit"
    for sent, answered in refused:
        inside = [1 for start, end in admitted if end > sent - seconds * (1 + 1 / STEPS) and start < answered]
        assert len(inside) >= limit, "a call was refused although there was room"


async def test_a_refused_call_eats_nothing_of_any_limit(shared: RedisServer, tenant: str) -> None:
    """Requests, tokens and places, of tenant and key: one step, all or nothing."""
    wants = [requests(tenant, 10), tokens(tenant, 100, 30), calls(tenant, 5), requests(tenant, 3, "key")]
    async with lanes(shared) as (one, other):
        for lane in (one, other, one):
            assert await yes(lane, tenant, *wants)
        for _ in range(5):
            verdict, _ = await other.admit(tenant, wants)
            assert not verdict.admitted
        assert [stand.remaining for stand in verdict.stands] == [7, 10, 2, 0]
        assert [stand.retry > 0 for stand in verdict.stands] == [False, True, False, True]
        assert await yes(other, tenant, requests(tenant, 10), tokens(tenant, 100, 10), calls(tenant, 5))
        assert not await yes(other, tenant, tokens(tenant, 100, 1))


async def test_a_refusal_tells_when_there_is_room(shared: RedisServer, tenant: str) -> None:
    """To the time at which enough has left the window; never, where more is asked for than the limit."""
    async with lanes(shared, seconds=1000) as (one, other):
        for amount in (10, 20, 30):
            assert await yes(one, tenant, tokens(tenant, 60, amount))
        verdict, _ = await other.admit(tenant, [tokens(tenant, 60, 25)])
        assert 990 < verdict.stands[0].retry <= verdict.stands[0].reset <= 1000
        verdict, _ = await other.admit(tenant, [tokens(tenant, 60, 61)])
        assert verdict.stands[0].retry == float("inf")
        verdict, _ = await other.admit(tenant, [tokens(tenant, 0, 1), calls(tenant, 0)])
        assert [stand.retry for stand in verdict.stands] == [float("inf")] * 2


async def test_a_look_takes_nothing_and_is_not_refused(shared: RedisServer, tenant: str) -> None:
    """Of a window that is full, too."""
    async with lanes(shared) as (one, other):
        assert await yes(one, tenant, tokens(tenant, 50, 50))
        verdict, _ = await other.admit(tenant, [requests(tenant, 5), tokens(tenant, 50, 0)])
        assert verdict.admitted
        assert [stand.remaining for stand in verdict.stands] == [4, 0]


async def test_tokens_are_corrected_for_all(shared: RedisServer, tenant: str) -> None:
    """Less is given back where it was counted, more counts from now on."""
    one, name = tokens(tenant, 100, 60), tokens(tenant, 100, 60).name
    async with lanes(shared) as (first, second):
        _, ticket = await first.admit(tenant, [one])
        assert ticket is not None
        assert not await yes(second, tenant, one)
        first.correct(ticket, [(name, -55)])
        await first.admit("other", [requests("other", 1)])  # whatever is asked next comes after it
        assert await yes(second, tenant, one)
        first.correct(ticket, [(name, 30)])
        await first.admit("other", [requests("other", 1)])
        verdict, _ = await second.admit(tenant, [one])
        assert verdict.stands[0].remaining == 100 - 5 - 60 - 30


async def test_a_busy_log_is_short(shared: RedisServer, tenant: str) -> None:
    """Entries are put together beyond some hundreds, and none is lost."""
    async with lanes(shared, 1) as (lane,):
        await asyncio.gather(*(lane.admit(tenant, [tokens(tenant, 10**6, 3)]) for _ in range(2000)))
        verdict, ticket = await lane.admit(tenant, [tokens(tenant, 10**6, 3)])
        assert verdict.stands[0].remaining == 10**6 - 2001 * 3
        assert ticket is not None
        key, *_ = ticket.marks[tokens(tenant, 1, 1).name]
        assert int(shared.ask("HLEN", key).lstrip(":")) < 600
        assert 0 < int(shared.ask("PTTL", key).lstrip(":")) <= (LONG + 2) * 1000
        lane.correct(ticket, [(tokens(tenant, 1, 1).name, -3)])
        verdict, _ = await lane.admit(tenant, [tokens(tenant, 10**6, 3)])
        assert verdict.stands[0].remaining == 10**6 - 2001 * 3


async def test_a_call_that_is_given_up_while_redis_is_asked_takes_nothing(shared: RedisServer, tenant: str) -> None:
    """Its client left; what Redis says later is given back."""
    wants = [requests(tenant, 5), calls(tenant, 1)]
    async with lanes(shared) as (one, other):
        await one.admit("other", [requests("other", 1)])
        asking = asyncio.create_task(one.admit(tenant, wants))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await one.admit("other", [requests("other", 9)])
        await one.admit("other", [requests("other", 9)])
        verdict, _ = await other.admit(tenant, wants)
        assert verdict.admitted
        assert verdict.stands[0].remaining == 4


async def test_a_server_that_forgot_its_scripts_is_told_them_again(shared: RedisServer, tenant: str) -> None:
    """SCRIPT FLUSH, or a new node."""
    async with lanes(shared, 1) as (lane,):
        assert await yes(lane, tenant, requests(tenant, 2))
        shared.ask("SCRIPT", "FLUSH")
        assert [await yes(lane, tenant, requests(tenant, 2)) for _ in range(2)] == [True, False]
        assert lane.up


async def test_in_a_cluster_all_limits_of_a_tenant_lie_in_one_slot(tmp_path: Path, tenant: str) -> None:
    """One script may touch them."""
    with redis_server(tmp_path / "cluster", cluster=True) as server:
        async with lanes(server) as made:
            wants = [requests(tenant, 9), tokens(tenant, 100, 30), calls(tenant, 5), requests(tenant, 3, "key")]
            assert [await yes(made[at % 2], tenant, *wants) for at in range(4)] == [True, True, True, False]
            assert all(lane.up for lane in made)


# -- places ------------------------------------------------------------------------------------------------------------


async def test_places_are_shared_and_given_back(shared: RedisServer, tenant: str) -> None:
    """Through the layer, with calls that run."""
    gate = Gate(Stranger())
    settings: dict[str, Any] = {"concurrency": 1, "redis_url": shared.url, "redis_patience": PATIENT}
    settings["window"] = 1000.0 + next(numbers)  # names the keys: no other test has it
    one, other = RateLimitMiddleware(gate, **settings), RateLimitMiddleware(Stranger(), **settings)
    async with call(one, CHAT) as talk:
        await gate.reached.wait()
        assert (await ask(other, CHAT)).status == 429
        gate.open.set()
        assert (await talk.answer()).status == 200
    await ask(one, CHAT)
    await until(lambda: shared.ask("KEYS", f"gw:{{default}}:rate:{settings['window'] * 1e6:.0f}:calls:*") == "*0")
    assert (await ask(other, CHAT)).status == 200


async def test_a_running_call_keeps_its_place_and_a_dead_process_loses_it(shared: RedisServer, tenant: str) -> None:
    """Leases are renewed while the process lives, for as long as the call takes."""
    async with lanes(shared, 1, lease=1.5) as (survivor,):
        async with lanes(shared, 1, lease=1.5) as (dying,):
            assert await yes(dying, tenant, calls(tenant, 1))
            until_ = time.monotonic() + 2.5
            while time.monotonic() < until_:
                assert not await yes(survivor, tenant, calls(tenant, 1))
                await asyncio.sleep(0.02)
        async with asyncio.timeout(20):
            while not await yes(survivor, tenant, calls(tenant, 1)):  # noqa: ASYNC110 - Redis tells nobody
                await asyncio.sleep(0.02)


async def test_the_place_of_a_call_that_ended_is_not_renewed(shared: RedisServer, tenant: str) -> None:
    """While the same process has other calls that run."""
    async with lanes(shared, 1, lease=0.3) as (lane,):
        place = calls(tenant, 2)
        _, ended = await lane.admit(tenant, [place])
        _, running = await lane.admit(tenant, [place])
        assert ended is not None
        assert running is not None
        lane.leave(ended)
        await asyncio.sleep(0.5)  # several renewals
        assert int(shared.ask("ZCARD", lane._key(tenant, place)).lstrip(":")) == 1
        lane.leave(running)
        assert not lane._held


async def test_a_line_hears_of_room_that_another_process_made(shared: RedisServer, tenant: str) -> None:
    """It asks again now and then."""
    gate, window = Gate(Stranger()), 2000.0 + next(numbers)
    settings: dict[str, Any] = {"concurrency": 1, "redis_url": shared.url, "redis_patience": PATIENT, "window": window}
    holder, waiter = (
        RateLimitMiddleware(gate, **settings),
        RateLimitMiddleware(Stranger(), queue_seconds=60, **settings),
    )
    async with call(holder, CHAT) as talk:
        await gate.reached.wait()
        waiting = asyncio.create_task(ask(waiter, CHAT))
        await until(lambda: (here := waiter._loops.get()) is not None and len(here.lines) == 1)
        gate.open.set()
        await talk.answer()
        assert (await waiting).status == 200
