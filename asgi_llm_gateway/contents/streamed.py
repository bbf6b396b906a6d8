"""A stream as the answer that it tells, as far as it came: one that broke off counts, with what it said until then.

Sources: OpenAI API reference ("Chat", "Completions" and "Responses", streaming) and Anthropic API reference ("Streaming
messages"), as of autumn 2026. Other than the cache's reading of a stream, this one is lenient: what it does not know it
passes over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from .._sse import EventSplitter, data_of, split
from ..wire import Dialect
from .parts import fields_of, items_of, text_of

Item = dict[str, Any]

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


def answer_of(dialect: Dialect | None, data: bytes) -> Item:
    """The JSON answer that an event stream tells; one without the fields of an end where it did not come to one."""
    events = _events(data)
    if dialect == "messages":
        return _messages(events)
    if dialect == "responses":
        return _responses(events)
    return _chat(events)


def _events(data: bytes) -> Iterator[Item]:
    splitter = EventSplitter(len(data) + 1)
    for event in [*split(splitter.whole(data)), splitter.rest]:
        said = data_of(event)
        if said is None or said.startswith(b"[DONE]"):
            continue
        try:
            read = orjson.loads(said)
        except orjson.JSONDecodeError:
            continue  # the last one of a stream that was cut
        if type(read) is dict:
            yield read


class _Text:
    """A text that comes in pieces, each of which costs its own length only."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def add(self, piece: Any) -> None:
        """The next piece, where it is one."""
        if type(piece) is str:
            self.pieces.append(piece)

    def __str__(self) -> str:
        return "".join(self.pieces)


def _place(told: Item, name: str = "index") -> int:
    at = told.get(name)
    return at if type(at) is int else 0


# -- chat and completions ----------------------------------------------------------------------------------------------


class _Choice:
    """One choice of a chat or a completion."""

    def __init__(self) -> None:
        self.role = "assistant"
        self.reason: Any = None
        self.texts: dict[str, _Text] = {}
        self.calls: dict[int, tuple[Item, _Text]] = {}
        self.function: tuple[Item, _Text] | None = None

    def add(self, told: Item) -> None:
        """What one chunk tells of it."""
        self.reason = told.get("finish_reason") or self.reason
        if "text" in told:
            self.texts.setdefault("content", _Text()).add(told["text"])
        delta = fields_of(told.get("delta"))
        self.role = text_of(delta.get("role")) or self.role
        for name in _TEXTS:
            if delta.get(name):
                self.texts.setdefault(name, _Text()).add(delta[name])
        for one in items_of(delta.get("tool_calls")):
            call = fields_of(one)
            known, said = self.calls.setdefault(_place(call), ({}, _Text()))
            known["id"] = call.get("id") or known.get("id")
            function = fields_of(call.get("function")) or fields_of(call.get("custom"))
            known["name"] = function.get("name") or known.get("name")
            said.add(function.get("arguments", function.get("input")))
        function = fields_of(delta.get("function_call"))
        if function:
            known, said = self.function = self.function or ({}, _Text())
            known["name"] = function.get("name") or known.get("name")
            said.add(function.get("arguments"))

    def whole(self) -> Item:
        """The choice as a whole answer tells it."""
        message: Item = {"role": self.role, **{name: str(said) for name, said in self.texts.items()}}
        if self.calls:
            message["tool_calls"] = [
                {"id": known["id"], "function": {"name": known["name"], "arguments": str(said)}}
                for known, said in self.calls.values()
            ]
        if self.function is not None:
            known, said = self.function
            message["function_call"] = {"name": known["name"], "arguments": str(said)}
        return {"message": message, "finish_reason": self.reason}


def _chat(events: Iterator[Item]) -> Item:
    choices: dict[int, _Choice] = {}
    for chunk in events:
        for one in items_of(chunk.get("choices")):
            told = fields_of(one)
            choices.setdefault(_place(told), _Choice()).add(told)
    return {"choices": [choices[index].whole() for index in sorted(choices)]}


# -- messages ----------------------------------------------------------------------------------------------------------

_DELTAS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def _messages(events: Iterator[Item]) -> Item:
    blocks: dict[int, tuple[Item, _Text]] = {}
    reason: Any = None
    begun = False
    for event in events:
        kind = event.get("type")
        if kind == "message_start":
            begun = True
        elif kind == "content_block_start":
            blocks[_place(event)] = (dict(fields_of(event.get("content_block"))), _Text())
        elif kind == "content_block_delta" and _place(event) in blocks:
            delta = fields_of(event.get("delta"))
            name = _DELTAS.get(text_of(delta.get("type")))
            if name is not None:
                blocks[_place(event)][1].add(delta.get(name))
        elif kind == "message_delta":
            reason = fields_of(event.get("delta")).get("stop_reason") or reason
    if not begun and not blocks:
        return {}
    return {"content": [_block(*blocks[index]) for index in sorted(blocks)], "stop_reason": reason}


def _block(block: Item, said: _Text) -> Item:
    told = str(said)
    kind = block.get("type")
    if kind in ("text", "thinking"):
        block[kind] = text_of(block.get(kind)) + told
    elif told:
        try:
            block["input"] = orjson.loads(told)
        except orjson.JSONDecodeError:  # cut short
            block["input"] = told
    return block


# -- responses ---------------------------------------------------------------------------------------------------------

_SAID = {
    "response.output_text.delta": ("message", "output_text"),
    "response.refusal.delta": ("message", "output_text"),
    "response.reasoning_text.delta": ("reasoning", "text"),
    "response.reasoning_summary_text.delta": ("reasoning", "text"),
    "response.function_call_arguments.delta": ("function_call", ""),
    "response.custom_tool_call_input.delta": ("custom_tool_call", ""),
}
_ENDINGS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


def _responses(events: Iterator[Item]) -> Item:
    done: dict[int, Item] = {}
    begun: dict[int, tuple[Item, _Text]] = {}
    last: Item = {}
    for event in events:
        kind = text_of(event.get("type"))
        at = _place(event, "output_index")
        if kind == "response.output_item.done":
            done[at] = fields_of(event.get("item"))
        elif kind == "response.output_item.added":
            begun[at] = (dict(fields_of(event.get("item"))), _Text())
        elif kind in _SAID:
            begun.setdefault(at, ({"type": _SAID[kind][0], "role": "assistant"}, _Text()))[1].add(event.get("delta"))
        elif kind in _ENDINGS:
            last = fields_of(event.get("response"))
    if items_of(last.get("output")):
        return last
    # It broke off, or its server leaves the output out of the last event: what was told before.
    items = {at: _item(item, str(said)) for at, (item, said) in begun.items()} | done
    return {"status": last.get("status"), "incomplete_details": last.get("incomplete_details"),
            "output": [items[at] for at in sorted(items)]}  # fmt: skip


def _item(item: Item, said: str) -> Item:
    kind = item.get("type")
    if kind == "message":
        return {**item, "content": [{"type": "output_text", "text": said}] if said else []}
    if kind == "reasoning":
        return {**item, "summary": [{"text": said}] if said else []}
    if kind == "function_call":
        return {**item, "arguments": said}
    if kind == "custom_tool_call":
        return {**item, "input": said}
    return item


__all__ = ["answer_of"]
