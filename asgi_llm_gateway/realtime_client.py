"""A client of realtime sessions over WebRTC: ``async with connect(url, key) as session``, then ``session.chat(body)``.

It needs the extra ``webrtc``. The frames are described in docs/realtime.md.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urljoin

import orjson

from .passport import CALLS_PATH, ICE_PATH, PROTOCOL
from .realtime import frames

try:
    from aiortc import (
        RTCConfiguration,
        RTCDataChannel,
        RTCIceServer,
        RTCIceTransportPolicy,
        RTCPeerConnection,
        RTCSessionDescription,
    )
except ImportError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError("WebRTC needs: pip install 'asgi-llm-gateway[webrtc]'", name=error.name) from None

LABEL = "llm-stream"
"""The data channel's name."""

_PIECE = 16 * 1024
_HIGH, _LOW = 256 * 1024, 64 * 1024
_LARGEST = 64 * 1024 * 1024
"""Bytes of frames from the gateway that have begun to come in parts."""


class RealtimeError(Exception):
    """A call that was refused or failed, or a session that could not be opened or has ended.

    Attributes:
        status: HTTP status, as the gateway would have answered over HTTP; 0 where the session ended.
        code: The stable name of the failure.
        error: OpenAI's error object.
        usage: Tokens that were used all the same; ``None``: not known.
        cost_usd: What it cost all the same; ``None``: not known.
    """

    def __init__(
        self,
        error: Mapping[str, Any],
        status: int = 0,
        usage: Mapping[str, Any] | None = None,
        cost: float | None = None,
    ) -> None:
        super().__init__(error.get("message") or "The call failed.")
        self.status = status
        self.code: str | None = error.get("code")
        self.error = dict(error)
        self.usage = usage
        self.cost_usd = cost


class Stream:
    """One call: iterate over its chunks, which are what the gateway's stream over HTTP has as ``data``.

    A call without ``"stream": true`` has one chunk, the whole answer. Leaving the loop early does not end the call; use
    ``async with``, or ``cancel``.

    Attributes:
        id: Its id in the session.
        usage: Tokens, once it has ended.
        cost_usd: What it cost, once it has ended; ``None``: not known.
        headers: What the answer's headers tell, once it has ended.
    """

    def __init__(self, session: Session, id: str) -> None:
        self.id = id
        self.usage: Mapping[str, Any] | None = None
        self.cost_usd: float | None = None
        self.headers: Mapping[str, str] = {}
        self._session = session
        self._chunks: deque[Any] = deque()
        self._end: RealtimeError | StopAsyncIteration | None = None
        self._due = asyncio.Event()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        """The next chunk. Raises RealtimeError."""
        while not self._chunks:
            if self._end is not None:
                if isinstance(self._end, StopAsyncIteration):
                    raise StopAsyncIteration
                raise self._end
            self._due.clear()
            await self._due.wait()
        return self._chunks.popleft()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.cancel()

    async def cancel(self) -> None:
        """End the call, its upstream too; the gateway's last word on it is an error with the code ``cancelled``."""
        if self._end is None:
            await self._session._say({"type": "cancel", "id": self.id})

    def _hear(self, frame: Mapping[str, Any]) -> None:
        kind = frame["type"]
        if kind == "response.chunk":
            self._chunks.append(frame["data"])
        else:
            self.usage, self.cost_usd = frame.get("usage"), frame.get("cost_usd")
            self.headers = frame.get("headers") or {}
            if kind == "error":
                self._finish(RealtimeError(frame["error"], frame["status"], self.usage, self.cost_usd))
            else:
                self._finish(StopAsyncIteration())
        self._due.set()

    def _finish(self, end: RealtimeError | StopAsyncIteration) -> None:
        if self._end is None:
            self._end = end
        self._due.set()


class Session:
    """An open session; ``connect`` makes it.

    Attributes:
        id: Its name.
        location: The URL that hangs it up.
        limits: What the gateway told of its limits.
    """

    def __init__(self, connection: RTCPeerConnection, channel: RTCDataChannel) -> None:
        self.id = ""
        self.location = ""
        self.limits: Mapping[str, Any] = {}
        self._connection = connection
        self._channel = channel
        self._streams: dict[str, Stream] = {}
        self._joiner = frames.Joiner(_LARGEST)
        self._parts = 0
        self._calls = 0
        self._created = asyncio.get_running_loop().create_future()
        self._ended: RealtimeError | None = None
        self._low = asyncio.Event()
        self._low.set()
        channel.bufferedAmountLowThreshold = _LOW
        channel.on("bufferedamountlow", self._low.set)
        channel.on("message", self._hear)
        channel.on("close", self._lost)
        connection.on("connectionstatechange", self._changed)

    def chat(self, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> Stream:
        """A chat completion, as a stream unless the body says ``"stream": false``."""
        return self.call("chat.completions.create", {"stream": True, **body}, headers=headers)

    def call(self, kind: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> Stream:
        """A call of any kind: ``chat.completions.create``, ``embeddings.create``, ``messages.create``, ``responses.create``.

        Args:
            kind: Which.
            body: The request, as over HTTP.
            headers: More headers of this call; docs/realtime.md lists those that may be sent.
        """
        self._calls += 1
        stream = Stream(self, str(self._calls))
        if self._ended is not None:
            stream._finish(self._ended)
            return stream
        frame = {"type": kind, "id": stream.id, "body": body}
        self._put(frame if headers is None else {**frame, "headers": dict(headers)})  # raises for what is no JSON
        self._streams[stream.id] = stream
        return stream

    async def close(self) -> None:
        """Hang up: calls that run are ended, and paid for."""
        self._lost()
        self._channel.close()
        async with asyncio.timeout(10):
            await self._connection.close()

    async def _opened(self) -> None:
        await self._created

    async def _say(self, frame: Mapping[str, Any]) -> None:
        self._put(frame)
        if self._channel.readyState == "open" and self._channel.bufferedAmount > _HIGH:
            self._low.clear()
            await self._low.wait()

    def _put(self, frame: Mapping[str, Any]) -> None:
        if self._channel.readyState != "open":
            return  # the streams are told of the end
        self._parts = (self._parts + 1) % 2**31
        for piece in frames.pieces(json.dumps(frame, ensure_ascii=False, separators=(",", ":")), _PIECE, self._parts):
            self._channel.send(piece)

    def _hear(self, text: str) -> None:
        frame = orjson.loads(text)
        if frame["type"] == "part":
            whole = self._joiner.feed(frames.Part(frame["part"], frame["index"], frame["last"], frame["text"]))
            if whole is None:
                return
            frame = orjson.loads(whole)
        kind, id = frame["type"], frame.get("id")
        if id is not None:
            stream = self._streams.get(id) if kind == "response.chunk" else self._streams.pop(id, None)
            if stream is not None:
                stream._hear(frame)
        elif kind == "ping":
            self._put({"type": "pong"})
        elif kind == "session.created":
            self.id, self.limits = frame["session"]["id"], frame["session"]["limits"]
            if not self._created.done():
                self._created.set_result(None)
        elif kind == "session.closed":
            self._lost(frame["reason"], frame["message"])

    def _changed(self) -> None:
        if self._connection.connectionState in ("failed", "closed"):
            self._lost()

    def _lost(self, reason: str = "session_closed", message: str = "The session has ended.") -> None:
        if self._ended is None:
            self._ended = RealtimeError({"message": message, "type": "session_closed", "code": reason, "param": None})
        self._low.set()
        for stream in self._streams.values():
            stream._finish(self._ended)
        self._streams.clear()
        if not self._created.done():
            self._created.set_exception(self._ended)
            self._created.exception()  # nobody need wait for it any more


@asynccontextmanager
async def connect(
    url: str, key: str, *, headers: Mapping[str, str] | None = None, relay_only: bool = False, timeout: float = 20.0
) -> AsyncIterator[Session]:
    """Open a session over WebRTC.

    Args:
        url: The gateway, less ``/v1``: ``https://gateway.example``, or with the path that it is mounted at.
        key: An API key, or a client secret.
        headers: More headers of the handshake, for instance ``x-tenant-id``.
        relay_only: Go through a TURN server in any case.
        timeout: Seconds until the session must be open.

    Raises:
        RealtimeError: The gateway refuses, or the session ends before it is open.
        TimeoutError: No way to the gateway was found in time.
    """
    base = url.rstrip("/").removesuffix("/v1")
    sent = {**(headers or {}), "authorization": f"Bearer {key}"}
    connection: RTCPeerConnection | None = None
    session: Session | None = None
    try:
        async with asyncio.timeout(timeout):
            _, ice = await _ask("GET", base + ICE_PATH, sent)
            policy = RTCIceTransportPolicy.RELAY if relay_only else RTCIceTransportPolicy.ALL
            servers = [RTCIceServer(**server) for server in json.loads(ice)["iceServers"]]
            connection = RTCPeerConnection(RTCConfiguration(iceServers=servers, iceTransportPolicy=policy))
            session = Session(connection, connection.createDataChannel(LABEL, protocol=PROTOCOL))
            await connection.setLocalDescription(await connection.createOffer())
            offer = connection.localDescription.sdp.encode()
            location, answer = await _ask("POST", base + CALLS_PATH, {**sent, "content-type": "application/sdp"}, offer)
            session.location = urljoin(base + "/", location)
            await connection.setRemoteDescription(RTCSessionDescription(answer.decode(), "answer"))
            await session._opened()
        yield session
    finally:
        if session is not None:
            await session.close()
        elif connection is not None:
            await connection.close()


async def _ask(method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> tuple[str, bytes]:
    """One HTTP request: the answer's Location and body. Raises RealtimeError."""

    def ask() -> tuple[str, bytes]:
        if not url.startswith(("http://", "https://")):
            raise ValueError("the gateway's URL begins with http:// or https://")
        request = urllib.request.Request(url, body, dict(headers), method=method)  # noqa: S310 - checked above
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the same
                return answer.headers.get("location") or "", answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.code, error.read()) from None

    return await asyncio.to_thread(ask)


def _refusal(status: int, body: bytes) -> RealtimeError:
    try:
        error = orjson.loads(body)["error"]
        return RealtimeError(error, status)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return RealtimeError({"message": f"The gateway answered {status}.", "code": None}, status)


__all__ = ["RealtimeError", "Session", "Stream", "connect"]
