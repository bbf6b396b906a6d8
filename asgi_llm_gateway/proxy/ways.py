"""The targets of a model's name, and the order in which a call tries them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..adapters.base import Adapter
from ..allowed import may_use
from ..records import Identity, Target
from .health import Health

Balance = Literal["ordered", "weighted", "least_pending"]


class Place:
    """A target and what is known of it.

    Attributes:
        target: Provider and model.
        adapter: Who speaks to the provider.
        health: The target's breaker and its pending calls, one for all names that lead there.
        weight: Its share, beside the others of its name.
        name: A name that the caller must be allowed to use for this target; empty where the asked name is enough.
    """

    __slots__ = ("adapter", "headers", "health", "name", "target", "weight")

    def __init__(self, target: Target, adapter: Adapter, health: Health, weight: float = 1.0, name: str = "") -> None:
        self.target = target
        self.adapter = adapter
        self.health = health
        self.weight = weight
        self.name = name
        self.headers = ((b"x-llm-provider", target.provider.encode("ascii", "replace")),)

    def __repr__(self) -> str:
        return f"Place({self.target.provider}/{self.target.model})"


class Hedge(NamedTuple):
    """A second call beside a slow one: ``after`` seconds without a first event, for at most ``most`` nano-USD a call."""

    after: float
    most: int


class Way(NamedTuple):
    """All targets of a name.

    Attributes:
        places: As the operator wrote them.
        balance: ``ordered``: one after the other as written; ``weighted``: by chance, by weight; ``least_pending``: the
            one with the fewest pending calls for its weight first.
        fallbacks: Tried after them, in order.
        hedge: Whether a slow call gets a rival.
    """

    places: tuple[Place, ...]
    balance: Balance = "ordered"
    fallbacks: tuple[Place, ...] = ()
    hedge: Hedge | None = None

    def order(self, identity: Identity) -> Sequence[Place]:
        """The targets for one call of that caller, best first."""
        places: Sequence[Place] = self.places
        if len(places) > 1:
            if self.balance == "weighted":
                # Weighted sampling without replacement: Efraimidis and Spirakis, 2006, in logarithms: of small weights
                # the powers would all be 0.
                places = sorted(places, key=lambda place: random.expovariate(place.weight))
            elif self.balance == "least_pending":
                places = sorted(places, key=lambda place: ((place.health.pending + 1) / place.weight, random.random()))
        if not self.fallbacks:
            return places
        # A target may stand there twice, by names of which the caller may use one.
        later = {place.target: place for place in self.fallbacks if may_use(identity, place.name)}
        return (*places, *later.values())
