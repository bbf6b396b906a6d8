"""One call that a handler makes with an SDK: begun on its exchange, read as its answer passes by, ended once."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

import orjson

from ._asgi import finish
from ._counted import so_far, sum_of
from ._sse import EventSplitter, EventTooLong, data_of, split
from .accounting import Account
from .calls import Call, Lasting
from .errors import Header
from .exchange import Exchange
from .media_usage import reader_of
from .records import Target, Usage
from .tokens import answers, estimate
from .usage import usage_from
from .wire import LLMRequest

Later = Callable[[], Awaitable[None]]


async def enter(
    exchange: Exchange, account: Account | None, target: Target, request: LLMRequest | None, url: str = ""
) -> Call:
    """Raise the hold for one more call, on the exchange's loop. Raises GatewayError: then no call may go out."""
    exchange.exact = True
    if exchange.lasting is None:
        exchange.lasting = Lasting()
    exchange.lasting.count += 1  # from now on the money is not settled behind the call's back
    try:
        if account is not None and request is not None:
            request = account.limited(request)
        call = await exchange.begin_call(target, request, url)
    except BaseException:  # refused, or cancelled while it was asked: the call does not last
        await leave(exchange)
        raise
    record = exchange.record
    if record is not None:
        record.provider = target.provider
        record.model = record.model or target.model
    return call


def note(exchange: Exchange, call: Call, usage: Usage | None) -> None:
    """The call is over, and used so much. ``None``: nobody knows."""
    call.end(usage)
    if usage is not None:
        exchange.usage = usage if exchange.usage is None else sum_of(exchange.usage, usage)


async def leave(exchange: Exchange) -> None:
    """One call less under way; after the last one, what waited for it."""
    assert exchange.lasting is not None
    later = exchange.lasting.leave()
    if later is not None:
        await finish(_awaited(later))


async def _awaited(work: Later) -> None:
    await work()


class MeteredCall:
    """A call under way. It may be ended from any thread; what it does to its exchange, it does on the exchange's loop.

    Attributes:
        exchange: Whose call it is.
        request: What is asked, with the output limit that was chosen.
    """

    __slots__ = ("_call", "_loop", "exchange", "request")

    def __init__(self, exchange: Exchange, call: Call) -> None:
        assert call.request is not None
        self.exchange = exchange
        self.request = call.request
        self._call = call
        self._loop = asyncio.get_running_loop()

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._call.ended

    @property
    def headers(self) -> tuple[Header, ...]:
        """What the provider gets beside the request's own headers."""
        return self._call.headers

    def read_by(self, reader: object) -> None:
        """Who reads the answer as it passes."""
        self._call.told = reader

    def answered(self, status: int) -> None:
        """The provider has answered."""
        self._call.status = status

    async def end(self, usage: Usage | None, error: str | None = None) -> None:
        """It is over. ``None``: nobody knows what it used."""
        self._call.error = self._call.error or error
        if asyncio.get_running_loop() is not self._loop:
            self.post(usage)
        elif not self._call.ended:
            note(self.exchange, self._call, usage)
            await leave(self.exchange)

    def post(self, usage: Usage | None, error: str | None = None) -> None:
        """The same from another thread, or where nothing can be awaited; done before what is posted to the loop later."""
        self._call.error = self._call.error or error
        if not self._call.ended:
            try:
                self._loop.call_soon_threadsafe(self._end, usage)
            except RuntimeError:  # the loop is closed, and nobody is there to settle: the hold lapses and is charged
                self._call.end(usage)

    def _end(self, usage: Usage | None) -> None:
        if not self._call.ended:
            note(self.exchange, self._call, usage)
            task = self._loop.create_task(leave(self.exchange))
            _ending.add(task)
            task.add_done_callback(_ending.discard)


_ending: set[asyncio.Task[None]] = set()  # a task that nobody holds may be collected before it ran


# -- the answer --------------------------------------------------------------------------------------------------------

_TELLS_USAGE = re.compile(rb'"usage"\s*:\s*\{')


def without_usage(events: bytes) -> bytes:
    """Whole events, less those that tell nothing but the usage."""
    if _TELLS_USAGE.search(events) is None:
        return events
    return b"".join([event for event in split(events) if not _tells_usage_only(event)])


def _tells_usage_only(event: bytes) -> bool:
    data = data_of(event)
    if data is None or _TELLS_USAGE.search(data) is None:
        return False
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return type(chunk) is dict and not chunk.get("choices") and usage_from(chunk.get("usage")) is not None


class MeteredStream:
    """An answer's bytes, given on as they come, and read on the way. For both kinds of client, waiting and awaiting.

    Args:
        inner: The answer's own stream.
        call: The call to end.
        kind: Its content type, in lower case.
        drop_usage: Leave the event out that tells the usage, which the caller did not ask for.
        blind: The answer can't be read: what was used is taken for all that was allowed.
    """

    def __init__(self, inner: Any, call: MeteredCall, *, kind: bytes, drop_usage: bool, blind: bool) -> None:
        self._inner = inner
        self._call = call
        self._stream = stream = kind.startswith(b"text/event-stream")
        self._reader = None if blind else reader_of(call.request, kind)
        call.read_by(self._reader)
        self._splitter = EventSplitter() if drop_usage and stream and not blind else None
        self._pieces: Any = None

    # -- awaiting --

    def __aiter__(self) -> MeteredStream:
        return self

    async def __anext__(self) -> bytes:
        if self._pieces is None:
            self._pieces = aiter(self._inner)
        try:
            while True:
                out = self._passing(await anext(self._pieces))
                if self._known:
                    await self._call.end(self._used())
                if out:
                    return out
        except StopAsyncIteration:
            rest = self._rest()
            await self._call.end(self._used())
            if not rest:
                raise
            return rest
        except BaseException:  # cut, or the handler's task is cancelled
            await self._call.end(self._used())
            raise

    async def aclose(self) -> None:
        """Close the answer; what came of it is what was used."""
        try:
            await self._inner.aclose()
        finally:
            await self._call.end(self._used())

    # -- waiting --

    def __iter__(self) -> MeteredStream:
        return self

    def __next__(self) -> bytes:
        if self._pieces is None:
            self._pieces = iter(self._inner)
        try:
            while True:
                out = self._passing(next(self._pieces))
                if self._known:
                    self._call.post(self._used())
                if out:
                    return out
        except StopIteration:
            rest = self._rest()
            self._call.post(self._used())
            if not rest:
                raise
            return rest
        except BaseException:  # cut, or the handler gave up
            self._call.post(self._used())
            raise

    def close(self) -> None:
        """See aclose."""
        try:
            self._inner.close()
        finally:
            self._call.post(self._used())

    def __del__(self) -> None:
        if not self._call.ended:  # nobody read it to its end, nobody closed it
            self._call.post(self._used())

    # -- reading --

    def _passing(self, data: bytes) -> bytes:
        if self._splitter is None:
            if self._reader is not None:
                self._reader.feed(data)
            return data
        assert self._reader is not None
        waiting = self._splitter.rest
        try:
            events = self._splitter.whole(data)
        except EventTooLong:  # no events at all: given on as it is
            self._splitter = None
            self._reader.feed(waiting + data)
            return waiting + data
        if not events:
            return b""
        self._reader.feed(events)
        return without_usage(events)

    def _rest(self) -> bytes:
        """What came of an event that has no end; and all that the reader will know is known."""
        rest = b""
        if self._splitter is not None:
            rest, self._splitter = self._splitter.rest, None
            if rest and self._reader is not None:
                self._reader.feed(rest)
        if self._reader is not None:
            self._reader.end()
        return without_usage(rest)

    @property
    def _known(self) -> bool:
        """The stream has told its last news."""
        return self._reader is not None and self._reader.ending

    def _used(self) -> Usage:
        if self._reader is None:
            return all_of(self._call.request)
        if not self._stream and self._reader.usage is not None:
            return self._reader.usage
        return so_far(self._call.request, self._reader)


def all_of(request: LLMRequest) -> Usage:
    """The usage of a call whose answer can't be read: all that it was allowed."""
    least = estimate(request)
    return least._replace(completion=max(least.completion, (request.max_tokens or 0) * answers(request)))


@lru_cache(maxsize=8)
def stream_class(package: str) -> Any:
    """The class as a client of ``httpx`` or ``httpx2`` wants it: a subclass of that package's two stream classes."""
    http: Any = sys.modules[package]
    return type("MeteredStream", (MeteredStream, http.AsyncByteStream, http.SyncByteStream), {})


__all__ = ["MeteredCall", "MeteredStream", "all_of", "enter", "leave", "note", "stream_class", "without_usage"]
