"""HTTP/1.1 on one connection, client side: an asyncio.Protocol over httptools (llhttp).

Source: RFC 9110 and RFC 9112. Framing is strict: what llhttp does not take, ends the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from ..errors import Header
from .transfer import BUFFER_LIMIT, Timeouts, TransferError, is_progressive

MAX_HEADER_BYTES = 64 * 1024
MAX_HEADERS = 256
HIGH_WATER = 64 * 1024
"""Bytes that wait for the reader before the connection is not read any more."""

_TICK = 5.0  # seconds between two looks at a connection's deadline, where it is far


class Connection(asyncio.Protocol):
    """One connection and the call on it. The pool hands it out; a Flight drives it.

    Attributes:
        reused: It has carried a call before: the server may have given it up meanwhile.
        received: Something of this call's answer has come.
        complete: All of this call's answer has come.
        error: Why the connection is of no more use.
    """

    __slots__ = (
        "_armed", "_deadline", "_framed", "_head_bytes", "_informational", "_keep_alive", "_loop", "_on_free", "_parser",
        "_parts", "_paused", "_phase", "_sink", "_size", "_stream", "_timeouts", "_timer", "_total", "_transport",
        "_waiter", "_write_paused", "begun_at", "busy", "complete", "error", "headers", "idle_since", "received",
        "reused", "status",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, on_free: Callable[[Connection], None]) -> None:
        self._loop = loop
        self._on_free = on_free
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0.0
        self._deadline = 0.0
        self._phase = "idle"
        self._parts: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self._timeouts = Timeouts()
        self._total = 0.0
        self._paused = False
        self._write_paused = False
        self._stream = False
        self._framed = False
        self._informational = False
        self._keep_alive = False
        self._head_bytes = 0
        self.busy = False
        self.reused = False
        self.received = False
        self.complete = False
        self.error: Exception | None = None
        self.headers: list[Header] = []
        self.status = 0
        self.idle_since = 0.0
        self.begun_at = 0.0

    # -- for the flight ------------------------------------------------------------------------------------------------

    def begin(self, data: bytes, timeouts: Timeouts) -> asyncio.Future[None]:
        """Send a request; the future is done when the answer can be read (see Flight.start)."""
        assert self._transport is not None
        if self.error is not None:  # lost between the pool and here
            raise self.error
        now = self._loop.time()
        self.busy = True
        self.received = self.complete = False
        self._head_bytes = self.status = 0
        self.headers = []  # and what else the last call left is set anew with the head
        self._timeouts = timeouts
        self._total = now + timeouts.total
        self._waiter = waiter = self._loop.create_future()
        self.begun_at = now
        self._transport.write(data)
        if self._write_paused:
            self._enter("write", now + timeouts.write)
        else:
            self._phase = "first byte"
            deadline = self._deadline = now + min(timeouts.first_byte, timeouts.total)
            if self._timer is None or self._armed > deadline:
                self._enter("first byte", deadline)
        return waiter

    def take(self) -> bytes:
        """What has come and was not taken."""
        parts = self._parts
        if not parts:
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            if self._transport is not None and not self.complete:
                self._enter("idle", self._loop.time() + self._timeouts.idle)
                self._transport.resume_reading()
        return data

    def more(self) -> asyncio.Future[None] | None:
        """A future for more to take, or for the end; ``None`` where one of them is there. Raises what ended the call."""
        if self._parts or self.complete:
            return None
        if self.error is not None:
            raise self.error
        self._waiter = self._loop.create_future()
        return self._waiter

    def push_to(self, sink: Callable[[bytes], bool]) -> asyncio.Future[None]:
        """Hand what comes to ``sink`` at once, from the reading callback, until it says False; then see ``more``.

        The future is done when there is something for ``take`` again, or the end. Only where ``more`` gave a future.
        """
        more = self.more()
        assert more is not None
        self._sink = sink
        return more

    def free(self) -> None:
        """The call is over: back to the pool if the answer is complete, else cut."""
        if not self.busy:
            return
        self.busy = False
        transport = self._transport
        usable = self.complete and self._keep_alive and self.error is None and not self._write_paused
        if usable and transport is not None and not transport.is_closing():
            if self._paused:
                self._paused = False
                transport.resume_reading()
            self.reused = True
            self.idle_since = self._loop.time()
        else:
            self._waiter = self._sink = None
            self.fail(TransferError("cut", "not to be used again"))
        self._parts.clear()
        self._size = 0
        self._on_free(self)

    def fail(self, reason: Exception) -> None:
        """End the connection now; whoever waits gets ``reason``."""
        if self.error is None:
            self.error = reason
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        self._wake(reason)

    def _wake(self, reason: Exception | None = None) -> None:
        self._sink = None
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                if reason is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(reason)

    # -- time ----------------------------------------------------------------------------------------------------------

    def _enter(self, phase: str, deadline: float) -> None:
        """A new phase with its deadline. The timer looks again every few seconds, so most calls never touch it."""
        self._phase = phase
        self._deadline = min(deadline, self._total)
        if self._timer is None or self._armed > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._arm()

    def _arm(self) -> None:
        self._armed = min(self._deadline, self._loop.time() + min(_TICK, self._timeouts.idle))
        self._timer = self._loop.call_at(self._armed, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self.busy or self.complete or self.error is not None:
            return
        if self._loop.time() < self._deadline or self._paused:  # paused: the client is slow, not the provider
            if self._paused and self._loop.time() < self._total:
                self._deadline = min(self._loop.time() + self._timeouts.idle, self._total)
            if self._loop.time() < self._deadline:
                self._arm()
                return
        phase = "total" if self._loop.time() >= self._total else self._phase
        self.fail(TransferError("timeout", f"timed out: {phase}", received=self.received))

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class does not derive from it

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self.busy or self.complete:
            self.fail(TransferError("protocol", "bytes that belong to no answer"))
            return
        self.received = True
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except TransferError as error:
            self.fail(error)
            return
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            inner = error.__context__ if isinstance(error.__context__, TransferError) else None
            self.fail(inner or TransferError("protocol", f"not HTTP: {error}", received=True))
            return
        if self.complete:
            self._wake()
            return
        if self._head_bytes > MAX_HEADER_BYTES:
            # Of a line without an end, of interim answers and of what follows the body, no header need ever be told.
            self.fail(TransferError("protocol", "a head or a trailer without an end", received=True))
            return
        if self._stream:
            parts = self._parts
            if parts:
                self._phase = "idle"
                sink = self._sink
                if sink is None:
                    self._wake()
                else:  # what take() does, for a connection that is not paused
                    self._parts = []
                    self._size = 0
                    if not sink(parts[0] if len(parts) == 1 else b"".join(parts)):
                        self._wake()
            if self._size > HIGH_WATER and not self._paused:
                self._paused = True
                assert self._transport is not None
                self._transport.pause_reading()
        elif self._size > BUFFER_LIMIT:
            self._stream = True  # too long to put together: it goes on in pieces
            self._wake()
        waits = self._timeouts
        deadline = self._loop.time() + (waits.first_event if self._phase == "first event" else waits.idle)
        self._deadline = deadline if deadline < self._total else self._total

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self.busy and not self.complete and self.error is None:
            if exc is None and self.headers and self.status and not self._framed and not self._informational:
                self.complete = True  # RFC 9112, 6.3: without a length, the end of the connection ends the body
                self._keep_alive = False
                self._wake()
            else:
                self.error = TransferError("cut", "the connection was lost", received=self.received)
                self._wake(self.error)
        if self.error is None:
            self.error = TransferError("cut", "the connection is closed")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.busy:
            self._on_free(self)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._write_paused = False
        if self.busy and self._phase == "write":
            self._enter("first byte", self._loop.time() + self._timeouts.first_byte)

    # -- httptools -----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """See httptools: a second answer to one request is no answer."""
        if self.complete:
            raise TransferError("protocol", "two answers to one request", received=True)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """See httptools."""
        headers = self.headers
        if len(headers) > MAX_HEADERS or (
            self._head_bytes > MAX_HEADER_BYTES and sum(len(n) + len(v) + 4 for n, v in headers) > MAX_HEADER_BYTES
        ):
            raise TransferError("protocol", "too many headers", received=True)
        self.status = status = self._parser.get_status_code()
        self._informational = 100 <= status < 200
        if self._informational:
            self.headers = []
            self.status = 0
            return
        found = dict(headers)
        self._framed = b"content-length" in found or b"transfer-encoding" in found or status in (204, 304)
        # An error is wanted whole, whatever it calls itself.
        self._stream = status == 200 and is_progressive(found.get(b"content-type", b""))
        self._phase = "first event" if self._stream else "idle"
        if self._stream:
            self._wake()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._parts.append(body)
        self._size += len(body)
        self._head_bytes = 0  # counts what came since the last of the body

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._informational:
            self._informational = False
            return
        if len(self.headers) > MAX_HEADERS:  # trailers count, too
            raise TransferError("protocol", "too many trailers", received=True)
        self._keep_alive = self._parser.should_keep_alive()
        self.complete = True
