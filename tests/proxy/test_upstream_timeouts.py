"""The upstream client: how long it waits for what."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from asgi_llm_gateway.proxy.clients import HTTPXClient

from ..upstream import HOST, STREAM_HEAD, Authority, Peer, chunk, once, silent, then_stall, until, upstream, whole, word
from .clients import BODY, GENEROUS, client_of, every_client, failure_of, fetch, request_to


@every_client
async def test_a_handshake_that_never_comes_times_out(kind: str, tmp_path: Path) -> None:
    """The connection's time holds for TLS too; nothing was sent."""
    async with upstream(silent) as server:
        async with client_of(
            kind, timeouts=GENEROUS._replace(connect=0.2), tls=Authority(tmp_path).trusting()
        ) as client:
            error = await failure_of(client, request_to(f"https://{HOST}:{server.port}/v1"))
        assert (error.kind, error.received) == ("connect", False)
        if kind == "own":
            await until(lambda: server.open == 0)


@every_client
async def test_a_server_that_does_not_read_times_out(kind: str) -> None:
    """A request that can't be written."""
    released = asyncio.Event()

    async def deaf(peer: Peer) -> None:
        await released.wait()

    async with upstream(deaf) as server, client_of(kind, timeouts=GENEROUS._replace(write=0.2)) as client:
        error = await failure_of(client, request_to(server.url(), b"x" * 2**25))
        assert (error.kind, error.received) == ("timeout", False)
        released.set()


@every_client
async def test_an_answer_that_never_begins_times_out(kind: str) -> None:
    """First byte."""
    waits = GENEROUS._replace(connect=0.2, first_byte=0.2)
    async with upstream(then_stall()) as server, client_of(kind, timeouts=waits) as client:
        error = await failure_of(client, request_to(server.url()))
        assert (error.kind, error.received) == ("timeout", False)
        await until(lambda: server.aborted == 1)


@every_client
@pytest.mark.parametrize("beginning", [whole()[:-5], STREAM_HEAD + chunk(word("one"))], ids=["json", "stream"])
async def test_an_answer_that_stops_times_out(kind: str, beginning: bytes) -> None:
    """Idle: the answer began, and nothing more comes."""
    async with (
        upstream(then_stall(beginning)) as server,
        client_of(kind, timeouts=GENEROUS._replace(idle=0.2)) as client,
    ):
        async with asyncio.timeout(4):  # not at the next look at a far deadline
            error = await failure_of(client, request_to(server.url()))
        assert (error.kind, error.received) == ("timeout", True)
        await until(lambda: server.aborted == 1)


@every_client
async def test_an_answer_that_drips_for_ever_times_out(kind: str) -> None:
    """Total: each wait is short, the whole is not."""

    async def drips(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD)
        while True:
            await peer.send(chunk(b": still here\n\n"), gap=0.02)

    async with upstream(drips) as server, client_of(kind, timeouts=GENEROUS._replace(total=0.3)) as client:
        assert (await failure_of(client, request_to(server.url()))).kind == "timeout"
        await until(lambda: server.aborted == 1)


@pytest.mark.parametrize("kind", ["httpx", "httpx2"])
async def test_the_clients_own_read_timeout_is_not_in_the_way(kind: str) -> None:
    """httpx gives up after 5 seconds by default; how long a model may think is said by our timeouts."""
    library: Any = httpx if kind == "httpx" else httpx2
    async with (
        upstream(once(whole()[:20], whole()[20:], gap=0.3)) as server,
        library.AsyncClient(timeout=library.Timeout(5, read=0.05), trust_env=False) as inner,
    ):
        assert (await fetch(HTTPXClient(inner, timeouts=GENEROUS), request_to(server.url())))[2] == BODY
