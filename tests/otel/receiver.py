"""Real OTLP receivers: over HTTP (protobuf) and over gRPC, with OpenTelemetry's own messages, and what they got.

Source: OpenTelemetry Protocol (OTLP) specification 1.x, "OTLP/HTTP" and "OTLP/gRPC".
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

SERVER, CLIENT = 2, 3  # kinds of spans in OTLP
UNSET, ERROR = 0, 2  # statuses
WAIT_SECONDS = 30.0


@dataclass
class Span:
    """One span as it came over the wire."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    status: int
    begin: int
    end: int
    resource: dict[str, Any]
    scope: str


@dataclass
class Event:
    """One log record as it came over the wire."""

    name: str
    trace_id: str
    span_id: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass
class Received:
    """All that a receiver got, and what it is to answer.

    Attributes:
        refusing: An HTTP status to answer with in place of taking anything.
    """

    spans: list[Span] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    requests: int = 0
    refusing: int = 0
    url: str = ""
    _lock: Any = field(default_factory=threading.Lock)

    def take_traces(self, message: ExportTraceServiceRequest) -> None:
        """Spans."""
        with self._lock:
            self.requests += 1
            for group in message.resource_spans:
                resource = _attributes(group.resource.attributes)
                for scope in group.scope_spans:
                    self.spans += [_span(one, resource, scope.scope.name) for one in scope.spans]

    def take_logs(self, message: ExportLogsServiceRequest) -> None:
        """Log records."""
        with self._lock:
            self.requests += 1
            for group in message.resource_logs:
                resource = _attributes(group.resource.attributes)
                for scope in group.scope_logs:
                    for one in scope.log_records:
                        about = _attributes(one.attributes)
                        self.events.append(
                            Event(one.event_name, one.trace_id.hex(), one.span_id.hex(), about, resource)
                        )

    def take_metrics(self, message: ExportMetricsServiceRequest) -> None:
        """Metrics: of each the attributes of its points."""
        with self._lock:
            self.requests += 1
            for group in message.resource_metrics:
                for scope in group.scope_metrics:
                    for metric in scope.metrics:
                        points = getattr(metric, str(metric.WhichOneof("data"))).data_points
                        self.metrics[metric.name] = [_attributes(point.attributes) for point in points]

    def wait(self, until: Callable[[list[Span]], Any], what: str = "the spans") -> Any:
        """Wait until ``until`` finds among the spans what it looks for, and give it back."""
        end = time.monotonic() + WAIT_SECONDS
        while True:
            with self._lock:
                spans = list(self.spans)
            if found := until(spans):
                return found
            assert time.monotonic() < end, f"{what} did not come; got {sorted(one.name for one in spans)}"
            time.sleep(0.02)

    def tree(self, trace_id: str) -> list[Span]:
        """The whole trace with that id, once its SERVER span is there: parents before children, in order of time."""

        def whole(spans: list[Span]) -> list[Span]:
            mine = sorted((one for one in spans if one.trace_id == trace_id), key=lambda one: one.begin)
            ids = {one.span_id for one in mine}
            roots = [one for one in mine if one.kind == SERVER]
            return mine if roots and all(one.parent_id in ids for one in mine if one not in roots) else []

        found: list[Span] = self.wait(whole, f"the trace {trace_id}")
        return found


def _span(one: Any, resource: dict[str, Any], scope: str) -> Span:
    return Span(
        one.name,
        one.kind,
        one.trace_id.hex(),
        one.span_id.hex(),
        one.parent_span_id.hex(),
        _attributes(one.attributes),
        one.status.code,
        one.start_time_unix_nano,
        one.end_time_unix_nano,
        resource,
        scope,
    )


def _attributes(told: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in told}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    held = getattr(value, kind)
    if kind == "array_value":
        return [_value(one) for one in held.values]
    return _attributes(held.values) if kind == "kvlist_value" else held


# -- OTLP/HTTP ---------------------------------------------------------------------------------------------------------

_PATHS: dict[str, tuple[Any, Any, str]] = {
    "/v1/traces": (ExportTraceServiceRequest, ExportTraceServiceResponse, "take_traces"),
    "/v1/logs": (ExportLogsServiceRequest, ExportLogsServiceResponse, "take_logs"),
    "/v1/metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse, "take_metrics"),
}


@contextmanager
def over_http(received: Received, port: int = 0) -> Iterator[str]:
    """An OTLP/HTTP receiver; gives the base URL. The connections that it has open are closed at its end."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 1.0  # an idle connection is closed: whoever ends the receiver needn't wait for it

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if received.refusing:
                self._answer(received.refusing, b"")
                return
            request, response, take = _PATHS[self.path]
            assert self.headers["content-type"] == "application/x-protobuf"
            received.headers.append({name.lower(): value for name, value in self.headers.items()})
            getattr(received, take)(request.FromString(body))
            self._answer(200, response().SerializeToString())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    received.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield received.url
    finally:
        server.shutdown()
        server.server_close()


# -- OTLP/gRPC ---------------------------------------------------------------------------------------------------------


@contextmanager
def over_grpc(received: Received) -> Iterator[str]:
    """An OTLP/gRPC receiver; gives the URL."""
    grpc: Any = import_module("grpc")
    server = grpc.server(ThreadPoolExecutor(4))
    for signal, name in (("trace", "Trace"), ("logs", "Logs"), ("metrics", "Metrics")):
        _, response, take = _PATHS["/v1/traces" if signal == "trace" else f"/v1/{signal}"]
        module: Any = import_module(f"opentelemetry.proto.collector.{signal}.v1.{signal}_service_pb2_grpc")
        service = type(
            name, (getattr(module, f"{name}ServiceServicer"),), {"Export": _export(received, take, response)}
        )
        getattr(module, f"add_{name}ServiceServicer_to_server")(service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    received.url = f"http://127.0.0.1:{port}"
    try:
        yield received.url
    finally:
        server.stop(0).wait()


def _export(received: Received, take: str, response: Any) -> Callable[[Any, Any, Any], Any]:
    def export(self: Any, request: Any, context: Any) -> Any:
        received.headers.append(dict(context.invocation_metadata()))
        getattr(received, take)(request)
        return response()

    return export
