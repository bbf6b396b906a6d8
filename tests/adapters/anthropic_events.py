"""A stream as Anthropic sends it, event by event, and what a client makes of the chunks that come of it."""

from __future__ import annotations

import json
from typing import Any

from asgi_llm_gateway.adapters._anthropic_stream import AnthropicStream
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

ADAPTER = AnthropicAdapter("anthropic", "https://api.example.com", "sk-ant-abcdefghijklmnop")
TOLD = {"input_tokens": 25, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 10, "output_tokens": 1}


def request(*, usage: bool = False, **fields: Any) -> LLMRequest:
    """A streaming request; ``usage`` asks for the usage event."""
    told: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}], "stream": True, **fields}
    if usage:
        told["stream_options"] = {"include_usage": True}
    return parse(Route("metered", METERED["/v1/chat/completions"], "/v1/chat/completions"), json.dumps(told).encode())


def event(type: str, newline: str = "\n", **fields: Any) -> bytes:
    """An event as the provider sends it."""
    return f"event: {type}{newline}data: {json.dumps({'type': type, **fields})}{newline}{newline}".encode()


def start(**usage: Any) -> bytes:
    """The first event."""
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [],
               "stop_reason": None, "usage": usage or TOLD}  # fmt: skip
    return event("message_start", message=message)


def block(index: int, type: str, *deltas: dict[str, Any], stop: bool = True, **fields: Any) -> bytes:
    """A whole block."""
    opened = event("content_block_start", index=index, content_block={"type": type, **fields})
    pieces = [event("content_block_delta", index=index, delta=delta) for delta in deltas]
    return b"".join([opened, *pieces, event("content_block_stop", index=index) if stop else b""])


def words(index: int, *texts: str) -> bytes:
    """A block of text."""
    return block(index, "text", *({"type": "text_delta", "text": text} for text in texts), text="")


def use(index: int, name: str, *pieces: str, stop: bool = True, input: Any = None) -> bytes:
    """A call."""
    deltas = ({"type": "input_json_delta", "partial_json": piece} for piece in pieces)
    return block(index, "tool_use", *deltas, stop=stop, id=f"toolu_{index}", name=name, input=input or {})


def thought(index: int, *texts: str, signature: str = "sig") -> bytes:
    """A block of thinking."""
    deltas: list[dict[str, Any]] = [{"type": "thinking_delta", "thinking": text} for text in texts]
    return block(
        index, "thinking", *deltas, {"type": "signature_delta", "signature": signature}, thinking="", signature=""
    )


def delta(reason: str | None = "end_turn", output: int | None = 7, **more: Any) -> bytes:
    """The news of the end."""
    usage: dict[str, Any] = {} if output is None else {"usage": {"output_tokens": output}}
    return event("message_delta", delta={"stop_reason": reason, **more}, **usage)


STOP = event("message_stop")
PING = event("ping")


def read(*said: bytes, size: int | None = None, **fields: Any) -> tuple[list[Any], AnthropicStream]:
    """The chunks that a stream becomes; ``[DONE]`` among them."""
    stream = ADAPTER.stream(request(**fields))
    assert isinstance(stream, AnthropicStream)
    whole = b"".join(said)
    step = size or len(whole) or 1
    out = b"".join(stream.feed(whole[at : at + step]) for at in range(0, len(whole), step)) + stream.finish()
    return chunks(out), stream


def chunks(out: bytes) -> list[Any]:
    """Events of an OpenAI stream; each is one ``data:`` line. Signs of life, which are comments, are passed over."""
    assert out == b"" or out.endswith(b"\n\n")
    lines = [line for line in out.decode().split("\n\n")[:-1] if line != ": ping"]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def deltas(found: list[Any]) -> list[Any]:
    """What the chunks add, in order."""
    return [chunk["choices"][0]["delta"] for chunk in found if chunk != "[DONE]" and chunk.get("choices")]


def reason(found: list[Any]) -> list[str]:
    """Why the answer ended, as often as it is told."""
    told = [chunk["choices"][0]["finish_reason"] for chunk in found if chunk != "[DONE]" and chunk.get("choices")]
    return [one for one in told if one is not None]


def calls(found: list[Any]) -> dict[int, tuple[str, str, str]]:
    """The calls as a client puts them together: by their index, from what each delta adds."""
    put: dict[int, tuple[str, str, str]] = {}
    for one in deltas(found):
        for piece in one.get("tool_calls", ()):
            id, name, arguments = put.get(piece["index"], ("", "", ""))
            function = piece["function"]
            put[piece["index"]] = (
                id + piece.get("id", ""),
                name + function.get("name", ""),
                arguments + function.get("arguments", ""),
            )
    return put
