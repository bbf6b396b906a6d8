"""Through a real TURN server (coturn): a relay is forced, with credentials that we mint; expired ones open nothing."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCIceServer, RTCIceTransportPolicy, RTCPeerConnection, RTCSessionDescription

from asgi_llm_gateway.realtime.ice import IceServers
from asgi_llm_gateway.realtime_client import connect

from ..servers import KEY, fetch, free_port
from .peers import gateway, post, records
from .test_process import STREAM
from .test_webrtc import told, words

pytestmark = pytest.mark.real

SECRET = "a-secret-shared-with-coturn"


class Turn:
    """A TURN server.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log

    def url(self, transport: str) -> str:
        """By UDP or TCP."""
        return f"turn:127.0.0.1:{self.port}?transport={transport}"

    @property
    def said(self) -> str:
        """Its log."""
        return self._log.read_text("utf-8", "replace")


@pytest.fixture(scope="module")
def turn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turn]:
    """One for all."""
    with coturn(tmp_path_factory.mktemp("turn")) as server:
        yield server


@contextmanager
def coturn(folder: Path) -> Iterator[Turn]:
    """A coturn on loopback, with the REST scheme's shared secret."""
    path = shutil.which("turnserver")
    assert path, "this test needs coturn (Debian: apt-get install coturn; `make test-real` does)"
    port = free_port()
    log = folder / "log"
    command = [path, "-n", "-v", "-L", "127.0.0.1", "-E", "127.0.0.1", "-p", str(port), "--use-auth-secret",
               f"--static-auth-secret={SECRET}", "--realm=gw.test", "--allow-loopback-peers", "--no-cli", "--no-tls",
               "--no-dtls", "--log-file=stdout", "--simple-log", f"--pidfile={folder / 'pid'}",
               f"--userdb={folder / 'turndb'}"]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
    server = Turn(port, log)
    try:
        until = time.monotonic() + 20
        while "Relay ports initialization done" not in server.said and "listener opened on" not in server.said:
            assert process.poll() is None, server.said
            assert time.monotonic() < until, server.said
            time.sleep(0.05)
        time.sleep(0.3)
        yield server
    finally:
        process.terminate()
        process.wait(15)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_relay_is_enough(tmp_path: Path, turn: Turn, transport: str) -> None:
    """All of a session goes through the TURN server, with credentials for this tenant."""
    before = turn.said.count("ALLOCATE processed, success")
    with gateway(tmp_path, TURN_URLS=turn.url(transport), TURN_SECRET=SECRET) as server:
        async with connect(server.url, KEY, relay_only=True, timeout=30) as session:
            assert words(await told(session, STREAM)) == "one two three"
            offered = session._connection.localDescription.sdp
            kinds = {line.partition(" typ ")[2].split(" ")[0] for line in offered.splitlines() if "candidate:" in line}
            assert kinds == {"relay"}
        assert SECRET not in server.err + server.out
    assert turn.said.count("ALLOCATE processed, success") > before
    assert ":team" in turn.said
    assert [aborted for aborted, _ in records(tmp_path)] == [0]


async def test_expired_and_forged_credentials_open_nothing(tmp_path: Path, turn: Turn) -> None:
    """The TURN server refuses them, no relay is had, and a peer without a way is forgotten in time."""
    good = IceServers(turn=(turn.url("udp"),), secret=SECRET, ttl=60)
    now = time.time()
    pairs = {
        "good": good.credential("team", now),
        "expired": good.credential("team", now - 3600),
        "forged": IceServers(turn=good.turn, secret="another-secret-altogether", ttl=60).credential("team", now),
    }
    relays = {}
    with gateway(tmp_path, REALTIME_HANDSHAKE_SECONDS="2", REALTIME_MAX_SESSIONS="1") as server:
        for name, (user, password) in pairs.items():
            servers = [RTCIceServer(turn.url("udp"), user, password)]
            peer = RTCPeerConnection(
                RTCConfiguration(iceServers=servers, iceTransportPolicy=RTCIceTransportPolicy.RELAY)
            )
            channel = peer.createDataChannel("llm-stream")
            opened = asyncio.Event()
            channel.on("open", opened.set)
            await peer.setLocalDescription(await peer.createOffer())
            relays[name] = peer.localDescription.sdp.count(" typ relay")
            reply = await asyncio.to_thread(post, server, peer.localDescription.sdp)
            assert reply.status == 201, reply
            await peer.setRemoteDescription(RTCSessionDescription(reply.body.decode(), "answer"))
            done, _ = await asyncio.wait({asyncio.ensure_future(opened.wait())}, timeout=3)
            assert bool(done) == (name == "good"), name
            await peer.close()
            await asyncio.sleep(0.5)  # its one session is free again
    assert relays == {"good": 1, "expired": 0, "forged": 0}
    assert "error 401" in turn.said


def test_a_browser_goes_through_the_relay(tmp_path: Path, turn: Turn) -> None:
    """Chromium, with a relay only and what ``/v1/realtime/ice`` told it."""
    from ..dashboard.browser import chromium, seat
    from .test_browser import LOOPBACK, OPEN, PLAYGROUND

    script = """
        const options = {url: location.href, secret, transport: "webrtc", relayOnly: true, timeout: 15000};
        const session = await connect(options);
        let all = "";
        const call = session.chat(body("one two three"));
        for await (const chunk of call) all += text(chunk);
        session.close();
        return [session.transport, all, call.costUsd];
    """
    before = turn.said.count("ALLOCATE processed, success")
    more: dict[str, Any] = {"TURN_URLS": turn.url("udp"), "TURN_SECRET": SECRET, "PLAYGROUND_KEY": KEY}
    with (
        gateway(tmp_path, app=PLAYGROUND, **more) as server,
        chromium(LOOPBACK, "--disable-features=WebRtcHideLocalIpsWithMdns") as browser,
        seat(browser, server.url) as one,
    ):
        one.page.goto(server.url)
        assert one.page.evaluate("async () => {" + OPEN + script + "}") == ["webrtc", "one two three", 0.000009]
        told_user = fetch(f"{server.url}/v1/realtime/ice").json()["iceServers"][0]["username"]
        assert told_user.endswith(":team")
    assert turn.said.count("ALLOCATE processed, success") > before
