"""A client that hangs up, at every point of an answer: its call is settled once, nothing stays held, the upstream is closed."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from asgi_llm_gateway._closing import on_close
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.proxy.transfer import Timeouts
from asgi_llm_gateway.records import CallRecord, Hold, Price
from asgi_llm_gateway.stores.base import CallLog, Ledger
from asgi_llm_gateway.stores.calllog import SQLCallLog
from asgi_llm_gateway.stores.memory import MemoryLedger
from asgi_llm_gateway.stores.migrate import upgrade
from asgi_llm_gateway.stores.sqlite import SQLiteLedger

from .conversation import Talk, call
from .servers import serving
from .upstream import DONE, STREAM_HEAD, Peer, chunk, until, upstream, usage_event, whole, word

# A prompt token costs one nano-USD, a completion token two; the name has no vocabulary, so that estimates are by length.
PRICES = PriceTable({"m": Price(1_000_000, 2_000_000)})
PATIENT = Timeouts(connect=20, write=20, first_byte=20, idle=20, total=60)
TENANT = "default"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}

EVENTS = [word("a "), word("b "), word("c "), word("d "), word("", "stop"), usage_event(), DONE]
WORDS = 4
POINTS = {
    "before the headers": None,
    "after no event": 0,
    "after one event": 1,
    "in the middle": 2,
    "after the last word": 5,
    "after the usage": 6,
    "at [DONE]": 7,
}
"""After how many events the client leaves."""


class Booked(NamedTuple):
    """What is to be booked of a call."""

    cost: int
    estimated: bool
    aborted: bool


def prompt(body: Any) -> int:
    """The estimate of a prompt: a token for four bytes of the body."""
    return -(-len(json.dumps(body)) // 4)


def booked(seen: int | None) -> Booked:
    """Of a stream: the usage, if that came (3 and 5 tokens); else the prompt's estimate and a token for each word."""
    if seen is not None and seen >= 6:
        return Booked(3 + 2 * 5, False, False)
    return Booked(prompt(STREAM) + 2 * min(seen or 0, WORDS), True, True)


# -- ledgers -----------------------------------------------------------------------------------------------------------


class FailsOnce(MemoryLedger):
    """Does not answer to the first settle of each hold."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: set[str] = set()

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger."""
        if hold.id not in self.failed:
            self.failed.add(hold.id)
            raise StoreError("no answer")
        return await super().settle(hold, record)


class Books:
    """A ledger for the app, and a look into it from outside."""

    def __init__(self, kind: str | MemoryLedger, folder: Path) -> None:
        self.ledger: Ledger
        self._reader: Ledger
        self._log: CallLog
        if kind == "sqlite":
            path = folder / "gateway.db"
            upgrade(f"sqlite:///{path}")
            self.ledger, self._reader = SQLiteLedger(path), SQLiteLedger(path)
            self._log = SQLCallLog(f"sqlite+aiosqlite:///{path}")
            for opened in (self.ledger, self._reader, self._log):
                on_close(opened.close)
        else:
            if isinstance(kind, str):
                kind = FailsOnce() if kind == "fails once" else MemoryLedger()
            self.ledger = self._reader = self._log = kind

    async def held(self) -> int:
        """What is held."""
        return (await self._reader.balance(TENANT)).held

    async def settled(self, count: int) -> list[CallRecord]:
        """The records when there are so many, oldest first; nothing is held then, and the sums are one."""
        async with asyncio.timeout(20):
            while True:
                records = list((await self._log.records(TENANT)).records)[::-1]
                if len(records) >= count:
                    break
                await asyncio.sleep(0.01)
        balance, stats = await self._reader.balance(TENANT), await self._log.stats(tenant=TENANT)
        assert (balance.spent, balance.held, balance.tokens_held) == (sum(one.cost for one in records), 0, 0)
        assert (stats.cost, stats.requests) == (balance.spent, count)
        return records


def of(record: CallRecord) -> Booked:
    """What was booked."""
    return Booked(record.cost, record.usage.estimated, record.aborted)


KINDS = pytest.mark.parametrize("kind", ["memory", "sqlite", "fails once"])


# -- who answers -------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """The beginning of an answer, after which nothing more is said; ``pieces`` is ``None`` where not even the head comes."""

    pieces: list[bytes] | None
    json: bool = False


def stream_to(seen: int | None) -> Part:
    """A stream up to the point at which the client leaves."""
    return Part(None if seen is None else EVENTS[:seen])


class Scene(NamedTuple):
    """An app that answers each call with the next part, how many calls have come so far, and how many were given up."""

    app: Any
    reached: Callable[[], int]
    closed: Callable[[], int]


def on_the_wire(part: Part) -> list[bytes]:
    """The part, as a provider sends it."""
    if part.pieces is None:
        return []
    if part.json:
        return [whole(b"".join(part.pieces))[:-40]]
    return [STREAM_HEAD, *map(chunk, part.pieces)]


@asynccontextmanager
async def proxied(parts: list[Part]) -> AsyncIterator[Scene]:
    """ProxyApp, and a provider behind it."""
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        part = parts[sent]
        await peer.request()
        await peer.send(*on_the_wire(part))
        sent += 1
        await peer.stall()

    async with upstream(script) as provider:
        router = Router([OpenAIAdapter("own", provider.url(), "sk-key")], {"m": ["own/m"]})
        app = ProxyApp(router=router, timeouts=PATIENT)
        yield Scene(app, lambda: sent, lambda: provider.aborted)
        await until(lambda: provider.open == 0)


class Stranger:
    """Somebody else's app, which waits for the client to leave as the specification says."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts
        self.reached = self.left = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return
        assert (await receive())["type"] == "http.request"
        pieces, is_json = self._parts[self.reached]
        if pieces is not None:
            kind = b"application/json" if is_json else b"text/event-stream"
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
            for piece in pieces:
                await send({"type": "http.response.body", "body": piece[:-40] if is_json else piece, "more_body": True})
        self.reached += 1
        assert (await receive())["type"] == "http.disconnect"
        self.left += 1


@asynccontextmanager
async def strange(parts: list[Part]) -> AsyncIterator[Scene]:
    """An app that knows nothing of the gateway."""
    app = Stranger(parts)
    yield Scene(app, lambda: app.reached, lambda: app.left)


APPS = pytest.mark.parametrize("scene", [proxied, strange])
Staged = Callable[[list[Part]], AbstractAsyncContextManager[Scene]]


# -- in process --------------------------------------------------------------------------------------------------------


async def see(talk: Talk, seen: int | None) -> None:
    """Read as far as so many events; the head of a provider's stream comes with its first one."""
    if not seen:
        return
    assert (await talk.next())["status"] == 200
    text = b""
    while text.count(b"data:") < seen:
        text += (await talk.next())["body"]


@KINDS
@APPS
async def test_a_stream_that_is_left_is_settled_once(scene: Staged, kind: str, tmp_path: Path) -> None:
    """A13: at every point of it. What was seen is estimated; once the usage has come it is exact, whoever reads the rest."""
    books = Books(kind, tmp_path)
    points = list(POINTS.values())
    async with scene([stream_to(seen) for seen in points]) as (app, reached, closed):
        stack = BudgetMiddleware(app, ledger=books.ledger, prices=PRICES)
        for at, seen in enumerate(points, 1):
            async with call(stack, STREAM) as talk:
                await see(talk, seen)
                await until(lambda: reached() == at)  # noqa: B023 - awaited here
                if (seen or 0) < 6:
                    assert await books.held() > 0
                await talk.hang_up()
            await until(lambda: closed() == at)  # noqa: B023 - awaited here
        records = await books.settled(len(points))
    assert dict(zip(POINTS, map(of, records), strict=True)) == {name: booked(seen) for name, seen in POINTS.items()}


@KINDS
@APPS
async def test_a_json_answer_that_is_left_is_settled_once(scene: Staged, kind: str, tmp_path: Path) -> None:
    """Before it comes, and in its middle: the prompt is paid for, and what was seen of the answer."""
    books = Books(kind, tmp_path)
    async with scene([Part(None), HALF]) as (app, reached, closed):
        stack = BudgetMiddleware(app, ledger=books.ledger, prices=PRICES)
        for at in (1, 2):
            async with call(stack, CHAT) as talk:
                await until(lambda: reached() == at)  # noqa: B023 - awaited here
                assert await books.held() > 0
                await talk.hang_up()
            await until(lambda: closed() == at)  # noqa: B023 - awaited here
        records = await books.settled(2)
    assert [of(record).estimated for record in records] == [True, True]
    assert [of(record).aborted for record in records] == [True, True]
    costs = [record.cost for record in records]
    assert costs[0] == prompt(CHAT)
    # A stranger's bytes are counted as they pass; a provider's answer is read when it is whole.
    assert costs[1] == prompt(CHAT) + (2 * ((len(ANSWERED) - 40) // 4) if scene is strange else 0)


ANSWERED = json.dumps(
    {"object": "chat.completion", "choices": [{"text": "x" * 200}], "usage": {"prompt_tokens": 3}}
).encode()
HALF = Part([ANSWERED], json=True)


@KINDS
async def test_a_call_that_the_server_cancels_is_settled_once(kind: str, tmp_path: Path) -> None:
    """Some servers cancel instead of saying so: in the middle of a stream, and while nothing has come."""
    books = Books(kind, tmp_path)
    async with proxied([stream_to(2), stream_to(None)]) as (app, reached, closed):
        stack = BudgetMiddleware(app, ledger=books.ledger, prices=PRICES)
        for at, seen in enumerate((2, None), 1):
            async with call(stack, STREAM) as talk:
                await see(talk, seen)
                await until(lambda: reached() == at)  # noqa: B023 - awaited here
                talk.task.cancel()
                await asyncio.wait({talk.task})
                assert talk.task.cancelled()
            await until(lambda: closed() == at)  # noqa: B023 - awaited here
        assert [of(record) for record in await books.settled(2)] == [booked(2), booked(None)]


async def test_a_call_that_was_never_sent_costs_nothing(tmp_path: Path) -> None:
    """The client left before the provider could be asked: the hold is given back, and there is no record."""
    taken = asyncio.Event()

    class Slow(MemoryLedger):
        async def hold(self, *args: Any, **asked: Any) -> Any:
            """See Ledger. It is taken, and the answer is long in coming."""
            held = await super().hold(*args, **asked)
            taken.set()
            await asyncio.sleep(3600)
            return held

    books = Books(Slow(), tmp_path)
    async with proxied([Part(None)]) as (app, reached, _):
        async with call(BudgetMiddleware(app, ledger=books.ledger, prices=PRICES), STREAM) as talk:
            await taken.wait()
            assert await books.held() > 0
            talk.task.cancel()
            await asyncio.wait({talk.task})
        assert reached() == 0
    assert await books.settled(0) == []


# -- over a socket -----------------------------------------------------------------------------------------------------


async def ask_and_leave(port: int, body: Any, seen: int | None, waits: Callable[[], bool], *, reset: bool) -> None:
    """A client that reads so many events and closes its connection, in the ordinary way or by breaking it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = json.dumps(body).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(raw), raw)
    )
    text = b""
    while seen and (b"\r\n\r\n" not in text or text.count(b"data:") < seen):
        text += await reader.read(65536)
    await until(waits)
    if reset:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    else:
        writer.close()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@KINDS
@APPS
async def test_a_stream_that_is_left_over_a_socket_is_settled_once(
    scene: Staged, kind: str, reset: bool, tmp_path: Path
) -> None:
    """The same through a real uvicorn, whose ``receive`` is stepped by hand and whose pieces are pushed."""
    books = Books(kind, tmp_path)
    points = list(POINTS.values())
    async with scene([stream_to(seen) for seen in points]) as (app, reached, closed):
        with serving(BudgetMiddleware(app, ledger=books.ledger, prices=PRICES)) as url:
            port = urlsplit(url).port or 0
            for at, seen in enumerate(points, 1):
                await ask_and_leave(port, STREAM, seen, lambda: reached() == at, reset=reset)  # noqa: B023
                await until(lambda: closed() == at)  # noqa: B023 - awaited here
            records = await books.settled(len(points))
    assert dict(zip(POINTS, map(of, records), strict=True)) == {name: booked(seen) for name, seen in POINTS.items()}
