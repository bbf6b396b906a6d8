"""Real processes on loopback: started with an environment of their own, waited for, ended; and what they said.

A port is chosen by the operating system; what a process prints goes to files, so that none ever waits for a reader.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import uvicorn as uvicorn_server

ROOT = Path(__file__).parents[1]
KEY = "gw-team-key-for-the-tests"
"""The key of the tenant ``team`` that ``environment`` sets up."""

TEAM = '[tenants.team]\nkeys = ["${TEAM_KEY}"]\n'
START_SECONDS = 30.0


def environment(folder: Path, *, file: str = TEAM, **more: str) -> dict[str, str]:
    """A clean environment with a data folder of its own and a settings file that has the tenant ``team``."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "gateway.toml"
    settings.write_text(file, "utf-8")
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_CONFIG": str(settings),
        "TEAM_KEY": KEY,
        **more,
    }


class Server:
    """A running process that answers at ``url``.

    Attributes:
        url: Scheme, host and port.
        process: The process.
    """

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.url = ""
        self.process = process
        self._out = out
        self._err = err
        self._shown = 0

    @property
    def out(self) -> str:
        """What it printed."""
        return self._out.read_text("utf-8", "replace")

    @property
    def err(self) -> str:
        """What it logged."""
        return self._err.read_text("utf-8", "replace")

    @property
    def port(self) -> int:
        """Where it listens."""
        return urlsplit(self.url).port or 0

    def show(self) -> str:
        """What it logged since the last time, repeated to our own stderr: pytest shows that of a test which failed."""
        said = self.err
        new = said[self._shown :]
        self._shown = len(said)
        if new:
            sys.stderr.write(f"--- {self.url or 'the process'} said:\n{new}")
        return new

    def end(self) -> int:
        """Stop it as an operator would (SIGTERM, and SIGKILL if it won't); its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


@contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str], folder: Path, *, ready: str = r"running on (http://\S+)"
) -> Iterator[Server]:
    """A process, from the moment when it prints ``ready`` (whose group is its URL) until it is ended."""
    out, err = folder / "stdout", folder / "stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=dict(env), cwd=ROOT)
    server = Server(process, out, err)
    try:
        until = time.monotonic() + START_SECONDS
        while (found := re.search(ready, server.out + server.err)) is None:
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"{' '.join(command)} did not start:\n{server.out}{server.err}")
            time.sleep(0.02)
        server.url = found[1]
        while not _listens(server.port):  # with several workers the parent speaks before the first of them listens
            assert time.monotonic() < until, f"nobody listens:\n{server.err}"
            time.sleep(0.02)
        yield server
    except BaseException:
        server.show()
        raise
    finally:
        server.end()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def uvicorn(app: str, env: Mapping[str, str], folder: Path, *options: str) -> Iterator[Server]:
    """``uvicorn MODULE:APP`` on a port that is free."""
    command = [sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", "0", *options]
    with running(command, env, folder) as server:
        yield server


def gateway(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """``python -m asgi_llm_gateway ...`` to its end."""
    command = [sys.executable, "-m", "asgi_llm_gateway", *arguments]
    return subprocess.run(
        command, env=dict(env), cwd=ROOT, capture_output=True, text=True, timeout=START_SECONDS, check=False
    )


def free_port() -> int:
    """A port that nobody listens on, for a process that must be told one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Reply(NamedTuple):
    """An answer over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def fetch(
    url: str, body: Any = None, *, key: str | None = KEY, method: str | None = None, headers: Mapping[str, str] = {}
) -> Reply:
    """One HTTP call by the standard library alone; ``body`` is JSON, or bytes as they are."""
    parts = urlsplit(url)
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"content-type": "application/json"} if raw is not None else {}
    if key is not None:
        sent["authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method or ("GET" if raw is None else "POST"), path or "/", raw, {**sent, **headers})
        answer = connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """A real uvicorn round an app of this process, in a thread; gives its URL."""
    config = uvicorn_server.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False)
    server = uvicorn_server.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + START_SECONDS
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(15)
    assert not thread.is_alive(), "the server did not end"


class Asked(NamedTuple):
    """A request that an ``Upstream`` got."""

    path: str
    headers: Mapping[str, str]
    body: Any


class Upstream:
    """A provider that plays back a list of answers, the last one again and again, and keeps what it was asked."""

    def __init__(self, answers: Sequence[tuple[int, Mapping[str, str], bytes]]) -> None:
        self.asked: list[Asked] = []
        left = list(answers)
        lock = threading.Lock()
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                with lock:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    asked.append(Asked(self.path, headers, json.loads(body)))
                    status, fields, said = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                for name, value in {**fields, "content-length": str(len(said))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def upstream(*answers: tuple[int, Mapping[str, str], bytes]) -> Iterator[Upstream]:
    """An ``Upstream`` for the length of a test."""
    server = Upstream(answers)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def shown(server: Server) -> Iterator[Server]:
    """For a fixture of one test round a server of many: shows what the server logged meanwhile; no traceback may be in it."""
    server.show()
    try:
        yield server
    finally:
        said = server.show()
    assert "Traceback" not in said
