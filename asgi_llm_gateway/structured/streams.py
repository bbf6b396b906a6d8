"""Streams held against a schema: put together as they pass, or held and written anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from .._sse import EventSplitter, EventTooLong, data_of, split
from .form import Form, Key

_BATCH = 64 * 1024  # bytes that are kept as they came before their events are read


class Reading:
    """The answer that a stream tells, put together from whole events; bounded.

    Args:
        form: The stream's dialect.
        limit: Bytes of the stream; of a longer one there is no answer.
    """

    def __init__(self, form: Form, limit: int) -> None:
        self.events = 0
        """Events with data so far."""
        self.too_long = False
        self._reader = form.reader()
        self._left = limit
        self._waiting: list[bytes] = []
        self._size = 0

    def add(self, events: bytes) -> None:
        """The next events."""
        self._left -= len(events)
        if self._left < 0:
            self.too_long = True
            self._waiting.clear()
            return
        self._waiting.append(events)
        self._size += len(events)
        if self._size > _BATCH:
            self._read()

    def _read(self) -> None:
        waiting, self._waiting, self._size = b"".join(self._waiting), [], 0
        for event in split(waiting):
            data = data_of(event)
            if data is None or data.startswith(b"[DONE]"):
                continue
            self.events += 1
            try:
                read = orjson.loads(data)
            except orjson.JSONDecodeError:
                continue
            if type(read) is dict:
                self._reader.add(read)

    @property
    def failed(self) -> bool:
        """The stream told of an error."""
        self._read()
        return self._reader.failed

    def answer(self) -> dict[str, Any] | None:
        """The answer; ``None`` where the stream did not come to its end."""
        self._read()
        return self._reader.answer()


class Follower:
    """A stream that is relayed: whole events go on at once, the one that ends it waits for a verdict.

    Args:
        form: The stream's dialect.
        limit: See Reading.
    """

    def __init__(self, form: Form, limit: int) -> None:
        self.reading = Reading(form, limit)
        self.ended = False
        """The event that ends the stream has come: from then on nothing is given out by ``feed``."""
        self._form = form
        self._splitter = EventSplitter()
        self._held: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """The next bytes, cut anywhere; what may go on of them."""
        if self.ended:
            self._held.append(data)
            return b""
        try:
            whole = self._splitter.whole(data)
        except EventTooLong:
            self.reading.too_long = True
            return b""
        if not whole:
            return b""
        for ending in self._form.endings:
            if ending in whole:
                return self._until_end(whole)
        self.reading.add(whole)
        return whole

    def _until_end(self, whole: bytes) -> bytes:
        events = split(whole)
        for at, event in enumerate(events):
            data = data_of(event)
            if data is not None and self._form.ends(data):
                before = b"".join(events[:at])
                self.reading.add(b"".join(events[: at + 1]))
                self._held.append(b"".join(events[at:]))
                self.ended = True
                return before
        self.reading.add(whole)
        return whole

    def rest(self) -> bytes:
        """What was held back, once the verdict is good; and what has come of an event without an end."""
        held = b"".join(self._held) + (b"" if self.ended else self._splitter.rest)
        self._held.clear()
        return held


def rewritten(stream: bytes, form: Form, texts: Mapping[Key, str]) -> bytes | None:
    """A whole stream with other texts in it; ``None`` where one of them has no place there.

    The first event of a text tells all of it and the others nothing, so that each event keeps its place.
    """
    told: set[Key] = set()
    out = []
    for event in split(stream):
        data = data_of(event)
        if data is not None and not data.startswith(b"[DONE]"):
            try:
                read = orjson.loads(data)
            except orjson.JSONDecodeError:
                read = None
            if type(read) is dict and form.rewrite(read, texts, told):
                name = event.partition(b"data:")[0]
                event = name + b"data: " + orjson.dumps(read) + b"\n\n"
        out.append(event)
    return b"".join(out) if told.issuperset(texts) else None


__all__ = ["Follower", "Reading", "rewritten"]
