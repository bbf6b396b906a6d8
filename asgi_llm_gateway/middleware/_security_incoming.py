"""Limits on what comes in: the head of a request, and its body while it comes."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable
from functools import lru_cache
from types import CoroutineType
from typing import Any, NamedTuple

from .._asgi import Message, Receive
from .._stepping import Resumed
from ..errors import BadRequest, GatewayError, Header, TooLarge

CLOSE: Header = (b"connection", b"close")
"""On an answer that goes out before the body has come: the rest of it is not waited for."""


class Limits(NamedTuple):
    """What a request may be: bytes, number and bytes of headers, levels of JSON, seconds for the whole body.

    ``hosts`` are names that may be asked for, ``*.example.com`` among them; ``None`` is any.
    """

    body: int
    headers: int
    header_bytes: int
    depth: int
    seconds: float
    hosts: frozenset[str] | None


class Head(NamedTuple):
    """What the head of a request says of its body."""

    comes: bool
    json: bool


class _Refused(GatewayError):
    status, type, code = 431, "invalid_request_error", "headers_too_large"


class _TooSlow(GatewayError):
    status, type, code = 408, "invalid_request_error", "request_timeout"


class _Elsewhere(GatewayError):
    status, type, code = 421, "invalid_request_error", "host_not_allowed"


def check_head(scope: Any, limits: Limits) -> Head:
    """Refuse a head that is too large or that two servers could read differently. Raises GatewayError (400, 413, 421, 431).

    Sources: RFC 9112, 3.2 (one valid Host, else 400) and 6.3 (lengths that disagree); RFC 9110, 15.5.20 (421); RFC 6585, 5
    (431).
    """
    raw = scope.get("headers") or ()
    if len(raw) > limits.headers:
        raise _Refused(f"The request has {len(raw)} headers; at most {limits.headers} are allowed.", headers=(CLOSE,))
    found: dict[bytes, bytes] = dict(raw)
    spelt, text = b"".join(found), b"".join(found.values())
    if len(found) != len(raw) or (found and not spelt.islower()):  # some stand twice, or are in capitals
        found, spelt, text = _gathered(raw)
    size = len(spelt) + len(text)
    if b"\n" in text or b"\r" in text or b"\0" in text:
        raise _odd("a header", "has a line break in it")
    host, length = found.get(b"host"), found.get(b"content-length")
    kind, coding = found.get(b"content-type"), found.get(b"transfer-encoding")
    if length is not None and (not length.isdigit() or len(length) > 18):
        raise _odd("content-length", "must be one whole number")
    if size > limits.header_bytes:
        raise _Refused(f"The headers have {size} bytes; at most {limits.header_bytes} are allowed.", headers=(CLOSE,))
    if length is not None and coding is not None:
        raise _odd("content-length", "stands beside transfer-encoding; send one of them")
    named = None
    if host is not None:
        named = host_of(bytes(host))
        if named is None:
            raise _odd("host", "is not a host name with an optional port")
    if limits.hosts is not None and not _allowed(named, limits.hosts):
        raise _Elsewhere("This server does not answer for that host name. Ask the operator which one to use.")
    if length is not None and int(length) > limits.body:
        raise too_large(limits)
    comes = (
        length not in (None, b"0") or coding is not None or not str(scope.get("http_version", "1.1")).startswith("1")
    )
    return Head(comes, kind is None or b"json" in kind.lower())


_SINGLE = (b"host", b"content-length", b"transfer-encoding")


def _gathered(raw: Any) -> tuple[dict[bytes, bytes], bytes, bytes]:
    """The first of each header by its lower-case name, all names and all values. Raises BadRequest for fateful twins."""
    names = [name.lower() for name, _ in raw]
    for name in _SINGLE:
        if names.count(name) > 1:
            raise _odd(name.decode(), "is given twice")
    found: dict[bytes, bytes] = {}
    for name, value in raw:
        found.setdefault(name.lower(), value)
    return found, b"".join(names), b"".join(value for _, value in raw)


def _odd(name: str, what: str) -> BadRequest:
    return BadRequest(f"The request can't be taken: {name} {what}.", code="malformed_headers", param=name,
                      headers=(CLOSE,))  # fmt: skip


def too_large(limits: Limits) -> TooLarge:
    """The body is over the limit."""
    return TooLarge(f"The body is over the limit of {limits.body} bytes.", headers=(CLOSE,))


_HOST = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")


@lru_cache(maxsize=1024)
def host_of(value: bytes) -> str | None:
    """The host name in a Host header, in lower case and without port and last dot; ``None`` for what is none.

    Source: RFC 9110, 7.2 and RFC 3986, 3.2.2, less the escapes, which no host name needs.
    """
    if len(value) > 261:  # a name of at most 255, and a port
        return None
    if value.startswith(b"["):
        inner, bracket, rest = value[1:].partition(b"]")
        try:
            name = f"[{ipaddress.IPv6Address(inner.decode('ascii')).compressed}]"
        except ValueError:
            return None
        if not bracket or b"%" in inner:
            return None
    else:
        plain, colon, port = value.partition(b":")
        rest = colon + port
        if not plain or not _HOST.issuperset(plain) or b".." in plain or plain.startswith(b"."):
            return None
        name = plain.decode("ascii").lower().removesuffix(".")
    if rest and (rest[:1] != b":" or (rest[1:] and not (rest[1:].isdigit() and int(rest[1:][:6]) <= 65535))):
        return None
    return name


def _allowed(host: str | None, hosts: frozenset[str]) -> bool:
    if host is None:
        return False
    if host in hosts:
        return True
    while "." in host:
        host = host.partition(".")[2]
        if f"*.{host}" in hosts:
            return True
    return False


class Depth:
    """How deeply a JSON text is nested, told while it comes; cut anywhere. It need not be valid.

    Strings are skipped by their quotes. The passes over the bytes are C's; Python looks at brackets only, and at none where
    there are fewer of them than levels allowed, as in most requests.

    Args:
        most: Levels allowed.
    """

    __slots__ = ("_carry", "_inside", "_level", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._level = 0
        self._inside = False
        self._carry = b""

    def passes(self, piece: bytes, *, whole: bool = False) -> bool:
        """Whether the text, with its next piece, is not too deep. ``whole``: it is the only piece."""
        if whole and piece.count(b"[") + piece.count(b"{") <= self._most:
            return True
        data = self._carry + piece
        # An escape whose second half is yet to come waits for it.
        self._carry = b"\\" if (len(data) - len(data.rstrip(b"\\"))) & 1 else b""
        if self._carry:
            data = data[:-1]
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
        for at, part in enumerate(data.translate(None, _DULL).split(b'"')):
            if at:
                self._inside = not self._inside
            if self._inside:
                continue
            level = self._level
            for byte in part:
                if byte in _OPENS:
                    level += 1
                    if level > self._most:
                        return False
                else:
                    level -= 1
            self._level = level
        return True


_OPENS = b"[{"
_DULL = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_GONE: Message = {"type": "http.disconnect"}


class Bounded:
    """A ``receive`` that gives up on a body that is too long, too slow or too deep.

    The app is then told that the client has left, which every framework understands; ``fault`` is what the client is to be
    told. Once the body is complete, this is the server's own ``receive`` and costs nothing: ``__self__`` says whose, for
    those who know how to await a known server more cheaply.
    """

    __slots__ = ("__self__", "_deadline", "_depth", "_first", "_inner", "_limits", "_size", "complete", "fault")

    def __init__(self, receive: Receive, limits: Limits, *, json: bool) -> None:
        self._inner = receive
        self.__self__ = getattr(receive, "__self__", None)
        self._limits = limits
        self._depth = Depth(limits.depth) if json else None
        self._deadline: float | None = None
        self._size = 0
        self._first = True
        self.complete = False
        self.fault: GatewayError | None = None

    def __call__(self) -> Awaitable[Message]:
        return self._inner() if self.complete else self._next()

    async def _next(self) -> Message:
        if self.fault is not None:
            return _GONE
        first, self._first = self._first, False
        try:
            message = await self._in_time()
        except TimeoutError:
            return self._give_up(
                _TooSlow(f"The body did not arrive within {self._limits.seconds:g} s.", headers=(CLOSE,))
            )
        more = message.get("more_body", False)
        if message["type"] == "http.request":
            body = message.get("body", b"")
            self._size += len(body)
            if self._size > self._limits.body:
                return self._give_up(too_large(self._limits))
            if body and self._depth is not None and not self._depth.passes(body, whole=first and not more):
                return self._give_up(
                    BadRequest(f"The body is nested deeper than {self._limits.depth} levels.", code="invalid_json",
                               headers=(CLOSE,) if more else ())
                )  # fmt: skip
        self.complete = not more
        return message

    async def _in_time(self) -> Message:
        """The server's next message; without a timer where it is there already, as it mostly is."""
        coming: Any = self._inner()
        if type(coming) is CoroutineType:  # what ``await`` does, until it waits
            try:
                waiting = coming.send(None)
            except StopIteration as there:
                return there.value
            coming = Resumed(coming, waiting)
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._limits.seconds
        async with asyncio.timeout_at(self._deadline):
            return await coming

    def _give_up(self, fault: GatewayError) -> Message:
        self.fault = fault
        return _GONE
