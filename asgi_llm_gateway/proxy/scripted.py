"""Plays a script as if a server answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from ..adapters.base import Script
from .transfer import TransferError


class ScriptedFlight:
    """A Flight without a server."""

    def __init__(self, script: Script) -> None:
        self.status = script.status
        self.headers = script.headers
        self.done = False
        self.sent = True
        self._script = script
        self._next = 0
        self._came = b""
        self._sleep: asyncio.Future[None] | None = None
        self._ended: Exception | None = None

    async def start(self) -> None:
        """See Flight."""
        if not any(value.startswith(b"text/event-stream") for _, value in self.headers):
            while not self.done:
                await self._step()

    def take(self) -> bytes:
        """See Flight."""
        came, self._came = self._came, b""
        return came

    def more(self) -> Awaitable[None] | None:
        """See Flight."""
        return None if self._came or self.done else self._step()

    async def _step(self) -> None:
        if self._ended is not None:
            raise self._ended
        if self._next == len(self._script.steps):
            if self._script.cut:
                raise TransferError("cut", "the script ends here", received=self._next > 0)
            self.done = True
            return
        delay, data = self._script.steps[self._next]
        self._next += 1
        loop = asyncio.get_running_loop()
        # Also without a delay others get their turn, as they would with a server.
        self._sleep = loop.create_future()
        timer = loop.call_later(delay, _wake, self._sleep)
        try:
            await self._sleep
        finally:
            timer.cancel()
            self._sleep = None
        self._came += data
        if self._next == len(self._script.steps) and not self._script.cut:
            self.done = True

    def abort(self, reason: Exception) -> None:
        """See Flight."""
        if not self.done and self._ended is None:
            self._ended = reason
            if self._sleep is not None and not self._sleep.done():
                self._sleep.set_exception(reason)

    def close(self) -> None:
        """See Flight."""


def _wake(sleep: asyncio.Future[None]) -> None:
    if not sleep.done():
        sleep.set_result(None)
