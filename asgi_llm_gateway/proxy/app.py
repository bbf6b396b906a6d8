"""The terminal app: takes a call to its provider and the answer back."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

from .._asgi import Receive, Scope, Send, send_body, send_error
from .._closing import close_all, on_close
from .._hangup import Patience
from .._perloop import PerLoop
from .._recovery import recover
from ..draining import Drain, Life, ShuttingDown, drain
from ..errors import BadRequest, GatewayError, Header, LoopDetected, MethodNotAllowed, NotFound
from ..exchange import KEY, MAX_BODY, ClientGone, Exchange
from ..prices import PriceTable, prices_of
from ..wire import Route, Table
from ._anthropic_models_list import anthropic_model, anthropic_model_list, page_of
from .clients import Client, open_client
from .counting import PATH as COUNT_PATH
from .counting import count_tokens
from .models import model_list, names_for, one_model
from .providers import router_of
from .relay import Here, Relay, Rules
from .routing import Router
from .stateless import responses_route
from .transfer import Timeouts

log = logging.getLogger("asgi_llm_gateway")

HOP = b"x-llm-gateway-hop"
MAX_HOPS = 4
"""Gateways that a request may have been through; workers of one gateway do not know each other's marks."""


class ProxyApp:
    """An ASGI app that answers LLM calls by asking the configured providers.

    Args:
        router: Where models are; ``None`` takes what the environment and the settings file configure.
        http_client: An ``httpx.AsyncClient`` (or httpx2's) to use in place of our own client; its maker closes it.
        timeouts: Seconds for each phase of an upstream call; ``None`` takes the settings'.
        max_body: Bytes that a request's body may have, where no middleware stands before the app.
        streaming: Whether ``stream: true`` is served; ``None`` takes ENABLE_STREAMING.
        max_retries: Further rounds over a model's targets after each was tried once; ``None`` takes GATEWAY_MAX_RETRIES.
        prices: What models cost, for ``/v1/models`` and the cap on hedges; ``None`` takes the settings'.
    """

    joins_exchange = True
    ends_exchange = True
    """Settles before the last of its answer itself: a layer round it need not watch for that."""

    def __init__(
        self,
        *,
        router: Router | None = None,
        http_client: Any = None,
        timeouts: Timeouts | None = None,
        max_body: int = MAX_BODY,
        streaming: bool | None = None,
        max_retries: int | None = None,
        prices: PriceTable | None = None,
    ) -> None:
        self._router = router
        self._http_client = http_client
        self._timeouts = timeouts
        self._max_body = max_body
        self._streaming = streaming
        self._retries = max_retries
        self._prices = prices
        self._table = Table()
        self._loops: PerLoop[Here] = PerLoop()
        self._mark = b"%016x" % random.getrandbits(64)
        self._first_hop: tuple[Header, ...] = ((HOP, self._mark),)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        kind = scope["type"]
        if kind == "http":
            exchange: Exchange | None = scope.get(KEY)
            alone: Drain | None = None
            if exchange is None:
                exchange = Exchange(self, self._table.match(scope), scope, max_body=self._max_body)
                alone = drain()
                alone.calls[exchange] = receive
                if alone.refusing:
                    exchange.refusal = ShuttingDown(close=scope.get("http_version", "1.1").startswith("1"))
                send = exchange.wrap(send)
            try:
                if exchange.refusal is not None:
                    raise exchange.refusal
                if exchange.route.dialect is not None and scope["method"] == "POST":
                    await self._call(exchange, scope, receive, send)
                else:
                    await self._other(exchange, scope, receive, send)
            except GatewayError as error:
                if exchange.response_started:
                    raise
                if exchange.record is not None:
                    exchange.record.error = error.error_code
                await send_error(send, error, exchange.route.envelope)
            except ClientGone:
                exchange.gone = True
            except Exception as error:  # a fault nobody foresaw: answered and logged without its words
                await recover(exchange, error, send, entry=True)
            finally:
                if alone is not None:
                    alone.calls.pop(exchange, None)
                    exchange.close()
        elif kind == "lifespan":
            await self._live(receive, send)
        elif kind == "websocket" and (await receive())["type"] == "websocket.connect":
            await send({"type": "websocket.close", "code": 1008, "reason": "not available over websocket"})

    # -- which call ----------------------------------------------------------------------------------------------------

    async def _other(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        route = exchange.route
        if route.path == COUNT_PATH:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"Use POST for {COUNT_PATH}.", headers=((b"allow", b"POST"),))
            here, router = self._loops.get() or self._here(), self._router or self._open_router()
            await count_tokens(
                exchange, scope, receive, send, router=router, client=here.client, patience=here.patience,
                hops=self._hops(exchange, scope),
            )  # fmt: skip
        elif route.path == "/v1/models" or route.path.startswith("/v1/models/"):
            await self._models(exchange, scope, route, send)
        elif route.dialect is not None:
            raise MethodNotAllowed(f"Use POST for {route.path}.", headers=((b"allow", b"POST"),))
        elif route.path.startswith("/v1/responses/"):
            raise responses_route(route.path, scope["method"])
        else:
            raise NotFound(f"No such path: {scope['method']} {(route.path or scope['path'])[:200]}.")

    async def _models(self, exchange: Exchange, scope: Scope, route: Route, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed("Use GET for /v1/models.", headers=((b"allow", b"GET"),))
        router = self._router or self._open_router()
        name = route.path.removeprefix("/v1/models").removeprefix("/")
        prices, caller = self._priced(), exchange.identity
        # The one sign by which Anthropic's clients are told apart.
        anthropic = exchange.sent(scope).get(b"anthropic-version") is not None
        if name:
            body = one_model(router, prices, caller, name)  # also where it only says that there is none
            body = anthropic_model(name) if anthropic else body
        elif anthropic:
            body = anthropic_model_list(names_for(router, caller), page_of(scope["query_string"]))
        else:
            body = model_list(router, prices, caller)
        await send_body(send, 200, body, ((b"content-type", b"application/json"),))

    async def _call(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        request = exchange.request
        if request is None:
            receive = await exchange.read(receive, scope)
            request = exchange.request
            assert request is not None
        hops = self._first_hop if request.header(HOP) is None else self._hops(exchange, scope)
        if request.stream and not self._may_stream():
            raise BadRequest(
                "Streaming is switched off here (ENABLE_STREAMING). Send 'stream': false.",
                code="streaming_disabled",
                param="stream",
            )
        exchange.exact = exchange.ends_itself = True
        here = self._loops.get() or self._here()
        relay = Relay(here, self._router or self._open_router(), exchange, request, hops, send)
        here.patience.watch(relay, exchange.truth(receive), relay.gone)
        here.calls.add(relay)
        try:
            await relay.run()
        finally:
            here.calls.discard(relay)
            here.patience.stop(relay)
            relay.record()

    def _hops(self, exchange: Exchange, scope: Scope) -> tuple[Header, ...]:
        """The mark of this gateway, after those that the request bears. Raises LoopDetected."""
        if exchange.sent(scope).get(HOP) is None:
            return self._first_hop
        shown = exchange.sent(scope).all(HOP)
        marks = [mark.strip() for value in shown for mark in value.split(b",")]
        if self._mark in marks or len(marks) >= MAX_HOPS:
            raise LoopDetected(
                "The request came back to this gateway: a provider's base URL points at the gateway itself. Correct it."
            )
        return ((HOP, b", ".join([*(mark for mark in marks if mark.isalnum()), self._mark])),)

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

    def _here(self) -> Here:
        """What belongs to the running event loop, opened."""
        on_close(self.aclose)
        from ..settings import current

        settings = current()
        timeouts = self._timeouts or Timeouts(
            connect=settings.connect_timeout_seconds,
            first_byte=settings.first_byte_timeout_seconds,
            idle=settings.idle_timeout_seconds,
            total=settings.total_timeout_seconds,
            first_event=settings.first_event_timeout_seconds,
        )
        rules = Rules(
            settings.gateway_max_retries if self._retries is None else self._retries,
            settings.gateway_max_retry_wait_seconds,
            timeouts.total,
            timeouts.first_event,
        )
        client = self._open_client(timeouts, settings.max_upstream_connections)
        calls: set[Relay] = set()

        def end() -> None:
            for relay in list(calls):
                relay.shut()

        drain().when_ended(end)
        return self._loops.put(Here(client, Patience(asyncio.get_running_loop()), rules, self._priced(), calls))

    def _priced(self) -> PriceTable:
        if self._prices is None:
            from ..settings import current_file

            self._prices = prices_of(current_file().models, current_file().providers)
        return self._prices

    def _open_client(self, timeouts: Timeouts, most: int) -> Client:
        router = self._router or self._open_router()
        urls = [str(url) for adapter in router.adapters if (url := getattr(adapter, "base_url", None))]
        return open_client(
            http_client=self._http_client,
            timeouts=timeouts,
            max_connections=most,
            urls=urls,
        )

    async def aclose(self) -> None:
        """Close the upstream connections of this event loop; a later call opens new ones."""
        here = self._loops.pop()
        if here is not None:
            await here.client.close()

    async def _live(self, receive: Receive, send: Send) -> None:
        """The lifespan protocol, where the app is the outermost one."""
        life = Life(whole=True)
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                life.started()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await life.end()
                await close_all()
                await send({"type": "lifespan.shutdown.complete"})
                return


__all__ = ["HOP", "ProxyApp"]
