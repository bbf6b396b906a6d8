"""The spans of one exchange below its SERVER span: one for the call as its client sees it, one for each attempt.

Source: OpenTelemetry semantic conventions, "Generative AI client spans" and "HTTP client span" (see ``names``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, NamedTuple, Protocol

from opentelemetry.context import Context
from opentelemetry.propagate import get_global_textmap
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context

from ..calls import Call
from ..exchange import Exchange
from ..records import NANO_PER_USD, TraceRecord, Usage
from . import names
from .answer import NOTHING, told_by
from .names import OPERATIONS, PROVIDERS, provider_name, short
from .request import request_attributes
from .urls import place_of

log = logging.getLogger("asgi_llm_gateway")

_NOWHERE = Context()
_COUNT = "/count_tokens"


class Clock:
    """``time.perf_counter()`` as Unix time in nanoseconds, which spans are told in."""

    __slots__ = ("_at", "_unix")

    def __init__(self, at: float) -> None:
        self._at = at
        self._unix = time.time_ns() - int((time.perf_counter() - at) * 1e9)

    def ns(self, at: float) -> int:
        """That moment in nanoseconds."""
        return self._unix + int((at - self._at) * 1e9)


class Upstream(NamedTuple):
    """What providers are told of the trace: whether ``traceparent`` goes out, and whether ``baggage`` goes with it."""

    traceparent: bool
    baggage: bool


class Said(Protocol):
    """What was said in a call, where somebody asked for it."""

    def tell(self, span: Span) -> None:
        """Put it onto the call's span, which is about to end."""
        ...


class CallSpans:
    """Makes the spans; a Tracer of the exchange.

    Args:
        tracer: OpenTelemetry's.
        exchange: Whose calls they are.
        record: What is recorded of the exchange.
        clock: Its clock.
        started: When it came, by ``perf_counter``.
        context: OpenTelemetry's context of the SERVER span.
        upstream: What providers are told.

    Attributes:
        context: See above.
        said: Who tells what was said in the call, where somebody asked for it.
    """

    __slots__ = ("_aborted", "_attempts", "_base", "_clock", "_closed", "_done", "_exchange", "_parent", "_provider", "_record",
                 "_started", "_tracer", "_upstream", "begun", "context", "logical", "said")  # fmt: skip

    def __init__(
        self,
        tracer: Tracer,
        exchange: Exchange,
        record: TraceRecord,
        clock: Clock,
        started: float,
        context: Context,
        upstream: Upstream,
    ) -> None:
        self.context: Any = context
        self.logical: Span | None = None
        self.said: Said | None = None
        self.begun = started
        self._tracer = tracer
        self._exchange = exchange
        self._record = record
        self._clock = clock
        self._started = started
        self._upstream = upstream
        self._base = context if upstream.baggage else _NOWHERE
        self._parent = context
        self._attempts: list[AttemptSpan] = []
        self._closed = False
        self._aborted = False
        self._done = False
        self._provider = ""

    def begin(self, call: Call, url: str) -> None:
        """See Tracer."""
        if self._done:  # made by what outlived the call, once its spans had ended
            return
        try:
            self._begin(call, url)
        except (
            Exception
        ) as error:  # a sampler, a processor or a propagator of somebody's: the call goes out all the same
            log.error("an upstream call's span could not be begun: %s", type(error).__name__)

    def _begin(self, call: Call, url: str) -> None:
        if self.logical is None:
            self._open(call, url)
        target, place = call.target, place_of(url) if url else None
        about: dict[str, Any] = {
            names.ATTEMPT: len(self._attempts) + 1,
            names.TARGET_PROVIDER: target.provider,
            names.TARGET_MODEL: short(target.model),
        }
        kind, name = SpanKind.INTERNAL, "attempt"  # an answer that needs no server: nothing goes over the wire
        if place is not None:
            kind = SpanKind.CLIENT
            name = about[names.METHOD] = "POST"
            about[names.ADDRESS] = place.address
            if place.port is not None:
                about[names.PORT] = place.port
            about[names.URL] = place.url
            resent = sum(one.call.request is call.request for one in self._attempts)
            if resent and call.request is not None:
                about[names.RESENT] = resent
        span = self._tracer.start_span(
            name, context=self._parent, kind=kind, attributes=about, start_time=self._clock.ns(call.begun)
        )
        call.span = attempt = AttemptSpan(span, call, self)
        self._attempts.append(attempt)
        if self._upstream.traceparent and place is not None:
            call.headers = outgoing(set_span_in_context(span, self._base))

    def _open(self, call: Call | None, url: str = "", began: float | None = None) -> None:
        """Begin the span of the call as a whole: with the cache's look-up, else with the first upstream call."""
        exchange = self._exchange
        request = exchange.request or (call.request if call is not None else None)
        dialect = exchange.route.dialect or (request.route.dialect if request is not None else None)
        operation = names.COUNT_TOKENS if exchange.route.path.endswith(_COUNT) else OPERATIONS.get(dialect, "chat")
        self._provider = provider = call.target.provider if call is not None else ""
        about: dict[str, Any] = {names.OPERATION: operation, names.PROVIDER: provider_name(provider, dialect)}
        place = place_of(url) if url else None
        if place is not None:
            about[names.ADDRESS] = place.address
            if place.port is not None:
                about[names.PORT] = place.port
        name = operation
        if request is not None:
            about.update(request_attributes(request))
            name = f"{operation} {about[names.REQUEST_MODEL]}"
        if began is None:
            steps = [one[1] for one in self._record.steps if one[0] == "cache"]
            began = steps[0] if steps else (call.begun if call is not None else self._started)
        self.begun = began
        self.logical = self._tracer.start_span(
            name, context=self.context, kind=SpanKind.CLIENT, attributes=about, start_time=self._clock.ns(began)
        )
        self._parent = set_span_in_context(self.logical, _NOWHERE)

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self, *, aborted: bool) -> None:
        """The exchange is over, and its record is complete; a call that outlives it is waited for.

        ``aborted``: its client has left before the end.
        """
        self._aborted = aborted
        self._closed = True
        exchange, lasting = self._exchange, self._exchange.lasting
        if lasting is not None and lasting.count:
            later = lasting.later

            async def settled() -> None:
                if later is not None:
                    await later()
                self._finish()

            lasting.later = settled
        elif all(call.ended for call in exchange.calls):
            self._finish()

    def over(self) -> None:
        """One of the calls has ended."""
        if self._done or not self._closed:
            return
        lasting = self._exchange.lasting
        waits = lasting is not None and lasting.count
        if waits or not all(call.ended for call in self._exchange.calls):
            return
        try:
            asyncio.get_running_loop().call_soon(self._finish)  # its status and error are noted right after its end
        except RuntimeError:  # the loop is gone, and a garbage collector ends the call
            self._finish()

    def _finish(self) -> None:
        if self._done:
            return
        record, exchange = self._record, self._exchange
        if self.logical is None and self._answered_without_calls():
            looked = [one[1] for one in record.steps if one[0] == "cache"]
            waited = [one[2] for one in record.steps if one[0] != "settle"]
            self._open(None, began=looked[0] if looked else max(waited, default=self._started))
        calls = exchange.calls
        for attempt in self._attempts:
            attempt.end(self._clock, self._broken(calls[-1]) if calls and attempt.call is calls[-1] else None)
        logical = self.logical
        if logical is not None and logical.is_recording():
            found = self._outcome()
            if (error := self._error()) is not None:
                logical.set_status(StatusCode.ERROR)
                found[names.ERROR_TYPE] = error
            logical.set_attributes(found)
            if self.said is not None:
                self._tell(self.said, logical)
            logical.end()
        for attempt in self._attempts:  # let go of who refers back, so that no garbage collector is needed
            attempt.call.span = None
        self._attempts = []
        self.said = None
        self._done = True
        del self._exchange, self._record

    def _tell(self, said: Said, logical: Span) -> None:
        try:
            said.tell(logical)
        except Exception as error:  # whose words may be of the content: its kind is all that is logged
            log.error("a call's content could not be told: %s", type(error).__name__)

    def _answered_without_calls(self) -> bool:
        """An answer of the cache, or of an app that makes no calls that we know of."""
        record, exchange = self._record, self._exchange
        if exchange.route.dialect is None or exchange.calls:
            return False
        if record.cache in ("hit", "joined"):
            return True
        return record.error is None and exchange.status is not None and exchange.status < 400

    def _broken(self, call: Call) -> str | None:
        """Why the call that was answered with came to nothing after it had begun to answer."""
        record = self._record
        if call.error is None and record.error is not None and self._exchange.status is not None:
            return record.error if self._exchange.status < 400 else None
        return None

    def _error(self) -> str | None:
        """Why the whole of it failed; a client that has left is no failure."""
        record, status = self._record, self._exchange.status
        if self._aborted:
            return None
        if record.error is not None:
            return short(record.error)
        return str(status) if status is not None and status >= 400 else None

    def _outcome(self) -> dict[str, Any]:
        """What is known at the end."""
        record, exchange = self._record, self._exchange
        calls = exchange.calls
        told = told_by(calls[-1].told if calls and calls[-1].told is not None else exchange.reader)
        if record.cache in ("hit", "joined"):
            told = NOTHING  # an upstream call that the answer was not taken from
        found = {**owner(exchange, record, aborted=self._aborted), names.ATTEMPTS: len(calls)}
        if calls and calls[-1].target.provider != self._provider:  # another one answered in the end
            provider = calls[-1].target.provider
            found[names.PROVIDER] = PROVIDERS.get(provider, provider)
        if told.model is not None:
            found[names.RESPONSE_MODEL] = told.model
        if told.id is not None:
            found[names.RESPONSE_ID] = told.id
        cut = record.error is not None and exchange.status is not None and exchange.status < 400
        if (self._aborted or cut) and not told.reasons:
            choices = exchange.request.choices if exchange.request is not None else 1
            found[names.FINISH_REASONS] = ["error"] * min(choices, 128)
        elif told.reasons:
            found[names.FINISH_REASONS] = told.reasons
        request = exchange.request
        if request is not None and request.stream and exchange.first_byte_at is not None:
            found[names.FIRST_CHUNK] = max(0.0, exchange.first_byte_at - self.begun)
        if record.cache in ("hit", "joined"):
            if record.saved is not None:
                found[names.SAVED] = record.saved / NANO_PER_USD
        elif exchange.usage is not None and (exchange.usage.total or exchange.status is None or exchange.status < 400):
            _used(exchange.usage, exchange.route.dialect, found)
        if exchange.cost is not None:
            found[names.COST] = exchange.cost / NANO_PER_USD
        return found


def owner(exchange: Exchange, record: TraceRecord, *, aborted: bool) -> dict[str, Any]:
    """Whose call it is, and how it ended."""
    tenant, key = exchange.identity
    found: dict[str, Any] = {names.TENANT: tenant.id, names.REQUEST_ID: record.request_id}
    if key is not None:
        found[names.KEY] = key.id
    if record.cache is not None:
        found[names.CACHE] = record.cache
    if aborted:
        found[names.ABORTED] = True
    return found


def _used(usage: Usage, dialect: str | None, found: dict[str, Any]) -> None:
    """The tokens; parts that are zero are left out, for most providers do not tell them."""
    found[names.INPUT_TOKENS] = usage.prompt
    if dialect != "embeddings":
        found[names.OUTPUT_TOKENS] = usage.completion
    if usage.cached:
        found[names.CACHE_READ] = usage.cached
    if usage.cache_write:
        found[names.CACHE_WRITE] = usage.cache_write
    if usage.reasoning:
        found[names.REASONING] = usage.reasoning
    if usage.estimated:
        found[names.ESTIMATED] = True


class AttemptSpan:
    """The span of one upstream call."""

    __slots__ = ("_spans", "call", "span")

    def __init__(self, span: Span, call: Call, spans: CallSpans) -> None:
        self.span = span
        self.call = call
        self._spans = spans

    def over(self) -> None:
        """See Spanned."""
        self._spans.over()

    def end(self, clock: Clock, broken: str | None) -> None:
        """All is known of the call; ``broken`` is why its answer came to no end."""
        call, span = self.call, self.span
        if not span.is_recording():  # or it has ended
            return
        status, error = call.status, call.error or broken
        found: dict[str, Any] = {}
        if status is not None:
            found[names.STATUS] = status
        if error == "outrun":
            found[names.OUTRUN] = True
        elif error is not None or (status is not None and status >= 400):
            span.set_status(StatusCode.ERROR)
            found[names.ERROR_TYPE] = short(error) if error is not None else str(status)
        if found:
            span.set_attributes(found)
        span.end(clock.ns(call.done) if call.ended else None)


def outgoing(context: Context) -> tuple[tuple[bytes, bytes], ...]:
    """The headers that tell a provider of a context, as the configured propagator has them."""
    carrier: dict[str, str] = {}
    get_global_textmap().inject(carrier, context)
    return tuple(
        (name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in carrier.items()
    )


class Passing:
    """Tells providers of a trace that is not recorded here, so that they know so. A Tracer that makes no spans."""

    __slots__ = ("_base", "_span", "context")

    def __init__(self, span: Span, context: Context, upstream: Upstream) -> None:
        self.context: Any = context
        self._span = span
        self._base = context if upstream.baggage else _NOWHERE

    def begin(self, call: Call, url: str) -> None:
        """See Tracer."""
        if url:
            call.headers = outgoing(set_span_in_context(self._span, self._base))


__all__ = ["AttemptSpan", "CallSpans", "Clock", "Passing", "Upstream", "outgoing", "owner"]
