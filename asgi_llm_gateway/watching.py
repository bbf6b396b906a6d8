"""The ``send`` that reads a stranger's answer for its usage, and sees that the call is settled before the answer ends."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from ._asgi import Message, Send, header
from .media_usage import reader_of
from .records import Usage
from .usage import UsageReader, with_cost
from .wire import LLMRequest, Route

HELD_BACK = 8 * 1024 * 1024
"""Bytes of a JSON answer that wait until it is complete, for the header that tells its cost; a longer one goes without."""


class Call(Protocol):
    """What is noted of a call; an Exchange is one."""

    route: Route
    request: LLMRequest | None
    reader: UsageReader | None
    usage: Usage | None
    cost: int | None
    answering: int | None
    exact: bool
    ends_itself: bool
    ended: bool

    @property
    def awaited(self) -> bool:
        """Somebody has work to do when the answer is complete."""
        ...

    async def end(self) -> None:
        """The answer is complete."""
        ...


async def _nothing() -> None:
    """What a message that is held back is awaited as."""


class Watched:
    """Reads what passes by, and awaits ``exchange.end`` before the last of it."""

    __slots__ = ("_exchange", "_held", "_parts", "_size", "inner")

    def __init__(self, exchange: Call, inner: Send) -> None:
        self._exchange = exchange
        self._held: Message | None = None  # the start of a JSON answer
        self._parts: list[bytes] = []
        self._size = 0
        self.inner = inner

    def __call__(self, message: Message) -> Awaitable[None]:
        """One message of the answer."""
        exchange = self._exchange
        if (exchange.ends_itself or exchange.ended) and self._held is None:
            return self.inner(message)
        kind = message["type"]
        if kind == "http.response.start":
            return self._start(message)
        if kind != "http.response.body":
            return self._flush(message) if self._held is not None else self.inner(message)
        reader = exchange.reader
        if reader is not None:
            reader.feed(message.get("body", b""))
        if self._held is not None:
            return self._hold(message)
        if not message.get("more_body"):
            return self._last(message)
        if reader is not None and reader.ending:
            return self._news(message, reader)
        return self.inner(message)

    def _start(self, message: Message) -> Awaitable[None]:
        exchange = self._exchange
        if self._held is not None:  # whoever began that answer failed, and this one is told instead
            self._held = None
            self._parts.clear()
            self._size = 0
        exchange.answering = message["status"]
        if message["status"] < 400:
            content = (header(message, b"content-type") or b"").lower()
            stream = content.startswith(b"text/event-stream")
            if exchange.route.dialect is not None and not exchange.exact:
                exchange.reader = reader_of(exchange.request, content)
            asked = exchange.request is not None and exchange.request.stream  # whatever it calls what it sends
            if not stream and not asked and exchange.awaited and content.find(b"json") >= 0:
                self._held = message
                return _nothing()
        return self.inner(message)

    def _hold(self, message: Message) -> Awaitable[None]:
        self._parts.append(message.get("body", b""))
        self._size += len(self._parts[-1])
        if message.get("more_body"):
            return _nothing() if self._size <= HELD_BACK else self._flush(None)
        return self._last(message)

    async def _flush(self, message: Message | None) -> None:
        """Let go of what was held back, before the answer is complete."""
        start, self._held = self._held, None
        await self.inner(start)
        body = b"".join(self._parts)
        self._parts.clear()
        if body:
            await self.inner({"type": "http.response.body", "body": body, "more_body": True})
        if message is not None:
            await self.inner(message)

    async def _news(self, message: Message, reader: UsageReader) -> None:
        """The last news of a stream; what follows is its end."""
        exchange = self._exchange
        if not exchange.exact:
            exchange.usage = reader.usage
        await exchange.end()
        body: bytes = message.get("body", b"")
        wanted = exchange.request is not None and exchange.request.wants_usage
        if exchange.cost is not None and wanted and body.endswith(b"\n\n"):
            message = {**message, "body": with_cost(body, exchange.cost)}
        await self.inner(message)

    async def _last(self, message: Message) -> None:
        exchange = self._exchange
        if exchange.reader is not None and not exchange.exact:
            exchange.usage = exchange.reader.end()
        start, self._held = self._held, None
        await exchange.end()
        if start is not None:
            await self.inner(start)
            message = {**message, "body": b"".join(self._parts)}
            self._parts.clear()
        await self.inner(message)
