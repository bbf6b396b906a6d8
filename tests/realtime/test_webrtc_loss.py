"""Peers over WebRTC that are killed, do not read, never connect, or send without an end; and a gateway that ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiortc import RTCSessionDescription

from asgi_llm_gateway.realtime_client import RealtimeError, Session, connect

from ..servers import KEY, ROOT, environment, fetch
from ..upstream import Peer, chunk, head, until, upstream
from .peers import gateway, offer, post, raw, records
from .test_process import PACED, STREAM, held
from .test_webrtc import told, words

pytestmark = pytest.mark.real

CLIENT = """
import asyncio, json, sys
import tests.realtime.peers
from asgi_llm_gateway.realtime_client import connect
async def main():
    url, key, body = sys.argv[1:]
    async def show(stream):
        async for chunk in stream:
            print(json.dumps(chunk), flush=True)
    async with connect(url, key) as session:
        await asyncio.gather(*(show(session.chat(json.loads(body))) for _ in range(5)))
asyncio.run(main())
"""


async def test_a_killed_peer_has_its_calls_settled_within_seconds(tmp_path: Path) -> None:
    """SIGKILL in the middle of five streams, which nobody tells us of: what was used is paid, nothing stays held."""
    with gateway(tmp_path) as server:
        endless = {**PACED, "max_tokens": 9_999, "messages": [{"role": "user", "content": "word " * 9_000}]}
        command = [sys.executable, "-c", CLIENT, server.url, KEY, json.dumps(endless)]
        client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
        assert client.stdout is not None
        for _ in range(20):
            assert await client.stdout.readline()
        assert held(tmp_path) > 0
        client.kill()
        await client.wait()
        await until(lambda: held(tmp_path) == 0, 20)
        assert [(aborted, cost > 0) for aborted, cost in records(tmp_path)] == [(1, True)] * 5


async def test_a_peer_that_leaves_is_gone_at_once(tmp_path: Path) -> None:
    """Closing the connection hangs up its calls."""
    with gateway(tmp_path) as server:
        async with raw(server, "llm-stream") as peer:
            await peer.hear()
            await peer.say("chat.completions.create", id="1", body=PACED)
            await peer.hear()
        await until(lambda: held(tmp_path) == 0, 10)
        assert [aborted for aborted, _ in records(tmp_path)] == [1]


async def test_a_peer_that_does_not_read_stops_its_own_upstream_only(tmp_path: Path) -> None:
    """Its stack acknowledges nothing for a while: the provider is held all the way; another peer's calls come through."""
    piece = chunk(b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 8_000 + b'"}}]}\n\n')
    sending: list[Peer] = []

    async def endless(peer: Peer) -> None:
        await peer.request()
        peer.narrow()
        sending.append(peer)
        await peer.send(head(200, ("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")))
        while True:
            await peer.send(piece)

    async with upstream(endless) as up:
        with gateway(tmp_path, UP_URL=up.url()) as server:
            async with connect(server.url, KEY) as slow, connect(server.url, KEY) as quick:
                stream = slow.chat({**STREAM, "model": "m"})
                await stream.__anext__()
                deaf = _deafen(slow)
                before = -1
                while sending[0].sent != before:  # until it stands
                    before = sending[0].sent
                    await asyncio.sleep(0.7)
                rss = _memory(server.process.pid)
                assert words(await told(quick, STREAM)) == "one two three"
                assert sending[0].sent == before
                assert _memory(server.process.pid) - rss < 8 * 2**20
                deaf()  # reads again: it goes on where it stood
                await until(lambda: sending[0].sent > before, 20)
                await stream.cancel()
                await until(lambda: up.open == 0, 20)
                with pytest.raises(RealtimeError, match="cancelled"):
                    [one async for one in stream]


def _deafen(session: Session) -> Any:
    """Let a peer's SCTP hear nothing, as in a process that stands still; ICE below goes on. Gives what undoes it."""
    sctp: Any = session._connection.sctp
    hear = sctp._handle_data

    async def nothing(data: bytes) -> None:
        return

    sctp._handle_data = nothing

    def undo() -> None:
        sctp._handle_data = hear

    return undo


def _memory(pid: int) -> int:
    """Bytes that a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_message_without_an_end_ends_the_session(tmp_path: Path) -> None:
    """Fragments that never make a whole are not kept for ever, whatever window the peer was told of."""
    with gateway(tmp_path) as server:
        async with raw(server, "llm-stream") as peer:
            await peer.hear()
            sctp: Any = peer.connection.sctp
            sctp._remote_max_message_size = 0
            send = sctp._send_chunk

            async def endless(piece: Any) -> None:
                if getattr(piece, "user_data", None) and len(piece.user_data) > 1000:
                    piece.flags &= ~0x01  # no last fragment. Source: RFC 9260, 3.3.1
                await send(piece)

            sctp._send_chunk = endless
            assert peer.channel is not None
            peer.channel.send("x" * (6 * 2**20))
            async with asyncio.timeout(60):
                while (await peer.hear())["type"] != "session.closed":
                    pass


async def test_a_peer_that_never_connects_is_forgotten(tmp_path: Path) -> None:
    """Answered offers are bounded by tenant, and make room after the handshake's time; a session's place, too."""
    times = {"REALTIME_HANDSHAKE_SECONDS": "1.5", "REALTIME_MAX_HANDSHAKES": "2", "REALTIME_MAX_SESSIONS": "2"}
    with gateway(tmp_path, **times) as server:
        peer, _ = await offer("llm-stream")
        sdp = peer.localDescription.sdp

        async def codes(count: int) -> list[Any]:
            replies = [await asyncio.to_thread(post, server, sdp) for _ in range(count)]
            return [reply.json()["error"]["code"] if reply.status != 201 else 201 for reply in replies]

        assert await codes(3) == [201, 201, "too_many_sessions"]
        await until(lambda: post(server, sdp).status == 201, 20)
        await peer.close()


async def test_half_open_peers_are_bounded(tmp_path: Path) -> None:
    """Who only asks for answers gets so many; those that connect do not count."""
    with gateway(tmp_path, REALTIME_MAX_HANDSHAKES="1") as server:
        async with connect(server.url, KEY), connect(server.url, KEY):
            peer, _ = await offer("llm-stream")
            sdp = peer.localDescription.sdp
            assert (await asyncio.to_thread(post, server, sdp)).status == 201
            reply = await asyncio.to_thread(post, server, sdp)
            assert (reply.status, reply.json()["error"]["code"]) == (429, "too_many_handshakes")
            assert reply.headers["retry-after"] == "2"
            await peer.close()


async def test_the_end_of_the_process_ends_its_sessions_in_order(tmp_path: Path) -> None:
    """SIGTERM: the peer is told so, what runs is settled, the channel is closed, and the process ends soon."""
    with gateway(tmp_path, SHUTDOWN_GRACE_SECONDS="2") as server:
        async with raw(server, "llm-stream") as peer:
            await peer.hear()
            await peer.say("chat.completions.create", id="1", body=PACED)
            await peer.hear()
            server.process.send_signal(signal.SIGTERM)
            kinds, reason = [], None
            while reason is None:
                frame = await peer.hear()
                kinds.append(frame["type"])
                reason = frame["reason"] if frame["type"] == "session.closed" else None
            assert reason == "shutting_down"
            assert kinds.count("error") + kinds.count("response.done") == 1
            async with asyncio.timeout(20):
                await peer.closed.wait()
            assert await asyncio.to_thread(server.process.wait, 15) in (0, -signal.SIGTERM)


async def test_a_call_that_ends_in_time_ends_well_when_the_process_does(tmp_path: Path) -> None:
    """After SIGTERM a stream has the grace that is told, and a new call is refused; no connection of the server's is open."""
    body = {**PACED, "max_tokens": 60}  # three seconds
    with gateway(tmp_path, SHUTDOWN_GRACE_SECONDS="30") as server:
        async with connect(server.url, KEY) as session:
            stream = session.chat(body)
            await stream.__anext__()
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            with pytest.raises(RealtimeError) as caught:
                await told(session, STREAM)
            assert caught.value.code == "shutting_down"
            assert len(words([one async for one in stream]).split()) == 60
        assert await asyncio.to_thread(server.process.wait, 15) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("kind", ["application/sdp", "application/json"])
async def test_an_offer_is_answered_in_its_own_form(tmp_path: Path, kind: str) -> None:
    """201 with SDP, or with JSON; browsers' hidden addresses cost no time."""
    with gateway(tmp_path) as server:
        peer, (channel,) = await offer("llm-stream")
        opened = asyncio.Event()
        channel.on("open", opened.set)
        hidden = "a=candidate:1 1 udp 2113937151 0a1b2c3d-1111-2222-3333-444455556666.local 50000 typ host"
        sdp = peer.localDescription.sdp + hidden + "\r\n"
        body = sdp if kind == "application/sdp" else json.dumps({"sdp": sdp, "type": "offer"})
        reply = await asyncio.to_thread(post, server, body, kind)
        assert (reply.status, reply.headers["content-type"], reply.headers["cache-control"]) == (201, kind, "no-store")
        answer = reply.body.decode() if kind == "application/sdp" else reply.json()["sdp"]
        if kind == "application/json":
            assert reply.json()["type"] == "answer"
            assert reply.headers["location"].endswith(reply.json()["id"])
        await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        async with asyncio.timeout(20):
            await opened.wait()
        await peer.close()


def test_offers_that_can_not_be_taken_are_refused_in_words(tmp_path: Path) -> None:
    """400 that names the field, and no peer of it stays; an offer that only looks like one included."""
    good = "v=0\r\ns=-\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=ice-ufrag:a\r\na=ice-pwd:b\r\n"
    with gateway(tmp_path, REALTIME_MAX_SESSIONS="1") as server:
        for text in (
            "",
            "v=0",
            good,
            good + "a=fingerprint:sha-256 A\r\na=sctp-port:x\r\n",
            good + "a=fingerprint:sha-256\r\n",
        ):
            reply = post(server, text)
            error = reply.json()["error"]
            assert (reply.status, error["param"], error["code"]) == (400, "sdp", "invalid_sdp"), (text, reply)
        assert post(server, "x" * 70_000).status == 413
        assert post(server, "v=0", "text/plain").status == 415
        assert fetch(f"{server.url}/v1/realtime/calls").status == 405


def test_without_the_extra_the_start_says_what_to_install(tmp_path: Path) -> None:
    """And nothing of it is loaded where WebRTC is not asked for."""
    env = environment(tmp_path, ENABLE_WEBRTC="true")
    code = "import sys; sys.modules['aiortc'] = None\nfrom asgi_llm_gateway import create_app\ncreate_app()"
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "WebRTC needs: pip install 'asgi-llm-gateway[webrtc]'" in done.stderr
    code = "import sys\nfrom asgi_llm_gateway import create_app\ncreate_app()\nassert 'aiortc' not in sys.modules"
    env["ENABLE_WEBRTC"], env["ENABLE_REALTIME"] = "false", "true"
    subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, check=True)
