"""Schemas are checked before they are compiled, compiled once, and say what is wrong; with each engine."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings

from asgi_llm_gateway.errors import BadRequest, GatewayError
from asgi_llm_gateway.structured.compiled import Schema, SchemaCache
from asgi_llm_gateway.structured.limits import Limits

from . import GOOD, PERSON
from .engines import engine
from .schemas import JUNK

__all__ = ["engine"]
pytestmark = pytest.mark.usefixtures("engine")


def compiled(schema: Any, **limits: int) -> Schema:
    """A schema, compiled."""
    return SchemaCache(Limits(**limits)).get(schema, "schema")


def refusal(schema: Any, **limits: int) -> BadRequest:
    """Why a schema is refused."""
    with pytest.raises(BadRequest) as caught:
        compiled(schema, **limits)
    assert caught.value.http_status == 400
    return caught.value


def size(value: Any) -> int:
    """Bytes of a value's JSON."""
    return len(json.dumps(value))


@settings(max_examples=400, deadline=None)
@given(JUNK)
def test_whatever_is_sent_as_a_schema_is_compiled_or_refused(junk: Any) -> None:
    """Never another exception, and never a wait."""
    made = said = None
    try:
        made = SchemaCache().get(junk, "schema")
    except GatewayError as error:
        said = error
    if made is not None:
        made.faults({"a": [1, {"a": "x"}]}, 30)
    else:
        assert said is not None
        assert (said.http_status, said.error_code) in ((400, "invalid_json_schema"), (400, "schema_too_complex"))
        assert said.param is not None
        assert said.param.startswith("schema")


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "path", "why"),
    [
        ({"name": "x", "age": "seven"}, "/age", "must meet 'type': \"integer\""),
        ({"name": "x", "age": -1}, "/age", "must meet 'minimum': 0"),
        ({"name": "x"}, "", '"age" is a required property'),
        ({"name": "x", "age": 1, "se~c/ret": 1}, "", "must meet 'additionalProperties': false"),
        ([], "", "must meet 'type': \"object\""),
    ],
)
def test_a_fault_is_told_by_place_and_rule(value: Any, path: str, why: str) -> None:
    """And never by what the value holds."""
    (fault, *_) = compiled(PERSON).faults(value, size(value))
    assert (fault.path, fault.why) == (path, why)


def test_a_path_is_a_json_pointer() -> None:
    """RFC 6901: ~ and / are escaped; the first few faults are told."""
    schema = {"additionalProperties": {"type": "array", "items": {"type": "integer"}}}
    faults = compiled(schema).faults({"a/b~c": [1, "x"], "d": ["x"] * 9}, 60)
    assert faults[0].path == "/a~1b~0c/1"
    assert len(faults) == 5


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ref", ["http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "other.json", "//x/y", "#name", "", 7,
            "https://json-schema.org/draft/2020-12/schema"],
)  # fmt: skip
def test_no_reference_leads_out_of_the_schema(ref: Any) -> None:
    """Nothing is ever looked up."""
    error = refusal({"type": "object", "properties": {"a": {"items": {"$ref": ref}}}})
    assert error.param == "schema.properties.a.items.$ref"


@pytest.mark.parametrize("name", ["$dynamicRef", "$recursiveRef"])
def test_dynamic_references_are_refused(name: str) -> None:
    """To pass them over would promise what is not checked."""
    assert refusal({"properties": {"a": {name: "#a"}}}).param == f"schema.properties.a.{name}"


def test_names_in_the_world_outside_mean_nothing() -> None:
    """A schema may say who it is; its references stay its own."""
    schema = {
        "$schema": "http://evil/schema", "$id": "http://evil/", "$ref": "#/$defs/a",
        "$defs": {"a": {"$id": "file:///etc/", "$anchor": "x", "properties": {"$id": {"type": "integer"}}}},
    }  # fmt: skip
    made = compiled(schema)
    assert made.accepts({"$id": 7}, 9)
    assert not made.accepts({"$id": "x"}, 9)
    data = compiled({"enum": [{"$id": "x", "$ref": "http://evil/"}]})
    assert data.accepts({"$id": "x", "$ref": "http://evil/"}, 40)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}},
        {"properties": {"x": {"anyOf": [{"$ref": "#/properties/x"}]}}},
        {"not": {"$ref": "#"}},
    ],
)
def test_a_reference_that_never_goes_into_the_value_is_refused(schema: Any) -> None:
    """It would be followed for ever."""
    assert "leads back to itself" in refusal(schema).message


@pytest.mark.parametrize(
    "ref", ["#/nowhere", "#/$defs/b", "#/required/5", "#/properties/a/0", "#/required/-1", "#/required/00000000001"]
)
def test_a_reference_into_nothing_is_refused(ref: str) -> None:
    """Or to what is no schema."""
    schema = {"properties": {"a": True, "b": {"$ref": ref}}, "required": ["a"], "$defs": {"a": {}}}
    assert refusal(schema).param == "schema.properties.b.$ref"


def test_references_reach_any_part_of_the_schema() -> None:
    """Escaped names, lists, and keywords that nobody knows."""
    schema = {
        "properties": {"a": {"$ref": "#/$defs/x~1y~0z"}, "b": {"$ref": "#/x-mine/0"}, "c": {"$ref": "#/%24defs/p%25"}},
        "$defs": {"x/y~z": {"type": "integer"}, "p%": {"type": "null"}},
        "x-mine": [{"type": "string"}],
    }
    made = compiled(schema)
    assert made.accepts({"a": 1, "b": "x", "c": None}, 30)
    for wrong in ({"a": "x"}, {"b": 1}, {"c": 1}):
        assert not made.accepts(wrong, 10)


def test_a_recursive_schema_is_fine() -> None:
    """A tree, as deep as answers may be."""
    tree = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    }
    made = compiled(tree)
    value: Any = None
    for _ in range(64):
        value = {"next": value}
    assert made.accepts(value, size(value))
    deeper = {"next": value}
    assert made.faults(deeper, size(deeper))[0].why == "is nested more than 64 levels deep"


def nested(levels: int) -> dict[str, Any]:
    """A schema of objects within objects."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "limits"),
    [
        ({"enum": ["x" * 70_000]}, {}),
        (nested(40), {}),
        (nested(300), {}),
        (nested(4), {"schema_depth": 4}),
        ({"properties": {f"p{at}": {"type": "string"} for at in range(4100)}}, {}),
        ({"allOf": [{"pattern": f"a{at}"} for at in range(33)]}, {}),
        ({"patternProperties": {f"a{at}": {} for at in range(33)}}, {}),
        ({"pattern": "a{9000}"}, {}),
        ({"pattern": "((a{100}){100})"}, {}),
        ({"allOf": [{"pattern": f"a{{{1000 + at}}}"} for at in range(9)]}, {}),
        ({"$ref": "#/$defs/0", "$defs": {str(at): {"$ref": f"#/$defs/{(at + 1) % 300}"} for at in range(300)}}, {}),
    ],
)
def test_what_could_cost_too_much_is_refused(schema: Any, limits: dict[str, int]) -> None:
    """Bytes, depth, keywords, patterns, chains."""
    assert refusal(schema, **limits).error_code == "schema_too_complex"


def doubling(levels: int, keyword: str = "anyOf") -> dict[str, Any]:
    """Two ways at each level: 2 ** levels in all."""
    defs: dict[str, Any] = {str(at): {keyword: [{"$ref": f"#/$defs/{at + 1}"}] * 2} for at in range(levels)}
    return {"$ref": "#/$defs/0", "$defs": {**defs, str(levels): {"type": "integer"}}}


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
def test_alternatives_that_multiply_are_refused(keyword: str) -> None:
    """A small schema that would take for ever is known before."""
    assert "multiply" in refusal(doubling(40, keyword)).message
    assert compiled(doubling(5, keyword)).accepts(1, 1) is (keyword != "oneOf")


def test_a_recursive_schema_whose_alternatives_multiply_is_stopped_by_the_answer() -> None:
    """It may be harmless, so the answer decides: a deep one is refused unseen."""
    both = [{"properties": {"a": {"$ref": "#"}, "b": {"const": at}}} for at in range(3)]
    made = compiled({"type": "object", "anyOf": both})
    shallow: Any = {"b": 1}
    assert made.accepts({"a": shallow}, 20)
    deep: Any = {}
    for _ in range(40):
        deep = {"a": deep}
    (fault,) = made.faults(deep, size(deep))
    assert "takes too long" in fault.why
    assert not made.accepts(deep, size(deep))


def test_a_long_list_against_a_long_enum_is_stopped() -> None:
    """So many values times so many values; an ordinary long list is not."""
    made = compiled({"items": {"enum": [{"a": at} for at in range(3000)]}})
    many = [{"a": 2999}] * 5000
    assert "takes too long" in made.faults(many, size(many))[0].why
    people = compiled({"type": "array", "items": PERSON})
    good = [json.loads(GOOD) for _ in range(15_000)]
    assert people.accepts(good, size(good))


@pytest.mark.parametrize("schema", [7, "x", None, [], True])
def test_what_is_no_object_is_no_schema(schema: Any) -> None:
    """Though JSON Schema knows true and false: nobody means them here."""
    assert refusal(schema).param == "schema"


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"type": "strnig"}, "schema.type"),
        ({"properties": {"a": {"minLength": -1}}}, "schema.properties.a.minLength"),
        ({"properties": []}, "schema.properties"),
        ({"anyOf": {}}, "schema.anyOf"),
        ({"items": [{"type": "string"}]}, "schema.items"),
        ({"dependencies": {"a": ["b"]}}, "schema.dependencies"),
        ({"properties": {"a": {"pattern": "(?=a)b"}}}, "schema.properties.a.pattern"),
        ({"patternProperties": {"(a": {}}}, "schema.patternProperties"),
        ({"anyOf": [{}, 7]}, "schema.anyOf[1]"),
        ({"multipleOf": 0}, "schema.multipleOf"),
    ],
)
def test_what_is_no_schema_is_refused_by_its_place(schema: Any, param: str) -> None:
    """As the client wrote it."""
    assert refusal(schema).param == param


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_schema_is_compiled_once() -> None:
    """However often it comes; another one is another one."""
    cache = SchemaCache()
    first = cache.get(dict(PERSON), "here")
    assert cache.get(json.loads(json.dumps(PERSON)), "there") is first
    assert cache.compiled == 1
    assert cache.get({"type": "null"}, "x") is not first
    assert cache.compiled == 2


def test_the_cache_is_bounded_and_keeps_what_is_used() -> None:
    """By number and by memory."""
    cache = SchemaCache()
    first = cache.get(PERSON, "x")
    for at in range(600):
        cache.get({"const": at}, "x")
        assert cache.get(PERSON, "x") is first
    assert len(cache._kept) == 500
    for at in range(200):
        cache.get({"const": [at, "x" * 60_000]}, "x")
    assert cache._size <= 64 * 1024 * 1024
    assert len(cache._kept) < 100


def test_threads_may_share_the_cache() -> None:
    """Each gets what it asked for."""
    cache = SchemaCache()
    wrong: list[int] = []

    def work(at: int) -> None:
        for _ in range(30):
            if not cache.get({"const": at % 3}, "x").accepts(at % 3, 1):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong
