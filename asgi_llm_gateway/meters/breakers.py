"""Circuit breakers as gauges: whoever knows the targets tells how each of them is doing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from .bounds import LONGEST
from .families import BREAKER
from .meters import Reading, Source

_VALUES = {"closed": 0.0, "half_open": 0.5, "open": 1.0}

States = Callable[[], Iterable[tuple[str, str, str]]]
"""Provider, model and state (``closed``, ``half_open``, ``open``) of each target."""


def breakers(states: States, most: int = 200) -> Source:
    """A source for ``Meters.sources``.

    Targets that are closed are shown while there is room for ``most``: where a pattern leads anywhere, a client may make
    them up. For those that are not closed there is room for as many again: somebody is to be told of them.
    """
    shown: dict[tuple[str, str], None] = {}

    def read() -> Iterator[Reading]:
        for provider, model, state in states():
            target = (provider, model)
            if target not in shown:
                if (state == "closed" and len(shown) >= most) or len(shown) >= most * 2 or len(model) > LONGEST:
                    continue
                shown[target] = None
            yield Reading(BREAKER, target, _VALUES.get(state, 1.0))

    return read


__all__ = ["States", "breakers"]
