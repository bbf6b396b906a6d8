"""Sessions over a real server: uvicorn, the ``websockets`` client, the official SDK; killed clients and an ended process."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI, Request
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from asgi_llm_gateway import BudgetMiddleware, RealtimeMiddleware, TenantMiddleware
from asgi_llm_gateway.passport import PROTOCOL, SECRET_PROTOCOL
from asgi_llm_gateway.settings import forget

from ..servers import KEY, ROOT, TEAM, Server, environment, fetch, serving, uvicorn
from ..upstream import Peer, chunk, head, until, upstream

pytestmark = pytest.mark.real  # servers and processes of its own, for long

FILE = (
    TEAM
    + """
[models.echo]
targets = ["echo/echo"]
usd_per_million_in = "1"
usd_per_million_out = "2"

[providers.up]
type = "vllm"
base_url = "${UP_URL}"

[models.m]
targets = ["up/m"]
usd_per_million_in = "1"
usd_per_million_out = "2"

[providers.echo]
type = "echo"
"""
)
CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
STREAM: dict[str, Any] = {**CHAT, "stream": True}
PACED: dict[str, Any] = {**STREAM, "metadata": {"echo_delay_ms": "50"},
                         "messages": [{"role": "user", "content": "word " * 400}]}  # fmt: skip


@contextmanager
def gateway(folder: Path, *options: str, **more: str) -> Iterator[Server]:
    """A gateway process with sessions; its ledger is audited when it has ended."""
    env = environment(folder, file=FILE, ENABLE_REALTIME="true", UP_URL="http://127.0.0.1:9/v1", **more)
    with uvicorn("examples:app", env, folder, *options) as server:
        yield server
    assert "Traceback" not in server.err, server.err
    assert KEY not in server.err + server.out
    assert held(folder) == 0
    with sqlite3.connect(folder / "data" / "gateway.db") as database:
        ((spent,),) = database.execute("SELECT coalesce(sum(spent), 0) FROM balances WHERE account = ''")
        ((cost,),) = database.execute("SELECT coalesce(sum(cost), 0) FROM records")
    assert spent == cost


def held(folder: Path) -> int:
    """Nano-USD set aside in a gateway's ledger."""
    with sqlite3.connect(folder / "data" / "gateway.db") as database:
        ((money,),) = database.execute("SELECT coalesce(sum(held), 0) FROM balances")
    return int(money)


def dial(server_url: str, *, key: str | None = KEY, **more: Any) -> connect:
    """A client's connection to the sessions of a gateway."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    url = server_url.replace("http://", "ws://") + "/v1/realtime/ws"
    return connect(url, additional_headers=headers, proxy=None, **more)


async def say(client: ClientConnection, kind: str, **fields: Any) -> None:
    """One frame."""
    await client.send(json.dumps({"type": kind, **fields}))


async def hear(client: ClientConnection) -> dict[str, Any]:
    """The next frame; pings are answered."""
    while True:
        async with asyncio.timeout(30):
            frame: dict[str, Any] = json.loads(await client.recv())
        if frame["type"] != "ping":
            return frame
        await say(client, "pong")


async def rest(client: ClientConnection, *calls: str) -> dict[str, list[dict[str, Any]]]:
    """The frames of these calls until all have ended."""
    found: dict[str, list[dict[str, Any]]] = {call: [] for call in calls}
    left = set(calls)
    while left:
        frame = await hear(client)
        found[frame["id"]].append(frame)
        if frame["type"] in ("response.done", "error"):
            left.discard(frame["id"])
    return found


async def to_the_end(client: ClientConnection) -> None:
    """Hear all that comes. Raises ConnectionClosed."""
    while True:
        await hear(client)


@pytest.mark.parametrize("implementation", ["websockets-sansio", "wsproto"])
async def test_a_session_over_a_real_server(tmp_path: Path, implementation: str) -> None:
    """Calls side by side, a cancel, a big frame both ways, an end; the ledger adds up."""
    with gateway(tmp_path, "--ws", implementation) as server:
        async with dial(server.url) as client:
            assert (await hear(client))["type"] == "session.created"
            await say(client, "chat.completions.create", id="long", body=PACED)
            big = ("x" * 200 + " ") * 2_000
            await say(client, "chat.completions.create", id="big",
                      body={**CHAT, "max_tokens": 9_999, "messages": [{"role": "user", "content": big}]})  # fmt: skip
            await say(client, "chat.completions.create", id="short", body=STREAM)
            text: list[str] = []
            ended: dict[str, dict[str, Any]] = {}
            while "short" not in ended or "big" not in ended:
                frame = await hear(client)
                if frame["type"] == "part":
                    text.append(frame["text"])
                    if frame["last"]:
                        whole = json.loads("".join(text))
                        assert whole["data"]["choices"][0]["message"]["content"].split() == big.split()
                elif frame["type"] != "response.chunk":
                    ended[frame["id"]] = frame
            assert len(text) > 1
            assert {one["type"] for one in ended.values()} == {"response.done"}
            await say(client, "cancel", id="long")
            assert (await rest(client, "long"))["long"][-1]["error"]["code"] == "cancelled"
        refused = dial(server.url, key="gw-nobodys-key-at-all")
        with pytest.raises(InvalidStatus) as caught:
            await refused
        assert caught.value.response.status_code == 401
        assert json.loads(caught.value.response.body or b"")["error"]["code"] == "invalid_api_key"


async def test_a_client_secret_made_with_the_official_sdk_opens_a_session(tmp_path: Path) -> None:
    """``client.realtime.client_secrets.create``; then the handshake of a browser."""
    with gateway(tmp_path) as server:
        sdk = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
        made = await sdk.realtime.client_secrets.create(expires_after={"anchor": "created_at", "seconds": 60})
        assert made.value.startswith("ek_")
        shown = [Subprotocol(PROTOCOL), Subprotocol(SECRET_PROTOCOL + made.value)]
        origin: Any = server.url
        async with dial(server.url, key=None, subprotocols=shown, origin=origin) as client:
            assert client.subprotocol == PROTOCOL
            await hear(client)
            await say(client, "chat.completions.create", id="1", body=STREAM)
            assert (await rest(client, "1"))["1"][-1]["type"] == "response.done"
        with pytest.raises(InvalidStatus) as caught:
            await dial(server.url, key=None, subprotocols=shown, origin="https://evil.example")
        assert caught.value.response.status_code == 403
        with pytest.raises(openai.AuthenticationError):
            await openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=made.value, max_retries=0).models.list()
        assert made.value not in server.err + server.out
        await sdk.close()


CLIENT = """
import asyncio, json, sys
from websockets.asyncio.client import connect
async def main():
    url, key, body = sys.argv[1:]
    async with connect(url, additional_headers={"authorization": "Bearer " + key}, proxy=None) as client:
        for call in range(5):
            frame = {"type": "chat.completions.create", "id": str(call), "body": json.loads(body)}
            await client.send(json.dumps(frame))
        async for message in client:
            print(message, flush=True)
asyncio.run(main())
"""


async def test_a_killed_client_has_its_calls_settled_within_seconds(tmp_path: Path) -> None:
    """SIGKILL in the middle of five streams: what was used is paid, nothing stays held."""
    with gateway(tmp_path) as server:
        url = server.url.replace("http://", "ws://") + "/v1/realtime/ws"
        command = [sys.executable, "-c", CLIENT, url, KEY, json.dumps(PACED)]
        client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
        assert client.stdout is not None
        for _ in range(20):
            assert await client.stdout.readline()
        assert held(tmp_path) > 0
        client.kill()
        await client.wait()
        await until(lambda: held(tmp_path) == 0, 10)
        with sqlite3.connect(tmp_path / "data" / "gateway.db") as database:
            rows = database.execute("SELECT aborted, cost > 0 FROM records").fetchall()
        assert rows == [(1, 1)] * 5


async def test_a_client_that_does_not_read_stops_its_own_upstream_only(tmp_path: Path) -> None:
    """The provider is held by TCP all the way; another client's calls come through meanwhile."""
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
        env = environment(tmp_path, file=FILE, ENABLE_REALTIME="true", UP_URL=up.url())
        with uvicorn("examples:app", env, tmp_path) as server:
            async with dial(server.url, max_queue=1, compression=None) as slow, dial(server.url) as quick:
                await hear(slow)
                await hear(quick)
                await say(slow, "chat.completions.create", id="1", body={**STREAM, "model": "m"})
                await until(lambda: bool(sending))
                before = -1
                while sending[0].sent != before:  # until it stands
                    before = sending[0].sent
                    await asyncio.sleep(0.5)
                assert before < 16 * 2**20
                await say(quick, "chat.completions.create", id="1", body=STREAM)
                assert (await rest(quick, "1"))["1"][-1]["type"] == "response.done"
                assert sending[0].sent == before
                await say(slow, "cancel", id="1")  # which is heard all the same
                await until(lambda: up.open == 0, 10)
                slow.transport.abort()  # a close would wait for what is not read
        assert held(tmp_path) == 0


async def test_the_end_of_the_process_ends_its_sessions(tmp_path: Path) -> None:
    """SIGTERM: the client is told by a close code, calls are settled, the process ends soon."""
    with gateway(tmp_path) as server:
        async with dial(server.url) as client:
            await hear(client)
            await say(client, "chat.completions.create", id="1", body=PACED)
            for _ in range(3):
                await hear(client)
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as caught:
                await to_the_end(client)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code in (1001, 1012)
        assert await asyncio.to_thread(server.process.wait, 15) in (0, -signal.SIGTERM)


async def test_fifty_sessions_with_a_stream_each_on_one_worker(tmp_path: Path) -> None:
    """All of them come to their end, none before its last word."""
    with gateway(tmp_path) as server:

        async def one(number: int) -> int:
            async with dial(server.url) as client:
                await hear(client)
                body = {**PACED, "metadata": {"echo_delay_ms": "5"}, "max_tokens": 100}
                await say(client, "chat.completions.create", id=str(number), body=body)
                found = (await rest(client, str(number)))[str(number)]
                assert found[-1]["type"] == "response.done"
                return int(found[-1]["usage"]["completion_tokens"])

        assert await asyncio.gather(*map(one, range(50))) == [100] * 50


async def test_an_app_of_the_hosts_own_has_sessions_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers round a FastAPI app with a handler of its own: its path is called for each message."""
    env = environment(tmp_path, file=FILE)
    for name in ("GATEWAY_DATA_DIR", "GATEWAY_CONFIG", "TEAM_KEY"):
        monkeypatch.setenv(name, env[name])
    monkeypatch.setenv("UP_URL", "http://127.0.0.1:9/v1")
    forget()
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> dict[str, Any]:
        asked = await request.json()
        message = {"role": "assistant", "content": asked["messages"][0]["content"].upper()}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}}  # fmt: skip

    app.add_middleware(BudgetMiddleware)
    app.add_middleware(RealtimeMiddleware)
    app.add_middleware(TenantMiddleware)
    with serving(app) as url:
        async with dial(url) as client:
            await hear(client)
            await say(client, "chat.completions.create", id="1", body=CHAT)
            found = (await rest(client, "1"))["1"]
        assert found[0]["data"]["choices"][0]["message"]["content"] == "ONE TWO THREE"
        assert found[1]["cost_usd"] == 0.000009
        assert await asyncio.to_thread(lambda: fetch(f"{url}/v1/realtime/ice").json()["iceServers"]) == []
