"""The three upstream clients, ours, httpx and httpx2, and calls with one: what the tests of them share."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
import pytest

from asgi_llm_gateway.adapters.base import Endpoint, UpstreamRequest
from asgi_llm_gateway.errors import Header
from asgi_llm_gateway.proxy.clients import Client, HTTPXClient
from asgi_llm_gateway.proxy.transfer import Flight, Timeouts, TransferError
from asgi_llm_gateway.proxy.upstream import UpstreamClient

from ..upstream import ANSWER

KINDS = ("own", "httpx", "httpx2")
every_client = pytest.mark.parametrize("kind", KINDS)
GENEROUS = Timeouts(connect=20, write=20, first_byte=20, idle=20, total=40)
BODY = json.dumps(ANSWER).encode()


@asynccontextmanager
async def client_of(
    kind: str,
    *,
    timeouts: Timeouts = GENEROUS,
    connections: int = 100,
    keep_alive: float = 30.0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Client]:
    """One of the three clients."""
    if kind == "own":
        own = UpstreamClient(timeouts=timeouts, max_connections=connections, keep_alive=keep_alive, ssl_context=tls)
        try:
            yield own
        finally:
            await own.close()
        return
    library: Any = httpx if kind == "httpx" else httpx2
    waits = library.Timeout(timeouts.first_byte, connect=timeouts.connect, write=timeouts.write, pool=timeouts.connect)
    limits = library.Limits(max_connections=connections, keepalive_expiry=keep_alive)
    async with library.AsyncClient(timeout=waits, limits=limits, verify=tls or True, trust_env=False) as inner:
        yield HTTPXClient(inner, timeouts=timeouts)


def request_to(url: str, body: bytes = b"{}", headers: Sequence[Header] = ()) -> UpstreamRequest:
    """A request, as an adapter makes it."""
    return UpstreamRequest(Endpoint("POST", url, [(b"content-type", b"application/json"), *headers]), body)


async def more(flight: Flight) -> None:
    """Wait for more to take, or for the end."""
    waiting = flight.more()
    if waiting is not None:
        await waiting


async def drain(flight: Flight) -> bytes:
    """All of a started flight's body."""
    parts = [flight.take()]
    while not flight.done:
        await more(flight)
        parts.append(flight.take())
    parts.append(flight.take())
    return b"".join(parts)


async def fetch(client: Client, request: UpstreamRequest) -> tuple[int, dict[bytes, bytes], bytes]:
    """A whole call: status, headers and body."""
    flight = client.open(request)
    try:
        await flight.start()
        return flight.status, dict(flight.headers), await drain(flight)
    finally:
        flight.close()


async def failure_of(client: Client, request: UpstreamRequest) -> TransferError:
    """The error that a call comes to."""
    with pytest.raises(TransferError) as caught:
        await fetch(client, request)
    return caught.value


class Left(Exception):
    """Why a flight was aborted."""
