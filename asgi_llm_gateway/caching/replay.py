"""A kept answer told again, in the form that the caller asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from .._sse import EventSplitter, EventTooLong, data_of, split
from ..errors import Header
from ..records import Usage
from ..wire import LLMRequest
from . import _chat, _messages, _responses
from ._chat import Untellable
from .complete import usage_event_of
from .kept import Kept

_STREAM_HEAD: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_WHOLE_HEAD: tuple[Header, ...] = ((b"content-type", b"application/json"),)
_OF_FORM = frozenset({b"content-type", b"cache-control", b"x-accel-buffering"})
_DONE = b"data: [DONE]\n\n"


class Told(NamedTuple):
    """An answer as it goes out."""

    head: tuple[Header, ...]
    body: bytes

    def __repr__(self) -> str:
        return f"Told({len(self.body)} bytes)"  # no answer


def told_again(kept: Kept, request: LLMRequest) -> Told | None:
    """A kept answer in the form that ``request`` asks for; ``None`` where it can't be told so.

    A stream tells the usage if the caller asked for that, and a document always does, where the answer ever told it.
    """
    dialect = request.route.dialect
    try:
        if request.stream == kept.stream:
            if not kept.stream:
                return Told(kept.head, kept.body)
            if dialect not in ("chat", "completions"):
                return Told(kept.head, kept.body)
            if request.wants_usage and not kept.told:
                return None
            return Told(kept.head, kept.body + (kept.usage if request.wants_usage else b"") + kept.tail)
        if dialect == "embeddings":
            return None
        if kept.stream:
            return _as_whole(kept, str(dialect)) if kept.told else None
        return _as_stream(kept, str(dialect), wants_usage=request.wants_usage)
    except (Untellable, orjson.JSONDecodeError, LookupError, TypeError, AttributeError, ValueError):
        return None


def _as_whole(kept: Kept, dialect: str) -> Told:
    chunks = _objects(kept.body + kept.usage)
    if dialect == "messages":
        answer = _messages.whole(chunks)
    elif dialect == "responses":
        answer = _responses.whole(chunks)
    else:
        answer = _chat.whole(chunks, dialect)
    head = tuple(one for one in kept.head if one[0] not in _OF_FORM)
    return Told((*_WHOLE_HEAD, *head), orjson.dumps(answer))


def _as_stream(kept: Kept, dialect: str, *, wants_usage: bool) -> Told:
    answer = orjson.loads(kept.body)
    if dialect == "messages":
        body = b"".join(_messages.events(answer))
    elif dialect == "responses":
        body = b"".join(_responses.events(answer))
    else:
        events, usage = _chat.events(answer, dialect)
        body = b"".join([*events, usage if wants_usage else b"", _DONE])
    head = tuple(one for one in kept.head if one[0] not in _OF_FORM)
    return Told((*_STREAM_HEAD, *head), body)


def _objects(events: bytes) -> Iterator[dict[str, Any]]:
    for event in split(events):
        data = data_of(event)
        if data is not None:
            yield orjson.loads(data)


class UsageFilter:
    """A chat stream for a caller who wants to be told of usage otherwise than the one for whom it was made.

    Args:
        wanted: Whether this caller wants the event that tells the usage.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._splitter = EventSplitter()
        self._first: dict[str, Any] | None = None
        self._told = False

    def feed(self, data: bytes, usage: Usage | None) -> bytes:
        """The next bytes, cut anywhere; ``usage`` is what is known of it by now. Raises EventTooLong."""
        whole = self._splitter.whole(data)
        if not whole:
            return b""
        if self._first is not None and whole.find(b'"usage"') < 0 and whole.find(b"[DONE]") < 0:
            return whole
        return b"".join([self._look(event, usage) for event in split(whole)])

    def rest(self) -> bytes:
        """What has come of an event without an end."""
        return self._splitter.rest

    def _look(self, event: bytes, usage: Usage | None) -> bytes:
        data = data_of(event)
        if data is None:
            return event
        if data.startswith(b"[DONE]"):
            if self._wanted and not self._told and usage is not None and self._first is not None:
                return usage_event_of(self._first, usage) + event
            return event
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            return event
        if type(chunk) is not dict:
            return event
        self._first = self._first or chunk
        if type(chunk.get("usage")) is dict:
            self._told = True
            if not chunk.get("choices") and not self._wanted:
                return b""
        return event


__all__ = ["EventTooLong", "Told", "UsageFilter", "told_again"]
