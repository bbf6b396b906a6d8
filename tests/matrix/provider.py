"""Three providers as one ASGI app: ``/openai``, ``/anthropic`` and ``/vendor``, each with the API and the rules of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any, NamedTuple

from . import speaks_chat, speaks_messages, speaks_responses
from .model import Counts, Failure, Heard, Said, think

KEYS = {"openai": "sk-openai-0123456789abcdef", "anthropic": "sk-ant-0123456789abcdef", "vendor": "vk-0123456789abcdef"}
"""What each takes for its key."""


class Asked(NamedTuple):
    """A request that came."""

    provider: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Providers:
    """The app.

    Attributes:
        asked: What was asked, in order.
        heard: What was understood of it, where it was.
        billed: The tokens of each answer that was begun.
        left: How often the other side went away while an answer was due.
        go: Set by the test: an answer that is to break off does so only now. It is set from the start.
        objections: What was refused that the test had not asked to be refused: the gateway wrote something wrong.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.asked: list[Asked] = []
        self.heard: list[Heard] = []
        self.billed: list[Counts] = []
        self.objections: list[str] = []
        self.left = 0
        self.go = threading.Event()
        self.go.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return
        raw, more = b"", True
        while more:
            message = await receive()
            raw, more = raw + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        _, name, path = scope["path"].split("/", 2)
        asked = Asked(name, "/" + path, headers, json.loads(raw))
        self.asked.append(asked)
        heard = Heard()
        try:
            dialect = self._dialect(asked)
            heard = self._hear(dialect, asked)
            self.heard.append(heard)
            if path.endswith("/count_tokens"):
                await _tell(send, 200, {"input_tokens": 2000 + len(heard.system)})
                return
            said = think(heard)
        except Failure as error:
            if not heard.command.startswith("fail "):
                self.objections.append(f"{name}: {error}")
            await _refuse(send, name, error)
            return
        self.billed.append(said.counts)
        await self._answer(dialect, asked, heard, said, receive, send)

    def _dialect(self, asked: Asked) -> str:
        """Which API it is, for those who may use it. Raises Failure."""
        key = asked.headers.get("authorization")
        if asked.provider == "anthropic":  # which takes either
            key = asked.headers.get("x-api-key", key)
        if (key or "").removeprefix("Bearer ") != KEYS[asked.provider]:
            raise Failure(401, "invalid key")
        if asked.headers.get("content-type") != "application/json":
            raise Failure(400, "content-type: must be application/json")
        there = {"anthropic": {"/v1/messages": "messages", "/v1/messages/count_tokens": "messages"},
                 "openai": {"/v1/chat/completions": "chat", "/v1/responses": "responses"},
                 "vendor": {"/v1/chat/completions": "chat"}}  # fmt: skip
        if asked.path not in there[asked.provider]:
            raise Failure(404, f"no such path: {asked.path}")
        return there[asked.provider][asked.path]

    def _hear(self, dialect: str, asked: Asked) -> Heard:
        try:
            if dialect == "messages":
                counting = asked.path.endswith("count_tokens")
                return speaks_messages.hear(asked.body, asked.headers, counting=counting)
            if dialect == "responses":
                return speaks_responses.hear(asked.body)
            return speaks_chat.hear(asked.body, strict=asked.provider == "openai")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Failure(400, f"not understood: {error!r}") from error

    async def _answer(self, dialect: str, asked: Asked, heard: Heard, said: Said, receive: Any, send: Any) -> None:
        model = asked.body["model"]
        if not heard.stream:
            if dialect == "messages":
                body = speaks_messages.whole(said, model)
            elif dialect == "responses":
                body = speaks_responses.whole(said, model, asked.body)
            else:
                body = speaks_chat.whole(said, model, thoughts=asked.provider == "vendor")
            await self._whole(body, said, receive, send)
            return
        if dialect == "messages":
            begun, rest = speaks_messages.stream(said, model)
            failed = speaks_messages.error_event("Overloaded")
        elif dialect == "responses":
            begun, rest = speaks_responses.stream(said, model, asked.body)
            failed = speaks_responses.error_event("Overloaded")
        else:
            wanted = bool((asked.body.get("stream_options") or {}).get("include_usage"))
            begun, rest = speaks_chat.stream(said, model, thoughts=asked.provider == "vendor", asked=wanted)
            failed = speaks_chat.error_event("Overloaded")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        if said.manner == "error" and self.go.is_set():  # all at once
            begun, failed = [b"".join([*begun, failed])], b""
        for piece in begun:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if said.manner == "hang":
            await self._hang(receive)
            return
        if said.manner != "whole":
            await asyncio.to_thread(self.go.wait, 20)
        if said.manner == "cut":
            raise ConnectionError("as the test wants it")
        for piece in [failed] if said.manner == "error" else rest:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _whole(self, body: dict[str, Any], said: Said, receive: Any, send: Any) -> None:
        if said.manner == "hang":
            await self._hang(receive)
            return
        raw = json.dumps(body, ensure_ascii=False).encode()
        if said.manner != "cut":
            await _tell(send, 200, body)
            return
        length = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": raw[: len(raw) // 2], "more_body": True})
        raise ConnectionError("as the test wants it")

    async def _hang(self, receive: Any) -> None:
        async with asyncio.timeout(30):
            while (await receive())["type"] != "http.disconnect":
                pass
        self.left += 1


async def _tell(send: Any, status: int, body: Any, *headers: tuple[bytes, bytes]) -> None:
    raw = json.dumps(body, ensure_ascii=False).encode()
    told = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": raw})


async def _refuse(send: Any, name: str, error: Failure) -> None:
    speaks: Any = speaks_messages if name == "anthropic" else speaks_chat
    message = f"{error} (key {KEYS[name]})"  # which must not come through
    await _tell(send, error.status, speaks.failure(error.status, message, error.param), (b"x-request-id", b"req_up"))
