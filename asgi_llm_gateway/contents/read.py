"""A call's content, whatever its dialect: what was asked and what was answered.

Only as much is read as could be kept: of a long conversation its newest messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from ..wire import Dialect
from . import anthropic, openai
from .parts import Message, Part, items_of
from .streamed import answer_of

INPUT = "gen_ai.input.messages"
OUTPUT = "gen_ai.output.messages"
SYSTEM = "gen_ai.system_instructions"
TOOLS = "gen_ai.tool.definitions"

_LEAST = 16
"""Bytes that a message or a part takes at least, once it is written down."""


@dataclass(slots=True)
class Content:
    """What was said in a call: attribute name to messages (of the tools: definitions; of the system: parts).

    Attributes:
        said: What there is, by the attribute's name.
        truncated: There was more than could be kept.
    """

    said: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    truncated: bool = False

    def __repr__(self) -> str:
        return f"Content({', '.join(self.said)})"  # nothing of what was said


def asked(dialect: Dialect | None, data: dict[str, Any], limit: int) -> Content:
    """What a request's body says, of which about ``limit`` bytes can be kept; nothing of a dialect without words."""
    content = Content()
    most = limit // _LEAST + 1
    system: list[Part] = []
    tools: list[Part] = []
    if dialect == "chat":
        messages = _newest(data.get("messages"), openai.chat_message, limit, content)
        tools = openai.chat_tools(data, most)
    elif dialect == "messages":
        messages = _newest(data.get("messages"), anthropic.message, limit, content)
        system = anthropic.blocks(data.get("system"), most)
        tools = anthropic.tools(data, most)
    elif dialect == "responses":
        given = data.get("input")
        if type(given) is str:
            messages = openai.prompt_messages(given, most)
        else:
            messages = _newest(given, openai.response_item, limit, content)
        system = openai.content_parts(data.get("instructions"), most)
        tools = openai.response_tools(data, most)
    elif dialect in ("completions", "embeddings"):
        messages = openai.prompt_messages(data.get("prompt" if dialect == "completions" else "input"), most)
    else:
        return content
    for name, value in ((INPUT, messages), (SYSTEM, system), (TOOLS, tools)):
        if value:
            content.said[name] = value
    return content


def _newest(told: Any, read: Callable[[Any, int], Message], limit: int, content: Content) -> list[Message]:
    """The newest messages that may fit."""
    found: list[Message] = []
    left = limit
    for one in reversed(items_of(told)):
        if left <= 0:
            content.truncated = True
            break
        message = read(one, left // _LEAST + 1)
        left -= _LEAST
        for part in message["parts"]:
            left -= _LEAST + sum(len(value) for value in part.values() if type(value) is str)
        found.append(message)
    found.reverse()
    return found


def answered(dialect: Dialect | None, body: bytes, *, stream: bool, limit: int) -> list[Message]:
    """What an answer says, JSON or an event stream; nothing of one that can't be read."""
    if stream:
        answer: Any = answer_of(dialect, body)
    else:
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            return []
    if type(answer) is not dict:
        return []
    most = limit // _LEAST + 1
    if dialect in ("chat", "completions"):
        return openai.choices(answer, most)
    if dialect == "responses":
        return openai.response(answer, most)
    if dialect == "messages":
        return anthropic.answer(answer, most)
    return []


__all__ = ["INPUT", "OUTPUT", "SYSTEM", "TOOLS", "Content", "answered", "asked"]
