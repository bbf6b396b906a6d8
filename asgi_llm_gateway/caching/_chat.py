"""Chat and legacy completions: a stream as the whole answer that it tells, and back.

Source: OpenAI API reference, "Chat" and "Completions", objects and streaming, as of autumn 2026.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

Chunk = dict[str, Any]

_ONCE = frozenset({"id", "type", "role", "index", "object"})  # told once, or the same each time
_PIECES = frozenset({"content", "refusal", "reasoning_content", "reasoning", "arguments", "input", "name", "text"})


class Untellable(Exception):
    """The answer has something for which the other form has no words that are known here."""


def whole(chunks: Iterable[Chunk], dialect: str) -> Chunk:
    """The answer that a stream's chunks tell. Raises Untellable."""
    answer: Chunk = {}
    choices: dict[int, Chunk] = {}
    for chunk in chunks:
        for name, value in chunk.items():
            if name not in ("choices", "object") and (value is not None or name not in answer):
                answer[name] = value
        for told in chunk.get("choices") or ():
            index = told.get("index")
            index = index if type(index) is int else 0
            choice = choices.setdefault(index, {"index": index, "said": {}, "finish_reason": None, "logprobs": None})
            _add_choice(choice, told, dialect)
    if sorted(choices) != list(range(len(choices))):
        raise Untellable
    made = [_choice_of(choices[index], dialect) for index in range(len(choices))]
    usage = answer.pop("usage", None)
    kind = "chat.completion" if dialect == "chat" else "text_completion"
    head = {"id": answer.pop("id", ""), "object": kind, **answer, "choices": made}
    return head if usage is None else {**head, "usage": usage}


def _add_choice(choice: Chunk, told: Chunk, dialect: str) -> None:
    said = choice["said"]
    for name, value in told.items():
        if name == "delta":
            if type(value) is dict:
                _merge(said, value)
        elif name == "text" and dialect == "completions":
            said["text"] = said.get("text", "") + value
        elif name == "logprobs":
            if type(value) is dict:
                choice["logprobs"] = _extended(choice["logprobs"] or {}, value)
        elif name != "index" and value is not None:
            choice[name] = value


def _choice_of(choice: Chunk, dialect: str) -> Chunk:
    said = choice.pop("said")
    if dialect == "completions":
        return {"text": said.get("text", ""), **choice}
    message = {"role": said.pop("role", None) or "assistant", "content": said.pop("content", None), **said}
    message.setdefault("refusal", None)
    calls = message.get("tool_calls")
    if calls is not None:
        message["tool_calls"] = [{name: value for name, value in call.items() if name != "index"} for call in calls]
        message["content"] = message["content"] or None  # the opener of a stream tells an empty text
    return {"index": choice.pop("index"), "message": message, **choice}


def _merge(known: Chunk, delta: Chunk) -> None:
    """Add one delta to what was said."""
    for name, value in delta.items():
        before = known.get(name)
        if value is None:
            known.setdefault(name, None)
        elif before is None:
            known[name] = _listed(value) if type(value) is list else dict(value) if type(value) is dict else value
        elif name in _ONCE:
            known[name] = value or before
        elif type(value) is str and name in _PIECES:
            if name != "name" or value != before:  # some servers repeat a function's name with every piece
                known[name] = before + value
        elif type(value) is dict and type(before) is dict and name in ("function", "function_call", "custom"):
            _merge(before, value)
        elif type(value) is list and type(before) is list:
            _add_listed(before, value)
        else:
            raise Untellable


def _listed(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    _add_listed(found, values)
    return found


def _add_listed(known: list[Any], values: list[Any]) -> None:
    """Items with an index are pieces of the item with that index; others follow each other."""
    for value in values:
        index = value.get("index") if type(value) is dict else None
        if type(index) is not int:
            known.append(value)
            continue
        for one in known:
            if type(one) is dict and one.get("index") == index:
                if value.get("id") and one.get("id") and value["id"] != one["id"]:
                    raise Untellable  # two calls of one number
                _merge(one, value)
                break
        else:
            known.append({name: dict(item) if type(item) is dict else item for name, item in value.items()})


def _extended(known: Chunk, more: Chunk) -> Chunk:
    for name, value in more.items():
        before = known.get(name)
        known[name] = before + value if type(before) is list and type(value) is list else before or value
    return known


# -- and back ----------------------------------------------------------------------------------------------------------


def events(answer: Chunk, dialect: str) -> tuple[list[bytes], bytes]:
    """A stream that tells a whole answer: its events, and that of its usage (empty where none is told). Raises Untellable."""
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage", "object")}
    head = {"id": answer.get("id", ""), "object": _CHUNKS[dialect], **head}
    found: list[bytes] = []
    for at, choice in enumerate(answer["choices"]):
        index = choice.get("index")
        index = index if type(index) is int else at
        make = _chat_deltas if dialect == "chat" else _texts
        found += [_event({**head, "choices": [{"index": index, **told}]}) for told in make(choice)]
    usage = answer.get("usage")
    return found, _event({**head, "choices": [], "usage": usage}) if type(usage) is dict else b""


_CHUNKS = {"chat": "chat.completion.chunk", "completions": "text_completion"}


def _texts(choice: Chunk) -> list[Chunk]:
    more = {name: value for name, value in choice.items() if name != "index"}
    return [{"text": "", "logprobs": None, **more, "finish_reason": choice.get("finish_reason") or "stop"}]


def _chat_deltas(choice: Chunk) -> list[Chunk]:
    message = choice.get("message")
    if type(message) is not dict or message.get("audio") is not None:
        raise Untellable
    role = message.get("role") or "assistant"
    deltas: list[Chunk] = [{"role": role, "content": "" if message.get("content") is not None else None}]
    for name, value in message.items():
        if name in ("role", "tool_calls", "audio") or value is None or value == "" or value == []:
            continue
        deltas.append({name: value})
    calls = message.get("tool_calls") or ()
    for at, call in enumerate(calls):
        if type(call) is not dict:
            raise Untellable
        deltas.append({"tool_calls": [{"index": at, **call}]})
    logprobs = choice.get("logprobs")
    told: list[Chunk] = [{"delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
    if logprobs is not None:
        at = next((at for at, delta in enumerate(deltas) if at and "content" in delta), 0)
        told[at]["logprobs"] = logprobs
    more = {name: value for name, value in choice.items() if name not in ("index", "message", "logprobs")}
    told.append({"delta": {}, "logprobs": None, **more, "finish_reason": choice.get("finish_reason") or "stop"})
    return told


def _event(chunk: Chunk) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


__all__ = ["Untellable", "events", "whole"]
