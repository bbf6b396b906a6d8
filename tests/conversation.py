"""Drive an ASGI app by hand: message by message, with hang-ups where the test wants them.

In-process HTTP clients buffer the response; here time, order and disconnects belong to the test.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

Headers = Iterable[tuple[bytes, bytes]]

CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
JSON = (b"content-type", b"application/json")


class Answer:
    """A whole answer."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.messages = messages
        start: dict[str, Any] = messages[0] if messages else {"status": 0, "headers": []}
        self.status: int = start["status"]
        self.headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])
        self.complete = bool(messages) and not messages[-1].get("more_body", False)

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object."""
        found: dict[str, Any] = self.json()["error"]
        return found

    @property
    def events(self) -> list[str]:
        """The data of an event stream."""
        return [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]


class Talk:
    """One call under way."""

    def __init__(self, app: Any, scope: dict[str, Any], pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._out: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()
        self.messages: list[dict[str, Any]] = []
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._pieces:
            body = self._pieces.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self._pieces)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self._gate.wait()
        self._out.put_nowait(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._gone.set()  # servers say "disconnect" from then on

    def pause(self) -> None:
        """Read nothing: the app's ``send`` waits."""
        self._gate.clear()

    def resume(self) -> None:
        """Read again."""
        self._gate.set()

    async def next(self, timeout: float = 10.0) -> dict[str, Any]:
        """The app's next message; what the app raised, if it ended instead."""
        getting = asyncio.ensure_future(self._out.get())
        await asyncio.wait({getting, self.task}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done() and self.task.done() and self._out.empty():
            getting.cancel()
            self.task.result()
            raise AssertionError("the app ended and said nothing more")
        async with asyncio.timeout(timeout):
            message = await getting
        self.messages.append(message)
        return message

    async def hang_up(self, timeout: float = 10.0) -> None:
        """The client leaves; returns when the app has ended."""
        self._gone.set()
        self._gate.set()
        async with asyncio.timeout(timeout):
            await asyncio.wait({self.task})
        self.task.result()

    async def answer(self, timeout: float = 30.0) -> Answer:
        """All the rest."""
        async with asyncio.timeout(timeout):
            await asyncio.wait({self.task})
        self.task.result()
        while not self._out.empty():
            self.messages.append(self._out.get_nowait())
        return Answer(self.messages)


def scope_of(
    path: str = "/v1/chat/completions", *, method: str = "POST", headers: Headers = (), **more: Any
) -> dict[str, Any]:
    """An ASGI http scope."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        **more,
    }


@asynccontextmanager
async def call(
    app: Any,
    body: Any = None,
    path: str = "/v1/chat/completions",
    *,
    headers: Headers = (JSON,),
    cut: int = 0,
    **more: Any,
) -> AsyncIterator[Talk]:
    """A call; ``body`` is JSON (or bytes, as they are), sent in pieces of ``cut`` bytes where that is not 0."""
    raw = body if isinstance(body, bytes) else (b"" if body is None else json.dumps(body).encode())
    pieces = [raw[at : at + cut] for at in range(0, len(raw), cut)] if cut else [raw]
    talk = Talk(app, scope_of(path, headers=headers, **more), pieces or [b""])
    try:
        yield talk
    finally:
        if not talk.task.done():
            talk.task.cancel()
            await asyncio.wait({talk.task})


async def ask(app: Any, body: Any = None, path: str = "/v1/chat/completions", **more: Any) -> Answer:
    """A call and its whole answer."""
    async with call(app, body, path, **more) as talk:
        return await talk.answer()


async def get(app: Any, path: str, *, headers: Headers = (), **more: Any) -> Answer:
    """A GET."""
    async with call(app, None, path, headers=headers, method="GET", **more) as talk:
        return await talk.answer()
