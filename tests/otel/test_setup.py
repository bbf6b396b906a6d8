"""The SDK that a stand-alone gateway sets up: when it does so, what it does where a receiver is away, and how it ends."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..servers import ROOT, environment, fetch, free_port, running, uvicorn
from .receiver import Received, over_grpc, over_http
from .stand import CHATS, standing

pytestmark = pytest.mark.real  # servers and processes of its own, for long

ECHO = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
QUICK = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
LATER = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "OTEL_METRIC_EXPORT_INTERVAL": "600000", "METRICS_OTEL": "stable"}


def blocking(folder: Path, name: str) -> str:
    """A PYTHONPATH under which a package can't be imported, as if it were not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {name!r} or name.startswith({name!r} + '.'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    return f"{folder}:{ROOT}"


def test_calls_go_on_without_the_receiver_and_spans_come_again_without_a_restart(tmp_path: Path) -> None:
    """It is away at the start, comes, refuses for a while, and comes again."""
    port = free_port()
    received = Received()
    with standing(tmp_path, received, f"http://127.0.0.1:{port}", **QUICK) as stand:
        for at in range(5):
            assert stand.ask(f"away {at}").status == 200
        with over_http(received, port):
            assert len(stand.spans(stand.ask("there"))) == 3
            received.refusing = 503
            assert stand.ask("refused").status == 200
            received.refusing = 0
            assert len(stand.spans(stand.ask("there again"))) == 3
        assert stand.ask("away again").status == 200
        with over_http(received, port):
            assert len(stand.spans(stand.ask("and back"))) == 3
        assert "Traceback" not in stand.server.err


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_sigterm_flushes_what_was_not_exported_yet(tmp_path: Path, protocol: str) -> None:
    """Spans and metrics, though the next batch were due in ten minutes."""
    received = Received()
    opened = over_http(received) if protocol == "http/protobuf" else over_grpc(received)
    with opened as endpoint:
        with standing(tmp_path, received, endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, **LATER) as stand:
            reply = stand.ask("at the end")
            assert received.requests == 0
        assert len(received.tree(reply.headers["x-trace-id"])) == 3
        assert "gen_ai.client.operation.duration" in received.metrics


def test_the_command_line_and_its_workers_each_export(tmp_path: Path) -> None:
    """Every worker process has providers of its own: made after it was started, and flushed at its end."""
    received = Received()
    with over_http(received) as endpoint:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **LATER, "WEB_CONCURRENCY": "2", "PORT": str(free_port())}
        env = environment(tmp_path, OTEL_SERVICE_NAME="shop", **variables)
        command = [sys.executable, "-m", "asgi_llm_gateway", "serve"]
        with running(command, env, tmp_path) as server:
            traces = {fetch(server.url + CHATS, ECHO).headers["x-trace-id"] for _ in range(20)}
            assert received.spans == []
        assert {one.trace_id for one in received.spans} == traces
        assert {one.resource["service.name"] for one in received.spans} == {"shop"}
        ids = {one.resource["service.instance.id"] for one in received.spans}
        assert 1 <= len(ids) <= 2  # the system gives connections to whom it likes
        assert '"OpenTelemetry: traces by otlp-http; metrics by otlp-http"' in server.err


@contextmanager
def _silent() -> Iterator[int]:
    """A port that takes everything and answers nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def take() -> None:
        try:
            while True:
                taken.append(listener.accept()[0])
        except OSError:
            pass

    threading.Thread(target=take, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        for one in taken:
            one.close()


@pytest.mark.real
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_receiver_that_never_answers_does_not_hold_up_calls_nor_the_end(tmp_path: Path, protocol: str) -> None:
    """What it has not got is lost, and that is said."""
    with _silent() as port:
        endpoint = f"http://127.0.0.1:{port}"
        more = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_TIMEOUT": "600"}
        with standing(tmp_path, Received(), endpoint, **more) as stand:
            for at in range(5):
                assert stand.ask(f"unheard {at}").status == 200
        assert stand.server.process.returncode not in (-9, None)  # it ended by itself
        assert "what it has not got by now is lost" in stand.server.err


def test_a_queue_that_is_full_drops_spans_and_no_call(tmp_path: Path) -> None:
    """The batch processor's bound holds while nobody takes anything."""
    with _silent() as port:
        more = {"OTEL_BSP_MAX_QUEUE_SIZE": "4", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2", **QUICK}
        with standing(tmp_path, Received(), f"http://127.0.0.1:{port}", **more) as stand:
            assert {stand.ask(f"many {at}").status for at in range(20)} == {200}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_missing_exporter_is_told_with_the_command_that_brings_it(tmp_path: Path, protocol: str) -> None:
    """And the gateway serves without."""
    package, extra = ("http", "otel") if protocol == "http/protobuf" else ("grpc", "otel-grpc")
    path = blocking(tmp_path / "path", f"opentelemetry.exporter.otlp.proto.{package}")
    more = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "PYTHONPATH": path}
    with standing(tmp_path, Received(), "http://127.0.0.1:9", **more) as stand:
        assert stand.ask("without").status == 200
    assert f"pip install 'asgi-llm-gateway[{extra}]'" in stand.server.err
    assert "Traceback" not in stand.server.err


def test_a_missing_sdk_is_told_with_the_command_that_brings_it(tmp_path: Path) -> None:
    """The API alone may be there, as other packages bring it."""
    path = blocking(tmp_path / "path", "opentelemetry.sdk")
    with standing(tmp_path, Received(), "http://127.0.0.1:9", PYTHONPATH=path) as stand:
        assert stand.ask("without").status == 200
    assert "pip install 'asgi-llm-gateway[otel]'" in stand.server.err
    assert "Traceback" not in stand.server.err


@pytest.mark.parametrize("variables", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_what_is_turned_off_sends_nothing(tmp_path: Path, variables: dict[str, str]) -> None:
    """Answers have their trace ids all the same."""
    received = Received()
    with over_http(received) as endpoint:
        with standing(tmp_path, received, endpoint, **variables) as stand:
            assert len(stand.ask("off").headers["x-trace-id"]) == 32
        assert received.requests == 0


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000", "traces could not be set up"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "sampler"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ],
)
def test_a_wrong_variable_is_told_and_the_gateway_serves(tmp_path: Path, name: str, value: str, told: str) -> None:
    """Telemetry is never a reason for not answering."""
    with standing(tmp_path, Received(), "http://127.0.0.1:9", **{**QUICK, name: value}) as stand:
        assert stand.ask("all the same").status == 200
    assert told in stand.server.err


def test_headers_that_can_not_be_read_are_not_told_to_the_log(tmp_path: Path) -> None:
    """They may be somebody's key."""
    secret = "Bearer a-receivers-secret"
    more = {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization {secret}", **QUICK}
    with standing(tmp_path, Received(), "http://127.0.0.1:9", **more) as stand:
        assert stand.ask("all the same").status == 200
    assert "a-receivers-secret" not in stand.server.err + stand.server.out
    assert "OTEL_EXPORTER_OTLP_HEADERS" in stand.server.err


def test_a_provider_that_is_set_already_stays(tmp_path: Path) -> None:
    """As opentelemetry-instrument sets one, or a host: spans go there, and nothing is set up beside it."""
    received = Received()
    with over_http(received) as endpoint:
        env = environment(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
        with uvicorn("tests.otel.hosted:provided", env, tmp_path, "--factory") as server:
            trace = fetch(server.url + CHATS, ECHO).headers["x-trace-id"]
            spans = received.tree(trace)
        assert {one.resource["service.name"] for one in spans} == {"the-host"}
        assert {one.resource["service.name"] for one in received.spans} == {"the-host"}


def test_a_middleware_in_a_hosts_app_sets_nothing_up(tmp_path: Path) -> None:
    """Whatever the environment says: there the host decides."""
    received = Received()
    with over_http(received) as endpoint:
        env = environment(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="50")
        with uvicorn("tests.otel.hosted:wrapped", env, tmp_path, "--factory") as server:
            reply = fetch(server.url + CHATS, ECHO)
            assert (reply.status, len(reply.headers["x-trace-id"])) == (200, 32)
        assert received.requests == 0


def test_the_console_exporter_prints_spans(tmp_path: Path) -> None:
    """For a look at them without any receiver."""
    with standing(tmp_path, Received(), "", OTEL_TRACES_EXPORTER="console") as stand:
        trace = stand.ask("printed").headers["x-trace-id"]
    assert f"0x{trace}" in stand.server.out
    assert '"gen_ai.operation.name": "chat"' in stand.server.out
