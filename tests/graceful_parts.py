"""A process under load that is told to end: the provider, the callers, and the books afterwards."""

from __future__ import annotations

import http.client
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from .servers import KEY, Server, environment

Kind = Literal["whole", "in band", "shutting down", "refused", "broken"]

MODELS = """
[tenants.team]
keys = ["${TEAM_KEY}"]
budget_usd = 1000

[providers.slow]
type = "openai"
base_url = "${SLOW_URL}"
api_key = "sk-none"

[models.m]
targets = ["slow/m"]
usd_per_million_in = 1000
usd_per_million_out = 2000
"""

WORD = {"id": "c", "object": "chat.completion.chunk", "model": "m",
        "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}  # fmt: skip


class SlowProvider:
    """Streams ``events`` words, ``gap`` seconds apart, each of ``size`` bytes more; a JSON answer takes ``pause`` seconds.

    Attributes:
        begun: Calls that have come.
        sent: Events that have left.
    """

    def __init__(self, *, events: int, gap: float, pause: float, size: int = 0) -> None:
        self.begun = self.sent = 0
        server = self
        word = {**WORD, "filler": "x" * size} if size else WORD

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.begun += 1
                try:
                    self._stream() if asked.get("stream") else self._whole()
                except OSError:  # the gateway has hung up
                    self.close_connection = True

            def _whole(self) -> None:
                time.sleep(pause)
                usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
                choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
                self._head(
                    "application/json", raw := json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode()
                )
                self.wfile.write(raw)

            def _stream(self) -> None:
                self._head("text/event-stream", None)
                for _ in range(events):
                    self._event(word)
                    server.sent += 1
                    time.sleep(gap)
                self._event({**WORD, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                usage = {"prompt_tokens": 3, "completion_tokens": events, "total_tokens": 3 + events}
                self._event({**WORD, "choices": [], "usage": usage})
                self._chunk(b"data: [DONE]\n\n")
                self._chunk(b"")

            def _event(self, data: Any) -> None:
                self._chunk(b"data: " + json.dumps(data).encode() + b"\n\n")

            def _chunk(self, data: bytes) -> None:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

            def _head(self, kind: str, body: bytes | None) -> None:
                self.send_response(200)
                self.send_header("content-type", kind)
                if body is None:
                    self.send_header("transfer-encoding", "chunked")
                else:
                    self.send_header("content-length", str(len(body)))
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def provider(*, events: int = 40, gap: float = 0.03, pause: float = 0.05, size: int = 0) -> Iterator[SlowProvider]:
    """A SlowProvider for the length of a test."""
    made = SlowProvider(events=events, gap=gap, pause=pause, size=size)
    try:
        yield made
    finally:
        made.close()


def settings(folder: Path, slow: SlowProvider, **more: str) -> dict[str, str]:
    """The environment of a gateway whose model ``m`` is that provider's."""
    given = {"ENABLE_RATE_LIMIT": "false", "GATEWAY_ADMIN_KEY": "a" * 40, "LOG_FORMAT": "json"}
    return environment(folder, file=MODELS, SLOW_URL=slow.url, **given, **more)


class Outcome(NamedTuple):
    """What a caller saw: how it ended, its request id, and whether it was a stream."""

    kind: Kind
    request: str
    stream: bool
    began: float


class Load:
    """Callers, each in a thread of its own, until ``stop``; half of them read streams."""

    def __init__(self, url: str, *, callers: int = 6, path: str = "/v1/chat/completions") -> None:
        self.outcomes: list[Outcome] = []
        self.reading = 0
        self._url = urlsplit(url)
        self._path = path
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(at % 2 == 0,), daemon=True) for at in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No more calls; those under way are waited for."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a call never ended"

    def until(self, streams: int) -> None:
        """Wait until so many streams have their first bytes and some calls were answered whole."""
        until = time.monotonic() + 20
        while self.reading < streams or not any(one.kind == "whole" for one in self.outcomes):
            assert time.monotonic() < until, (self.reading, self.outcomes)
            time.sleep(0.01)

    def _work(self, stream: bool) -> None:
        while not self._stop.is_set():
            outcome = self._call(stream)
            self.outcomes.append(outcome)
            if outcome.kind == "refused":
                return

    def _call(self, stream: bool) -> Outcome:
        began = time.monotonic()
        connection = http.client.HTTPConnection(self._url.hostname or "", self._url.port, timeout=40)
        body = {"model": "m", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 2000, "stream": stream}
        request = ""
        try:
            connection.request("POST", self._path, json.dumps(body), {
                "authorization": f"Bearer {KEY}", "content-type": "application/json", "connection": "close"})  # fmt: skip
            answer = connection.getresponse()
            request = answer.headers.get("x-request-id", "")
            if answer.status == 503:
                said = json.loads(answer.read())["error"]["code"]
                assert said == "shutting_down", said
                return Outcome("shutting down", request, stream, began)
            assert answer.status == 200, (answer.status, answer.read())
            if not stream:
                return Outcome("whole" if json.loads(answer.read())["usage"] else "broken", request, stream, began)
            return Outcome(self._read(answer), request, stream, began)
        except ConnectionRefusedError:
            return Outcome("refused", request, stream, began)
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return Outcome("broken" if request else "refused", request, stream, began)
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse) -> Kind:
        raw = answer.readline()
        self.reading += 1
        try:
            raw += answer.read()
        finally:
            self.reading -= 1
        events = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]
        if events[-1] == b"[DONE]":
            return "whole"
        return "in band" if json.loads(events[-1])["error"]["code"] == "shutting_down" else "broken"


class Books(NamedTuple):
    """What the ledger says in the end. Money in nano-USD."""

    records: dict[str, int]  # request id to cost
    spent: int
    held: int
    holds: int


def books(env: dict[str, str]) -> Books:
    """The books of a gateway that has ended, from its SQLite file."""
    with sqlite3.connect(Path(env["GATEWAY_DATA_DIR"]) / "gateway.db") as file:
        records = dict(file.execute("SELECT request_id, cost FROM records").fetchall())
        spent, held = file.execute("SELECT coalesce(sum(spent), 0), coalesce(sum(held), 0) FROM balances").fetchone()
        (holds,) = file.execute("SELECT count(*) FROM holds WHERE NOT lapsed").fetchone()
    file.close()
    return Books(records, spent, held, holds)


def audited(env: dict[str, str], outcomes: list[Outcome]) -> Books:
    """The books, after a look whether they are right: settled is recorded, nothing is held, each answered call is booked."""
    found = books(env)
    assert (found.held, found.holds) == (0, 0)
    assert sum(found.records.values()) == found.spent
    answered = [one for one in outcomes if one.kind in ("whole", "in band")]
    assert len({one.request for one in answered}) == len(answered)
    assert [one for one in answered if found.records.get(one.request, 0) <= 0] == []
    assert [one for one in outcomes if one.kind == "broken"] == []
    return found


def ended(server: Server, within: float) -> int:
    """The exit code of a process that was told to end, and did so in that many seconds."""
    return server.process.wait(within)
