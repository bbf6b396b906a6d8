"""What the variables of OpenTelemetry ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.otel_plan import Plan, plan_of

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
HTTP, GRPC, CONSOLE = ("otlp-http",), ("otlp-grpc",), ("console",)


def test_nothing_is_exported_that_was_not_asked_for() -> None:
    """Also where the metrics and events are there to be exported."""
    assert plan_of({"OTEL_SERVICE_NAME": "shop"}, metrics=True, events=True) == Plan()


@pytest.mark.parametrize(
    ("variables", "plan"),
    [
        (ENDPOINT, Plan(HTTP, HTTP, HTTP)),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, Plan(GRPC, GRPC, GRPC)),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "grpc"}, Plan(HTTP, HTTP, GRPC)),
        ({**ENDPOINT, "OTEL_METRICS_EXPORTER": "none"}, Plan(HTTP, (), HTTP)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1/traces"}, Plan(HTTP)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, Plan(HTTP)),
        ({"OTEL_TRACES_EXPORTER": "console"}, Plan(CONSOLE)),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, Plan(HTTP + CONSOLE)),
        ({"OTEL_TRACES_EXPORTER": "otlp_proto_grpc"}, Plan(GRPC)),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, Plan((), HTTP, HTTP)),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, Plan()),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "no"}, Plan(HTTP, HTTP, HTTP)),
    ],
)
def test_what_is_asked_for(variables: dict[str, str], plan: Plan) -> None:
    """An exporter by name, or an endpoint, for all signals or one; HTTP where no protocol is named."""
    assert plan_of(variables, metrics=True, events=True) == plan


def test_only_what_the_gateway_records_is_exported() -> None:
    """No empty metrics and no empty logs."""
    assert plan_of(ENDPOINT, metrics=False, events=False) == Plan(HTTP)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER names an exporter"),
        ("OTEL_METRICS_EXPORTER", "prometheus", "GET /metrics"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "neither http/protobuf nor grpc"),
        ("OTEL_CONFIG_FILE", "/etc/otel.yaml", "opentelemetry-instrument"),
    ],
)
def test_what_the_gateway_has_not_is_told(name: str, value: str, told: str) -> None:
    """By the variable's name; the value stays where it is."""
    plan = plan_of({**ENDPOINT, name: value}, metrics=True, events=False)
    assert told in plan.complaints[0]
    assert value == "prometheus" or value not in "".join(plan.complaints)


WORDS = st.sampled_from(
    ["otlp", "console", "none", "prometheus", "true", "grpc", "http/protobuf", "http/json", "", " ,x"]
)
NAMES = st.sampled_from(
    ["OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER",
     "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL",
     "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"]
)  # fmt: skip


@given(variables=st.dictionaries(NAMES, WORDS | st.text(max_size=20)), metrics=st.booleans(), events=st.booleans())
def test_any_variables_make_a_plan(variables: dict[str, str], metrics: bool, events: bool) -> None:
    """Nothing raises, only known exporters come of it, none twice, and none for what is not recorded or is disabled."""
    plan = plan_of(variables, metrics=metrics, events=events)
    for exporters in plan[:3]:
        assert set(exporters) <= {"otlp-http", "otlp-grpc", "console"}
        assert len(set(exporters)) == len(exporters)
    assert metrics or not plan.metrics
    assert events or not plan.logs
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        assert plan.empty
