"""What structured answers cost: CPU a call, in microseconds, with each engine. ``python -m benchmarks.structured``.

Alone: reading what a request wants (its schema known), reading and judging its answer. Round an app: the same call with and
without the layer, the answer's JSON and an event stream. Then what is bounded at its bound, in milliseconds: the largest
schema, an answer that takes the most steps, a text that takes the most mending.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from asgi_llm_gateway.errors import GatewayError
from asgi_llm_gateway.exchange import Exchange
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware
from asgi_llm_gateway.structured.compiled import SchemaCache
from asgi_llm_gateway.structured.engines import Maker
from asgi_llm_gateway.structured.fast import Fast
from asgi_llm_gateway.structured.judge import FORMS, format_of, judge
from asgi_llm_gateway.structured.plain import Plain
from asgi_llm_gateway.structured.repair import repair

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string", "enum": ["a", "b", "c"]}},
        "address": {"$ref": "#/$defs/address"},
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
    "$defs": {
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "zip"],
            "additionalProperties": False,
        }
    },
}
TEXT = '{"name": "Ada", "age": 36, "tags": ["a", "b"], "address": {"street": "Main", "zip": "12345"}}'
REQUEST: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "Who?"}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}},
}
ANSWER = {
    "id": "c1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140},
}
BODY, WHOLE = orjson.dumps(REQUEST), orjson.dumps(ANSWER)
SSE = [(b"content-type", b"text/event-stream")]
EVENTS = [
    *(
        b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"content": TEXT[at : at + 4]}}]}) + b"\n\n"
        for at in range(0, len(TEXT), 4)
    ),
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]
SCOPE = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "root_path": "", "headers": []}


class Nothing(LLMMiddleware):
    """A layer that only reads the request, as the one outside does in a stack."""

    rank = Rank.BUDGET

    async def handle(self, exchange: Exchange, scope: Any, receive: Any, send: Any) -> None:
        """See LLMMiddleware."""
        receive = await exchange.read(receive, scope)
        await self.forward(exchange, scope, receive, send)


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """An app that answers in JSON."""
    await receive()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": WHOLE})


async def events(scope: Any, receive: Any, send: Any) -> None:
    """An app that streams."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": SSE})
    for one in EVENTS:
        await send({"type": "http.response.body", "body": one, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def receive() -> Any:
    """The request."""
    return {"type": "http.request", "body": BODY}


async def send(message: Any) -> None:
    """Nobody reads it."""


def cpu(work: Callable[[], object], times: int) -> float:
    """Microseconds of CPU."""
    work()
    started = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - started) / times * 1e6


def cpu_of_app(app: Any, times: int) -> float:
    """The same of a call."""

    async def calls(count: int) -> float:
        started = time.process_time()
        for _ in range(count):
            done: Awaitable[None] = app(dict(SCOPE), receive, send)
            await done
        return (time.process_time() - started) / count * 1e6

    async def both() -> float:
        await calls(times // 10 + 1)
        return await calls(times)

    return asyncio.run(both())


def bounds(engine: type[Maker]) -> dict[str, float]:
    """What is bounded, at its bound: milliseconds."""

    def took(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        try:
            work()
        except GatewayError as error:
            print(f"    (refused: {error.error_code})")
        return (time.perf_counter() - started) * 1e3

    cache = SchemaCache(engine=engine)
    wide = {"properties": {f"p{at}": {"type": "string"} for at in range(1365)}}
    patterns = {"allOf": [{"pattern": f"[\\w.]{{1,{100 + at}}}x"} for at in range(32)]}
    recursive = {"anyOf": [{"properties": {"a": {"$ref": "#"}, "b": {"const": at}}} for at in range(9)]}
    many = {"type": "array", "items": {"enum": [{"a": at} for at in range(15)]}}
    deep: Any = {}
    for _ in range(60):
        deep = {"a": deep}
    tree, listing, text = (
        cache.get(recursive, "x"),
        cache.get(many, "x"),
        cache.get({"pattern": "(a|b)*a(a|b){99}c"}, "x"),
    )
    members = [{"a": 14}] * (listing.most // 50)
    letters = "abaab" * (listing.most // 300)
    return {
        "compile: 64 KiB": took(lambda: cache.get(wide, "x")),
        "compile: patterns": took(lambda: cache.get(patterns, "x")),
        "validate: recursive, refused": took(lambda: tree.faults(deep, 400)),
        f"validate: {len(members)} members": took(lambda: listing.faults(members, 10 * len(members))),
        "validate: the same, the last wrong": took(lambda: listing.faults([*members, 1], 10 * len(members))),
        f"validate: {len(letters)} characters, a pattern": took(lambda: text.faults(letters, len(letters))),
        "mend: 128 KiB of brackets": took(lambda: repair("{x" * 65_536, lambda *_: True)),
    }


def main() -> None:
    """Measure and tell."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--times", type=int, default=20_000)
    times = options.parse_args().times
    for engine in (Plain, Fast):
        print(engine.__name__)
        measure(engine, times)


def measure(engine: type[Maker], times: int) -> None:
    """One engine."""
    form, cache = FORMS["chat"], SchemaCache(engine=engine)
    wanted = format_of(form, REQUEST, cache)
    assert wanted is not None
    free = {**REQUEST, "response_format": None}
    lines = {
        "request that wants nothing": cpu(lambda: format_of(form, free, cache), times),
        "request, schema known": cpu(lambda: format_of(form, REQUEST, cache), times),
        "schema, new": cpu(lambda: SchemaCache(engine=engine).get(SCHEMA, "x"), times // 50),
        "answer read and judged": cpu(lambda: judge(form.pieces(orjson.loads(WHOLE), wanted), "pass"), times),
    }
    for name, app in (("JSON", plain), ("stream of 26 events", events)):
        layer = StructuredOutputMiddleware(app, streams="pass", retries=1)
        layer._cache = cache
        without = cpu_of_app(Nothing(app), times // 4)
        lines[f"{name}: without the layer"] = without
        lines[f"{name}: the layer adds"] = cpu_of_app(Nothing(layer), times // 4) - without
    for name, value in lines.items():
        print(f"{name:>44}: {value:8.2f} us")
    for name, value in bounds(engine).items():
        print(f"{name:>44}: {value:8.1f} ms")


if __name__ == "__main__":
    main()
