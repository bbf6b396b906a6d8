"""The SERVER span of a call: its own, or that of the host, which is joined. Loaded once OpenTelemetry is in use.

Names and rules: OpenTelemetry semantic conventions, "HTTP server spans" (stable). The attributes of the request and how its
headers are read come from ``opentelemetry-instrumentation-asgi``, so that they are what users of it know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, ItemsView, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.instrumentation._semconv import _StabilityMode
from opentelemetry.instrumentation.asgi import (
    asgi_getter,
    collect_custom_headers_attributes,
    collect_request_attributes,
)
from opentelemetry.propagate import get_global_textmap
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.util.http import (
    OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS,
    OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST,
    OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE,
    SanitizeValue,
    get_custom_headers,
    normalise_request_header_name,
    normalise_response_header_name,
)

from .._asgi import Headers, Message, Scope, Send
from ..exchange import ClientGone, Exchange
from ..meters.bounds import OTHER, method_label, route_label
from ..records import TraceRecord
from ..spans import names
from ..spans.tree import CallSpans, Clock, Passing, Upstream, owner
from ..spans.urls import query_shown

Parent = Literal["continue", "link", "ignore"]

_DEFAULT_FIELDS = frozenset({"traceparent", "tracestate", "baggage"})
_SHOWN = (b"host", b"user-agent")
_LONGEST = 256  # characters of what a client calls itself
_NAMES = 2000  # spans' names, and sets of attributes, that are remembered: making them takes as long as half a span
_NOWHERE = Context()
# What holds a credential is never told, whatever is asked for.
_SECRET = ("authorization", "proxy-authorization", ".*api-?key.*", ".*cookie.*", ".*secret.*", ".*token.*")


class _Captured(NamedTuple):
    """Headers that the operator wants on spans, as the instrumentations' variables say."""

    request: list[str]
    response: list[str]
    sanitize: SanitizeValue


class Server:
    """Makes SERVER spans.

    Args:
        tracer: OpenTelemetry's.
        parent: What a client's own trace context is good for.
        upstream: What providers are told.
        paths: The operator's own paths, which may be routes' names.
    """

    def __init__(self, tracer: Tracer, parent: Parent, upstream: Upstream, paths: tuple[str, ...] = ()) -> None:
        self._tracer = tracer
        self._parent = parent
        self.upstream = upstream
        self._paths = paths
        self._routes: dict[tuple[str, str], tuple[str, str]] = {}
        self._known: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._plain: tuple[Any, bool] = (None, False)
        request = get_custom_headers(OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST)
        response = get_custom_headers(OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE)
        hidden = get_custom_headers(OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS)
        captured = _Captured(request, response, SanitizeValue([*hidden, *_SECRET]))
        self._captured = captured if request or response else None

    def begin(self, exchange: Exchange, scope: Scope, sent: Headers, started: float) -> ServerSpan | None:
        """A call has come; ``started`` by ``perf_counter``. ``None`` where OpenTelemetry makes no trace of it."""
        clock = Clock(started)
        current = get_current_span()
        kind = getattr(current, "kind", None)
        if kind is SpanKind.SERVER and current.is_recording():
            return ServerSpan(self, current, get_current(), None, clock)
        around = current.get_span_context()
        links: list[Link] | None = None
        if around.is_valid:  # the host's own trace
            base = get_current()
        elif self._parent == "ignore":
            base = _NOWHERE
        else:
            base = self._told(scope, sent)
            if self._parent == "link":
                theirs = get_current_span(base).get_span_context()
                links = [Link(theirs)] if theirs.is_valid else None
                base = _NOWHERE
        method = scope["method"]
        name, route = self._routes.get((method, exchange.route.path)) or self._route(method, exchange)
        span = self._tracer.start_span(
            name,
            context=base,
            kind=SpanKind.SERVER,
            attributes=_Later(lambda: self._about(scope, sent, route)),
            links=links,
            start_time=clock.ns(started),
        )
        if not span.get_span_context().is_valid:
            return None
        return ServerSpan(self, span, set_span_in_context(span, base), span, clock)

    def _told(self, scope: Scope, sent: Headers) -> Context:
        """The trace context that the request's headers tell of."""
        propagator = get_global_textmap()
        if propagator is not self._plain[0]:
            self._plain = (propagator, propagator.fields <= _DEFAULT_FIELDS)
        get = sent.get
        if self._plain[1] and get(b"traceparent") is None and get(b"baggage") is None:
            return _NOWHERE  # as most requests are; reading them takes as long as half a span
        try:
            return propagator.extract({"headers": scope.get("headers") or ()}, _NOWHERE, asgi_getter)
        except Exception:  # a propagator that trips over what a client sent
            return _NOWHERE

    def _route(self, method: str, exchange: Exchange) -> tuple[str, str]:
        """A span's name and its route; the latter is empty for a path that nobody knows."""
        route = route_label(exchange.route.path, self._paths)
        known = method_label(method)
        verb = "HTTP" if known == OTHER else known
        found = (verb, "") if route == OTHER else (f"{verb} {route}", route)
        if len(self._routes) < _NAMES:
            self._routes[method, exchange.route.path] = found
        return found

    def _about(self, scope: Scope, sent: Headers, route: str) -> dict[str, Any]:
        """The request's attributes; worked out only for spans that are recorded, or by a sampler that asks."""
        host, agent, path = sent.get(b"host"), sent.get(b"user-agent"), scope["path"]
        place = host or tuple(scope.get("server") or ())
        key = (scope["method"], path, place, agent, scope.get("scheme"), scope.get("http_version"))
        known = self._known.get(key)
        if known is None:
            known = self._collect(scope, sent)
            if route:
                known[names.ROUTE] = route
            if len(path) + len(host or b"") + len(agent or b"") < 3 * _LONGEST:
                if len(self._known) >= _NAMES:
                    self._known.clear()
                self._known[key] = known
        found = known.copy()
        client = scope.get("client")
        if client:
            found["client.address"] = client[0]
        query = scope.get("query_string")
        if query:
            found[names.QUERY] = query_shown(query)
        if self._captured is not None and self._captured.request:
            found.update(
                collect_custom_headers_attributes(
                    scope, self._captured.sanitize, self._captured.request, normalise_request_header_name
                )
            )
        return found

    def _collect(self, scope: Scope, sent: Headers) -> dict[str, Any]:
        """Those that many requests have in common."""
        shown = [(name, value[:_LONGEST]) for name in _SHOWN if (value := sent.get(name)) is not None]
        # The query is left to us: it may hold a secret, and need not be UTF-8.
        view = {**scope, "headers": shown, "query_string": b"", "client": None}
        found: dict[str, Any] = collect_request_attributes(view, _StabilityMode.HTTP)  # type: ignore[no-untyped-call]
        address, port = _address(sent.get(b"host"), scope)
        if address:
            found[names.ADDRESS] = address
        if port is not None:
            found[names.PORT] = port
        else:
            found.pop(names.PORT, None)
        return found

    def tapped(self, whose: ServerSpan, exchange: Exchange, send: Send) -> Send:
        """The ``send`` that notes the answer's headers, where the operator wants them."""
        captured, span = self._captured, whose._span
        if captured is None or not captured.response or not span.is_recording():
            return send

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start" and span.is_recording():
                told = {"headers": [*(message.get("headers") or ()), *exchange.headers]}  # which the entry adds
                span.set_attributes(
                    collect_custom_headers_attributes(
                        told, captured.sanitize, captured.response, normalise_response_header_name
                    )
                )
            await send(message)

        return noting


class ServerSpan:
    """One call's SERVER span.

    Attributes:
        trace_id: Its trace's id, 32 hex digits.
        context: OpenTelemetry's context in which what stands further in is called.
    """

    __slots__ = ("_clock", "_mine", "_server", "_span", "calls", "context", "trace_id")

    def __init__(self, server: Server, span: Span, context: Context, mine: Span | None, clock: Clock) -> None:
        self.context = context
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        self.calls: CallSpans | None = None
        self._server = server
        self._span = span
        self._mine = mine  # None: the host's, which ends it
        self._clock = clock

    def enter(self, exchange: Exchange, record: TraceRecord, started: float) -> Any:
        """From now on what is done belongs to the span; what comes back is to be given to ``leave``, in the same coroutine."""
        server = self._server
        if self._span.is_recording():
            self.calls = exchange.tracer = CallSpans(
                server._tracer, exchange, record, self._clock, started, self.context, server.upstream
            )
            if self._mine is None:
                # OpenTelemetry's own middleware ends its span with the last message: what is known then goes onto it before.
                async def tell() -> None:
                    self._tell(exchange, record, None, aborted=exchange.gone)

                exchange.at_end(tell)
        elif server.upstream.traceparent:
            exchange.tracer = Passing(self._span, self.context, server.upstream)
        return attach(self.context) if self._mine is not None else None

    def leave(self, token: Any) -> None:
        """What follows does not belong to the span any more."""
        if token is not None:
            detach(token)

    def end(self, exchange: Exchange, record: TraceRecord, failed: BaseException | None) -> None:
        """The call is over, and its record is complete."""
        if self.calls is None:  # not recorded
            return
        aborted = exchange.gone or isinstance(failed, (asyncio.CancelledError, ClientGone))
        aborted = aborted or (failed is None and exchange.status is not None and not exchange.complete)
        try:
            self.calls.close(aborted=aborted)
        finally:
            if self._span.is_recording():
                self._tell(exchange, record, failed, aborted=aborted)
            if self._mine is not None:
                self._mine.end()

    def _tell(self, exchange: Exchange, record: TraceRecord, failed: BaseException | None, *, aborted: bool) -> None:
        span, status = self._span, exchange.status or exchange.answering
        if not span.is_recording():
            return
        found = owner(exchange, record, aborted=aborted)
        if self._mine is not None:
            if status is None and failed is not None and not aborted:
                status = 500  # what the server, or who stands further out, makes of it
            if status is not None:
                found[names.STATUS] = status
        error = record.error
        if error is None and status is not None and status >= 500:
            error = str(status)
        if error is not None and not aborted:
            found[names.ERROR_TYPE] = names.short(error)
            # A client's fault is none of the server's; an answer that broke off was to be a good one.
            if status is None or status >= 500 or status < 400:
                span.set_status(StatusCode.ERROR)
        span.set_attributes(found)


class _Later(Mapping[str, Any]):
    """Attributes that are worked out when somebody looks at them."""

    __slots__ = ("_found", "_make")

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self._make = make
        self._found: dict[str, Any] | None = None

    def _all(self) -> dict[str, Any]:
        if self._found is None:
            self._found = self._make()
        return self._found

    def items(self) -> ItemsView[str, Any]:
        """All of them."""
        return self._all().items()

    def copy(self) -> dict[str, Any]:
        """As the SDK before 1.42 wants them."""
        return dict(self._all())

    def __getitem__(self, name: str) -> Any:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def _address(host: bytes | None, scope: Scope) -> tuple[str, int | None]:
    """The host and the port that the client asked, by its Host header, else where the server listens."""
    if host:
        name, colon, port = host.decode("latin-1").strip().rpartition(":")
        if not colon or name.endswith(":") or (name.startswith("[") and not name.endswith("]")):
            name, port = host.decode("latin-1").strip(), ""
        name = name.strip("[]")[:_LONGEST]
        if port.isdigit() and len(port) < 6:
            return name, int(port)
        return name, 443 if scope.get("scheme") == "https" else 80
    server = scope.get("server") or ("", None)
    return server[0] or "", server[1]


__all__ = ["Parent", "Server", "ServerSpan"]
