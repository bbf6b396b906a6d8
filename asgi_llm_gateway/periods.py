"""When a budget begins anew: the window of a period at a time. All of it in UTC, so that no clock change moves one."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_DURATION = re.compile(r"([1-9]\d{0,8})([smhd])\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DAY = 86400
_MONDAY = 4 * _DAY  # 1970-01-05, the first Monday of Unix time

MAX_SECONDS = 3660 * _DAY
"""The longest duration: ten years."""

NAMES = ("none", "daily", "weekly", "monthly")


def check_period(period: str) -> str:
    """The period, if it is one. Raises ValueError, saying what one looks like."""
    if period not in NAMES:
        seconds_of(period)
    return period


def seconds_of(duration: str) -> int:
    """The seconds of a duration such as ``90s``, ``30m``, ``12h``, ``7d``. Raises ValueError."""
    found = _DURATION.match(duration)
    if found is None or int(found[1]) * _SECONDS[found[2]] > MAX_SECONDS:
        raise ValueError(
            "a period is none, daily, weekly, monthly, or a duration such as 30m, 12h, 7d (at most ten years)"
        )
    return int(found[1]) * _SECONDS[found[2]]


def window_of(period: str, now: float) -> int:
    """The Unix second at which the window around ``now`` began; 0 for ``none``, whose one window is a lifetime.

    Days begin at midnight UTC, weeks on Monday, months on the first; durations are counted from the epoch.
    """
    if period == "none":
        return 0
    at = int(now)
    if period == "daily":
        return at - at % _DAY
    if period == "weekly":
        return at - (at - _MONDAY) % (7 * _DAY)
    if period == "monthly":
        day = datetime.fromtimestamp(at, UTC)
        return int(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp())
    return at - at % seconds_of(period)


def window_end(period: str, window: int) -> int | None:
    """The Unix second at which a window ends and the next one begins; ``None`` for a lifetime."""
    if period == "none":
        return None
    if period == "monthly":
        day = datetime.fromtimestamp(window, UTC) + timedelta(days=32)
        return int(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp())
    return (
        window + {"daily": _DAY, "weekly": 7 * _DAY}.get(period, 0) if period in NAMES else window + seconds_of(period)
    )
