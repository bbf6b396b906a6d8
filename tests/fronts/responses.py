"""What the tests of the Responses front share: requests, chat chunks, and the official SDK's own reading of a stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx2
import openai
from openai import Stream, omit
from openai.lib.streaming.responses._responses import ResponseStream
from openai.types.responses import ResponseStreamEvent

from asgi_llm_gateway.fronts.responses import ResponsesFront
from asgi_llm_gateway.wire import LLMRequest, Route, parse

FRONT = ResponsesFront()
ROUTE = Route("metered", "responses", "/v1/responses")
# It validates each event by its type instead of taking what comes.
STRICT = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:1/v1", _strict_response_validation=True)
USAGE: dict[str, Any] = {
    "prompt_tokens": 30,
    "completion_tokens": 12,
    "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
TOLD = {
    "input_tokens": 30,
    "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 5},
    "output_tokens": 12,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 42,
}
DONE = b"data: [DONE]\n\n"


def request(**fields: Any) -> LLMRequest:
    """A parsed request."""
    return parse(ROUTE, json.dumps({"model": "m", "input": "hello", **fields}).encode())


def function(name: str = "weather", **more: Any) -> dict[str, Any]:
    """A tool, flat."""
    return {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}, **more}


def event(value: Any) -> bytes:
    """A chat event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    """A chat chunk."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **more}
    return event({"id": "c", "created": 1700000000, "model": "real-model", "choices": [choice]})


def call_piece(index: int, id: str | None = None, name: str | None = None, arguments: str | None = None) -> bytes:
    """A chunk with a piece of a call."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return chunk({"tool_calls": [{"index": index, **({"id": id} if id else {}), "function": function}]})


def usage_chunk(usage: Any = USAGE) -> bytes:
    """The chunk that tells the usage."""
    return event({"id": "c", "created": 1700000000, "model": "real-model", "choices": [], "usage": usage})


def encoded(*chunks: bytes, **fields: Any) -> bytes:
    """A whole chat stream through the front, and its end."""
    stream = FRONT.stream(request(stream=True, **fields))
    return b"".join([stream.feed(one) for one in chunks]) + stream.finish()


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """The data of a Responses stream, of which it is checked that names agree and numbers have no gap."""
    found = []
    for number, one in enumerate(each for each in stream.split(b"\n\n") if each and not each.startswith(b":")):
        name, data = one.split(b"\n")
        told = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + told["type"].encode()
        assert told["sequence_number"] == number
        found.append(told)
    return found


def kinds(stream: bytes) -> list[str]:
    """The types of the events, without their common first word."""
    return [told["type"].removeprefix("response.") for told in events_of(stream)]


def raw_stream(stream: bytes) -> Stream[ResponseStreamEvent]:
    """The SDK's stream over bytes."""
    sent = httpx2.Request("POST", "http://127.0.0.1:1/v1/responses")
    answer = httpx2.Response(200, content=stream, request=sent)
    return Stream(cast_to=ResponseStreamEvent, response=answer, client=STRICT)  # type: ignore[arg-type]


def read_by_sdk(stream: bytes) -> ResponseStream[Any]:
    """The SDK's accumulator after it has read a stream, each event validated."""
    reader: ResponseStream[Any] = ResponseStream(
        raw_stream=raw_stream(stream), text_format=omit, input_tools=omit, starting_after=None
    )
    return reader.until_done()


def texts(events: Sequence[dict[str, Any]], kind: str) -> str:
    """The deltas of one kind, put together."""
    return "".join(told["delta"] for told in events if told["type"] == f"response.{kind}.delta")
