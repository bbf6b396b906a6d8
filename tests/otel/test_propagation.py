"""Traces that come in and go out: whose parent is believed, whose span is joined, what providers are told."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.propagators.textmap import Getter, Setter, TextMapPropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, set_span_in_context

from asgi_llm_gateway.middleware import tracing
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import JSON, ask
from ..middleware import DONE as END
from ..middleware import Stranger, Streamer, counts, words
from ..proxy.house import ASKED, STREAMED, house
from ..upstream import always, whole
from .seen import Seen, about, own

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
TOLD = [
    JSON,
    (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()),
    (b"tracestate", b"vendor=1"),
    (b"baggage", b"user=PRIVATE"),
]


def trace_of(span: Any) -> str:
    """A span's trace id in hex."""
    return f"{span.context.trace_id:032x}"


# -- what a client says of its own trace ---------------------------------------------------------------------------------


async def test_a_clients_trace_is_continued() -> None:
    """Its span is the parent of ours, and its trace state stays."""
    seen = Seen()
    answer = await ask(seen(Stranger()), ASKED, headers=TOLD)
    seen.check()
    server = seen.server
    assert trace_of(server) == answer.headers["x-trace-id"] == TRACE
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == SPAN
    assert server.parent.trace_state == {"vendor": "1"}
    assert not server.links


async def test_a_clients_trace_is_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRACE_PARENT=link: a trace of our own, which knows of the other."""
    monkeypatch.setenv("TRACE_PARENT", "link")
    forget()
    seen = Seen()
    answer = await ask(seen(Stranger()), ASKED, headers=TOLD)
    seen.check()
    (link,) = seen.server.links
    assert (f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") == (TRACE, SPAN)
    assert seen.server.parent is None
    assert answer.headers["x-trace-id"] == trace_of(seen.server) != TRACE


@pytest.mark.parametrize("sdk", [True, False])
async def test_a_clients_trace_is_passed_over(sdk: bool) -> None:
    """TRACE_PARENT=ignore, which holds for ``x-trace-id`` without OpenTelemetry too."""
    seen = Seen()
    app = (
        seen(Stranger(), parent="ignore") if sdk else TracingMiddleware(Stranger(), traces=TraceLog(), parent="ignore")
    )
    answer = await ask(app, ASKED, headers=TOLD)
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-trace-id"])
    assert answer.headers["x-trace-id"] != TRACE
    if sdk:
        assert (seen.server.parent, list(seen.server.links)) == (None, [])


@pytest.mark.parametrize("flag", ["00", "01"])
async def test_a_client_cannot_make_us_record_where_it_is_not_believed(flag: str) -> None:
    """The sampled flag counts only where its trace is continued."""
    for parent, sampled in (("continue", flag == "01"), ("link", False), ("ignore", False)):
        seen = Seen(ParentBased(TraceIdRatioBased(0)))
        headers = [JSON, (b"traceparent", f"00-{TRACE}-{SPAN}-{flag}".encode())]
        await ask(seen(Stranger(), parent=parent), ASKED, headers=headers)
        assert bool(seen.spans) is sampled, parent


async def test_an_unsound_traceparent_starts_a_trace() -> None:
    """As without one."""
    for junk in (b"junk", b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01", b"\xff\xfe"):
        seen = Seen()
        answer = await ask(seen(Stranger()), ASKED, headers=[JSON, (b"traceparent", junk)])
        assert seen.server.parent is None
        assert answer.headers["x-trace-id"] == trace_of(seen.server)


# -- what a provider is told -----------------------------------------------------------------------------------------------


async def sent_by(seen: Seen, headers: Any = TOLD, **more: Any) -> dict[str, str]:
    """What a provider got with a client's trace headers."""
    async with house(always(whole())) as home:
        await ask(seen(home.app, **more), ASKED, headers=headers)
        return home.servers["a"].requests[0].headers


async def test_a_provider_gets_a_fresh_traceparent_and_no_baggage() -> None:
    """That of the attempt; never the client's own headers."""
    seen = Seen()
    sent = await sent_by(seen)
    (attempt,) = seen.attempts
    assert attempt.context is not None
    assert sent["traceparent"].startswith(f"00-{TRACE}-{attempt.context.span_id:016x}-")
    assert sent["tracestate"] == "vendor=1"
    assert "baggage" not in sent


async def test_baggage_goes_on_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRACE_BAGGAGE=true."""
    monkeypatch.setenv("TRACE_BAGGAGE", "true")
    forget()
    assert (await sent_by(Seen()))["baggage"] == "user=PRIVATE"


async def test_providers_are_told_nothing_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRACE_UPSTREAM=false: neither of a recorded call nor of another; the spans are the same."""
    monkeypatch.setenv("TRACE_UPSTREAM", "false")
    monkeypatch.setenv("TRACE_BAGGAGE", "true")
    forget()
    for sampler in (None, ALWAYS_OFF):
        seen = Seen(sampler)
        sent = await sent_by(seen)
        assert not {"traceparent", "tracestate", "baggage"} & set(sent)
        assert len(seen.spans) == (3 if sampler is None else 0)


@pytest.mark.parametrize("carried", [True, False])
async def test_a_call_that_is_not_sampled_says_so(carried: bool) -> None:
    """``x-trace-id`` and ``traceparent`` are those of the trace that nobody records; no span ends anywhere."""
    seen = Seen(ALWAYS_OFF)
    async with house(always(whole())) as home:
        answer = await ask(seen(home.app, baggage=carried), ASKED, headers=TOLD)
        sent = home.servers["a"].requests[0].headers
    assert (seen.spans, seen.started) == ([], 0)
    assert answer.headers["x-trace-id"] == TRACE
    assert sent["traceparent"].startswith(f"00-{TRACE}-")
    assert int(sent["traceparent"][-2:], 16) & 1 == 0
    assert ("baggage" in sent) is carried


Use = Callable[[TextMapPropagator], None]


@pytest.fixture
def use() -> Iterator[Use]:
    """Sets the global propagator for a test."""
    before = propagate.get_global_textmap()
    yield propagate.set_global_textmap
    propagate.set_global_textmap(before)


async def test_the_configured_propagator_is_what_is_read_and_written(use: Use) -> None:
    """As OTEL_PROPAGATORS has it: another one's header comes in and goes out, and W3C's does not."""
    use(_Plain())
    seen = Seen()
    sent = await sent_by(seen, [*TOLD, (b"x-plain", f"{TRACE[::-1]}-{SPAN}".encode())])
    (attempt,) = seen.attempts
    assert trace_of(seen.server) == TRACE[::-1]
    assert sent["x-plain"] == f"{TRACE[::-1]}-{attempt.context.span_id:016x}"
    assert "traceparent" not in sent


async def test_a_propagator_that_fails_starts_a_trace(use: Use) -> None:
    """What a client sent is no reason to fail its call."""

    class Failing(_Plain):
        asked = 0

        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
            Failing.asked += 1
            raise ValueError("PRIVATE")

    use(Failing())
    seen = Seen()
    answer = await ask(seen(Stranger()), ASKED)
    assert (answer.status, seen.server.parent, Failing.asked) == (200, None, 1)


class _Plain(TextMapPropagator):
    """One header of two ids, as some vendors have it."""

    def extract(self, carrier: Any, context: Any = None, getter: Getter[Any] | None = None) -> Any:
        """See TextMapPropagator."""
        assert getter is not None
        (told,) = getter.get(carrier, "x-plain") or [""]
        trace_id, _, span_id = told.partition("-")
        remote = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(1))
        return set_span_in_context(NonRecordingSpan(remote), context)

    def inject(self, carrier: Any, context: Any = None, setter: Setter[Any] | None = None) -> None:
        """See TextMapPropagator."""
        here = trace.get_current_span(context).get_span_context()
        carrier["x-plain"] = f"{here.trace_id:032x}-{here.span_id:016x}"

    @property
    def fields(self) -> set[str]:
        """See TextMapPropagator."""
        return {"x-plain"}


# -- the host's own spans ----------------------------------------------------------------------------------------------------


async def test_a_hosts_server_span_is_joined_and_never_ended() -> None:
    """Ours go below it, our attributes onto it, and it is left for the host to end."""
    seen = Seen()
    tracer = seen.provider.get_tracer("host")
    app = seen(RateLimitMiddleware(Stranger(), requests=1, window=1e7))

    async def host(scope: Any, receive: Any, send: Any) -> None:
        with tracer.start_as_current_span("host", kind=SpanKind.SERVER) as span:
            await app(scope, receive, send)
            assert span.is_recording(), "it was ended by us"
            span.set_attribute("after", True)

    answer = await ask(host, ASKED, headers=TOLD)
    seen.check(host="host")
    assert (seen.server.name, seen.server.parent, len(seen.spans)) == ("host", None, 2)
    assert answer.headers["x-trace-id"] == trace_of(seen.server) != TRACE
    assert about(seen.server) == {
        "llm_gateway.tenant": "default",
        "llm_gateway.request_id": answer.headers["x-request-id"],
        "after": True,
    }
    seen.clear()
    answer = await ask(host, ASKED)
    (server,) = seen.spans
    assert about(server)["error.type"] == "rate_limit_exceeded"
    assert server.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("stream", [False, True])
async def test_opentelemetrys_own_middleware_outside_is_joined(stream: bool) -> None:
    """It ends its span with the answer's last message: by then all is on it, tenant and tokens included."""
    seen = Seen()
    async with house(always(whole())) as home:
        app = seen(home.app) if not stream else seen(Streamer([*words(3), counts(4, 3), END]))
        layer = OpenTelemetryMiddleware(app, tracer_provider=seen.provider, exclude_spans=["send", "receive"])
        answer = await ask(layer, STREAMED if stream else ASKED)
        seen.check(host=seen.server.name)
    found = own(seen.server)
    assert found["request_id"] == answer.headers["x-request-id"]
    assert found["tenant"] == ("default" if stream else "t")
    assert "gen_ai.usage.output_tokens" in about(seen.logical)
    assert trace_of(seen.server) == answer.headers["x-trace-id"]


async def test_a_hosts_inner_span_is_a_parent() -> None:
    """Where what is current is no SERVER span, ours is made below it; a client's header does not count then."""
    seen = Seen()
    tracer = seen.provider.get_tracer("host")
    app = seen(Stranger())

    async def host(scope: Any, receive: Any, send: Any) -> None:
        with tracer.start_as_current_span("work"):
            await app(scope, receive, send)

    await ask(host, ASKED, headers=TOLD)
    (work,) = [one for one in seen.spans if one.name == "work"]
    assert seen.server.parent is not None
    assert work.context is not None
    assert (seen.server.parent.span_id, trace_of(seen.server)) == (work.context.span_id, trace_of(work))


async def test_a_host_that_did_not_sample_is_followed() -> None:
    """Its decision stands, and its trace's id is told."""
    seen = Seen(ParentBased(ALWAYS_ON))
    app = seen(Stranger())
    unsampled = SpanContext(int(TRACE, 16), int(SPAN, 16), False, TraceFlags(0))

    async def host(scope: Any, receive: Any, send: Any) -> None:
        with trace.use_span(NonRecordingSpan(unsampled)):
            await app(scope, receive, send)

    answer = await ask(host, ASKED)
    assert (answer.headers["x-trace-id"], seen.spans) == (TRACE, [])


async def test_what_runs_inside_runs_in_the_spans_context() -> None:
    """A handler's own spans belong to the call; afterwards the context is what it was."""
    seen = Seen()
    tracer = seen.provider.get_tracer("handler")

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        with tracer.start_as_current_span("handler's"):
            assert baggage.get_baggage("user") == "PRIVATE"
            await Stranger()(scope, receive, send)

    before = context.get_current()
    await seen(handler)(*_plainly())
    assert context.get_current() == before
    (inner,) = [one for one in seen.spans if one.name == "handler's"]
    assert inner.parent is not None
    assert seen.server.context is not None
    assert inner.parent.span_id == seen.server.context.span_id


def _plainly() -> tuple[Any, Any, Any]:
    """A call in this very task, without a task of its own."""
    from ..conversation import scope_of

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        return

    return scope_of(headers=TOLD), receive, send


# -- whether there is anything to trace with ---------------------------------------------------------------------------------


async def test_a_disabled_sdk_makes_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SDK_DISABLED=true: as without it."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    provider = TracerProvider(shutdown_on_exit=False)
    async with house(always(whole())) as home:
        layer = TracingMiddleware(home.app, traces=TraceLog(), tracer_provider=provider)
        answer = await ask(layer, ASKED, headers=TOLD)
        assert "traceparent" not in home.servers["a"].requests[0].headers
    assert answer.headers["x-trace-id"] == TRACE


async def test_the_global_provider_is_found_once_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is set after calls were answered."""
    monkeypatch.setattr(tracing, "_LOOK_AGAIN", 0.0)
    layer = TracingMiddleware(Stranger(), traces=TraceLog())
    await ask(layer, ASKED)
    seen = Seen()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", seen.provider)
    await ask(layer, ASKED)
    seen.check()
    assert len(seen.spans) == 2


async def test_a_missing_package_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An SDK without the helpers of its ASGI instrumentation: calls go on, and one line names what to install."""
    monkeypatch.setitem(sys.modules, "asgi_llm_gateway.middleware._tracing_server", None)
    seen = Seen()
    layer = seen(Stranger())
    for _ in range(3):
        assert (await ask(layer, ASKED)).status == 200
    assert seen.spans == []
    assert [record.getMessage() for record in caplog.records if "pip install" in record.getMessage()] == [
        "OpenTelemetry has a tracer provider; spans need: pip install 'asgi-llm-gateway[otel]'"
    ]


async def test_headers_are_captured_as_asked_for_and_secrets_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_*: what holds a credential is hidden whatever the pattern."""
    name = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_"
    monkeypatch.setenv(name + "SERVER_REQUEST", ".*")
    monkeypatch.setenv(name + "SERVER_RESPONSE", "content-type,x-.*")
    monkeypatch.setenv(name + "SANITIZE_FIELDS", "x-mine")
    seen = Seen()
    secret = b"sk-THE-SECRET"
    headers = [JSON, (b"authorization", b"Bearer " + secret), (b"x-api-key", secret), (b"cookie", secret),
               (b"x-mine", secret), (b"x-team", b"blue")]  # fmt: skip
    answer = await ask(seen(Stranger()), ASKED, headers=headers)
    found = about(seen.server)
    assert found["http.request.header.x_team"] == ("blue",)
    assert found["http.request.header.authorization"] == found["http.request.header.x_mine"] == ("[REDACTED]",)
    assert found["http.response.header.content_type"] == ("application/json",)
    assert found["http.response.header.x_request_id"] == (answer.headers["x-request-id"],)
    assert "THE-SECRET" not in repr([about(one) for one in seen.spans])


def test_an_unknown_policy_is_refused() -> None:
    """When the app is built."""
    with pytest.raises(ValueError, match="use 'continue', 'link' or 'ignore'"):
        TracingMiddleware(Stranger(), parent="believe")  # type: ignore[arg-type]
