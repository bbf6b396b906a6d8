"""Sessions over WebRTC against a real server: peers of aiortc, calls side by side, the channel, hanging up, many at once."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from aiortc import RTCDataChannel

from asgi_llm_gateway.realtime_client import RealtimeError, Session, connect

from ..servers import KEY, fetch
from .peers import OTHER_KEY, POOR_KEY, gateway, post, raw, records
from .test_process import CHAT, PACED, STREAM

pytestmark = pytest.mark.real  # servers and processes of its own, for long


def words(chunks: list[Any]) -> str:
    """The text of a stream."""
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


async def told(session: Session, body: Any) -> list[Any]:
    """All chunks of a chat."""
    return [chunk async for chunk in session.chat(body)]


async def test_calls_run_side_by_side_over_one_channel(tmp_path: Path) -> None:
    """A long stream, a big frame both ways, short ones between, a cancel: each gets its own chunks, and its cost."""
    big = ("x" * 200 + "é ") * 2_000
    with gateway(tmp_path) as server:
        async with connect(server.url, KEY) as session:
            long = session.chat(PACED)
            assert words([await long.__anext__(), await long.__anext__()]).strip() == "word"
            whole = session.chat({**CHAT, "stream": False, "max_tokens": 9_999,
                                  "messages": [{"role": "user", "content": big}]})  # fmt: skip
            short = await asyncio.gather(*(told(session, STREAM) for _ in range(5)))
            assert [words(one) for one in short] == ["one two three"] * 5
            (answer,) = [chunk async for chunk in whole]
            assert answer["choices"][0]["message"]["content"].split() == big.split()
            assert whole.usage is not None
            assert whole.cost_usd is not None
            assert whole.cost_usd > 0.004
            assert whole.headers["x-llm-provider"] == "echo"
            await long.cancel()
            with pytest.raises(RealtimeError) as caught:
                [chunk async for chunk in long]
            assert (caught.value.code, caught.value.status) == ("cancelled", 499)
            assert caught.value.cost_usd is not None
    assert sorted(aborted for aborted, _ in records(tmp_path)) == [0] * 6 + [1]


async def test_all_dialects_are_carried(tmp_path: Path) -> None:
    """Messages, responses and embeddings come as over HTTP, or are refused as there."""
    with gateway(tmp_path) as server:
        async with connect(server.url + "/v1", KEY) as session:
            say = [{"role": "user", "content": "one two"}]
            events = [event async for event in session.call(
                "messages.create", {"model": "echo", "max_tokens": 9, "stream": True, "messages": say})]  # fmt: skip
            assert events[0]["type"] == "message_start"
            (answer,) = [one async for one in session.call("responses.create", {"model": "echo", "input": "one two"})]
            assert answer["output"][0]["content"][0]["text"] == "one two"
            (vectors,) = [one async for one in session.call("embeddings.create", {"model": "echo", "input": "one"})]
            assert vectors["data"][0]["embedding"]
            with pytest.raises(RealtimeError, match="'messages'"):
                await told(session, {"model": "echo"})
            with pytest.raises(RealtimeError, match="'type' must be one of"):
                await session.call("images.create", {"model": "echo"}).__anext__()


async def test_a_budget_refuses_within_the_session(tmp_path: Path) -> None:
    """The call after the last one that fits gets a 402 or 429 by name; the session goes on."""
    with gateway(tmp_path) as server:
        async with connect(server.url, POOR_KEY) as session:

            async def spend() -> None:
                while True:
                    await told(session, {**STREAM, "max_tokens": 20})

            with pytest.raises(RealtimeError) as caught:
                await spend()
            assert caught.value.status in (402, 429)
            assert caught.value.code in ("insufficient_quota", "budget_exceeded", "would_exceed_budget")
            with pytest.raises(RealtimeError):
                await told(session, {**STREAM, "max_tokens": 20})


async def test_hundreds_of_calls_over_one_session(tmp_path: Path) -> None:
    """Three hundred, ten at a time; the ledger has each once."""
    with gateway(tmp_path, RATE_LIMIT_MAX_REQUESTS="100000") as server:
        async with connect(server.url, KEY) as session:
            turns = asyncio.Semaphore(10)

            async def one() -> str:
                async with turns:
                    return words(await told(session, STREAM))

            assert await asyncio.gather(*(one() for _ in range(300))) == ["one two three"] * 300
    assert len(records(tmp_path)) == 300
    assert len(set(records(tmp_path))) == 1


async def test_fifty_sessions_with_a_stream_each(tmp_path: Path) -> None:
    """All of them on one worker come to their end, none before its last word."""
    body = {**PACED, "metadata": {"echo_delay_ms": "20"}, "max_tokens": 50}
    with gateway(tmp_path) as server:

        async def one() -> int:
            async with connect(server.url, KEY, timeout=60) as session:
                return len(words(await told(session, body)).split())

        assert await asyncio.gather(*(one() for _ in range(50))) == [50] * 50


async def test_the_gateway_opens_the_channel_where_the_peer_does_not(tmp_path: Path) -> None:
    """A peer with a channel of another name only: that is closed, and ``llm-stream`` is opened to it."""
    with gateway(tmp_path) as server:
        async with raw(server, "chatter") as peer:
            opened: asyncio.Future[RTCDataChannel] = asyncio.get_running_loop().create_future()

            def take(channel: RTCDataChannel) -> None:
                peer.take(channel)
                opened.set_result(channel)

            peer.connection.on("datachannel", take)
            async with asyncio.timeout(20):
                await peer.closed.wait()
                channel = await opened
            assert (channel.label, channel.protocol) == ("llm-stream", "llm-stream.v1")
            assert (await peer.hear())["type"] == "session.created"
            await peer.say("chat.completions.create", id="1", body=STREAM)
            while (frame := await peer.hear())["type"] != "response.done":
                assert frame["id"] == "1"


@pytest.mark.parametrize("options", [{"ordered": False}, {"maxRetransmits": 0}, {"protocol": "other"}], ids=str)
async def test_a_channel_that_loses_frames_is_refused_in_words(tmp_path: Path, options: dict[str, Any]) -> None:
    """Frames need order and delivery: the peer is told so, and the channel is closed."""
    with gateway(tmp_path) as server:
        async with raw(server, "llm-stream", **options) as peer:
            frame = await peer.hear()
            assert (frame["type"], frame["error"]["code"]) == ("error", "unsupported_channel")
            async with asyncio.timeout(20):
                await peer.closed.wait()


async def test_only_the_same_tenant_hangs_up(tmp_path: Path) -> None:
    """Another's call is as one that never was; one's own ends with a last word, and then is no more."""
    with gateway(tmp_path) as server:
        async with raw(server, "llm-stream") as peer:
            assert (await peer.hear())["session"]["id"] == peer.location.rpartition("/")[2]
            assert peer.location.startswith("/v1/realtime/calls/rts_")
            url = server.url + peer.location
            await peer.say("chat.completions.create", id="1", body=PACED)
            await peer.hear()

            def ask(method: str, key: str, where: str = url) -> tuple[int, str | None]:
                reply = fetch(where, method=method, key=key)
                return reply.status, reply.json()["error"]["code"] if reply.body else None

            foreign = await asyncio.to_thread(ask, "DELETE", OTHER_KEY)
            assert foreign == await asyncio.to_thread(ask, "DELETE", KEY, url[:-1] + "x") == (404, "call_not_found")
            assert (await asyncio.to_thread(ask, "GET", KEY))[0] == 405
            assert (await asyncio.to_thread(ask, "DELETE", "gw-nobodys-key"))[0] == 401
            assert await asyncio.to_thread(ask, "DELETE", KEY) == (204, None)
            seen = []
            while (frame := await peer.hear())["type"] != "session.closed":
                seen.append(frame)
            assert seen[-1]["error"]["code"] == "cancelled"
            assert frame["reason"] == "closed"
            async with asyncio.timeout(20):
                await peer.closed.wait()
                while await asyncio.to_thread(ask, "DELETE", KEY) != (404, "call_not_found"):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
    assert [aborted for aborted, _ in records(tmp_path)] == [1]


async def test_a_mounted_gateway_names_its_prefix(tmp_path: Path) -> None:
    """The helper's URL, ``Location`` and the browser's client all go by where the gateway is mounted."""
    with gateway(tmp_path, app="examples.mount_starlette:app") as server:
        assert fetch(f"{server.url}/llm/realtime/client.js", key=None).status == 200
        async with connect(f"{server.url}/llm", KEY) as session:
            assert session.location == f"{server.url}/llm/v1/realtime/calls/{session.id}"
            assert words(await told(session, STREAM)) == "one two three"
            reply = await asyncio.to_thread(fetch, session.location + "/hangup", method="POST")
            assert reply.status == 200
            with pytest.raises(RealtimeError) as caught:
                await told(session, PACED)
            assert caught.value.code in ("closed", "session_closed")


async def test_a_client_secret_opens_a_session_and_a_wrong_key_none(tmp_path: Path) -> None:
    """As over a WebSocket; the refusal names its code. A page of another origin may not."""
    with gateway(tmp_path) as server:
        secret = fetch(f"{server.url}/v1/realtime/client_secrets", {}).json()["value"]
        async with connect(server.url, secret) as session:
            assert words(await told(session, STREAM)) == "one two three"
        with pytest.raises(RealtimeError) as caught:
            async with connect(server.url, "gw-nobodys-key"):
                pass
        assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
        evil = {"origin": "https://evil.example", "content-type": "application/sdp"}
        reply = fetch(f"{server.url}/v1/realtime/calls", b"v=0", headers=evil)
        assert (reply.status, reply.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert secret not in server.err + server.out


async def test_a_revoked_key_ends_the_session(tmp_path: Path) -> None:
    """The next message after it is refused by name, and the session is closed with that reason."""
    with gateway(tmp_path) as server:
        secret = fetch(f"{server.url}/v1/realtime/client_secrets", {}).json()["value"]
        async with connect(server.url, secret) as session:
            assert words(await told(session, STREAM)) == "one two three"
            with sqlite3.connect(tmp_path / "data" / "gateway.db") as database:
                database.execute("UPDATE api_keys SET revoked = 1")

            async def ask() -> None:
                while True:  # look-ups are remembered for two seconds
                    await told(session, STREAM)
                    await asyncio.sleep(0.1)

            async with asyncio.timeout(20):
                with pytest.raises(RealtimeError) as caught:
                    await ask()
                assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
                with pytest.raises(RealtimeError) as closed:
                    await told(session, STREAM)
            assert closed.value.code == "invalid_api_key"


def test_the_browsers_client_is_served_with_the_wheel(tmp_path: Path) -> None:
    """To pages of all origins, revalidated by its tag."""
    with gateway(tmp_path) as server:
        url = f"{server.url}/realtime/client.js"
        reply = fetch(url, key=None)
        assert reply.status == 200
        assert b"export async function connect" in reply.body
        assert reply.headers["content-type"] == "text/javascript; charset=utf-8"
        assert reply.headers["access-control-allow-origin"] == "*"
        assert reply.headers["cross-origin-resource-policy"] == "cross-origin"
        again = fetch(url, key=None, headers={"if-none-match": reply.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
        assert fetch(url, key=None, method="HEAD").headers["content-length"] is not None


def test_the_playground_is_served_and_gets_client_secrets(tmp_path: Path) -> None:
    """The page and its script, the client beside them, and a secret that is no API key."""
    with gateway(tmp_path, app="examples.realtime.app:app") as server:
        page = fetch(f"{server.url}/", key=None)
        assert page.headers["content-type"].startswith("text/html")
        assert b"playground.js" in page.body
        assert b"./realtime/client.js" in fetch(f"{server.url}/playground.js", key=None).body
        assert fetch(f"{server.url}/realtime/client.js", key=None).status == 200
        assert fetch(f"{server.url}/token", key=None, method="POST").json()["value"].startswith("ek_")
        assert fetch(f"{server.url}/token", key=None).status == 404


def test_without_the_setting_there_is_no_webrtc(tmp_path: Path) -> None:
    """The answer says where else to go."""
    with gateway(tmp_path, ENABLE_WEBRTC="false", ENABLE_REALTIME="true") as server:
        reply = post(server, "v=0")
        assert (reply.status, reply.json()["error"]["code"]) == (404, "webrtc_disabled")
        assert json.loads(reply.body)["error"]["message"].endswith("/v1/realtime/ws: it speaks the same frames.")
