"""A scripted provider: an ASGI app that a real server carries; it plays answers back and keeps what it was asked."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: Any


class Provider:
    """Answers in the order in which the test put them, the last one again and again.

    An answer is JSON with a status, or the pieces of a stream.

    Attributes:
        asked: What was asked since the last ``plays``.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._answers: list[tuple[int, str, list[bytes], bool]] = []

    def plays(self) -> None:
        """Forget what was."""
        self.asked.clear()
        self._answers.clear()

    def tells(self, body: Any, status: int = 200) -> None:
        """The next answer is JSON."""
        self._answers.append((status, "application/json", [json.dumps(body).encode()], False))

    def streams(self, pieces: Iterable[bytes], *, cut: bool = False) -> None:
        """The next answer is an event stream; ``cut`` breaks the connection after the last piece."""
        self._answers.append((200, "text/event-stream", list(pieces), cut))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return
        raw, more = b"", True
        while more:
            message = await receive()
            raw, more = raw + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append(Asked(scope["path"], headers, json.loads(raw)))
        status, kind, pieces, cut = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if cut:
            raise ConnectionError("as the test wants it")
        await send({"type": "http.response.body", "body": b""})
