"""The times of an end: the delay for load balancers, the grace, a client that does not read, a second signal."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .graceful_parts import audited, books, ended, provider, settings
from .servers import KEY, Reply, Server, fetch, running, uvicorn

pytestmark = pytest.mark.real  # servers and processes of its own, for long

CHAT = {"model": "m", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 2000}


def until(check: Callable[[], bool]) -> None:
    """Wait for it."""
    end = time.monotonic() + 15
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


def quiet(count: Callable[[], int]) -> None:
    """Wait until it grows no more."""
    before = -1
    while before != count():
        before = count()
        time.sleep(0.5)


def asked(server: Server, **more: object) -> tuple[threading.Thread, list[Reply]]:
    """A call in a thread of its own, and where its answer will be."""
    found: list[Reply] = []

    def work() -> None:
        found.append(fetch(f"{server.url}/v1/chat/completions", {**CHAT, **more}))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, found


def opened(server: Server, **more: object) -> socket.socket:
    """A call of which nothing is ever read, unless the test does."""
    body = json.dumps({**CHAT, **more}).encode()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    sock.sendall(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    return sock


def test_a_json_call_that_takes_too_long_is_told_so_and_paid_for(tmp_path: Path) -> None:
    """503 ``shutting_down``: the provider may well have done the work, so its prompt is booked, as an estimate."""
    with provider(pause=60) as slow:
        env = settings(tmp_path, slow, SHUTDOWN_GRACE_SECONDS="0.5")
        with uvicorn("examples:app", env, tmp_path) as server:
            thread, found = asked(server)
            until(lambda: slow.begun == 1)
            server.process.send_signal(signal.SIGTERM)
            ended(server, 10)
            thread.join(10)
        (answer,) = found
        assert (answer.status, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert answer.headers["retry-after"] == "1"
        told = books(env)
        assert (told.held, told.holds) == (0, 0)
        assert told.records[answer.headers["x-request-id"]] == told.spent > 0


@pytest.mark.parametrize("app", ["examples:app", "tests.graceful_host:wrapped"])
def test_a_stream_that_nobody_reads_does_not_keep_the_process(app: str, tmp_path: Path) -> None:
    """uvicorn would wait for its connection for ever; it is cut after the grace, and booked."""
    with provider(events=100_000, gap=0.0, size=20_000) as slow:
        env = settings(tmp_path, slow, SHUTDOWN_GRACE_SECONDS="0.3")
        with uvicorn(app, env, tmp_path) as server:
            sockets = [opened(server, stream=True) for _ in range(3)]
            until(lambda: slow.begun == 3)
            quiet(lambda: slow.sent)  # all buffers between here and the provider are full by then
            server.process.send_signal(signal.SIGTERM)
            assert ended(server, 10) in (0, -signal.SIGTERM)
            for sock in sockets:
                sock.close()
        assert "Traceback" not in server.err
        told = audited(env, [])
        assert len(told.records) == 3
        assert all(cost > 0 for cost in told.records.values())


@pytest.mark.parametrize("command", ["uvicorn", "serve"])
def test_for_a_delay_the_balancer_is_told_and_calls_are_served(command: str, tmp_path: Path) -> None:
    """``/ready`` is 503 ``draining`` at once, ``/health`` 200; calls go on until the delay is over and nobody listens."""
    with provider() as slow:
        env = settings(tmp_path, slow, SHUTDOWN_DELAY_SECONDS="2", PORT="0")
        how = (
            uvicorn("examples:app", env, tmp_path)
            if command == "uvicorn"
            else running([sys.executable, "-m", "asgi_llm_gateway", "serve"], env, tmp_path)
        )
        with how as server:
            assert fetch(f"{server.url}/ready", key=None).json() == {"status": "ready"}
            told = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            until(lambda: fetch(f"{server.url}/ready", key=None).status == 503)
            assert fetch(f"{server.url}/ready", key=None).json() == {"status": "draining"}
            assert fetch(f"{server.url}/health", key=None).status == 200
            assert fetch(f"{server.url}/v1/chat/completions", CHAT).status == 200
            assert ended(server, 10) in (0, -signal.SIGTERM)
            assert time.monotonic() - told >= 2
            with pytest.raises(OSError, match="refused"):
                fetch(f"{server.url}/health")


def test_a_second_signal_ends_the_grace(tmp_path: Path) -> None:
    """Whoever asks twice does not want to wait: streams end in band at once, and the books are right all the same."""
    with provider(events=100_000, gap=0.02) as slow:
        env = settings(tmp_path, slow, SHUTDOWN_GRACE_SECONDS="60")
        with uvicorn("examples:app", env, tmp_path) as server:
            thread, found = asked(server, stream=True)
            until(lambda: slow.sent > 3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(1.2)  # the same signal within a second is the same wish
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGTERM)
            ended(server, 10)
            thread.join(10)
        assert found[0].body.rstrip().split(b"\n\n")[-1].find(b"shutting_down") > 0
        assert books(env).holds == 0


def test_two_signals_at_once_are_one_wish(tmp_path: Path) -> None:
    """A process manager that signals the whole group reaches a worker twice, once by the server's parent."""
    with provider(events=60, gap=0.03) as slow:
        env = settings(tmp_path, slow)
        with uvicorn("examples:app", env, tmp_path) as server:
            thread, found = asked(server, stream=True)
            until(lambda: slow.sent > 3)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
                server.process.send_signal(number)
            ended(server, 10)
            thread.join(10)
        assert found[0].body.rstrip().endswith(b"data: [DONE]")


def test_a_call_on_a_kept_connection_is_refused_in_its_dialect(tmp_path: Path) -> None:
    """Where the listener is a host's own and stays open, or a connection is: 503, and the connection is closed."""
    with provider() as slow:
        env = settings(tmp_path, slow, SHUTDOWN_SIGNALS="false")
        with uvicorn("tests.graceful_host:draining", env, tmp_path) as server:
            parts = urlsplit(server.url)
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
            for path, kind in (("/v1/chat/completions", "server_error"), ("/v1/messages", "overloaded_error")):
                connection.request("POST", path, json.dumps(CHAT), {
                    "authorization": f"Bearer {KEY}", "content-type": "application/json"})  # fmt: skip
                answer = connection.getresponse()
                error = json.loads(answer.read())["error"]
                assert (answer.status, error["type"], error["code"]) == (503, kind, "shutting_down")
                assert answer.headers["connection"] == "close"
                assert answer.headers["x-request-id"]
            assert books(env).records == {}


def test_without_signals_the_server_alone_decides(tmp_path: Path) -> None:
    """SHUTDOWN_SIGNALS=false: running calls are the server's; with a time-out of its own it cancels them, and they are paid."""
    with provider(events=100_000, gap=0.02) as slow:
        env = settings(tmp_path, slow, SHUTDOWN_SIGNALS="false", SHUTDOWN_GRACE_SECONDS="0")
        with uvicorn("examples:app", env, tmp_path, "--timeout-graceful-shutdown", "1") as server:
            sock = opened(server, stream=True)
            until(lambda: slow.sent > 3)
            os.kill(server.process.pid, signal.SIGTERM)
            ended(server, 10)
            sock.close()
        told = books(env)
        assert (told.held, told.holds, len(told.records)) == (0, 0, 1)
        assert told.spent > 0
