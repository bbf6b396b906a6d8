"""OPA's REST data API over OPA's own engine (its Go library, out of the opa-golib-python-bindings wheel), on loopback.

``python -m tests.real.opa_rest --policy FILE.rego`` prints one line ``running on http://127.0.0.1:N``. The evaluation is
OPA's; only the HTTP shell is ours, after the documentation's "REST API":

- ``POST /v1/data/{path} {"input": x}``: 200 ``{"result": v}``, or 200 without ``result`` where it is undefined
- ``PUT /v1/policies/{id}``: 200, or 400 ``{"code": "invalid_parameter", ...}``; ``PUT /v1/data/{path}``: 204
- ``GET /v1/asked``: ours: how many questions there were, and the last input
"""

# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import argparse
import json
import sys
import threading
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--policy", action="append", default=[])
    options = parser.parse_args()

    from opa_bindings import OpaEngine, OpaError, OpaUndefinedError

    engine = OpaEngine()
    for path in options.policy:
        engine.add_policy(path, Path(path).read_text("utf-8"))
    asked: dict[str, Any] = {"count": 0, "input": None}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def reply(self, status: int, body: object | None) -> None:
            raw = b"" if body is None else json.dumps(body).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)
            self.wfile.flush()

        def refuse(self, status: int, code: str, message: str) -> None:
            self.reply(status, {"code": code, "message": message})

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_GET(self) -> None:
            if self.path == "/v1/asked":
                self.reply(200, asked)
            else:
                self.refuse(404, "resource_not_found", "no such endpoint")

        def do_POST(self) -> None:
            raw, path = self.body(), urllib.parse.urlsplit(self.path).path
            if not path.startswith("/v1/data"):
                self.refuse(404, "resource_not_found", "no such endpoint")
                return
            try:
                given = json.loads(raw) if raw else {}
            except ValueError as error:
                self.refuse(400, "invalid_parameter", f"body contains malformed input document: {error}")
                return
            with lock:
                asked["count"] += 1
                asked["input"] = given.get("input")
            dotted = ".".join(urllib.parse.unquote(part) for part in path[8:].split("/") if part)
            out: dict[str, Any] = {"decision_id": str(uuid.uuid4())}
            try:
                out["result"] = engine.eval_document(dotted, given.get("input"))
            except OpaUndefinedError:
                pass
            except OpaError as error:
                self.refuse(500, "internal_error", str(error))
                return
            self.reply(200, out)

        def do_PUT(self) -> None:
            raw, path = self.body(), urllib.parse.urlsplit(self.path).path
            try:
                if path.startswith("/v1/policies/"):
                    engine.add_policy(path[13:], raw.decode())
                    self.reply(200, {})
                elif path.startswith("/v1/data"):
                    document = json.loads(raw)
                    for part in reversed([part for part in path[8:].split("/") if part]):
                        document = {part: document}
                    engine.add_data(document)
                    self.reply(204, None)
                else:
                    self.refuse(404, "resource_not_found", "no such endpoint")
            except (OpaError, ValueError) as error:
                self.refuse(400, "invalid_parameter", str(error))

    ThreadingHTTPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    sys.stdout.write(f"running on http://127.0.0.1:{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
