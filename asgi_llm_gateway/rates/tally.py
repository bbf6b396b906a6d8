"""What the rate limits of this process did, counted for whoever exports metrics."""

from __future__ import annotations


class Tally:
    """Counts since the process began; reading needs no lock. A label is a limit's measure: requests, tokens or calls.

    Attributes:
        admitted: Calls let through.
        refused: Calls refused with 429, by the measure that was used up.
        queued: Calls that waited for their turn.
        gave_up: Of those, the ones that were refused at their deadline; ``left``: whose client went away.
        shared_lost: Times that Redis was found down or slow.
        local: Calls decided by this process's own share although Redis is set.
        shared_down: Event loops that do without Redis at this moment (a gauge).
    """

    __slots__ = ("admitted", "gave_up", "left", "local", "queued", "refused", "shared_down", "shared_lost")

    def __init__(self) -> None:
        self.admitted = 0
        self.refused = {"requests": 0, "tokens": 0, "calls": 0}
        self.queued = 0
        self.gave_up = 0
        self.left = 0
        self.shared_lost = 0
        self.local = 0
        self.shared_down = 0


TALLY = Tally()
"""The process's own: every RateLimitMiddleware adds to it."""
