"""What was said in a call, taken from what passes by, for those who asked for it (``contents``)."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any

import orjson

from .. import __version__
from .._asgi import Message, Receive, Send, header
from ..contents.capture import ContentCapture, Heard, as_json
from ..exchange import Exchange

EVENT = "gen_ai.client.inference.operation.details"
"""Source: OpenTelemetry semantic conventions, "Generative AI events", as of autumn 2026."""

TRUNCATED = "llm_gateway.content.truncated"
_IDENTITY = (b"", b"identity")


class Listener:
    """The ``send`` that keeps an answer while it passes, where the tenant's content is captured; and tells of it afterwards.

    Args:
        capture: Whose content, and how much of it.
        exchange: The call.
        inner: The server's side.
        provider: Where events go; ``None`` for OpenTelemetry's global logger provider.
    """

    __slots__ = ("_answer", "_asked", "_capture", "_exchange", "_provider", "inner")

    def __init__(self, capture: ContentCapture, exchange: Exchange, inner: Send, provider: Any = None) -> None:
        self.inner = inner
        self._capture = capture
        self._exchange = exchange
        self._provider = provider
        self._answer: Heard | None = None
        self._asked: Heard | None = None

    def __call__(self, message: Message) -> Awaitable[None]:
        """One message of the answer. By its start it is known whose call it is."""
        if self._answer is not None and message["type"] == "http.response.body":
            self._answer.add(message.get("body", b""))
        elif message["type"] == "http.response.start":
            self._answer = self._begun(message)
        return self.inner(message)

    def _begun(self, message: Message) -> Heard | None:
        if message["status"] >= 400 or not self._capture.wants(self._exchange.identity.tenant.id):
            return None
        kind = (header(message, b"content-type") or b"").lower()
        packed = (header(message, b"content-encoding") or b"").strip().lower()
        if packed not in _IDENTITY:  # not to be read
            return None
        if kind.startswith(b"text/event-stream"):
            return Heard(stream=True)
        return Heard() if kind.find(b"json") >= 0 else None

    def alone(self, receive: Receive) -> Receive:
        """The ``receive`` that keeps the request as well, where no gateway layer further in reads it."""
        if not self._capture.wants(self._exchange.identity.tenant.id):
            return receive
        asked = self._asked = Heard()

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                asked.add(message.get("body", b""))
            return message

        return heard

    def tell(self, span: Any) -> None:
        """Put what was said onto the call's span, which is about to end, and into an event. Never raises."""
        exchange = self._exchange
        capture = self._capture
        if not span.is_recording() or not capture.wants(exchange.identity.tenant.id):
            return
        content = capture.content(exchange.route.dialect, self._data(), self._answer or Heard())
        if not content.said:
            return
        try:
            if content.truncated:
                span.set_attribute(TRUNCATED, True)
            if capture.events:
                known = dict(getattr(span, "attributes", None) or {})
                _emit(self._provider, span, {**known, **content.said})
            if capture.spans:
                span.set_attributes(as_json(content))
        except Exception as error:  # somebody's log processor, or an older SDK
            capture.failed(error)

    def _data(self) -> dict[str, Any]:
        """The request's body, as far as it can be read."""
        if self._exchange.request is not None:
            return self._exchange.request.data
        try:
            data = orjson.loads(self._asked.bytes) if self._asked is not None else None
        except orjson.JSONDecodeError:
            data = None
        return data if type(data) is dict else {}


def _emit(provider: Any, span: Any, attributes: dict[str, Any]) -> None:
    from opentelemetry._logs import LogRecord, get_logger
    from opentelemetry.trace import set_span_in_context

    logger = get_logger("asgi_llm_gateway", __version__, provider)
    record = LogRecord(
        timestamp=time.time_ns(), event_name=EVENT, context=set_span_in_context(span), attributes=attributes
    )
    logger.emit(record)


__all__ = ["EVENT", "TRUNCATED", "Listener"]
