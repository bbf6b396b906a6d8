"""Sessions over WebRTC against the same calls over HTTP: ``python -m benchmarks.realtime``.

One gateway process with all layers, the scripted ``echo`` model, and one client process on the same machine, both peers of
aiortc. Times are those of the client, from the call to the first token of content; the lanes take turns, call by call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from asgi_llm_gateway.realtime_client import Session, connect
from tests.servers import KEY, TEAM, Server, environment, uvicorn

CHAT: dict[str, Any] = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "one two three"}]}
FILE = TEAM + '[models.echo]\ntargets = ["echo/echo"]\nusd_per_million_in = 1\nusd_per_million_out = 2\n'


def percentile(times: Sequence[float], part: float) -> float:
    """In milliseconds."""
    return sorted(times)[min(len(times) - 1, int(len(times) * part))] * 1e3


def shown(name: str, times: Sequence[float]) -> float:
    """Print a lane's times; its median in milliseconds."""
    median = statistics.median(times) * 1e3
    print(
        f"  {name:24} p50 {median:6.2f} ms   p90 {percentile(times, 0.9):6.2f} ms   p99 {percentile(times, 0.99):6.2f} ms"
    )
    return median


def memory(server: Server) -> int:
    """Bytes of the gateway's own memory (proportional set size)."""
    text = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024


async def over_channel(session: Session, body: dict[str, Any] = CHAT) -> float:
    """Seconds to the first token."""
    began, first = time.perf_counter(), 0.0
    async for chunk in session.chat(body):
        if not first and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
            first = time.perf_counter() - began
    return first


async def over_http(client: httpx.AsyncClient, url: str) -> float:
    """The same over a connection that is kept."""
    began, first = time.perf_counter(), 0.0
    async with client.stream("POST", f"{url}/v1/chat/completions", json=CHAT) as answer:
        async for line in answer.aiter_lines():
            if not first and line.startswith("data: {"):
                chunk = json.loads(line[6:])
                if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    first = time.perf_counter() - began
    return first


async def first_tokens(server: Server, calls: int) -> None:
    """What an open channel costs at the first token."""
    headers = {"authorization": f"Bearer {KEY}"}
    async with connect(server.url, KEY) as session, httpx.AsyncClient(headers=headers) as client:
        for _ in range(50):
            await over_channel(session)
            await over_http(client, server.url)
        channel, plain = [], []
        for _ in range(calls):
            channel.append(await over_channel(session))
            plain.append(await over_http(client, server.url))
    print(f"first token, {calls} calls each, one after the other:")
    more = shown("data channel", channel) - shown("HTTP, kept connection", plain)
    print(f"  the channel's median is {more:+.2f} ms of HTTP's (goal: at most +3 ms)")


async def many(server: Server, sessions: int) -> None:
    """Sessions with a paced stream each: the longest that one waits between two chunks."""
    body = {**CHAT, "messages": [{"role": "user", "content": "word " * 200}], "metadata": {"echo_delay_ms": "50"}}
    gaps: list[float] = []
    done = 0

    async def one() -> None:
        nonlocal done
        async with connect(server.url, KEY, timeout=60) as session:
            last = 0.0
            async for _ in session.chat(body):
                now = time.perf_counter()
                if last:
                    gaps.append(now - last)
                last = now
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(sessions)))
    took = time.perf_counter() - began
    print(f"{sessions} sessions with a stream each, 200 tokens, one every 50 ms: {done} ended, {took:.1f} s in all")
    print(f"  between two chunks: p50 {percentile(gaps, 0.5):.1f} ms, p99 {percentile(gaps, 0.99):.1f} ms, "
          f"most {max(gaps) * 1e3:.1f} ms")  # fmt: skip


async def idle(server: Server, sessions: int) -> None:
    """What a session takes in memory while nothing happens in it."""
    open_ones = [connect(server.url, KEY, timeout=60) for _ in range(sessions)]
    async with connect(server.url, KEY) as first:  # what is loaded once
        await over_channel(first)
        before = memory(server)
        for one in open_ones:
            await over_channel(await one.__aenter__())
        await asyncio.sleep(1)
        after = memory(server)
        for one in open_ones:
            await one.__aexit__(None, None, None)
    print(f"{sessions} idle sessions: {(after - before) / sessions / 1024:.0f} KiB each (goal: under 1024)")


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--sessions", type=int, default=50)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        env = environment(
            Path(name), file=FILE, ENABLE_WEBRTC="true", RATE_LIMIT_MAX_REQUESTS="1000000", LOG_CALLS="false"
        )
        with uvicorn("examples:app", env, Path(name), "--no-access-log") as server:
            asyncio.run(first_tokens(server, asked.calls))
            asyncio.run(idle(server, asked.sessions))
            asyncio.run(many(server, asked.sessions))
    print(f"(Python {sys.version.split()[0]}, {os.cpu_count()} cores)")


if __name__ == "__main__":
    main()
