"""How often: requests per window, per tenant."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest

from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware import _window
from asgi_llm_gateway.middleware._window import WindowLimiter, WindowStorage
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware, go_duration
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.stores.memory import MemoryStore

from ..conversation import CHAT, JSON, ask, get
from . import Gate, Stranger

LONG = 1e7
"""A window in seconds that no test outlives."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time for the windows, moved by hand: the one item of a list. Also what ``limits`` itself asks."""
    now = [1_000_000.0]

    class Time:
        @staticmethod
        def time() -> float:
            return now[0]

    monkeypatch.setattr(_window, "time", Time)
    monkeypatch.setattr("limits.aio.strategies.time", Time)
    return now


def setting(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Settings from the environment."""
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    forget()


async def test_alone_it_takes_its_limit_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """``RateLimitMiddleware(app)`` and nothing else; one tenant for all, called default."""
    setting(monkeypatch, RATE_LIMIT_MAX_REQUESTS="3", RATE_LIMIT_WINDOW_MS=str(int(LONG * 1000)))
    app = Stranger()
    layer = RateLimitMiddleware(app)
    assert [(await ask(layer, CHAT)).status for _ in range(5)] == [200, 200, 200, 429, 429]
    assert app.calls == 3


async def test_alone_without_any_setting_it_serves() -> None:
    """The default is 600 in a minute."""
    answer = await ask(RateLimitMiddleware(Stranger()), CHAT)
    assert answer.status == 200
    assert answer.headers["x-ratelimit-limit-requests"] == "600"
    assert answer.headers["x-ratelimit-remaining-requests"] == "599"


async def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENABLE_RATE_LIMIT=false: nothing is counted, no header is set."""
    setting(monkeypatch, ENABLE_RATE_LIMIT="false", RATE_LIMIT_MAX_REQUESTS="1")
    layer = RateLimitMiddleware(Stranger())
    for _ in range(3):
        answer = await ask(layer, CHAT)
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


async def test_a_limit_in_code_stands_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes ``requests=1`` means it."""
    setting(monkeypatch, ENABLE_RATE_LIMIT="false")
    layer = RateLimitMiddleware(Stranger(), requests=1, window=LONG)
    assert [(await ask(layer, CHAT)).status for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(("workers", "requests", "each"), [("4", 10, 2), ("3", 9, 3), ("8", 2, 1)])
async def test_the_limit_is_divided_among_the_workers(
    monkeypatch: pytest.MonkeyPatch, workers: str, requests: int, each: int
) -> None:
    """More workers never mean more rate, and every worker admits at least one."""
    setting(monkeypatch, WEB_CONCURRENCY=workers)
    layer = RateLimitMiddleware(Stranger(), requests=requests, window=LONG)
    statuses = [(await ask(layer, CHAT)).status for _ in range(each + 2)]
    assert statuses == [200] * each + [429] * 2


async def test_the_limit_holds_under_a_thousand_calls_at_once() -> None:
    """Exactly so many are admitted, however they interleave."""
    app = Stranger()
    gate = Gate(app)
    layer = RateLimitMiddleware(gate, requests=100, window=LONG)
    calls = [asyncio.ensure_future(ask(layer, CHAT)) for _ in range(1000)]
    refused = asyncio.Event()
    for one in calls:
        one.add_done_callback(lambda _: refused.set() if sum(call.done() for call in calls) == 900 else None)
    await refused.wait()
    assert gate.waiting == 100
    gate.open.set()
    answers = await asyncio.gather(*calls)
    assert sorted(answer.status for answer in answers) == [200] * 100 + [429] * 900
    assert app.calls == 100
    remaining = sorted(
        int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers if answer.status == 200
    )
    assert remaining == list(range(100))


async def test_a_refusal_says_when_to_come_back() -> None:
    """429 with ``retry-after`` in whole seconds and in milliseconds, as the SDKs read them, and no call."""
    app = Stranger()
    layer = RateLimitMiddleware(app, requests=1, window=LONG)
    await ask(layer, CHAT)
    answer = await ask(layer, CHAT)
    assert (answer.status, answer.error["type"], answer.error["code"]) == (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
    )
    seconds, millis = int(answer.headers["retry-after"]), int(answer.headers["retry-after-ms"])
    assert 0 < seconds <= 2 * LONG
    assert seconds == math.ceil(millis / 1000)
    assert answer.headers["x-ratelimit-limit-requests"] == "1"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert answer.headers["x-ratelimit-reset-requests"]
    assert "1 requests" in answer.error["message"]
    assert app.calls == 1


async def test_a_refusal_on_messages_is_anthropics() -> None:
    """In the caller's dialect."""
    layer = RateLimitMiddleware(Stranger(), requests=1, window=LONG)
    await ask(layer, CHAT, "/v1/messages")
    assert (await ask(layer, CHAT, "/v1/messages")).json()["error"]["type"] == "rate_limit_error"


async def test_each_tenant_has_a_window_of_its_own() -> None:
    """One tenant's noise does not slow another."""
    store = MemoryStore()
    layer = TenantMiddleware(RateLimitMiddleware(Stranger(), requests=1, window=LONG), store=store)
    headers = []
    for name in ("a", "b"):
        await store.add_tenant(Tenant(name))
        key, secret = new_key(name)
        await store.add_key(key)
        headers.append([JSON, (b"x-api-key", secret.encode())])
    statuses = [(await ask(layer, CHAT, headers=headers[who])).status for who in (0, 0, 1, 1)]
    assert statuses == [200, 429, 200, 429]


async def test_authenticated_paths_count_and_the_body_is_left_alone() -> None:
    """``/v1/models`` counts; so does a body that no one could parse; other routes do not."""
    app = Stranger()
    layer = RateLimitMiddleware(app, requests=2, window=LONG)
    assert (await get(layer, "/health")).status == 200
    assert (await get(layer, "/v1/models")).status == 200
    assert (await ask(layer, b"not json")).status == 200
    assert app.bodies[-1] == b"not json"
    assert (await get(layer, "/v1/models")).status == 429
    assert (await get(layer, "/health")).status == 200


async def test_the_window_slides(clock: list[float]) -> None:
    """What was admitted in the window before counts by the share of it that is still in sight."""
    limiter = WindowLimiter(10, 10.0)
    assert [(await limiter.hit("a")).admitted for _ in range(11)] == [True] * 10 + [False]
    clock[0] += 10  # the next window has begun; all of the last one is still in sight
    assert not (await limiter.hit("a")).admitted
    clock[0] += 5  # half of it
    assert [(await limiter.hit("a")).admitted for _ in range(6)] == [True] * 5 + [False]
    clock[0] += 15  # a window that nobody used
    window = await limiter.hit("a")
    assert (window.admitted, window.limit, window.seconds) == (True, 10, 10.0)


async def test_a_refused_caller_is_admitted_after_the_time_told(clock: list[float]) -> None:
    """``reset`` is what must pass, to the millisecond."""
    limiter = WindowLimiter(2, 10.0)
    for at in (0.0, 3.0, 1.0):
        clock[0] += at
        window = await limiter.hit("a")
    assert not window.admitted
    assert 0 < window.reset <= 20
    clock[0] += window.reset + 0.001
    assert (await limiter.hit("a")).admitted


async def test_windows_in_milliseconds_work(clock: list[float]) -> None:
    """RATE_LIMIT_WINDOW_MS need not be whole seconds."""
    limiter = WindowLimiter(1, 0.25)
    assert (await limiter.hit("a")).admitted
    assert not (await limiter.hit("a")).admitted
    clock[0] += 0.5
    assert (await limiter.hit("a")).admitted


async def test_callers_that_are_gone_are_forgotten(clock: list[float]) -> None:
    """Memory is bounded by the callers of two windows."""
    storage = WindowStorage()
    limiter = WindowLimiter(10, 10.0, storage)
    for at in range(100):
        await limiter.hit(f"tenant-{at}")
    clock[0] += 30
    await limiter.hit("new")
    assert len(storage._counts) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"0ms"),
        (-1, b"0ms"),
        (0.0001, b"1ms"),
        (0.086, b"86ms"),
        (0.9995, b"1s"),
        (1, b"1s"),
        (1.5, b"1.5s"),
        (59.999, b"59.999s"),
        (60, b"1m0s"),
        (360, b"6m0s"),
        (61.25, b"1m1.25s"),
        (3600, b"1h0m0s"),
        (3661, b"1h1m1s"),
        (100_000, b"27h46m40s"),
    ],
)
def test_a_duration_is_written_as_go_does(seconds: float, text: bytes) -> None:
    """OpenAI's headers hold "1s", "6m0s", "86ms"."""
    assert go_duration(seconds) == text


@pytest.mark.parametrize("settings", [{"requests": 0}, {"requests": -1}, {"window": 0}, {"window": -1.0}])
def test_a_senseless_limit_is_refused_when_it_is_made(settings: dict[str, Any]) -> None:
    """Not at the first call."""
    with pytest.raises(ValueError, match=json.dumps(next(iter(settings.values())))):
        RateLimitMiddleware(Stranger(), **settings)
