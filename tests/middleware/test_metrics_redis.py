"""A rate limit's Redis that is lost is seen on the metrics page, and seen to be back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.meters.exposition import render
from asgi_llm_gateway.meters.meters import Meters
from asgi_llm_gateway.meters.shared import rate_events
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router

from ..conversation import CHAT, ask
from ..metrics_parts import samples
from ..stores.redis_servers import redis_server


def shown() -> dict[str, float]:
    """The page's samples of the rate limits: whether Redis is down, and the events."""
    meters = Meters()
    meters.sources.append(rate_events)
    page, _ = render(meters, "")
    found = samples(page.decode())
    events = {labels[0][1]: value for labels, value in found["llm_rate_limit_events_total"].items()}
    return {**events, "down": found["llm_rate_limit_redis_down"][()]}


async def test_a_lost_redis_is_told(tmp_path: Path) -> None:
    """The gauge is 1 while limits are each worker's own, and the events count how often that began and what it meant."""
    before = shown()
    assert before["down"] == 0
    with redis_server(tmp_path) as server:
        app = RateLimitMiddleware(
            ProxyApp(router=Router([EchoAdapter()])), requests=100, window=60, redis_url=server.url
        )
        assert (await ask(app, CHAT)).status == 200
        assert shown()["down"] == 0
        server.kill()
        for _ in range(3):
            assert (await ask(app, CHAT)).status == 200
        now = shown()
        assert now["down"] == 1
        assert (now["shared_lost"] - before["shared_lost"], now["local"] - before["local"]) == (1, 3)
        server.start()
        async with asyncio.timeout(15):
            while shown()["down"]:  # noqa: ASYNC110 - the layer tries by itself
                await asyncio.sleep(0.05)
