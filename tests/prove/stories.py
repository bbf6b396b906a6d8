"""Each hold's story, told from the histories: what it surely held and cost at any time, and how it may have ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from .history import Event

AccountKey = tuple[str, str, int]
"""Tenant, account, window."""

Pair = tuple[int, int]
"""Nano-USD and tokens."""


class Grant(NamedTuple):
    """A hold or a raise that was granted.

    Attributes:
        asked: When. Of one that was asked for again, because no answer had come, the first time: it may be granted since.
        answered: When.
        amount: How much is held, in all.
        more: Which of the two measures are more than before: nothing else is compared with a limit.
        limits: Those that it was granted under.
    """

    asked: int
    answered: int
    amount: Pair
    more: tuple[bool, bool]
    limits: list[Any]


class Story:
    """One hold.

    Attributes:
        id: Its id.
        tenant: Whose it is.
        accounts: Where it holds, if it does.
        asked: Whether the hold verb was put.
        held: What it surely held in the end; ``None`` where nobody was told that it holds anything.
        most: What it held at most: of raises whose answer is not known, the highest.
        refused: Each time that it was asked for, the answer was no.
        settles: Cost and tokens of the settles that were asked for.
        settled: Of the one that was answered with yes.
        yes: How many settles and releases were.
        answers: What was answered to settles and releases, in order: when, which verb, and what.
        released: Whether a release was asked for.
        expires: It surely lives until then (Unix seconds), but for a clock that is ahead.
        renewals: When a longer life was asked for, and until when it would be; the hold itself first.
        steps: From when on it surely takes how much of its accounts: as booked, and with the overdraft left out.
        grants: What was granted.
        lives: Each time that somebody learnt whether it lives: when that was asked and answered, and whether.
    """

    def __init__(self, hold_id: str) -> None:
        self.id = hold_id
        self.tenant = ""
        self.accounts: tuple[AccountKey, ...] = ()
        self.asked = False
        self.held: Pair | None = None
        self.most: Pair = (0, 0)
        self.refused = False
        self.settles: list[Pair] = []
        self.settled: Pair | None = None
        self.yes = 0
        self.answers: list[tuple[int, str, str]] = []
        self.released = False
        self.ending: int | None = None  # when its first settle or release was asked for
        self.expires = 0.0
        self.renewals: list[tuple[int, float]] = []
        self.steps: list[tuple[int, Pair, Pair]] = []
        self.grants: list[Grant] = []
        self.lives: list[tuple[int, int, bool]] = []
        self._open: dict[tuple[str, int], Event] = {}

    def add(self, event: Event) -> None:
        """The next of its events."""
        if event.kind == "ask":
            self._open[event.process, event.op] = event
            self._asked(event)
        else:
            self._answered(event, self._open.pop((event.process, event.op)))
        full, capped = self._surely()
        if not self.steps or self.steps[-1][1:] != (full, capped):
            self.steps.append((event.at, full, capped))

    def _asked(self, event: Event) -> None:
        data = event.data
        match event.verb:
            case "hold":
                self.asked = True
                self.tenant = data["tenant"]
                self.accounts = tuple((self.tenant, limit[0], limit[1]) for limit in data["limits"])
                self.expires = data["now"] + data["ttl"]
                self.renewals.append((event.at, self.expires))
                self.most = _most(self.most, data["wanted"])
            case "raise":
                self.most = _most(self.most, (data["money"], data["tokens"]))
            case "renew":
                self.renewals.append((event.at, data["now"] + data["ttl"]))
            case "settle":
                self.settles.append((data["money"], data["tokens"]))
            case "release":
                self.released = True
        if event.verb in ("settle", "release") and self.ending is None:
            self.ending = event.at

    def _answered(self, event: Event, asked: Event) -> None:
        verb, yes = event.verb, event.kind == "yes"
        if verb in ("hold", "raise") and yes:
            amount = (event.data["money"], event.data["tokens"])
            before = self.held or (0, 0)
            self.held = _most(before, amount)
            first = min([asked.at, *(one.at for one in self._open.values() if one.verb in ("hold", "raise"))])
            more = amount[0] > before[0], amount[1] > before[1]
            self.grants.append(Grant(first, event.at, amount, more, asked.data["limits"]))
            if not self._unsure():
                self.most = self.held
        elif verb == "hold":
            self.refused = event.kind == "no" and not self._unsure()
        elif verb == "raise" and event.kind == "no" and not self._unsure() and self.held is not None:
            self.most = self.held
        elif verb == "renew":
            if yes:
                self.expires = max(self.expires, asked.data["now"] + asked.data["ttl"])
        elif verb in ("settle", "release"):
            self.answers.append((event.at, verb, event.kind))
            self.yes += yes
            if verb == "settle" and yes:
                self.settled = (asked.data["money"], asked.data["tokens"])
        if verb in ("raise", "renew") and (yes or (event.kind == "no" and event.data.get("what", "ended") == "ended")):
            self.lives.append((asked.at, event.at, yes))
        if event.kind == "unknown" and verb in ("hold", "raise"):
            self._open[event.process, -event.op] = asked  # it is open for good what became of it

    def _unsure(self) -> bool:
        return any(event.verb in ("hold", "raise") for event in self._open.values())

    def _surely(self) -> tuple[Pair, Pair]:
        held = self.held or (0, 0)
        if self.settled is not None:
            return self.settled, _least(self.settled, held)
        if self.released:
            return (0, 0), (0, 0)
        for settle in self.settles:  # it may have been carried out already
            held = _least(held, settle)
        return held, held


def _least(one: Pair, other: Any) -> Pair:
    return min(one[0], other[0]), min(one[1], other[1])


def _most(one: Pair, other: Any) -> Pair:
    return max(one[0], other[0]), max(one[1], other[1])


def tell(events: Iterable[Event]) -> dict[str, Story]:
    """The stories of all holds, by id; ``events`` in their order."""
    stories: dict[str, Story] = {}
    for event in events:
        if event.hold:
            story = stories.get(event.hold)
            if story is None:
                story = stories[event.hold] = Story(event.hold)
            story.add(event)
    return stories
