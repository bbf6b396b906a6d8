"""What is no schema is refused as the meta-schema refuses it, with its place and what to do."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.errors import BadRequest
from asgi_llm_gateway.structured.compiled import SchemaCache
from asgi_llm_gateway.structured.meta import complaint
from asgi_llm_gateway.structured.plain import Plain

from .schemas import JUNK, SCHEMAS

META = jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA)
KEYWORDS = (
    "type", "enum", "const", "multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum",
    "maxLength", "minLength", "maxItems", "minItems", "uniqueItems", "maxContains", "minContains", "maxProperties",
    "minProperties", "required", "dependentRequired", "title", "description", "default", "deprecated", "readOnly",
    "writeOnly", "examples", "format", "contentEncoding", "contentMediaType", "$comment", "x-unknown",
)  # fmt: skip
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([None, True, False, 0, 1, -1, 2.0, 1.5, -0.5, "", "string", "object", "x", 10**30, float(10**30)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(KEYWORDS), ANYTHING)
def test_a_keyword_is_refused_where_the_meta_schema_refuses_it(name: str, value: Any) -> None:
    """And nowhere else."""
    assert (not complaint(name, value)) is META.is_valid({name: value})


OURS = ("reference", "pattern", "not supported", "leads", "multiply", "levels deep")  # what goes beyond the meta-schema


@settings(max_examples=400, deadline=None)
@given(JUNK | SCHEMAS)
def test_a_schema_is_refused_where_the_meta_schema_refuses_it(junk: Any) -> None:
    """But for names, which mean nothing here; and what is refused for its cost, or its references, says so."""
    try:
        schema = orjson.loads(json.dumps(junk))
    except orjson.JSONDecodeError:
        assume(False)
    assume(type(schema) is dict and not any(name in json.dumps(schema) for name in ('"$id"', '"$schema"')))
    told = ""
    try:
        SchemaCache(engine=Plain).get(schema, "schema")
    except BadRequest as error:
        told = error.message
    if META.is_valid(schema):
        assert not told or any(word in told for word in OURS)
    else:
        assert told


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "strnig"}, "one of null, boolean,"),
        ({"type": []}, "one of null, boolean,"),
        ({"minLength": 1.5}, "whole number"),
        ({"maximum": "3"}, "a number"),
        ({"multipleOf": 0}, "greater than 0"),
        ({"required": ["a", "a"]}, "different strings"),
        ({"dependentRequired": {"a": "b"}}, "arrays of different strings"),
        ({"uniqueItems": 1}, "true or false"),
        ({"enum": "a"}, "an array"),
        ({"title": 7}, "a string"),
        ({"anyOf": []}, "an array of schemas"),
        ({"contentSchema": {"type": 7}}, "one of null"),
    ],
)
def test_a_complaint_says_what_the_keyword_takes(schema: dict[str, Any], told: str) -> None:
    """Both engines the same, for neither is asked."""
    with pytest.raises(BadRequest) as caught:
        SchemaCache(engine=Plain).get(schema, "schema")
    assert told in caught.value.message
    assert caught.value.param is not None
    assert caught.value.param.startswith(f"schema.{next(iter(schema))}")
