"""A kept answer against the same call proxied, before nginx that answers from memory: ``python -m benchmarks.cache``.

CPU microseconds a call of the whole target process (user and system), measured in turns, so that the machine's drift falls on
both alike; ratios are medians of paired rounds. ``hit`` and ``proxied`` are CacheMiddleware round ProxyApp, asked with and
without ``cache-control: no-store``; ``miss`` asks with ``no-cache``; the stack of four stands round both in the second pair.
``a fixed answer`` is uvicorn with an app that does nothing: no hit can cost less.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from asgi_llm_gateway import BudgetMiddleware, RateLimitMiddleware, TenantMiddleware, TracingMiddleware
from asgi_llm_gateway.middleware.cache import CacheMiddleware

from . import nginx
from .layers import ANSWER, HEAD
from .run import LUA, UVICORN, body, group_cpu, wait_for
from .targets import KEY, proxy_app, store

ROWS = {
    "a fixed answer": ("fixed", "", False),
    "proxied": ("alone", "no-store", False),
    "miss": ("alone", "no-cache", False),
    "hit": ("alone", "", False),
    "hit, JSON as stream": ("alone", "", True),
    "four, proxied": ("four", "no-store", False),
    "four, miss": ("four", "no-cache", False),
    "four, hit": ("four", "", False),
}
PORTS = {"alone": 9231, "four": 9232, "fixed": 9233}


def _four() -> Any:
    kept = store()
    cached = CacheMiddleware(BudgetMiddleware(proxy_app(), ledger=kept), redis_url="")
    limited = RateLimitMiddleware(cached, requests=10**9, window=60)
    return TracingMiddleware(TenantMiddleware(limited, store=kept))


async def fixed(scope: Any, receive: Any, send: Any) -> None:
    """The floor: what the server itself costs."""
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": HEAD})
        await send({"type": "http.response.body", "body": ANSWER})


alone = CacheMiddleware(proxy_app(), redis_url="")
four = _four()


def drive(port: int, control: str, stream: bool, seconds: int, connections: int, folder: Path) -> dict[str, float]:
    """Drive a target with one request again and again."""
    asked = {**body(False), "stream": stream}
    (folder / "body").write_text(json.dumps(asked))
    more = f'wrk.headers["Cache-Control"] = "{control}"\n' if control else ""
    (folder / "load.lua").write_text(LUA.replace("done = ", more + "done = "))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(folder / "load.lua")]
    environment = {**os.environ, "WRK_BODY": str(folder / "body"), "WRK_KEY": KEY}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    out = subprocess.run([*command, url], env=environment, capture_output=True, text=True, check=False).stdout
    fields = out.split("@@ ", 1)[1].split()
    return {
        "n": float(fields[0]),
        "s": float(fields[1]) / 1e6,
        "bad": float(fields[2]) + float(fields[3]),
        "p50": float(fields[4]) / 1e3,
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Start both targets, and measure each row in turn, round after round."""
    processes = [nginx.start(folder)]
    groups: dict[str, int] = {}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    try:
        for name, port in PORTS.items():
            command = [*UVICORN, "--port", str(port), f"benchmarks.cache:{name}"]
            process = subprocess.Popen(command, start_new_session=True)
            processes.append(process)
            groups[name] = process.pid
            wait_for(f"http://127.0.0.1:{port}/v1/none", process)
        for number in range(-1, options.rounds):  # the first round warms up
            for name, (target, control, stream) in ROWS.items():
                before = group_cpu(groups[target])
                seen = drive(PORTS[target], control, stream, options.seconds, options.connections, folder)
                seen["cpu"] = (group_cpu(groups[target]) - before) / max(seen["n"], 1) * 1e6
                if number >= 0:
                    rows[name].append(seen)
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait(10)
    return rows


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    print(f"{'':22} {'CPU us':>8} {'proxied is':>11} {'req/s':>8} {'p50 ms':>8} {'bad':>5}")
    for name, seen in rows.items():
        base = rows["four, proxied" if name.startswith("four") else "proxied"]
        cpu, p50 = (statistics.median(one[key] for one in seen) for key in ("cpu", "p50"))
        ratio = statistics.median(other["cpu"] / one["cpu"] for one, other in zip(seen, base, strict=True))
        rate = statistics.median(one["n"] / one["s"] for one in seen)
        print(f"{name:22} {cpu:8.1f} {ratio:9.2f} x {rate:8.0f} {p50:8.2f} {sum(one['bad'] for one in seen):5.0f}")


if __name__ == "__main__":
    sys.exit(main())
