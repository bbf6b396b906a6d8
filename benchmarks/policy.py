"""What a policy costs: a decision that is remembered, and one that is asked for. ``python -m benchmarks.policy``.

CPU microseconds a call of this thread. The policy that is asked is a bare TCP server in a process of its own, so that only the
client's side is counted; httpx asks it too, for comparison.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from typing import Any

from asgi_llm_gateway.middleware._policy_http import OpaClient, place_of
from asgi_llm_gateway.middleware.policy import PolicyMiddleware
from asgi_llm_gateway.middleware.security import SecurityHeadersMiddleware

from .layers import cost, terminal

BODY = b'{"decision_id":"4ca636c1-55e4-417a-b1d8-4aceb67960d1","result":{"allow":true}}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
QUESTION = b'{"input":{"tenant":{"id":"default"},"model":"gpt-4","parameters":{"temperature":0.5}}}'


def serve(port: Any) -> None:
    """One answer to each request that arrives in one piece."""

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            if b"input" in data:
                self.transport.write(ANSWER)

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


async def each(ask: Callable[[], Awaitable[object]], calls: int = 300, repeats: int = 7) -> float:
    """Microseconds of CPU a question, the least of the repeats."""
    await ask()
    best = 1e9
    for _ in range(repeats):
        begun = time.thread_time()
        for _ in range(calls):
            await ask()
        best = min(best, (time.thread_time() - begun) / calls * 1e6)
    return best


async def asking(port: int) -> None:
    """Our client, and httpx."""
    import httpx

    client = OpaClient(place_of(f"http://127.0.0.1:{port}"), "/v1/data/llm/gateway", token=None, timeout=5)
    print(f"{'asked, our client':24} {await each(lambda: client.ask(QUESTION)):8.1f}")
    await client.close()
    async with httpx.AsyncClient() as other:
        url = f"http://127.0.0.1:{port}/v1/data/llm/gateway"
        print(f"{'asked, httpx':24} {await each(lambda: other.post(url, content=QUESTION)):8.1f}")


def main() -> None:
    """Print the table."""

    def allow(question: dict[str, Any]) -> bool:
        return True

    floor = asyncio.run(cost(terminal))
    print(f"{'CPU us a call':24} {'adds':>8}")
    for name, app in {
        "remembered decision": PolicyMiddleware(terminal, decide=allow, cache_seconds=1e9, time_step=1e6),
        "security headers": SecurityHeadersMiddleware(terminal),
    }.items():
        print(f"{name:24} {asyncio.run(cost(app)) - floor:8.1f}")
    ports: Any = multiprocessing.get_context("spawn").Queue()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(ports,), daemon=True)
    server.start()
    asyncio.run(asking(ports.get()))
    server.terminate()


if __name__ == "__main__":
    main()
