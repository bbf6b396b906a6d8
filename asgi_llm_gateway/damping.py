"""How long the answer to a wrong API key waits: guessing is made slow, and a right key never notices.

Our own keys have 256 random bits, and no rate of guesses finds one. Damping is for keys that an operator chose, for the store
(which each guess asks) and for the operator, who is told. It can't do more: who asks from many places over many connections is
slowed down in each of them only. That is the price of the rule that a right key is neither refused nor delayed, wherever it
comes from: a source is often a proxy or an office, and a guesser must not shut out those behind it.

So a key is always looked up first, and only its refusal waits. Failures are counted by source and over all sources, each in a
bucket that fills up again; beyond what the bucket holds, each failure waits for the time that its token takes to come.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

ALARM_SECONDS = 60.0
"""Seconds between two alarms."""


class Damping:
    """Counts wrong keys, and says how long the refusal of one waits. One object serves all event loops of a process.

    Args:
        burst: Wrong keys of one source that are refused at once.
        per_second: Wrong keys a second that a source is forgiven.
        all_burst: The same of all sources together.
        all_per_second: The same of all sources together.
        longest: Seconds that a refusal waits at most; 0 switches damping off.
        waiting: Refusals that wait at once; one more goes out without waiting, so that waiting costs no memory without end.
        remember: Seconds for which a wrong key of a source beyond its burst is known to be wrong, and no store is asked.
        most: Sources, and wrong keys, that are remembered.
        clock: Seconds that never go back.

    Attributes:
        failures: Wrong keys so far.
        delayed: Those whose refusal waited.
        now_waiting: Refusals that wait.

    Raises:
        ValueError: An argument that can't be meant.
    """

    def __init__(
        self,
        *,
        burst: int = 20,
        per_second: float = 1.0,
        all_burst: int = 1000,
        all_per_second: float = 100.0,
        longest: float = 2.0,
        waiting: int = 1000,
        remember: float = 2.0,
        most: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        given = {"burst": burst, "all_burst": all_burst, "longest": longest, "waiting": waiting, "remember": remember}
        for name, value in given.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value}: it must be a number of at least 0")
        for name, value in {"per_second": per_second, "all_per_second": all_per_second, "most": most}.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}={value}: it must be more than 0")
        self._one, self._all = (burst / per_second, 1 / per_second), (all_burst / all_per_second, 1 / all_per_second)
        self._longest = longest
        self._waiting = waiting
        self._remember = remember
        self._most = most
        self._clock = clock
        # When what a source owes is forgiven; the one that failed last stands last.
        self._due: dict[str, float] = {}
        self._due_of_all = 0.0
        self._wrong: dict[str, float] = {}
        self._alarmed = -ALARM_SECONDS
        self.failures = 0
        self.delayed = 0
        self.now_waiting = 0

    def knows(self, digest: str) -> bool:
        """Whether the key of that digest was found to be wrong a moment ago, by a source that tries too often."""
        until = self._wrong.get(digest)
        return until is not None and self._clock() < until

    def failed(self, source: str, digest: str | None) -> float:
        """Count a wrong key (``None``: what can be no key); seconds for which its refusal is to wait.

        Where that is more than 0, ``waited`` is to be called when the wait is over, however it ends.
        """
        self.failures += 1
        if not self._longest:
            return 0.0
        now = self._clock()
        due, delay = self._owed(self._due.pop(source, now), now, *self._one)
        if len(self._due) >= self._most:
            self._due.pop(next(iter(self._due), ""), None)  # who failed longest ago; the bucket of all still counts it
        self._due[source] = due
        self._due_of_all, of_all = self._owed(self._due_of_all, now, *self._all)
        delay = max(delay, of_all)
        if not delay:
            return 0.0
        if digest is not None and self._remember:
            if len(self._wrong) >= self._most:
                self._wrong.clear()  # which costs one look-up each
            self._wrong[digest] = now + self._remember
        if self.now_waiting >= self._waiting:
            return 0.0
        self.now_waiting += 1
        self.delayed += 1
        return delay

    def _owed(self, due: float, now: float, allowed: float, price: float) -> tuple[float, float]:
        """When all is forgiven after one more failure, and how long that one waits: a token bucket as one moment in time.

        Source: ITU-T I.371, the generic cell rate algorithm. No more is owed than the longest wait: a source that has
        stopped guessing is soon as good as any other.
        """
        due = min(max(due, now) + price, now + allowed + self._longest)
        over = min(due - now - allowed, self._longest)
        return due, over if over > 1e-6 else 0.0  # below that it is rounding

    def waited(self) -> None:
        """A refusal that ``failed`` let wait does so no more."""
        self.now_waiting -= 1

    def alarm(self) -> bool:
        """Whether the operator is to be told that refusals wait: once in a while."""
        now = self._clock()
        if now - self._alarmed < ALARM_SECONDS:
            return False
        self._alarmed = now
        return True


def source_of(client: object) -> str:
    """Whose failures are counted together, from an ASGI scope's ``client``: an IPv4 address, or an IPv6 network of 64 bits.

    It is the address that the server saw, or that it takes from a proxy which it was told to trust; a header is not believed
    here. A subscriber has at least 2**64 IPv6 addresses (RFC 6177, 2), so they count as one.
    """
    host = client[0] if isinstance(client, (tuple, list)) and client else None
    if not isinstance(host, str):
        return ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host[:64] if host.isascii() and host.isprintable() else ""  # it stands in a line of the log
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


__all__ = ["ALARM_SECONDS", "Damping", "source_of"]
