"""Responses: a stream as the whole answer that it tells, and back.

Source: OpenAI API reference, "Responses" and "Streaming events", as of autumn 2026.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from ._chat import Untellable

Item = dict[str, Any]

_ENDINGS = ("response.completed", "response.incomplete")


def whole(events: Iterable[Item]) -> Item:
    """The response that a stream's events tell: its last event holds it, but for an output that some leave out."""
    items: dict[int, Item] = {}
    last: Item | None = None
    for event in events:
        kind = event.get("type")
        if kind == "response.output_item.done" and type(event.get("item")) is dict:
            items[event.get("output_index", len(items))] = event["item"]
        elif kind in _ENDINGS:
            last = event["response"]
    if last is None:
        raise Untellable
    return last if last.get("output") or not items else {**last, "output": [items[at] for at in sorted(items)]}


def events(response: Item) -> list[bytes]:
    """A stream that tells a whole response. Raises Untellable."""
    told = _Numbered()
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    begun.pop("completed_at", None)
    begun.pop("output_text", None)
    told.say("response.created", response=begun)
    told.say("response.in_progress", response=begun)
    for index, item in enumerate(response["output"]):
        if type(item) is not dict:
            raise Untellable
        _item(told, index, item)
    told.say("response." + str(response.get("status") or "completed"), response=response)
    return told.events


class _Numbered:
    """Events with their numbers."""

    def __init__(self) -> None:
        self.events: list[bytes] = []

    def say(self, kind: str, **fields: Any) -> None:
        """One event."""
        told = orjson.dumps({"type": kind, "sequence_number": len(self.events), **fields})
        self.events.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), told))


def _item(told: _Numbered, index: int, item: Item) -> None:
    kind = item.get("type")
    opener = {**item, "status": "in_progress"} if "status" in item else dict(item)
    if kind == "message":
        opener["content"] = []
    elif kind == "reasoning":
        opener["summary"] = []
        if item.get("content"):
            opener["content"] = []
    elif kind == "function_call":
        opener["arguments"] = ""
    elif kind == "custom_tool_call":
        opener["input"] = ""
    told.say("response.output_item.added", output_index=index, item=opener)
    place = {"item_id": item.get("id"), "output_index": index}
    if kind == "message":
        for at, part in enumerate(item.get("content") or ()):
            _part(told, {**place, "content_index": at}, part)
    elif kind == "reasoning":
        for at, part in enumerate(item.get("summary") or ()):
            _summary(told, {**place, "summary_index": at}, part)
        for at, part in enumerate(item.get("content") or ()):
            text = part.get("text") or ""
            told.say("response.reasoning_text.delta", **place, content_index=at, delta=text)
            told.say("response.reasoning_text.done", **place, content_index=at, text=text)
    elif kind == "function_call":
        said = item.get("arguments") or ""
        told.say("response.function_call_arguments.delta", **place, delta=said)
        told.say("response.function_call_arguments.done", **place, arguments=said, name=item.get("name"))
    elif kind == "custom_tool_call":
        said = item.get("input") or ""
        told.say("response.custom_tool_call_input.delta", **place, delta=said)
        told.say("response.custom_tool_call_input.done", **place, input=said)
    told.say("response.output_item.done", output_index=index, item=item)


def _part(told: _Numbered, place: Item, part: Any) -> None:
    kind = part.get("type") if type(part) is dict else None
    if kind == "output_text":
        text, logprobs = part.get("text") or "", part.get("logprobs") or []
        told.say("response.content_part.added", **place, part={**part, "text": "", "annotations": [], "logprobs": []})
        told.say("response.output_text.delta", **place, delta=text, logprobs=logprobs)
        for at, one in enumerate(part.get("annotations") or ()):
            told.say("response.output_text.annotation.added", **place, annotation_index=at, annotation=one)
        told.say("response.output_text.done", **place, text=text, logprobs=logprobs)
    elif kind == "refusal":
        said = part.get("refusal") or ""
        told.say("response.content_part.added", **place, part={**part, "refusal": ""})
        told.say("response.refusal.delta", **place, delta=said)
        told.say("response.refusal.done", **place, refusal=said)
    else:
        raise Untellable
    told.say("response.content_part.done", **place, part=part)


def _summary(told: _Numbered, place: Item, part: Any) -> None:
    text = part.get("text") if type(part) is dict else None
    if type(text) is not str:
        raise Untellable
    told.say("response.reasoning_summary_part.added", **place, part={**part, "text": ""})
    told.say("response.reasoning_summary_text.delta", **place, delta=text)
    told.say("response.reasoning_summary_text.done", **place, text=text)
    told.say("response.reasoning_summary_part.done", **place, part=part)


__all__ = ["events", "whole"]
