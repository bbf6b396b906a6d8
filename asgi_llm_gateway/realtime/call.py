"""One call of a session: a fresh request into the stack, and its answer as frames."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Protocol

import orjson

from .._asgi import ASGIApp, Message, Scope
from .._sse import EventSplitter, EventTooLong, data_of, split
from ..errors import GatewayError, RateLimited, UpstreamError
from ..passport import PASSPORT
from . import frames

log = logging.getLogger("asgi_llm_gateway")


class Cancelled(GatewayError):
    """The peer asked for the call's end, or the session ended."""

    status, type, code = 499, "cancelled", "cancelled"


class Channel(Protocol):
    """Where a call's frames go."""

    async def emit(self, call: Call, text: str) -> None:
        """Wait until a frame has left, or never will."""
        ...


class Call:
    """A call in flight.

    Args:
        channel: The session.
        ask: What is asked.
        scope: Its scope.
        limit: Bytes of an answer that is no stream, and of an event.

    Attributes:
        id: The peer's name for it.
        task: What runs it.
        leaving: Done when its newest frame has left.
        status: The answer's HTTP status, once it has begun.
        refused: The code of its refusal, where it did not even get in.
    """

    def __init__(self, channel: Channel, ask: frames.Ask, scope: Scope, limit: int) -> None:
        self.id = ask.id
        self.task: asyncio.Task[None] | None = None
        self.leaving: asyncio.Future[None] | None = None
        self.status: int | None = None
        self._channel = channel
        self._scope = scope
        self._limit = limit
        self._body: bytes | None = ask.body
        self._front = frames.chunk(ask.id)
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] | None = None
        self._size = 0
        self._splitter: EventSplitter | None = None
        self.refused: str | None = None
        self._gone = asyncio.Event()
        self._telling = False
        self._complete = False
        self._error: dict[str, Any] | None = None  # told within the stream
        self._failure: GatewayError | None = None

    async def run(self, entry: ASGIApp) -> None:
        """Make the call, and say how it ended when it is settled."""
        try:
            await entry(self._scope, self._receive, self._send)
        except GatewayError as error:  # its start had gone out
            self._fail(error)
        except asyncio.CancelledError:  # it did not end by itself after the hang-up
            self._fail(Cancelled("The call was cancelled."))
        except Exception as error:
            # The type only: what an app says of its failure may repeat the prompt.
            log.error("a realtime call failed: %s", type(error).__name__)
            self._fail(GatewayError("The gateway, or the app behind it, failed. Its log says why."))
        self._telling = True
        last = self._last()
        # The exchange refers to us by ``receive``, and we to it: let go, so that no garbage collector is needed.
        self._scope[PASSPORT].exchange = None
        await self._channel.emit(self, last)

    def cancel(self) -> bool:
        """End what did not end by itself after the hang-up; whether there was something to end.

        A call that is settled and has only a last word to say may say it.
        """
        if self.task is None or self.task.done() or self._telling:
            return False
        self.task.cancel()
        return True

    def hang_up(self) -> None:
        """Tell the call that its client has left."""
        if not self._complete:
            self._fail(Cancelled("The call was cancelled."))
        self._gone.set()

    @property
    def left(self) -> bool:
        """Whether nobody waits for its answer any more, or it is complete and only its last frame is to be told."""
        return self._gone.is_set() or self._telling

    @property
    def over(self) -> bool:
        """Whether its last frame has left."""
        return self._telling and self.leaving is not None and self.leaving.done()

    def _fail(self, error: GatewayError) -> None:
        if self._failure is None:
            self._failure = error

    # -- the stack's side ----------------------------------------------------------------------------------------------

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._gone.is_set():  # as a server does after a hang-up
            return
        if message["type"] == "http.response.start":
            self._start(message)
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            last = not message.get("more_body")
            try:
                if self._splitter is not None:
                    await self._events(self._splitter, body, last)
                else:
                    self._collect(body)
                    if last:
                        await self._whole()
            except (EventTooLong, _TooLong):
                # The rest of it can't be told: the call is given up, and paid for.
                self._fail(UpstreamError(f"The answer has a part of over {self._limit} bytes; ask for a stream.",
                                         code="answer_too_large"))  # fmt: skip
                self._gone.set()
                return
            if last:
                self._complete = True
                self._gone.set()

    def _start(self, message: Message) -> None:
        self.status = message["status"]
        kind = b""
        for name, value in message.get("headers") or ():
            name = name.lower()
            if name == b"content-type":
                kind = value.lower()
            else:
                plain = name.decode("latin-1")
                if plain.startswith(frames.TOLD):
                    self._headers[plain] = value.decode("latin-1")
        if message["status"] < 400 and kind.startswith(b"text/event-stream"):
            self._splitter = EventSplitter(self._limit)
        else:
            self._parts = []

    def _collect(self, body: bytes) -> None:
        assert self._parts is not None, "the answer's start comes first"
        self._size += len(body)
        if self._size > self._limit:
            self._parts.clear()
            raise _TooLong
        self._parts.append(body)

    async def _whole(self) -> None:
        body = b"".join(self._parts or ())
        if self.status is not None and self.status < 400:
            await self._chunk(body)
            return
        told = _object_of(body)
        error = told.get("error") if told is not None else None
        if isinstance(error, dict):
            self._error = error
        else:  # a stranger's words; what is no JSON may be a page of HTML
            self._error = {"message": "The app answered with an error.", "type": "upstream_error", "code": None}

    async def _events(self, splitter: EventSplitter, body: bytes, last: bool) -> None:
        whole = splitter.whole(body)
        if last and splitter.rest.strip():
            whole += splitter.rest  # an event that the end of the stream ends; a server must send the blank line
        for event in split(whole):
            data = data_of(event)
            if data is None or data == b"[DONE]":
                continue
            await self._chunk(data)
            if self._gone.is_set():
                return

    async def _chunk(self, data: bytes) -> None:
        """One piece of the answer. It is checked to be JSON, for it is put into the frame as it is."""
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            data = orjson.dumps(data.decode("utf-8", "replace"))
        else:
            if type(value) is dict and "error" in value and "choices" not in value and self._splitter is not None:
                error = value["error"]
                if isinstance(error, dict):  # chat and messages end a stream that failed so; the frame says it
                    self._error = error
                    return
            elif type(value) is dict and value.get("type") == "error" and self._splitter is not None:
                self._error = {name: value.get(name) for name in ("message", "code", "param")}  # Responses' own event
                return
        await self._channel.emit(self, (self._front + data + b"}").decode())

    # -- the end -------------------------------------------------------------------------------------------------------

    def _last(self) -> str:
        """The frame that ends the call: the only one of its kind."""
        exchange = self._scope[PASSPORT].exchange
        account: Mapping[str, Any] = {
            "usage": exchange.usage if exchange is not None else None,
            "cost": exchange.cost if exchange is not None else None,
            "headers": self._headers,
        }
        if self._failure is None and self._error is None and not self._complete:
            self._fail(UpstreamError("The answer was cut short.", code="answer_cut"))
        if self._failure is not None:
            error = self._failure.as_dict()["error"]
            return frames.failed(self.id, error, status=self._failure.http_status, **account)
        if self._error is not None:
            status = self.status if self.status is not None and self.status >= 400 else 502
            if exchange is None and status in (401, 403):  # the tenant's gate stands outside whoever notes the exchange
                self.refused = self._error.get("code")
            return frames.failed(self.id, self._error, status=status, **account)
        return frames.done(self.id, status=self.status or 200, **account)


class _TooLong(Exception):
    """An answer over the limit."""


def _object_of(body: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if type(value) is dict else None


def too_many(most: int) -> RateLimited:
    """The session has as many calls in flight as it may."""
    return RateLimited(
        f"The session has {most} calls in flight, as many as it may. Wait for one to end.", code="too_many_messages"
    )


__all__ = ["Call", "Cancelled", "Channel", "too_many"]
