"""Server-sent events, cut anywhere, with any line ending. Source: WHATWG HTML, section 9.2.6 (living standard)."""

from __future__ import annotations

import re

# A blank line ends an event. A line ends with CRLF, LF or CR; the groups are atomic so that CRLF never counts as two.
_BLANK = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
_LINE = re.compile(rb"\r\n|\r|\n")

MAX_EVENT = 8 * 1024 * 1024
"""Bytes that one event may have before its end is given up on."""


class EventTooLong(ValueError):
    """An event passed ``MAX_EVENT`` bytes without an end."""


class EventSplitter:
    """Takes bytes cut anywhere, gives whole events back: each with its blank line, byte for byte as it came."""

    __slots__ = ("_limit", "_parts", "_size")

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._limit = limit

    @property
    def rest(self) -> bytes:
        """What has come of an event that has not ended."""
        return b"".join(self._parts)

    def whole(self, data: bytes) -> bytes:
        """All bytes up to the last end of an event, in one piece; the rest waits. Raises EventTooLong."""
        if not self._parts:
            if data.endswith(b"\n\n"):
                return data
        elif b"\n" not in data and b"\r" not in data and not self._parts[-1].endswith(b"\r"):
            return self._wait(data)  # no end can be in here: not joined, so that a long line costs its length once
        else:
            data = b"".join((*self._parts, data))
            self._parts.clear()
            self._size = 0
        end = _last_end(data)
        if end < len(data):
            self._wait(data[end:])
        return data[:end]

    def _wait(self, data: bytes) -> bytes:
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._limit:
            self._parts.clear()  # whoever goes on all the same holds no more than the limit
            self._size = 0
            raise EventTooLong(f"an event of over {self._limit} bytes")
        return b""

    def feed(self, data: bytes) -> list[bytes]:
        """The whole events in ``data`` and what waited before it. Raises EventTooLong."""
        return split(self.whole(data))


def _last_end(data: bytes) -> int:
    """Where the last whole event ends.

    A blank line whose last byte is a CR may be half of a CRLF that the next piece completes: it does not count yet.
    """
    if data.endswith(b"\n\n"):
        return len(data)
    end = 0
    if b"\r" not in data:
        at = data.rfind(b"\n\n")
        return at + 2 if at >= 0 else 0
    for found in _BLANK.finditer(data):
        if found.end() == len(data) and data.endswith(b"\r"):
            break
        end = found.end()
    return end


_DATA_LINE = re.compile(rb"(?:^|[\r\n])data:")


def count_data(events: bytes) -> int:
    """The data lines of whole events. In JSON a line break is escaped, so that none stands in a text."""
    if events.find(b"\r") < 0:
        return events.count(b"\ndata:") + events.startswith(b"data:")
    return len(_DATA_LINE.findall(events))


def split(data: bytes) -> list[bytes]:
    """Cut bytes that hold whole events only into the events."""
    events = []
    start = 0
    for found in _BLANK.finditer(data):
        events.append(data[start : found.end()])
        start = found.end()
    if start < len(data):
        events.append(data[start:])
    return events


def data_of(event: bytes) -> bytes | None:
    """An event's data: its ``data:`` lines joined by LF. ``None`` for an event without any (a comment, a lone id)."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and event.find(b"\n") == len(event) - 2:
        return event[6:-2] if b"\r" not in event else _data_lines(event)
    return _data_lines(event)


def _data_lines(event: bytes) -> bytes | None:
    found = []
    for line in _LINE.split(event):
        if line.startswith(b"data:"):
            value = line[5:]
            found.append(value[1:] if value.startswith(b" ") else value)
        elif line == b"data":
            found.append(b"")
    return b"\n".join(found) if found else None
