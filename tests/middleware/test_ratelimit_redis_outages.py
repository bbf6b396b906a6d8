"""Limits that processes share in a Redis that dies, hangs, forgets and comes back."""

from __future__ import annotations

import asyncio
import time

import pytest

from asgi_llm_gateway.middleware._rate_redis import Lane
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.rates.tally import TALLY
from asgi_llm_gateway.settings import forget

from ..conversation import CHAT, ask
from ..stores.redis_servers import RedisServer
from ..upstream import until
from . import Stranger
from .redis_lanes import LONG, PATIENT, calls, fragile, lanes, requests, tenant, yes

__all__ = ["fragile", "tenant"]


async def test_killed_in_the_middle_no_window_holds_more_than_the_limit(fragile: RedisServer, tenant: str) -> None:
    """Two processes, 100 in all: 60 by Redis, 40 by their shares of what was left, none after its return without its data."""
    one = requests(tenant, 100)
    async with lanes(fragile) as made:
        for at in range(60):
            assert await yes(made[at % 2], tenant, one)
        fragile.kill()
        alone = [await yes(made[at % 2], tenant, one) for at in range(60)]
        assert 38 <= alone.count(True) <= 40  # the first of the two had not heard of the other's last
        assert not any(lane.up for lane in made)
        fragile.start()
        await until(lambda: all(lane.up for lane in made))
        assert [await yes(made[at % 2], tenant, one) for at in range(10)].count(True) <= 40 - alone.count(True)
        await until(lambda: all(lane._grace < asyncio.get_running_loop().time() for lane in made))
        more = [await yes(made[at % 2], tenant, one) for at in range(10)]
        assert alone.count(True) + more.count(True) <= 40


async def test_a_server_that_forgets_everything_is_told_what_its_processes_know(
    fragile: RedisServer, tenant: str
) -> None:
    """FLUSHALL, as if it had been started anew; nobody noticed an outage."""
    one = requests(tenant, 10)
    async with lanes(fragile) as made:
        assert [await yes(made[at % 2], tenant, one) for at in range(8)] == [True] * 8
        fragile.ask("FLUSHALL")
        assert [await yes(made[at % 2], tenant, one) for at in range(6)].count(True) <= 2 + 4  # each told its own
        assert not await yes(made[0], tenant, one)


async def test_places_of_running_calls_are_told_to_a_redis_that_came_back(fragile: RedisServer, tenant: str) -> None:
    """Those taken before, and those taken meanwhile."""
    place = calls(tenant, 4)
    async with lanes(fragile) as (one, other):
        assert await yes(one, tenant, place)
        fragile.kill()
        assert await yes(one, tenant, place)  # its share is 2
        assert not await yes(one, tenant, place)
        fragile.start()
        await other.admit("other", [requests("other", 5)])
        await until(lambda: one.up and other.up)
        assert int(fragile.ask("ZCARD", one._key(tenant, place)).lstrip(":")) == 2


async def test_a_frozen_redis_holds_calls_up_once(fragile: RedisServer, tenant: str) -> None:
    """Then nobody waits for it until it answers in time again; no call fails."""
    layer = RateLimitMiddleware(Stranger(), requests=10**6, redis_url=fragile.url, redis_patience=1.0)
    assert (await ask(layer, CHAT)).status == 200
    lost, local, down = TALLY.shared_lost, TALLY.local, TALLY.shared_down
    fragile.freeze()
    try:
        answers = await asyncio.gather(*(ask(layer, CHAT) for _ in range(20)))
        began = time.monotonic()
        answers += [await ask(layer, CHAT) for _ in range(200)]
        assert time.monotonic() - began < 200 * 1.0  # far less: not one of them waits for a second
        assert {answer.status for answer in answers} == {200}
        assert (TALLY.shared_lost - lost, TALLY.local - local, TALLY.shared_down - down) == (1, 220, 1)
    finally:
        fragile.thaw()
    await until(lambda: TALLY.shared_down == down)
    answer = await ask(layer, CHAT)
    assert (answer.status, TALLY.local - local) == (200, 220)
    # The twenty that it was asked for when it froze it may have counted when it thawed, although they were decided here.
    assert 222 <= 10**6 - int(answer.headers["x-ratelimit-remaining-requests"]) <= 242


async def test_a_redis_that_was_never_there_is_found_when_it_comes(fragile: RedisServer) -> None:
    """The gateway starts without it; nothing needs a restart."""
    fragile.kill()
    layer = RateLimitMiddleware(Stranger(), requests=4, window=LONG, redis_url=fragile.url, redis_patience=PATIENT)
    assert [(await ask(layer, CHAT)).status for _ in range(3)] == [200] * 3
    here = layer._loops.get()
    assert here is not None
    assert isinstance(here.desk, Lane)
    lane = here.desk
    fragile.start()
    await until(lambda: lane.up)
    assert [(await ask(layer, CHAT)).status for _ in range(2)] == [200, 429]
    other = RateLimitMiddleware(Stranger(), requests=4, window=LONG, redis_url=fragile.url, redis_patience=PATIENT)
    assert (await ask(other, CHAT)).status == 429


async def test_while_redis_is_away_each_process_has_its_share(
    fragile: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit divided by WEB_CONCURRENCY times REPLICAS; a setting says how long a call waits for Redis."""
    for name, value in {
        "WEB_CONCURRENCY": "2",
        "REPLICAS": "3",
        "REDIS_URL": fragile.url,
        "RATE_LIMIT_MAX_REQUESTS": "60",
        "RATE_LIMIT_REDIS_TIMEOUT_MS": "20000",
    }.items():
        monkeypatch.setenv(name, value)
    forget()
    layer = RateLimitMiddleware(Stranger(), window=LONG)
    fragile.kill()
    answers = [await ask(layer, CHAT) for _ in range(12)]
    assert [answer.status for answer in answers] == [200] * 10 + [429] * 2
    assert answers[0].headers["x-ratelimit-limit-requests"] == "10"


@pytest.mark.parametrize("url", ["redis://:hush@[broken", "nonsense", "http://:hush@host/"])
async def test_a_url_that_can_not_be_read_is_said_without_its_password(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """503, naming the setting."""
    answer = await ask(RateLimitMiddleware(Stranger(), redis_url=url), CHAT)
    assert (answer.status, answer.error["code"]) == (503, "misconfigured")
    assert "REDIS_URL" in answer.error["message"]
    assert "hush" not in answer.body.decode() + caplog.text
