"""Processes and their traces: ended cleanly, killed, forked, several with one table."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.stores.traces import SQLTraces

from ..conversation import CHAT
from ..servers import ROOT, environment, fetch, uvicorn
from .parts import NOON, record

ADMIN = "an-admin-key-of-thirty-two-characters-or-more"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A gateway whose traces wait for a minute, unless somebody asks for them or it ends."""
    return environment(tmp_path / "gateway", GATEWAY_ADMIN_KEY=ADMIN, TRACE_FLUSH_SECONDS="60")


def stored(env: dict[str, str]) -> list[str]:
    """The request ids that the database has, as another program reads it."""
    with closing(sqlite3.connect(Path(env["GATEWAY_DATA_DIR"]) / "gateway.db")) as db:
        return sorted(row[0] for row in db.execute("SELECT request_id FROM traces"))


def called(url: str, count: int) -> list[str]:
    """The request ids of calls that were answered."""
    answers = [fetch(f"{url}/v1/chat/completions", CHAT) for _ in range(count)]
    assert {answer.status for answer in answers} == {200}
    return sorted(answer.headers["x-request-id"] for answer in answers)


def shown(url: str) -> list[str]:
    """The request ids that the admin API tells of."""
    answer = fetch(f"{url}/api/traces?limit=1000", key=ADMIN)
    assert answer.status == 200, answer.body
    return sorted(row["request_id"] for row in answer.json()["data"])


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for what comes by itself."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def test_a_clean_end_keeps_every_call(env: dict[str, str], tmp_path: Path) -> None:
    """SIGTERM: what still waited is written, and shown by the next process."""
    with uvicorn("examples:app", env, tmp_path) as server:
        made = called(server.url, 12)
        server.end()
    assert stored(env) == made
    with uvicorn("examples:app", env, tmp_path) as server:
        assert shown(server.url) == made


def test_a_kill_loses_only_what_waited(env: dict[str, str], tmp_path: Path) -> None:
    """Calls that were written before (here: by a look at them) are there, each once; later ones at most are lost."""
    with uvicorn("examples:app", env, tmp_path) as server:
        made = called(server.url, 12)
        assert shown(server.url) == made
        called(server.url, 3)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(10)
    assert stored(env) == made
    with uvicorn("examples:app", env, tmp_path) as server:
        assert sorted(made + called(server.url, 2)) == shown(server.url)


def test_the_window_is_the_setting(env: dict[str, str], tmp_path: Path) -> None:
    """Nobody asks, nothing ends: the calls are written all the same."""
    with uvicorn("examples:app", {**env, "TRACE_FLUSH_SECONDS": "0.1"}, tmp_path) as server:
        made = called(server.url, 5)
        until(lambda: stored(env) == made)


def test_workers_share_one_table(env: dict[str, str], tmp_path: Path) -> None:
    """Each of them shows the calls of all."""
    with uvicorn("examples:app", {**env, "TRACE_FLUSH_SECONDS": "0.1"}, tmp_path, "--workers", "2") as server:
        made = called(server.url, 30)
        until(lambda: stored(env) == made)
        assert [shown(server.url) for _ in range(4)] == [made] * 4


@pytest.fixture
def database(request: pytest.FixtureRequest, database_url: str) -> str:
    """A database with its tables."""
    from asgi_llm_gateway.stores.migrate import upgrade

    upgrade(database_url)
    return database_url


def start(part: str, url: str) -> subprocess.Popen[str]:
    """One of the parts below, in a process of its own."""
    command = [sys.executable, "-m", "tests.traces.test_processes", part, url]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def counted(url: str) -> list[float]:
    """When the calls in the database began, seconds after NOON."""
    from asgi_llm_gateway.traces.base import TraceQuery

    store = SQLTraces(lambda: url, clock=lambda: NOON)
    try:
        found: Any = (await store.recent(TraceQuery(limit=1000))).traces
        return sorted(trace.started - NOON for trace in found)
    finally:
        await store.close()


async def test_a_process_that_is_told_nothing_keeps_its_last_calls(database: str) -> None:
    """No lifespan, no close: an interpreter that ends writes what waits, from threads without an event loop too."""
    child = start("leave", database)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    assert await counted(database) == list(range(700))


async def test_a_child_has_a_queue_of_its_own(database: str) -> None:
    """After a fork each writes its own calls, once; neither disturbs the other's connection."""
    child = start("fork", database)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    assert await counted(database) == list(range(400))


def _leave(url: str) -> None:
    store = SQLTraces(lambda: url, flush_seconds=60, clock=lambda: NOON)
    for number in range(700):
        store.add(record(number))


def _fork(url: str) -> None:
    store = SQLTraces(lambda: url, flush_seconds=60, clock=lambda: NOON)
    for number in range(100):
        store.add(record(number))
    store._writer.flush().result(20)
    for number in range(100, 200):  # which wait in the parent while it forks
        store.add(record(number))
    child = os.fork()
    base = 200 if child == 0 else 300
    for number in range(100):
        store.add(record(base + number))
    store._writer.flush().result(20)
    if child == 0:
        sys.exit(0)  # through the interpreter's own end
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


PARTS: dict[str, Callable[[str], None]] = {"leave": _leave, "fork": _fork}

if __name__ == "__main__":
    PARTS[sys.argv[1]](sys.argv[2])
