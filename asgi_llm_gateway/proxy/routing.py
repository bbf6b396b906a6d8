"""A model's name to the targets that may answer for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from ..adapters.base import Adapter
from ..adapters.compatible import VENDORS
from ..adapters.echo import EchoAdapter
from ..adapters.translated import speaking
from ..errors import NotFound
from ..records import Dialect, Target
from ..settings import SettingsError
from .health import BreakerRules, Health
from .ways import Balance, Hedge, Place, Way

_LISTED = 20  # names that an error tells
_REMEMBERED = 10_000  # names; clients choose them


class Model(NamedTuple):
    """A name that clients use, as it is configured.

    Attributes:
        targets: ``provider/model``, or another name of these, with its share where the balance asks for one.
        balance: See Way.
        fallbacks: Names to go on with when all targets fail; a caller gets there only if it may use that name itself.
        hedge: See Way.
    """

    targets: Sequence[str | tuple[str, float]]
    balance: Balance = "ordered"
    fallbacks: Sequence[str] = ()
    hedge: Hedge | None = None


class Router:
    """Which targets answer for a model's name.

    In this order: a name from ``models``; one of its patterns (``gpt-*``), the longest first; a name that a provider lists;
    ``provider/model``; a vendor's own names (``gpt-*``, ``claude-*``); any other ``vendor/model`` goes to OpenRouter, if
    that is there.

    Args:
        adapters: The configured providers.
        models: Names that clients use, to their targets in order of preference, or to a Model. A ``*`` at a name's end
            stands for anything, and for the same thing in its targets and fallbacks.
        breaker: When a target that fails is left alone.

    Raises:
        SettingsError: A target that is none, names that lead round in a circle, a weight that is no share.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        models: Mapping[str, Sequence[str] | Model] | None = None,
        *,
        breaker: BreakerRules | None = None,
    ) -> None:
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._models = {
            name: model if isinstance(model, Model) else Model(tuple(model)) for name, model in (models or {}).items()
        }
        self._breaker = breaker or BreakerRules()
        self._health: dict[Target, Health] = {}
        self._speaking: dict[tuple[str, Dialect], Adapter] = {}
        self._vendors = [
            (pattern.rstrip("*"), adapter)
            for adapter in adapters
            for pattern in (VENDORS[adapter.name].patterns if adapter.name in VENDORS else ())
        ]
        stars = sorted((name for name in self._models if name.endswith("*")), key=len, reverse=True)
        self._stars = [(name[:-1], name) for name in stars]
        self._own: dict[str, Way] = {}  # names that are a provider's without a prefix
        self._found: dict[str, Way] = {}
        listed = {name: None for name in self._models if not name.endswith("*")}
        for adapter in adapters:
            for model in adapter.models:
                # "openrouter/auto" is called so at OpenRouter itself: the provider's name is part of the model's.
                named = isinstance(adapter, EchoAdapter) or model.startswith(f"{adapter.name}/")
                own = model if named or self._by_vendor(model) is adapter else None
                listed[own or f"{adapter.name}/{model}"] = None
                if own is not None:
                    self._own.setdefault(own, Way((self._place(Target(adapter.name, model), adapter),)))
        for name in self._models:
            if name.endswith("*"):
                self._check_pattern(name)
            else:
                self._found[name] = self._configured(name, "", ())
        self.models = tuple(name for name in listed if self.has(name))
        """What ``/v1/models`` lists."""

    @property
    def health(self) -> Mapping[Target, Health]:
        """Each target that was ever looked up, and how it has been doing."""
        return self._health

    @property
    def adapters(self) -> Sequence[Adapter]:
        """The configured providers."""
        return tuple(self._adapters.values())

    def speaking(self, adapter: Adapter, dialect: Dialect | None) -> Adapter:
        """The adapter as it is asked in that dialect: itself, or one that translates in front of it."""
        if dialect is None or dialect in adapter.speaks:
            return adapter
        found = self._speaking.get((adapter.name, dialect))
        if found is None:
            found = self._speaking[adapter.name, dialect] = speaking(adapter, dialect)
        return found

    def way(self, model: str) -> Way:
        """The targets for a name. Raises NotFound, naming what exists."""
        found = self._found.get(model)
        if found is None:
            found = self._look_up(model)
            if found is None:
                names = ", ".join(self.models[:_LISTED]) + (", ..." if len(self.models) > _LISTED else "")
                raise NotFound(
                    f"The model '{model}' does not exist. Available: {names or 'none'}.",
                    code="model_not_found",
                    param="model",
                )
            if len(self._found) < _REMEMBERED:
                self._found[model] = found
        return found

    def has(self, model: str) -> bool:
        """Whether there is a way for a name."""
        return model in self._found or self._look_up(model) is not None

    # -- from the settings ---------------------------------------------------------------------------------------------

    def _check_pattern(self, name: str) -> None:
        """What can be said of a pattern before anybody uses it. Raises SettingsError."""
        model = self._models[name]
        for text in (*(one if isinstance(one, str) else one[0] for one in model.targets), *model.fallbacks):
            if "*" not in text or ("/" in text and "*" not in text.partition("/")[0]):
                self._target(name, text.replace("*", "x"), (name,))
        _check(name, model)

    def _configured(self, name: str, rest: str, via: tuple[str, ...], *, last: bool = False) -> Way:
        """The way of a name of the settings; ``rest`` is what its ``*`` stands for, ``via`` the names that led here.

        ``last``: without fallbacks, its own and those of its targets. Two names may so be each other's, and nobody goes
        round in a circle. Raises SettingsError.
        """
        if name in via:
            raise SettingsError(f"[models.{via[0]}]: its targets lead back to itself ({' -> '.join((*via, name))})")
        model, via = self._models[name], (*via, name)
        _check(name, model)
        places: list[Place] = []
        later: list[Place] = []
        for one in model.targets:
            text, weight = one if isinstance(one, tuple) else (one, 1.0)
            way = self._target(name, _filled(name, text, rest), via, last=last)
            # Those of another name share its weight.
            whole = sum(place.weight for place in way.places)
            places += (_weighed(place, weight / whole) for place in way.places)
            later += way.fallbacks
        for text in () if last else model.fallbacks:
            text = _filled(name, text, rest)
            way = self._target(name, text, (), last=True)
            later += (Place(place.target, place.adapter, place.health, place.weight, text) for place in way.places)
        places = _once(places)
        # A target that two names lead to stands there for both: a caller may be allowed one of them only.
        asked = {place.target for place in places}
        others = {(place.target, place.name): place for place in later if place.target not in asked}
        return Way(tuple(places), model.balance, tuple(others.values()), model.hedge)

    def _target(self, of: str, text: str, via: tuple[str, ...], *, last: bool = False) -> Way:
        """The way of one target (or fallback) of the name ``of``. Raises SettingsError."""
        provider, slash, model = text.partition("/")
        adapter = self._adapters.get(provider)
        if slash and model and adapter is not None:
            return self._own.get(text) or Way((self._place(Target(provider, model), adapter),))
        if text in self._models and not text.endswith("*"):
            return self._configured(text, "", via, last=last)
        found = self._look_up(text, via, last=last)
        if found is not None:
            return found
        if slash and model:
            there = ", ".join(self._adapters) or "none"
            raise SettingsError(f"[models.{of}]: no provider '{provider}' is configured; there are: {there}")
        raise SettingsError(
            f"[models.{of}]: '{text}' is no target; write 'provider/model', or the name of another model"
        )

    def _place(self, target: Target, adapter: Adapter) -> Place:
        health = self._health.get(target)
        if health is None:
            # What a caller asks the scripted provider to play is no failure of it.
            rules = BreakerRules(failures=0) if isinstance(adapter, EchoAdapter) else self._breaker
            health = Health(rules, f"{target.provider}/{target.model}")
            if len(self._health) < _REMEMBERED:
                self._health[target] = health
        return Place(target, adapter, health)

    # -- from a request ------------------------------------------------------------------------------------------------

    def _look_up(self, model: str, via: tuple[str, ...] = (), *, last: bool = False) -> Way | None:
        """The way of a name that no setting names; a pattern that led here is passed over."""
        for start, name in self._stars:
            if model.startswith(start) and name not in via:
                try:
                    return self._configured(name, model[len(start) :], via, last=last)
                except SettingsError:  # what its star stands for leads nowhere: the name is at fault, not the settings
                    return None
        if model in self._own:
            return self._own[model]
        front, slash, rest = model.partition("/")
        if slash and rest and front in self._adapters:
            adapter = self._adapters[front]
            if not isinstance(adapter, EchoAdapter) or rest in adapter.models:
                return Way((self._place(Target(front, rest), adapter),))
        matched = self._by_vendor(model)
        if matched is not None:
            return Way((self._place(Target(matched.name, model), matched),))
        if front and rest and "openrouter" in self._adapters:
            return Way((self._place(Target("openrouter", model), self._adapters["openrouter"]),))
        return None

    def _by_vendor(self, model: str) -> Adapter | None:
        for start, adapter in self._vendors:
            if model.startswith(start):
                return adapter
        return None


def _check(name: str, model: Model) -> None:
    """Raises SettingsError for a model that can't be meant."""
    if not model.targets:
        raise SettingsError(f"[models.{name}]: it has no targets")
    if model.balance not in get_args(Balance):
        raise SettingsError(f"[models.{name}]: balance '{model.balance}'; use one of {', '.join(get_args(Balance))}")
    if "*" in name[:-1]:
        raise SettingsError(f"[models.{name}]: a '*' can only stand at the end of a name")
    for one in (*model.targets, *model.fallbacks):
        text = one if isinstance(one, str) else one[0]
        if "*" in text and not name.endswith("*"):
            raise SettingsError(f"[models.{name}]: '{text}' has a '*', and the name has none for it to stand for")
        if isinstance(one, tuple) and not 0 < one[1] < math.inf:
            raise SettingsError(f"[models.{name}]: the weight of '{one[0]}' must be a number above 0; it is {one[1]}")


def _filled(name: str, text: str, rest: str) -> str:
    """A target with what the name's star stands for in place of its own."""
    return text.replace("*", rest) if name.endswith("*") else text


def _weighed(place: Place, share: float) -> Place:
    return Place(place.target, place.adapter, place.health, place.weight * share, place.name)


def _once(places: Sequence[Place]) -> list[Place]:
    """Each target once, at its first place, with all its weight."""
    seen: dict[Target, Place] = {}
    for place in places:
        before = seen.get(place.target)
        if before is not None:
            before = Place(before.target, before.adapter, before.health, before.weight + place.weight, before.name)
        seen[place.target] = before or place
    return list(seen.values())
