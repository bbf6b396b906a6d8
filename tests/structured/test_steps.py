"""What a validation can cost is known before it begins."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import assume, given, settings

from asgi_llm_gateway.errors import BadRequest
from asgi_llm_gateway.structured.automaton import Automaton
from asgi_llm_gateway.structured.check import Checked, check
from asgi_llm_gateway.structured.keywords import KEYWORDS
from asgi_llm_gateway.structured.limits import DEFAULT_LIMITS
from asgi_llm_gateway.structured.linked import link
from asgi_llm_gateway.structured.steps import TooCostly, steps

from .schemas import SCHEMAS, VALUES


def checked(schema: Any) -> Checked:
    """A schema, looked at; a pattern costs a sixteenth of a step a character."""
    return check(orjson.loads(json.dumps(schema)), "schema", DEFAULT_LIMITS, lambda pattern, tree: 1)


_LOOKED = [0]


def _counting(keyword: Any) -> Any:
    def look(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
        _LOOKED[0] += 1
        yield from keyword(validator, wanted, instance, schema) or ()

    return look


_KNOWN = {**jsonschema.Draft202012Validator.VALIDATORS, **KEYWORDS}
_COUNTING: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator, {name: _counting(keyword) for name, keyword in _KNOWN.items()}
)


def counted(schema: Checked, value: Any) -> int:
    """How many keywords the slower engine looks at, which tries every alternative to its end."""
    _LOOKED[0] = 0
    automatons = {pattern: Automaton(tree) for pattern, tree in schema.trees.items()}
    list(_COUNTING(link(schema, automatons)).iter_errors(value))
    return _LOOKED[0]


@settings(max_examples=400, deadline=None)
@given(SCHEMAS, VALUES)
def test_no_validation_takes_more_steps_than_were_foreseen(schema: dict[str, Any], value: Any) -> None:
    """Counted in a validator that tries every alternative to its end."""
    value = orjson.loads(json.dumps(value))
    try:
        known = checked(schema)
    except BadRequest:
        assume(False)
    foreseen = steps(known.root, value, 10**9)
    assert counted(known, value) <= foreseen
    if known.whole is not None:
        size = len(json.dumps(value))
        assert foreseen <= known.whole * (size // 2 + 1) + (known.whole_chars * size >> 4)


@pytest.mark.parametrize("levels", [1, 3, 6])
def test_what_is_left_over_is_asked_again_at_each_level(levels: int) -> None:
    """Schemas in place are asked for their verdict, and then those within them: foreseen, too."""
    schema: dict[str, Any] = {"properties": {"a": {"type": "integer"}}}
    for _ in range(levels):
        schema = {"anyOf": [schema, {"allOf": [schema]}]}
    known = checked({**schema, "unevaluatedProperties": False})
    assert counted(known, {"a": 1}) <= steps(known.root, {"a": 1}, 10**9)


def test_each_character_that_a_pattern_meets_is_counted() -> None:
    """In texts and in keys, as often as the pattern is asked."""
    for schema, value in (
        ({"pattern": "a"}, "x" * 1600),
        ({"propertyNames": {"pattern": "a"}}, {"x" * 1600: 1}),
        ({"patternProperties": {"a": True}}, {"x" * 1600: 1}),
    ):
        known = checked(schema)
        assert 100 <= steps(known.root, value, 10**9) < 400
        assert known.whole_chars >= 1


def test_what_is_compared_is_counted() -> None:
    """Values with each other, and lists of names."""
    for schema, value in (
        ({"uniqueItems": True}, [{"a": 1}] * 300),
        ({"enum": list(range(600))}, 1),
        ({"required": [str(at) for at in range(600)]}, {}),
        ({"dependentRequired": {str(at): ["x"] for at in range(300)}}, {}),
    ):
        assert steps(checked(schema).root, value, 10**9) >= 600


def ways(count: int) -> dict[str, Any]:
    """A recursive schema with so many alternatives that each lead to the same part."""
    return {"anyOf": [{"properties": {"a": {"$ref": "#"}, "b": {"const": at}}} for at in range(count)]}


def deep(levels: int) -> Any:
    """Objects within each other."""
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def test_alternatives_multiply_from_level_to_level() -> None:
    """And are known without being walked."""
    known = checked(ways(2))
    assert known.whole is None
    few, more = steps(known.root, deep(8), 10**9), steps(known.root, deep(9), 10**9)
    assert 1.9 < more / few < 2.1
    with pytest.raises(TooCostly):
        steps(known.root, deep(60), 2_000_000)


def test_very_many_parts_are_given_up_on() -> None:
    """The foresight itself is bounded."""
    known = checked({"items": {"items": {"type": "null"}}})
    with pytest.raises(TooCostly):
        steps(known.root, [[None] for _ in range(150_000)], 10**12)
