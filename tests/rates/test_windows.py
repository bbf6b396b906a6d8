"""Sliding windows and running calls: never more than the limit in any window, never fewer than allowed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as some
from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from asgi_llm_gateway.middleware._window import WindowStorage
from asgi_llm_gateway.rates.wants import NEVER, Want, share, want
from asgi_llm_gateway.rates.windows import EXACT, STEPS, Windows

STEP = some.tuples(some.integers(0, 400), some.integers(1, 30))
"""Milliseconds until the next call, and how much it asks for."""
LIMITS = some.integers(0, 100)
WINDOW = 1000


class Clock:
    """Time in milliseconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 10_000.0

    def __call__(self) -> float:
        return self.now


def tokens(limit: int, amount: int, account: str = "") -> Want:
    """Of the tenant ``a``."""
    return want("tokens", "a", account, limit, amount)


def counted(admitted: list[tuple[float, int]], now: float, window: float = WINDOW) -> int:
    """What the last window holds, by looking at everything that ever was."""
    return sum(amount for at, amount in admitted if now - window < at <= now)


@given(LIMITS, some.lists(STEP, max_size=200))
def test_a_call_is_admitted_just_when_the_window_has_room(limit: int, steps: list[tuple[int, int]]) -> None:
    """Against a model that forgets nothing; what is told is right, too."""
    clock = Clock()
    windows = Windows(WINDOW, clock)
    admitted: list[tuple[float, int]] = []
    for wait, amount in steps:
        clock.now += wait
        before = counted(admitted, clock.now)
        verdict, taken = windows.admit([tokens(limit, amount)])
        stand = verdict.stands[0]
        assert verdict.admitted == (before + amount <= limit) == (taken is not None)
        if verdict.admitted:
            admitted.append((clock.now, amount))
            assert stand == (limit, limit - before - amount, WINDOW, 0)
        else:
            assert stand.remaining == max(0, limit - before)
            if amount > limit:
                assert stand.retry == NEVER
            else:
                then = clock.now + stand.retry
                assert counted(admitted, then) + amount <= limit  # admitted at that time
                assert counted(admitted, then - 0.001) + amount > limit  # and not before


@given(some.integers(0, 60), some.lists(some.integers(0, 400), max_size=200))
def test_the_short_way_decides_as_the_long_one(limit: int, waits: list[int]) -> None:
    """Plain requests take another path through the code."""
    clock = Clock()
    short, long = Windows(WINDOW, clock), Windows(WINDOW, clock)
    for wait in waits:
        clock.now += wait
        verdict, _ = long.admit([want("requests", "a", "", limit, 1)])
        assert short.hit("a", limit) == (verdict.admitted, *verdict.stands[0][1:])


def busy(seed: int, windows: Windows, clock: Clock, limit: int, count: int) -> Iterator[tuple[float, bool, int]]:
    """Many more calls than are kept apart: when, whether admitted, how much."""
    rolled = random.Random(seed)
    for _ in range(count):
        clock.now += rolled.choice((0, 0, 0, 1, 2, 5))
        amount = rolled.randint(1, 3)
        verdict, _ = windows.admit([tokens(limit, amount)])
        yield clock.now, verdict.admitted, amount


@pytest.mark.parametrize("limit", [EXACT, EXACT * 4, EXACT * 40])
@pytest.mark.parametrize("seed", range(3))
def test_a_busy_log_is_short_and_never_admits_too_much(seed: int, limit: int) -> None:
    """Entries are put together; no window holds more than the limit, and nothing counts longer than a step too long."""
    clock = Clock()
    windows = Windows(WINDOW, clock)
    admitted: list[tuple[float, int]] = []
    for at, yes, amount in busy(seed, windows, clock, limit, 6000):
        if yes:
            assert counted(admitted[-limit:], at) + amount <= limit
            admitted.append((at, amount))
        else:
            assert counted(admitted[-limit:], at, WINDOW * (1 + 1 / STEPS)) + amount > limit
    entries = windows._logs[tokens(limit, 1).name].entries
    assert len(entries) <= EXACT + STEPS + 1
    assert windows.total(tokens(limit, 1).name) == sum(entry[2] for entry in entries)


@given(
    some.lists(
        some.tuples(some.integers(0, 300), some.integers(1, 20), some.sampled_from(["", "k1", "k2"])), max_size=80
    )
)
def test_a_refused_call_eats_nothing_of_any_limit(steps: list[tuple[int, int, str]]) -> None:
    """Requests, tokens and running calls of tenant and key: all or nothing."""
    clock = Clock()
    windows = Windows(WINDOW, clock)
    admitted: list[tuple[float, int, str]] = []
    running: list[str] = []
    for wait, amount, key in steps:
        clock.now += wait
        wants = [
            want("requests", "a", "", 12, 1),
            want("tokens", "a", "", 60, amount),
            want("calls", "a", "", 15, 1),
            want("requests", "a", key or "k0", 7, 1),
            want("tokens", "a", key or "k0", 40, amount),
            want("calls", "a", key or "k0", 6, 1),
        ]
        inside = [one for one in admitted if one[0] > clock.now - WINDOW]
        own = [one for one in inside if one[2] == key]
        room = (
            len(inside) < 12 and sum(one[1] for one in inside) + amount <= 60 and len(running) < 15
            and len(own) < 7 and sum(one[1] for one in own) + amount <= 40 and running.count(key) < 6
        )  # fmt: skip
        verdict, taken = windows.admit(wants)
        assert verdict.admitted == room
        if taken is not None:
            admitted.append((clock.now, amount, key))
            running.append(key)
            if amount % 2:  # every other call ends at once
                windows.leave(taken)
                windows.leave(taken)
                running.pop()
    assert windows.running(want("calls", "a", "", 15, 1).name) == len(running)


@given(some.lists(some.tuples(some.integers(0, 400), some.integers(1, 30), some.integers(0, 45)), max_size=120))
def test_corrected_to_the_truth_the_window_holds_what_was_used(steps: list[tuple[int, int, int]]) -> None:
    """What was too much is given back where it was counted; what was too little counts from then on."""
    clock = Clock()
    windows, limit = Windows(WINDOW, clock), 60
    admitted: list[tuple[float, int]] = []
    for wait, amount, used in steps:
        clock.now += wait
        one = tokens(limit, amount)
        room = counted(admitted, clock.now) + amount <= limit
        verdict, taken = windows.admit([one])
        assert verdict.admitted == room
        if taken is None:
            continue
        started = clock.now
        clock.now += wait  # it runs
        windows.correct(taken, one.name, used - amount)
        admitted.append((started, min(amount, used)))
        if used > amount:
            admitted.append((clock.now, used - amount))
        assert windows.total(one.name) == counted(admitted, clock.now)


def test_a_correction_that_comes_late_takes_nothing_from_others() -> None:
    """The call has left the window by then."""
    clock = Clock()
    windows = Windows(WINDOW, clock)
    _, taken = windows.admit([tokens(10, 10)])
    clock.now += WINDOW
    windows.admit([tokens(10, 4)])
    assert taken is not None
    windows.correct(taken, tokens(10, 10).name, -10)
    assert windows.total(tokens(10, 1).name) == 4


@given(some.integers(0, 5000), some.integers(1, 64))
def test_the_shares_of_all_processes_are_no_more_than_the_limit(limit: int, parts: int) -> None:
    """But for a limit smaller than the number of processes: each has one then."""
    assert share(limit, parts) * parts <= max(limit, parts if limit else 0)
    assert share(limit, parts) >= min(limit, 1)
    assert share(limit, 1) == limit


def test_without_the_others_a_process_takes_its_share_of_what_they_had_left() -> None:
    """What all had admitted when they could last be asked counts for a window."""
    clock = Clock()
    windows, one = Windows(WINDOW, clock), tokens(100, 1)
    windows.record([one], [90])  # of which this process had 1
    decided = [windows.admit([one], parts=2, apart=True)[0].admitted for _ in range(8)]
    assert decided == [True] * 5 + [False] * 3
    clock.now += WINDOW
    decided = [windows.admit([one], parts=2, apart=True)[0].admitted for _ in range(60)]
    assert decided == [True] * 50 + [False] * 10


def test_what_was_admitted_alone_is_told_once() -> None:
    """And told again where nobody heard it."""
    clock = Clock()
    windows, one = Windows(WINDOW, clock), tokens(100, 3)
    windows.admit([one], apart=True)
    windows.admit([one])
    assert (windows.untold(one.name), windows.untold(one.name)) == (3, 0)
    windows.retell(one.name, 3)
    assert (windows.untold(one.name), windows.total(one.name)) == (3, 6)
    windows.admit([one], apart=True)
    clock.now += WINDOW
    assert windows.untold(one.name) == 0


def test_callers_that_are_gone_are_forgotten() -> None:
    """Memory is bounded by the callers of two windows."""
    clock = Clock()
    windows = Windows(WINDOW, clock)
    for at in range(100):
        windows.hit(f"tenant-{at}", 10)
    clock.now += 2 * WINDOW
    windows.hit("new", 10)
    assert windows.names() == ["new"]


@pytest.mark.parametrize("seed", range(5))
async def test_the_moving_window_of_limits_decides_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its strategy on our storage, against its own storage in memory: hit by hit."""
    rolled = random.Random(seed)
    now = [1_000_000.0]

    class Time:
        @staticmethod
        def time() -> float:
            return now[0]

    for module in ("limits.aio.storage.memory", "limits.aio.strategies", "asgi_llm_gateway.middleware._window"):
        monkeypatch.setattr(f"{module}.time", Time)
    item = RateLimitItemPerSecond(7, 3)
    theirs = MovingWindowRateLimiter(MemoryStorage())
    ours = MovingWindowRateLimiter(WindowStorage(clock=Time.time))
    for _ in range(300):
        now[0] += rolled.choice((0.001, 0.1, 0.5, 1.9)) * rolled.uniform(
            0.9, 1.1
        )  # at the very edge theirs still counts
        name, cost = rolled.choice("ab"), rolled.randint(1, 3)
        assert await ours.test(item, name, cost=cost) == await theirs.test(item, name, cost=cost)
        assert await ours.hit(item, name, cost=cost) == await theirs.hit(item, name, cost=cost)
        mine, other = await ours.get_window_stats(item, name), await theirs.get_window_stats(item, name)
        assert mine.remaining == other.remaining
        if mine.remaining < 7:
            assert mine.reset_time == pytest.approx(other.reset_time)
    await asyncio.sleep(0)


async def test_the_storage_counts_and_forgets_as_limits_wants_it() -> None:
    """The rest of what a storage must do."""
    storage = WindowStorage()
    assert await storage.check()
    assert await storage.incr("a", 60, 2) == 2
    assert await storage.incr("a", 60) == 3
    assert await storage.get("a") == 3
    await storage.clear("a")
    assert await storage.get("a") == 0
    await storage.incr("b", 60)
    assert await storage.reset() == 1
    assert await storage.get("b") == 0
