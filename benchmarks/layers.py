"""What each middleware costs in process: no sockets, a terminal that answers at once. ``python -m benchmarks.layers``.

CPU microseconds a call of this thread, the least of several repeats; the difference to the terminal alone is the layer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from asgi_llm_gateway import BudgetMiddleware, RateLimitMiddleware, TenantMiddleware, TracingMiddleware
from asgi_llm_gateway.exchange import KEY as EXCHANGE

from .paced import completion
from .run import body
from .targets import KEY, store

REQUEST = json.dumps(body(False)).encode()
ANSWER = completion()
HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"authorization", b"Bearer " + KEY.encode()),
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(REQUEST)),
]
SCOPE = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "root_path": "", "headers": HEADERS}
HEAD = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]


async def terminal(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, answer."""
    await receive()
    exchange = scope.get(EXCHANGE)
    if exchange is not None:
        exchange.exact = True  # as ProxyApp does
    await send({"type": "http.response.start", "status": 200, "headers": HEAD})
    if exchange is not None:
        await exchange.end()
    await send({"type": "http.response.body", "body": ANSWER})


def stacks() -> dict[str, Callable[[], Any]]:
    """The stacks, made anew for each run."""
    many = 10**9
    kept = store()

    def four(app: Any) -> Any:
        limited = RateLimitMiddleware(BudgetMiddleware(app, ledger=kept), requests=many, window=60)
        return TracingMiddleware(TenantMiddleware(limited, store=kept))

    return {
        "terminal alone": lambda: terminal,
        "Tracing": lambda: TracingMiddleware(terminal),
        "Tenant": lambda: TenantMiddleware(terminal, store=kept, remember=1e9),
        "RateLimit": lambda: RateLimitMiddleware(terminal, requests=many, window=60),
        "Budget": lambda: BudgetMiddleware(terminal, ledger=kept),
        "all four": lambda: four(terminal),
    }


async def once(app: Any) -> None:
    """One call."""
    sent = False

    async def receive() -> Any:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": REQUEST, "more_body": False}

    async def send(message: Any) -> None:
        pass

    await app(dict(SCOPE), receive, send)


async def cost(app: Any, calls: int = 2000, repeats: int = 15) -> float:
    """Microseconds of CPU a call, the least of the repeats."""
    await once(app)
    best = 1e9
    for _ in range(repeats):
        begun = time.thread_time()
        for _ in range(calls):
            await once(app)
        best = min(best, (time.thread_time() - begun) / calls * 1e6)
    return best


def main() -> None:
    """Print the table."""
    floor = 0.0
    print(f"{'in process':16} {'CPU us':>8} {'adds':>8}")
    for name, make in stacks().items():
        found = asyncio.run(cost(make()))
        floor = floor or found
        print(f"{name:16} {found:8.1f} {found - floor:8.1f}")


if __name__ == "__main__":
    main()
