"""What happened: a request id and a trace id on every answer, one recorded trace a call, and OpenTelemetry's spans."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from .. import __version__
from .._asgi import ASGIApp, Headers, Message, Receive, Scope, Send
from ..contents.capture import ContentCapture
from ..errors import GatewayError, SettingsError
from ..exchange import MAX_BODY, Exchange
from ..ids import request_id, trace_id
from ..records import TraceRecord
from ..tracelog import shared_traces
from ..traces.base import TraceSink
from .base import LLMMiddleware, Rank

if TYPE_CHECKING:
    from ._tracing_server import Server

log = logging.getLogger("asgi_llm_gateway")

_LOOK_AGAIN = 1.0  # seconds between two looks for a tracer provider, while there is none


class TracingMiddleware(LLMMiddleware):
    """Give every call a request id and a trace id, record how it went, and make OpenTelemetry's spans of it.

    ``x-request-id`` (the client's own where it sent a sound one) and ``x-trace-id`` (that of the span, else of the client's
    ``traceparent``, else a fresh one) stand on every answer, errors included. A record holds no prompt, no answer and no
    secret, and neither does a span.

    Where OpenTelemetry has a tracer provider, a call has an HTTP SERVER span (a recording one of the host's is joined, and
    left for the host to end), one GenAI CLIENT span below it, and one HTTP CLIENT span for each upstream attempt. They end
    after the last byte. Without a provider nothing of OpenTelemetry is loaded.

    Args:
        app: The ASGI app further in.
        traces: Where calls are recorded; ``None`` takes the shared log of this process.
        tracer_provider: OpenTelemetry's; ``None`` takes the global one, once there is one.
        parent: What a client's own trace context is good for: its span is the parent (``"continue"``), is linked
            (``"link"``), or passed over (``"ignore"``); ``None`` takes TRACE_PARENT.
        upstream: Whether providers get a ``traceparent``; ``None`` takes TRACE_UPSTREAM.
        baggage: Whether they get the client's ``baggage`` too; ``None`` takes TRACE_BAGGAGE.
        content: Whose messages go onto spans and into events; ``None`` takes the environment's word, which is nobody's
            where it says nothing.
        logger_provider: OpenTelemetry's, for the events; ``None`` takes the global one.
        pages: Whether every answer is the gateway's own, so that those to other requests than calls have the two ids as
            well; a host's pages are left as they are.
        paths: See LLMMiddleware.
        govern: See LLMMiddleware.
        max_body: See LLMMiddleware.

    Raises:
        ValueError: ``parent`` is none of the above.
    """

    rank = Rank.TRACING

    def __init__(
        self,
        app: ASGIApp,
        *,
        traces: TraceSink | None = None,
        tracer_provider: Any = None,
        parent: Literal["continue", "link", "ignore"] | None = None,
        upstream: bool | None = None,
        baggage: bool | None = None,
        content: ContentCapture | None = None,
        logger_provider: Any = None,
        pages: bool = False,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        if parent not in (None, "continue", "link", "ignore"):
            raise ValueError(f"parent={parent!r}: use 'continue', 'link' or 'ignore'")
        given = (parent, upstream, baggage)
        parts = (traces, tracer_provider, content, logger_provider)
        same = (*(None if one is None else id(one) for one in parts), *given, pages)
        super().__init__(app, settings=same, paths=paths, govern=govern, max_body=max_body)
        self._traces: TraceSink = shared_traces if traces is None else traces
        self._given = given
        self._provider = tracer_provider
        self._pages = pages
        self._own = tuple(paths or ())
        self._content = content or ContentCapture()
        self._logger_provider = logger_provider
        self._hears = False
        self._parent = parent  # known at the first call
        self._server: Server | None = None
        self._look_at = 0.0
        self._watches = _unread(app)

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        record = exchange.record
        if record is not None and record.request_id:  # another one, otherwise set, stands further out
            await self._once_more(exchange, record, scope, receive, send)
            return
        started = time.perf_counter()
        sent = exchange.sent(scope)
        server = self._server
        if server is None and started >= self._look_at:
            server = self._look(started)
        span = None
        if server is not None:
            try:
                span = server.begin(exchange, scope, sent, started)
            except Exception as error:  # a sampler or a processor of somebody's: the call is answered all the same
                log.error("a call's span could not be begun: %s", type(error).__name__)
        get = sent.get
        request = request_id(get(b"x-request-id"))
        if span is not None:
            trace = span.trace_id
        else:
            trace = trace_id(get(b"traceparent") if (self._parent or self._settle_parent()) == "continue" else None)
        exchange.headers += ((b"x-request-id", request.encode()), (b"x-trace-id", trace.encode()))
        path = exchange.route.path or scope["path"]
        exchange.record = record = TraceRecord(trace, request, time.time(), scope["method"], path)
        record.began = started
        if self._watches and exchange.route.kind == "metered":
            send = exchange.watch(send)
        failed: BaseException | None = None
        token: Any = None
        if span is not None and server is not None:
            token = span.enter(exchange, record, started)
            send = server.tapped(span, exchange, send)
            if self._hears and span.calls is not None:
                from ._tracing_content import Listener

                span.calls.said = send = Listener(self._content, exchange, send, self._logger_provider)
                receive = send.alone(receive) if self._watches else receive
        try:
            await self.forward(exchange, scope, receive, send)
        except GatewayError as error:
            failed = error
            record.error = record.error or error.error_code
            record.status = error.http_status
            raise
        except BaseException as error:  # noted in the record, and raised again
            failed = error
            record.error = record.error or type(error).__name__
            raise
        finally:
            _complete(record, exchange, started)
            if span is not None:
                span.leave(token)
                try:
                    span.end(exchange, record, failed)
                except Exception as error:  # likewise; whatever its words are, they are not logged
                    log.error("a call's spans could not be ended: %s", type(error).__name__)
            self._traces.add(record)

    async def _once_more(
        self, exchange: Exchange, record: TraceRecord, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """The call has its ids and its spans: it is recorded here, too."""
        started = time.perf_counter()
        try:
            await self.forward(exchange, scope, receive, send)
        finally:
            _complete(record, exchange, started)
            self._traces.add(record)

    def _pass(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """A request that is no call of the gateway's: a host's page is left alone, one of the gateway's own has ids, too."""
        if not self._pages:
            return self.app(scope, receive, send)
        get = Headers(scope.get("headers") or ()).get
        try:
            told = get(b"traceparent") if (self._parent or self._settle_parent()) == "continue" else None
        except SettingsError:  # which is told to those whose calls need the settings
            return self.app(scope, receive, send)
        ids = (b"x-request-id", request_id(get(b"x-request-id")).encode()), (b"x-trace-id", trace_id(told).encode())

        def with_ids(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = message.get("headers") or ()
                named = {name.lower() for name, _ in headers}
                message = {**message, "headers": [*headers, *(one for one in ids if one[0] not in named)]}
            return send(message)

        return self.app(scope, receive, with_ids)

    # -- known at the first call ---------------------------------------------------------------------------------------

    def _settle_parent(self) -> Literal["continue", "link", "ignore"]:
        from ..settings import current

        self._parent = current().trace_parent
        return self._parent

    def _look(self, now: float) -> Server | None:
        """Whether there is a tracer provider by now, and what needs the settings.

        While nobody has loaded OpenTelemetry's API nobody can have set one, and it need not be loaded to find that out.
        """
        self._look_at = now + _LOOK_AGAIN
        provider = self._provider
        if provider is None:
            trace = sys.modules.get("opentelemetry.trace")
            if trace is None:
                return None
            provider = trace.get_tracer_provider()
            if isinstance(provider, trace.ProxyTracerProvider):
                return None
        try:
            self._server = self._open(provider)
        except ModuleNotFoundError:
            self._look_at = float("inf")
            log.error("OpenTelemetry has a tracer provider; spans need: pip install 'asgi-llm-gateway[otel]'")
        return self._server

    def _open(self, provider: Any) -> Server | None:
        from opentelemetry.trace import NoOpTracer

        from ..settings import current
        from ..spans.tree import Upstream
        from ._tracing_server import Server

        tracer = provider.get_tracer("asgi_llm_gateway", __version__)
        if isinstance(tracer, NoOpTracer):  # OTEL_SDK_DISABLED
            return None
        self._hears = self._content.on
        _, upstream, baggage = self._given
        if upstream is None or baggage is None:
            settings = current()
            upstream = settings.trace_upstream if upstream is None else upstream
            baggage = settings.trace_baggage if baggage is None else baggage
        return Server(
            tracer, self._parent or self._settle_parent(), Upstream(upstream, upstream and baggage), self._own
        )


def _complete(record: TraceRecord, exchange: Exchange, started: float) -> None:
    """What is known of a call when it is over."""
    record.duration = time.perf_counter() - started
    if exchange.first_byte_at is not None:
        record.first_byte = exchange.first_byte_at - started
    if exchange.status is not None:
        record.status = exchange.status
    request = exchange.request
    if request is not None:
        record.model, record.stream = request.model, request.stream
    record.began = started
    if exchange.calls:
        record.provider = exchange.calls[-1].target.provider
        record.calls = tuple(
            [(*call.target, call.begun, call.done, call.status, call.error) for call in exchange.calls]
        )
    _note_caller(record, exchange)
    record.usage = exchange.usage
    record.aborted = exchange.gone or not exchange.complete


def _note_caller(record: TraceRecord, exchange: Exchange) -> None:
    """Whose call it was: nobody's, where a TenantMiddleware found no key good enough."""
    tenant, key = exchange.identity
    if key is not None:
        record.key = key.id
    elif any(layer.rank == Rank.TENANT for layer in exchange.seen):
        return
    if record.tenant is None:
        record.tenant = tenant.id


def _unread(app: ASGIApp) -> bool:
    """Whether nobody further in reads what an answer used: neither a ledger nor an app that tells it itself."""
    while isinstance(app, LLMMiddleware):
        if app.rank == Rank.BUDGET:
            return False
        app = app.app
    return not getattr(type(app), "joins_exchange", False)


__all__ = ["TracingMiddleware"]
