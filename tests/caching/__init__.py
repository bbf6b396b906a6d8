"""Tests of kept answers; and a model server that answers every request differently, so that a wrong answer shows."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable
from typing import Any

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
TEXTS = ("chat", "completions", "responses", "messages")
JSON = (b"content-type", b"application/json")
SSE = (b"content-type", b"text/event-stream; charset=utf-8")
DONE = b"data: [DONE]\n\n"


def asking(dialect: str, text: str = "one two", **more: Any) -> dict[str, Any]:
    """A request that asks for determinism."""
    said = [{"role": "user", "content": text}]
    body: dict[str, Any] = {"model": "m", "temperature": 0}
    if dialect == "chat":
        body["messages"] = said
    elif dialect == "messages":
        body |= {"messages": said, "max_tokens": 50}
    elif dialect == "completions":
        body["prompt"] = text
    elif dialect == "responses":
        body["input"] = text
    else:
        body = {"model": "m", "input": [text]}
    return {**body, **more}


def request_of(dialect: str, **body: Any) -> LLMRequest:
    """A request as it is read."""
    path = PATHS[dialect]
    return parse(Route("metered", METERED[path], path), json.dumps(body or asking(dialect)).encode())


def event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    raw = data if isinstance(data, bytes) else json.dumps(data, separators=(",", ":")).encode()
    return (b"" if name is None else b"event: " + name.encode() + b"\n") + b"data: " + raw + b"\n\n"


def usage_of(dialect: str, tokens: tuple[int, int] = (10, 20)) -> dict[str, Any]:
    """A usage object."""
    given, made = tokens
    if dialect in ("messages", "responses"):
        return {"input_tokens": given, "output_tokens": made}
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def saying(dialect: str, text: str, *, finish: str | None = None) -> dict[str, Any]:
    """A whole answer."""
    usage = usage_of(dialect)
    if dialect == "chat":
        message = {"role": "assistant", "content": text, "refusal": None}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish or "stop", "logprobs": None}
        return {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
    if dialect == "completions":
        choice = {"text": text, "index": 0, "finish_reason": finish or "stop", "logprobs": None}
        return {
            "id": "c1",
            "object": "text_completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
    if dialect == "embeddings":
        data = [{"object": "embedding", "index": 0, "embedding": [float(len(text))]}]
        return {
            "object": "list",
            "data": data,
            "model": "m",
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
            "for": text,
        }
    if dialect == "responses":
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        status = (
            {"status": "incomplete", "incomplete_details": {"reason": finish}} if finish else {"status": "completed"}
        )
        return {
            "id": "resp_1", "object": "response", "created_at": 1, "model": "m", **status, "output": [item],
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage,
        }  # fmt: skip
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": text}],
        "stop_reason": finish or "end_turn", "stop_sequence": None, "usage": usage,
    }  # fmt: skip


def streaming(dialect: str, text: str, *, finish: str | None = None, usage: bool = True) -> list[bytes]:
    """The same answer as a stream, piece by piece."""
    whole = saying(dialect, text, finish=finish)
    pieces = [text[at : at + 5] for at in range(0, len(text), 5)] or [""]
    if dialect in ("chat", "completions"):
        kind = "chat.completion.chunk" if dialect == "chat" else "text_completion"
        head = {"id": "c1", "object": kind, "created": 1, "model": "m"}

        def chunk(told: dict[str, Any], reason: str | None = None) -> bytes:
            said = {"delta": told} if dialect == "chat" else {"text": told.get("content", "")}
            return event({**head, "choices": [{"index": 0, **said, "finish_reason": reason, "logprobs": None}]})

        events = [chunk({"role": "assistant", "content": ""})] if dialect == "chat" else []
        events += [chunk({"content": piece}) for piece in pieces]
        events.append(chunk({}, finish or "stop"))
        if usage:
            events.append(event({**head, "choices": [], "usage": whole["usage"]}))
        return [*events, DONE]
    if dialect == "messages":
        begun = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 1}}
        told: list[dict[str, Any]] = [
            {"type": "message_start", "message": begun},
            {"type": "ping"},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": one}}
                for one in pieces
            ),
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": whole["stop_reason"]}, "usage": {"output_tokens": 20}},
            {"type": "message_stop"},
        ]
        return [event(one, one["type"]) for one in told]
    place: dict[str, Any] = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    item = whole["output"][0]
    told = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {"type": "response.content_part.added", **place, "part": {**item["content"][0], "text": ""}},
        *({"type": "response.output_text.delta", **place, "delta": one, "logprobs": []} for one in pieces),
        {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": item["content"][0]},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": f"response.{whole['status']}", "response": whole},
    ]
    return [event({**one, "sequence_number": at}, one["type"]) for at, one in enumerate(told)]


def text_of(dialect: str, answer: dict[str, Any]) -> str:
    """The text of a whole answer."""
    if dialect == "chat":
        return str(answer["choices"][0]["message"]["content"])
    if dialect == "completions":
        return str(answer["choices"][0]["text"])
    if dialect == "embeddings":
        return str(answer["for"])
    if dialect == "responses":
        return str(answer["output"][0]["content"][0]["text"])
    return str(answer["content"][0]["text"])


def text_of_stream(dialect: str, body: bytes) -> str:
    """The text that a stream's pieces make up."""
    found = ""
    for line in body.decode().split("\n"):
        if line.startswith("data: {"):
            one = json.loads(line[6:])
            if dialect == "chat":
                found += "".join(choice["delta"].get("content") or "" for choice in one["choices"])
            elif dialect == "completions":
                found += "".join(choice["text"] for choice in one["choices"])
            elif dialect == "messages":
                found += one.get("delta", {}).get("text", "")
            elif one["type"] == "response.output_text.delta":
                found += one["delta"]
    return found


class Counting:
    """A model server that is an ASGI app: its answer names all that it was asked, so that no two requests get the same.

    Args:
        before: What it waits for before it answers.
        between: What it waits for before each event of a stream after the first two.
        usage: Whether a chat stream tells its usage to those who ask for it.
        finish: Why its answers end.
        headers: More headers of its answers.
        status: Their status; from 400 on its answer is an error.
    """

    def __init__(
        self,
        *,
        before: asyncio.Event | None = None,
        between: asyncio.Semaphore | None = None,
        usage: bool = True,
        finish: str | None = None,
        headers: Iterable[Any] = (),
        status: int = 200,
        length: int = 0,
    ) -> None:
        self.before = before
        self.between = between
        self.usage = usage
        self.finish = finish
        self.headers = list(headers)
        self.status = status
        self.length = length
        self.asked: list[dict[str, Any]] = []
        self.scopes: list[Scope] = []
        self.cancelled = 0
        self.finished = 0
        self.sent = 0

    @property
    def calls(self) -> int:
        """How often it was called."""
        return len(self.scopes)

    def words(self, scope: Scope, body: dict[str, Any]) -> str:
        """What it answers."""
        said = json.dumps(
            [scope["path"], {name: body[name] for name in body if name not in ("stream", "stream_options")}]
        )
        return "w" * self.length + hashlib.sha256(said.encode()).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        assert scope["type"] == "http", scope["type"]  # a server takes it for an app without a lifespan
        self.scopes.append(scope)
        try:
            await self._answer(scope, receive, send)
            self.finished += 1
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw, more = b"", True
        while more:
            message = await receive()
            assert message["type"] == "http.request", message
            raw += message.get("body", b"")
            more = message.get("more_body", False)
        body = json.loads(raw)
        self.asked.append(body)
        if self.before is not None:
            await self.before.wait()
        dialect = next(name for name, path in PATHS.items() if scope["path"].endswith(path))
        if self.status != 200:
            told = {"error": {"message": "no", "type": "t", "param": None, "code": f"c{self.calls}"}}
            await send({"type": "http.response.start", "status": self.status, "headers": [JSON, *self.headers]})
            await send({"type": "http.response.body", "body": json.dumps(told).encode()})
            return
        text = self.words(scope, body)
        if body.get("stream"):
            usage = self.usage and (body.get("stream_options") or {}).get("include_usage") is True
            await send({"type": "http.response.start", "status": 200, "headers": [SSE, *self.headers]})
            for at, one in enumerate(streaming(dialect, text, finish=self.finish, usage=usage)):
                if at > 1 and self.between is not None:
                    await self.between.acquire()
                await send({"type": "http.response.body", "body": one, "more_body": True})
                self.sent += 1
            await send({"type": "http.response.body", "body": b""})
            return
        answer = json.dumps(saying(dialect, text, finish=self.finish)).encode()
        length = (b"content-length", b"%d" % len(answer))
        await send({"type": "http.response.start", "status": 200, "headers": [JSON, length, *self.headers]})
        await send({"type": "http.response.body", "body": answer[:9], "more_body": True})
        await send({"type": "http.response.body", "body": answer[9:]})
