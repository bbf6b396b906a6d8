"""One WebRTC peer: its connection, and its data channel as a session's transport."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from . import frames
from .outbox import Gone
from .session import Session

try:
    from aiortc import RTCConfiguration, RTCDataChannel, RTCIceServer, RTCPeerConnection, RTCSessionDescription
except ImportError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError("WebRTC needs: pip install 'asgi-llm-gateway[webrtc]'", name=error.name) from None

from ..errors import Unavailable
from ..passport import PROTOCOL
from . import _consent
from .sdp import BadOffer, Offer

log = logging.getLogger("asgi_llm_gateway")

LABEL = "llm-stream"
"""The data channel's name."""

PIECE = 16 * 1024
"""Bytes of one message: peers of all makers take that much, and it does not hold up others. Source: RFC 8831, 6.6."""

HIGH, LOW = 256 * 1024, 64 * 1024
"""Bytes waiting in a channel: above the one nothing more is put there until they are fewer than the other."""

OWN_AFTER = 2.0
"""Seconds after the connection stands in which the peer opens the channel; then we do."""

_MOST_OTHER = 8
"""Channels that are not ours; a peer that opens more is sent away."""

_CLOSING = 1.5
"""Seconds for the last frames to arrive."""

_UNREAD = 2 * 1024 * 1024
"""Bytes of messages that have begun and not ended: twice the window that the peer was told of."""


class Peer:
    """A peer, as realtime.outbox.Transport.

    Args:
        offer: What it offered.
        stun: ``stun:`` URLs, by which we learn our own address behind a NAT. One is used.

    Attributes:
        most: Bytes of one message.
        gone: Set once nothing can be sent any more.
    """

    def __init__(self, offer: Offer, stun: tuple[str, ...]) -> None:
        self.most = min(PIECE, offer.most or PIECE)
        self.gone = asyncio.Event()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._offer = offer
        servers = [RTCIceServer(urls=url) for url in stun[:1] if url.startswith("stun:")]
        # Without a list the library asks a server of somebody else's.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._connection.on("datachannel", self._offered)
        self._connection.on("connectionstatechange", self._changed)
        self._channel: RTCDataChannel | None = None
        self._session: Session | None = None
        self._early: list[str] = []
        self._other = 0
        self._listening = False
        self._low = asyncio.Event()
        self._low.set()
        self._timer: asyncio.TimerHandle | None = None

    async def answer(self, session: Session) -> str:
        """The SDP of our answer, with all candidates. Raises BadOffer, Unavailable."""
        try:
            await self._connection.setRemoteDescription(RTCSessionDescription(self._offer.sdp, "offer"))
            sctp = self._connection.sctp
            assert sctp is not None
            _consent.watch(getattr(sctp.transport.transport, "_connection", None), lambda: bool(session.calls))
            answer = await self._connection.createAnswer()
        except Exception as error:
            # Its words may hold the offer's addresses and password.
            log.info("an offer was not understood: %s", type(error).__name__)
            raise BadOffer("The offer can't be read. Send the browser's own, with its line breaks.") from None
        try:
            await self._connection.setLocalDescription(answer)
        except OSError as error:
            log.error("no WebRTC connection can be made: %s", error)
            raise Unavailable("No WebRTC connection can be made now.", code="webrtc_unavailable") from None
        self._session = session
        return self._connection.localDescription.sdp

    # -- the channel ---------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        state = self._connection.connectionState
        if state == "connected":
            if self._channel is None and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(OWN_AFTER, self._open)
        elif state in ("failed", "closed"):
            self._lose()

    def _open(self) -> None:
        if self._channel is None and not self.gone.is_set():
            self._take(self._connection.createDataChannel(LABEL, protocol=PROTOCOL))

    def _offered(self, channel: RTCDataChannel) -> None:
        ours = channel.label == LABEL and self._channel is None
        reliable = channel.ordered and channel.maxRetransmits is None and channel.maxPacketLifeTime is None
        if ours and reliable and channel.protocol in ("", PROTOCOL):
            self._take(channel)
            return
        if ours:
            error = frames.BadFrame(f"'{LABEL}' must be ordered and reliable, and of the protocol '{PROTOCOL}' or none.",
                                    code="unsupported_channel")  # fmt: skip
            channel.send(frames.refused(None, error))
        channel.close()
        self._other += 1
        if self._other > _MOST_OTHER:
            self._lose()

    def _take(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        channel.bufferedAmountLowThreshold = LOW
        channel.on("bufferedamountlow", self._low.set)
        channel.on("message", self._heard)
        channel.on("close", self._lose)
        if channel.readyState == "open":
            self._is_open()
        else:
            channel.on("open", self._is_open)

    def _is_open(self) -> None:
        if not self.opened.done():
            self.opened.set_result(None)

    def listen(self) -> None:
        """The session has said its first word: it is told what the peer has sent, and will send."""
        assert self._session is not None
        early, self._early = self._early, []
        self._listening = True
        for text in early:
            self._session.feed(text)

    def _heard(self, message: Any) -> None:
        text = message if isinstance(message, str) else bytes(message).decode("utf-8", "replace")
        if self._listening and self._session is not None:
            self._session.feed(text)
        elif len(self._early) < 64:  # the session begins in a moment
            self._early.append(text)
        else:
            self._lose()

    def _lose(self) -> None:
        self.gone.set()
        self._low.set()
        if not self.opened.done():
            self.opened.set_exception(Gone())
            self.opened.exception()  # whoever waits is told; nobody need wait
        if self._session is not None:
            self._session.lost()

    @property
    def hoards(self) -> bool:
        """Whether the peer sends messages without an end: a stack that obeys the window it was told of can't."""
        sctp = self._connection.sctp
        window = getattr(sctp, "_advertised_rwnd", 0) if sctp is not None else 0
        return bool(window < 1024 * 1024 - _UNREAD)

    # -- the session's side --------------------------------------------------------------------------------------------

    async def send(self, text: str) -> None:
        """See Transport: waits while too much waits in the channel. Raises Gone."""
        channel = self._channel
        if channel is None or channel.readyState != "open" or self.gone.is_set():
            raise Gone
        channel.send(text)
        if channel.bufferedAmount > HIGH:
            self._low.clear()
            await self._low.wait()
            if self.gone.is_set():
                raise Gone

    async def close(self, code: int, reason: str) -> None:
        """Close the channel when what was said has arrived; a data channel has no close code. Raises Gone."""
        channel = self._channel
        if channel is not None and channel.readyState == "open":
            channel.close()  # behind what waits in it. Source: W3C WebRTC, 6.2.4
            try:
                async with asyncio.timeout(_CLOSING):
                    await self.gone.wait()
            except TimeoutError:
                pass

    async def hang_up(self) -> None:
        """Close the connection. Safe to repeat."""
        if self._timer is not None:
            self._timer.cancel()
        self._lose()
        try:
            async with asyncio.timeout(5.0):
                await self._connection.close()
        except Exception as error:  # its sockets may be closed already, at a process's end
            log.warning("a WebRTC connection did not close: %s", type(error).__name__)
        self._connection.remove_all_listeners()
        if self._channel is not None:
            self._channel.remove_all_listeners()


__all__ = ["HIGH", "LABEL", "LOW", "OWN_AFTER", "PIECE", "Peer"]
