"""One call that is made for all who ask the same at the same time: a task of its own, and a copy of what it answered.

The fastest reader paces it: the app waits while even that one is ``AHEAD`` bytes behind. A slower one reads from the kept copy,
and slows nobody. Of an answer longer than may be kept only so much is held: there the one who pays is waited for, so that it
loses nothing, and any other that falls further behind is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from .._asgi import Message, Receive, Scope, Send, header
from ..caching.complete import stream_parts, whole_parts, without_cost
from ..caching.kept import KEPT_HEADERS, Kept
from ..errors import Header, Unavailable
from ..exchange import KEY, ClientGone, Exchange
from ._cache_inner import Inner, private, readable

AHEAD = 64 * 1024
"""Bytes that the app may be ahead of the fastest reader."""


class Lost(Exception):
    """A reader can't have the rest: it fell too far behind, or the call broke off."""


class Reader:
    """Somebody's place in the answer."""

    __slots__ = ("_flight", "_seen", "at", "gone", "own", "read", "wake")

    def __init__(self, flight: Flight, *, own: bool) -> None:
        self._flight = flight
        self.own = own
        self.at = 0  # pieces
        self.read = 0  # bytes
        self.gone = False
        self._seen = 0
        self.wake: asyncio.Future[None] | None = None

    def leave(self) -> None:
        """The client has hung up."""
        self.gone = True
        self.poke()

    def poke(self) -> None:
        """There is news."""
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)

    async def news(self) -> None:
        """Wait for news since this was last awaited; some may have come meanwhile. Raises ClientGone."""
        flight = self._flight
        if not self.gone and self._seen == flight.news:
            self.wake = asyncio.get_running_loop().create_future()
            try:
                await self.wake
            finally:
                self.wake = None
        self._seen = flight.news
        if self.gone:
            raise ClientGone

    def take(self) -> list[Any]:
        """What has come since: bytes, and messages of kinds that are not known here. Raises Lost."""
        return self._flight.take(self)


class Flight:
    """The call.

    Args:
        exchange: The call of the one that pays.
        scope: Its scope.
        most: Bytes of an answer that are kept.
        clock: Unix time in seconds.
        settled: Called once, when nobody may join any more; ``kept`` is known by then.

    Attributes:
        start: The head of the answer, once it has begun.
        complete: The answer's last message has come.
        over: The app has returned, or failed.
        kept: The whole answer, where it is one; known once it is ``complete`` and ``judged``.
        shareable: Others may have the answer, too.
        head: Its headers for them.
        trimmed: The answer is longer than is kept.
        news: How often there was something new.
    """

    def __init__(
        self,
        exchange: Exchange,
        scope: Scope,
        *,
        most: int,
        clock: Callable[[], float],
        settled: Callable[[Flight], None],
    ) -> None:
        self._most = most
        self._clock = clock
        self._settled = settled
        self._abandoned = asyncio.Event()
        self.began = clock()
        self.inner = Inner(exchange, scope, self._receive)
        self.task: asyncio.Task[None] | None = None
        self.start: Message | None = None
        self.complete = self.over = self.judged = self.trimmed = False
        self.failure: BaseException | None = None
        self.shareable = False
        self.stream = False
        self.head: tuple[Header, ...] = ()
        self.kept: Kept | None = None
        self._scope = readable({**scope, KEY: self.inner})
        self._readers: list[Reader] = []
        self._pieces: list[Any] = []
        self._shared: dict[int, bytes] = {}  # pieces that others get otherwise than the one who pays
        self._first = 0  # pieces that were dropped
        self._total = 0
        self._size = 0  # bytes of the pieces that are held
        self._passed = 0  # bytes after which the app may have to wait
        self._full: asyncio.Future[None] | None = None
        self._awaited: asyncio.Future[None] | None = None
        self.news = 0

    # -- its readers ---------------------------------------------------------------------------------------------------

    def join(self, *, own: bool = False) -> Reader:
        """A new reader, at the answer's beginning."""
        reader = Reader(self, own=own)
        self._readers.append(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """A reader wants no more; when the last one has left, the call ends at once."""
        if reader in self._readers:
            self._readers.remove(reader)
            if self._readers:
                self._drained()
            elif not self.complete and not self.over:
                self.inner.gone = True
                self._abandoned.set()
                self._done()
                if self.task is not None:
                    self.task.cancel()

    @property
    def alone(self) -> bool:
        """Whether nobody reads any more."""
        return not self._readers

    def take(self, reader: Reader) -> list[Any]:
        """See Reader."""
        at = reader.at - self._first
        if at < 0:
            raise Lost
        found = self._pieces[at:]
        if found:
            if self._shared and not reader.own:
                found = [self._shared.get(reader.at + place, piece) for place, piece in enumerate(found)]
            reader.at = self._first + len(self._pieces)
            reader.read = self._total
            self._drained()
        return found

    def _drained(self) -> None:
        if self._full is not None and not self._full.done() and self._room() > 0:
            self._full.set_result(None)

    def _first_reader(self) -> Reader | None:
        """The one that must lose nothing: who pays, else the fastest."""
        for reader in self._readers:
            if reader.own:
                return reader
        return max(self._readers, key=lambda reader: reader.read, default=None)

    def _room(self) -> int:
        """Bytes that the app may go on for before it has to wait; 0 and less: it waits now."""
        if not self._readers or self.complete:
            return AHEAD
        room = AHEAD - self._total + max(reader.read for reader in self._readers)
        if self._total > self._most // 2 and (first := self._first_reader()) is not None:
            room = min(room, self._most // 2 - self._total + first.read)
        return room

    def _poke(self) -> None:
        self.news += 1
        for reader in self._readers:
            reader.poke()

    # -- the app -------------------------------------------------------------------------------------------------------

    def begin(
        self, forward: Callable[[Exchange, Scope, Receive, Send], Awaitable[None]], over: Callable[[Flight], None]
    ) -> None:
        """Call the app, in a task of its own; ``over`` is called when it has returned."""
        self.task = asyncio.get_running_loop().create_task(self._run(forward))
        self.task.add_done_callback(self._ended)
        self.task.add_done_callback(lambda _: over(self))

    def stop(self) -> None:
        """The gateway closes: the call ends."""
        if self.task is not None:
            self.task.cancel()

    async def _run(self, forward: Callable[[Exchange, Scope, Receive, Send], Awaitable[None]]) -> None:
        inner = self.inner
        await forward(inner, self._scope, inner.replay, inner.watch(inner.wrap(self.send)))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.over = True
        if task.cancelled():
            self.failure = asyncio.CancelledError()
        elif (error := task.exception()) is not None:
            self.failure = error
        self._done()
        self.inner.over()
        self._settled = _nobody
        self._poke()
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)

    async def ended(self) -> None:
        """Wait until the app has returned. Raises what it raised; Unavailable where it was stopped for no reader's sake."""
        while not self.over:
            self._awaited = asyncio.get_running_loop().create_future()
            await self._awaited
        if isinstance(self.failure, asyncio.CancelledError):
            if not self.inner.gone:
                raise Unavailable("The gateway is closing. Ask again.", headers=((b"retry-after", b"1"),))
        elif self.failure is not None:
            raise self.failure

    async def _receive(self) -> Message:
        """What the app hears after the request: that the last reader has left, or that its answer is out."""
        await self._abandoned.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """One message of the answer."""
        kind = message["type"]
        if kind == "http.response.start":
            self._begin(message)
        elif kind == "http.response.body":
            self._add(message.get("body", b""), last=not message.get("more_body"))
            if self._total >= self._passed:
                self._poke()
                await self._wait()
        else:
            self._pieces.append(message)  # for the one whose server understands it
            self._shared[self._first + len(self._pieces) - 1] = b""
        self._poke()

    async def _wait(self) -> None:
        """Wait until there is room again."""
        while (room := self._room()) <= 0:
            self._full = asyncio.get_running_loop().create_future()
            try:
                await self._full
            finally:
                self._full = None
        self._passed = self._total + room

    def _begin(self, message: Message) -> None:
        headers = [(name.lower(), value) for name, value in message.get("headers") or ()]
        kind = (header(message, b"content-type") or b"").lower()
        self.stream = kind.startswith(b"text/event-stream")
        self.head = tuple(one for one in headers if one[0] in KEPT_HEADERS)
        if message["status"] >= 400:
            # What a caller is told to do about it (when to come again) is told to all.
            more = (b"retry-after", b"retry-after-ms", b"x-should-retry")
            self.head += tuple(one for one in headers if one[0] in more)
            self.shareable = True
        else:
            self.shareable = message["status"] == 200 and (self.stream or b"json" in kind) and not private(headers)
        self.start = message

    def _add(self, data: bytes, *, last: bool) -> None:
        if data:
            shared = without_cost(data)
            if shared is not data:
                self._shared[self._first + len(self._pieces)] = shared
            self._pieces.append(data)
            self._total += len(data)
            self._size += len(data)
            if self._total > self._most:
                self._trim()
        if last:
            self.complete = True
            self._abandoned.set()
            # After those who wait for the last piece were served.
            asyncio.get_running_loop().call_soon(self._done)

    def _trim(self) -> None:
        """Keep no more than may be kept: what all have read goes, and what is too old."""
        if not self.trimmed:
            self.trimmed = True
            self._done()
        first = self._first_reader()
        taken = min((reader.at for reader in self._readers), default=self._first)
        needed = first.at if first is not None else self._first
        drop = 0
        for at, piece in enumerate(self._pieces, self._first):
            if at >= needed or (at >= taken and self._size <= self._most):
                break
            self._size -= len(piece) if type(piece) is bytes else 0
            self._shared.pop(at, None)
            drop += 1
        del self._pieces[:drop]
        self._first += drop

    # -- what is kept --------------------------------------------------------------------------------------------------

    def _done(self) -> None:
        """Nobody may join from now on: the answer is whole, or it is none that others could use."""
        if self.judged:
            return
        self.judged = True
        if (
            self.complete
            and self.start is not None
            and self.start["status"] == 200
            and self.shareable
            and not self.trimmed
        ):
            self.kept = self._judge()
        self._settled(self)
        self._poke()

    def _judge(self) -> Kept | None:
        request, dialect = self.inner.request, self.inner.route.dialect
        assert request is not None
        limited = request.max_tokens is not None
        body = b"".join([piece for piece in self._pieces if type(piece) is bytes])
        if self.stream:
            parts = stream_parts(dialect, body, limited=limited, usage=self.inner.usage)
        else:
            parts = whole_parts(dialect, body, limited=limited)
        if parts is None:
            return None
        return Kept(self.stream, self.head, *parts, made=self._clock(), cost=self.inner.cost)


def _nobody(flight: Flight) -> None:
    """Nobody is to be told any more."""


__all__ = ["AHEAD", "Flight", "Lost", "Reader"]
