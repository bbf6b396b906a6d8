"""OpenTelemetry's SDK for a gateway that stands alone: set up from the ``OTEL_*`` variables, flushed at the end.

A middleware in somebody's app never does that: there the app decides. Nothing is changed either where a provider is set
already, as ``opentelemetry-instrument`` or a host does.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from . import __version__
from ._closing import on_close
from .otel_plan import SERVICE_NAME, Plan, plan_of
from .settings import otel_variables

log = logging.getLogger("asgi_llm_gateway")

FLUSH_SECONDS = 5.0
"""How long the end waits for what is not exported yet; what a receiver that is away has not taken by then is lost."""

_EXPORTERS = {
    ("traces", "otlp-http"): ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "OTLPSpanExporter"),
    ("traces", "otlp-grpc"): ("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "OTLPSpanExporter"),
    ("traces", "console"): ("opentelemetry.sdk.trace.export", "ConsoleSpanExporter"),
    ("metrics", "otlp-http"): ("opentelemetry.exporter.otlp.proto.http.metric_exporter", "OTLPMetricExporter"),
    ("metrics", "otlp-grpc"): ("opentelemetry.exporter.otlp.proto.grpc.metric_exporter", "OTLPMetricExporter"),
    ("metrics", "console"): ("opentelemetry.sdk.metrics.export", "ConsoleMetricExporter"),
    ("logs", "otlp-http"): ("opentelemetry.exporter.otlp.proto.http._log_exporter", "OTLPLogExporter"),
    ("logs", "otlp-grpc"): ("opentelemetry.exporter.otlp.proto.grpc._log_exporter", "OTLPLogExporter"),
    ("logs", "console"): ("opentelemetry.sdk._logs.export", "ConsoleLogRecordExporter"),
}
_EXTRAS = {"otlp-http": "otel", "otlp-grpc": "otel-grpc", "console": "otel"}


class _Process:
    """The providers that this process set up; event loops that use them. A process can set them once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.shutdowns: list[Callable[[], Any]] | None = None
        self.over = False


_process = _Process()


async def start(*, metrics: bool, events: bool) -> None:
    """Set the SDK up, where the environment asks for it; it ends with what else this event loop's gateway opened.

    Call it in the process that serves: the threads that export do not outlive a fork. Never raises: a gateway without
    telemetry is better than none.

    Args:
        metrics: Whether the gateway records OpenTelemetry's metrics.
        events: Whether it emits events with content.
    """
    plan = plan_of(otel_variables(), metrics=metrics, events=events)
    for complaint in plan.complaints:
        log.warning("OpenTelemetry: %s", complaint)
    if plan.empty:
        return
    with _process.lock:
        if _process.over:
            log.warning("OpenTelemetry: this process has ended its export once, and cannot begin it anew")
            return
        if _process.shutdowns is None:
            _process.shutdowns = _set_up(plan)
        if not _process.shutdowns:
            return
        _process.users += 1
    on_close(_leave)


async def _leave() -> None:
    """One event loop's gateway is over: the last one flushes, off the event loop and for a bounded time."""
    with _process.lock:
        _process.users -= 1
        if _process.users:
            return
        shutdowns, _process.shutdowns = _process.shutdowns or [], None
        _process.over = True
    # Daemons, not the loop's own executor: the process would wait for that to the very end.
    threads = [threading.Thread(target=_quietly, args=(one,), daemon=True, name="otel-end") for one in shutdowns]
    for thread in threads:
        thread.start()
    until = time.monotonic() + FLUSH_SECONDS
    while any(thread.is_alive() for thread in threads):
        if time.monotonic() > until:
            log.warning("OpenTelemetry: the receiver took too long; what it has not got by now is lost")
            return
        await asyncio.sleep(0.01)


def _quietly(shutdown: Callable[[], Any]) -> None:
    try:
        shutdown()
    except Exception as error:  # an exporter's own: nothing is to keep the process from its end
        log.warning("OpenTelemetry: could not be shut down (%s)", type(error).__name__)


def _set_up(plan: Plan) -> list[Callable[[], Any]]:
    """Make and set the providers; how each is shut down."""
    try:
        from opentelemetry.sdk.resources import Resource
    except ModuleNotFoundError:
        log.error("OpenTelemetry: the variables OTEL_* ask for it; it needs: pip install 'asgi-llm-gateway[otel]'")
        return []
    resource = Resource.create()
    own = {"service.version": __version__, "service.instance.id": str(uuid.uuid4())}
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        own["service.name"] = SERVICE_NAME
    else:
        own = {name: value for name, value in own.items() if name not in resource.attributes}
    resource = resource.merge(Resource(own))
    found = []
    told = []
    for signal, make in (("traces", _traces), ("metrics", _metrics), ("logs", _logs)):
        exporters = [one for name in getattr(plan, signal) if (one := _exporter(signal, name)) is not None]
        if not exporters:
            continue
        try:
            shutdown = make(resource, exporters)
        except Exception as error:  # a variable that the SDK can't read
            log.error("OpenTelemetry: %s could not be set up: %s", signal, error)
            continue
        if shutdown is None:
            log.info("OpenTelemetry: %s go to the provider that is set already", signal)
            continue
        found.append(shutdown)
        told.append(f"{signal} by {', '.join(getattr(plan, signal))}")
    if told:
        log.info("OpenTelemetry: %s", "; ".join(told))
    return found


def _without_value(record: logging.LogRecord) -> bool:
    """A filter: OpenTelemetry logs headers that it can't read, and they may be somebody's key."""
    record.msg, record.args = "OTEL_EXPORTER_OTLP_HEADERS (or that of a signal) has a part that is no name=value", ()
    return True


def _exporter(signal: str, name: str) -> Any:
    logging.getLogger("opentelemetry.util.re").addFilter(_without_value)
    module, attribute = _EXPORTERS[signal, name]
    try:
        return getattr(importlib.import_module(module), attribute)()
    except ModuleNotFoundError:
        log.error(
            "OpenTelemetry: %s are to go by %s, which needs: pip install 'asgi-llm-gateway[%s]'",
            signal,
            name,
            _EXTRAS[name],
        )
    except Exception as error:  # a variable that the exporter can't read: of it only the kind, it may hold a secret
        log.error("OpenTelemetry: the exporter of %s could not be made (%s)", signal, type(error).__name__)
    return None


def _is_set(provider: Any) -> bool:
    """Whether somebody has set a provider; the API's own stands in for one until then."""
    return not type(provider).__name__.lstrip("_").startswith("Proxy")


def _traces(resource: Any, exporters: list[Any]) -> Callable[[], Any] | None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if _is_set(trace.get_tracer_provider()):
        return None
    # The end is ours: the SDK's own, at the interpreter's exit, waits without a bound.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _metrics(resource: Any, exporters: list[Any]) -> Callable[[], Any] | None:
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    if _is_set(metrics.get_meter_provider()):
        return None
    readers = [PeriodicExportingMetricReader(exporter) for exporter in exporters]
    provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider.shutdown


def _logs(resource: Any, exporters: list[Any]) -> Callable[[], Any] | None:
    from opentelemetry import _logs as logs
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    if _is_set(logs.get_logger_provider()):
        return None
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    logs.set_logger_provider(provider)
    return provider.shutdown


__all__ = ["FLUSH_SECONDS", "start"]
