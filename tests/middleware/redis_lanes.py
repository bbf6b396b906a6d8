"""Processes that share their limits in Redis, and the servers: what their tests share."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from asgi_llm_gateway.middleware._rate_redis import Lane
from asgi_llm_gateway.rates.tally import Tally
from asgi_llm_gateway.rates.wants import Want, want
from asgi_llm_gateway.rates.windows import Windows

from ..stores.redis_servers import RedisServer, binaries, redis_server

LONG = 1e5
PATIENT = 20.0
"""Seconds to wait for a Redis that is there: the machine may be busy."""


@pytest.fixture(scope="module", params=sorted(binaries()))
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server for tests that do it no harm."""
    with redis_server(tmp_path_factory.mktemp("redis"), binary=request.param) as server:
        yield server


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[RedisServer]:
    """A server to be killed."""
    with redis_server(tmp_path / "redis") as server:
        yield server


numbers = itertools.count()


@pytest.fixture
def tenant() -> str:
    """A name that no other test has used."""
    return f"t{next(numbers)}"


@asynccontextmanager
async def lanes(
    server: RedisServer,
    count: int = 2,
    *,
    seconds: float = LONG,
    parts: int = 2,
    lease: float = 30.0,
    patience: float = PATIENT,
) -> AsyncIterator[list[Lane]]:
    """As many processes would have, each with counts of its own."""
    made = [
        Lane(server.url, Windows(seconds), parts=parts, patience=patience, lease=lease, tally=Tally())
        for _ in range(count)
    ]
    try:
        yield made
    finally:
        for lane in made:
            await lane.close()


def requests(tenant: str, limit: int, account: str = "") -> Want:
    """One request."""
    return want("requests", tenant, account, limit, 1)


def tokens(tenant: str, limit: int, amount: int) -> Want:
    """So many tokens."""
    return want("tokens", tenant, "", limit, amount)


def calls(tenant: str, limit: int) -> Want:
    """A place."""
    return want("calls", tenant, "", limit, 1)


async def yes(lane: Lane, tenant: str, *wants: Want) -> bool:
    """Whether a call is admitted."""
    verdict, ticket = await lane.admit(tenant, wants)
    assert verdict.admitted == (ticket is not None)
    return verdict.admitted
