"""Keywords of JSON Schema 2020-12 that ``jsonschema`` is told here: those with patterns, references, or more work than needed.

Its own would match patterns with a matcher that can take for ever, look references up, and compare each item of an array with
each other. Source: JSON Schema 2020-12, "Core" (10.3, 11) and "Validation" (6). Each takes the keyword's value as linked.py
makes it: patterns as automatons, references as what they lead to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import ValidationError

from .decimals import is_multiple
from .linked import FALSE, NEVER, Linked, quiet

_Errors = Iterator[ValidationError]


class Missing(ValidationError):
    """A required property that is not there: its ``message`` is that property's name."""


def ref(validator: Any, wanted: Any, value: Any, schema: Linked) -> _Errors:
    """The schema that a reference leads to."""
    yield from validator.descend(value, wanted)


def pattern(validator: Any, wanted: Any, value: Any, schema: Linked) -> _Errors:
    """A text that matches."""
    if isinstance(value, str) and not wanted.search(value):
        yield ValidationError("pattern")


def pattern_properties(validator: Any, wanted: Any, value: Any, schema: Linked) -> _Errors:
    """Properties by their names."""
    if isinstance(value, dict):
        for automaton, inner in wanted:
            for name, one in value.items():
                if automaton.search(name):
                    yield from validator.descend(one, inner, path=name)


def additional_properties(validator: Any, wanted: Any, value: Any, schema: Linked) -> _Errors:
    """Properties that no other keyword beside it names."""
    if wanted is True or not isinstance(value, dict):
        return
    extras = _extras(value, schema)
    if wanted is not NEVER:
        for name in extras:
            yield from validator.descend(value[name], wanted, path=name)
    elif extras:
        yield ValidationError("additionalProperties")


def property_names(validator: Any, wanted: Any, value: Any, schema: Linked) -> _Errors:
    """The names themselves."""
    if isinstance(value, dict):
        for name in value:
            yield from validator.descend(quiet(name), wanted)


def required(validator: Any, wanted: list[str], value: Any, schema: Linked) -> _Errors:
    """Properties that must be there."""
    if isinstance(value, dict):
        for name in wanted:
            if name not in value:
                yield Missing(name)


def items(validator: Any, wanted: Any, value: Any, schema: Linked) -> _Errors:
    """All but the first items, which have schemas of their own."""
    if isinstance(value, list) and wanted is not True:
        for at in range(len(schema.get("prefixItems", ())), len(value)):
            yield from validator.descend(value[at], wanted, path=at)


def unique_items(validator: Any, wanted: bool, value: Any, schema: Linked) -> _Errors:
    """No two items that are equal."""
    if wanted and isinstance(value, list) and len(set(map(_identity, value))) < len(value):
        yield ValidationError("uniqueItems")


def multiple_of(validator: Any, wanted: float, value: Any, schema: Linked) -> _Errors:
    """A multiple, also in decimals."""
    if isinstance(value, int | float) and not isinstance(value, bool) and not is_multiple(value, wanted):
        yield ValidationError("multipleOf")


def unevaluated_properties(validator: Any, wanted: Any, value: Any, schema: Linked) -> _Errors:
    """Properties that no other keyword has applied a schema to."""
    if wanted is True or not isinstance(value, dict):
        return
    left = value.keys() - _names(validator, schema, value, own=False)
    if any(not validator.evolve(schema=wanted).is_valid(value[name]) for name in left):
        yield ValidationError("unevaluatedProperties")


def unevaluated_items(validator: Any, wanted: Any, value: Any, schema: Linked) -> _Errors:
    """Items that no other keyword has applied a schema to."""
    if wanted is True or not isinstance(value, list):
        return
    left = set(range(len(value))) - _places(validator, schema, value, own=False)
    if any(not validator.evolve(schema=wanted).is_valid(value[at]) for at in left):
        yield ValidationError("unevaluatedItems")


def never(validator: Any, wanted: Any, value: Any, schema: Linked) -> _Errors:
    """No value."""
    yield ValidationError("false")


def _extras(value: Mapping[str, Any], schema: Linked) -> list[str]:
    named = schema.get("properties", ())
    patterns = schema.get("patternProperties", ())
    return [
        name for name in value if name not in named and not any(automaton.search(name) for automaton, _ in patterns)
    ]


def _names(validator: Any, schema: Any, value: Mapping[str, Any], *, own: bool = True) -> set[str]:
    """Properties that a schema, which the value matches, has applied another to."""
    if type(schema) is bool:
        return set()
    if own and "unevaluatedProperties" in schema:
        return set(value)
    found: set[str] = set()
    for keyword, wanted in schema.items():
        if keyword == "properties":
            found.update(name for name in value if name in wanted)
        elif keyword == "patternProperties":
            found.update(name for name in value if any(automaton.search(name) for automaton, _ in wanted))
        elif keyword == "additionalProperties":
            found.update(_extras(value, schema))
    for one in _in_place(validator, schema, value):
        found |= _names(validator, one, value)
    return found


def _places(validator: Any, schema: Any, value: list[Any], *, own: bool = True) -> set[int]:
    """Items that a schema, which the value matches, has applied another to."""
    if type(schema) is bool:
        return set()
    if "items" in schema or (own and "unevaluatedItems" in schema):
        return set(range(len(value)))
    found = set(range(min(len(value), len(schema.get("prefixItems", ())))))
    if "contains" in schema:
        contains = validator.evolve(schema=schema["contains"])
        found.update(at for at, one in enumerate(value) if contains.is_valid(one))
    for one in _in_place(validator, schema, value):
        found |= _places(validator, one, value)
    return found


def _in_place(validator: Any, schema: Linked, value: Any) -> Iterator[Any]:
    """The schemas that apply to the same value and that it matches."""

    def matches(one: Any) -> bool:
        return bool(validator.evolve(schema=one).is_valid(value))

    for keyword, wanted in schema.items():
        if keyword == "$ref":
            yield wanted
        elif keyword in ("allOf", "anyOf"):
            yield from filter(matches, wanted)
        elif keyword == "oneOf":
            found = list(filter(matches, wanted))
            yield from found if len(found) == 1 else ()
        elif keyword == "if":
            if matches(wanted):
                yield wanted
                yield schema.get("then", True)
            else:
                yield schema.get("else", True)
        elif keyword == "dependentSchemas" and isinstance(value, dict):
            yield from (one for name, one in wanted.items() if name in value)


def _identity(value: Any) -> Any:
    """What is the same for values that are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, list):
        return (list, *map(_identity, value))
    if isinstance(value, dict):
        return frozenset((name, _identity(one)) for name, one in value.items())
    return (bool, value) if isinstance(value, bool) else value


KEYWORDS: dict[str, Any] = {
    "$ref": ref,
    FALSE: never,
    "additionalProperties": additional_properties,
    "items": items,
    "multipleOf": multiple_of,
    "pattern": pattern,
    "patternProperties": pattern_properties,
    "propertyNames": property_names,
    "required": required,
    "unevaluatedItems": unevaluated_items,
    "unevaluatedProperties": unevaluated_properties,
    "uniqueItems": unique_items,
}

__all__ = ["KEYWORDS", "Missing"]
