"""What was recorded: spans kept in memory by OpenTelemetry's own SDK, and what any set of them must be."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import SpanKind, StatusCode

from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.tracelog import TraceLog

OWN = "llm_gateway."


class Seen:
    """A tracer provider whose spans are kept.

    Attributes:
        provider: The provider.
        started: How many spans were begun.
    """

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        counting = _Counting(self._exporter)
        self.provider.add_span_processor(counting)
        self._counting = counting

    def __call__(self, app: Any, **more: Any) -> TracingMiddleware:
        """TracingMiddleware whose spans come here."""
        return TracingMiddleware(app, traces=TraceLog(), tracer_provider=self.provider, **more)

    @property
    def started(self) -> int:
        """See the class."""
        return self._counting.started

    @property
    def spans(self) -> list[ReadableSpan]:
        """All that have ended, in order of their begin."""
        return sorted(self._exporter.get_finished_spans(), key=lambda one: one.start_time or 0)

    def clear(self) -> None:
        """Forget them."""
        self._exporter.clear()
        self._counting.started = 0

    @property
    def server(self) -> ReadableSpan:
        """The one SERVER span."""
        (found,) = [one for one in self.spans if one.kind is SpanKind.SERVER]
        return found

    @property
    def logical(self) -> ReadableSpan:
        """The one span of the call as a whole."""
        (found,) = self.logicals
        return found

    @property
    def logicals(self) -> list[ReadableSpan]:
        """All of them."""
        return [one for one in self.spans if "gen_ai.operation.name" in about(one)]

    @property
    def attempts(self) -> list[ReadableSpan]:
        """The upstream attempts' spans, in the order in which they were made."""
        found = [one for one in self.spans if OWN + "attempt" in about(one)]
        return sorted(found, key=lambda one: int(str(about(one)[OWN + "attempt"])))

    def check(self, *, host: str | None = None) -> None:
        """What holds of every call's spans, whatever became of it.

        All have ended, once; there is one SERVER span, at most one below it for the call, and the attempts below that; none
        begins before its parent.
        """
        spans = self.spans
        ids = [one.context.span_id for one in spans if one.context is not None]
        assert len(ids) == len(set(ids)) == self.started
        server = self.server
        assert server.context is not None
        assert server.name == host if host is not None else server.parent is None or server.parent.is_remote
        assert {one.context.trace_id for one in spans if one.context is not None} == {server.context.trace_id}
        assert len(self.logicals) <= 1
        for one in spans:
            assert one.start_time is not None
            assert one.end_time is not None
            assert one.start_time <= one.end_time
            assert not one.events, "no event: an exception's words may hold what was asked"
            assert one.status.description is None
            if one.status.status_code is StatusCode.ERROR:
                assert "error.type" in about(one)
        for one in self.logicals:
            assert one.kind is SpanKind.CLIENT
            assert one.parent is not None
            assert one.parent.span_id == server.context.span_id
            assert (one.start_time or 0) >= (server.start_time or 0)
        for at, one in enumerate(self.attempts, 1):
            (logical,) = self.logicals
            assert logical.context is not None
            assert one.parent is not None
            assert one.parent.span_id == logical.context.span_id
            assert about(one)[OWN + "attempt"] == at
            assert (one.start_time or 0) >= (logical.start_time or 0)
            assert (one.end_time or 0) <= (logical.end_time or 0)
        others = [one for one in spans if one not in (server, *self.logicals, *self.attempts)]
        assert not others


class _Counting(SimpleSpanProcessor):
    """Counts begins, which must be as many as ends."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        super().__init__(exporter)
        self.started = 0

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """See SpanProcessor."""
        self.started += 1
        super().on_start(span, parent_context)


def about(span: ReadableSpan) -> dict[str, Any]:
    """A span's attributes."""
    return dict(span.attributes or {})


def own(span: ReadableSpan) -> dict[str, Any]:
    """Those that are ours, without the prefix."""
    return {name.removeprefix(OWN): value for name, value in about(span).items() if name.startswith(OWN)}


def standard(span: ReadableSpan) -> dict[str, Any]:
    """Those of the conventions."""
    return {name: value for name, value in about(span).items() if not name.startswith(OWN)}
