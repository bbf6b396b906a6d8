"""The WebSocket lane: one session over one websocket, and the sessions that an event loop has."""

from __future__ import annotations

import asyncio
import logging
import time

from .._asgi import Receive, Scope, Send
from .._closing import on_close
from .._perloop import PerLoop
from ..draining import Drain, drain
from ..errors import BadRequest
from ..passport import PROTOCOL
from ..realtime.outbox import Gone
from ..realtime.session import SHUT_DOWN, End, Session

log = logging.getLogger("asgi_llm_gateway")

PIECE = 64 * 1024
"""Bytes of one message: a big frame holds up the others for no longer than such a piece takes."""


class Socket:
    """A websocket as a session's transport (see realtime.outbox.Transport)."""

    most = PIECE

    def __init__(self, send: Send) -> None:
        self._send = send

    async def send(self, text: str) -> None:
        """Waits while the server's buffer is full: ASGI servers do so in ``send``. Raises Gone."""
        try:
            await self._send({"type": "websocket.send", "text": text})
        except Exception as error:  # a server says in its own way that the client has left
            raise Gone from error

    async def close(self, code: int, reason: str) -> None:
        """Raises Gone."""
        try:
            await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except Exception as error:  # servers each have their own for a client that left
            raise Gone from error


def subprotocol_of(scope: Scope) -> str | None:
    """The subprotocol to answer. A browser that offers some wants one of them back. Raises BadRequest."""
    offered = scope.get("subprotocols") or ()
    if PROTOCOL in offered:
        return PROTOCOL
    if offered:
        raise BadRequest(f"Offer the subprotocol '{PROTOCOL}': it is the version of the frames.",
                         param="sec-websocket-protocol", code="unsupported_protocol")  # fmt: skip
    return None


async def listen(receive: Receive, session: Session) -> None:
    """Feed a session what comes, until the peer leaves. It never waits for anything else, so a hang-up is seen at once."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            session.lost()
            return
        if message["type"] == "websocket.receive":
            text = message.get("text")
            session.feed(message.get("bytes", b"").decode("utf-8", "replace") if text is None else text)
            await asyncio.sleep(0)  # messages that came together wait in the server: answers shall go out between


class Sessions:
    """The sessions of each event loop. They end when the process does: new calls first, then those that run."""

    def __init__(self) -> None:
        self._here: PerLoop[_Here] = PerLoop()

    async def live(self, session: Session) -> End:
        """A session's whole life."""
        here = self._here.get()
        if here is None or here.drain is not drain():
            here = self._here.put(_Here(drain(), here))
            on_close(here.close)
        here.sessions.add(session)
        began, reason = time.monotonic(), "the server gave it up"
        try:
            end = await session.run()
            reason = end.reason
            return end
        finally:
            here.sessions.discard(session)
            log.info("the realtime session %s of '%s' ended after %.1f s: %s", session.id, session.passport.acting,
                     time.monotonic() - began, reason)  # fmt: skip


class _Here:
    """Of one event loop, in one life of its gateway."""

    def __init__(self, state: Drain, before: _Here | None) -> None:
        self.drain = state
        self.sessions: set[Session] = before.sessions if before is not None else set()
        self._tasks: set[asyncio.Task[None]] = set()
        state.when_refusing(self._refuse)
        state.when_ended(self._end)

    def _refuse(self) -> None:
        from ..settings import current

        grace = current().shutdown_grace_seconds
        for session in self.sessions:
            task = asyncio.get_running_loop().create_task(session.drain(grace))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self.drain.lingering.add(task)
            task.add_done_callback(self.drain.lingering.discard)

    def _end(self) -> None:
        for session in list(self.sessions):
            session.end(SHUT_DOWN)

    async def close(self) -> None:
        """End what is left, before what its calls need is closed."""
        self._end()
        while self.sessions:  # noqa: ASYNC110 - at a process's end
            await asyncio.sleep(0.01)


__all__ = ["PIECE", "Sessions", "Socket", "listen", "subprotocol_of"]
