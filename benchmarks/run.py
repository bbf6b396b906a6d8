"""CPU per request and per stream of each stack, paired with the bare relay in one run: ``python -m benchmarks.run``.

Targets are started once and measured in turn, round after round, so that the drift of the machine falls on all alike.
CPU is user + system time of the target's whole process group: the figure that holds on a noisy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from . import nginx
from .targets import KEY

HZ = os.sysconf("SC_CLK_TCK")
UVICORN = [
    sys.executable, "-m", "uvicorn", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning",
]  # fmt: skip
TARGETS = {
    "bare raw": ("benchmarks.bare:app", 9210, {}),
    "bare httpx": ("benchmarks.bare:app", 9211, {"BARE_CLIENT": "httpx"}),
    "proxy": ("benchmarks.targets:proxy", 9212, {}),
    "+ tracing": ("benchmarks.targets:tracing", 9214, {}),
    "+ tenant": ("benchmarks.targets:tenant", 9215, {}),
    "+ ratelimit": ("benchmarks.targets:ratelimit", 9216, {}),
    "+ budget": ("benchmarks.targets:budget", 9217, {}),
    "four": ("benchmarks.targets:four", 9213, {}),
}
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant that answers briefly and to the point."},
    {"role": "user", "content": "What is the capital of France, and how many people live there? " * 3},
    {"role": "assistant", "content": "Paris. About two million people live in the city itself."},
    {"role": "user", "content": "And what about the whole metropolitan area? " * 3},
]
LUA = """
wrk.method = "POST"
wrk.body = io.open(os.getenv("WRK_BODY"), "rb"):read("*a")
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("WRK_KEY")
done = function(summary, latency, requests)
  io.write(string.format("\\n@@ %d %d %d %d %f %f\\n", summary.requests, summary.duration, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


def group_cpu(group: int) -> float:
    """Seconds of CPU that a process group has used."""
    ticks = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue
            fields = text[text.rindex(")") + 2 :].split()
            if int(fields[2]) == group:
                ticks += sum(int(field) for field in fields[11:15])
    return ticks / HZ


def group_mb(group: int) -> float:
    """MiB (proportional set size) of a process group."""
    size = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path(f"/proc/{name}/stat").read_text()
                if int(text[text.rindex(")") + 2 :].split()[2]) == group:
                    found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{name}/smaps_rollup").read_text(), re.MULTILINE)
                    size += int(found[1]) if found else 0
            except OSError:
                continue
    return size / 1024


def body(stream: bool) -> dict[str, Any]:
    """The request: an explicit limit, as most clients send."""
    model = "gpt-3.5-turbo" if stream else "gpt-4"
    return {"model": model, "messages": MESSAGES, "max_tokens": 256, "temperature": 0, "stream": stream}


def wrk(url: str, stream: bool, seconds: int, connections: int, folder: Path) -> dict[str, float]:
    """Drive a target; what wrk saw."""
    (folder / "body").write_text(json.dumps(body(stream)))
    (folder / "load.lua").write_text(LUA)
    environment = {**os.environ, "WRK_BODY": str(folder / "body"), "WRK_KEY": KEY}
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "10s",
        "-s",
        str(folder / "load.lua"),
        url,
    ]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
    found = re.search(r"@@ (\d+) (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+)", out)
    if found is None:
        raise RuntimeError(out)
    count, micros, status, net, p50, p99 = map(float, found.groups())
    return {"n": count, "s": micros / 1e6, "bad": status + net, "p50": p50 / 1e3, "p99": p99 / 1e3}


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until a target answers anything."""
    for _ in range(400):
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"{url}: ended") from None
            time.sleep(0.05)
    raise RuntimeError(f"{url}: not ready")


def measure(names: list[str], options: argparse.Namespace, folder: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Start everything, measure in turns, give the medians."""
    processes: list[subprocess.Popen[bytes]] = []
    groups: dict[str, int] = {}
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    try:
        processes.append(nginx.start(folder))
        paced = [sys.executable, "-m", "benchmarks.paced", "--events", str(options.events)]
        processes.append(subprocess.Popen(paced, start_new_session=True))
        for name in names:
            app, port, environment = TARGETS[name]
            command = [*UVICORN, "--port", str(port), app]
            process = subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)
            processes.append(process)
            groups[name] = process.pid
            wait_for(f"http://127.0.0.1:{port}/v1/none", process)
        for scenario in options.scenarios.split(","):
            connections = 1 if scenario == "json1" else options.connections
            for number in range(-1, options.rounds):  # the first round warms up
                for name in names:
                    path = "/v1/chat/completions"
                    if scenario == "stream" and name.startswith("bare"):
                        path = "/paced" + path
                    url = f"http://127.0.0.1:{TARGETS[name][1]}{path}"
                    before = group_cpu(groups[name])
                    seconds = 1 if number < 0 else options.seconds
                    seen = wrk(url, scenario == "stream", seconds, connections, folder)
                    seen["cpu"] = (group_cpu(groups[name]) - before) / max(seen["n"], 1) * 1e6
                    seen["mb"] = group_mb(groups[name])
                    if number >= 0:
                        rows.setdefault((scenario, name), []).append(seen)
    finally:
        for process in processes:
            try:
                os.killpg(process.pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        for process in processes:
            process.wait(10)
    return summed(rows)


def summed(rows: dict[tuple[str, str], list[dict[str, float]]]) -> dict[tuple[str, str], dict[str, float]]:
    """Medians over the rounds; the ratio is the median of the paired ratios, round by round."""
    found = {}
    for (scenario, name), seen in rows.items():
        base = rows.get((scenario, "bare raw"), seen)
        row = {key: statistics.median(one[key] for one in seen) for key in ("cpu", "p50", "p99", "mb")}
        row["rps"] = statistics.median(one["n"] / one["s"] for one in seen)
        row["bad"] = sum(one["bad"] for one in seen)
        row["ratio"] = statistics.median(one["cpu"] / other["cpu"] for one, other in zip(seen, base, strict=True))
        found[scenario, name] = row
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--scenarios", default="json,json1,stream")
    parser.add_argument("--only", default=",".join(TARGETS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.only.split(","), options, Path(folder))
    print(
        f"{'scenario':9} {'stack':12} {'CPU us':>9} {'x bare':>7} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'MB':>6} {'bad':>5}"
    )
    for (scenario, name), row in found.items():
        print(
            f"{scenario:9} {name:12} {row['cpu']:9.1f} {row['ratio']:7.2f} {row['rps']:8.0f} "
            f"{row['p50']:8.2f} {row['p99']:8.2f} {row['mb']:6.1f} {row['bad']:5.0f}"
        )


if __name__ == "__main__":
    main()
