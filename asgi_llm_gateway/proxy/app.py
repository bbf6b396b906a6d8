"""The terminal app: takes a call to its provider and the answer back."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from .._asgi import Receive, Scope, Send, headers_named, send_body, send_error
from .._closing import close_all, on_close
from .._hangup import Hangup
from ..adapters.base import Adapter, StreamDecoder
from ..errors import BadRequest, GatewayError, Header, LoopDetected, MethodNotAllowed, NotFound, UpstreamError
from ..exchange import KEY, MAX_BODY, Call, ClientGone, Exchange
from ..records import Usage
from ..tokens import estimate
from ..wire import LLMRequest, Route, Table
from .models import model_list, one_model
from .routing import Router, router_of
from .transfer import Flight, Timeouts, TransferError
from .upstream import Client, open_client

log = logging.getLogger("asgi_llm_gateway")

HOP = b"x-llm-gateway-hop"
MAX_HOPS = 4
"""Gateways that a request may have been through; workers of one gateway do not know each other's marks."""

# What of the provider's headers the client gets. Its rate limits, cookies and addresses are the gateway's affair.
_PASSED_ON = frozenset({b"content-type", b"openai-processing-ms", b"openai-version", b"openai-model"})
_SSE_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class ProxyApp:
    """An ASGI app that answers LLM calls by asking the configured providers.

    Args:
        router: Where models are; ``None`` takes what the environment and the settings file configure.
        http_client: An ``httpx.AsyncClient`` (or httpx2's) to use in place of our own client; its maker closes it.
        timeouts: Seconds for each phase of an upstream call; ``None`` takes the settings'.
        max_body: Bytes that a request's body may have, where no middleware stands before the app.
        streaming: Whether ``stream: true`` is served; ``None`` takes ENABLE_STREAMING.
    """

    joins_exchange = True

    def __init__(
        self,
        *,
        router: Router | None = None,
        http_client: Any = None,
        timeouts: Timeouts | None = None,
        max_body: int = MAX_BODY,
        streaming: bool | None = None,
    ) -> None:
        self._router = router
        self._http_client = http_client
        self._timeouts = timeouts
        self._max_body = max_body
        self._streaming = streaming
        self._table = Table()
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, Client] = WeakKeyDictionary()
        self._mark = b"%016x" % random.getrandbits(64)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        kind = scope["type"]
        if kind == "http":
            exchange: Exchange | None = scope.get(KEY)
            if exchange is None:
                exchange = Exchange(self, self._table.match(scope), scope, max_body=self._max_body)
                send = exchange.wrap(send)
            try:
                await self._answer(exchange, scope, receive, send)
            except GatewayError as error:
                if exchange.response_started:
                    raise
                if exchange.record is not None:
                    exchange.record.error = error.error_code
                await send_error(send, error, exchange.route.envelope)
            except ClientGone:
                exchange.gone = True
        elif kind == "lifespan":
            await self._live(receive, send)
        elif kind == "websocket" and (await receive())["type"] == "websocket.connect":
            await send({"type": "websocket.close", "code": 1008, "reason": "not available over websocket"})

    # -- which call ----------------------------------------------------------------------------------------------------

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        route = exchange.route
        if route.dialect is not None and scope["method"] == "POST":
            await self._call(exchange, scope, receive, send)
        elif route.path == "/v1/models" or route.path.startswith("/v1/models/"):
            await self._models(exchange, scope, route, send)
        elif route.dialect is not None:
            raise MethodNotAllowed(f"Use POST for {route.path}.", headers=((b"allow", b"POST"),))
        else:
            raise NotFound(f"No such path: {scope['method']} {scope['path'][:200]}.")

    async def _models(self, exchange: Exchange, scope: Scope, route: Route, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed("Use GET for /v1/models.", headers=((b"allow", b"GET"),))
        router = self._router or self._open_router()
        name = route.path.removeprefix("/v1/models").removeprefix("/")
        body = one_model(router, exchange.identity, name) if name else model_list(router, exchange.identity)
        await send_body(send, 200, body, ((b"content-type", b"application/json"),))

    async def _call(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        hops = self._hops(scope)
        receive = await exchange.read(receive, scope)
        request = exchange.request
        assert request is not None
        if request.stream and not self._may_stream():
            raise BadRequest(
                "Streaming is switched off here (ENABLE_STREAMING). Send 'stream': false.",
                code="streaming_disabled",
                param="stream",
            )
        router = self._router or self._open_router()
        target, adapter = router.resolve(request.model)[0]
        exchange.exact = True
        sent = adapter.request(request, target.model)
        call = await exchange.begin_call(target, request)
        flight = self._client().open(sent, (hops,))
        hangup = Hangup(exchange.truth(receive), lambda: flight.abort(ClientGone()))
        attempt = _Attempt(exchange, call, request, adapter, flight, send)
        try:
            await attempt.run()
        finally:
            hangup.stop()
            flight.close()
            attempt.account()

    def _hops(self, scope: Scope) -> Header:
        """The mark of this gateway, after those that the request bears. Raises LoopDetected."""
        marks = [mark.strip() for value in headers_named(scope, HOP) for mark in value.split(b",")]
        if self._mark in marks or len(marks) >= MAX_HOPS:
            raise LoopDetected(
                "The request came back to this gateway: a provider's base URL points at the gateway itself. Correct it."
            )
        return HOP, b", ".join([*(mark for mark in marks if mark.isalnum()), self._mark])

    # -- what is opened on first use -----------------------------------------------------------------------------------

    def _open_router(self) -> Router:
        from ..settings import current, current_file

        self._router = router_of(current(), current_file())
        return self._router

    def _may_stream(self) -> bool:
        if self._streaming is None:
            from ..settings import current

            self._streaming = current().enable_streaming
        return self._streaming

    def _client(self) -> Client:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = self._open_client()
            on_close(self.aclose)
        return client

    def _open_client(self) -> Client:
        from ..settings import current

        settings = current()
        timeouts = self._timeouts or Timeouts(
            connect=settings.connect_timeout_seconds,
            first_byte=settings.first_byte_timeout_seconds,
            idle=settings.idle_timeout_seconds,
            total=settings.total_timeout_seconds,
        )
        router = self._router or self._open_router()
        urls = [str(url) for adapter in router.adapters if (url := getattr(adapter, "base_url", None))]
        return open_client(
            http_client=self._http_client,
            timeouts=timeouts,
            max_connections=settings.max_upstream_connections,
            urls=urls,
        )

    async def aclose(self) -> None:
        """Close the upstream connections of this event loop; a later call opens new ones."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    async def _live(self, receive: Receive, send: Send) -> None:
        """The lifespan protocol, where the app is the outermost one."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await close_all()
                await send({"type": "lifespan.shutdown.complete"})
                return


class _Attempt:
    """One upstream call and the relay of its answer."""

    __slots__ = ("_adapter", "_call", "_decoder", "_exchange", "_flight", "_request", "_send", "_sent_nothing")

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
        self._sent_nothing = False

    async def run(self) -> None:
        flight = self._flight
        try:
            await flight.start()
        except TransferError as error:
            self._sent_nothing = error.kind in ("connect", "pool")
            log.warning("%s: %s", self._adapter.name, error)
            raise error.as_answer(self._adapter.name) from error
        if flight.status != 200:
            await self._refused()
        kind = _value(flight.headers, b"content-type")
        if _value(flight.headers, b"content-encoding").strip().lower() not in (b"", b"identity"):
            raise UpstreamError(f"The provider '{self._adapter.name}' sent an encoding that was not asked for.")
        if kind[:17].lower() == b"text/event-stream":
            await self._stream()
        elif b"json" in kind.lower():
            await self._whole()
        else:
            raise UpstreamError(f"The provider '{self._adapter.name}' sent no JSON but another content type.")

    async def _refused(self) -> None:
        """The provider answered with an error: nothing was used."""
        flight = self._flight
        body = flight.take()
        status = flight.status if flight.status >= 400 else 502
        self._call.end(Usage())
        error = self._adapter.error(status, flight.headers, body)
        log.warning("%s answered %d", self._adapter.name, flight.status)
        raise error

    def _passed_on(self) -> list[Header]:
        return [one for one in self._flight.headers if one[0] in _PASSED_ON]

    async def _whole(self) -> None:
        """A JSON answer."""
        flight, exchange = self._flight, self._exchange
        body = flight.take()
        if not flight.done:
            await self._long(body)
            return
        answer = self._adapter.response(self._request, body)
        self._end(answer.usage)
        await exchange.end()
        await send_body(self._send, 200, answer.body, self._passed_on())

    async def _long(self, body: bytes) -> None:
        """A JSON answer too long to hold: it goes on in pieces, and its usage is read from the end."""
        flight, send = self._flight, self._send
        await send({"type": "http.response.start", "status": 200, "headers": self._passed_on()})
        tail = b""
        while True:
            if body:
                tail = (tail + body)[-65536:]
                await send({"type": "http.response.body", "body": body, "more_body": True})
            if flight.done:
                body = flight.take()
                if not body:
                    break
                continue
            await flight.wait()
            body = flight.take()
        answer = self._adapter.response(self._request, b" " * (2**20) + tail)
        self._end(answer.usage)
        await self._exchange.end()
        await send({"type": "http.response.body", "body": b""})

    async def _stream(self) -> None:
        """An event stream: each piece goes on when it came."""
        flight, exchange, send = self._flight, self._exchange, self._send
        decoder = self._decoder = self._adapter.stream(self._request)
        headers = [*_SSE_HEADERS, *(one for one in self._passed_on() if one[0] != b"content-type")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        failure: GatewayError | None = None
        try:
            while True:
                data = flight.take()
                if data:
                    out = decoder.feed(data)
                    if decoder.ending and not exchange.ended:
                        self._end(decoder.usage)
                        await exchange.end()
                    if out:
                        await send({"type": "http.response.body", "body": out, "more_body": True})
                elif flight.done:
                    break
                else:
                    await flight.wait()
        except TransferError as error:
            log.warning("%s: %s", self._adapter.name, error)
            failure = error.as_answer(self._adapter.name)
        except UpstreamError as error:
            failure = error
        await self._last(decoder, failure)

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
            usage = estimate(self._request, self._decoder.events if self._decoder is not None else 0)
        self._call.end(usage)
        self._exchange.usage = usage

    def account(self) -> None:
        """Whatever happened, the call has an end and the tokens it may have used."""
        if not self._call.ended:
            if self._sent_nothing:
                self._call.end(Usage())
            else:
                self._end(self._decoder.usage if self._decoder is not None else None)


def _value(headers: Sequence[Header], name: bytes) -> bytes:
    for key, value in headers:
        if key == name:
            return value
    return b""


__all__ = ["HOP", "ProxyApp"]
