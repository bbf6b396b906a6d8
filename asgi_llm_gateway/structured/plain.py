"""The engine ``jsonschema`` (extra ``structured``), in pure Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
from jsonschema.validators import extend
from referencing import Registry

from .automaton import AHEAD, Automaton
from .check import Checked
from .engines import Found
from .keywords import KEYWORDS, Missing
from .linked import FALSE, link, quiet
from .patterns import Tree

_CONTAINS = frozenset({"minContains", "maxContains"})
_AHEAD = 3 * AHEAD  # for all patterns of a schema
_VALIDATOR: Any = extend(jsonschema.Draft202012Validator, KEYWORDS)  # type: ignore[no-untyped-call]


class Plain:
    """See Maker."""

    slowness = 8
    tells = True

    def __init__(self) -> None:
        self.bytes = 0
        self._automatons: dict[str, Automaton] = {}
        self._ahead = _AHEAD

    def cost(self, pattern: str, tree: Tree) -> int:
        """See Maker."""
        known = self._automatons.get(pattern)
        if known is None:
            known = self._automatons[pattern] = Automaton(tree, min(self._ahead, AHEAD))
            self._ahead = max(0, self._ahead - known.visited)
            self.bytes += known.bytes
        return known.per_char

    def compile(self, checked: Checked) -> PlainValidator:
        """See Maker."""
        return PlainValidator(link(checked, self._automatons))


class PlainValidator:
    """See Validator."""

    def __init__(self, schema: Any) -> None:
        # Nothing is looked up: references are followed already, and the registry is empty and fetches nothing.
        self._validator = _VALIDATOR(schema, registry=Registry())

    def valid(self, value: Any) -> bool:
        """See Validator."""
        return bool(self._validator.is_valid(quiet(value)))

    def found(self, value: Any) -> Iterator[Found]:
        """See Validator."""
        for error in self._validator.iter_errors(quiet(value)):
            yield _found(error)


def _found(error: Any) -> Found:
    path = tuple(error.absolute_path)
    if error.validator == FALSE:
        return Found(path, FALSE)
    keyword = "contains" if error.validator in _CONTAINS else error.validator
    if isinstance(error, Missing):
        return Found(path, keyword, missing=error.message)
    return Found(path, keyword, error.schema.plain.get(keyword))


__all__ = ["Plain"]
