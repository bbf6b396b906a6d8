"""A provider that is asked in chat's words on behalf of a client that speaks another dialect."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from ..errors import BadRequest, GatewayError, Header
from ..fronts.base import Front, FrontStream
from ..fronts.messages import MessagesFront
from ..fronts.responses import ResponsesFront
from ..wire import METERED, Dialect, LLMRequest, Route
from ._around import StreamAround
from .base import Adapter, Answer, Script, StreamDecoder, UpstreamRequest, cost_in

_CHAT = Route("metered", "chat", next(path for path, dialect in METERED.items() if dialect == "chat"))
FRONTS: dict[Dialect, Front] = {"messages": MessagesFront(), "responses": ResponsesFront()}
"""The dialects that are put into chat's words where a provider does not speak them."""


def speaking(adapter: Adapter, dialect: Dialect) -> Adapter:
    """The adapter itself where it takes the dialect, or must refuse it; else one that translates in front of it."""
    front = FRONTS.get(dialect)
    if dialect in adapter.speaks or front is None or "chat" not in adapter.speaks:
        return adapter
    return Translated(adapter, front, dialect)


class Translated:
    """An adapter in front of an adapter.

    Args:
        inner: The provider's own; it is asked for chat completions.
        front: The client's dialect.
        dialect: Its name.
    """

    def __init__(self, inner: Adapter, front: Front, dialect: Dialect) -> None:
        self.name = inner.name
        self.models = inner.models
        self.speaks: frozenset[Dialect] = frozenset({dialect})
        self.translates: frozenset[Dialect] = frozenset({dialect})
        self._inner = inner
        self._front = front

    def request(self, request: LLMRequest, model: str) -> UpstreamRequest | Script:
        """See Adapter."""
        data, dropped = self._front.request(request)
        # The limit is put in as the gateway's own, which an adapter may send under the provider's name for it.
        limit = data.pop("max_tokens", None)
        try:
            raw = orjson.dumps(data)
        except orjson.JSONEncodeError:  # it reads deeper than it writes
            raise BadRequest("The body is nested too deeply.", code="invalid_json") from None
        chat = LLMRequest(_CHAT, raw, data)
        chat.header = request.header
        if limit is not None:
            chat = chat.with_fields(max_tokens=limit)
        request.as_chat = chat
        sent = self._inner.request(chat, model)
        if dropped and isinstance(sent, UpstreamRequest):
            return sent._replace(dropped=(*dropped, *sent.dropped))
        return sent

    def _chat(self, request: LLMRequest) -> LLMRequest:
        if request.as_chat is None:  # nobody asked for the answer that is to be read
            raise ValueError("request() comes before response() and stream()")
        return request.as_chat

    def response(self, request: LLMRequest, body: bytes) -> Answer:
        """See Adapter."""
        answer = self._inner.response(self._chat(request), body)
        return Answer(self._front.response(request, answer.body), answer.usage)

    def stream(self, request: LLMRequest) -> StreamDecoder:
        """See Adapter."""
        return _TranslatedStream(self._inner.stream(self._chat(request)), self._front.stream(request))

    def cost_in(self, headers: Sequence[Header]) -> int | None:
        """See ``base.cost_in``."""
        return cost_in(self._inner, headers)

    def error(self, status: int, headers: Sequence[Header], body: bytes) -> GatewayError:
        """See Adapter."""
        return self._inner.error(status, headers, body)


class _TranslatedStream(StreamAround):
    """The provider's events through both: into chat's words, and into the client's."""

    __slots__ = ("_front",)

    def __init__(self, inner: StreamDecoder, front: FrontStream) -> None:
        super().__init__(inner)
        self._front = front

    def feed(self, data: bytes) -> bytes:
        """See StreamDecoder."""
        events = self._inner.feed(data)
        return self._front.feed(events) if events else b""

    def finish(self) -> bytes:
        """See StreamDecoder."""
        events = self._inner.finish()
        out = self._front.feed(events) if events else b""
        return out + self._front.finish() if self._inner.complete else out

    def failure(self, error: GatewayError) -> bytes:
        """See StreamDecoder."""
        return self._front.failure(error)
