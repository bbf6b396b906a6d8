"""A provider that speaks chat completions, and does by the model's name what a provider does: over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
HEAD = {"id": "chatcmpl-7", "created": 1, "model": "gpt-4o-2024-08-06"}
SAID = "It is a cat."


class Provider:
    """What it was asked.

    Attributes:
        url: Where it listens.
        asked: The headers of each request, in order.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Mapping[str, str]] = []
        self.failures: set[str] = set()


@contextmanager
def provider() -> Iterator[Provider]:
    """A running one. A model with ``flaky`` in its name fails once for each prompt, one with ``slow`` stops in mid-stream."""
    told = Provider()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            told.asked.append({name.lower(): value for name, value in self.headers.items()})
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            prompt = json.dumps(body["messages"])
            if "flaky" in body["model"] and prompt not in told.failures:
                told.failures.add(prompt)
                self._whole(503, {"error": {"message": "overloaded", "type": "server_error"}})
            elif body.get("stream"):
                self._stream(slow="slow" in body["model"])
            else:
                message = {"role": "assistant", "content": SAID}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                self._whole(200, {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE})

        def _whole(self, status: int, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.send_header("retry-after-ms", "10")
            self.end_headers()
            self.wfile.write(body)

        def _stream(self, *, slow: bool) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self._event({"delta": {"role": "assistant", "content": ""}})
            for word in SAID.split(" "):
                self._event({"delta": {"content": word + " "}})
                if slow:
                    self.connection.settimeout(30)
                    self.rfile.read(1)  # until the other side has left
                    return
            self._event({"delta": {}, "finish_reason": "stop"})
            self._chunk({**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
            self._write(b"data: [DONE]\n\n")
            self._write(b"")

        def _event(self, choice: dict[str, Any]) -> None:
            told = {"index": 0, "finish_reason": None, **choice}
            self._chunk({**HEAD, "object": "chat.completion.chunk", "choices": [told]})

        def _chunk(self, chunk: dict[str, Any]) -> None:
            self._write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

        def _write(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
