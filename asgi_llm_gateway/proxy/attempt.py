"""One upstream call: asked until it is sure that there is an answer, then relayed."""

from __future__ import annotations

import asyncio
import logging
import time

from .._asgi import Send
from .._recovery import failure_of
from .._sse import data_of, split
from .._stepping import steppable
from ..adapters._media import passes
from ..adapters.base import Adapter, Answer, FailedAnswer, StreamDecoder, cost_in, error_status
from ..calls import Call
from ..errors import GatewayError, Header, UpstreamError
from ..exchange import ClientGone, Exchange
from ..media_usage import reader_of
from ..records import Usage
from ..tokens import estimate
from ..usage import UsageReader, with_cost
from ..wire import MEDIA, LLMRequest
from .failures import Failed, of_answer, of_status, of_transfer
from .push import Push
from .transfer import SHUTDOWN, Flight, TransferError
from .upstream import PooledFlight
from .ways import Place

_TAIL = 64 * 1024  # bytes at the end of a long answer in which its usage is looked for
_QUIET = 15.0  # seconds after which a provider's signs of life go on, though the answer may yet fail

log = logging.getLogger("asgi_llm_gateway")

# What of the provider's headers the client gets. Its rate limits, cookies and addresses are the gateway's affair.
_PASSED_ON = frozenset({b"content-type", b"openai-processing-ms", b"openai-version", b"openai-model"})
_SSE_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Attempt:
    """One upstream call of an exchange, at one place.

    Attributes:
        place: Where it goes.
        call: The exchange's record of it.
        flight: The call under way.
        dropped: Fields of the client's that the provider has no word for.
        cut: The answer that was begun broke off.
    """

    __slots__ = ("_adapter", "_answer", "_body", "_decoder", "_exchange", "_headers", "_request", "_send", "_waiting",
                 "call", "cut", "dropped", "flight", "place")  # fmt: skip

    def __init__(
        self,
        exchange: Exchange,
        place: Place,
        adapter: Adapter,
        call: Call,
        request: LLMRequest,
        flight: Flight,
        send: Send,
        dropped: tuple[str, ...] = (),
    ) -> None:
        self.place = place
        self.call = call
        self.flight = flight
        self.dropped = dropped
        self.cut = False
        self._exchange = exchange
        self._adapter = adapter
        self._request = request
        self._send = send
        self._headers: list[Header] = []
        self._answer: Answer | None = None
        self._decoder: StreamDecoder | None = None
        self._waiting: asyncio.TimerHandle | None = None  # for the first event of an answer that has begun without one
        self._body = b""  # of a stream its beginning; of a long answer what came so far

    # -- until there is an answer --------------------------------------------------------------------------------------

    async def begin(self, first_event: float) -> None:
        """Ask, and wait for what makes an answer: the whole of a JSON one, the first event of a stream (so many seconds).

        Nothing has gone to the client by then. Raises Failed, ClientGone.
        """
        flight = self.flight
        try:
            await flight.start()
            if flight.status != 200:
                raise self._refused()
            found = dict(flight.headers)
            if found.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"):
                raise self._useless("sent an encoding that was not asked for.")
            headers = self._headers = [(name, found[name]) for name in _PASSED_ON.intersection(found)]
            kind = found.get(b"content-type", b"").lower()
            if kind.startswith(b"text/event-stream"):
                self._headers = [*_SSE_HEADERS, *(one for one in headers if one[0] != b"content-type")]
                await self._first_event(first_event)
            elif kind.find(b"json") >= 0:
                self._whole(flight.take())
            elif self._request.route.dialect in MEDIA and passes(kind):
                await self._sound()
            else:
                raise self._useless("sent no JSON but another content type.")
        except TransferError as error:
            if error.kind != SHUTDOWN:
                log.warning("%s: %s", self._adapter.name, error)
            raise of_transfer(error, self._adapter.name) from error

    async def _sound(self) -> None:
        """Sound, or a transcript as text: its beginning, so that one that breaks off before it is no answer yet."""
        flight = self.flight
        while not (body := flight.take()) and not flight.done:
            if (more := flight.more()) is not None:
                await more
        if flight.done:
            self._answer = Answer(body, None)
        else:
            self._body = body

    def _useless(self, what: str) -> Failed:
        log.warning("%s %s", self._adapter.name, what)
        return of_answer(UpstreamError(f"The provider '{self._adapter.name}' {what}"))

    def _refused(self) -> Failed:
        """The provider answered with an error: nothing was used."""
        flight = self.flight
        body = flight.take()
        status = flight.status if flight.status >= 400 else 502
        self.call.end(Usage())
        error = self._adapter.error(status, flight.headers, body)
        log.warning("%s answered %d", self._adapter.name, flight.status)
        return of_status(status, flight.headers, error)

    def _whole(self, body: bytes) -> None:
        """A JSON answer, as far as it has come."""
        if self.flight.done:
            try:
                self._answer = self._adapter.response(self._request, body)
            except GatewayError as error:
                if isinstance(error, FailedAnswer) and (error.usage is not None or body.find(b'"choices"') < 0):
                    self.call.end(
                        error.usage or Usage()
                    )  # a refusal by another name, unless it says that tokens were made
                raise of_status(error.http_status, (), error) from None
            cost, usage = cost_in(self._adapter, self.flight.headers), self._answer.usage
            if cost is not None and usage is not None and usage.provider_cost is None:
                self._answer = self._answer._replace(usage=usage._replace(provider_cost=cost))
        elif self._request.route.dialect in self._adapter.translates:
            raise self._useless("sent an answer that is too long to translate.")
        else:
            self._body = body

    async def _first_event(self, within: float) -> None:
        """The beginning of a stream, which may yet turn out to be an error."""
        flight = self.flight
        decoder = self.call.told = self._decoder = self._adapter.stream(self._request)
        raw = out = b""
        began = time.monotonic()
        while True:
            data = flight.take()
            if data:
                try:
                    out += decoder.feed(data)
                except UpstreamError as error:
                    raise of_answer(error) from None
                if decoder.failed:
                    raise self._failed_with(raw + data)
                if decoder.events or decoder.ending:
                    break
                waited = time.monotonic() - began
                if waited > within:  # signs of life are no answer
                    raise TransferError("timeout", "timed out: first event", received=True)
                if waited > _QUIET and out:
                    self._waiting = asyncio.get_running_loop().call_later(within - waited, self._late)
                    break
                raw += data
            elif flight.done:
                # Half an event or signs of life alone are no answer yet; a [DONE] may lack its blank line.
                if not decoder.events and not raw.rstrip().endswith(b"data: [DONE]"):
                    raise of_answer(self._cut())
                break
            elif (more := flight.more()) is not None:
                await more
        self._body = out

    def _late(self) -> None:
        """Signs of life have gone on to the client, and no event has come in its time."""
        if self._decoder is not None and not self._decoder.events:
            self.flight.abort(TransferError("timeout", "timed out: first event", received=True))

    def _failed_with(self, events: bytes) -> Failed:
        """A stream that began with an error: what it would have been called with a status of its own."""
        decoder = self._decoder
        for event in reversed(split(events)):
            data = data_of(event)
            if data is not None and data.find(b'"error"') >= 0:
                status = error_status(data)
                if decoder is None or decoder.events <= 1:  # else tokens had come before it
                    self.call.end(Usage())
                log.warning("%s began its stream with an error (%d)", self._adapter.name, status)
                return of_status(status, (), self._adapter.error(status, (), data))
        return of_answer(UpstreamError(f"The provider '{self._adapter.name}' began its stream with an error."))

    def _cut(self) -> UpstreamError:
        return UpstreamError(
            f"The provider '{self._adapter.name}' ended its stream before the answer was complete.", code="upstream_cut"
        )

    # -- the relay -----------------------------------------------------------------------------------------------------

    async def relay(self) -> None:
        """Give the client the answer that ``begin`` waited for. Raises ClientGone, and GatewayError where one is cut.

        ``cut`` says afterwards whether the answer came to its end.
        """
        if self._answer is not None:
            self.call.told = self._answer.body
            self._end(self._answer.usage)
            self._exchange.answering = 200
            await self._exchange.end()
            await self._exchange.answer(self._send, 200, self._answer.body, self._headers)
        elif self._decoder is not None:
            await self._stream(self._decoder)
        else:
            await self._long()

    async def _long(self) -> None:
        """A JSON answer too long to hold, or sound: it goes on in pieces, and its usage is read as it passes."""
        flight, send, body = self.flight, self._send, self._body
        self._body = b""
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        if self._request.route.dialect in MEDIA:
            reader = reader_of(self._request, dict(self._headers).get(b"content-type", b"").lower())
        else:
            reader = UsageReader(stream=False, limit=_TAIL)
        try:
            while body or not flight.done:
                if body:
                    reader.feed(body)
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                elif (more := flight.more()) is not None:
                    await more
                body = flight.take()
        except TransferError as error:
            self.cut = True
            # The status has gone out: all that is left is to break off, which the server does for an exception.
            raise error.as_answer(self._adapter.name) from None
        self._end(reader.end())
        await self._exchange.end()
        await send({"type": "http.response.body", "body": b""})

    async def _stream(self, decoder: StreamDecoder) -> None:
        """An event stream: each piece goes on when it came."""
        flight, exchange = self.flight, self._exchange
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        failure: GatewayError | None = None
        try:
            await self._pass_on(decoder, self._body)
            self._body = b""
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
            if error.kind != SHUTDOWN:
                log.warning("%s: %s", self._adapter.name, error)
            failure = error.as_answer(self._adapter.name)
        except UpstreamError as error:
            failure = error
        except (GatewayError, ClientGone, OSError):  # the latter: the server's, of a client that has left
            raise
        except Exception as error:  # a fault of ours: what has gone out stays, and the stream has an end all the same
            failure = failure_of(exchange, error)
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
        connection = self.flight.connection if isinstance(self.flight, PooledFlight) else None
        if connection is None or decoder.ending or self._exchange.first_byte_at is None:
            return None
        direct = self._exchange.direct(self._send)
        return Push(connection, decoder, direct) if steppable(direct) else None

    async def _last(self, decoder: StreamDecoder, failure: GatewayError | None) -> None:
        """The stream's end: its own if it came to one, else one error event and no ``[DONE]``."""
        exchange, send = self._exchange, self._send
        out = b"" if failure is not None else decoder.finish()
        if failure is None and not decoder.complete and not decoder.failed:
            failure = self._cut()
        if failure is not None and not decoder.complete and not decoder.failed:
            out = decoder.failure(failure)
            if exchange.record is not None:
                exchange.record.error = exchange.record.error or failure.error_code
            self.cut = True
        elif decoder.failed:
            if exchange.record is not None:
                exchange.record.error = UpstreamError.code
            self.cut = True
        if not exchange.ended:
            self._end(decoder.usage)
            await exchange.end()
        await send({"type": "http.response.body", "body": out, "more_body": False})

    # -- the tokens ----------------------------------------------------------------------------------------------------

    def _end(self, usage: Usage | None) -> None:
        """The tokens of the call: the provider's counts, else an estimate, never nothing."""
        if self.call.ended:
            return
        if usage is None:
            usage = estimate(
                self._request, self._decoder.tokens(self._request.model) if self._decoder is not None else 0
            )
        self.call.end(usage)
        self._exchange.usage = usage

    def account(self) -> None:
        """Whatever happened, the call has an end and the tokens it may have used."""
        if self._waiting is not None:
            self._waiting.cancel()
        if not self.call.ended:
            if not self.flight.sent:
                self.call.end(Usage())
            else:
                self._end(self._decoder.usage if self._decoder is not None else None)


__all__ = ["Attempt"]
