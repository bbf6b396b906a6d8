"""``jsonschema`` alone, or with ``jsonschema-rs`` beside it: the same verdicts, and the same places told."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.errors import BadRequest, Unavailable
from asgi_llm_gateway.structured.compiled import Schema, SchemaCache, best
from asgi_llm_gateway.structured.engines import Maker
from asgi_llm_gateway.structured.fast import Fast
from asgi_llm_gateway.structured.linked import link, quiet
from asgi_llm_gateway.structured.plain import Plain

from . import PERSON
from .engines import ENGINES, uninstall
from .schemas import JUNK, SCHEMAS, VALUES


def size(value: Any) -> int:
    """Bytes of a value's JSON."""
    return len(json.dumps(value))


def made(engine: type[Maker], schema: Any) -> Schema | tuple[str, str | None]:
    """The schema, compiled; or why and where it is refused."""
    try:
        return SchemaCache(engine=engine).get(orjson.loads(json.dumps(schema)), "schema")
    except BadRequest as error:
        return error.message, error.param


def told(schema: Any, value: Any) -> list[tuple[str, str]]:
    """What each engine tells of the value, which is the same."""
    both = [made(engine, schema) for engine in ENGINES]
    known = [one for one in both if isinstance(one, Schema)]
    assert len(known) == 2, both
    verdicts = [one.valid(value) for one in known]
    faults = [list(map(tuple, one.faults(value, size(value)))) for one in known]
    assert verdicts[0] is verdicts[1] is not bool(faults[0])
    assert faults[0] == faults[1]
    return [(path, why) for path, why in faults[0]]


# -- by chance ---------------------------------------------------------------------------------------------------------


@settings(max_examples=600, deadline=None)
@given(SCHEMAS, VALUES)
def test_both_engines_say_the_same(schema: dict[str, Any], value: Any) -> None:
    """The verdict and each place that is told; or the refusal of the schema."""
    first, second = (made(engine, schema) for engine in ENGINES)
    if isinstance(first, Schema) and isinstance(second, Schema):
        told(schema, orjson.loads(json.dumps(value)))
    else:
        assert first == second


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.builds(lambda digits, places: digits / 10**places, st.integers(-(10**6), 10**6), st.integers(0, 6)),
)
FACTORS = st.sampled_from([1, 3, 10**18, 2.0, 1e20, 0.5, 0.1, 0.01, 0.3, 0.7, 1e-7, 1e-300, 12345.678])


@settings(max_examples=500, deadline=None)
@given(NUMBERS | st.builds(lambda times, factor: times * factor, st.integers(-999, 999), FACTORS), FACTORS)
def test_both_engines_divide_alike(value: float, factor: float) -> None:
    """Whole numbers exactly, decimals as they are written."""
    told({"multipleOf": factor}, orjson.loads(json.dumps(value)))


@settings(max_examples=300, deadline=None)
@given(JUNK, VALUES)
def test_both_engines_refuse_the_same(junk: Any, value: Any) -> None:
    """Whatever is sent as a schema."""
    try:
        schema = orjson.loads(json.dumps(junk))
    except orjson.JSONDecodeError:
        assume(False)
    first, second = (made(engine, schema) for engine in ENGINES)
    if isinstance(first, Schema) and isinstance(second, Schema):
        assert first.valid(value) is second.valid(value)
    else:
        assert first == second


@settings(max_examples=400, deadline=None)
@given(SCHEMAS, VALUES)
def test_the_verdict_is_that_of_jsonschema_as_it_comes(schema: dict[str, Any], value: Any) -> None:
    """What it is told here of patterns, references and left-over properties changes no verdict."""
    value = orjson.loads(json.dumps(value))
    ours = made(Plain, schema)
    assume(isinstance(ours, Schema))
    assert isinstance(ours, Schema)
    # It takes a schema for what is left over of an array as false.
    assume('"unevaluatedItems": {' not in json.dumps(schema) and '"unevaluatedItems": true' not in json.dumps(schema))
    assume(not _names_in_data(schema))
    bare = json.loads(json.dumps(schema), object_hook=_nameless)
    try:
        expected = jsonschema.Draft202012Validator(bare).is_valid(value)
    except Exception:  # a reference into itself that only we see through
        assume(False)
    assert ours.valid(value) is expected


def _names_in_data(schema: Any) -> bool:
    """Whether a value to compare with has a member of that name, which is none then, and must stay."""
    if isinstance(schema, list):
        return any(map(_names_in_data, schema))
    if not isinstance(schema, dict):
        return False
    return any(
        '"$id"' in json.dumps(inner) if name in ("enum", "const") else _names_in_data(inner)
        for name, inner in schema.items()
    )


def _nameless(found: dict[str, Any]) -> dict[str, Any]:
    """Schemas without the names that would send it looking elsewhere."""
    return {name: value for name, value in found.items() if name != "$id" or type(value) is not str}


# -- keyword by keyword ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "value", "places"),
    [
        ({"properties": {"a": False}}, {"a": 1}, ["/a"]),
        ({"items": False}, [1, 2], ["/0", "/1"]),
        ({"prefixItems": [True], "items": False}, [1, 2, 3], ["/1", "/2"]),
        ({"prefixItems": [{"type": "null"}]}, [1, 2], ["/0"]),
        ({"additionalProperties": False}, {"a": 1, "b": 2}, [""]),
        ({"additionalProperties": {"type": "null"}}, {"a": 1, "b": 2}, ["/a", "/b"]),
        ({"patternProperties": {"^a": {"type": "null"}}, "additionalProperties": False}, {"ab": 1, "b": 2}, ["", "/ab"]),
        ({"propertyNames": {"maxLength": 1}}, {"ab": 1, "a": 2}, [""]),
        ({"required": ["a", "b"]}, {}, ["", ""]),
        ({"dependentRequired": {"a": ["b", "c"]}}, {"a": 1}, [""]),
        ({"dependentSchemas": {"a": {"properties": {"b": {"type": "null"}}}}}, {"a": 1, "b": 1}, ["/b"]),
        ({"contains": {"type": "null"}, "minContains": 2}, [None], [""]),
        ({"contains": {"type": "null"}, "maxContains": 1}, [None, None], [""]),
        ({"contains": {"type": "null"}, "minContains": 0}, [1], []),
        ({"minContains": 5}, [1], []),
        ({"if": {"type": "integer"}, "then": {"minimum": 3}, "else": False}, 1, [""]),
        ({"if": {"type": "integer"}, "then": {"minimum": 3}, "else": False}, "x", [""]),
        ({"oneOf": [True, True]}, 1, [""]),
        ({"not": {"type": "integer"}}, 1, [""]),
        ({"anyOf": [{"properties": {"a": {"type": "null"}}}, {"type": "null"}]}, {"a": 1}, [""]),
        ({"unevaluatedProperties": False}, {"a": 1}, [""]),
        ({"unevaluatedProperties": {"type": "null"}}, {"a": 1, "b": None}, [""]),
        ({"allOf": [{"properties": {"a": True}}], "unevaluatedProperties": False}, {"a": 1}, []),
        ({"anyOf": [{"patternProperties": {"^a": {"type": "null"}}}, True], "unevaluatedProperties": False}, {"ab": 1}, [""]),
        ({"prefixItems": [True], "unevaluatedItems": False}, [1, 2], [""]),
        ({"prefixItems": [True], "unevaluatedItems": {"type": "null"}}, [1, None], []),
        ({"contains": {"type": "null"}, "unevaluatedItems": False}, [None, 1], [""]),
        ({"if": {"prefixItems": [{"type": "null"}]}, "unevaluatedItems": False}, [None], []),
        ({"uniqueItems": True}, [1, True, "1", [1], {"a": 1}, {"a": True}], []),
        ({"uniqueItems": True}, [{"a": 1, "b": [1]}, {"b": [1.0], "a": 1.0}], [""]),
        ({"enum": [1, [True]]}, 1.0, []),
        ({"enum": [1, [True]]}, [1], [""]),
        ({"const": 9007199254740993}, 9007199254740992.0, [""]),
        ({"multipleOf": 0.1}, 0.3, []),
        ({"multipleOf": 0.01}, 4.35, []),
        ({"multipleOf": 0.01}, 4.351, [""]),
        ({"multipleOf": 3}, 2.0**70, [""]),
        ({"multipleOf": 1e-300}, 1e300, []),
        ({"multipleOf": 0.3}, 2.6400311576398275e17, []),
        ({"multipleOf": 0.7}, -3.701027867121416e127, [""]),
        ({"multipleOf": 3.0}, -5.9765425863222866e206, []),
        ({"multipleOf": 0.5, "a multiple of": 0.3}, 1, []),
        ({"multipleOf": 2}, True, []),
        ({"type": "integer"}, 2.0**70, []),
        ({"type": ["integer", "null"]}, True, [""]),
        ({"minLength": 2, "maxLength": 1}, "\U0001f600", [""]),
        ({"maxLength": 1.0}, "ab", [""]),
        ({"format": "email", "contentEncoding": "base64", "contentMediaType": "application/json"}, "{{{", []),
        ({"format": "unheard-of"}, "x", []),
        ({"additionalItems": False, "prefixItems": [True]}, [1, 2], []),
        ({"$ref": "#/x-mine/0", "x-mine": [{"properties": {"a": {"type": "null"}}}]}, {"a": 1}, ["/a"]),
        ({"properties": {"a": {"$ref": "#/patternProperties/%5Ea%7E1$"}}, "patternProperties": {"^a/$": {"type": "null"}}},
         {"a": 1, "a/": None}, ["/a"]),
        ({"patternProperties": {r"^\d$": {"type": "null"}, "^[0-9]$": {"minimum": 5}}}, {"1": 1}, ["/1", "/1"]),
        ({"properties": {"": {"type": "null"}}, "": 7}, {"": 1}, ["/"]),
    ],
)  # fmt: skip
def test_places_are_told_alike(schema: Any, value: Any, places: list[str]) -> None:
    """Where packages differ, in what they call wrong or in where, one way is taken."""
    assert [path for path, _ in told(schema, value)] == places


def test_places_come_in_their_order() -> None:
    """Whatever comes first in the schema; the first few of them."""
    schema = {"properties": {"b": {"type": "null"}, "a": {"items": {"type": "null"}}}, "required": ["z"]}
    assert [path for path, _ in told(schema, {"b": 1, "a": [1] * 12})] == ["", "/a/0", "/a/1", "/a/2", "/a/3"]


def test_rules_are_told_as_the_client_wrote_them() -> None:
    """Not as they were compiled: patterns, references, schemas with names."""
    schema = {"$id": "x", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"$id": "y", "pattern": r"^\d$"}}}
    assert told(schema, {"a": "x"}) == [("/a", r'''must meet 'pattern': "^\\d$"''')]
    schema = {"not": {"$id": "y", "patternProperties": {r"\d": {"type": ["null"]}}}}
    assert told(schema, 1) == [("", r"""must meet 'not': {"$id":"y","patternProperties":{"\\d":{"type":["null"]}}}""")]


# -- what it may cost --------------------------------------------------------------------------------------------------


def test_neither_value_nor_schema_is_ever_printed() -> None:
    """The words of jsonschema hold both whole: with many alternatives, that many times. It is given what prints short."""
    value = {"secret": ["x" * 1000, {"inner": [1] * 1000}]}
    assert repr(quiet(value)) == repr(quiet([value])) == "..."
    assert repr(quiet("x" * 1000)) == "..."
    assert quiet(value) == value
    schema = SchemaCache(engine=Plain).get({"anyOf": [{"type": "string"}, {"items": {"$ref": "#"}}]} | PERSON, "schema")
    linked = link(schema._checked, {})
    assert repr(linked) == "..."
    for error in jsonschema.Draft202012Validator(linked).iter_errors(quiet(value)):
        assert len(error.message) < 200


def test_a_reference_is_followed_when_the_schema_is_compiled() -> None:
    """Nothing is left to look up: what it leads to stands in its place, also where that leads back."""
    checked = SchemaCache(engine=Plain).get({"properties": {"a": {"$ref": "#"}}}, "schema")._checked
    linked = link(checked, {})
    assert linked["properties"]["a"]["$ref"] is linked


def test_a_value_too_deep_for_python_is_a_fault() -> None:
    """Many schemas at each of many levels: no exception."""
    schema: dict[str, Any] = {"properties": {"a": {"$ref": "#"}}}
    for _ in range(12):
        schema = {"allOf": [schema]}
    value: Any = {}
    for _ in range(60):
        value = {"a": value}
    made = SchemaCache(engine=Plain).get(schema, "schema")
    (fault,) = made.faults(value, size(value))
    assert fault.why == "is nested too deeply for its schema"
    assert not made.valid(value)


def test_a_wrong_answer_that_takes_long_to_explain_is_refused_without_its_place() -> None:
    """With the fast engine the verdict is known, and that is what matters."""
    many = [{"name": "Ada", "age": 36}] * 30_000 + [7]
    schema = SchemaCache(engine=Fast).get({"type": "array", "items": PERSON}, "schema")
    assert schema.accepts(many[:-1], size(many))
    assert schema.faults(many, size(many)) == ((("", "does not match the schema")),)
    few = SchemaCache(engine=Fast).get({"type": "array", "items": PERSON}, "schema").faults(many[-9:], size(many[-9:]))
    assert few[0].path == "/8"


# -- which package -----------------------------------------------------------------------------------------------------


def test_the_fast_engine_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself; else the other."""
    assert best().__name__ == "Fast"
    uninstall(monkeypatch, "jsonschema_rs")
    assert best().__name__ == "Plain"
    assert SchemaCache().get(PERSON, "x").tells


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """503, and which extra to install: also where only the fast engine is there, which can't say what is wrong."""
    uninstall(monkeypatch, "jsonschema")
    with pytest.raises(Unavailable, match=r"pip install 'asgi-llm-gateway\[structured\]'"):
        SchemaCache().get(PERSON, "x")
    uninstall(monkeypatch, "jsonschema_rs")
    with pytest.raises(Unavailable) as caught:
        SchemaCache().get(PERSON, "x")
    assert (caught.value.http_status, caught.value.error_code) == (503, "extra_missing")


def test_the_packages_are_loaded_with_the_first_schema() -> None:
    """A layer that is never asked for a format costs nothing."""
    code = (
        "import sys, asgi_llm_gateway as g; from asgi_llm_gateway import StructuredOutputMiddleware as S; S(None);"
        "print([m for m in ('jsonschema', 'jsonschema_rs', 'referencing') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
