"""The floor: the thinnest ASGI pass-through there can be. No parsing, no policy: body in, body out, chunk by chunk.

``BARE_CLIENT=raw|httpx``; paths under ``/paced`` go to the paced upstream.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Any

import httptools

CLIENT = os.environ.get("BARE_CLIENT", "raw")
UPSTREAM = os.environ.get("BENCH_UPSTREAM", "127.0.0.1:9100")
PACED = os.environ.get("BENCH_PACED", "127.0.0.1:9102")
DROP = {b"connection", b"transfer-encoding", b"keep-alive", b"host", b"content-length", b"date", b"server"}


def target(path: str) -> tuple[str, str]:
    return (PACED, path[6:]) if path.startswith("/paced") else (UPSTREAM, path)


async def body_of(receive: Any) -> bytes:
    message = await receive()
    parts = [message.get("body", b"")]
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        parts.append(message.get("body", b""))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def start_of(status: int, headers: Any) -> tuple[dict[str, Any], bool]:
    kept = [(k.lower(), v) for k, v in headers if k.lower() not in DROP or k.lower() == b"content-length"]
    return {"type": "http.response.start", "status": status, "headers": kept}, any(
        k == b"content-length" for k, _ in kept
    )


async def relay(receive: Any, send: Any, start: Any, chunks: Any, close: Any) -> None:
    """Stream the answer; a disconnect of the client stops the upstream."""

    async def copy() -> None:
        await send(start)
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    copying = asyncio.ensure_future(copy())

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        copying.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        await copying
    except asyncio.CancelledError:
        await close()
    finally:
        watching.cancel()


_httpx_client: Any = None


async def over_httpx(scope: Any, receive: Any, send: Any) -> None:
    global _httpx_client
    if _httpx_client is None:
        import httpx

        limits = httpx.Limits(max_connections=4096, max_keepalive_connections=256)
        _httpx_client = httpx.AsyncClient(timeout=600, limits=limits)
    body = await body_of(receive)
    host, path = target(scope["path"])
    headers = [(k, v) for k, v in scope["headers"] if k not in DROP]
    request = _httpx_client.build_request(scope["method"], f"http://{host}{path}", content=body, headers=headers)
    response = await _httpx_client.send(request, stream=True)
    start, whole = start_of(response.status_code, response.headers.raw)
    if whole:
        data = b"".join([chunk async for chunk in response.aiter_raw()])
        await response.aclose()
        await send(start)
        await send({"type": "http.response.body", "body": data})
        return
    await relay(receive, send, start, response.aiter_raw(), response.aclose)


class Upstream(asyncio.Protocol):
    """One keep-alive connection over httptools."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.error: Exception | None = None
        self.wake: Any = None
        self.head: Any = None

    def begin(self, data: bytes) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.headers: list[tuple[bytes, bytes]] = []
        self.queue: deque[bytes] = deque()
        self.done = self.paused = False
        self.wake = None
        self.head = asyncio.get_running_loop().create_future()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.connection_lost(error)
            self.transport.abort()
            return
        if len(self.queue) > 64 and not self.done:
            self.paused = True
            self.transport.pause_reading()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.keep = self.parser.should_keep_alive()
        if not self.head.done():
            self.head.set_result(None)

    def on_body(self, body: bytes) -> None:
        self.queue.append(body)
        self.signal()

    def on_message_complete(self) -> None:
        self.done = True
        if self.paused:
            self.paused = False
            self.transport.resume_reading()
        self.signal()

    def signal(self) -> None:
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc or ConnectionError("upstream closed")
        if self.head is not None and not self.head.done():
            self.head.set_exception(self.error)
        self.signal()

    async def chunks(self) -> Any:
        while True:
            while self.queue:
                yield self.queue.popleft() if len(self.queue) == 1 else self.drain()
                if self.paused:
                    self.paused = False
                    self.transport.resume_reading()
            if self.done:
                self.release()
                return
            if self.error:
                raise self.error
            self.wake = asyncio.get_running_loop().create_future()
            await self.wake

    def drain(self) -> bytes:
        data = b"".join(self.queue)
        self.queue.clear()
        return data

    def release(self) -> None:
        if self.keep and not self.error:
            POOL.setdefault(self.host, []).append(self)
        else:
            self.transport.close()

    host = ""


POOL: dict[str, list[Upstream]] = {}


async def over_raw(scope: Any, receive: Any, send: Any) -> None:
    body = await body_of(receive)
    host, path = target(scope["path"])
    lines = [f"{scope['method']} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n".encode()]
    for name, value in scope["headers"]:
        if name not in DROP:
            lines += (name, b": ", value, b"\r\n")
    lines += (b"\r\n", body)
    pool = POOL.get(host)
    upstream: Upstream | None = None
    while pool:
        upstream = pool.pop()
        if upstream.error is None and not upstream.transport.is_closing():
            break
        upstream = None
    if upstream is None:
        address, port = host.split(":")
        _, upstream = await asyncio.get_running_loop().create_connection(Upstream, address, int(port))
        upstream.host = host
    upstream.begin(b"".join(lines))
    await upstream.head
    start, whole = start_of(upstream.status, upstream.headers)
    if whole:
        data = b"".join([chunk async for chunk in upstream.chunks()])
        await send(start)
        await send({"type": "http.response.body", "body": data})
        return
    cut = upstream.transport.abort

    async def close() -> None:
        cut()

    await relay(receive, send, start, upstream.chunks(), close)


_answer = over_httpx if CLIENT == "httpx" else over_raw


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The pass-through."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    elif scope["type"] == "http":
        await _answer(scope, receive, send)
