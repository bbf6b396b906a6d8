"""Answers in a real Redis that may be killed, frozen, full or wrong: it only ever helps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from asgi_llm_gateway.caching.kept import Kept
from asgi_llm_gateway.caching.redis import RedisAnswers

from ..stores.redis_servers import RedisServer, redis_server
from ..upstream import until

KEY = b"k" * 32
NAME = "gw:cache:" + KEY.hex()
ONE = Kept(False, ((b"content-type", b"application/json"),), b'{"a":1}', told=True, made=1000.0, cost=5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of this test's own."""
    with redis_server(tmp_path / "redis") as running:
        yield running


def answers(server: RedisServer, *, patience: float = 2.0, ttl: float = 60.0) -> RedisAnswers:
    """The store of one process. Generous, for a busy machine."""
    return RedisAnswers(server.url, patience=patience, ttl=ttl)


async def test_what_one_process_keeps_another_has(server: RedisServer) -> None:
    """For as long as it may live, and not a second longer."""
    one, other = answers(server), answers(server)
    assert await one.get(KEY) is None
    one.put(KEY, ONE, now=1030.0)
    await until(lambda: server.ask("EXISTS", NAME) == ":1")
    assert await other.get(KEY) == ONE
    assert 29_000 < int(server.ask("PTTL", NAME)[1:]) <= 30_000
    one.put(b"z" * 32, ONE, now=1060.0)
    await one.close()
    await other.close()
    assert server.ask("DBSIZE") == ":1"


async def test_a_cluster_will_do(tmp_path: Path) -> None:
    """The same by ``redis+cluster://``."""
    with redis_server(tmp_path / "cluster", cluster=True) as server:
        one = answers(server, patience=5.0)
        one.put(KEY, ONE, now=1000.0)
        await until(lambda: server.ask("EXISTS", NAME) == ":1")
        assert await one.get(KEY) == ONE
        await one.close()


@pytest.mark.parametrize("command", [("SET", NAME, "rubbish"), ("LPUSH", NAME, "x"), ("SET", NAME, "")])
async def test_what_is_no_answer_is_a_miss(server: RedisServer, command: tuple[str, ...]) -> None:
    """Whoever wrote it."""
    one = answers(server)
    server.ask(*command)
    assert await one.get(KEY) is None
    await one.close()


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_a_redis_that_does_not_answer_is_a_miss_and_then_not_asked(server: RedisServer, fault: str) -> None:
    """The first call waits for its patience, the next ones for nothing; when it is back it is asked again."""
    one = answers(server, patience=0.3)
    one.put(KEY, ONE, now=1000.0)
    await until(lambda: server.ask("EXISTS", NAME) == ":1")
    assert await one.get(KEY) == ONE
    getattr(server, fault)()
    async with asyncio.timeout(5):
        assert await one.get(KEY) is None
    assert not one.up
    turned: list[int] = []
    asyncio.get_running_loop().call_soon(turned.append, 1)
    for _ in range(1000):
        assert await one.get(KEY) is None
        one.put(KEY, ONE, now=1000.0)
    assert not turned  # nobody waited: the loop never turned
    if fault == "kill":
        server.start()
        server.ask("PING")
    else:
        server.thaw()
    await until(lambda: one.up)
    one.put(KEY, ONE, now=1000.0)
    await until(lambda: server.ask("EXISTS", NAME) == ":1")
    assert await one.get(KEY) == ONE
    await one.close()


async def test_a_full_redis_is_read_all_the_same(tmp_path: Path) -> None:
    """It takes no more, and what it has it gives; a policy that drops keys is as welcome."""
    with redis_server(tmp_path / "small", maxmemory="2mb", maxmemory_policy="noeviction") as server:
        one = answers(server)
        one.put(KEY, ONE, now=1000.0)
        await until(lambda: server.ask("EXISTS", NAME) == ":1")
        for at in range(40):
            one.put(b"%032d" % at, ONE._replace(body=b"x" * 100_000), now=1000.0)
        assert await one.get(KEY) == ONE
        assert one.up
        await one.close()
    with redis_server(tmp_path / "lru", maxmemory="3mb", maxmemory_policy="allkeys-lru") as server:
        one = answers(server)
        for at in range(60):
            one.put(b"%032d" % at, ONE._replace(body=b"x" * 100_000), now=1000.0)
        assert await one.get(b"%032d" % 59) is not None
        assert await one.get(b"%032d" % 0) is None
        await one.close()


async def test_closing_while_it_is_away_ends(server: RedisServer) -> None:
    """Nothing waits for a server that is gone."""
    one = answers(server, patience=0.2)
    server.kill()
    assert await one.get(KEY) is None
    async with asyncio.timeout(5):
        await one.close()
