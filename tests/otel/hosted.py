"""Apps that a test's uvicorn runs: one with a tracer provider of its own, and one in which only a middleware is used."""

from __future__ import annotations

import os
from typing import Any

from asgi_llm_gateway import ProxyApp, TracingMiddleware, create_app


def provided() -> Any:
    """The whole gateway, in a process whose provider was set before, as ``opentelemetry-instrument`` does."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = TracerProvider(resource=Resource({"service.name": "the-host"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return create_app()


def wrapped() -> Any:
    """A host's app with our middleware: how it is observed is the host's affair."""
    return TracingMiddleware(ProxyApp())


def redacted() -> Any:
    """The whole gateway with a hook that takes the numbers out."""
    from asgi_llm_gateway import ContentCapture

    def redact(name: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        if os.environ["SECRET_WORD"] in repr(messages) and name.endswith("output.messages"):
            return None
        return [{**one, "parts": [_masked(part) for part in one["parts"]]} for one in messages if "parts" in one]

    return create_app(content=ContentCapture(redact=redact))


def _masked(part: dict[str, Any]) -> dict[str, Any]:
    text = part.get("content")
    return (
        {**part, "content": "".join("#" if one.isdigit() else one for one in text)} if isinstance(text, str) else part
    )
