"""The upstream client: connections that were kept, and have died meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from asgi_llm_gateway.proxy import upstream as package

from ..upstream import Peer, Script, always, until, upstream, whole
from .clients import BODY, client_of, every_client, failure_of, fetch, request_to


def dies_at_second(*last_words: bytes, wait: float = 0.0) -> Script:
    """Answers one request, and closes on the second."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(whole())
        await peer.request()
        await asyncio.sleep(wait)
        await peer.send(*last_words)

    return script


async def test_a_stale_connection_is_replaced_once() -> None:
    """The server gave the kept connection up: the request is asked again on a fresh one."""
    async with upstream(dies_at_second(), always(whole())) as server, client_of("own") as client:
        for _ in range(2):
            assert (await fetch(client, request_to(server.url())))[2] == BODY
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_a_stale_connection_is_replaced_once_only() -> None:
    """A fresh connection that dies too is the server's failure."""

    async def dies(peer: Peer) -> None:
        await peer.request()

    async with upstream(dies_at_second(), dies) as server, client_of("own") as client:
        await fetch(client, request_to(server.url()))
        error = await failure_of(client, request_to(server.url()))
        assert (error.kind, error.received) == ("cut", False)
        assert (server.connections, len(server.requests)) == (2, 3)


@every_client
async def test_a_fresh_connection_that_dies_is_not_replaced(kind: str) -> None:
    """The server read the request and closed: it may have done the work."""

    async def dies(peer: Peer) -> None:
        await peer.request()

    async with upstream(dies) as server, client_of(kind) as client:
        error = await failure_of(client, request_to(server.url()))
        assert (error.kind, error.received) == ("cut", False)
        assert len(server.requests) == 1


async def test_a_kept_connection_that_said_something_is_not_replaced() -> None:
    """One byte of an answer: the server did take the request."""
    async with upstream(dies_at_second(b"H"), always(whole())) as server, client_of("own") as client:
        await fetch(client, request_to(server.url()))
        error = await failure_of(client, request_to(server.url()))
        assert (error.kind, error.received, server.connections) == ("cut", True, 1)


async def test_a_kept_connection_that_dies_late_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the server may have done the work."""
    monkeypatch.setattr(package, "_STALE_SECONDS", 0.02)
    async with upstream(dies_at_second(wait=0.1), always(whole())) as server, client_of("own") as client:
        await fetch(client, request_to(server.url()))
        assert (await failure_of(client, request_to(server.url()))).kind == "cut"
        assert server.connections == 1


@every_client
async def test_a_connection_closed_while_idle_is_not_used(kind: str) -> None:
    """The server closed the kept connection in peace: the next call does not even try it."""

    async def closes(peer: Peer) -> None:
        await peer.request()
        await peer.send(whole())

    async with upstream(closes) as server, client_of(kind) as client:
        for _ in range(3):
            await fetch(client, request_to(server.url()))
            await until(lambda: server.open == 0)
            await asyncio.sleep(0.02)
        assert (server.connections, len(server.requests)) == (3, 3)


async def test_a_connection_that_idled_too_long_is_closed_and_not_used() -> None:
    """Idle expiry, on our side."""
    async with upstream(always(whole())) as server, client_of("own", keep_alive=-1.0) as client:
        await fetch(client, request_to(server.url()))
        await fetch(client, request_to(server.url()))
        assert server.connections == 2
        await until(lambda: server.open == 1)


async def test_bytes_on_an_idle_connection_end_it() -> None:
    """What belongs to no answer is never taken for the next one's."""

    async def babbles(peer: Peer) -> None:
        await peer.request()
        await peer.send(whole())
        await asyncio.sleep(0.05)
        await peer.send(whole(b'{"stolen": true}'))
        await peer.stall()

    async with upstream(babbles, always(whole())) as server, client_of("own") as client:
        await fetch(client, request_to(server.url()))
        await until(lambda: server.open == 0)
        await asyncio.sleep(0.02)
        assert (await fetch(client, request_to(server.url())))[2] == BODY
        assert server.connections == 2


async def test_a_server_that_answers_before_it_read_all_keeps_no_connection() -> None:
    """The rest of the request is still on its way: the next one must not queue behind it."""
    read_on = asyncio.Event()

    async def hasty(peer: Peer) -> None:
        await peer.begun()
        await peer.send(whole(status=413))
        await read_on.wait()

    big = b"x" * 2**25
    async with upstream(hasty, always(whole())) as server, client_of("own") as client:
        assert (await fetch(client, request_to(server.url(), big)))[0] == 413
        assert (await fetch(client, request_to(server.url())))[0] == 200
        assert server.connections == 2
        read_on.set()
