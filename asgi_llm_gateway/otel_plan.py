"""What the environment asks OpenTelemetry's SDK to do, read from its own variables.

Source: OpenTelemetry specification, "Environment Variable Specification" and "OTLP Exporter", as of autumn 2026. Other than
there, no variable at all means no exporter: nobody expects telemetry to leave that was not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SERVICE_NAME = "asgi-llm-gateway"

_GRPC, _HTTP = "otlp-grpc", "otlp-http"
_PROTOCOLS = {"grpc": _GRPC, "http/protobuf": _HTTP}
_NAMES = {"console": "console", "otlp_proto_http": _HTTP, "otlp_proto_grpc": _GRPC, "logging": "console"}


class Plan(NamedTuple):
    """Exporters by signal (``otlp-http``, ``otlp-grpc``, ``console``), and what is to be told to the operator."""

    traces: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing is exported."""
        return not (self.traces or self.metrics or self.logs)


def plan_of(variables: Mapping[str, str], *, metrics: bool, events: bool) -> Plan:
    """What to set up.

    Args:
        variables: The environment's ``OTEL_*``.
        metrics: Whether the gateway records OpenTelemetry's metrics; without that none are exported.
        events: Whether it emits events; without that no logs are exported.
    """
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Plan()
    complaints: list[str] = []
    if variables.get("OTEL_CONFIG_FILE"):
        complaints.append("OTEL_CONFIG_FILE is not read by the gateway; run it under opentelemetry-instrument for that")
    traces = _exporters("TRACES", variables, complaints)
    measured = _exporters("METRICS", variables, complaints) if metrics else ()
    logs = _exporters("LOGS", variables, complaints) if events else ()
    return Plan(traces, measured, logs, tuple(complaints))


def _exporters(signal: str, variables: Mapping[str, str], complaints: list[str]) -> tuple[str, ...]:
    variable = f"OTEL_{signal}_EXPORTER"
    asked = variables.get(variable, "").strip()
    if not asked:
        endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
        asked = "otlp" if any(variables.get(one, "").strip() for one in endpoints) else "none"
    found: list[str] = []
    for name in (one.strip().lower() for one in asked.split(",")):
        exporter = _otlp(signal, variables, complaints) if name == "otlp" else _NAMES.get(name)
        if exporter is not None:
            found.append(exporter)
        elif name == "prometheus":
            complaints.append(f"{variable} names prometheus: the gateway has GET /metrics for that, nothing is set up")
        elif name not in ("", "none", "otlp"):
            complaints.append(f"{variable} names an exporter that is none of otlp, console, none: it is left out")
    return tuple(dict.fromkeys(found))


def _otlp(signal: str, variables: Mapping[str, str], complaints: list[str]) -> str | None:
    own, general = f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
    name = own if variables.get(own, "").strip() else general
    protocol = variables.get(name, "").strip().lower() or "http/protobuf"
    if protocol not in _PROTOCOLS:
        complaints.append(f"{name} is neither http/protobuf nor grpc: {signal.lower()} are not exported")
        return None
    return _PROTOCOLS[protocol]


__all__ = ["SERVICE_NAME", "Plan", "plan_of"]
