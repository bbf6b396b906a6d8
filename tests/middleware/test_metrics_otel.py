"""OpenTelemetry's metrics of generative AI, read back from its own SDK."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from asgi_llm_gateway.exchange import exchange_of
from asgi_llm_gateway.middleware._metrics_otel import Names
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.metrics import MetricsMiddleware
from asgi_llm_gateway.records import Target
from asgi_llm_gateway.stores.memory import MemoryLedger

from ..conversation import CHAT, ask
from ..metrics_parts import counting
from . import DONE, Stranger, Streamer, counts, words

PAID = {**CHAT, "model": "gpt-4"}


async def measured(names: Names, app: Any, body: Any = PAID) -> dict[str, Any]:
    """One call's points by metric."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    with counting() as meters:
        inner = BudgetMiddleware(app, ledger=MemoryLedger())
        await ask(MetricsMiddleware(inner, meters=meters, otel=names, meter_provider=provider), body)
    data = reader.get_metrics_data()
    found: dict[str, Any] = {}
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            assert scope.scope.name == "asgi_llm_gateway"
            found |= {metric.name: metric for metric in scope.metrics}
    provider.shutdown()
    return found


def points(metric: Any) -> list[tuple[dict[str, Any], float]]:
    """Attributes and sum of each point."""
    return [
        (dict(point.attributes), point.sum if hasattr(point, "sum") else point.value)
        for point in metric.data.data_points
    ]


async def test_the_names_that_dashboards_know() -> None:
    """Tokens by type in one histogram, and the time of the operation."""
    found = await measured("stable", Stranger((10, 20)))
    about = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "_OTHER",
        "gen_ai.request.model": "gpt-4",
    }
    usage = found["gen_ai.client.token.usage"]
    assert usage.unit == "{token}"
    assert sorted(points(usage), key=lambda one: one[1]) == [
        ({**about, "gen_ai.token.type": "input"}, 10),
        ({**about, "gen_ai.token.type": "output"}, 20),
    ]
    assert list(usage.data.data_points[0].explicit_bounds) == [4**at for at in range(14)]
    assert [about] == [labels for labels, _ in points(found["gen_ai.client.operation.duration"])]
    assert [about] == [labels for labels, _ in points(found["gen_ai.server.request.duration"])]
    assert not any("inference" in name for name in found)


async def test_the_newer_names() -> None:
    """Counters for each kind of token."""
    found = await measured("new", Stranger((10, 20)))
    ((labels, total),) = points(found["gen_ai.client.inference.usage.input_tokens"])
    assert (labels["gen_ai.token.modality"], total) == ("text", 10)
    assert [total for _, total in points(found["gen_ai.client.inference.operation.output_tokens"])] == [20]
    assert "gen_ai.client.inference.duration" in found
    assert "gen_ai.client.token.usage" not in found


async def test_both_sets_of_names_and_a_streams_times() -> None:
    """To the first token, and from token to token."""
    stream = Streamer([*words(3), counts(4, 3), DONE])
    found = await measured("both", stream, {**PAID, "stream": True})
    for name in (
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "gen_ai.client.token.usage",
    ):
        assert found[name].data.data_points, name
    assert "gen_ai.client.inference.usage.output_tokens" in found


async def test_the_provider_by_the_conventions_name_and_a_failure_by_its_type() -> None:
    """A provider that answers with an error is a call all the same; it has no tokens."""

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        exchange = exchange_of(scope)
        assert exchange is not None
        (await exchange.begin_call(Target("mistral", "gpt-4"), exchange.request)).end(None)
        await Stranger(None, status=503)(scope, receive, send)

    found = await measured("stable", failing)
    ((labels, _),) = points(found["gen_ai.client.operation.duration"])
    assert (labels["gen_ai.provider.name"], labels["error.type"]) == ("mistral_ai", "503")
    assert labels["gen_ai.request.model"] == "other"  # what only failed gets no series of its own
    assert "gen_ai.client.token.usage" not in found


@pytest.mark.parametrize("body", [{"model": "gpt-4"}, {**PAID, "n": -1}])
async def test_a_call_that_reached_no_model_is_none(body: Any) -> None:
    """Refusals are HTTP's affair."""
    assert not await measured("both", Stranger(), body)


async def test_off_is_off() -> None:
    """The default."""
    assert not await measured("off", Stranger())
