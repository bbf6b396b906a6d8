"""What a client is told about its limits: headers and refusals, as OpenAI words them.

Source: OpenAI API reference, "Rate limits" (headers ``x-ratelimit-*``, durations as Go writes them), and the official
SDKs' retry rules (``retry-after-ms``, ``retry-after``, ``x-should-retry``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from ..errors import NO_RETRY, Header, RateLimited
from .wants import NEVER, Stand, Verdict, Want

LONGEST_SLEEP = 120.0
"""Seconds after which SDKs are told not to retry: some would sleep for as long as they are told, a day too."""


_NAMES = {
    what: (b"x-ratelimit-limit-" + what, b"x-ratelimit-remaining-" + what, b"x-ratelimit-reset-" + what)
    for what in (b"requests", b"tokens")
}


@lru_cache(maxsize=8192)
def go_duration(seconds: float) -> bytes:
    """Seconds as Go writes a duration: "1s", "6m0s", "86ms"."""
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


def headers_of(wants: Sequence[Want], verdict: Verdict) -> list[Header]:
    """``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``; of a tenant's and its key's limit the tighter one."""
    requests: Stand | None = None
    tokens: Stand | None = None
    for one, stand in zip(wants, verdict.stands, strict=True):
        what = one.what
        if what == "requests":
            if requests is None or stand.remaining < requests.remaining:
                requests = stand
        elif what == "tokens" and (tokens is None or stand.remaining < tokens.remaining):
            tokens = stand
    found: list[Header] = []
    if requests is not None:
        found += stand_headers(b"requests", requests.limit, requests.remaining, requests.reset)
    if tokens is not None:
        found += stand_headers(b"tokens", tokens.limit, tokens.remaining, tokens.reset)
    return found


def stand_headers(what: bytes, limit: int, remaining: int, reset: float) -> tuple[Header, Header, Header]:
    """The three headers of one limit. ``reset`` is seconds until nothing counts any more."""
    names = _NAMES[what]
    return (
        (names[0], b"%d" % limit),
        (names[1], b"%d" % remaining),
        # To the second, but for the last one: the text is then made once and found again.
        (names[2], go_duration(math.ceil(reset) if reset > 1 else reset)),
    )


def tightest(wants: Sequence[Want], verdict: Verdict) -> tuple[Want, Stand]:
    """Of the limits that refuse a call, the one that will do so for the longest."""
    return max(
        ((one, stand) for one, stand in zip(wants, verdict.stands, strict=True) if stand.retry),
        key=lambda pair: pair[1].retry,
    )


def refusal(wants: Sequence[Want], verdict: Verdict, seconds: float) -> RateLimited:
    """The 429 for a call that was not admitted: which limit, and when to come back."""
    one, stand = tightest(wants, verdict)
    whose = " of this key" if one.account else ""
    if one.what == "calls":
        said = f"{stand.limit} calls at once{whose}"
    else:
        said = f"{stand.limit} {one.what}{whose} in {seconds:g} s"
        if one.what == "tokens":
            said += f" ({stand.remaining} are left, {one.amount} asked for: the prompt and the most that is answered)"
    if stand.retry == NEVER:
        advice = "Ask for fewer tokens" if one.what == "tokens" and stand.limit else "No call can be made"
        return RateLimited(f"Rate limit: {said}. {advice}, or have the limit raised.", headers=(NO_RETRY,))
    # A moment after it has left the window; for a place among the running calls any moment may do.
    millis = math.ceil((stand.retry + (0.001 if one.what != "calls" else 0)) * 1000)
    headers: tuple[Header, ...] = ((b"retry-after", b"%d" % -(-millis // 1000)), (b"retry-after-ms", b"%d" % millis))
    if stand.retry > LONGEST_SLEEP:
        headers = (*headers, NO_RETRY)
    return RateLimited(f"Rate limit reached: {said}. Try again in {millis} ms.", headers=headers)
