"""A paced fake provider: each event of a stream is a write of its own, as a real model's are.

``python -m benchmarks.paced [--port 9102] [--events 200] [--gap-ms 2]``. ``GET /stats`` tells what it saw: aborted
streams show whether a gateway passes a client's hang-up on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

SEEN = {"requests": 0, "streams": 0, "aborted": 0, "open": 0}


def event(delta: dict[str, Any] | None, finish: str | None = None, usage: dict[str, int] | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    data = {
        "id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1700000000, "model": "gpt-4",
        "system_fingerprint": "fp_bench", "choices": [] if delta is None else [choice], "usage": usage,
    }  # fmt: skip
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def completion() -> bytes:
    message = {"role": "assistant", "content": "All good things. " * 30, "refusal": None}
    return json.dumps(
        {
            "id": "chatcmpl-bench", "object": "chat.completion", "created": 1700000000, "model": "gpt-4",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": 57, "completion_tokens": 120, "total_tokens": 177,
                "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0},
            },
            "system_fingerprint": "fp_bench",
        }
    ).encode()  # fmt: skip


def events(count: int) -> list[bytes]:
    usage = {"prompt_tokens": 57, "completion_tokens": count - 2, "total_tokens": 55 + count}
    words = [framed(event({"content": f" tok{number}"})) for number in range(count - 2)]
    ends = [framed(event({}, "stop")), framed(event(None, None, usage)), framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"]
    return [framed(event({"role": "assistant", "content": ""})), *words, *ends]


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


class Provider(asyncio.Protocol):
    """One connection of the fake provider."""

    def __init__(self, script: list[bytes], answer: bytes, gap: float) -> None:
        self._script = script
        self._answer = answer
        self._gap = gap
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            found = head.find(b"content-length:")
            length = int(head[found + 15 :].split(b"\r\n", 1)[0]) if found >= 0 else 0
            if len(self._data) < end + 4 + length:
                return
            body, self._data = self._data[end + 4 : end + 4 + length], self._data[end + 4 + length :]
            if head.startswith(b"get /stats"):
                self._transport.write(whole(json.dumps(SEEN).encode()))
                continue
            SEEN["requests"] += 1
            if b'"stream":true' in body.replace(b" ", b""):
                SEEN["streams"] += 1
                SEEN["open"] += 1
                self._at = 0
                self._transport.write(HEAD)
                self._tick()
            else:
                self._transport.write(self._answer)

    def _tick(self) -> None:
        self._transport.write(self._script[self._at])
        self._at += 1
        if self._at == len(self._script):
            SEEN["open"] -= 1
            self._timer = None
            return
        self._timer = asyncio.get_running_loop().call_later(self._gap, self._tick)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            SEEN["aborted"] += 1
            SEEN["open"] -= 1


async def serve(port: int, count: int, gap: float) -> None:
    script, answer = events(count), whole(completion())
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Provider(script, answer, gap), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=9102)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--gap-ms", type=float, default=2)
    options = parser.parse_args()
    import uvloop

    uvloop.run(serve(options.port, options.events, options.gap_ms / 1000))


if __name__ == "__main__":
    main()
