"""Which package validates: ``jsonschema``, or beside it ``jsonschema-rs`` where that is installed. Both say the same.

The schema is checked here and handed over without names of its own; its patterns have been read into trees, so that both
match the same by them. What is wrong with a value ``jsonschema`` is asked in any case, for places and keywords, never for
words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .patterns import Tree

if TYPE_CHECKING:
    from .check import Checked


class Found(NamedTuple):
    """Something wrong with a value.

    Attributes:
        path: Where, from the value inwards.
        keyword: The keyword that is not met; empty for the schema ``false``.
        wanted: That keyword's value, as the client wrote it.
        missing: For ``required``: the property that is not there.
    """

    path: tuple[str | int, ...]
    keyword: str
    wanted: Any = None
    missing: str = ""


class Validator(Protocol):
    """A compiled schema."""

    def valid(self, value: Any) -> bool:
        """Whether the value is valid."""
        ...


class Teller(Validator, Protocol):
    """One that knows what is wrong."""

    def found(self, value: Any) -> Iterator[Found]:
        """All that is wrong with a value, in any order."""
        ...


class Maker(Protocol):
    """Compiles one schema."""

    slowness: int
    """How many times longer a step takes than with the fastest engine."""

    tells: bool
    """What it compiles are Tellers."""

    bytes: int
    """Memory that its patterns take at most, about."""

    def cost(self, pattern: str, tree: Tree) -> int:
        """What the pattern costs for a character of a text at most, in sixteenths of a step."""
        ...

    def compile(self, checked: Checked) -> Validator:
        """The compiled schema. Raises ValueError where it can't be compiled."""
        ...


__all__ = ["Found", "Maker", "Teller", "Validator"]
