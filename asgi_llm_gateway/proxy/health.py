"""How a target has been doing lately, and whether it is asked: a circuit breaker without a clock of its own.

Source of the pattern: M. Nygard, "Release It!", "Circuit Breaker": closed, open, half-open.
"""

from __future__ import annotations

import logging
import random
from typing import Literal, NamedTuple

log = logging.getLogger("asgi_llm_gateway")

_WINDOW = 30.0  # seconds over which failures are weighed against successes
_MANY = 20  # calls in the window from which on their share counts
_LONGEST = 120.0  # seconds that a target which goes on failing, or asks for a rest, is left alone at most
_PROBE = 300.0  # seconds after which a probe that nobody ended is forgotten


class BreakerRules(NamedTuple):
    """When a target is left alone.

    ``failures`` in a row open the breaker (0: it never opens), as does half of at least twenty calls in half a minute.
    After ``cooldown`` seconds (up to a fifth less, by chance) one call probes; while it fails, the time doubles, to two
    minutes at most.
    """

    failures: int = 5
    cooldown: float = 10.0


class Health:
    """One target's breaker and the calls it has pending. All event loops of a process share it.

    Who asks ``allows`` says who it is, and so does each call when it ends: of a half-open breaker only the probe's own end
    lets the next one go.

    Attributes:
        name: The target, for the log.
        pending: Calls under way.
        tripped: The breaker is open or half-open, or the target asked for a rest: ``allows`` is to be asked.
    """

    __slots__ = (
        "_bad",
        "_cooldown",
        "_good",
        "_probing",
        "_rest",
        "_rules",
        "_since",
        "_streak",
        "_until",
        "name",
        "pending",
        "tripped",
    )

    def __init__(self, rules: BreakerRules, name: str = "") -> None:
        self.name = name
        self.pending = 0
        self.tripped = False
        self._rules = rules
        self._streak = 0
        self._good = self._bad = 0
        self._since = 0.0
        self._until = 0.0  # the end of the last opening
        self._rest = 0.0  # the end of a rest that the target asked for
        self._cooldown = 0.0  # of the last opening; 0 where the breaker is closed
        self._probing: tuple[object, float] | None = None

    def state(self, now: float) -> Literal["closed", "open", "half_open"]:
        """For metrics and traces; ``now`` as for all here: seconds of the event loop's or any other steady clock."""
        if not self._cooldown:
            return "closed"
        return "open" if now < self._until else "half_open"

    def opens_in(self, now: float) -> float:
        """Seconds until the target may be asked again."""
        return max(0.0, self._until - now, self._rest - now)

    def allows(self, now: float, who: object) -> bool:
        """Whether a call may go there; of a half-open breaker, one at a time."""
        if now < self._until or now < self._rest:
            return False
        if not self._cooldown:
            self.tripped = False  # its rest is over
            return True
        if self._probing is not None and now - self._probing[1] < _PROBE:
            return False
        self._probing = (who, now)
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self._streak = 0
        self._good += 1
        if self._cooldown:
            log.warning("breaker closed: %s answers again", self.name)
            self._cooldown = self._until = 0.0
            self._good = self._bad = 0
            self._probing = None
            self.tripped = self._rest > 0.0  # whether that is over, ``allows`` knows

    def failed(self, now: float, who: object) -> None:
        """The target was at fault."""
        rules = self._rules
        if self._cooldown:
            if self._probing is None or self._probing[0] is not who:
                return  # a call that had begun before the breaker opened says nothing new
            self._open(now)
            return
        self._streak += 1
        if now - self._since > _WINDOW:
            self._since, self._good, self._bad = now, 0, 0
        self._bad += 1
        share = self._good + self._bad >= _MANY and self._bad >= self._good
        if rules.failures and (self._streak >= rules.failures or share):
            self._open(now)

    def _open(self, now: float) -> None:
        rules = self._rules
        self._cooldown = min(self._cooldown * 2 or rules.cooldown, max(_LONGEST, rules.cooldown))
        # Not all workers come back in the same moment.
        self._until = now + self._cooldown * random.uniform(0.8, 1.0)
        self._probing = None
        self.tripped = True
        log.warning("breaker open: %s failed and is left alone for %.0f s", self.name, self._until - now)

    def left(self, who: object) -> None:
        """A call ended without telling anything about the target: its client left, or the request was at fault."""
        if self._probing is not None and self._probing[0] is who:
            self._probing = None

    def rests(self, now: float, seconds: float) -> None:
        """The target asked to be left alone (``retry-after``); that is no failure. Two minutes at most are believed:
        a provider that says a billion seconds is not given up for ever."""
        until = now + min(seconds, _LONGEST)
        if until > self._rest:
            self._rest = until
            self.tripped = True
