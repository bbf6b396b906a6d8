"""What it costs to look at a request of five messages: ``python -m benchmarks.guards_validation``.

CPU microseconds of this thread, the least of several repeats. "checked" is what is refused or let pass (types, ranges, fields
that are not a client's to set, fields named twice); "read" is all of it, with the JSON parser and the record of the request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import orjson

from asgi_llm_gateway.records import Dialect
from asgi_llm_gateway.validation import check, refuse_twins
from asgi_llm_gateway.wire import METERED, Route, parse

TARGET = 10.0
"""Microseconds that checking may cost."""

TEXT = "Why is the sky blue at noon and red in the evening? Answer in two sentences, please. " * 3
TURNS = [{"role": role, "content": TEXT} for role in ("user", "assistant", "user", "assistant", "user")]
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "system", "content": TEXT}, *TURNS[1:]], "stream": True,
        "stream_options": {"include_usage": True}, "max_tokens": 256, "temperature": 0.2, "top_p": 1}  # fmt: skip
REQUESTS: dict[Dialect, dict[str, Any]] = {
    "chat": CHAT,
    "messages": {"model": "claude-sonnet-4-5", "system": TEXT, "messages": TURNS, "max_tokens": 256, "stream": True},
    "responses": {
        "model": "gpt-4o-mini",
        "instructions": TEXT,
        "input": [{"type": "message", **turn} for turn in TURNS],
        "max_output_tokens": 256,
        "stream": True,
    },
    "embeddings": {"model": "text-embedding-3-small", "input": [TEXT] * 5},
    "completions": {"model": "gpt-3.5-turbo-instruct", "prompt": [TEXT] * 5, "max_tokens": 256},
}


def least(work: Callable[[], Any], calls: int = 2000, repeats: int = 15) -> float:
    """Microseconds a call."""
    best = float("inf")
    for _ in range(repeats):
        begun = time.thread_time()
        for _ in range(calls):
            work()
        best = min(best, (time.thread_time() - begun) / calls * 1e6)
    return best


def costs(dialect: Dialect, **how: int) -> tuple[float, float]:
    """Microseconds of checking a dialect's request, and of reading it whole."""
    raw = json.dumps(REQUESTS[dialect]).encode()
    data = orjson.loads(raw)
    path = next(path for path, known in METERED.items() if known == dialect)
    route = Route("metered", dialect, path)

    def checked() -> None:
        check(dialect, data)
        refuse_twins(raw, data)

    return least(checked, **how), least(lambda: parse(route, raw), **how)


def main() -> None:
    """Print the table."""
    print(f"{'five messages, CPU us':24} {'checked':>8} {'read':>8}")
    for dialect in REQUESTS:
        checked, read = costs(dialect)
        late = "" if checked <= TARGET else f"   over {TARGET:g}"
        print(f"{dialect:24} {checked:8.1f} {read:8.1f}{late}")


if __name__ == "__main__":
    main()
