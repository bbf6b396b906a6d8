"""Limits that processes share in Redis: one step for all limits, and a Redis that dies, hangs, forgets and comes back."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.middleware._rate_redis import Lane
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.rates.tally import TALLY, Tally
from asgi_llm_gateway.rates.wants import Want, want
from asgi_llm_gateway.rates.windows import STEPS, Windows
from asgi_llm_gateway.settings import forget

from ..conversation import CHAT, ask, call
from ..stores.redis_servers import RedisServer, binaries, redis_server
from ..upstream import until
from . import Gate, Stranger

LONG = 1e5
PATIENT = 20.0
"""Seconds to wait for a Redis that is there: the machine may be busy."""


@pytest.fixture(scope="module", params=sorted(binaries()))
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server for tests that do it no harm."""
    with redis_server(tmp_path_factory.mktemp("redis"), binary=request.param) as server:
        yield server


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[RedisServer]:
    """A server to be killed."""
    with redis_server(tmp_path / "redis") as server:
        yield server


numbers = itertools.count()


@pytest.fixture
def tenant() -> str:
    """A name that no other test has used."""
    return f"t{next(numbers)}"


@asynccontextmanager
async def lanes(
    server: RedisServer,
    count: int = 2,
    *,
    seconds: float = LONG,
    parts: int = 2,
    lease: float = 30.0,
    patience: float = PATIENT,
) -> AsyncIterator[list[Lane]]:
    """As many processes would have, each with counts of its own."""
    made = [
        Lane(server.url, Windows(seconds), parts=parts, patience=patience, lease=lease, tally=Tally())
        for _ in range(count)
    ]
    try:
        yield made
    finally:
        for lane in made:
            await lane.close()


def requests(tenant: str, limit: int, account: str = "") -> Want:
    """One request."""
    return want("requests", tenant, account, limit, 1)


def tokens(tenant: str, limit: int, amount: int) -> Want:
    """So many tokens."""
    return want("tokens", tenant, "", limit, amount)


def calls(tenant: str, limit: int) -> Want:
    """A place."""
    return want("calls", tenant, "", limit, 1)


async def yes(lane: Lane, tenant: str, *wants: Want) -> bool:
    """Whether a call is admitted."""
    verdict, ticket = await lane.admit(tenant, wants)
    assert verdict.admitted == (ticket is not None)
    return verdict.admitted


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


# -- Redis is not there ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("url", ["redis://:hush@[broken", "nonsense", "http://:hush@host/"])
async def test_a_url_that_can_not_be_read_is_said_without_its_password(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """503, naming the setting."""
    answer = await ask(RateLimitMiddleware(Stranger(), redis_url=url), CHAT)
    assert (answer.status, answer.error["code"]) == (503, "misconfigured")
    assert "REDIS_URL" in answer.error["message"]
    assert "hush" not in answer.body.decode() + caplog.text
