"""Content of a real gateway process as real OTLP receivers get it: on spans, and in events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..servers import environment, fetch, uvicorn
from .provider import SAID
from .receiver import Event, Received, Span, over_grpc, over_http
from .stand import CHATS, Stand, standing

INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
CAPTURED = {
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_AND_EVENT",
    "TRACE_CONTENT_TENANTS": "team",
}


@pytest.fixture(scope="module", params=["http/protobuf", "grpc"])
def stand(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A gateway that tells what the tenant ``team`` says, in that protocol."""
    received = Received()
    opened = over_http(received) if request.param == "http/protobuf" else over_grpc(received)
    folder = tmp_path_factory.mktemp("gateway")
    with (
        opened as endpoint,
        standing(folder, received, endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=request.param, **CAPTURED) as found,
    ):
        yield found
        assert "Traceback" not in found.server.err


def call_of(spans: list[Span]) -> Span:
    """The span of the call as a whole."""
    (found,) = [one for one in spans if "gen_ai.operation.name" in one.attributes]
    return found


def event_of(stand: Stand, span: Span) -> Event:
    """The event of that span."""

    def look(_: list[Span]) -> list[Event]:
        return [one for one in stand.received.events if one.span_id == span.span_id]

    found: Event = stand.received.wait(look, "the event")[0]
    assert found.name == "gen_ai.client.inference.operation.details"
    assert found.trace_id == span.trace_id
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_said_comes_with_span_and_event(stand: Stand, stream: bool) -> None:
    """The same content in both: a JSON text on the span, a structure in the event, beside all of the span's attributes."""
    span = call_of(stand.spans(stand.ask(f"What is this? {stream}", stream=stream)))
    asked = [{"role": "user", "parts": [{"type": "text", "content": f"What is this? {stream}"}]}]
    (choice,) = json.loads(span.attributes[OUTPUT])
    assert json.loads(span.attributes[INPUT]) == asked
    assert choice["parts"][0]["content"].strip() == SAID
    assert (choice["role"], choice["finish_reason"]) == ("assistant", "stop")
    event = event_of(stand, span)
    assert event.attributes[INPUT] == asked
    assert event.attributes[OUTPUT] == [choice]
    rest = {name: value for name, value in span.attributes.items() if name not in (INPUT, OUTPUT)}
    assert rest == {name: value for name, value in event.attributes.items() if name not in (INPUT, OUTPUT)}
    assert event.resource["service.name"] == "asgi-llm-gateway"


def test_a_stream_that_was_left_tells_what_came_until_then(stand: Stand) -> None:
    """With an error for its end."""
    span = call_of(stand.received.tree(stand.hang_up("left")))
    (choice,) = json.loads(span.attributes[OUTPUT])
    assert choice == {
        "role": "assistant",
        "parts": [{"type": "text", "content": "It "}],
        "finish_reason": "error",
    }


def test_a_hook_of_the_operators_own_app_redacts(tmp_path: Path) -> None:
    """``create_app(content=ContentCapture(redact=...))`` takes the rest from the environment."""
    received = Received()
    with over_http(received) as endpoint:
        env = environment(
            tmp_path,
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_BSP_SCHEDULE_DELAY="50",
            SECRET_WORD="xyzzy",
            **CAPTURED,
        )
        with uvicorn("tests.otel.hosted:redacted", env, tmp_path, "--factory") as server:
            for text in ("my number is 4711", "xyzzy 4711"):
                body = {"model": "echo", "messages": [{"role": "user", "content": text}]}
                span = call_of(received.tree(fetch(server.url + CHATS, body).headers["x-trace-id"]))
                assert "####" in span.attributes[INPUT]
                assert "4711" not in repr(received.spans)
                assert (OUTPUT in span.attributes) == ("xyzzy" not in text)
