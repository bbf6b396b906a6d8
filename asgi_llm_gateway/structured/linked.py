"""Schemas and values in the form that ``jsonschema`` is given them: references followed, patterns made, nothing printed.

Its errors print the value and the schema, all of them, each time: that would cost more than to validate, and nobody reads
it. So what it is given prints as three dots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .check import Checked

_SHORT = 64  # characters of a text that may be printed

_SCHEMAS = frozenset(
    {"additionalProperties", "items", "contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties", "not", "if",
     "then", "else"}
)  # fmt: skip
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS = frozenset({"properties", "dependentSchemas"})
_DATA = frozenset(
    {"const", "dependentRequired", "enum", "exclusiveMaximum", "exclusiveMinimum", "maxContains", "maxItems", "maxLength",
     "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "required",
     "type", "uniqueItems"}
)  # fmt: skip
FALSE = ""
"""The keyword of the schema that no value matches."""


class QuietDict(dict[str, Any]):
    """An object."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "..."


class QuietList(list[Any]):
    """An array."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "..."


class QuietText(str):
    """A long text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "..."


class Linked(QuietDict):
    """One schema; ``plain`` is the client's."""

    __slots__ = ("plain",)

    def __init__(self, plain: Mapping[str, Any]) -> None:
        super().__init__()
        self.plain = plain


# Of the schema ``false`` jsonschema does not tell the place.
NEVER = Linked({})
NEVER[FALSE] = True


def quiet(value: Any) -> Any:
    """A copy that prints as nothing much."""
    kind = type(value)
    if kind is dict:
        return QuietDict({name: quiet(one) for name, one in value.items()})
    if kind is list:
        return QuietList(map(quiet, value))
    return QuietText(value) if kind is str and len(value) > _SHORT else value


def link(checked: Checked, automatons: Mapping[str, Any]) -> Linked:
    """The schema, linked; ``automatons`` are its patterns."""
    nodes = checked.nodes
    made: dict[int, Linked] = {}
    waiting: list[Linked] = []

    def at(schema: Any) -> Any:
        if type(schema) is bool:
            return schema or NEVER
        known = made.get(id(schema))
        if known is None:
            known = made[id(schema)] = Linked(schema)
            waiting.append(known)
        return known

    root: Linked = at(checked.schema)
    while waiting:  # a chain of references may be longer than Python's stack
        linked = waiting.pop()
        for name, value in linked.plain.items():
            if name in _SCHEMAS:
                linked[name] = at(value)
            elif name in _LISTS:
                linked[name] = QuietList(map(at, value))
            elif name in _MAPS:
                linked[name] = QuietDict({key: at(one) for key, one in value.items()})
            elif name == "pattern":
                linked[name] = automatons[value]
            elif name == "patternProperties":
                linked[name] = QuietList((automatons[key], at(one)) for key, one in value.items())
            elif name == "$ref":
                linked[name] = at(nodes[id(linked.plain)].target)
            elif name in _DATA:
                linked[name] = quiet(value)
    return root


__all__ = ["FALSE", "NEVER", "Linked", "link", "quiet"]
