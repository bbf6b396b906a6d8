"""Whether an answer is whole and may stand for another call, and what of it is kept.

Reasons why an answer ends: OpenAI API reference ("Chat", "Completions", "Responses") and Anthropic API reference
("Messages"), as of autumn 2026.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from .._sse import EventSplitter, data_of, split
from ..records import Usage
from ..wire import Dialect

# The answer was filtered, broke off, or goes on in another call.
_NEVER = frozenset({"content_filter", "error", "refusal", "pause_turn"})
# It ended at a limit: its own end only if the request named that limit.
_LIMITS = frozenset({"length", "max_tokens", "max_output_tokens"})
_GATEWAYS = ("cost_usd", "obfuscation")
"""Fields of one call: what it cost, and padding against eavesdroppers ("must not be cached")."""
_OWN_MARKS = (b'"cost_usd"', b'"obfuscation"')


class Parts(NamedTuple):
    """A whole answer in its parts; see Kept."""

    body: bytes
    usage: bytes = b""
    tail: bytes = b""
    told: bool = False

    def __repr__(self) -> str:
        return f"Parts({len(self.body)} bytes)"  # no answer


def ends_well(reason: Any, *, limited: bool) -> bool:
    """Whether an answer that ended for that reason is the whole answer to its request."""
    return reason not in _NEVER and (limited or reason not in _LIMITS) if type(reason) is str else reason is None


def whole_parts(dialect: Dialect | None, body: bytes, *, limited: bool) -> Parts | None:
    """The parts of a JSON answer; ``None`` where it is not whole, or none.

    Args:
        dialect: The dialect that it is in.
        body: The answer.
        limited: Whether the request named an output limit.
    """
    answer = _object(body)
    if answer is None or answer.get("error"):
        return None
    told = type(answer.get("usage")) is dict
    if dialect in ("chat", "completions"):
        choices = answer.get("choices")
        if type(choices) is not list or not choices:
            return None
        for choice in choices:
            if type(choice) is not dict or choice.get("error"):
                return None
            if not ends_well(choice.get("finish_reason"), limited=limited):
                return None
    elif dialect == "embeddings":
        if type(answer.get("data")) is not list or not answer["data"]:
            return None
    elif dialect == "messages":
        if type(answer.get("content")) is not list or not ends_well(answer.get("stop_reason"), limited=limited):
            return None
    elif not _response_ended(answer, limited=limited):
        return None
    return Parts(body, told=told)


def _response_ended(answer: dict[str, Any], *, limited: bool) -> bool:
    """Whether a Responses object is a whole answer."""
    if type(answer.get("output")) is not list:
        return False
    status = answer.get("status")
    if status == "incomplete":
        details = answer.get("incomplete_details")
        reason = details.get("reason") if type(details) is dict else "error"
        return type(reason) is str and reason in _LIMITS and limited
    return status == "completed"


def stream_parts(dialect: Dialect | None, data: bytes, *, limited: bool, usage: Usage | None = None) -> Parts | None:
    """The parts of an event stream; ``None`` where it is not whole, or none.

    Comments and pings go: they are signs of life of one call. ``usage`` is put into a chat stream whose caller did not ask
    to be told.
    """
    whole = _whole_events(data)
    if whole is None:
        return None
    if dialect in ("chat", "completions"):
        return _chat_parts(whole, limited=limited, usage=usage)
    kept: list[bytes] = []
    ended = False
    reason: Any = None
    for event in split(whole):
        payload = data_of(event)
        read = _object(payload) if payload is not None else None
        if read is None:
            if payload is None:
                continue
            return None
        kind = read.get("type")
        if kind == "ping":
            continue
        if kind in ("error", "response.failed"):
            return None
        if kind == "message_delta" and type(read.get("delta")) is dict:
            reason = read["delta"].get("stop_reason") or reason
        elif kind == "message_stop":
            ended = type(reason) is str and ends_well(reason, limited=limited)
        elif kind in ("response.completed", "response.incomplete"):
            response = read.get("response")
            # Some servers leave the output out of the last event: its items were told before.
            ended = type(response) is dict and _response_ended(
                {**response, "output": response.get("output") or []}, limited=limited
            )
        kept.append(without_own(event))
    return Parts(b"".join(kept), told=True) if ended else None


def _whole_events(data: bytes) -> bytes | None:
    """A stream's events; ``None`` where the last one lacks its blank line, so that no client took it for one."""
    splitter = EventSplitter(len(data) + 1)
    whole = splitter.whole(data)
    rest = splitter.rest.strip()
    if rest == b"data: [DONE]":
        return whole + rest + b"\n\n"
    return None if rest else whole


def _chat_parts(data: bytes, *, limited: bool, usage: Usage | None) -> Parts | None:
    kept: list[bytes] = []
    reasons: dict[int, Any] = {}
    usage_event = tail = b""
    first: dict[str, Any] | None = None
    told = False
    for event in split(data):
        payload = data_of(event)
        if payload is None:
            continue
        if payload.startswith(b"[DONE]"):
            tail = b"data: [DONE]\n\n"
            break
        chunk = _object(payload)
        if chunk is None or chunk.get("error"):
            return None
        if first is None:
            first = chunk
        choices = chunk.get("choices")
        choices = choices if type(choices) is list else []
        for choice in choices:
            if type(choice) is not dict or choice.get("error"):
                return None
            index = choice.get("index")
            index = index if type(index) is int else 0
            reasons[index] = choice.get("finish_reason") or reasons.get(index)
        if type(chunk.get("usage")) is dict:
            told = True
            if not choices:
                usage_event = without_own(event)
                continue
        kept.append(without_own(event))
    if first is None or not reasons:
        return None
    if any(type(reason) is not str or not ends_well(reason, limited=limited) for reason in reasons.values()):
        return None
    if not told and usage is not None and not usage.estimated:
        usage_event = usage_event_of(first, usage)
        told = True
    return Parts(b"".join(kept), usage_event, tail, told)


def usage_event_of(chunk: dict[str, Any], usage: Usage) -> bytes:
    """The event that tells a chat stream's usage, as the stream of ``chunk`` would tell it."""
    told: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total,
    }
    if usage.cached or usage.cache_write:
        told["prompt_tokens_details"] = {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write}
    if usage.reasoning:
        told["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    head = {name: chunk[name] for name in ("id", "object", "created", "model", "system_fingerprint") if name in chunk}
    return b"data: " + orjson.dumps({**head, "choices": [], "usage": told}) + b"\n\n"


def without_own(event: bytes) -> bytes:
    """An event without the fields that are one call's own; as it came, byte for byte, where it has none of them."""
    if event.find(_OWN_MARKS[0]) < 0 and event.find(_OWN_MARKS[1]) < 0:
        return event
    payload = data_of(event)
    read = _object(payload) if payload is not None else None
    if read is None or not any(name in read for name in _GATEWAYS):
        return event
    for name in _GATEWAYS:
        read.pop(name, None)
    kind = event.partition(b"data:")[0]
    return kind + b"data: " + orjson.dumps(read) + b"\n\n"


def without_cost(events: bytes) -> bytes:
    """Whole events without what the call that they were made for cost."""
    if events.find(_OWN_MARKS[0]) < 0:
        return events
    return b"".join([without_own(event) if event.find(_OWN_MARKS[0]) >= 0 else event for event in split(events)])


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        read = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return read if type(read) is dict else None


__all__ = ["Parts", "ends_well", "stream_parts", "usage_event_of", "whole_parts", "without_cost", "without_own"]
