"""Money, end to end: two uvicorn workers on one store, a provider that answers when the test says so, many calls at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest

from .servers import Reply, Server, environment, fetch, free_port, running, shown
from .stores.redis_servers import redis_server
from .upstream import DONE, LAST_CHUNK, STREAM_HEAD, USAGE, Peer, chunk, until, upstream, usage_event, whole, word

ADMIN = "an-admin-key-of-thirty-two-characters-or-more"
NANO = Decimal(10) ** 9
IN, OUT = 2_500_000_001, 10_000_000_003
"""Nano-USD per million tokens: such that no amount comes out even."""

COST = -(-(USAGE["prompt_tokens"] * IN + USAGE["completion_tokens"] * OUT) // 1_000_000)
"""Nano-USD of an answer of the provider."""

FILE = """
[providers.own]
type = "openai"
base_url = "http://127.0.0.1:{port}/v1"
api_key = "sk-provider"
models = ["m"]

[models.m]
targets = ["own/m"]
usd_per_million_in = "2.500000001"
usd_per_million_out = "10.000000003"
"""

STREAM: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 50,
    "stream": True,
    "stream_options": {"include_usage": True},
}
_SHORT = {key: value for key, value in STREAM.items() if not key.startswith("stream")}
_FILL = len(json.dumps(STREAM)) - len(json.dumps({**_SHORT, "user": ""}))
PLAIN = {**_SHORT, "user": "x" * _FILL}
"""As long as ``STREAM``, so that as much is held for it."""


class House(NamedTuple):
    """A running gateway, and the port at which it looks for its provider."""

    server: Server
    port: int

    async def fetch(self, path: str, body: Any = None, **more: Any) -> Reply:
        """An HTTP call in a thread: the provider lives in this event loop."""
        return await asyncio.to_thread(fetch, self.server.url + path, body, **more)

    async def admin(self, path: str, body: Any = None) -> Any:
        """The admin API's answer, its numbers by Decimal from the text."""
        reply = await self.fetch(path, body, key=ADMIN)
        assert reply.status in (200, 201), reply.body
        return json.loads(reply.body, parse_float=Decimal)

    async def team(self, tenant: str, **fields: Any) -> str:
        """Make a tenant; its key."""
        await self.admin("/api/tenants", {"id": tenant, **fields})
        return str((await self.admin(f"/api/tenants/{tenant}/keys", {}))["key"])

    async def records(self, tenant: str, count: int) -> list[Any]:
        """The tenant's records when there are so many."""
        async with asyncio.timeout(30):
            while True:
                found: list[Any] = (await self.admin(f"/api/tenants/{tenant}/records?limit=1000"))["records"]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.05)


@contextmanager
def house(folder: Path, **more: str) -> Iterator[House]:
    """``python -m asgi_llm_gateway serve`` with two workers."""
    port = free_port()
    more = {"WEB_CONCURRENCY": "2", "PORT": "0", "GATEWAY_ADMIN_KEY": ADMIN, "HOLD_TTL_SECONDS": "5", **more}
    env = environment(folder, file=FILE.format(port=port), ENABLE_RATE_LIMIT="false", **more)
    with running([sys.executable, "-m", "asgi_llm_gateway", "serve"], env, folder) as server:
        yield House(server, port)


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def any_house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A gateway on each kind of shared store."""
    folder = tmp_path_factory.mktemp("house")
    if request.param == "sqlite":
        with house(folder) as made:
            yield made
        return
    with redis_server(folder / "redis", keep=True) as redis, house(folder, REDIS_URL=redis.url) as made:
        yield made


class Provider:
    """Answers nobody before ``answer`` is set; of a stream it sends two words before that."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        """The script of a connection."""
        while True:
            asked = (await peer.request()).json()
            if not asked.get("stream"):
                await self.answer.wait()
                await peer.send(whole())
                continue
            await peer.send(STREAM_HEAD, chunk(word("a ")), chunk(word("b ")))
            await self.answer.wait()
            await peer.send(chunk(word("", "stop")), chunk(usage_event()), chunk(DONE), LAST_CHUNK)


class Said(NamedTuple):
    """An answer: its whole body, and the cost that it tells."""

    status: int
    headers: httpx.Headers
    body: str

    @property
    def cost(self) -> Decimal:
        """USD, from the header of a JSON answer or beside the usage of a stream."""
        if "x-llm-cost-usd" in self.headers:
            return Decimal(self.headers["x-llm-cost-usd"])
        (told,) = [line for line in self.body.split("\n") if '"usage"' in line]
        found: Decimal = json.loads(told[6:], parse_float=Decimal)["cost_usd"]
        return found


async def ask(client: httpx.AsyncClient, key: str, body: Any) -> Said:
    """A call to its end."""
    answer = await client.post("/v1/chat/completions", content=json.dumps(body), headers=_headers(key))
    return Said(answer.status_code, answer.headers, answer.text)


def _headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "content-type": "application/json"}


def clients(at: House) -> httpx.AsyncClient:
    """A client that opens as many connections as it has calls."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=at.server.url, timeout=60, limits=limits, trust_env=False)


# -- many at once ------------------------------------------------------------------------------------------------------


async def test_a_hundred_calls_at_once_for_money_that_pays_for_ten(any_house: House) -> None:
    """P1, A12: over two processes, streams among them: ten pass, ninety are refused; and the money agrees to the nano-USD."""
    at = any_house
    provider = Provider()
    with shown(at.server):
        async with upstream(provider, port=at.port) as state, clients(at) as client:
            probe = await at.team("probe")
            first = asyncio.ensure_future(ask(client, probe, PLAIN))
            await until(lambda: len(state.requests) == 1)
            held = (await at.admin("/api/tenants/probe"))["held_usd"]
            assert held > 0
            key = await at.team("crowd", budget_usd=str(held * 10))
            calls = [asyncio.ensure_future(ask(client, key, (PLAIN, STREAM)[number % 2])) for number in range(100)]
            await until(lambda: sum(call.done() for call in calls) >= 90 and len(state.requests) >= 11, 60)
            during = await at.admin("/api/tenants/crowd")
            assert (during["held_usd"], during["spent_usd"], during["remaining_usd"]) == (held * 10, 0, 0)
            assert [call.result().status for call in calls if call.done()] == [402] * 90
            provider.answer.set()
            said = await asyncio.gather(*calls)
            assert (await first).cost * NANO == COST
    passed = [one for one in said if one.status == 200]
    assert (len(passed), len(state.requests)) == (10, 11)
    for one in said:
        if one.status != 200:
            assert json.loads(one.body)["error"]["code"] in ("would_exceed_budget", "budget_exceeded")
            assert one.headers["x-should-retry"] == "false"
            assert "retry-after" not in one.headers
    records = await at.records("crowd", 10)
    told = {one.headers["x-request-id"]: one.cost for one in passed}
    assert {record["request_id"]: record["cost_usd"] for record in records} == told
    assert [cost * NANO for cost in told.values()] == [COST] * 10
    after, stats = await at.admin("/api/tenants/crowd"), await at.admin("/api/stats?tenant=crowd")
    assert (after["held_usd"], after["tokens_held"]) == (0, 0)
    assert after["spent_usd"] == sum(told.values()) == stats["cost_total_usd"]
    assert stats["requests"] == 10


# -- a period ----------------------------------------------------------------------------------------------------------


async def test_the_sdk_does_not_ask_again_when_a_periods_budget_is_spent(any_house: House) -> None:
    """429 ``insufficient_quota`` with the time at which it begins anew: RateLimitError, after one request."""
    key = await any_house.team("daily", budget_usd="0.000001", budget_period="daily")
    sent: list[Any] = []

    def refused() -> openai.RateLimitError:
        http_client = openai.DefaultHttpxClient(event_hooks={"request": [sent.append]})
        with openai.OpenAI(base_url=any_house.server.url + "/v1", api_key=key, http_client=http_client) as client:
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=50)
            return caught.value

    error = await asyncio.to_thread(refused)
    assert len(sent) == 1
    assert (error.type, error.code) == ("insufficient_quota", "would_exceed_budget")
    end = (await any_house.admin("/api/tenants/daily"))["period_end"]
    assert end % 86400 == 0
    assert error.response.headers["x-llm-budget-reset"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))
    assert "retry-after" not in error.response.headers


# -- a worker that dies ------------------------------------------------------------------------------------------------


def worker_of(server: Server, client_port: int) -> int:
    """The process that has the other end of a connection (Linux: /proc)."""
    wanted = (f":{server.port:04X}", f":{client_port:04X}")
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if (fields[1][-5:], fields[2][-5:]) == wanted:
            name = f"socket:[{fields[9]}]"
            children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
            for pid in map(int, children):
                if any(os.readlink(one) == name for one in Path(f"/proc/{pid}/fd").iterdir()):
                    return pid
    raise AssertionError("nobody has that connection")


class Begun(NamedTuple):
    """A stream of which the first event has come."""

    answer: httpx.Response
    lines: AsyncIterator[str]

    async def rest(self) -> list[str]:
        """All that follows. Raises httpx.TransportError."""
        try:
            return [line async for line in self.lines]
        finally:
            await self.answer.aclose()


async def begin(client: httpx.AsyncClient, server: Server, key: str) -> tuple[int, Begun]:
    """A stream, and which process serves it."""
    request = client.build_request("POST", "/v1/chat/completions", content=json.dumps(STREAM), headers=_headers(key))
    answer = await client.send(request, stream=True)
    lines = answer.aiter_lines()
    assert "a " in await anext(lines)
    port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
    return worker_of(server, port), Begun(answer, lines)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
@pytest.mark.parametrize("any_house", ["sqlite"], indirect=True)
async def test_what_a_killed_worker_held_lapses_and_is_charged_whole(any_house: House) -> None:
    """P2, P5: SIGKILL in the middle of streams. Its holds lapse, flagged; the other worker's streams go on to their end."""
    at = any_house
    provider = Provider()
    key = await at.team("crash")
    async with upstream(provider, port=at.port), clients(at) as client:
        streams: dict[int, list[Begun]] = {}
        while len(streams) < 2:  # until each of the two workers has one
            assert sum(map(len, streams.values())) < 200
            for worker, stream in await asyncio.gather(*(begin(client, at.server, key) for _ in range(4))):
                streams.setdefault(worker, []).append(stream)
        count = sum(map(len, streams.values()))
        each = (await at.admin("/api/tenants/crash"))["held_usd"] / count
        killed, other = streams
        os.kill(killed, signal.SIGKILL)
        for stream in streams[killed]:
            with pytest.raises(httpx.TransportError):
                await stream.rest()
        lapsed = await at.records("crash", len(streams[killed]))
        for record in lapsed:
            assert set(record["flags"]) == {"estimated", "aborted", "lapsed"}
            assert record["cost_usd"] == each
        provider.answer.set()
        for stream in streams[other]:
            assert "data: [DONE]" in await stream.rest()
        assert (await ask(client, key, PLAIN)).status == 200
    records = await at.records("crash", count + 1)
    after, stats = await at.admin("/api/tenants/crash"), await at.admin("/api/stats?tenant=crash")
    assert (after["held_usd"], len(records)) == (0, count + 1)
    assert after["spent_usd"] == sum(record["cost_usd"] for record in records) == stats["cost_total_usd"]
    assert sum(record["cost_usd"] * NANO == COST for record in records) == len(streams[other]) + 1
