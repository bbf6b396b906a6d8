"""What a session has to say: frames in turn, as fast as the peer reads them and no faster."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from . import frames


class Gone(Exception):
    """The peer is lost; a transport's ``send`` raises it."""


class Transport(Protocol):
    """A channel to one peer.

    Attributes:
        most: Bytes that one message may have, at least ``frames.LEAST_MESSAGE``.
    """

    most: int

    async def send(self, text: str) -> None:
        """Send one message; waits while the peer does not read. Raises Gone."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """Close the channel, with a WebSocket's close code (RFC 6455, 7.4). Raises Gone."""
        ...


class _Item:
    """A frame that waits to be sent: its next piece, and the others."""

    __slots__ = ("left", "owner", "piece", "pieces", "started")

    def __init__(self, pieces: Iterator[str], owner: object, left: asyncio.Future[None]) -> None:
        self.piece: str | None = next(pieces)
        self.pieces = pieces
        self.owner = owner
        self.left = left
        self.started = False

    def release(self) -> None:
        """Whoever waits for the frame waits no more."""
        if not self.left.done():
            self.left.set_result(None)


class Outbox:
    """Frames that wait, first come, first sent; the pieces of a big one take turns with the others.

    A call waits for its frame to leave before it goes on, so that each has one here at most: that bounds what a slow peer
    makes us hold, and holds that peer's own upstreams only.

    Attributes:
        said: Frames about the session that wait.
        sending: ``time.monotonic()`` since which one message waits for the peer to read; ``None`` where none does.
    """

    def __init__(self, transport: Transport) -> None:
        self.said = 0
        self.sending: float | None = None
        self._transport = transport
        self._waiting: deque[_Item] = deque()
        self._current: _Item | None = None
        self._due = asyncio.Event()
        self._number = 0
        self._shut = False

    def put(self, text: str, owner: object = None) -> asyncio.Future[None]:
        """Put a frame behind the others; done when it has left, or never will. ``owner`` is its call, ``None`` the session."""
        left = asyncio.get_running_loop().create_future()
        if self._shut and owner is not None:
            left.set_result(None)
            return left
        self._number = (self._number + 1) % 2**31
        self._waiting.append(_Item(frames.pieces(text, self._transport.most, self._number), owner, left))
        if owner is None:
            self.said += 1
        self._due.set()
        return left

    def drop(self, owner: object) -> None:
        """Forget a call's frame, unless it has begun to leave: half a frame is none."""
        for item in self._waiting:
            if item.owner is owner and not item.started:
                self._waiting.remove(item)
                item.release()
                break

    def shut(self) -> None:
        """Calls have nothing to say any more; those that wait for a frame of theirs go on."""
        self._shut = True
        if self._current is not None:
            self._current.release()
        kept = deque[_Item]()
        for item in self._waiting:
            if item.owner is None or item.started:
                kept.append(item)
            if item.owner is not None:
                item.release()
        self._waiting = kept

    async def run(self) -> None:
        """Send what there is, for as long as the session lasts. Raises Gone, and what else a transport may."""
        while True:
            while self._waiting:
                item = self._current = self._waiting.popleft()
                assert item.piece is not None
                item.started = True
                self.sending = time.monotonic()
                await self._transport.send(item.piece)
                self.sending = None
                item.piece = next(item.pieces, None)
                self._current = None
                if item.piece is not None:
                    self._waiting.append(item)
                    continue
                if item.owner is None:
                    self.said -= 1
                item.release()
            self._due.clear()
            await self._due.wait()


__all__ = ["Gone", "Outbox", "Transport"]
