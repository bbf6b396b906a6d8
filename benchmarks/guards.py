"""What a gatekeeper costs in process, with 16 calls at once: ``python -m benchmarks.guards``.

CPU microseconds a call of this thread, the least of several repeats, less the terminal alone. No sockets; the terminal
waits one turn of the loop, so that the calls interleave. A row with Redis needs a server: it starts one of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from asgi_llm_gateway import RateLimitMiddleware
from asgi_llm_gateway._closing import close_all
from asgi_llm_gateway.exchange import KEY as EXCHANGE
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank

from .layers import ANSWER, HEAD, REQUEST, SCOPE

AT_ONCE = 16
MANY = 10**12


async def terminal(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, wait a turn, answer."""
    await receive()
    await asyncio.sleep(0)
    exchange = scope.get(EXCHANGE)
    if exchange is not None:
        exchange.exact = True  # as ProxyApp does
    await send({"type": "http.response.start", "status": 200, "headers": HEAD})
    await send({"type": "http.response.body", "body": ANSWER})


class Reading(LLMMiddleware):
    """Reads and checks the body, as the first layer that needs it does for all of them."""

    rank = Rank.TENANT

    async def handle(self, exchange: Any, scope: Any, receive: Any, send: Any) -> None:
        receive = await exchange.read(receive, scope)
        await self.forward(exchange, scope, receive, send)


def rows(redis_url: str | None) -> dict[str, Callable[[], Any]]:
    """What is measured: a stack for each name, made anew for each run."""
    limited = {"requests": MANY, "window": 60.0}
    every = {**limited, "tokens": MANY, "concurrency": MANY}
    found: dict[str, Callable[[], Any]] = {
        "the body, read once for all": lambda: Reading(terminal),
        "RateLimit: requests": lambda: RateLimitMiddleware(terminal, **limited),
        "RateLimit: all three, and the body": lambda: Reading(RateLimitMiddleware(terminal, **every)),
    }
    if redis_url is not None:
        shared = {"redis_url": redis_url, "redis_patience": 5.0}
        found |= {
            "RateLimit: requests, in Redis": lambda: RateLimitMiddleware(terminal, **limited, **shared),
            "RateLimit: all three, in Redis, and the body": lambda: Reading(
                RateLimitMiddleware(terminal, **every, **shared)
            ),
        }
    return found


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


async def cost(app: Any, calls: int = 1600, repeats: int = 15) -> float:
    """Microseconds of CPU a call, the least of the repeats."""

    async def caller() -> None:
        for _ in range(calls // AT_ONCE):
            await once(app)

    await once(app)
    best = 1e9
    for _ in range(repeats):
        begun = time.thread_time()
        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        best = min(best, (time.thread_time() - begun) / calls * 1e6)
    await close_all()
    return best


@contextlib.contextmanager
def redis() -> Iterator[str | None]:
    """The URL of a server for the length of the run; ``None`` where the machine has none."""
    try:
        from tests.stores.redis_servers import redis_server
    except ImportError:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder) / "redis") as server:
        yield server.url


def main() -> None:
    """Print the table."""
    with redis() as url:
        floor = asyncio.run(cost(terminal))
        print(f"{'16 calls at once, in process':44} {'adds, CPU us':>12}")
        for name, make in rows(url).items():
            print(f"{name:44} {asyncio.run(cost(make())) - floor:12.1f}")


if __name__ == "__main__":
    main()
