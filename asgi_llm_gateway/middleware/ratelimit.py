"""How often: requests per window, per tenant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from .._asgi import ASGIApp, Receive, Scope, Send
from ..errors import Header, RateLimited
from ..exchange import MAX_BODY, Exchange
from ._window import Window, WindowLimiter
from .base import LLMMiddleware, Rank


class RateLimitMiddleware(LLMMiddleware):
    """Admit at most so many requests in a sliding window, counted per tenant.

    Every answer says where its tenant stands (``x-ratelimit-{limit,remaining,reset}-requests``, OpenAI's names); a
    refusal is 429 ``rate_limit_exceeded`` with ``retry-after``. Counted in this process: the limit is divided by
    WEB_CONCURRENCY, so that more workers never mean more rate.

    Args:
        app: The ASGI app further in.
        requests: Requests in a window; ``None`` takes RATE_LIMIT_MAX_REQUESTS.
        window: Seconds of the window; ``None`` takes RATE_LIMIT_WINDOW_MS.
        paths: See LLMMiddleware.
        govern: See LLMMiddleware.
        max_body: See LLMMiddleware.
    """

    rank = Rank.RATE_LIMIT

    def __init__(
        self,
        app: ASGIApp,
        *,
        requests: int | None = None,
        window: float | None = None,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        super().__init__(app, settings=(requests, window), paths=paths, govern=govern, max_body=max_body)
        if requests is not None and requests < 1:
            raise ValueError(f"requests={requests}: at least 1")
        if window is not None and window <= 0:
            raise ValueError(f"window={window}: seconds, more than 0")
        self._requests = requests
        self._seconds = window
        self._limiter: WindowLimiter | None = None
        self._off = False

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        limiter = self._limiter or self._open()
        if self._off:
            await self.forward(exchange, scope, receive, send)
            return
        tenant = exchange.identity.tenant.id
        window = limiter.hit_here(tenant) or await limiter.hit(tenant)
        exchange.headers += window_headers(window)
        if not window.admitted:
            raise _refusal(window)
        await self.forward(exchange, scope, receive, send)

    def _open(self) -> WindowLimiter:
        from ..settings import current

        settings = current()
        requests, seconds = self._requests, self._seconds
        if requests is None:
            self._off = not settings.enable_rate_limit
            requests = settings.rate_limit_max_requests
        if seconds is None:
            seconds = settings.rate_limit_window_ms / 1000
        self._limiter = WindowLimiter(max(1, requests // settings.web_concurrency), seconds)
        return self._limiter


def window_headers(window: Window) -> list[Header]:
    """Where a tenant stands, by OpenAI's header names; ``reset`` is a Go duration ("1s", "6m0s", "86ms")."""
    _, limit, remaining, reset, _, _ = window
    return [
        (b"x-ratelimit-limit-requests", b"%d" % limit),
        (b"x-ratelimit-remaining-requests", b"%d" % remaining),
        # To the second, but for the last one: the text is then made once and found again.
        (b"x-ratelimit-reset-requests", go_duration(math.ceil(reset) if reset > 1 else reset)),
    ]


@lru_cache(maxsize=8192)
def go_duration(seconds: float) -> bytes:
    """Seconds as Go writes a duration. Source: OpenAI API reference, "Rate limits"."""
    millis = max(0, math.ceil(seconds * 1000))
    if millis < 1000:
        return b"%dms" % millis
    whole, rest = divmod(millis, 1000)
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = b"%d" % whole + (b".%03d" % rest).rstrip(b"0").rstrip(b".") + b"s"
    if hours:
        return b"%dh%dm" % (hours, minutes) + text
    return b"%dm" % minutes + text if minutes else text


def _refusal(window: Window) -> RateLimited:
    wait = window.retry + 0.001  # a moment after the share has fallen below
    return RateLimited(
        f"Rate limit reached: {window.limit} requests in {window.seconds:g} s. Try again in {math.ceil(wait * 1000)} ms.",
        headers=((b"retry-after", b"%d" % math.ceil(wait)), (b"retry-after-ms", b"%d" % math.ceil(wait * 1000))),
    )


__all__ = ["RateLimitMiddleware", "go_duration"]
