"""Schemas and values for tests by chance."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "c", "name", "$id"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([1.0, 1.5, 2.0**70]) | st.text("ab1é", max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
KINDS = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
COUNTS = st.integers(0, 3)
PATTERNS = st.sampled_from(["^a", "b+$", "[0-9]", "^(a|b)*$", "^.{1,2}$", "a{2}"])


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    one = inner
    many = st.lists(inner, min_size=1, max_size=3)
    named = st.dictionaries(NAMES, inner, max_size=3)
    keywords: dict[str, st.SearchStrategy[Any]] = {
        "type": KINDS | st.lists(KINDS, min_size=1, max_size=3, unique=True),
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "const": VALUES,
        "minimum": st.integers(-5, 5),
        "exclusiveMaximum": st.integers(-5, 5),
        "multipleOf": st.sampled_from([1, 2, 0.5]),
        "minLength": COUNTS,
        "maxLength": COUNTS,
        "pattern": PATTERNS,
        "minItems": COUNTS,
        "maxItems": COUNTS,
        "uniqueItems": st.booleans(),
        "required": st.lists(NAMES, max_size=2, unique=True),
        "minProperties": COUNTS,
        "maxProperties": COUNTS,
        "properties": named,
        "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
        "additionalProperties": one,
        "propertyNames": one,
        "items": one,
        "prefixItems": many,
        "contains": one,
        "allOf": many,
        "anyOf": many,
        "oneOf": many,
        "not": one,
        "if": one,
        "then": one,
        "else": one,
        "dependentSchemas": named,
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=2),
        "unevaluatedProperties": one,
        "unevaluatedItems": one,
        "format": st.sampled_from(["email", "date", "unheard-of"]),
        "$id": st.sampled_from(["http://169.254.169.254/", "other"]),
        "x-unknown": VALUES,
        "$ref": st.sampled_from(["#/$defs/a", "#/$defs/b"]),
    }
    return st.lists(st.sampled_from(sorted(keywords)), max_size=4, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: keywords[name] for name in chosen})
    )


INNER = st.recursive(st.booleans() | _schemas(st.booleans()), _schemas, max_leaves=6)
SCHEMAS: st.SearchStrategy[dict[str, Any]] = st.builds(
    lambda schema, a, b: {**schema, "$defs": {"a": a, "b": b}}, _schemas(INNER), INNER, INNER
)
"""Schemas as a client may write them: with references between them, into themselves, and with names of their own."""

JUNK: st.SearchStrategy[Any] = st.recursive(
    VALUES | st.sampled_from(["#", "#/$defs/a", "http://x/", "(a+)+$", "(?=a)", "[", "type", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["type", "properties", "items", "anyOf", "$ref", "$dynamicRef", "pattern", "enum", "required", "minimum", "not",
             "patternProperties", "prefixItems", "$defs", "a", "$id", "$schema", "if", "maxLength", "multipleOf"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip
"""What is no schema, or hardly one."""
