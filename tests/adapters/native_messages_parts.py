"""Streams of Messages as the provider sends them, and what the official client reads in them."""

from __future__ import annotations

import json
from typing import Any

import httpx2
from anthropic import Anthropic
from anthropic._streaming import Stream
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import RawMessageStreamEvent

from asgi_llm_gateway.adapters._native_messages import MessagesStream

TOLD = {"input_tokens": 25, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 10, "output_tokens": 1}


def event(type: str, newline: str = "\n", **fields: Any) -> bytes:
    """An event as the provider sends it."""
    data = json.dumps({"type": type, **fields}, separators=(",", ":"), ensure_ascii=False)
    return f"event: {type}{newline}data: {data}{newline}{newline}".encode()


def start(**usage: Any) -> bytes:
    """The first event."""
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [],
               "stop_reason": None, "stop_sequence": None, "usage": usage or TOLD}  # fmt: skip
    return event("message_start", message=message)


def piece(text: str, index: int = 0) -> bytes:
    """A piece of text."""
    return event("content_block_delta", index=index, delta={"type": "text_delta", "text": text})


def words(*texts: str, index: int = 0) -> bytes:
    """A block of text."""
    opened = event("content_block_start", index=index, content_block={"type": "text", "text": ""})
    return b"".join([opened, *(piece(text, index) for text in texts), event("content_block_stop", index=index)])


def delta(reason: str | None = "end_turn", **usage: Any) -> bytes:
    """The news of the end."""
    told: dict[str, Any] = {"usage": usage} if usage else {}
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, **told)


END = delta(output_tokens=7)
STOP = event("message_stop")
PING = event("ping")


def read(*said: bytes, size: int | None = None) -> tuple[bytes, MessagesStream]:
    """What goes on of a stream."""
    stream = MessagesStream("anthropic")
    whole = b"".join(said)
    step = size or len(whole) or 1
    out = b"".join([stream.feed(whole[at : at + step]) for at in range(0, len(whole), step)])
    return out + stream.finish(), stream


CLIENT = Anthropic(api_key="x")


def accumulated(said: bytes) -> Any:
    """The message that the official client puts together."""
    response = httpx2.Response(
        200, content=said, headers={"content-type": "text/event-stream"}, request=httpx2.Request("POST", "http://x")
    )
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    kind: Any = RawMessageStreamEvent
    events: Any = Stream(cast_to=kind, response=response, client=CLIENT)
    for one in events:
        snapshot = accumulate_event(event=one, current_snapshot=snapshot, json_bufs=buffers)
    return snapshot


LEGS = [{"input_tokens": 135, "output_tokens": 5}, {"input_tokens": 30, "output_tokens": 7}]
