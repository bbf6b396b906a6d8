"""The engine of one session: frames come in, calls go through the stack, frames go out. It knows no transport."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
import time
from typing import NamedTuple

from .._asgi import ASGIApp, Scope, finish
from ..errors import GatewayError, Unavailable
from ..passport import Passport
from . import frames
from .call import Call, too_many
from .limits import Limits
from .outbox import Gone, Outbox, Transport
from .scopes import Origin

log = logging.getLogger("asgi_llm_gateway")

PATIENCE = 2.0
"""Seconds that a call has to end by itself once it was told of the hang-up; then it is cancelled."""

FAREWELL = 2.0
"""Seconds for the last frames of a session that ends."""

MOST_SAID = 256
"""Frames about the session that may wait for a peer which does not read."""

_TICK = 0.25
"""Seconds between two looks at the clock."""

_FATAL = frozenset({"invalid_api_key", "tenant_disabled"})
"""Refusals that no further message of a session could escape."""


class End(NamedTuple):
    """Why a session ends: a stable name, a close code, and what the peer is told."""

    reason: str
    code: int
    message: str


LOST = End("peer_lost", 1006, "The peer has left.")
CLOSED = End("closed", 1000, "The session was closed.")
SHUT_DOWN = End("shutting_down", 1001, "The gateway is shutting down. Open a session elsewhere.")
FLOOD = End("too_many_bad_frames", 1008, "More was sent that can't be taken than the peer reads answers to.")


class Session:
    """One session. Feed it what the peer sends; ``run`` sends what is to be said, and lasts as long as the session.

    Args:
        entry: The outermost gateway layer: where each call begins.
        scope: Of the request that opened the session.
        passport: Who it speaks for.
        limits: What it may take.
        transport: The channel.

    Attributes:
        id: Its name, in the first frame.
        calls: Those in flight, by id.
    """

    def __init__(self, entry: ASGIApp, scope: Scope, passport: Passport, limits: Limits, transport: Transport) -> None:
        self.id = "rts_" + secrets.token_hex(12)
        self.calls: dict[str, Call] = {}
        self.passport = passport
        self._entry = entry
        self._origin = Origin(scope, passport)
        self._limits = limits
        self._transport = transport
        self._joiner = frames.Joiner(limits.frame_bytes)
        self._out = Outbox(transport)
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._leaving = False
        self._began = self._heard = self._stirred = time.monotonic()
        self._pinged: float | None = None
        self._answers_pings = False

    # -- what the peer sends -------------------------------------------------------------------------------------------

    def feed(self, text: str) -> None:
        """One message from the peer. It never waits and never raises; what can't be taken is answered."""
        if self._ended.done():
            return
        self._heard = time.monotonic()
        self._pinged = None
        try:
            if len(text) > self._limits.frame_bytes or frames.size_of(text) > self._limits.frame_bytes:
                raise frames.too_large(self._limits.frame_bytes)
            frame = frames.read(text)
            if isinstance(frame, frames.Part):
                whole = self._joiner.feed(frame)
                if whole is None:
                    return
                frame = frames.read(whole)
                if isinstance(frame, frames.Part):
                    raise frames.BadFrame("A part of a part: cut a frame once.", param="type")
            self._take(frame)
        except frames.BadFrame as error:
            # An error under the id of a call that runs would be taken for that call's end.
            self._say(frames.refused(None if error.id in self.calls else error.id, error))

    def _take(self, frame: frames.Ask | frames.Cancel | frames.Beat) -> None:
        if isinstance(frame, frames.Ask):
            self._ask(frame)
        elif isinstance(frame, frames.Cancel):
            call = self.calls.get(frame.id)
            if call is not None:  # else it has just ended: its last frame is on its way
                self._hang_up(call)
        elif frame.ping:
            self._say(frames.plain("pong"))
        else:
            self._answers_pings = True

    def _ask(self, ask: frames.Ask) -> None:
        refusal: GatewayError | None = None
        self._stirred = self._heard
        if ask.id in self.calls and not self.calls[ask.id].over:
            raise frames.BadFrame(f"A call with the id '{ask.id}' is in flight. Give each its own.",
                                  id=ask.id, param="id", code="duplicate_id")  # fmt: skip
        if self._leaving:
            refusal = Unavailable("The gateway is shutting down. Open a session elsewhere.", code="shutting_down")
        elif self._running() >= self._limits.messages:
            refusal = too_many(self._limits.messages)
        if refusal is not None:
            self._say(frames.refused(ask.id, refusal))
            return
        scope = self._origin.scope(ask.path, len(ask.body), ask.headers)
        call = self.calls[ask.id] = Call(self, ask, scope, self._limits.frame_bytes)
        self._idle.clear()
        # A context of its own: nothing of the request that opened the session is the call's, its trace least of all.
        call.task = asyncio.get_running_loop().create_task(call.run(self._entry), context=contextvars.Context())
        call.task.add_done_callback(lambda task: self._left(call, task))

    def _running(self) -> int:
        """Calls in flight. One whose last frame has left is none: the peer may ask anew before its task has ended."""
        most = self._limits.messages
        return len(self.calls) if len(self.calls) < most else sum(not call.over for call in self.calls.values())

    def _left(self, call: Call, task: asyncio.Task[None]) -> None:
        """A call has ended, and its last frame has left."""
        if self.calls.get(call.id) is call:
            del self.calls[call.id]
        self._stirred = time.monotonic()
        if not self.calls:
            self._idle.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("a realtime call could not be ended: %s", type(task.exception()).__name__)
        if call.refused in _FATAL:
            self.end(End(call.refused or "", 1008, "The session's key is no longer good, or its tenant is disabled."))

    def lost(self) -> None:
        """The peer has left: its calls are hung up."""
        self.end(LOST)

    def end(self, end: End = CLOSED) -> None:
        """End the session; ``run`` sees to it. The first reason counts."""
        if not self._ended.done():
            self._ended.set_result(end)

    async def drain(self, grace: float) -> None:
        """No new calls; those in flight have ``grace`` seconds; then the session ends."""
        if not self._leaving and not self._ended.done():
            self._leaving = True
            self._say(frames.plain("session.closing", reason=SHUT_DOWN.reason, seconds=grace))
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            pass
        self.end(SHUT_DOWN)

    def _hang_up(self, call: Call) -> None:
        """Tell a call that its client has left, and see that it ends."""
        if call.left:
            return
        call.hang_up()
        self._out.drop(call)
        asyncio.get_running_loop().call_later(PATIENCE, self._cancel, call)

    def _cancel(self, call: Call) -> None:
        """Cancel a call that did not end by itself; again, for somebody may take a cancellation for their own."""
        if call.cancel():
            asyncio.get_running_loop().call_later(PATIENCE, self._cancel, call)

    # -- what is said --------------------------------------------------------------------------------------------------

    async def emit(self, call: Call, text: str) -> None:
        """See call.Channel: waits until the frame has left."""
        call.leaving = self._out.put(text, call)
        await call.leaving

    def _say(self, text: str) -> None:
        """Something about the session, that nobody waits for."""
        if self._out.said >= MOST_SAID:
            self.end(FLOOD)
        else:
            self._out.put(text)

    # -- the session's life --------------------------------------------------------------------------------------------

    async def run(self) -> End:
        """From the first frame to the end, when every call has ended and is settled."""
        self._say(self._hello())
        writer = asyncio.get_running_loop().create_task(self._out.run())
        writer.add_done_callback(self._unable)
        watch = asyncio.get_running_loop().create_task(self._watch())
        try:
            end = await asyncio.shield(self._ended)
        except asyncio.CancelledError:  # the server gives the connection up
            self.end(LOST)
            raise
        finally:
            watch.cancel()
            await finish(self._wind_up(writer))
        return end

    def _hello(self) -> str:
        limits = self._limits
        told = {
            "max_messages": limits.messages,
            "max_frame_bytes": limits.frame_bytes,
            "max_message_bytes": self._transport.most,
            "idle_seconds": limits.idle,
            "total_seconds": limits.total,
            "ping_seconds": limits.ping,
        }
        return frames.plain("session.created", v=frames.VERSION, session={"id": self.id, "limits": told})

    def _unable(self, writer: asyncio.Task[None]) -> None:
        if writer.cancelled():
            return
        error = writer.exception()
        if error is not None and not isinstance(error, Gone):
            log.error("a realtime session's channel failed: %s", type(error).__name__)
        self.end(LOST)
        self._out.shut()

    async def _watch(self) -> None:
        """End the session in time."""
        limits = self._limits
        while not self._ended.done():
            await asyncio.sleep(min(_TICK, limits.idle / 4, limits.total / 4))
            now = time.monotonic()
            if now - self._began >= limits.total:
                self.end(
                    End("session_expired", 1008, f"A session lasts {limits.total:g} seconds at most. Open another.")
                )
            elif self._out.sending is not None and now - self._out.sending >= limits.idle:
                self.end(End("peer_not_reading", 1008, f"Nothing was read for {limits.idle:g} seconds."))
            elif not self.calls and now - self._stirred >= limits.idle:
                self.end(End("idle_timeout", 1008, f"Nothing was asked for {limits.idle:g} seconds."))
            elif limits.ping and now - self._heard >= limits.ping:
                self._ping(now)

    def _ping(self, now: float) -> None:
        """Ask a silent peer for a sign of life. One that has answered such a question once is expected to do so always."""
        if self._pinged is None:
            self._pinged = now
            self._out.put(frames.plain("ping"))
        elif self._answers_pings and now - self._pinged >= self._limits.ping:
            self.lost()

    async def _wind_up(self, writer: asyncio.Task[None]) -> None:
        """Hang up all calls and wait for them; then the last words, if anybody is there to hear them."""
        end = self._ended.result()
        self._joiner = frames.Joiner(0)
        if end is LOST:
            self._out.shut()
        for call in list(self.calls.values()):
            self._hang_up(call)
        # Their last frames wait for a peer that may not read.
        try:
            async with asyncio.timeout(PATIENCE + FAREWELL):
                await self._idle.wait()
        except TimeoutError:
            pass
        self._out.shut()
        await self._idle.wait()
        if end is not LOST:
            await self._farewell(end, writer)
        writer.cancel()
        await asyncio.wait({writer})

    async def _farewell(self, end: End, writer: asyncio.Task[None]) -> None:
        try:
            async with asyncio.timeout(FAREWELL):
                if not writer.done():
                    closed = frames.plain("session.closed", reason=end.reason, message=end.message)
                    await asyncio.wait({self._out.put(closed), writer}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass
        try:
            async with asyncio.timeout(FAREWELL):
                await self._transport.close(end.code, end.reason)
        except (TimeoutError, Gone):
            pass

    def __repr__(self) -> str:
        return f"Session({self.id}, {len(self.calls)} calls)"


__all__ = ["CLOSED", "FAREWELL", "FLOOD", "LOST", "PATIENCE", "SHUT_DOWN", "End", "Session"]
