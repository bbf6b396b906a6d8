"""What a failed attempt means: whether it is worth another one, at the same target or at another, and when."""

from __future__ import annotations

import datetime
import email.utils
import random
import time
from collections.abc import Sequence

from ..errors import GatewayError, Header
from .transfer import SHUTDOWN, TransferError

# 408, 409, 425, 429 and 5xx are what the official SDKs try again. Source: OpenAI and Anthropic API references, "Errors".
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
# Nothing about the request is at fault there: another provider may well answer it.
_ELSEWHERE = frozenset({401, 402, 403, 404, 405, 501, 508})
# A provider that is full, or has no more money for us, is not broken.
_SPENT = frozenset({"insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached", "upstream_auth",
                    "enforced_spend_limit_reached", "contract_spend_limit_reached", "upstream_account"})  # fmt: skip
LOADING = "upstream_loading"
"""The code of a target that is up and not yet ready: no failure of its own."""

BACKOFF = 0.25
"""Seconds before the first retry, doubled for each further one (less up to half of it by chance)."""
_LONGEST_BACKOFF = 8.0


class Failed(Exception):
    """An attempt that came to nothing before a byte of it had gone to the client.

    Attributes:
        error: What the client is told if no other attempt is made.
        status: The provider's own HTTP status; 0 where it gave none.
        again: The same target may do better.
        elsewhere: Another target may do better.
        blamed: The target was at fault, and its breaker shall know.
        wait: Seconds that the provider wants to be left alone; ``None`` where it said nothing.
    """

    def __init__(
        self,
        error: GatewayError,
        *,
        status: int = 0,
        again: bool,
        elsewhere: bool,
        blamed: bool,
        wait: float | None = None,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.status = status
        self.again = again
        self.elsewhere = elsewhere
        self.blamed = blamed
        self.wait = wait


def of_transfer(error: TransferError, name: str) -> Failed:
    """A call that found no way to the provider, or no way back."""
    # Who waited for its whole time is not asked for the same once more; full of our own calls, it is not to blame.
    if error.kind == SHUTDOWN:
        return Failed(error.as_answer(name), again=False, elsewhere=False, blamed=False)
    return Failed(error.as_answer(name), again=error.kind != "timeout", elsewhere=True, blamed=error.kind != "pool")


def of_status(status: int, headers: Sequence[Header], error: GatewayError) -> Failed:
    """A provider's own refusal."""
    wait = wait_of(headers)
    code = error.error_code
    spent = code in _SPENT
    again = status in _AGAIN and not spent and _told(headers, b"x-should-retry") != b"false"
    return Failed(
        error,
        status=status,
        again=again,
        elsewhere=status in _AGAIN or status in _ELSEWHERE or status >= 500 or spent,
        blamed=(status >= 500 or status == 408) and status not in (501, 508) and code != LOADING,
        wait=wait,
    )


def of_answer(error: GatewayError) -> Failed:
    """An answer that is none: half of one, not JSON, another content type."""
    return Failed(error, status=200, again=True, elsewhere=True, blamed=True)


def _told(headers: Sequence[Header], name: bytes) -> bytes | None:
    for key, value in headers:
        if key == name:
            return value.strip().lower()
    return None


def wait_of(headers: Sequence[Header], now: float | None = None) -> float | None:
    """Seconds that a provider wants to be left alone: ``retry-after-ms``, else ``retry-after`` in seconds or as a date.

    ``None`` for what is no time: nothing, words, a negative number, a date that is past. ``now`` is Unix seconds. Sources:
    RFC 9110, 10.2.3 and 5.6.7 (a date is UTC in each of its three forms); OpenAI's SDK for the milliseconds, which come
    first, and are passed over where they are no number.
    """
    seconds: float | None = None
    if (text := _told(headers, b"retry-after-ms")) is not None and (told := _number(text)) is not None:
        seconds = told / 1000
    elif (text := _told(headers, b"retry-after")) is not None and (seconds := _number(text)) is None:
        until = _date(text)
        seconds = None if until is None else until - (time.time() if now is None else now)
    return seconds if seconds is not None and 0 < seconds < float("inf") else None


def _number(text: bytes) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return None if found != found else found  # "nan" is a number to float() only


def _date(text: bytes) -> float | None:
    """An HTTP date in Unix seconds."""
    try:
        when = email.utils.parsedate_to_datetime(text.decode("latin-1"))
        return (when.replace(tzinfo=datetime.UTC) if when.tzinfo is None else when).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def backoff(retry: int) -> float:
    """Seconds before the ``retry``-th retry (from 0): exponential, with up to half taken off by chance."""
    return min(BACKOFF * 2.0**retry, _LONGEST_BACKOFF) * random.uniform(0.5, 1.0)


def of_unsupported(error: GatewayError) -> Failed:
    """A target that has no word for what is asked: another one may have."""
    return Failed(error, again=False, elsewhere=True, blamed=False)
