"""A kept answer: what of it is kept, and how it is written down for others."""

from __future__ import annotations

from typing import NamedTuple

import orjson

from ..errors import Header

_OVERHEAD = 1024  # bytes that an entry takes beside its texts, roughly

# What of an answer's head is the answer's, and not the one call's that it was made for.
KEPT_HEADERS = frozenset(
    {
        b"content-type", b"content-language", b"cache-control", b"x-accel-buffering", b"openai-model", b"openai-version",
        b"x-llm-provider", b"x-llm-dropped-fields", b"x-llm-structured",
    }
)  # fmt: skip
"""Headers of an answer that are told again with it. Ids, costs, limits, times and cookies are those of one call."""


class Kept(NamedTuple):
    """A complete answer.

    Attributes:
        stream: It is a stream of events; else one JSON document.
        head: Its headers, of those that are kept.
        body: The document; or the events, without the one that only tells the usage and without the end mark.
        usage: The event that only tells the usage; empty where there is none.
        tail: The end mark, ``data: [DONE]``; empty where the dialect has none.
        told: The answer tells what it used.
        made: Unix time in seconds at which it was complete.
        cost: What it cost, in nano-USD; ``None`` where nobody knows.
    """

    stream: bool
    head: tuple[Header, ...]
    body: bytes
    usage: bytes = b""
    tail: bytes = b""
    told: bool = False
    made: float = 0.0
    cost: int | None = None

    def __repr__(self) -> str:
        return f"Kept({len(self.body)} bytes)"  # no answer

    @property
    def size(self) -> int:
        """Bytes that it takes, roughly."""
        return len(self.body) + len(self.usage) + sum(len(name) + len(value) for name, value in self.head) + _OVERHEAD

    def fresh(self, now: float, ttl: float, max_age: int | None = None) -> bool:
        """Whether it may be told at ``now``. A clock that was set back prolongs nothing."""
        age = now - self.made
        return 0 <= age < ttl and (max_age is None or age <= max_age)


def written(kept: Kept, key: bytes) -> bytes:
    """An answer as bytes, for a store that others share: one line of JSON, then the body."""
    head = {
        "key": key.hex(),
        "stream": kept.stream,
        "head": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in kept.head],
        "usage": kept.usage.decode("latin-1"),
        "tail": kept.tail.decode("latin-1"),
        "told": kept.told,
        "made": kept.made,
        "cost": kept.cost,
        "size": len(kept.body),
    }
    return orjson.dumps(head) + b"\n" + kept.body


def read(data: bytes, key: bytes) -> Kept | None:
    """The answer that ``written`` wrote under that key; ``None`` for anything else: another's, an older one's, half of one."""
    first, end, body = data.partition(b"\n")
    try:
        head = orjson.loads(first)
        if not end or head["key"] != key.hex() or head["size"] != len(body) or type(head["stream"]) is not bool:
            return None
        headers = tuple((str(name).encode("latin-1"), str(value).encode("latin-1")) for name, value in head["head"])
        if not all(name in KEPT_HEADERS and b"\n" not in value and b"\r" not in value for name, value in headers):
            return None
        cost = head["cost"]
        return Kept(
            head["stream"],
            headers,
            body,
            head["usage"].encode("latin-1"),
            head["tail"].encode("latin-1"),
            head["told"] is True,
            float(head["made"]),
            cost if type(cost) is int and cost >= 0 else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


__all__ = ["KEPT_HEADERS", "Kept", "read", "written"]
