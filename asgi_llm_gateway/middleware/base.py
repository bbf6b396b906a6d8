"""The ASGI craft that all middlewares share."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Mapping
from enum import IntEnum
from typing import Any, ClassVar, Literal

from .._asgi import ASGIApp, Receive, Scope, Send, send_error
from .._recovery import recover
from .._serving import serve
from ..draining import Drain, ShuttingDown, drain
from ..errors import GatewayError, MisorderedStack, NotFound, SettingsError, Unavailable
from ..exchange import KEY, MAX_BODY, ClientGone, Exchange
from ..ids import request_id, trace_id
from ..passport import SOCKET_PATH, entered
from ..wire import PASS, Route, Table

log = logging.getLogger("asgi_llm_gateway")


class Rank(IntEnum):
    """Where a layer stands, outermost first. Observers come before gatekeepers."""

    SECURITY = 0
    LOGGING = 1
    METRICS = 2
    TRACING = 3
    TENANT = 4
    REALTIME = 5
    RATE_LIMIT = 6
    POLICY = 7
    CACHE = 8
    BUDGET = 9
    STRUCTURED = 10


ORDER = (
    "SecurityHeaders, Logging, Metrics, Tracing, Tenant, Realtime, RateLimit, Policy, Cache, Budget, StructuredOutput"
)
"""The right order, outermost first, as error messages name it."""


SOCKET = Route("authenticated", None, SOCKET_PATH)
"""Where realtime sessions are opened over a websocket, unless ``paths=`` says otherwise."""


class LLMMiddleware:
    """A pure-ASGI layer round an app that speaks an LLM API.

    A concern overrides ``handle`` and awaits ``self.forward(...)`` for what stands further in. One instance serves all
    requests of all event loops: ``self`` holds settings only.

    Args:
        app: The ASGI app further in.
        paths: More paths than the closed table has, see ``wire.Table``.
        govern: ``"v1"`` or ``"all"``, see ``wire.Table``.
        max_body: Bytes that a request's body may have.
        settings: What makes this layer equal to another of its class; an equal one twice does its work once.
    """

    rank: ClassVar[Rank]

    joins_exchange: ClassVar[bool] = True
    """Reads the request from the exchange: an amended body need not be written for it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
        settings: tuple[object, ...] = (),
    ) -> None:
        self.app = app
        self._table = Table(paths, govern)
        self._max_body = max_body
        self._settings: tuple[object, ...] = (type(self), self._table.settings, max_body, *settings)
        self._own_table = bool(paths) or govern != "v1"
        self._plain_rank = -1 if self._own_table else int(self.rank)
        self._seals = not getattr(type(app), "joins_exchange", False)
        self._refuses = self._seals or self.rank >= Rank.TENANT  # an observer sees what is refused further in

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """The concern: look, refuse by raising a GatewayError, or await ``self.forward(...)``."""
        await self.forward(exchange, scope, receive, send)

    def forward(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass the call on; one that is refused already goes no further."""
        if exchange.refusal is not None and self._refuses:
            raise exchange.refusal
        if self._seals:  # an app that is not ours: what it calls in there finds the exchange
            return serve(self.app, exchange, exchange.sealed(scope) if exchange.amended else scope, receive, send)
        return self.app(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        exchange: Exchange | None = scope.get(KEY)
        here: Drain | None = None
        if exchange is None:
            route = self._table.match(scope)
            if route.kind == "open" or scope["method"] == "OPTIONS":
                await self._pass(scope, receive, send)
                return
            exchange = Exchange(self, route, scope, max_body=self._max_body)
            here = drain()
            here.calls[exchange] = receive
            if here.refusing:
                exchange.refusal = ShuttingDown(close=scope.get("http_version", "1.1").startswith("1"))
            scope = {**scope, KEY: exchange}
            send = exchange.wrap(send)
        try:
            if exchange.rank < self._plain_rank and exchange.route.kind != "misspelt":
                exchange.rank = self._plain_rank  # further in than all before it, as it should be
                exchange.seen.append(self)
                if self._max_body < exchange.max_body:
                    exchange.max_body = self._max_body
                await self.handle(exchange, scope, receive, send)
            elif self._join(exchange, scope):
                await self.handle(exchange, scope, receive, send)
            else:
                await self.forward(exchange, scope, receive, send)
        except GatewayError as error:
            if exchange.response_started:
                raise
            note(exchange, error, _STEPS.get(self.rank, ""))
            named(exchange, scope)
            await send_error(send, error, exchange.route.envelope)
        except SettingsError as error:
            log.error("a setting is wrong: %s", error)
            if exchange.response_started:
                raise
            refusal = Unavailable(f"The gateway's settings are wrong: {error}.", code="misconfigured")
            named(exchange, scope)
            await send_error(send, refusal, exchange.route.envelope)
        except ClientGone:
            exchange.gone = True
        except Exception as error:  # a fault nobody foresaw: answered and logged without its words
            await recover(exchange, error, send, entry=here is not None)
        finally:
            if here is not None:
                here.calls.pop(exchange, None)
                exchange.close()

    def _pass(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """A request that is no call of the gateway's."""
        return self.app(scope, receive, send)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Websockets, lifespan, and what is yet to be invented."""
        if scope["type"] == "websocket":
            await self.websocket(entered(scope, self), receive, send)
        else:
            await self.app(scope, receive, send)

    def _join(self, exchange: Exchange, scope: Scope) -> bool:
        """Whether this layer has work to do for the call. Raises MisorderedStack, NotFound."""
        if self.rank > exchange.rank:
            exchange.rank = self.rank
        else:
            for other in exchange.seen:
                if other._settings == self._settings:
                    return False
            for other in exchange.seen:
                if other.rank > self.rank >= Rank.TENANT:
                    raise misordered(outer=other, inner=self)
        exchange.seen.append(self)
        if self._max_body < exchange.max_body:
            exchange.max_body = self._max_body
        if self._own_table and exchange.request is None:  # what this layer was told counts, also where no other was
            exchange.route = self._table.match(scope)
        if exchange.route.kind == "misspelt" and self.rank >= Rank.TENANT:
            raise NotFound("No such path. Paths are lower case, without '//', ';', '.' segments or escapes.")
        return True

    async def websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Observers let a websocket pass; a gatekeeper closes one on a governed path, for it cannot read it."""
        route: Route = self._table.match(scope) if self.rank >= Rank.TENANT else PASS
        if route.kind == "open":
            await self.app(scope, receive, send)
            return
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.close", "code": 1008, "reason": "not available over websocket"})


def misordered(*, outer: Any, inner: Any) -> MisorderedStack:
    """The refusal of a stack in the wrong order, naming the right one."""
    far, near = type(outer).__name__, type(inner).__name__
    log.error("%s stands outside %s; the right order, outermost first: %s", far, near, ORDER)
    return MisorderedStack(
        f"{far} stands outside {near}, where it would not know what {near} decides. No call was made. "
        f"Order the middlewares, outermost first: {ORDER}. "
        "(With app.add_middleware the one added last is the outermost.)"
    )


def named(exchange: Exchange, scope: Scope) -> None:
    """Give a refusal a request id and a trace id where it comes from outside the TracingMiddleware, or there is none."""
    if not any(name == b"x-request-id" for name, _ in exchange.headers):
        get = exchange.sent(scope).get
        own, trace = request_id(get(b"x-request-id")), trace_id(None)
        exchange.headers += ((b"x-request-id", own.encode()), (b"x-trace-id", trace.encode()))


# What a call waits for at a layer, as its trace names it.
_STEPS = {
    Rank.TENANT: "auth",
    Rank.RATE_LIMIT: "limit",
    Rank.POLICY: "policy",
    Rank.CACHE: "cache",
    Rank.BUDGET: "hold",
}


def note(exchange: Exchange, error: GatewayError, step: str = "") -> None:
    """Put a refusal into the call's record, and the step at which it was refused."""
    record = exchange.record
    if record is None:
        return
    if record.error is None:
        record.error = error.error_code
    if step and record.began and all(name != step for name, _, _ in record.steps):
        since = record.steps[-1][2] if record.steps else record.began
        record.steps.append((step, since, time.perf_counter()))
