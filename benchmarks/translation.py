"""What putting one dialect into another costs: ``python -m benchmarks.translation``.

CPU microseconds of this thread, the least of several repeats. A JSON call is its request and its answer, from the parsed
body to the bytes that are sent; the stream's event is one piece of text or of a call's arguments. The first row passes chat
on as it is. The goals: at most 60 us a JSON call and 15 us an event.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import Adapter
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.adapters.translated import FRONTS, Translated
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

from .paced import completion

WORDS = "All good things come to those who wait, and to those who ask. "
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [(f"tool_{number}", WORDS * 4) for number in range(20)]
COUNT = 400  # events of a stream

OPENAI = OpenAIAdapter("openai", "https://api.example.com/v1", "key")
ANTHROPIC = AnthropicAdapter("anthropic", "https://api.example.com", "key")


def asked(path: str, **fields: Any) -> LLMRequest:
    """A request as the gateway reads it."""
    return parse(Route("metered", METERED[path], path), json.dumps({"model": "gpt-4o", **fields}).encode())


def chat(*, agent: bool, stream: bool) -> LLMRequest:
    """A question, or a turn of an agent: a system, twenty tools and ten rounds."""
    if not agent:
        return asked(
            "/v1/chat/completions", messages=[{"role": "user", "content": WORDS * 4}], max_tokens=64, stream=stream
        )
    rounds = [
        message
        for number in range(10)
        for message in (
            {"role": "assistant", "content": WORDS, "tool_calls": [
                {"id": f"c{number}", "type": "function", "function": {"name": "tool_1", "arguments": '{"city":"Paris"}'}}]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": WORDS * 10},
        )
    ]  # fmt: skip
    tools = [
        {"type": "function", "function": {"name": name, "description": told, "parameters": SCHEMA}}
        for name, told in TOOLS
    ]
    messages = [{"role": "system", "content": WORDS * 20}, {"role": "user", "content": WORDS}, *rounds]
    return asked("/v1/chat/completions", messages=messages, tools=tools, max_tokens=64, stream=stream)


def messages(*, agent: bool, stream: bool) -> LLMRequest:
    """The same for Anthropic's Messages."""
    if not agent:
        return asked("/v1/messages", messages=[{"role": "user", "content": WORDS * 4}], max_tokens=64, stream=stream)
    rounds = [
        message
        for number in range(10)
        for message in (
            {"role": "assistant", "content": [
                {"type": "text", "text": WORDS},
                {"type": "tool_use", "id": f"c{number}", "name": "tool_1", "input": {"city": "Paris"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"c{number}", "content": WORDS * 10}]},
        )
    ]  # fmt: skip
    tools = [{"name": name, "description": told, "input_schema": SCHEMA} for name, told in TOOLS]
    system = [{"type": "text", "text": WORDS * 20, "cache_control": {"type": "ephemeral"}}]
    said = [{"role": "user", "content": WORDS}, *rounds]
    return asked("/v1/messages", messages=said, system=system, tools=tools, max_tokens=64, stream=stream)


def responses(*, agent: bool, stream: bool) -> LLMRequest:
    """The same for OpenAI's Responses."""
    if not agent:
        return asked("/v1/responses", input=WORDS * 4, max_output_tokens=64, stream=stream, store=False)
    rounds = [
        item
        for number in range(10)
        for item in (
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": WORDS}]},
            {"type": "function_call", "call_id": f"c{number}", "name": "tool_1", "arguments": '{"city":"Paris"}'},
            {"type": "function_call_output", "call_id": f"c{number}", "output": WORDS * 10},
        )
    ]
    tools = [
        {"type": "function", "name": name, "description": told, "parameters": SCHEMA, "strict": False}
        for name, told in TOOLS
    ]
    said = [{"role": "user", "content": WORDS}, *rounds]
    fields: dict[str, Any] = {"input": said, "instructions": WORDS * 20, "tools": tools, "max_output_tokens": 64}
    return asked("/v1/responses", **fields, stream=stream, store=False)


def chat_events(*, calls: bool) -> list[bytes]:
    """A chat stream of pieces of text, or of arguments."""
    head = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1700000000, "model": "gpt-4o"}

    def event(delta: Any, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return b"data: " + json.dumps({**head, "choices": [choice], **more}, separators=(",", ":")).encode() + b"\n\n"

    if not calls:
        return [event({"role": "assistant", "content": ""}), *(event({"content": f" tok{n}"}) for n in range(COUNT))]
    opener = {"index": 0, "id": "c1", "type": "function", "function": {"name": "tool_1", "arguments": '{"city":"'}}
    pieces = ({"index": 0, "function": {"arguments": f"tok{number}"}} for number in range(COUNT))
    return [event({"tool_calls": [one]}) for one in (opener, *pieces)]


def anthropic_events(*, calls: bool) -> list[bytes]:
    """The same as Anthropic streams it."""

    def event(kind: str, **fields: Any) -> bytes:
        told = json.dumps({"type": kind, **fields}, separators=(",", ":"))
        return f"event: {kind}\ndata: {told}\n\n".encode()

    block: dict[str, Any] = {"type": "text", "text": ""}
    if calls:
        block = {"type": "tool_use", "id": "c1", "name": "tool_1", "input": {}}
    pieces = [
        {"type": "input_json_delta", "partial_json": f"tok{n}"} if calls else {"type": "text_delta", "text": f" tok{n}"}
        for n in range(COUNT)
    ]
    usage = {"input_tokens": 57, "output_tokens": 1}
    begun = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": [], "usage": usage}
    return [
        event("message_start", message=begun),
        event("content_block_start", index=0, content_block=block),
        *(event("content_block_delta", index=0, delta=piece) for piece in pieces),
    ]


def anthropic_answer() -> bytes:
    """A message, as long as the completion."""
    text = json.loads(completion())["choices"][0]["message"]["content"]
    told = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
            "content": [{"type": "text", "text": text}], "usage": {"input_tokens": 57, "output_tokens": 120}}  # fmt: skip
    return json.dumps(told).encode()


def least(work: Callable[[], object], repeats: int = 15, seconds: float = 0.05) -> float:
    """Microseconds of CPU for ``work``, the least of the repeats of about so many seconds each."""
    work()
    begun = time.thread_time()
    work()
    times = max(1, int(seconds / max(time.thread_time() - begun, 1e-6)))
    best = 1e9
    for _ in range(repeats):
        begun = time.thread_time()
        for _ in range(times):
            work()
        best = min(best, (time.thread_time() - begun) / times * 1e6)
    return best


def json_call(adapter: Adapter, request: LLMRequest, answer: bytes) -> float:
    """Microseconds for a request and its answer."""

    def work() -> None:
        adapter.request(request, "gpt-4o")
        adapter.response(request, answer)

    return least(work)


def event(adapter: Adapter, request: LLMRequest, events: list[bytes]) -> float:
    """Microseconds for an event of a stream, fed one by one."""
    adapter.request(request, "gpt-4o")

    def work() -> None:
        feed = adapter.stream(request).feed
        for one in events:
            feed(one)

    return least(work) / len(events)


def main() -> None:
    """Print the table."""
    rows: list[tuple[str, Adapter, Callable[..., LLMRequest], bytes, Callable[..., list[bytes]]]] = [
        ("chat as it is", OPENAI, chat, completion(), chat_events),
        ("messages on chat", Translated(OPENAI, FRONTS["messages"], "messages"), messages, completion(), chat_events),
        (
            "responses on chat",
            Translated(OPENAI, FRONTS["responses"], "responses"),
            responses,
            completion(),
            chat_events,
        ),
        ("chat on anthropic", ANTHROPIC, chat, anthropic_answer(), anthropic_events),
    ]
    print(f"{'CPU us':18} {'JSON call':>10} {'an agent`s':>10} {'event':>8} {'of a call':>10}")
    for name, adapter, ask, answer, events in rows:
        try:
            found = [
                json_call(adapter, ask(agent=False, stream=False), answer),
                json_call(adapter, ask(agent=True, stream=False), answer),
                event(adapter, ask(agent=False, stream=True), events(calls=False)),
                event(adapter, ask(agent=False, stream=True), events(calls=True)),
            ]
        except NotImplementedError:
            print(f"{name:18} not there yet")
            continue
        print(f"{name:18} {found[0]:10.1f} {found[1]:10.1f} {found[2]:8.1f} {found[3]:10.1f}")


if __name__ == "__main__":
    main()
