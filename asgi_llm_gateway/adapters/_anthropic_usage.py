"""Token counts as Anthropic's Messages tell them. Source: Anthropic API reference, "Messages", ``usage``, 2023-06-01."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..records import Usage
from ..usage import usage_from

_PROMPT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def counts(usage: Any) -> Usage | None:
    """A usage object as counts. Where it has several legs, all of them were made and are paid for."""
    found = _leg(usage)
    legs = usage.get("iterations") if type(usage) is dict else None
    if found is not None and type(legs) is list:
        read = [leg for one in legs if (leg := _leg(one)) is not None]
        whole = Usage(
            sum(leg.prompt for leg in read),
            sum(leg.completion for leg in read),
            sum(leg.cached for leg in read),
            sum(leg.cache_write for leg in read),
            sum(leg.reasoning for leg in read),
        )
        if whole.total > found.total:  # the numbers at the top may be those of the last leg
            return whole
    return found


def _leg(usage: Any) -> Usage | None:
    found = usage_from(usage)
    if found is None:
        return None
    details = usage.get("output_tokens_details")
    thought = details.get("thinking_tokens") if type(details) is dict else None
    return found._replace(reasoning=thought) if type(thought) is int and 0 <= thought <= found.completion else found


class Tally:
    """The counts of one stream, told at its start and again at its end.

    Attributes:
        counted: What was made was told, and not only what was asked.
    """

    __slots__ = ("_told", "counted")

    def __init__(self) -> None:
        self._told: dict[str, Any] = {}  # the latest of each count
        self.counted = False

    def begin(self, usage: Any) -> None:
        """The counts of ``message_start``: of what was made it knows next to nothing."""
        if type(usage) is not dict:
            return
        told = {name: value for name, value in usage.items() if value is not None}
        if not any(told.get(name) for name in _PROMPT):  # some servers repeat zeros there
            for name in _PROMPT:
                told.pop(name, None)
        self._told.update(told)

    def add(self, usage: Any) -> None:
        """The counts of a ``message_delta``. They are cumulative: to add them up would bill a stream twice."""
        self.begin(usage)
        self.counted = self.counted or (type(usage) is dict and type(usage.get("output_tokens")) is int)

    @property
    def usage(self) -> Usage | None:
        """All that was told so far."""
        return counts(self._told) if self._told else None

    def so_far(self, ended: bool, tokens: Callable[[], int]) -> Usage | None:
        """The counts of the stream until now. Its first event knows the prompt's tokens only: until it has ``ended``, what was
        made is estimated by ``tokens``."""
        found = self.usage
        if found is None or (self.counted and ended):
            return found
        return found._replace(completion=max(found.completion, tokens()), estimated=True)
