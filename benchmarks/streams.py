"""Many streams at once through one worker: ``python -m benchmarks.streams [--streams 200]``.

Prints what a first event costs in time when idle, whether all streams came whole, and the memory of an open stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time

from .run import TARGETS, UVICORN, body, group_mb, wait_for
from .targets import KEY


def request(path: str) -> bytes:
    data = json.dumps(body(True)).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data


async def stream(port: int, path: str) -> tuple[float, int, bool]:
    """Seconds to the first event, events, and whether it ended with ``[DONE]``."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begun = time.perf_counter()
    writer.write(request(path))
    first, data = 0.0, b""
    while not data.endswith(b"0\r\n\r\n"):
        piece = await reader.read(65536)
        if not piece:
            break
        data += piece
        if not first and b"data:" in data:
            first = time.perf_counter() - begun
    writer.close()
    return first, data.count(b"data: "), b"[DONE]" in data


async def drive(port: int, group: int, streams: int) -> None:
    path = "/v1/chat/completions"
    direct, through = [], []
    for _ in range(20):
        direct.append((await stream(9102, path))[0])
        through.append((await stream(port, path))[0])
    added = statistics.median(through) - statistics.median(direct)
    before = group_mb(group)
    running = [asyncio.ensure_future(stream(port, path)) for _ in range(streams)]
    most = before
    while not all(one.done() for one in running):
        await asyncio.sleep(0.1)
        most = max(most, group_mb(group))
    done = [one.result() for one in running]
    whole = sum(1 for _, events, ended in done if ended and events == done[0][1])
    print(f"time to the first event, idle: {added * 1e3:+.2f} ms over the upstream itself (median of 20)")
    print(f"{streams} streams at once: {whole} came whole, {done[0][1]} events each")
    print(f"memory: {before:.1f} MiB before, {most:.1f} at most: {(most - before) * 1024 / streams:.1f} KiB a stream")


def main() -> None:
    """Start the paced upstream and the full stack, and drive them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--stack", default="four", choices=list(TARGETS))
    options = parser.parse_args()
    app, port, environment = TARGETS[options.stack]
    paced = subprocess.Popen([sys.executable, "-m", "benchmarks.paced", "--gap-ms", "20"], start_new_session=True)
    command = [*UVICORN, "--port", str(port), app]
    gateway = subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/v1/none", gateway)
        wait_for("http://127.0.0.1:9102/stats", paced)
        asyncio.run(drive(port, gateway.pid, options.streams))
    finally:
        for process in (paced, gateway):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(10)


if __name__ == "__main__":
    main()
