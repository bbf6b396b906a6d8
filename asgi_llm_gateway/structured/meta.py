"""What each keyword of a schema must look like.

Source: JSON Schema 2020-12, the meta-schemas of its vocabularies. Keywords that hold schemas are the walk's to look into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


def _string(value: Any) -> str:
    return "" if type(value) is str else "this must be a string."


def _flag(value: Any) -> str:
    return "" if type(value) is bool else "this must be true or false."


def _array(value: Any) -> str:
    return "" if type(value) is list else "this must be an array."


def _number(value: Any) -> str:
    return "" if type(value) in (int, float) else "this must be a number."


def _factor(value: Any) -> str:
    return "" if type(value) in (int, float) and value > 0 else "this must be a number greater than 0."


def _count(value: Any) -> str:
    whole = type(value) is int or (type(value) is float and value.is_integer())
    return "" if whole and value >= 0 else "this must be a whole number, 0 or more."


def _names(value: Any) -> str:
    good = type(value) is list and all(type(one) is str for one in value) and len(set(value)) == len(value)
    return "" if good else "this must be an array of different strings."


def _needs(value: Any) -> str:
    good = type(value) is dict and not any(map(_names, value.values()))
    return "" if good else "this must be an object of arrays of different strings."


def _type(value: Any) -> str:
    if type(value) is list:
        good = (
            bool(value) and all(type(one) is str and one in _TYPES for one in value) and len(set(value)) == len(value)
        )
    else:
        good = type(value) is str and value in _TYPES
    return "" if good else f"this must be one of {', '.join(_TYPES)}, or an array of different ones."


_FORMS: dict[str, Callable[[Any], str]] = {
    "type": _type,
    "enum": _array,
    "examples": _array,
    "multipleOf": _factor,
    "required": _names,
    "dependentRequired": _needs,
    **dict.fromkeys(("maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"), _number),
    **dict.fromkeys(
        (
            "maxLength",
            "minLength",
            "maxItems",
            "minItems",
            "maxContains",
            "minContains",
            "maxProperties",
            "minProperties",
        ),
        _count,
    ),
    **dict.fromkeys(("uniqueItems", "deprecated", "readOnly", "writeOnly"), _flag),
    **dict.fromkeys(("title", "description", "$comment", "format", "contentEncoding", "contentMediaType"), _string),
}


def complaint(name: str, value: Any) -> str:
    """What is wrong with a keyword's value; empty if nothing is, or nobody knows the keyword."""
    form = _FORMS.get(name)
    return form(value) if form is not None else ""


__all__ = ["complaint"]
