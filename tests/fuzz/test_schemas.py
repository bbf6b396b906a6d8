"""Schemas that no client sends, at the whole stack: refused by their place or kept to, in bounded work."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.structured.compiled import SchemaCache

from ..security.house import chat, house
from ..structured.schemas import JUNK as SCHEMA_JUNK
from ..structured.schemas import SCHEMAS
from . import JUNK, ended, examples, outcome, spoilt
from .requests import SCHEMA

RICH: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://example.com/s",
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "v": {"type": "number"}}}},
    "type": "object",
    "properties": {
        "a": {"$ref": "#/$defs/node"},
        "b": {
            "type": "array",
            "items": {"enum": [1, "x", None]},
            "uniqueItems": True,
            "minItems": 1,
            "contains": {"const": 1},
        },
        "c": {"type": "string", "pattern": "^[a-z]{1,9}(x|y)*$", "minLength": 1, "maxLength": 5, "format": "date"},
        "d": {"anyOf": [{"type": "integer", "multipleOf": 3}, {"not": {"type": "integer"}}]},
        "e": {"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"maximum": 9}},
    },
    "patternProperties": {"^x-": {"type": "string"}},
    "propertyNames": {"maxLength": 20},
    "dependentRequired": {"a": ["b"]},
    "required": ["a"],
    "additionalProperties": False,
    "unevaluatedProperties": False,
}


@examples(150)
@given(schema=spoilt((RICH, SCHEMA), most=4) | SCHEMAS | SCHEMA_JUNK, value=JUNK)
def test_any_schema_is_compiled_or_refused_and_judges_in_bounded_work(schema: Any, value: Any) -> None:
    """A29, A34: 400 with its place, or a verdict; no schema and no value takes longer than its steps allow."""
    try:
        schema = json.loads(json.dumps(schema))
    except RecursionError:
        return
    with ended():
        made, refusal = outcome(lambda: SchemaCache().get(schema, "response_format.json_schema.schema"))
        if refusal is not None:
            assert refusal.http_status == 400
            assert refusal.param is not None
            assert refusal.param.startswith("response_format.json_schema.schema")
        elif made is not None:
            whole = len(json.dumps(value))
            assert made.accepts(value, whole) == (not made.faults(value, whole))


@examples(60)
@given(schema=spoilt((RICH, SCHEMA), most=4) | SCHEMAS, stream=st.booleans(), strict=st.booleans())
def test_any_schema_in_a_request_is_answered_or_refused(schema: Any, stream: bool, strict: bool) -> None:
    """By the whole stack: 422 at last where no answer matches it; never a 5xx, and nothing stays held."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}

    async def asked() -> tuple[Any, int]:
        made = await house()
        async with asyncio.timeout(20):
            answer = await made.ask(chat(response_format=form, stream=stream, max_tokens=50))
        await made.proxy.aclose()
        return answer, await made.held()

    answer, held = asyncio.run(asked())
    assert 200 <= answer.status < 500, (answer.status, answer.body[:300])
    assert held == 0
