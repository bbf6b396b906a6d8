"""Sliding windows and running calls, counted in this process.

A window is a log of what was admitted and when: what has left the window counts no more, and all else counts whole. So
no window of that length, wherever it is laid, ever holds more than the limit, which a counter of fixed windows (or one that
weighs the last of them) can't promise. A busy log is kept short by putting neighbours together under the later one's time:
they count a little longer, at most ``1/STEPS`` of a window, and never too short.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .wants import CALL_RETRY, NEVER, Stand, Verdict, Want, share

EXACT = 256
"""Entries of a log that are kept apart, each with its own time."""

STEPS = 256
"""Beyond them, what falls into the same part of a window, of so many, is one entry."""

_new = tuple.__new__  # what Stand(...) does, less a frame: several are made for every call

Entry = list[Any]
"""Of a log: the time of the last hit in it, that of the first, and how much they are together."""


class Log:
    """What was admitted in one window. ``total`` is the sum of the entries.

    Attributes:
        apart: What of it was admitted without the others' knowledge, while what they share was away.
        heard: What all processes together had admitted, as was last told, at ``heard_at``.
    """

    __slots__ = ("apart", "entries", "heard", "heard_at", "total")

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.total = 0
        self.apart: Log | None = None
        self.heard = 0
        self.heard_at = -math.inf

    def forget(self, past: float) -> None:
        """Let go of what is not newer than ``past``."""
        entries = self.entries
        while entries and entries[0][0] <= past:
            self.total -= entries.popleft()[2]

    def add(self, amount: int, now: float, step: float) -> Entry:
        """Count ``amount``; the entry that holds it."""
        entries = self.entries
        self.total += amount
        if len(entries) >= EXACT and now - entries[-1][1] < step:
            entry = entries[-1]
            entry[0] = now
            entry[2] += amount
        else:
            entry = [now, now, amount]
            entries.append(entry)
        return entry

    def wait(self, excess: int, now: float, seconds: float) -> float:
        """Seconds until ``excess`` of what counts has left the window."""
        for stamp, _, amount in self.entries:
            excess -= amount
            if excess <= 0:
                return float(stamp) + seconds - now
        return NEVER


class Taken:
    """What an admitted call took here, of which windows, and in which entries; and its places, to be given back."""

    __slots__ = ("entries", "places")

    def __init__(self) -> None:
        self.entries: list[tuple[str, Log, Entry, Entry | None]] = []
        self.places: list[str] = []


class Windows:
    """The logs and the running calls of many callers. Threads may share it; nothing in it waits.

    Args:
        seconds: The windows' length.
        clock: Seconds that never go back.

    Attributes:
        id: Tells these counts from those of other processes.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.clock = clock
        self.id = secrets.token_hex(5)
        self._step = seconds / STEPS
        self._logs: dict[str, Log] = {}
        self._running: dict[str, int] = {}
        self._swept = clock()
        self._lock = threading.Lock()

    # -- one limit of requests, and nothing else -----------------------------------------------------------------------

    def hit(self, name: str, limit: int) -> tuple[bool, int, float, float]:
        """Count one request if it is admitted: whether, and a Stand's ``remaining``, ``reset`` and ``retry``.

        The same as ``admit`` with one want, for the path that most calls take.
        """
        now, seconds = self.clock(), self.seconds
        with self._lock:
            log = self._logs.get(name)
            if log is None:
                log = self._new(name, now)
            entries = log.entries
            past = now - seconds
            while entries and entries[0][0] <= past:
                log.total -= entries.popleft()[2]
            left = limit - log.total
            if left > 0:
                if len(entries) < EXACT:
                    log.total += 1
                    entries.append([now, now, 1])
                else:
                    log.add(1, now, self._step)
                return True, left - 1, seconds, 0.0
            if not limit:
                return False, 0, 0.0, NEVER
            return False, 0, entries[-1][0] + seconds - now, log.wait(1 - left, now, seconds)

    # -- several at once -----------------------------------------------------------------------------------------------

    def admit(self, wants: Sequence[Want], *, parts: int = 1, apart: bool = False) -> tuple[Verdict, Taken | None]:
        """Take all that is wanted, or nothing.

        Args:
            wants: What the call asks for.
            parts: Processes among which each limit is divided: this one has its share of it, but at least 1.
            apart: The others are not told. Of what they were heard to have left, too, only this process's share is taken.
        """
        now = self.clock()
        with self._lock:
            if not apart:
                done = self._at_once(wants, now, parts)
                if done is not None:
                    return done
            stands = [self._stand(one, now, parts, apart) for one in wants]
            if any(stand.retry for stand in stands):
                return Verdict(False, stands), None
            after = [
                stand._replace(remaining=max(0, stand.remaining - one.amount), reset=self.seconds)
                for one, stand in zip(wants, stands, strict=True)
            ]
            return Verdict(True, after), self._take(wants, now, apart)

    def _at_once(self, wants: Sequence[Want], now: float, parts: int) -> tuple[Verdict, Taken] | None:
        """``admit`` where there is room, in one pass; ``None`` (and nothing taken) where there is not."""
        seconds, step, logs, running = self.seconds, self._step, self._logs, self._running
        past, stands = now - seconds, []
        found: list[Log | None] = []
        for name, what, _, limit, amount in wants:
            if parts != 1:
                limit = share(limit, parts)
            if what == "calls":
                left = limit - running.get(name, 0) - amount
                found.append(None)
                stands.append(_new(Stand, (limit, left, 0.0, 0.0)))
            else:
                log = logs.get(name) or self._new(name, now)
                entries = log.entries
                if entries and entries[0][0] <= past:
                    log.forget(past)
                left = limit - log.total - amount
                found.append(log)
                stands.append(_new(Stand, (limit, left, seconds, 0.0)))
            if left < 0:
                if amount:
                    return None
                stands[-1] = _new(Stand, (limit, 0, seconds, 0.0))
        taken = Taken()
        for one, counted in zip(wants, found):  # noqa: B905 - they are as many; it runs for every call
            if counted is None:
                name = one[0]
                running[name] = running.get(name, 0) + one[4]
                taken.places.append(name)
            elif one[4]:
                entries = counted.entries
                if len(entries) < EXACT:
                    counted.total += one[4]
                    entry: Entry = [now, now, one[4]]
                    entries.append(entry)
                else:
                    entry = counted.add(one[4], now, step)
                taken.entries.append((one[0], counted, entry, None))
        return _new(Verdict, (True, stands)), taken

    def record(self, wants: Sequence[Want], totals: Sequence[int] = ()) -> Taken:
        """Count what was admitted elsewhere; ``totals`` is what all processes together have, in the wants' order."""
        now = self.clock()
        with self._lock:
            taken = self._take(wants, now, False)
            for one, total in zip(wants, totals, strict=False):
                if one.what != "calls":
                    log = self._log(one.name, now)
                    log.heard, log.heard_at = total, now
        return taken

    def _stand(self, one: Want, now: float, parts: int, apart: bool) -> Stand:
        limit = share(one.limit, parts)
        if one.what == "calls":
            free = limit - self._running.get(one.name, 0)
            return Stand(limit, max(0, free), 0.0, 0.0 if free >= one.amount else CALL_RETRY if limit else NEVER)
        log = self._log(one.name, now)
        free, excess = limit - log.total, log.total + one.amount - limit
        if apart and now - log.heard_at < self.seconds:
            # The others may be doing the same at this moment, with what was left when all could still be asked.
            own = log.apart.total if log.apart is not None else 0
            free = min(free, (one.limit - log.heard) // parts - own)
            if free < one.amount and excess <= 0 and one.amount:
                return Stand(limit, max(0, free), self.seconds, log.heard_at + self.seconds - now)
        reset = log.entries[-1][0] + self.seconds - now if log.entries else 0.0
        if excess <= 0 or not one.amount:
            return Stand(limit, max(0, free), reset, 0.0)
        if one.amount > limit:  # of a share for the time being it may be more
            retry = CALL_RETRY if apart and one.amount <= one.limit else NEVER
        else:
            retry = log.wait(excess, now, self.seconds)
        return Stand(limit, max(0, free), reset, retry)

    def _take(self, wants: Sequence[Want], now: float, apart: bool) -> Taken:
        taken = Taken()
        for name, what, _, _, amount in wants:
            if what == "calls":
                self._running[name] = self._running.get(name, 0) + amount
                taken.places.append(name)
                continue
            if not amount:
                continue
            log = self._logs.get(name) or self._new(name, now)
            beside = None
            if apart:
                if log.apart is None:
                    log.apart = Log()
                beside = log.apart.add(amount, now, self._step)
            taken.entries.append((name, log, log.add(amount, now, self._step), beside))
        return taken

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def correct(self, taken: Taken, name: str, change: int) -> None:
        """A call took ``change`` more (or, below 0, less) of a window than it was admitted on.

        Less is given back where it was counted, if that still counts; more counts from now on.
        """
        if not change:
            return
        now = self.clock()
        with self._lock:
            for counted, log, entry, beside in taken.entries:
                if counted == name:
                    self._change(log, entry, change, now)
                    if beside is not None and log.apart is not None:
                        self._change(log.apart, beside, change, now)

    def _change(self, log: Log, entry: Entry, change: int, now: float) -> None:
        if change > 0:
            log.add(change, now, self._step)
        elif entry[0] > now - self.seconds:  # else it has left the window, and may have been let go already
            entry[2] += change
            log.total += change

    def leave(self, taken: Taken) -> None:
        """Give the places among the running calls back, once."""
        places = taken.places
        if not places:
            return
        with self._lock:
            while places:
                name = places.pop()
                left = self._running[name] - 1
                if left:
                    self._running[name] = left
                else:
                    del self._running[name]

    # -- what is there -------------------------------------------------------------------------------------------------

    def total(self, name: str) -> int:
        """What counts of a window here."""
        now = self.clock()
        with self._lock:
            return self._log(name, now).total if name in self._logs else 0

    def oldest(self, name: str) -> tuple[int, float]:
        """What counts of a window here, and how many seconds ago the first of it came."""
        now = self.clock()
        with self._lock:
            log = self._log(name, now) if name in self._logs else None
            return (log.total, now - log.entries[0][1]) if log is not None and log.entries else (0, 0.0)

    def untold(self, name: str) -> int:
        """What of it the others were not told. It is taken for told from now on."""
        now = self.clock()
        with self._lock:
            log = self._log(name, now) if name in self._logs else None
            if log is None or log.apart is None:
                return 0
            untold, log.apart = log.apart.total, None
            return untold

    def retell(self, name: str, untold: int) -> None:
        """What ``untold`` gave could not be told."""
        now = self.clock()
        with self._lock:
            log = self._log(name, now)
            log.apart = log.apart or Log()
            log.apart.add(untold, now, self._step)

    def hear(self, name: str, total: int) -> None:
        """All processes together have ``total`` in a window."""
        now = self.clock()
        with self._lock:
            log = self._log(name, now)
            log.heard, log.heard_at = total, now

    def running(self, name: str) -> int:
        """Calls that run."""
        return self._running.get(name, 0)

    def names(self) -> list[str]:
        """The windows in which anything was counted lately."""
        with self._lock:
            return list(self._logs)

    def drop(self, name: str) -> None:
        """Forget a window."""
        with self._lock:
            self._logs.pop(name, None)

    def _log(self, name: str, now: float) -> Log:
        """The log of a name, without what has left the window."""
        log = self._logs.get(name)
        if log is None:
            return self._new(name, now)
        past = now - self.seconds
        log.forget(past)
        if log.apart is not None:
            log.apart.forget(past)
            if not log.apart.entries:
                log.apart = None
        return log

    def _new(self, name: str, now: float) -> Log:
        """A log for one more name. Once a window, those are let go that nobody has used for one."""
        if now - self._swept >= self.seconds:
            self._swept = now
            past = now - self.seconds
            unused = [old for old, one in self._logs.items() if not one.entries or one.entries[-1][0] <= past]
            for old in unused:
                del self._logs[old]
        log = self._logs[name] = Log()
        return log
