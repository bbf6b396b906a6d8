"""The frames of a session: JSON texts in and out, their limits, and how big ones are cut and joined. Version 1.

The protocol is described in docs/realtime.md. A frame is one JSON object in one message of the channel. One that is longer
than a message may be goes as several frames of type ``part``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from ..errors import BadRequest, GatewayError, Header
from ..records import Usage, usd_number
from ..validation import kind_of
from ..wire import may_be_huge

VERSION = 1

ASKS: Mapping[str, str] = {
    "chat.completions.create": "/chat/completions",
    "embeddings.create": "/embeddings",
    "messages.create": "/messages",
    "responses.create": "/responses",
}
"""Types that ask for a call, and the path of each below ``/v1``."""

MAX_ID = 128
"""Characters of a call's id."""

MAX_PARTS_OPEN = 8
"""Frames of one side that may come in parts at the same time."""

SENT_ALONG = frozenset(
    {"anthropic-beta", "anthropic-version", "cache-control", "traceparent", "tracestate", "x-request-id"}
)
"""Request headers that a frame may name: those that mean something for a single call, and nothing of who calls."""

TOLD = ("retry-after", "x-cache", "x-llm-", "x-ratelimit-", "x-request-id", "x-should-retry", "x-trace-id")
"""What the answer headers that are told begin with."""

_FIELDS: Mapping[str, frozenset[str]] = {
    **{name: frozenset({"id", "type", "v", "body", "headers"}) for name in ASKS},
    "cancel": frozenset({"id", "type", "v"}),
    "ping": frozenset({"type", "v"}),
    "pong": frozenset({"type", "v"}),
    "part": frozenset({"type", "v", "part", "index", "last", "text"}),
}


class Ask(NamedTuple):
    """A call: its id, the path below ``/v1``, the request's body and more headers."""

    id: str
    path: str
    body: bytes
    headers: tuple[Header, ...]


class Cancel(NamedTuple):
    """Stop a call."""

    id: str


class Beat(NamedTuple):
    """A sign of life: a ``ping``, which wants an answer, or that answer."""

    ping: bool


class Part(NamedTuple):
    """A piece of a frame: the frame's number, the piece's place (from 0), whether it is the last, and the text."""

    part: int
    place: int
    last: bool
    text: str


class BadFrame(BadRequest):
    """A frame that can't be taken. ``id`` is that of the call which it would have been, where that is known."""

    code = "invalid_frame"

    def __init__(self, message: str, *, id: str | None = None, param: str | None = None, **more: Any) -> None:
        super().__init__(message, param=param, **more)
        self.id = id


def read(text: str) -> Ask | Cancel | Beat | Part:
    """What a frame says. Raises BadFrame."""
    try:
        frame = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = str(error).partition(": line")[0]
        raise BadFrame(f"The frame is not valid JSON: {reason}. Send one JSON object in each message.") from None
    if type(frame) is not dict:
        raise BadFrame(f"A frame must be a JSON object, not {kind_of(frame)}.")
    version = frame.get("v", VERSION)
    if type(version) is not int or version != VERSION:
        raise BadFrame(f"'v' must be {VERSION}, the frames' version.", param="v", code="unsupported_version")
    kind: Any = frame.get("type")
    fields = _FIELDS.get(kind) if type(kind) is str else None
    known: str | None = frame["id"] if _is_id(frame.get("id")) else None
    if fields is None:
        raise BadFrame(f"'type' must be one of {', '.join(_FIELDS)}.", id=known, param="type")
    for name in frame:
        if name not in fields:
            shown = name[:40].encode("ascii", "backslashreplace").decode()
            raise BadFrame(f"'{shown}' is no field of a frame of type '{kind}'. Its fields: "
                           f"{', '.join(sorted(fields))}.", id=known, param=shown)  # fmt: skip
    if kind == "part":
        return _part(frame)
    if kind in ("ping", "pong"):
        return Beat(kind == "ping")
    if known is None:
        raise BadFrame(f"'id' must be a text of 1 to {MAX_ID} characters; it names the call in all frames about it.",
                       param="id")  # fmt: skip
    if kind == "cancel":
        return Cancel(known)
    return Ask(known, ASKS[kind], _body(known, text, frame), _headers(known, frame.get("headers")))


def _is_id(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_ID


def _part(frame: dict[str, Any]) -> Part:
    for name, kind in (("part", int), ("index", int), ("last", bool), ("text", str)):
        value: Any = frame.get(name)
        if type(value) is not kind or (kind is int and not 0 <= int(value) < 2**31):
            wanted = {int: "a whole number from 0", bool: "true or false", str: "a text"}[kind]
            raise BadFrame(f"'{name}' of a part must be {wanted}.", param=name)
    return Part(frame["part"], frame["index"], frame["last"], frame["text"])


def _body(call: str, text: str, frame: dict[str, Any]) -> bytes:
    """The request's body as it goes through the stack, without losing a digit."""
    body = frame.get("body")
    if type(body) is not dict:
        raise BadFrame(f"'body' must be a JSON object, the request, not {kind_of(body)}.", id=call, param="body")
    try:
        if not may_be_huge(text.encode()):
            return orjson.dumps(body)
        return json.dumps(json.loads(text)["body"], ensure_ascii=False, separators=(",", ":")).encode()
    except (orjson.JSONEncodeError, RecursionError):
        raise BadFrame("'body' is nested too deeply.", id=call, param="body") from None


def _headers(call: str, given: object) -> tuple[Header, ...]:
    if given is None:
        return ()
    if type(given) is not dict:
        raise BadFrame(f"'headers' must be a JSON object of texts, not {kind_of(given)}.", id=call, param="headers")
    found = []
    for name, value in given.items():
        if name.lower() not in SENT_ALONG:
            raise BadFrame(f"'headers' may hold {', '.join(sorted(SENT_ALONG))}, and no others.",
                           id=call, param="headers")  # fmt: skip
        if type(value) is not str or len(value) > 1024 or not (value.isascii() and value.isprintable()):
            raise BadFrame(f"'headers.{name.lower()}' must be a text of at most 1024 printable ASCII characters.",
                           id=call, param="headers")  # fmt: skip
        found.append((name.lower().encode(), value.encode()))
    if len({name for name, _ in found}) < len(found):
        raise BadFrame("'headers' names a header twice.", id=call, param="headers")
    return tuple(found)


# -- what is said ------------------------------------------------------------------------------------------------------


def named(call: str, kind: str) -> bytes:
    """The beginning of a call's frame: what differs from chunk to chunk is put behind it."""
    return b'{"id":' + orjson.dumps(call) + b',"type":"' + kind.encode() + b'"'


def chunk(call: str) -> bytes:
    """What stands before the ``data`` of a call's chunks."""
    return named(call, "response.chunk") + b',"data":'


def done(call: str, *, status: int, usage: Usage | None, cost: int | None, headers: Mapping[str, str]) -> str:
    """A call has ended well. ``cost`` is nano-USD; ``None``: nobody knows."""
    return (named(call, "response.done") + _account(status, usage, cost, headers) + b"}").decode()


def failed(
    call: str | None,
    error: Mapping[str, Any],
    *,
    status: int,
    usage: Usage | None = None,
    cost: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """A call (or, without one, a frame) came to nothing; what it cost all the same."""
    front = b'{"id":null,"type":"error"' if call is None else named(call, "error")
    told = orjson.dumps(error)
    return (front + b',"error":' + told + _account(status, usage, cost, headers or {}) + b"}").decode()


def refused(call: str | None, error: GatewayError) -> str:
    """The same for an error of our own."""
    return failed(call, error.as_dict()["error"], status=error.http_status)


def _account(status: int, usage: Usage | None, cost: int | None, headers: Mapping[str, str]) -> bytes:
    tokens = b"null" if usage is None else orjson.dumps(usage_of(usage))
    money = "null" if cost is None else usd_number(cost)
    return b',"status":%d,"usage":%b,"cost_usd":%b,"headers":%b' % (
        status, tokens, money.encode(), orjson.dumps(headers),
    )  # fmt: skip


def usage_of(usage: Usage) -> dict[str, Any]:
    """Tokens, under one set of names for all dialects."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total,
        "cached_tokens": usage.cached,
        "cache_write_tokens": usage.cache_write,
        "reasoning_tokens": usage.reasoning,
        "estimated": usage.estimated,
    }


def plain(kind: str, **fields: Any) -> str:
    """A frame about the session."""
    return orjson.dumps({"type": kind, **fields}).decode()


# -- big frames --------------------------------------------------------------------------------------------------------

_ROUND_A_PART = len(plain("part", part=2**31, index=2**31, last=False, text=""))

LEAST_MESSAGE = 1024
"""The smallest limit of a message that frames are cut for, in bytes."""


def size_of(text: str) -> int:
    """Bytes of a text on the wire (UTF-8)."""
    return len(text) if text.isascii() else len(text.encode())


def pieces(text: str, most: int, number: int) -> Iterator[str]:
    """A frame as messages of at most ``most`` bytes: itself where it fits, else parts of the frame ``number``."""
    if size_of(text) <= most:
        yield text
        return
    # A part's text is a JSON string of JSON: a character takes two bytes where it is escaped, and four in UTF-8 at most.
    step = (most - _ROUND_A_PART) // (2 if text.isascii() else 4)
    last = (len(text) - 1) // step
    for index in range(last + 1):
        yield plain("part", part=number, index=index, last=index == last, text=text[index * step : (index + 1) * step])


class Joiner:
    """Puts parts together again.

    Args:
        limit: Bytes of all that is not yet whole.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._open: dict[int, list[str] | None] = {}  # None: given up, its other parts pass by
        self._next: dict[int, int] = {}

    def feed(self, part: Part) -> str | None:
        """The whole text with its last part, ``None`` before. Raises BadFrame; the frame's other parts are passed over then."""
        number = part.part
        if number not in self._next:
            if len(self._next) >= MAX_PARTS_OPEN:
                raise BadFrame(f"At most {MAX_PARTS_OPEN} frames may come in parts at the same time.", param="part")
            self._next[number] = 0
            self._open[number] = []
        texts = self._open[number]
        if texts is None:
            if part.last:
                self._forget(number)
            return None
        if part.place != self._next[number]:
            wanted = self._next[number]
            self._give_up(part, texts)
            raise BadFrame(f"'index' of this part must be {wanted}: parts come in order, from 0.", param="index")
        if self._size + size_of(part.text) > self._limit:
            self._give_up(part, texts)
            raise too_large(self._limit)
        texts.append(part.text)
        self._size += size_of(part.text)
        self._next[number] += 1
        if not part.last:
            return None
        whole = "".join(texts)
        self._size -= sum(map(size_of, texts))
        self._forget(number)
        return whole

    def _give_up(self, part: Part, texts: list[str]) -> None:
        self._size -= sum(map(size_of, texts))
        if part.last:
            self._forget(part.part)
        else:
            self._open[part.part] = None

    def _forget(self, number: int) -> None:
        del self._open[number], self._next[number]


def too_large(limit: int) -> BadFrame:
    """A frame over the limit."""
    return BadFrame(f"A frame may have at most {limit} bytes.", status=413, code="frame_too_large")


__all__ = [
    "ASKS", "LEAST_MESSAGE", "MAX_ID", "MAX_PARTS_OPEN", "SENT_ALONG", "TOLD", "VERSION", "Ask", "BadFrame", "Beat",
    "Cancel", "Joiner", "Part", "chunk", "done", "failed", "named", "pieces", "plain", "read", "refused", "size_of",
    "too_large", "usage_of",
]  # fmt: skip
