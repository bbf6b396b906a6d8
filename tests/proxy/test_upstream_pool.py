"""The upstream client: its pool of connections."""

from __future__ import annotations

import asyncio

import pytest

from asgi_llm_gateway.proxy.http1 import Connection
from asgi_llm_gateway.proxy.transfer import TransferError
from asgi_llm_gateway.proxy.upstream import UpstreamClient

from ..upstream import HOST, STREAM_HEAD, Peer, always, refused_port, then_stall, until, upstream, whole
from .clients import BODY, GENEROUS, client_of, drain, every_client, failure_of, fetch, request_to


@every_client
async def test_a_call_waits_while_the_pool_is_full(kind: str) -> None:
    """One connection, two calls: the second goes when the first has ended, over the same connection."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.send(whole())

    async with upstream(script) as server, client_of(kind, connections=1) as client:
        calls = [asyncio.create_task(fetch(client, request_to(server.url()))) for _ in range(5)]
        await until(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.05)
        assert len(server.requests) == 1
        go.set()
        assert [body for _, _, body in await asyncio.gather(*calls)] == [BODY] * 5
        assert server.connections == 1


@every_client
async def test_a_call_that_waits_too_long_is_refused(kind: str) -> None:
    """The pool stays full for longer than a connection may take."""
    async with (
        upstream(then_stall()) as server,
        client_of(kind, connections=1, timeouts=GENEROUS._replace(connect=0.2)) as client,
    ):
        first = client.open(request_to(server.url()))
        running = asyncio.create_task(first.start())
        await until(lambda: len(server.requests) == 1)
        error = await failure_of(client, request_to(server.url()))
        assert (error.kind, error.received, len(server.requests)) == ("pool", False, 1)
        first.abort(TransferError("cut", "enough"))
        await asyncio.wait({running})
        assert isinstance(running.exception(), TransferError)
        first.close()


async def test_a_failed_connection_makes_room_for_the_next() -> None:
    """The one that waits in line is not left there when the connection before it was refused."""
    taken, port = refused_port()
    with taken:
        async with client_of("own", connections=1) as client:
            calls = [failure_of(client, request_to(f"http://{HOST}:{port}/v1")) for _ in range(4)]
            async with asyncio.timeout(5):
                assert [error.kind for error in await asyncio.gather(*calls)] == ["connect"] * 4


@pytest.mark.parametrize("rude", [False, True], ids=["closed", "reset"])
async def test_a_connection_that_is_closed_as_soon_as_it_is_open_is_cut(rude: bool) -> None:
    """As a port forwarder does whose target is down; it keeps no place in the pool."""

    async def slams(peer: Peer) -> None:
        if rude:
            peer.reset()

    async with upstream(slams, slams, slams, always(whole())) as server, client_of("own", connections=1) as client:
        async with asyncio.timeout(10):
            for _ in range(3):
                assert (await failure_of(client, request_to(server.url()))).kind == "cut"
            assert (await fetch(client, request_to(server.url())))[2] == BODY
        assert server.connections == 4


async def test_a_connection_lost_before_its_first_request_refuses_it() -> None:
    """It would wait for an answer until the time-out."""

    async def slams(peer: Peer) -> None:
        """Closes at once."""

    async with upstream(slams) as server:
        freed: list[Connection] = []
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(loop, freed.append), HOST, server.port)
        await until(lambda: bool(freed))
        with pytest.raises(TransferError) as caught:
            connection.begin(b"", GENEROUS)
        assert (caught.value.kind, caught.value.received, connection.busy) == ("cut", False, False)


async def test_a_server_that_speaks_first_is_not_believed() -> None:
    """An answer that nobody asked for yet."""

    async def greets(peer: Peer) -> None:
        await peer.send(whole(b'{"early": true}'))
        await peer.stall()

    async with upstream(greets) as server, client_of("own") as client:
        flight = client.open(request_to(server.url()))
        assert isinstance(client, UpstreamClient)
        found: object
        try:
            await flight.start()
            found = await drain(flight)
        except TransferError as error:
            found = error.kind
        assert found in ("protocol", b'{"early": true}')  # so late that it may be an answer
        flight.close()


async def test_a_waiter_that_leaves_hands_its_turn_on() -> None:
    """Its turn came in the moment it gave up: the next in line gets it."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.send(whole())

    async with upstream(script) as server, client_of("own", connections=1) as client:
        first = client.open(request_to(server.url()))
        running = asyncio.create_task(first.start())
        await until(lambda: len(server.requests) == 1)
        leaver, stayer = client.open(request_to(server.url())), client.open(request_to(server.url()))
        leaving, staying = asyncio.create_task(leaver.start()), asyncio.create_task(stayer.start())
        await asyncio.sleep(0.05)
        go.set()
        await running
        first.close()  # wakes the one in front ...
        leaver.abort(TransferError("cut", "left"))  # ... which is gone before it can look
        async with asyncio.timeout(5):
            await staying
        assert stayer.status == 200
        stayer.close()
        with pytest.raises(TransferError, match="left"):
            await leaving


async def test_close_cuts_everything() -> None:
    """Idle connections, running calls, and those that wait in line or come later."""
    async with upstream(always(whole()), then_stall(STREAM_HEAD)) as server:
        client = UpstreamClient(timeouts=GENEROUS, max_connections=2)
        await fetch(client, request_to(server.url()))
        running = [client.open(request_to(server.url())) for _ in range(2)]
        for flight in running:
            await flight.start()
        assert server.connections == 2
        running[0].close()  # answered in full: idle again
        held = client.open(request_to(server.url()))
        holding = asyncio.create_task(held.start())
        waiting = asyncio.create_task(failure_of(client, request_to(server.url())))
        await until(lambda: len(server.requests) == 4)
        await holding
        await client.close()
        with pytest.raises(TransferError):
            await drain(running[1])
        running[1].close()
        held.close()
        assert (await waiting).kind == "cut"
        await until(lambda: server.open == 0)
        assert (await failure_of(client, request_to(server.url()))).kind == "cut"
