"""One upstream call in flight, whoever carries it: our own client, httpx, or a script."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import NamedTuple, Protocol

from ..draining import ShuttingDown
from ..errors import GatewayError, Header, UpstreamError, UpstreamTimeout

SHUTDOWN = "shutdown"
"""The kind of a call that ends because the process does: nobody is at fault, and nobody else is asked."""

BUFFER_LIMIT = 8 * 1024 * 1024
"""Bytes of an answer that are put together before they go on; a longer one goes on in pieces."""


# What goes on as it comes: events, and sound, of which the first seconds are heard while the rest is made.
_PROGRESSIVE = (b"text/event-stream", b"audio/", b"application/octet-stream")


def is_progressive(kind: bytes) -> bool:
    """Whether an answer of that content type is wanted piece by piece; any other is put together."""
    return kind.lower().startswith(_PROGRESSIVE)


class Timeouts(NamedTuple):
    """Seconds for each phase of an upstream call."""

    connect: float = 10.0
    write: float = 60.0
    first_byte: float = 300.0
    idle: float = 120.0
    total: float = 1800.0
    first_event: float = 300.0

    def of_stream(self) -> Timeouts:
        """The same for a stream, whose first byte comes no later than its first event may."""
        return self if self.first_byte <= self.first_event else self._replace(first_byte=self.first_event)


class TransferError(Exception):
    """An upstream call came to nothing. ``kind`` is one of connect, timeout, cut, protocol, pool,
    or SHUTDOWN.

    Its text is for logs; it may hold a host, and so is not for clients.
    """

    def __init__(self, kind: str, text: str, *, received: bool = False) -> None:
        super().__init__(text)
        self.kind = kind
        self.received = received

    def as_answer(self, name: str) -> GatewayError:
        """The failure as the client is told."""
        if self.kind == SHUTDOWN:
            return ShuttingDown()
        if self.kind == "timeout":
            return UpstreamTimeout(f"The provider '{name}' did not answer in time.")
        said = {
            "connect": ("can't be reached", "upstream_unreachable"),
            "cut": ("broke the connection before its answer was complete", "upstream_cut"),
            "pool": ("has as many calls as the gateway allows; try again", "upstream_busy"),
        }.get(self.kind, ("sent what is no valid HTTP answer", "upstream_protocol"))
        status = 503 if self.kind == "pool" else 502
        return UpstreamError(f"The provider '{name}' {said[0]}.", status=status, code=said[1])


class Flight(Protocol):
    """An upstream call under way."""

    @property
    def status(self) -> int:
        """The answer's status, once ``start`` returned."""
        ...

    @property
    def headers(self) -> Sequence[Header]:
        """Its headers, names in lower case."""
        ...

    @property
    def sent(self) -> bool:
        """The request may have reached the provider."""
        ...

    @property
    def done(self) -> bool:
        """All of the body has come."""
        ...

    async def start(self) -> None:
        """Send, and wait: for the head of an event stream or of sound, for the whole of any other answer (to BUFFER_LIMIT)."""
        ...

    def take(self) -> bytes:
        """What has come of the body and was not taken; empty if nothing."""
        ...

    def more(self) -> Awaitable[None] | None:
        """What to await until there is more to take, or ``done``; ``None`` where that is so. Raises TransferError."""
        ...

    def abort(self, reason: Exception) -> None:
        """End it at once: whoever waits gets ``reason``. Safe to repeat, and after the end."""
        ...

    def close(self) -> None:
        """Nobody wants it any more. What is complete may carry the next call; what is not is cut."""
        ...
