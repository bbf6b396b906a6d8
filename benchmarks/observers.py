"""What the observers cost in process, with 16 calls at once: ``python -m benchmarks.observers``.

CPU microseconds a JSON call of the whole process (the threads of the log and of the exporter included), the least of several
repeats, less the terminal alone; and for streams the same an event. No sockets; log lines go to a file. First without
OpenTelemetry, which is not even loaded then; then with its SDK: a sampler that takes no call, one that takes all, whose spans
go to a batch processor with an exporter that drops them, and one that writes them as OTLP does and sends them nowhere.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asgi_llm_gateway import booked
from asgi_llm_gateway._closing import close_all
from asgi_llm_gateway._log_writer import LogWriter, to_descriptor
from asgi_llm_gateway.exchange import KEY as EXCHANGE
from asgi_llm_gateway.logs import Lines, renderer
from asgi_llm_gateway.meters.meters import Meters
from asgi_llm_gateway.middleware.logging import LoggingMiddleware
from asgi_llm_gateway.middleware.metrics import MetricsMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.records import CallRecord, Target, Usage

from .guards import AT_ONCE, Reading, once
from .layers import ANSWER, HEAD

USED = Usage(1000, 200)
TARGET = Target("openai", "gpt-5")
URL = "https://api.openai.com/v1/chat/completions"
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
EVENTS = 200


class Terminal:
    """Answers as ProxyApp does with a ledger behind it: one upstream call, usage and cost known, and the call booked.

    Args:
        events: Events of a stream; 0 for a JSON answer.
    """

    joins_exchange = True

    def __init__(self, events: int = 0) -> None:
        self._events = events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        await receive()
        await asyncio.sleep(0)
        exchange = scope.get(EXCHANGE)
        if exchange is not None:
            call = await exchange.begin_call(TARGET, exchange.request, URL)
            call.status, call.told = 200, ANSWER
            call.end(USED)
            exchange.exact = True
            exchange.usage = USED
            exchange.cost = 2_500_000
            booked.tell(CallRecord("hold", "default", model="echo", usage=USED, cost=2_500_000, status=200))
        await send({"type": "http.response.start", "status": 200, "headers": HEAD})
        for _ in range(self._events):
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await send({"type": "http.response.body", "body": ANSWER})


async def cost(app: Any, calls: int = 1600, repeats: int = 15, after: Callable[[], object] = int) -> float:
    """Microseconds of CPU a call, the least of the repeats; ``after`` ends each of them."""

    async def caller() -> None:
        for _ in range(calls // AT_ONCE):
            await once(app)

    await once(app)
    best = 1e9
    for _ in range(repeats):
        begun = time.process_time()
        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        after()
        best = min(best, (time.process_time() - begun) / calls * 1e6)
    await close_all()
    return best


def provider_of(share: float, *, encoded: bool) -> Any:
    """OpenTelemetry's SDK, which samples so much."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            if encoded:
                encode_spans(spans).SerializeToString()
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(share), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Nowhere(), max_queue_size=100_000))
    return provider


class Bench:
    """Where the observers write to, and what has been measured.

    Args:
        folder: For files.
    """

    def __init__(self, folder: Path) -> None:
        self._out = open(folder / "log", "wb")  # noqa: SIM115 - as long as the process
        self.writer = LogWriter(renderer("json", self._out), to_descriptor(self._out.fileno()), most=1_000_000)
        self.lines = Lines(self.writer, time.time)
        self.here, self.together = Meters(), Meters(folder=folder / "metrics")

    def all_three(self, app: Any, **tracing: Any) -> Any:
        """The observers as ``create_app`` has them."""
        inner = MetricsMiddleware(TracingMiddleware(app, **tracing), meters=self.here)
        return LoggingMiddleware(inner, logger=self.lines)

    def measure(self, app: Any, meters: Meters | None, after: Callable[[], object] = int) -> float:
        """Microseconds a call."""
        if meters is not None:
            booked.listen(meters.booked)

        def flushed() -> None:
            self.writer.flush()
            after()

        try:
            return asyncio.run(cost(app, after=flushed))
        finally:
            if meters is not None:
                booked.ignore(meters.booked)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(Path(folder) / "metrics"))
        none, stream = Reading(Terminal()), Reading(Terminal(EVENTS))
        floor = asyncio.run(cost(none))
        events = asyncio.run(cost(stream, calls=320)) - floor
        print(f"{'16 calls at once, in process':44} {'adds, CPU us':>12}")

        def row(name: str, app: Any, meters: Meters | None = None, after: Callable[[], object] = int) -> None:
            print(f"{name:44} {bench.measure(app, meters, after) - floor:12.1f}", flush=True)

        row("Tracing", TracingMiddleware(none))
        row("Metrics", MetricsMiddleware(none, meters=bench.here), bench.here)
        row("Metrics, several processes", MetricsMiddleware(none, meters=bench.together), bench.together)
        row("Logging", LoggingMiddleware(none, logger=bench.lines))
        row("all three", bench.all_three(none), bench.here)
        assert "opentelemetry" not in sys.modules
        off, on, told = provider_of(0, encoded=False), provider_of(1, encoded=False), provider_of(1, encoded=True)
        row("Tracing, no call is sampled", TracingMiddleware(none, tracer_provider=off))
        row("Tracing, all are sampled", TracingMiddleware(none, tracer_provider=on), after=on.force_flush)
        row("all three, all are sampled", bench.all_three(none, tracer_provider=on), bench.here, on.force_flush)
        row("all three, and written as OTLP", bench.all_three(none, tracer_provider=told), bench.here, told.force_flush)
        print(f"\n{f'streams of {EVENTS} events, an event':44} {'adds, CPU us':>12}")
        sampled = {"tracer_provider": on}
        for name, more, after in (("all three", {}, int), ("all three, all are sampled", sampled, on.force_flush)):
            whole = bench.measure(bench.all_three(none, **more), bench.here, after)
            adds = asyncio.run(cost(bench.all_three(stream, **more), calls=320, after=after)) - whole - events
            print(f"{name:44} {adds / EVENTS:12.3f}", flush=True)
        print(f"log lines dropped: {bench.writer.dropped}")


if __name__ == "__main__":
    main()
