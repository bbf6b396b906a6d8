"""What an answer says of itself: its id, its model, why each choice ended. Read once, when the call is over.

Fields: OpenAI API reference, Chat, Completions, Embeddings, Responses; Anthropic API reference, Messages.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import orjson

from .._sample import StreamSample
from .._sse import data_of, split
from .names import short

_MOST = 256 * 1024  # bytes of JSON that are parsed for it
_LAST = 12  # events at a stream's end that are looked into
_CHOICES = 128  # whose ends are told
_LONG_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,128})"')
_STATUSES = {"completed": "stop", "failed": "error", "cancelled": "error"}
_INCOMPLETE = {"max_output_tokens": "length"}
_ENDS = (b'"finish_reason"', b'"stop_reason"', b"response.")


class Told(NamedTuple):
    """An answer's model and id, and the reasons of its choices' ends in the provider's words; ``None`` and empty: not told."""

    model: str | None = None
    id: str | None = None
    reasons: tuple[str, ...] = ()


NOTHING = Told()


def told_by(source: object) -> Told:
    """What is known from what a call kept: JSON, a stream's decoder, or who read its usage. Sound for any bytes."""
    if type(source) is bytes:
        return _of_json(source)
    sample = getattr(source, "sample", None)
    if isinstance(sample, StreamSample) and sample.events:
        return _of_stream(sample)
    body = getattr(source, "body", None)
    return _of_json(body) if type(body) is bytes and body else NOTHING


def _of_json(body: bytes) -> Told:
    if len(body) > _MOST:
        # Of embeddings, which are long: the name stands before or behind the numbers, and no text is in them.
        met = _LONG_MODEL.search(body[-1024:]) or _LONG_MODEL.search(body[:1024])
        plain = met is not None and body.find(b'"embedding"', 0, 4096) >= 0
        return Told(model=met[1].decode("utf-8", "replace")) if plain and met is not None else NOTHING
    answer = _parsed(body)
    if answer is None:
        return NOTHING
    reasons = _reasons(answer)
    return Told(_text(answer, "model"), _text(answer, "id"), tuple(reasons[at] for at in sorted(reasons)))


def _of_stream(sample: StreamSample) -> Told:
    """The last events tell the ends; the model and the id stand in the first one, or in each."""
    model = id = None
    reasons: dict[int, str] = {}
    for event in reversed(split(sample.tail)[-_LAST:]):
        if all(event.find(word) < 0 for word in _ENDS):
            continue
        chunk = _parsed(data_of(event))
        if chunk is None:
            continue
        response = chunk.get("response")
        whole = response if type(response) is dict else chunk
        model, id = model or _text(whole, "model"), id or _text(whole, "id")
        for at, reason in _reasons(whole).items():
            reasons.setdefault(at, reason)
    if model is None or id is None:
        for event in split(sample.head)[:2]:
            chunk = _parsed(data_of(event)) or {}
            inner = chunk.get("message") or chunk.get("response") or chunk
            if type(inner) is dict:
                model, id = model or _text(inner, "model"), id or _text(inner, "id")
    return Told(model, id, tuple(reasons[at] for at in sorted(reasons)))


def _reasons(answer: dict[str, Any]) -> dict[int, str]:
    """Why each choice ended, by its number."""
    choices = answer.get("choices")
    if type(choices) is list:
        found = {}
        for at, choice in enumerate(choices[:_CHOICES]):
            reason = choice.get("finish_reason") if type(choice) is dict else None
            if type(reason) is str:
                index = choice.get("index")
                found[index if type(index) is int else at] = short(reason)
        return found
    delta = answer.get("delta")
    stopped = answer.get("stop_reason") or (delta.get("stop_reason") if type(delta) is dict else None)
    if type(stopped) is str:
        return {0: short(stopped)}
    status = answer.get("status")
    if answer.get("object") != "response" or type(status) is not str:
        return {}
    if status == "incomplete":
        details = answer.get("incomplete_details")
        why = details.get("reason") if type(details) is dict else None
        return {0: short(_INCOMPLETE.get(why, why))} if type(why) is str else {}
    if status == "completed" and any(
        type(item) is dict and item.get("type") == "function_call" for item in _list(answer.get("output"))
    ):
        return {0: "tool_calls"}
    return {0: _STATUSES[status]} if status in _STATUSES else {}


def _list(value: Any) -> list[Any]:
    return value if type(value) is list else []


def _text(answer: dict[str, Any], name: str) -> str | None:
    value = answer.get(name)
    return short(value) if type(value) is str and value else None


def _parsed(data: bytes | None) -> dict[str, Any] | None:
    if not data:
        return None
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return found if type(found) is dict else None
