"""What the observers cost in process, with 16 calls at once: ``python -m benchmarks.observers``.

CPU microseconds a JSON call of the whole process (the log's thread included), the least of several repeats, less the
terminal alone; OpenTelemetry is not involved. No sockets; log lines go to a file.
"""

from __future__ import annotations

import asyncio
import os
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
from asgi_llm_gateway.records import CallRecord, Usage

from .guards import AT_ONCE, Reading, once
from .layers import ANSWER, HEAD

USED = Usage(1000, 200)


async def terminal(scope: Any, receive: Any, send: Any) -> None:
    """Answer as ProxyApp does with a ledger behind it: usage and cost known, and the call booked."""
    await receive()
    await asyncio.sleep(0)
    exchange = scope.get(EXCHANGE)
    if exchange is not None:
        exchange.exact = True
        exchange.usage = USED
        exchange.cost = 2_500_000
        booked.tell(CallRecord("hold", "default", model="echo", usage=USED, cost=2_500_000, status=200))
    await send({"type": "http.response.start", "status": 200, "headers": HEAD})
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


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "wb") as out:
        render = renderer("json", out)
        writer = LogWriter(render, to_descriptor(out.fileno()), most=1_000_000)
        lines = Lines(writer, time.time)
        here, together = Meters(), Meters(folder=Path(folder) / "metrics")
        none = Reading(terminal)
        rows: dict[str, tuple[Any, Meters | None]] = {
            "Tracing": (TracingMiddleware(none), None),
            "Metrics": (MetricsMiddleware(none, meters=here), here),
            "Metrics, several processes": (MetricsMiddleware(none, meters=together), together),
            "Logging": (LoggingMiddleware(none, logger=lines), None),
            "all three": (
                LoggingMiddleware(MetricsMiddleware(TracingMiddleware(none), meters=here), logger=lines),
                here,
            ),
        }
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(Path(folder) / "metrics"))
        floor = asyncio.run(cost(none))
        print(f"{'16 calls at once, in process':36} {'adds, CPU us':>12}")
        for name, (app, meters) in rows.items():
            if meters is not None:
                booked.listen(meters.booked)
            adds = asyncio.run(cost(app, after=writer.flush)) - floor
            if meters is not None:
                booked.ignore(meters.booked)
            print(f"{name:36} {adds:12.1f}")
        print(f"log lines dropped: {writer.dropped}")


if __name__ == "__main__":
    main()
