"""Spans of a real gateway process as real OTLP receivers get them, field by field, over HTTP and over gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from .provider import SAID
from .receiver import CLIENT, ERROR, SERVER, UNSET, Received, Span, over_grpc, over_http
from .stand import CHATS, POOR, PROVIDER_KEY, Stand, standing

pytestmark = pytest.mark.real  # servers and processes of its own, for long

USED = {
    "gen_ai.usage.input_tokens": 11,
    "gen_ai.usage.output_tokens": 7,
    "gen_ai.usage.cache_read.input_tokens": 4,
    "gen_ai.usage.reasoning.output_tokens": 3,
}
TOLD = {
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "gen_ai.response.id": "chatcmpl-7",
    "gen_ai.response.finish_reasons": ["stop"],
}
COST = (11 * 2.5 + 7 * 10) / 1e6


@pytest.fixture(scope="module", params=["http/protobuf", "grpc"])
def stand(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A gateway that sends its spans, metrics and events in that protocol."""
    received = Received()
    opened = over_http(received) if request.param == "http/protobuf" else over_grpc(received)
    folder = tmp_path_factory.mktemp("gateway")
    with (
        opened as endpoint,
        standing(
            folder, received, endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL=request.param,
            OTEL_EXPORTER_OTLP_HEADERS="x-tenant=observers",
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=tests",
            METRICS_OTEL="both",
            OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="SPAN_AND_EVENT",
            TRACE_CONTENT_TENANTS="poor",
        ) as found,
    ):  # fmt: skip
        yield found
        assert "Traceback" not in found.server.err


def standard(span: Span) -> dict[str, Any]:
    """The convention's attributes."""
    return {name: value for name, value in span.attributes.items() if not name.startswith("llm_gateway.")}


def own(span: Span) -> dict[str, Any]:
    """Ours, without the ids of the one call."""
    found = {name.removeprefix("llm_gateway."): value for name, value in span.attributes.items()
             if name.startswith("llm_gateway.")}  # fmt: skip
    return {name: value for name, value in found.items() if name not in ("request_id", "key_id")}


def server_of(stand: Stand, status: int, **more: Any) -> dict[str, Any]:
    """What the SERVER span of a chat says by the convention."""
    return {
        "http.request.method": "POST",
        "http.route": CHATS,
        "url.path": CHATS,
        "url.scheme": "http",
        "server.address": "127.0.0.1",
        "server.port": stand.server.port,
        "client.address": "127.0.0.1",
        "network.protocol.version": "1.1",
        "http.response.status_code": status,
        **more,
    }


def logical_of(stand: Stand, **more: Any) -> dict[str, Any]:
    """What the GenAI span of a chat says by the convention."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.max_tokens": 50,
        "server.address": "127.0.0.1",
        "server.port": urlsplit(stand.provider.url).port,
        **more,
    }


def attempt_of(stand: Stand, status: int | None, **more: Any) -> dict[str, Any]:
    """What the HTTP span of an attempt says by the convention."""
    return {
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "server.port": urlsplit(stand.provider.url).port,
        "url.full": f"{stand.provider.url}/v1/chat/completions",
        **({} if status is None else {"http.response.status_code": status}),
        **more,
    }


def parts(spans: list[Span]) -> tuple[Span, Span, list[Span]]:
    """SERVER span, GenAI span and attempts; each stands under the one before it, and within its time."""
    (server,) = [one for one in spans if one.kind == SERVER]
    (logical,) = [one for one in spans if "gen_ai.operation.name" in one.attributes]
    attempts = [one for one in spans if one not in (server, logical)]
    assert (server.parent_id, logical.parent_id) == ("", server.span_id)
    assert {one.parent_id for one in attempts} <= {logical.span_id}
    assert {one.kind for one in (logical, *attempts)} == {CLIENT}
    assert server.begin <= logical.begin <= logical.end <= server.end
    assert {one.scope for one in spans} == {"asgi_llm_gateway"}
    for one in attempts:
        assert logical.begin <= one.begin <= one.end <= logical.end
    return server, logical, attempts


def test_a_json_call(stand: Stand) -> None:
    """Three spans, with everything that is known of the call."""
    server, logical, (attempt,) = parts(stand.spans(stand.ask("json", temperature=0.5, seed=7)))
    assert (server.name, logical.name, attempt.name) == (f"POST {CHATS}", "chat gpt-4o", "POST")
    assert (server.status, logical.status, attempt.status) == (UNSET, UNSET, UNSET)
    assert standard(server) == server_of(stand, 200)
    asked = {"gen_ai.request.temperature": 0.5, "gen_ai.request.seed": 7}
    assert standard(logical) == logical_of(stand, **asked, **TOLD, **USED)
    assert own(logical)["cost_usd"] == pytest.approx(COST)
    assert own(logical)["tenant"] == own(server)["tenant"] == "team"
    assert standard(attempt) == attempt_of(stand, 200)
    reply = stand.ask("json again")
    _, logical, _ = parts(stand.spans(reply))
    assert logical.attributes["llm_gateway.request_id"] == reply.headers["x-request-id"]


def test_a_stream(stand: Stand) -> None:
    """The same, with the usage of its last event, and when its first byte came."""
    server, logical, (attempt,) = parts(stand.spans(stand.ask("stream", stream=True)))
    first = logical.attributes.pop("gen_ai.response.time_to_first_chunk")
    assert 0 < first <= (logical.end - logical.begin) / 1e9
    assert standard(server) == server_of(stand, 200)
    assert standard(logical) == logical_of(stand, **{"gen_ai.request.stream": True}, **TOLD, **USED)
    assert standard(attempt) == attempt_of(stand, 200)


def test_a_stream_that_its_client_left(stand: Stand) -> None:
    """No error of ours; its choice never finished."""
    spans = stand.received.tree(stand.hang_up("left"))
    server, logical, (attempt,) = parts(spans)
    assert (server.status, logical.status, attempt.status) == (UNSET, UNSET, UNSET)
    assert logical.attributes["gen_ai.response.finish_reasons"] == ["error"]
    assert own(logical)["aborted"] is own(server)["aborted"] is True
    assert "error.type" not in {**logical.attributes, **server.attributes, **attempt.attributes}
    assert logical.attributes["gen_ai.response.model"] == "gpt-4o-2024-08-06"


@pytest.mark.parametrize(
    ("key", "more", "status", "error"),
    [("wrong", {}, 401, "invalid_api_key"), (POOR, {}, 402, None), (None, {"model": "nope"}, 404, "model_not_found")],
)
def test_a_refused_call(stand: Stand, key: str | None, more: dict[str, Any], status: int, error: str | None) -> None:
    """One span: nothing was asked of a provider. The fault is the client's, and none of the server's."""
    reply = stand.ask("refused", **more) if key is None else stand.ask("refused", key=key, **more)
    (server,) = stand.spans(reply)
    code = reply.json()["error"]["code"]
    assert error in (None, code)
    assert reply.status in (status, 429)
    assert (server.kind, server.status) == (SERVER, UNSET)
    assert standard(server) == server_of(stand, reply.status, **{"error.type": code})


def test_a_retried_call(stand: Stand) -> None:
    """One attempt that failed and one that did not, and the call as a whole went well."""
    server, logical, (first, second) = parts(stand.spans(stand.ask("retried", model="flaky")))
    assert [one.status for one in (server, logical, first, second)] == [UNSET, UNSET, ERROR, UNSET]
    assert standard(first) == attempt_of(stand, 503, **{"error.type": "upstream_unavailable"})
    assert standard(second) == attempt_of(stand, 200, **{"http.request.resend_count": 1})
    assert standard(logical) == logical_of(stand, **TOLD, **USED) | {"gen_ai.request.model": "flaky"}
    assert own(logical)["attempts"] == 2


def test_a_cached_call(stand: Stand) -> None:
    """No attempt, no tokens, and what it saved."""
    stand.ask("cached", temperature=0)
    server, logical, attempts = parts(stand.spans(stand.ask("cached", temperature=0)))
    assert attempts == []
    assert standard(server) == server_of(stand, 200)
    for name, value in standard(logical).items():
        assert not name.startswith("gen_ai.usage."), (name, value)
    assert own(logical)["cache"] == "hit"
    assert own(logical)["saved_usd"] == pytest.approx(COST)


def test_each_attempt_tells_the_provider_of_itself(stand: Stand) -> None:
    """Its own span is the parent of what the provider does; the caller's own header is not passed on."""
    theirs = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-01"
    headers = {"traceparent": theirs, "baggage": "user=ann"}
    reply = stand.ask("joined", model="flaky", headers=headers)
    assert reply.headers["x-trace-id"] == "a" * 32

    def whole(spans: list[Span]) -> list[Span]:
        found = [one for one in spans if one.trace_id == "a" * 32]
        return found if len(found) == 4 else []

    spans = stand.received.wait(whole)
    attempts = sorted((one for one in spans if one.name == "POST"), key=lambda one: one.begin)
    told = [headers for headers in stand.provider.asked if "a" * 32 in headers.get("traceparent", "")]
    assert [one["traceparent"] for one in told] == [f"00-{'a' * 32}-{one.span_id}-01" for one in attempts]
    assert not any("baggage" in one for one in told)
    (server,) = [one for one in spans if one.kind == SERVER]
    assert server.parent_id == "b" * 16


def test_the_resource_is_that_of_this_process(stand: Stand) -> None:
    """Its name where none is given, its version, an id of its own, and what the environment adds."""
    stand.spans(stand.ask("resource"))
    (resource,) = {json.dumps(one.resource, sort_keys=True) for one in stand.received.spans}
    about = json.loads(resource)
    assert about["service.name"] == "asgi-llm-gateway"
    assert about["deployment.environment.name"] == "tests"
    assert {"service.version", "service.instance.id", "telemetry.sdk.version"} <= set(about)
    assert {headers.get("x-tenant") for headers in stand.received.headers} == {"observers"}


def test_metrics_come_with_them(stand: Stand) -> None:
    """Those of METRICS_OTEL, by the same protocol."""
    stand.ask("metrics")
    names = {"gen_ai.client.token.usage", "gen_ai.client.operation.duration", "gen_ai.client.inference.duration"}
    stand.received.wait(lambda spans: names <= set(stand.received.metrics), f"{names}")
    points = stand.received.metrics["gen_ai.client.token.usage"]
    assert {"input", "output"} <= {one["gen_ai.token.type"] for one in points}


def test_no_secret_and_no_content_is_in_any_of_it(stand: Stand) -> None:
    """Of a tenant that is not listed nothing that was said is told; of nobody a key."""
    canary = "canary-7f3a"
    stand.spans(stand.ask(canary, tools=[], headers={"cookie": f"session={canary}"}))
    stand.spans(stand.ask(canary, key="gw-a-wrong-key-" + canary))
    told = repr((stand.received.spans, stand.received.events, stand.received.metrics))
    for secret in (canary, SAID, PROVIDER_KEY, "gw-team-key", POOR):
        assert secret not in told
        assert secret not in stand.server.err
    assert stand.received.events == []
