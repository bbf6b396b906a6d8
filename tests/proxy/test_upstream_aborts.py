"""The upstream client: calls that are given up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ..upstream import (
    HOST,
    STREAM_HEAD,
    Authority,
    Peer,
    Script,
    always,
    chunk,
    silent,
    then_stall,
    until,
    upstream,
    whole,
    word,
)
from .clients import BODY, Left, client_of, drain, every_client, fetch, request_to


@every_client
@pytest.mark.parametrize(
    "script",
    [then_stall(), then_stall(whole()[:-5]), then_stall(STREAM_HEAD), then_stall(STREAM_HEAD, chunk(word("one")))],
    ids=["before the answer", "in a body", "before the first event", "in a stream"],
)
async def test_an_aborted_call_closes_its_connection_at_once(kind: str, script: Script) -> None:
    """Whoever waits gets the reason, and the server sees the connection go."""
    async with upstream(script) as server, client_of(kind) as client:
        flight = client.open(request_to(server.url()))

        async def run() -> None:
            await flight.start()
            await drain(flight)

        running = asyncio.create_task(run())
        await until(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.05)
        flight.abort(Left())
        with pytest.raises(Left):
            await running
        flight.abort(Left())
        flight.close()
        await until(lambda: server.open == 0)
        assert server.aborted == 1


@every_client
async def test_an_aborted_call_ends_its_attempt_to_connect(kind: str, tmp_path: Path) -> None:
    """In the middle of a handshake; httpx leaves such a socket to the garbage collector."""
    async with upstream(silent) as server, client_of(kind, tls=Authority(tmp_path).trusting()) as client:
        flight = client.open(request_to(f"https://{HOST}:{server.port}/v1"))
        running = asyncio.create_task(flight.start())
        await until(lambda: server.open == 1)
        flight.abort(Left())
        with pytest.raises(Left):
            await running
        flight.close()
        if kind == "own":
            await until(lambda: server.open == 0)


@every_client
@pytest.mark.parametrize("warm", [False, True])
async def test_a_call_aborted_before_its_start_sends_nothing(kind: str, warm: bool) -> None:
    """Also where a connection is at hand."""
    async with upstream(always(whole())) as server, client_of(kind) as client:
        if warm:
            await fetch(client, request_to(server.url()))
        flight = client.open(request_to(server.url()))
        flight.abort(Left())
        with pytest.raises(Left):
            await flight.start()
        flight.close()
        assert (await fetch(client, request_to(server.url())))[2] == BODY
        assert len(server.requests) == 1 + warm


@every_client
async def test_a_call_aborted_while_it_waits_for_the_pool_leaves_the_line(kind: str) -> None:
    """And the pool is whole afterwards."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.send(whole())

    async with upstream(script) as server, client_of(kind, connections=1) as client:
        running = asyncio.create_task(fetch(client, request_to(server.url())))
        await until(lambda: len(server.requests) == 1)
        flight = client.open(request_to(server.url()))
        waiting = asyncio.create_task(flight.start())
        await asyncio.sleep(0.05)
        flight.abort(Left())
        with pytest.raises(Left):
            await waiting
        flight.close()
        go.set()
        await running
        assert (await fetch(client, request_to(server.url())))[2] == BODY
        assert (server.connections, len(server.requests)) == (1, 2)


@every_client
async def test_a_cancelled_call_closes_its_connection(kind: str) -> None:
    """A task that is cancelled in ``start`` leaves nothing open."""
    async with upstream(then_stall()) as server, client_of(kind) as client:
        running = asyncio.create_task(fetch(client, request_to(server.url())))
        await until(lambda: len(server.requests) == 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: server.aborted == 1)


@every_client
async def test_a_stream_that_nobody_wants_any_more_is_cut(kind: str) -> None:
    """``close`` before the end, without an abort."""
    async with upstream(then_stall(STREAM_HEAD, chunk(word("one")))) as server, client_of(kind) as client:
        flight = client.open(request_to(server.url()))
        await flight.start()
        flight.close()
        await until(lambda: server.aborted == 1)
