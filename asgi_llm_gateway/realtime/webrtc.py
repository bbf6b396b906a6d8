"""The WebRTC lane: peers that connect by an offer, each with a session of its own over one data channel."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from threading import Lock

from .._asgi import ASGIApp, Scope
from .._closing import on_close
from .._perloop import PerLoop
from ..draining import drain
from ..errors import RateLimited, Unavailable
from ..passport import Passport
from ._peer import Peer
from .limits import Census, Limits
from .outbox import Gone
from .sdp import Offer
from .session import CLOSED, SHUT_DOWN, End, Session

log = logging.getLogger("asgi_llm_gateway")

_LOOK = 1.0
"""Seconds between two looks at what a peer makes us keep."""


class Lane:
    """The peers of this process.

    Args:
        live: Runs a session to its end, and ends it when the process ends.
        census: Counts a tenant's sessions, of all lanes.
    """

    def __init__(self, live: Callable[[Session], Awaitable[End]], census: Census) -> None:
        self._live = live
        self._census = census
        self._half_open = Census()
        self._lock = Lock()
        self._calls: dict[str, _Call] = {}
        self._here: PerLoop[_Here] = PerLoop()

    async def open(
        self, entry: ASGIApp, scope: Scope, passport: Passport, limits: Limits, offer: Offer, stun: tuple[str, ...]
    ) -> tuple[str, str]:
        """Answer an offer: the call's id and the answer's SDP; the session begins when the peer has connected.

        Args:
            entry: The outermost gateway layer.
            scope: Of the request with the offer.
            passport: Whom the session speaks for.
            limits: What it may take.
            offer: The offer.
            stun: ``stun:`` URLs for ourselves.

        Raises:
            GatewayError: RateLimited for too many sessions or handshakes, BadOffer, Unavailable.
        """
        tenant = passport.acting
        self._census.enter(tenant, limits.sessions)
        try:
            self._enter_half_open(tenant, limits.half_open)
        except RateLimited:
            self._census.leave(tenant)
            raise
        loop = asyncio.get_running_loop()
        call = _Call(tenant, loop)
        answered: asyncio.Future[tuple[str, str]] = loop.create_future()
        # A context of its own: nothing of the request that brings the offer is the session's.
        task = loop.create_task(
            self._run(call, answered, entry, scope, passport, limits, offer, stun), context=contextvars.Context()
        )
        self._loop_state().keep(task, call)
        try:
            return await asyncio.shield(answered)
        except asyncio.CancelledError:  # the client left before the answer: it will never connect
            task.cancel()
            raise

    def hang_up(self, id: str, tenant: str) -> bool:
        """End a tenant's call, from any thread; ``False`` where it has none by that id."""
        with self._lock:
            call = self._calls.get(id)
        if call is None or call.tenant != tenant:
            return False
        call.loop.call_soon_threadsafe(call.end, CLOSED)
        return True

    def _enter_half_open(self, tenant: str, most: int) -> None:
        if self._half_open.count(tenant) >= most:
            raise RateLimited(
                f"{most} peers of the tenant have an answer and have not connected yet, as many as may be. Wait for them.",
                code="too_many_handshakes",
                headers=((b"retry-after", b"2"),),
            )
        self._half_open.enter(tenant, most)

    def _loop_state(self) -> _Here:
        here = self._here.get()
        if here is None or here.closed:
            here = self._here.put(_Here())
            on_close(here.close)
        return here

    async def _run(
        self,
        call: _Call,
        answered: asyncio.Future[tuple[str, str]],
        entry: ASGIApp,
        scope: Scope,
        passport: Passport,
        limits: Limits,
        offer: Offer,
        stun: tuple[str, ...],
    ) -> None:
        """A call's whole life."""
        half_open = True
        peer: Peer | None = None
        try:
            peer = Peer(offer, stun)
            # The stack below asks whether the peer is there; a frame that asks so would wait behind all others.
            session = Session(entry, scope, passport, replace(limits, ping=0), peer)
            call.session, call.id = session, session.id
            try:
                async with asyncio.timeout(limits.handshake):
                    sdp = await peer.answer(session)
                    with self._lock:
                        self._calls[call.id] = call
                    answered.set_result((call.id, sdp))
                    await peer.opened
            except TimeoutError:
                log.info("a WebRTC peer did not connect within %g seconds", limits.handshake)
                if not answered.done():
                    answered.set_exception(
                        Unavailable("Our own addresses could not be found in time. Is a server of STUN_URLS down?",
                                    code="webrtc_unavailable")
                    )  # fmt: skip
                return
            half_open = False
            self._half_open.leave(passport.acting)
            call.connected = True
            if drain().refusing:
                session.end(SHUT_DOWN)
            await self._converse(session, peer)
        except Gone:
            pass
        except asyncio.CancelledError:
            if not answered.done():
                answered.set_exception(Unavailable("The gateway is shutting down.", code="shutting_down"))
        except Exception as error:  # told to the one that waits for the answer, or logged
            if answered.done():
                log.error("a WebRTC session failed: %s", type(error).__name__)
            else:
                answered.set_exception(error)
        finally:
            if half_open:
                self._half_open.leave(passport.acting)
            self._census.leave(passport.acting)
            with self._lock:
                self._calls.pop(call.id, None)
            if peer is not None:
                await peer.hang_up()

    async def _converse(self, session: Session, peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(peer.listen)  # once the session has said who it is
        guard = loop.create_task(_guard(session, peer))
        try:
            await self._live(session)
        finally:
            guard.cancel()


async def _guard(session: Session, peer: Peer) -> None:
    while True:
        await asyncio.sleep(_LOOK)
        if peer.hoards:
            session.end(End("message_too_large", 1009, "A message was begun and not ended."))
            return


class _Call:
    """A call in the list of those that can be hung up."""

    def __init__(self, tenant: str, loop: asyncio.AbstractEventLoop) -> None:
        self.tenant = tenant
        self.loop = loop
        self.id = ""
        self.session: Session | None = None
        self.connected = False
        self.task: asyncio.Task[None] | None = None

    def end(self, end: End) -> None:
        """End the session; a peer that has not connected has none yet."""
        if self.connected and self.session is not None:
            self.session.end(end)
        elif self.task is not None:
            self.task.cancel()


class _Here:
    """The calls of one event loop."""

    def __init__(self) -> None:
        self.closed = False
        self._calls: dict[asyncio.Task[None], _Call] = {}

    def keep(self, task: asyncio.Task[None], call: _Call) -> None:
        call.task = task
        self._calls[task] = call
        task.add_done_callback(lambda done: self._calls.pop(done, None))

    async def close(self) -> None:
        """End all calls, and wait for their connections to close."""
        self.closed = True
        for call in list(self._calls.values()):
            call.end(SHUT_DOWN)
        if self._calls:
            await asyncio.wait(list(self._calls))


__all__ = ["Lane"]
