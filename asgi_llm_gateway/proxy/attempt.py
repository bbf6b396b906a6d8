"""One upstream call and the relay of its answer."""

from __future__ import annotations

import logging

from .._asgi import Send
from .._stepping import steppable
from ..adapters.base import Adapter, StreamDecoder
from ..errors import GatewayError, Header, UpstreamError
from ..exchange import Call, Exchange
from ..records import Usage
from ..tokens import estimate
from ..usage import usage_at_end, with_cost
from ..wire import LLMRequest
from .push import Push
from .transfer import Flight, TransferError
from .upstream import PooledFlight

_TAIL = 64 * 1024  # bytes at the end of a long answer in which its usage is looked for

log = logging.getLogger("asgi_llm_gateway")

# What of the provider's headers the client gets. Its rate limits, cookies and addresses are the gateway's affair.
_PASSED_ON = frozenset({b"content-type", b"openai-processing-ms", b"openai-version", b"openai-model"})
_SSE_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Attempt:
    """One upstream call and the relay of its answer."""

    __slots__ = ("_adapter", "_call", "_decoder", "_exchange", "_flight", "_request", "_send")

    def __init__(
        self, exchange: Exchange, call: Call, request: LLMRequest, adapter: Adapter, flight: Flight, send: Send
    ) -> None:
        self._exchange = exchange
        self._call = call
        self._request = request
        self._adapter = adapter
        self._flight = flight
        self._send = send
        self._decoder: StreamDecoder | None = None

    async def run(self) -> None:
        """Ask, and relay what comes. Raises GatewayError, ClientGone."""
        flight = self._flight
        try:
            await flight.start()
        except TransferError as error:
            log.warning("%s: %s", self._adapter.name, error)
            raise error.as_answer(self._adapter.name) from error
        if flight.status != 200:
            raise self._refused()
        found = dict(flight.headers)
        if found.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"):
            raise UpstreamError(f"The provider '{self._adapter.name}' sent an encoding that was not asked for.")
        headers = [(name, found[name]) for name in _PASSED_ON.intersection(found)]
        kind = found.get(b"content-type", b"").lower()
        if kind.startswith(b"text/event-stream"):
            await self._stream([*_SSE_HEADERS, *(one for one in headers if one[0] != b"content-type")])
        elif kind.find(b"json") >= 0:
            body = flight.take()
            if flight.done:
                await self._whole(headers, body)
            elif self._adapter.translates:
                raise UpstreamError(
                    f"The provider '{self._adapter.name}' sent an answer that is too long to translate."
                )
            else:
                await self._long(headers, body)
        else:
            raise UpstreamError(f"The provider '{self._adapter.name}' sent no JSON but another content type.")

    def _refused(self) -> GatewayError:
        """The provider answered with an error: nothing was used."""
        flight = self._flight
        body = flight.take()
        status = flight.status if flight.status >= 400 else 502
        self._call.end(Usage())
        error = self._adapter.error(status, flight.headers, body)
        log.warning("%s answered %d", self._adapter.name, flight.status)
        return error

    async def _whole(self, headers: list[Header], body: bytes) -> None:
        """A JSON answer."""
        answer = self._adapter.response(self._request, body)
        self._end(answer.usage)
        self._exchange.answering = 200
        await self._exchange.end()
        await self._exchange.answer(self._send, 200, answer.body, headers)

    async def _long(self, headers: list[Header], body: bytes) -> None:
        """A JSON answer too long to hold: it goes on in pieces, and its usage is read from the end."""
        flight, send = self._flight, self._send
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        tail = b""
        try:
            while body or not flight.done:
                if body:
                    tail = (tail + body)[-_TAIL:]
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                elif (more := flight.more()) is not None:
                    await more
                body = flight.take()
        except TransferError as error:
            # The status has gone out: all that is left is to break off, which the server does for an exception.
            raise error.as_answer(self._adapter.name) from None
        self._end(usage_at_end(tail))
        await self._exchange.end()
        await send({"type": "http.response.body", "body": b""})

    async def _stream(self, headers: list[Header]) -> None:
        """An event stream: each piece goes on when it came."""
        flight, send = self._flight, self._send
        decoder = self._decoder = self._adapter.stream(self._request)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        failure: GatewayError | None = None
        try:
            while True:
                data = flight.take()
                if data:
                    await self._pass_on(decoder, decoder.feed(data))
                elif flight.done:
                    break
                elif (push := self._push(decoder)) is not None:
                    await push.run()
                    await self._pass_on(decoder, push.out)
                elif (more := flight.more()) is not None:
                    await more
        except TransferError as error:
            log.warning("%s: %s", self._adapter.name, error)
            failure = error.as_answer(self._adapter.name)
        except UpstreamError as error:
            failure = error
        await self._last(decoder, failure)

    async def _pass_on(self, decoder: StreamDecoder, out: bytes) -> None:
        """Send a piece; before the stream's last news, the money is settled."""
        exchange = self._exchange
        if decoder.ending and not exchange.ended:
            self._end(decoder.usage)
            await exchange.end()
            if exchange.cost is not None and self._request.wants_usage:
                out = with_cost(out, exchange.cost)
        if out:
            await self._send({"type": "http.response.body", "body": out, "more_body": True})

    def _push(self, decoder: StreamDecoder) -> Push | None:
        """The faster way for the middle of the stream, where it is open."""
        connection = self._flight.connection if isinstance(self._flight, PooledFlight) else None
        if connection is None or decoder.ending or self._exchange.first_byte_at is None:
            return None
        direct = self._exchange.direct(self._send)
        return Push(connection, decoder, direct) if steppable(direct) else None

    async def _last(self, decoder: StreamDecoder, failure: GatewayError | None) -> None:
        """The stream's end: its own if it came to one, else one error event and no ``[DONE]``."""
        exchange, send = self._exchange, self._send
        out = b"" if failure is not None else decoder.finish()
        if failure is None and not decoder.complete and not decoder.failed:
            failure = UpstreamError(
                f"The provider '{self._adapter.name}' ended its stream before the answer was complete.",
                code="upstream_cut",
            )
        if failure is not None and not decoder.complete and not decoder.failed:
            out = failure.event(exchange.route.envelope)
            if exchange.record is not None:
                exchange.record.error = failure.error_code
        if not exchange.ended:
            self._end(decoder.usage)
            await exchange.end()
        await send({"type": "http.response.body", "body": out, "more_body": False})

    def _end(self, usage: Usage | None) -> None:
        """The tokens of the call: the provider's counts, else an estimate, never nothing."""
        if self._call.ended:
            return
        if usage is None:
            usage = estimate(
                self._request, self._decoder.tokens(self._request.model) if self._decoder is not None else 0
            )
        self._call.end(usage)
        self._exchange.usage = usage

    def account(self) -> None:
        """Whatever happened, the call has an end and the tokens it may have used."""
        if not self._call.ended:
            if not self._flight.sent:
                self._call.end(Usage())
            else:
                self._end(self._decoder.usage if self._decoder is not None else None)
