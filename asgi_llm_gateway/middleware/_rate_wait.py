"""Learning that a client hung up while its call waits for its turn, without taking the body from whoever answers it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .._asgi import Message, Receive
from .._hangup import Hangup
from ..exchange import Exchange

MOST_KEPT = 64 * 1024
"""Bytes of an unread body that are kept while a call waits; behind a longer one no hang-up is seen."""


class Vigil:
    """Calls ``gone`` when the client has left; ``stop`` when the wait is over, ``end`` when the call is.

    Args:
        exchange: The call.
        receive: Its ``receive``.
        gone: What to do; called in the event loop.

    Attributes:
        receive: The ``receive`` for whoever answers: what came meanwhile, then what comes.
    """

    def __init__(self, exchange: Exchange, receive: Receive, gone: Callable[[], None]) -> None:
        self._receive = receive
        self._gone = gone
        self._hangup: Hangup | None = None
        self._listening: asyncio.Task[None] | None = None
        self._asking: asyncio.Future[Message] | None = None
        self._kept: deque[Message] = deque()
        if exchange.request is not None:  # the body is read: nothing but the hang-up can come
            self._hangup = Hangup(exchange.waiting(receive), gone)
            self.receive = receive
        else:
            self._listening = asyncio.get_running_loop().create_task(self._listen())
            self.receive = self._replay

    async def _listen(self) -> None:
        kept = 0
        while kept <= MOST_KEPT:
            message = await self._next()
            self._kept.append(message)
            if message["type"] == "http.disconnect":
                self._gone()
                return
            kept += len(message.get("body", b""))

    async def _next(self) -> Message:
        """The server's next message. What was asked for is never given up: a message might be lost with it."""
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._receive())
        message = await asyncio.shield(self._asking)
        self._asking = None
        return message

    async def _replay(self) -> Message:
        return self._kept.popleft() if self._kept else await self._next()

    def stop(self) -> None:
        """The wait is over."""
        if self._hangup is not None:
            self._hangup.stop()
        if self._listening is not None:
            self._listening.cancel()

    def end(self) -> None:
        """The call is over."""
        if self._asking is not None:
            self._asking.cancel()
