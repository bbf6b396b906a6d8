"""Limits over several processes with a real Redis, which is killed in the middle: counted from outside, by the clock."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import pytest

from .servers import Server, environment, fetch, uvicorn
from .stores.redis_servers import RedisServer, redis_server

pytestmark = pytest.mark.real

PROCESSES = 3
LIMIT = 24
WINDOW = 1.0
CLIENTS = 3
"""Threads that call each process, where one is not enough to see who waits."""
PATIENCE = 0.05
"""Seconds that a call waits for Redis where RATE_LIMIT_REDIS_TIMEOUT_MS says nothing."""
STEP = 1 / 256
"""The part of a window by which a call may count longer than it must."""

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


class Call(NamedTuple):
    """What a client saw: when it sent and when it had the answer (one clock for all processes), and the status."""

    sent: float
    answered: float
    status: int


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server to be killed."""
    with redis_server(tmp_path / "redis") as server:
        yield server


@contextmanager
def workers(folder: Path, settings: Mapping[str, str], count: int = PROCESSES) -> Iterator[list[Server]]:
    """As many processes as a gateway would have, each on a port of its own."""
    with ExitStack() as stack:
        found = []
        for number in range(count):
            own = folder / f"worker{number}"
            env = environment(own, WEB_CONCURRENCY=str(count), **settings)
            found.append(stack.enter_context(uvicorn("tests.rates.serving:app", env, own, "--workers", "1")))
        yield found


class Hammer:
    """Threads that call each worker all the time."""

    def __init__(self, urls: Sequence[str], pause: float = 0.01) -> None:
        self.calls: list[Call] = []
        self._pause = pause
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(url,), daemon=True) for url in urls]

    def _work(self, url: str) -> None:
        while not self._stop.is_set():
            sent = time.monotonic()
            answer = fetch(f"{url}/v1/chat/completions", CHAT, key=None)
            self.calls.append(Call(sent, time.monotonic(), answer.status))
            time.sleep(self._pause)

    def __enter__(self) -> Hammer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def after(self, count: int) -> None:
        """Wait until so many more calls were answered."""
        goal = len(self.calls) + count
        self.until(lambda: len(self.calls) >= goal)

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.02)


def most_in_a_window(calls: Sequence[Call]) -> int:
    """The most calls that were surely admitted within one window: sent after its begin, answered before its end."""
    inside = sorted((call for call in calls if call.status == 200), key=lambda call: call.sent)
    ends = [call.answered for call in inside]
    return max(
        (sum(1 for end in ends[at:] if end - call.sent < WINDOW - 1e-4) for at, call in enumerate(inside)), default=0
    )


def refused_too_early(calls: Sequence[Call], limit: int) -> int:
    """Calls that were refused although fewer than the limit can have been in the window."""
    admitted = [call for call in calls if call.status == 200]
    return sum(
        1
        for call in calls
        if call.status == 429
        and sum(
            1 for one in admitted if one.answered > call.sent - WINDOW * (1 + STEP) - 0.001 and one.sent < call.answered
        )
        < limit
    )


def settings_of(redis: RedisServer) -> dict[str, str]:
    """The limit in Redis, which is given time: the machine may be busy."""
    return {
        "REDIS_URL": redis.url,
        "RATE_LIMIT_MAX_REQUESTS": str(LIMIT),
        "RATE_LIMIT_WINDOW_MS": str(int(WINDOW * 1000)),
        "RATE_LIMIT_REDIS_TIMEOUT_MS": "10000",
    }


def test_all_processes_share_one_limit(redis: RedisServer, tmp_path: Path) -> None:
    """Never more than it in any window, never fewer than allowed."""
    with workers(tmp_path, settings_of(redis)) as found, Hammer([one.url for one in found]) as hammer:
        hammer.until(lambda: sum(call.status == 200 for call in hammer.calls) >= 3 * LIMIT)
    assert {call.status for call in hammer.calls} == {200, 429}
    assert most_in_a_window(hammer.calls) == LIMIT
    assert refused_too_early(hammer.calls, LIMIT) == 0


def test_without_redis_the_shares_are_no_more_than_the_limit(tmp_path: Path) -> None:
    """Each process has a third."""
    settings = {"RATE_LIMIT_MAX_REQUESTS": str(LIMIT), "RATE_LIMIT_WINDOW_MS": str(int(WINDOW * 1000))}
    with workers(tmp_path, settings) as found, Hammer([one.url for one in found]) as hammer:
        hammer.until(lambda: sum(call.status == 200 for call in hammer.calls) >= 3 * LIMIT)
    assert {call.status for call in hammer.calls} == {200, 429}
    assert most_in_a_window(hammer.calls) == LIMIT


def test_redis_killed_in_the_middle_and_started_again(redis: RedisServer, tmp_path: Path) -> None:
    """No call fails; while it is away each has its share; it comes back without its data, and is told."""
    with workers(tmp_path, settings_of(redis)) as found, Hammer([one.url for one in found]) as hammer:
        hammer.until(lambda: sum(call.status == 200 for call in hammer.calls) >= LIMIT + LIMIT // 2)
        redis.kill()
        killed = time.monotonic()
        hammer.until(lambda: all("this process's own share" in one.err for one in found))
        hammer.until(lambda: time.monotonic() > killed + 2.5 * WINDOW)
        redis.start()
        back = time.monotonic()
        hammer.until(lambda: all("rate limits are shared" in one.err for one in found))
        hammer.until(lambda: time.monotonic() > back + 3 * WINDOW)
    assert {call.status for call in hammer.calls} == {200, 429}
    before = [call for call in hammer.calls if call.answered < killed]
    after = [call for call in hammer.calls if call.sent > killed + WINDOW]
    assert most_in_a_window(before) <= LIMIT
    assert most_in_a_window(after) <= LIMIT  # its return is in here
    # Across the kill each had its share of what was left when it last heard: no more than twice the limit in any case.
    assert most_in_a_window(hammer.calls) <= 2 * LIMIT
    gone = [call for call in after if call.answered < back]
    assert sum(call.status == 200 for call in gone) >= LIMIT  # it goes on
    late = [call for call in hammer.calls if call.sent > back + 2 * WINDOW]
    assert sum(call.status == 200 for call in late) >= LIMIT // 2


def test_a_frozen_redis_is_waited_for_once(redis: RedisServer, tmp_path: Path) -> None:
    """With the patience that is set by default: then each of two processes goes on with its share, and comes back to it."""
    settings = {name: text for name, text in settings_of(redis).items() if name != "RATE_LIMIT_REDIS_TIMEOUT_MS"}
    lost, found_again = "this process's own share", "rate limits are shared"
    with workers(tmp_path, settings, 2) as found, Hammer([one.url for one in found for _ in range(CLIENTS)]) as hammer:
        hammer.until(lambda: sum(call.status == 200 for call in hammer.calls) >= LIMIT + LIMIT // 2)
        hammer.until(lambda: all(one.err.count(lost) == one.err.count(found_again) for one in found))
        before = [one.err.count(lost) for one in found]
        redis.freeze()
        frozen = time.monotonic()
        try:
            hammer.until(lambda: all(one.err.count(lost) > one.err.count(found_again) for one in found))
            hammer.until(lambda: time.monotonic() > frozen + 3.5 * WINDOW)
            times = [one.err.count(lost) - had for one, had in zip(found, before, strict=True)]
            thawed = time.monotonic()
        finally:
            redis.thaw()
        hammer.until(lambda: all(one.err.count(lost) == one.err.count(found_again) for one in found))
        back = time.monotonic()
        hammer.until(lambda: time.monotonic() > back + 3 * WINDOW)
    assert times == [1, 1]  # given up once by each, and not tried by a call again
    assert {call.status for call in hammer.calls} == {200, 429}
    during = [call for call in hammer.calls if call.sent > frozen and call.answered < thawed]
    waited = [call for call in during if call.answered - call.sent >= PATIENCE]
    # Each client's call that was under way, or began until its process gave up; and one each for a machine that is busy.
    assert len(waited) <= 2 * len(found) * CLIENTS < len(during) // 10
    gone = [call for call in during if call.sent > frozen + WINDOW]
    assert sum(call.status == 200 for call in gone) >= LIMIT  # it goes on
    assert most_in_a_window(gone) <= LIMIT  # by shares
    assert most_in_a_window(hammer.calls) <= 2 * LIMIT
    late = [call for call in hammer.calls if call.sent > back + WINDOW]
    assert sum(call.status == 200 for call in late) >= LIMIT // 2


def test_a_killed_workers_places_come_back(redis: RedisServer, tmp_path: Path) -> None:
    """Its running call is over, and nobody says so: the lease ends."""
    settings = {
        "REDIS_URL": redis.url,
        "RATE_LIMIT_MAX_CONCURRENCY": "1",
        "RATE_LIMIT_MAX_REQUESTS": "100000",
        "RATE_LIMIT_REDIS_TIMEOUT_MS": "10000",
        "LEASE_SECONDS": "3",
        "SLOW_SECONDS": "60",
    }
    with workers(tmp_path, settings, 2) as (doomed, survivor):
        holding = threading.Thread(target=_hold, args=(f"{doomed.url}/v1/slow",), daemon=True)
        holding.start()
        url = f"{survivor.url}/v1/models"
        _until(lambda: fetch(url, key=None).status == 429)
        os.kill(doomed.process.pid, signal.SIGKILL)
        doomed.process.wait()
        _until(lambda: fetch(url, key=None).status == 200)
        holding.join(10)


def _hold(url: str) -> None:
    """A call that its server does not come to the end of."""
    with suppress(OSError, HTTPException):
        fetch(url, key=None, method="GET")


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
