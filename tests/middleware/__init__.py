"""Tests of each middleware; and the apps that stand behind them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from asgi_llm_gateway._asgi import Receive, Scope, Send


class Stranger:
    """An app that speaks the OpenAI API and knows nothing of the gateway. It remembers what it was asked.

    Args:
        usage: Prompt and completion tokens that it reports; ``None`` reports none.
        status: The status that it answers with.
    """

    def __init__(self, usage: tuple[int, int] | None = (3, 4), *, status: int = 200) -> None:
        self.usage = usage
        self.status = status
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []

    @property
    def calls(self) -> int:
        """How often it was called."""
        return len(self.scopes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        self.scopes.append(scope)
        body, more = b"", scope["type"] == "http"
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        answer: dict[str, Any] = {"object": "chat.completion", "choices": []}
        if self.usage is not None:
            answer["usage"] = {"prompt_tokens": self.usage[0], "completion_tokens": self.usage[1]}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


class Streamer:
    """An app that streams events, and then waits for the client to leave where it is told to.

    Args:
        events: What it sends, one message an event.
        endless: Whether it goes on until it is cancelled or the client leaves.
    """

    def __init__(self, events: Sequence[bytes], *, endless: bool = False) -> None:
        self._events = events
        self._endless = endless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if self._endless and (await receive())["type"] == "http.disconnect":
            return
        await send({"type": "http.response.body", "body": b""})


class Gate:
    """An app that waits before it answers until the test lets it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.waiting = 0
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        self.waiting += 1
        self.reached.set()
        await self.open.wait()
        await self.app(scope, receive, send)


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def words(count: int) -> list[bytes]:
    """So many chunks of an answer."""
    return [event({"choices": [{"index": 0, "delta": {"content": f"w{at} "}}]}) for at in range(count)]


def counts(prompt: int, completion: int) -> bytes:
    """The usage event of a stream."""
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


DONE = event(b"[DONE]")
