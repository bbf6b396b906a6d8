"""Calls over their limit that wait for their turn: in order, bounded, for so long, and not for those who left."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from asgi_llm_gateway.exchange import ClientGone
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware._rate_queue import Lines, Waiter
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.rates.tally import TALLY, Tally
from asgi_llm_gateway.rates.wants import Stand, Verdict, want
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.stores.memory import MemoryStore

from ..conversation import CHAT, JSON, Answer, ask, call
from ..upstream import until
from . import Stranger, Streamer, words

LONG = 1e6
PATIENT = 60.0


class Turns:
    """An app that remembers in which order it was called, and answers when it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._may_end: dict[str, asyncio.Event] = {}

    def end(self, name: str) -> None:
        """Let a call come to its end."""
        self._may_end.setdefault(name, asyncio.Event()).set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        message = await receive()
        name = json.loads(message["body"])["user"] if message["body"] else "get"
        self.begun.append(name)
        await self._may_end.setdefault(name, asyncio.Event()).wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name.encode()})


def named(name: str) -> dict[str, Any]:
    """A request by which the app knows the call."""
    return {**CHAT, "user": name, "max_tokens": 10}


def waiting(layer: RateLimitMiddleware) -> int:
    """Calls in the lines."""
    here = layer._loops.get()
    return 0 if here is None else len(here.lines)


async def send_in_order(
    layer: RateLimitMiddleware, app: Turns, names: str, *, running: int
) -> list[asyncio.Task[Answer]]:
    """Start calls one after the other: the first ``running`` run, the others wait."""
    found = []
    for number, name in enumerate(names, 1):
        found.append(asyncio.create_task(ask(layer, named(name))))
        await until(lambda n=number: (len(app.begun), waiting(layer)) == (min(n, running), max(0, n - running)))  # type: ignore[misc]
    return found


async def test_who_came_first_is_served_first() -> None:
    """And everybody is, as places become free."""
    app = Turns()
    layer = RateLimitMiddleware(app, concurrency=2, queue_seconds=PATIENT)
    calls = await send_in_order(layer, app, "abcdef", running=2)
    for number, name in enumerate("abcdef"):
        await until(lambda n=number: len(app.begun) >= min(6, n + 2))  # type: ignore[misc]
        app.end(name)
        assert (await calls[number]).status == 200
    assert app.begun == list("abcdef")
    assert waiting(layer) == 0


async def test_a_newcomer_does_not_pass_by_those_who_wait() -> None:
    """Although a place is free at that moment."""
    app = Turns()
    layer = RateLimitMiddleware(app, concurrency=1, queue_seconds=PATIENT)
    calls = await send_in_order(layer, app, "ab", running=1)
    app.end("a")
    await calls[0]  # its place is free, and "b" has not been woken yet
    late = asyncio.create_task(ask(layer, named("c")))
    for name in "bc":
        app.end(name)
    assert [(await one).status for one in (*calls, late)] == [200] * 3
    assert app.begun == ["a", "b", "c"]


async def test_one_tenants_line_does_not_delay_another() -> None:
    """Each has its own."""
    store, app = MemoryStore(), Turns()
    layer = RateLimitMiddleware(app, concurrency=1, queue_seconds=PATIENT)
    whole = TenantMiddleware(layer, store=store)
    headers = {}
    for tenant in "ab":
        await store.add_tenant(Tenant(tenant))
        key, secret = new_key(tenant)
        await store.add_key(key)
        headers[tenant] = [JSON, (b"x-api-key", secret.encode())]
    first = [asyncio.create_task(ask(whole, named(f"a{at}"), headers=headers["a"])) for at in range(5)]
    await until(lambda: waiting(layer) == 4)
    app.end("b")
    assert (await ask(whole, named("b"), headers=headers["b"])).status == 200
    for at in range(5):
        app.end(f"a{at}")
    assert [(await one).status for one in first] == [200] * 5


async def test_a_line_is_bounded() -> None:
    """Whoever would be too many is refused at once."""
    app = Turns()
    layer = RateLimitMiddleware(app, concurrency=1, queue_seconds=PATIENT, queue_size=2)
    calls = await send_in_order(layer, app, "abc", running=1)
    refused = await ask(layer, named("d"))
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers["retry-after-ms"] == "1000"
    for name in "abc":
        app.end(name)
    assert [(await one).status for one in calls] == [200] * 3


async def test_a_wait_ends_at_its_deadline() -> None:
    """With the refusal that there would have been at once."""
    app = Turns()
    layer = RateLimitMiddleware(app, concurrency=1, queue_seconds=0.05)
    calls = await send_in_order(layer, app, "a", running=1)
    gave_up = TALLY.gave_up
    refused = await asyncio.gather(*(ask(layer, named(name)) for name in "bcd"))
    assert [one.status for one in refused] == [429] * 3
    assert "1 calls at once" in refused[0].error["message"]
    assert TALLY.gave_up == gave_up + 3
    app.end("a")
    assert (await calls[0]).status == 200
    assert waiting(layer) == 0


async def test_who_can_not_be_served_in_time_does_not_wait() -> None:
    """A window of requests tells when it has room again; a request larger than its limit never fits."""
    layer = RateLimitMiddleware(Stranger(), requests=1, tokens=1000, window=LONG, queue_seconds=PATIENT)
    assert (await ask(layer, {**CHAT, "max_tokens": 5000})).status == 429
    assert (await ask(layer, CHAT)).status == 200
    assert (await ask(layer, CHAT)).status == 429


async def test_a_window_that_has_room_in_time_is_waited_for() -> None:
    """The call goes out as soon as the oldest has left the window."""
    layer = RateLimitMiddleware(Stranger(), requests=2, window=0.2, queue_seconds=PATIENT)
    answers = await asyncio.gather(*(ask(layer, CHAT) for _ in range(7)))
    assert [answer.status for answer in answers] == [200] * 7


async def test_tokens_that_are_given_back_are_waited_for() -> None:
    """Calls take less than they were admitted on; nobody waits for the window then."""
    app = Turns()
    each = -(-len(json.dumps(named("a"))) // 4) + 10  # of which an answer of one letter takes 9 less
    layer = RateLimitMiddleware(app, requests=100, tokens=3 * each - 5, window=LONG, queue_seconds=PATIENT)
    calls = await send_in_order(layer, app, "abc", running=2)
    app.end("a")
    assert (await calls[0]).status == 200
    await until(lambda: app.begun == ["a", "b", "c"])
    for name in "bc":
        app.end(name)
    assert [(await one).status for one in calls] == [200] * 3


@pytest.mark.parametrize("place", ["first", "second"])
async def test_who_hangs_up_leaves_the_line_at_once(place: str) -> None:
    """Nothing was taken for it, and those behind move up."""
    app = Turns()
    layer = RateLimitMiddleware(app, concurrency=1, queue_seconds=PATIENT)
    left = TALLY.left
    first = await send_in_order(layer, app, "a", running=1)
    async with call(layer, named("b")) as b, call(layer, named("c")) as c:
        await until(lambda: waiting(layer) == 2)
        gone, stays, name = (b, c, "c") if place == "first" else (c, b, "b")
        await gone.hang_up()
        assert not gone.messages
        assert (waiting(layer), TALLY.left) == (1, left + 1)
        app.end("a")
        app.end(name)
        assert (await stays.answer()).status == 200
    assert app.begun == ["a", name]
    assert (await first[0]).status == 200


async def test_a_call_that_is_cancelled_in_the_line_leaves_it() -> None:
    """As a server does at its shutdown."""
    app = Turns()
    layer = RateLimitMiddleware(app, concurrency=1, queue_seconds=PATIENT)
    calls = await send_in_order(layer, app, "abc", running=1)
    calls[1].cancel()
    await until(lambda: waiting(layer) == 1)
    app.end("a")
    app.end("c")
    assert [(await calls[0]).status, (await calls[2]).status] == [200, 200]
    assert app.begun == ["a", "c"]


@pytest.mark.parametrize("cut", [0, 5])
async def test_the_body_is_whole_after_a_wait(cut: int) -> None:
    """Of a call whose body nobody reads before its app, too, and in the pieces in which it came."""
    busy, app = Streamer(words(1), endless=True), Stranger()
    layer = RateLimitMiddleware(busy, concurrency=1, queue_seconds=PATIENT, paths={"/ask": "metered"})
    async with call(layer, {**CHAT, "stream": True}) as first:
        await first.next()
        layer.app = app
        async with call(layer, b"a body that is no JSON", "/ask", cut=cut) as second:
            await until(lambda: waiting(layer) == 1)
            await first.hang_up()
            assert (await second.answer()).status == 200
    assert app.bodies == [b"a body that is no JSON"]


async def test_a_call_without_a_body_that_hangs_up_leaves_the_line() -> None:
    """It is listened to all the same."""
    app = Turns()
    layer = RateLimitMiddleware(app, concurrency=1, queue_seconds=PATIENT)
    first = await send_in_order(layer, app, "a", running=1)
    async with call(layer, b"", "/v1/models", method="GET", headers=()) as other:
        await until(lambda: waiting(layer) == 1)
        await other.hang_up()
    assert waiting(layer) == 0
    app.end("a")
    assert (await first[0]).status == 200
    assert app.begun == ["a"]


async def test_the_wait_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """RATE_LIMIT_QUEUE_MS, with the other limits of the environment."""
    for name, value in {
        "RATE_LIMIT_QUEUE_MS": "60000",
        "RATE_LIMIT_MAX_CONCURRENCY": "1",
        "RATE_LIMIT_MAX_TOKENS": "500",
    }.items():
        monkeypatch.setenv(name, value)
    forget()
    app = Turns()
    layer = RateLimitMiddleware(app)
    calls = await send_in_order(layer, app, "ab", running=1)
    app.end("a")
    app.end("b")
    assert [(await one).status for one in calls] == [200, 200]
    assert (await calls[0]).headers["x-ratelimit-limit-tokens"] == "500"


async def test_only_the_first_of_a_line_asks() -> None:
    """Also when another is woken while there is room."""
    lines, asked = Lines(PATIENT, 10, Tally()), []
    waiters = [Waiter([want("calls", "a", "", 1, 1)]) for _ in range(2)]

    async def ask_as(number: int) -> tuple[Verdict, str | None]:
        asked.append(number)
        return Verdict(False, [Stand(1, 0, 0.0, 1000.0)]), None

    tasks = [
        asyncio.create_task(lines.wait("a", waiter, lambda n=number: ask_as(n), None))  # type: ignore[misc]
        for number, waiter in enumerate(waiters)
    ]
    await until(lambda: len(lines) == 2)
    for _ in range(5):
        waiters[1].poke()
        await asyncio.sleep(0)
    assert set(asked) == {0}
    waiters[0].leave()
    with pytest.raises(ClientGone):
        await tasks[0]
    await until(lambda: asked[-1] == 1)
    waiters[1].leave()
    with pytest.raises(ClientGone):
        await tasks[1]


async def test_a_client_that_left_while_it_was_admitted_gives_its_place_back() -> None:
    """The one who asks may be told of both in the same moment."""
    lines = Lines(PATIENT, 10, Tally())
    waiter = Waiter([want("calls", "a", "", 1, 1)])
    asked = asyncio.Event()

    async def ask_late() -> tuple[Verdict, str | None]:
        asked.set()
        return Verdict(False, (Stand(1, 0, 0.0, 1.0),)), None

    task = asyncio.create_task(lines.wait("a", waiter, ask_late, None))
    await asked.wait()
    waiter.leave()
    with pytest.raises(ClientGone):
        await task
    assert not lines.busy("a")
