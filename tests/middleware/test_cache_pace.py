"""Who sets the pace of a call that several read, and how much of it is held."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from typing import Any

from asgi_llm_gateway.middleware._cache_flight import AHEAD
from asgi_llm_gateway.middleware.cache import CacheMiddleware

from ..caching import JSON, SSE, asking, event
from ..conversation import Talk, call, scope_of
from ..upstream import until


def talk(app: Any) -> Any:
    """A stream under way."""
    return call(app, asking("chat", stream=True))


async def started(talk: Talk, events: int) -> None:
    """So many messages have come, the start included."""
    for _ in range(events):
        await talk.next()


class Torrent:
    """An app that streams without an end, as fast as it is let."""

    def __init__(self, piece: int = 4096) -> None:
        self.piece = event({"x": "y" * piece})
        self.sent = 0
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        self.calls += 1
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [SSE]})
        while True:
            await send({"type": "http.response.body", "body": self.piece, "more_body": True})
            self.sent += len(self.piece)
            await asyncio.sleep(0)


async def drain(talk: Talk, until_: int) -> int:
    """Read so many bytes, at least."""
    size = 0
    while size < until_:
        size += len((await talk.next()).get("body", b""))
    return size


async def test_a_slow_follower_slows_nobody_and_is_cut_off_at_last() -> None:
    """It reads from the kept copy; of an answer too long to keep it gets an error in place of what it missed."""
    app = CacheMiddleware(torrent := Torrent(), max_answer=400_000)
    async with talk(app) as first, talk(app) as slow:
        await started(first, 2)
        await started(slow, 1)
        slow.pause()
        await drain(first, 3_000_000)
        slow.resume()
        answer = await slow.answer()
        assert answer.complete
        assert b"read_too_slowly" in answer.body
        assert len(answer.body) < 600_000
        await drain(first, 1_000_000)
        await first.hang_up()
    assert torrent.calls == 1


async def test_the_one_who_pays_is_waited_for() -> None:
    """A slow reader slows its own call: not more than the kept part is ahead of it, and it loses nothing."""
    app = CacheMiddleware(torrent := Torrent(), max_answer=400_000)
    async with talk(app) as first, talk(app) as fast:
        await started(first, 2)
        await started(fast, 2)
        first.pause()
        await asyncio.sleep(0.3)
        ahead = torrent.sent
        await asyncio.sleep(0.2)
        assert torrent.sent == ahead <= 400_000
        first.resume()
        await drain(first, 2_000_000)
        await drain(fast, 2_000_000)
        leaving = asyncio.ensure_future(first.hang_up())
        await drain(fast, 2_000_000)
        await fast.hang_up()
        await leaving


async def test_alone_the_app_is_hardly_ahead_of_its_reader() -> None:
    """As it would be without a cache."""
    app = CacheMiddleware(torrent := Torrent())
    async with talk(app) as first:
        await started(first, 2)
        first.pause()
        await asyncio.sleep(0.3)
        assert torrent.sent <= 2 * AHEAD + 3 * len(torrent.piece)
        await first.hang_up()


async def test_memory_stays_flat_over_a_stream_without_an_end() -> None:
    """Only so much of it is held, however many read it."""
    app = CacheMiddleware(Torrent(), max_answer=100_000)
    read = [0, 0, 0]
    enough = asyncio.Event()

    def reader(at: int) -> Any:
        raw = [json.dumps(asking("chat", stream=True)).encode()]

        async def receive() -> Any:
            if raw:
                return {"type": "http.request", "body": raw.pop()}
            await enough.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            read[at] += len(message.get("body", b""))

        return app(scope_of(headers=[JSON]), receive, send)

    tasks = [asyncio.ensure_future(reader(at)) for at in range(3)]
    await until(lambda: min(read) > 1_000_000)
    gc.collect()
    tracemalloc.start()
    try:
        await until(lambda: min(read) > 20_000_000, 60)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    enough.set()
    await asyncio.gather(*tasks)
    assert held < 400_000
    assert peak < 1_500_000
