"""What the tests of the Messages front share: requests, chunks, and the official SDK as the reader of answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import anthropic
import httpx2
from anthropic import NOT_GIVEN
from anthropic._streaming import Stream
from anthropic.lib.streaming import MessageStream
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message import Message as TypedMessage
from pydantic import TypeAdapter

from asgi_llm_gateway.fronts.messages import MessagesFront
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

FRONT = MessagesFront()
HELLO = [{"role": "user", "content": "hello"}]
DONE = b"data: [DONE]\n\n"
PDF = "JVBERi0xLjQK"
PNG = "iVBORw0KGgo="
_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
_CLIENT = anthropic.Anthropic(api_key="none", base_url="http://127.0.0.1:9")


def request(**fields: Any) -> LLMRequest:
    """A request as the gateway reads it."""
    told = {"model": "m", "max_tokens": 64, "messages": HELLO, **fields}
    return parse(Route("metered", METERED["/v1/messages"], "/v1/messages"), json.dumps(told).encode())


def asked(**fields: Any) -> dict[str, Any]:
    """A request in chat's words."""
    return FRONT.request(request(**fields)).data


def dropped(**fields: Any) -> tuple[str, ...]:
    """What of a request is left out and told."""
    return tuple(FRONT.request(request(**fields)).dropped)


def turns(*messages: dict[str, Any], **fields: Any) -> Any:
    """The messages of a request in chat's words; a conversation that ends with the assistant is given an end."""
    given = [*messages] if messages[-1]["role"] != "assistant" else [*messages, {"role": "user", "content": "go on"}]
    found = asked(messages=given, **fields)["messages"]
    return found if len(given) == len(messages) else found[:-1]


def user(*blocks: Any) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": list(blocks)}


def text(words: str, **more: Any) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": words, **more}


def use(id: str, name: str = "weather", **given: Any) -> dict[str, Any]:
    """A call in the history."""
    return {"type": "tool_use", "id": id, "name": name, "input": given}


def result(id: str, content: Any = "sunny", **more: Any) -> dict[str, Any]:
    """What a tool said."""
    return {"type": "tool_result", "tool_use_id": id, "content": content, **more}


# -- what the provider says --------------------------------------------------------------------------------------------


def completion(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> bytes:
    """A whole answer of chat's."""
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    told = {"id": "chatcmpl-abc", "object": "chat.completion", "created": 1, "model": "gpt-x", "usage": usage, **more}
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return json.dumps({"choices": [choice], **told}).encode()


def chunk(delta: Any = None, finish: str | None = None, **more: Any) -> bytes:
    """One event of a chat stream."""
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish}
    told = {"id": "chatcmpl-abc", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x"}
    return b"data: " + json.dumps({**told, "choices": [choice], **more}).encode() + b"\n\n"


def call(index: Any, id: str | None = None, name: str | None = None, arguments: Any = None) -> bytes:
    """An event with a piece of a call."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    entry = {"index": index, "id": id, "type": "function" if id else None, "function": function}
    return chunk({"tool_calls": [{key: value for key, value in entry.items() if value is not None}]})


def used(prompt: int = 7, completion: int = 3, **more: Any) -> bytes:
    """The event that ``include_usage`` asks for."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **more}
    return chunk(choices=[], usage=usage)


# -- what the client reads ---------------------------------------------------------------------------------------------


def answered(body: bytes, **fields: Any) -> TypedMessage:
    """A whole answer, put into Anthropic's words and validated by the SDK's own types."""
    return Message.model_validate_json(FRONT.response(request(**fields), body))


def streamed(*events: bytes, end: bool = True, **fields: Any) -> bytes:
    """A stream in Anthropic's words."""
    encoder = FRONT.stream(request(stream=True, **fields))
    out = b"".join([encoder.feed(event) for event in events])
    return out + encoder.finish() if end else out


def events_of(out: bytes) -> list[Any]:
    """The events, each with its two lines and typed as the SDK types them; pings are left out."""
    found = []
    for event in out.split(b"\n\n")[:-1]:
        first, second = event.split(b"\n")
        told = json.loads(second.removeprefix(b"data: "))
        assert first == b"event: " + told["type"].encode()
        if told["type"] not in ("ping", "error"):
            _EVENT.validate_python(told)
        if told["type"] != "ping":
            found.append(told)
    return found


def kinds(out: bytes) -> list[str]:
    """The types of the events."""
    return [event["type"] for event in events_of(out)]


def check_order(events: Iterable[Any]) -> None:
    """A whole stream is in order: one message, blocks one after the other, each delta in the block that is open."""
    opened: int | None = None
    said = [event["type"] for event in events]
    assert said[0] == "message_start"
    assert said[-2:] == ["message_delta", "message_stop"]
    assert [said.count(kind) for kind in ("message_start", "message_delta", "message_stop")] == [1, 1, 1]
    before = -1
    for event in events:
        if event["type"] == "content_block_start":
            assert opened is None
            assert event["index"] == before + 1
            opened = before = event["index"]
        elif event["type"] in ("content_block_delta", "content_block_stop"):
            assert event["index"] == opened
            opened = None if event["type"] == "content_block_stop" else opened
    assert opened is None


def read(out: bytes) -> TypedMessage:
    """The message that the official SDK puts together from a stream's bytes; the stream is in order."""
    check_order(events_of(out))
    answer = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=out)
    kind: Any = RawMessageStreamEvent
    raw: Any = Stream(cast_to=kind, response=answer, client=_CLIENT)
    found: Any = MessageStream(raw, NOT_GIVEN).get_final_message()
    return TypedMessage.model_validate(found.to_dict())


def content_of(message: TypedMessage) -> list[Any]:
    """What a message says, briefly: texts, ``("thinking", text)``, ``(name, input)``."""
    found: list[Any] = []
    for block in message.content:
        if block.type == "text":
            found.append(block.text)
        elif block.type == "thinking":
            found.append(("thinking", block.thinking))
        elif block.type == "tool_use":
            found.append((block.name, block.input))
    return found
