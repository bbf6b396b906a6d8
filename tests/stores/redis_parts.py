"""What the tests of the Redis ledger share: an archive, calls, and a relay that loses answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import About, Adjustment, Amount, Balance, CallRecord, Hold, Limit, Refusal, Usage
from asgi_llm_gateway.stores.book import Book, Entry
from asgi_llm_gateway.stores.redis import RedisLedger

ACME = "acme"
ONE = (Limit("", 0, 1000, None),)


class BookArchive:
    """An archive in memory, on the same arithmetic as the SQL ones.

    Attributes:
        down: While it is true, every call fails.
        forgetful: How many of the next batches are booked and said to have failed.
        batches: How many batches it was given.
        refuses: A tenant of which no call can be booked.
        read: Set when a balance was read.
        gate: What a balance that was read waits for, before it is told.
    """

    def __init__(self) -> None:
        self.down = False
        self.forgetful = 0
        self.batches = 0
        self.refuses = ""
        self.read = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.records: dict[str, CallRecord] = {}
        self.notes: dict[str, Adjustment] = {}
        self._book = Book()

    def _keep(self) -> None:
        self.records.update(self._book.records)
        self.notes.update((note.id, note) for note in self._book.notes)
        self._book.notes.clear()

    def _check(self) -> None:
        if self.down:
            raise StoreError("the archive is down")

    async def archive(self, calls: Sequence[tuple[Hold, CallRecord]]) -> None:
        """See Archive."""
        self._check()
        self.batches += 1
        if any(hold.tenant == self.refuses for hold, _ in calls):
            raise StoreError("a row that the database does not take")
        for hold, record in calls:
            self._book.archive(hold, record, self.records.get(hold.id))
            self._keep()
        if self.forgetful:
            self.forgetful -= 1
            raise StoreError("the answer was lost")

    async def balance(self, tenant: str, account: str = "", window: int = 0) -> Balance:
        """See Archive."""
        self._check()
        found = self._book.entries.get((tenant, account, window), Entry()).balance()
        self.read.set()
        if self.gate is not None:
            await self.gate.wait()
        return found

    async def adjust(self, adjustment: Adjustment) -> bool:
        """See Archive."""
        self._check()
        if adjustment.id in self.notes:
            return False
        self._book.adjust(adjustment)
        self._keep()
        return True


async def hold(
    ledger: RedisLedger,
    money: int = 10,
    *,
    tenant: str = ACME,
    limits: tuple[Limit, ...] = ONE,
    now: float | None = None,
    ttl: float = 60.0,
    hold_id: str | None = None,
) -> Hold | Refusal:
    """A hold of exactly ``money``, and as many tokens."""
    amount = Amount(money, money)
    return await ledger.hold(
        tenant, hold_id=hold_id or new_hold_id(), limits=limits, least=amount, wanted=amount,
        now=time.time() if now is None else now, ttl=ttl, about=About("req", "trace", "key_1", "m", 1.5),
    )  # fmt: skip


async def held(ledger: RedisLedger, money: int = 10, **more: Any) -> Hold:
    """A hold that must be granted."""
    got = await hold(ledger, money, **more)
    assert isinstance(got, Hold), got
    return got


def record(of: Hold, cost: int, tokens: int = 0, **more: Any) -> CallRecord:
    """What became of a hold's call."""
    return CallRecord(of.id, of.tenant, request_id="req", usage=Usage(tokens, 0), cost=cost, ended=2.5, **more)


async def spend(ledger: RedisLedger, cost: int, **more: Any) -> Hold:
    """One call, held and settled."""
    got = await held(ledger, cost, **more)
    assert await ledger.settle(got, record(got, cost))
    return got


async def drained(ledger: RedisLedger, *, within: float = 10.0) -> None:
    """Wait until nothing is left in Redis that the archive does not have."""
    await until(ledger.waiting, lambda waiting: waiting == 0, within=within)


async def until(what: Callable[[], Awaitable[Any]], good: Callable[[Any], bool], *, within: float = 10.0) -> Any:
    """Ask until the answer is good, through outages; then that answer."""
    async with asyncio.timeout(within):
        while True:
            with suppress(StoreError):
                answer = await what()
                if good(answer):
                    return answer
            await asyncio.sleep(0.02)


class Relay:
    """Stands between a client and a server, and can lose an answer: the server did it, and the client never hears.

    Attributes:
        lose: How many of the next answers are lost; each takes its connection with it.
    """

    def __init__(self, port: int) -> None:
        self.lose = 0
        self._port = port
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)

        async def requests() -> None:
            while data := await reader.read(65536):
                up_writer.write(data)

        forward = asyncio.create_task(requests())
        try:
            while data := await up_reader.read(65536):
                if self.lose:
                    self.lose -= 1
                    break
                writer.write(data)
        finally:
            forward.cancel()
            up_writer.close()
            writer.close()

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Relay]:
        """A relay to a server on loopback."""
        relay = cls(port)
        server = await asyncio.start_server(relay._serve, "127.0.0.1", 0)
        relay.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield relay
        finally:
            server.close()
            for task in relay._tasks:
                task.cancel()
