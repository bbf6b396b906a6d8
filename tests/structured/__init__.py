"""Tests of the schema checks, the validation and the repair; and a model that says what a test tells it to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from asgi_llm_gateway._asgi import Receive, Scope, Send

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GOOD = '{"name": "Ada", "age": 36}'
BAD = '{"name": "Ada", "age": "secret-age"}'
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
DIALECTS = tuple(PATHS)
JSON = (b"content-type", b"application/json")
SSE = (b"content-type", b"text/event-stream; charset=utf-8")


def asking(dialect: str, schema: Any = PERSON, **more: Any) -> dict[str, Any]:
    """A request for an answer in a schema."""
    said = [{"role": "user", "content": "Who?"}]
    if dialect == "chat":
        wanted: Any = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}}
        return {"model": "m", "messages": said, "response_format": wanted, **more}
    if dialect == "responses":
        wanted = {"type": "json_schema", "name": "person", "strict": True, "schema": schema}
        return {"model": "m", "input": "Who?", "text": {"format": wanted}, **more}
    wanted = {"type": "json_schema", "schema": schema}
    return {"model": "m", "max_tokens": 100, "messages": said, "output_config": {"format": wanted}, **more}


def tooling(dialect: str, schema: Any = PERSON, **more: Any) -> dict[str, Any]:
    """A request with the strict tool ``save``."""
    said = [{"role": "user", "content": "Save it."}]
    if dialect == "chat":
        function = {"name": "save", "strict": True, "parameters": schema}
        return {"model": "m", "messages": said, "tools": [{"type": "function", "function": function}], **more}
    tool: dict[str, Any] = {"name": "save", "strict": True}
    if dialect == "responses":
        tool |= {"type": "function", "parameters": schema}
        return {"model": "m", "input": said, "tools": [tool], **more}
    return {"model": "m", "max_tokens": 100, "messages": said, "tools": [{**tool, "input_schema": schema}], **more}


def usage_of(dialect: str, tokens: tuple[int, int]) -> dict[str, int]:
    """A usage object."""
    names = ("prompt_tokens", "completion_tokens") if dialect == "chat" else ("input_tokens", "output_tokens")
    return dict(zip(names, tokens, strict=True))


def saying(dialect: str, *texts: str, tokens: tuple[int, int] = (10, 20), **more: Any) -> dict[str, Any]:
    """A whole answer of these texts. ``finish``, ``refusal``."""
    finish = more.get("finish")
    usage = usage_of(dialect, tokens)
    if dialect == "chat":
        choices = [
            {
                "index": at,
                "message": {"role": "assistant", "content": text, "refusal": more.get("refusal")},
                "finish_reason": finish or "stop",
            }
            for at, text in enumerate(texts)
        ]
        return {"id": "c1", "object": "chat.completion", "choices": choices, "usage": usage}
    if dialect == "responses":
        parts: list[Any] = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": parts}
        status = "incomplete" if finish else "completed"
        return {"id": "r1", "object": "response", "status": status, "output": [item], "usage": usage}
    blocks = [{"type": "text", "text": text} for text in texts]
    return {
        "id": "m1", "type": "message", "role": "assistant", "content": blocks, "stop_reason": finish or "end_turn",
        "usage": usage,
    }  # fmt: skip


def calling(dialect: str, *arguments: str, tokens: tuple[int, int] = (10, 20)) -> dict[str, Any]:
    """A whole answer that calls ``save`` with each of these arguments."""
    usage = usage_of(dialect, tokens)
    if dialect == "chat":
        calls = [
            {"id": f"call_{at}", "type": "function", "function": {"name": "save", "arguments": one}}
            for at, one in enumerate(arguments)
        ]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "usage": usage}
    if dialect == "responses":
        items = [
            {"type": "function_call", "id": f"fc_{at}", "call_id": f"call_{at}", "name": "save", "arguments": one}
            for at, one in enumerate(arguments)
        ]
        return {"status": "completed", "output": items, "usage": usage}
    blocks = [
        {"type": "tool_use", "id": f"call_{at}", "name": "save", "input": json.loads(one)}
        for at, one in enumerate(arguments)
    ]
    return {"type": "message", "content": blocks, "stop_reason": "tool_use", "usage": usage}


def event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return (b"" if name is None else b"event: " + name.encode() + b"\n") + b"data: " + raw + b"\n\n"


def streaming(dialect: str, *pieces: str, tokens: tuple[int, int] = (10, 20), finish: str | None = None) -> list[bytes]:
    """A stream whose one text comes in these pieces."""
    text = "".join(pieces)
    usage = usage_of(dialect, tokens)
    if dialect == "chat":
        deltas = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
        last = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish or "stop"}]}
        counts = {"choices": [], "usage": usage}
        return [*map(event, deltas), event(last), event(counts), event(b"[DONE]")]
    if dialect == "responses":
        place: dict[str, Any] = {"output_index": 0, "content_index": 0, "item_id": "msg_1"}
        whole = saying(dialect, text, tokens=tokens, finish=finish)
        kind = "response.incomplete" if finish else "response.completed"
        told: list[dict[str, Any]] = [
            {"type": "response.created", "response": {"status": "in_progress", "output": []}},
            *({"type": "response.output_text.delta", **place, "delta": piece} for piece in pieces),
            {"type": "response.output_text.done", **place, "text": text},
            {"type": "response.content_part.done", **place, "part": whole["output"][0]["content"][0]},
            {"type": "response.output_item.done", "output_index": 0, "item": whole["output"][0]},
            {"type": kind, "response": whole},
        ]
        return [event({**one, "sequence_number": at}, one["type"]) for at, one in enumerate(told)]
    told = [
        {"type": "message_start", "message": {"content": [], "usage": {**usage, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": p}} for p in pieces),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": finish or "end_turn"}, "usage": usage},
        {"type": "message_stop"},
    ]
    return [event(one, one["type"]) for one in told]


def text_of(dialect: str, answer: Mapping[str, Any]) -> str:
    """The text of a whole answer."""
    if dialect == "chat":
        return str(answer["choices"][0]["message"]["content"])
    if dialect == "responses":
        return str(answer["output"][0]["content"][0]["text"])
    return str(answer["content"][0]["text"])


def texts_of_stream(dialect: str, body: bytes) -> set[str]:
    """Each way in which a stream tells its text: the deltas together, and what says all of it."""
    deltas, wholes = "", set()
    for line in body.decode().split("\n"):
        if not line.startswith("data: {"):
            continue
        one = json.loads(line[6:])
        if dialect == "chat":
            deltas += "".join(choice["delta"].get("content") or "" for choice in one["choices"])
        elif dialect == "messages":
            deltas += one.get("delta", {}).get("text", "")
        elif one["type"] == "response.output_text.delta":
            deltas += one["delta"]
        elif one["type"] == "response.output_text.done":
            wholes.add(one["text"])
        elif one["type"] == "response.content_part.done":
            wholes.add(one["part"]["text"])
        elif one["type"] == "response.output_item.done":
            wholes.add(one["item"]["content"][0]["text"])
        elif one["type"] in ("response.completed", "response.incomplete"):
            wholes.add(text_of(dialect, one["response"]))
    return {deltas, *wholes}


class Model:
    """A model server that is an ASGI app and knows nothing of the gateway: it gives its answers in order, the last for ever.

    Args:
        answers: Each a dictionary (JSON), a list of events (a stream), or a status and a body.
    """

    def __init__(self, *answers: dict[str, Any] | list[bytes] | tuple[int, Any], headers: Iterable[Any] = ()) -> None:
        self._answers = answers
        self._headers = list(headers)
        self.asked: list[dict[str, Any]] = []
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        body, more = b"", True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            body += message.get("body", b"")
            more = message.get("more_body", False)
        answer = self._answers[min(len(self.asked), len(self._answers) - 1)]
        self.asked.append(json.loads(body))
        self.scopes.append(scope)
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        if isinstance(content, list):
            await send({"type": "http.response.start", "status": status, "headers": [SSE, *self._headers]})
            for one in content:
                await send({"type": "http.response.body", "body": one, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = [JSON, (b"content-length", b"%d" % len(raw)), *self._headers]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": raw[:7], "more_body": True})
        await send({"type": "http.response.body", "body": raw[7:]})
