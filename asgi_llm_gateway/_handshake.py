"""The answers to a websocket's handshake that let nobody in."""

from __future__ import annotations

from ._asgi import JSON, Receive, Scope, Send
from .errors import GatewayError


async def refuse(scope: Scope, receive: Receive, send: Send, error: GatewayError) -> None:
    """Refuse a handshake: with the error as an HTTP answer where the server can give one, else by closing (403).

    Source: ASGI specification, "WebSocket Denial Response" (extension ``websocket.http.response``).
    """
    if (await receive())["type"] != "websocket.connect":
        return
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008, "reason": (error.error_code or "")[:100]})
        return
    body = error.body()
    headers = [JSON, (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store"), *error.headers]
    await send({"type": "websocket.http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


__all__ = ["refuse"]
