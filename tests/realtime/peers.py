"""A gateway process that takes WebRTC peers, and peers of aiortc: the helper's, and raw ones."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aioice.ice
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription

from ..servers import KEY, Reply, Server, environment, fetch, uvicorn
from .test_process import FILE, held

OTHER_KEY = "gw-other-key-for-the-tests"
POOR_KEY = "gw-poor-key-for-the-tests-0123456789"
TENANTS = (
    FILE
    + f"""
[tenants.other]
keys = ["{OTHER_KEY}"]

[tenants.poor]
budget_usd = 0.0003
keys = ["{POOR_KEY}"]
"""
)

_found = aioice.ice.get_host_addresses
aioice.ice.get_host_addresses = lambda *given, **named: ["127.0.0.1", *_found(*given, **named)]


def settled(folder: Path) -> tuple[int, int]:
    """Nano-USD that were spent by the ledger, and by the records."""
    with sqlite3.connect(folder / "data" / "gateway.db") as database:
        ((spent,),) = database.execute("SELECT coalesce(sum(spent), 0) FROM balances WHERE account = ''")
        ((cost,),) = database.execute("SELECT coalesce(sum(cost), 0) FROM records")
    return int(spent), int(cost)


def records(folder: Path) -> list[tuple[int, int]]:
    """Of each call: whether it was cut short, and its cost in nano-USD."""
    with sqlite3.connect(folder / "data" / "gateway.db") as database:
        return database.execute("SELECT aborted, cost FROM records").fetchall()


@contextmanager
def gateway(folder: Path, *options: str, app: str = "tests.realtime.loopback:app", **more: str) -> Iterator[Server]:
    """A gateway with WebRTC; its ledger is audited when it has ended."""
    settings = {"UP_URL": "http://127.0.0.1:9/v1", "ENABLE_WEBRTC": "true", "PLAYGROUND_KEY": KEY, **more}
    with uvicorn(app, environment(folder, file=TENANTS, **settings), folder, *options) as server:
        yield server
    assert "Traceback" not in server.err, server.err
    assert "never retrieved" not in server.err, server.err
    assert KEY not in server.err + server.out
    assert held(folder) == 0
    spent, cost = settled(folder)
    assert spent == cost


def post(server: Server, offer: Any, kind: str = "application/sdp", **more: Any) -> Reply:
    """An offer, as it is."""
    body = offer if isinstance(offer, bytes) else offer.encode()
    return fetch(f"{server.url}/v1/realtime/calls", body, headers={"content-type": kind}, **more)


async def offer(*labels: str, **options: Any) -> tuple[RTCPeerConnection, list[RTCDataChannel]]:
    """A peer with data channels, that has made its offer."""
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    channels = [connection.createDataChannel(label, **options) for label in labels]
    await connection.setLocalDescription(await connection.createOffer())
    return connection, channels


class Raw:
    """A peer that reads and writes messages as they are."""

    def __init__(self, connection: RTCPeerConnection, location: str) -> None:
        self.connection = connection
        self.location = location
        self.channel: RTCDataChannel | None = None
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = asyncio.Event()

    def take(self, channel: RTCDataChannel) -> None:
        """Use this channel."""
        self.channel = channel
        channel.on("message", self.heard.put_nowait)
        channel.on("close", self.closed.set)

    async def say(self, kind: str, **fields: Any) -> None:
        """One frame, once the channel is open."""
        async with asyncio.timeout(20):
            while self.channel is None or self.channel.readyState != "open":  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        self.channel.send(json.dumps({"type": kind, **fields}))

    async def hear(self) -> dict[str, Any]:
        """The next frame."""
        async with asyncio.timeout(20):
            frame: dict[str, Any] = json.loads(await self.heard.get())
        return frame


@asynccontextmanager
async def raw(server: Server, *labels: str, key: str = KEY, **options: Any) -> AsyncIterator[Raw]:
    """A peer whose offer was answered; it uses the first channel."""
    connection, channels = await offer(*labels, **options)
    try:
        answer = await asyncio.to_thread(post, server, connection.localDescription.sdp, key=key)
        assert answer.status == 201, answer
        peer = Raw(connection, answer.headers["location"])
        peer.take(channels[0])
        await connection.setRemoteDescription(RTCSessionDescription(answer.body.decode(), "answer"))
        yield peer
    finally:
        await connection.close()
