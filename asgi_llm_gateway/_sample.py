"""How many tokens a stream had made when it broke off: read from the last pieces of it, only when somebody asks."""

from __future__ import annotations

import math
from typing import Any

import orjson

from ._sse import data_of, split
from .tokens import text_tokens

_KEPT = 16 * 1024  # bytes in each of the two halves that are kept


class StreamSample:
    """The last pieces of an event stream, and how much came in all. Adding a piece costs an append and a sum.

    Attributes:
        events: Data events that came.
        size: Bytes that came.
    """

    __slots__ = ("_before", "_first", "_now", "_now_size", "events", "size")

    def __init__(self) -> None:
        self.events = 0
        self.size = 0
        self._first = b""
        self._before: list[bytes] = []
        self._now: list[bytes] = []
        self._now_size = 0

    def add(self, piece: bytes, events: int) -> None:
        """Whole events that came."""
        self.events += events
        length = len(piece)
        self.size += length
        self._now.append(piece)
        self._now_size += length
        if self._now_size > _KEPT:
            self._first = self._first or self._now[0]
            self._before, self._now, self._now_size = self._now, [], 0

    @property
    def head(self) -> bytes:
        """The stream's first piece."""
        return self._first or (self._now[0] if self._now else b"")

    @property
    def tail(self) -> bytes:
        """The pieces that are kept."""
        return b"".join((*self._before, *self._now))

    def text(self) -> tuple[str, int, float]:
        """The text in the pieces kept, the events that had some, and how many times longer the whole stream was."""
        tail = self.tail
        found = [text for event in split(tail) if (text := text_of(event))]
        return "".join(found), len(found), self.size / len(tail) if tail else 1.0


def text_of(event: bytes) -> str:
    """What a model made in one event of any dialect: content, reasoning, arguments of tool calls."""
    data = data_of(event)
    if data is None:
        return ""
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        return ""
    if type(chunk) is not dict:
        return ""
    parts: list[str] = []
    choices = chunk.get("choices")
    if type(choices) is list:
        for choice in choices:
            if type(choice) is dict:
                _gather(choice.get("delta"), parts)
                _gather(choice.get("text"), parts)
    else:
        _gather(chunk.get("delta"), parts)
    return "".join(parts)


_TEXT = (
    "content",
    "reasoning_content",
    "reasoning",
    "refusal",
    "text",
    "thinking",
    "partial_json",
    "arguments",
    "name",
)


def _gather(value: Any, parts: list[str]) -> None:
    if type(value) is str:
        parts.append(value)
    elif type(value) is list:
        for one in value:
            _gather(one, parts)
    elif type(value) is dict:
        for name in _TEXT:
            inner = value.get(name)
            if type(inner) is str:
                parts.append(inner)
        for name in ("tool_calls", "function", "function_call", "custom"):
            _gather(value.get(name), parts)


def streamed_tokens(sample: StreamSample, model: str | None = None) -> int:
    """About so many tokens were streamed: those of the text, at least one for each event that had some.

    Of a stream that is longer than what is kept, the last pieces stand for all of it.
    """
    text, events, times = sample.text()
    return math.ceil(max(text_tokens(text, model), events) * times)
