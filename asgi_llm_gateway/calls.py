"""The upstream calls that one exchange makes, who must agree to them, and who makes spans of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from .errors import GatewayError, Header
from .records import Target, Usage
from .wire import LLMRequest


class Call:
    """One upstream call of an exchange: an attempt, a corrective retry, an SDK call in a handler.

    Attributes:
        target: Where it goes.
        request: What is asked.
        usage: Tokens once it has ended; ``None`` while it runs, and where the provider did not tell.
        ended: Whether ``end`` was called.
        begun: ``time.perf_counter()`` at which all had agreed to it.
        done: The same of its end.
        status: The provider's HTTP status, once it is known.
        error: Why it came to nothing: a failure's code. ``outrun`` where another one was faster.
        headers: What goes to the provider beside the request's own headers: its place in a trace.
        span: Who makes a span of it.
        told: What of the answer is at hand for whoever asks what it says of itself: its JSON, or who read it as it passed.
    """

    __slots__ = ("begun", "done", "ended", "error", "headers", "request", "span", "status", "target", "told", "usage")

    def __init__(self, target: Target, request: LLMRequest | None) -> None:
        self.target = target
        self.request = request
        self.usage: Usage | None = None
        self.ended = False
        self.begun = 0.0
        self.done = 0.0
        self.status: int | None = None
        self.error: str | None = None
        self.headers: tuple[Header, ...] = ()
        self.span: Spanned | None = None
        self.told: object = None

    def end(self, usage: Usage | None) -> None:
        """The call is over. ``None``: it is not known what it used (which is never taken for zero)."""
        if not self.ended:
            self.ended = True
            self.usage = usage
            self.done = time.perf_counter()
            if self.span is not None:
                self.span.over()


class Spanned(Protocol):
    """The span of one upstream call."""

    def over(self) -> None:
        """The call has ended. What else is known of it by then may be noted a moment later."""
        ...


class Tracer(Protocol):
    """Makes spans of an exchange's upstream calls.

    Attributes:
        context: OpenTelemetry's context of the exchange's own span, for what is measured of it.
    """

    context: Any

    def begin(self, call: Call, url: str) -> None:
        """A call is about to go out: give it a ``span``, and the ``headers`` that tell the provider of it."""
        ...


class Lasting:
    """Calls under way that may outlive the answer (a handler's own tasks make them), and what waits for the last one's end."""

    __slots__ = ("count", "later")

    def __init__(self) -> None:
        self.count = 0
        self.later: Callable[[], Awaitable[None]] | None = None

    def leave(self) -> Callable[[], Awaitable[None]] | None:
        """One has ended: what is to be awaited now."""
        self.count -= 1
        if self.count:
            return None
        later, self.later = self.later, None
        return later


class Guard(Protocol):
    """Who must say yes before an upstream call goes out (the budget)."""

    async def begin(self, call: Call) -> None:
        """Make sure of ``call``, or raise a GatewayError: then it does not go out."""


class _Over:
    """The guard of an exchange that is done."""

    async def begin(self, call: Call) -> None:
        raise GatewayError("The call is over; no further upstream call can be made for it.", code="call_over")


OVER = _Over()
"""Refuses every call."""

__all__ = ["OVER", "Call", "Guard", "Lasting", "Spanned", "Tracer"]
