"""The admin API, asked at random as its own description allows, and as it does not."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlencode

import jsonschema
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.admin.openapi import document
from asgi_llm_gateway.admin.routes import OPERATIONS

from ..admin.conftest import Office
from ..conversation import Answer
from . import JUNK, TEXTS, examples, spoilt

DOCUMENT = document(OPERATIONS)
CALLS = [
    (method.upper(), path, told)
    for path, by in sorted(DOCUMENT["paths"].items())
    for method, told in sorted(by.items())
]
IDS = st.sampled_from(["team", "team", "other", "new", "nobody"]) | TEXTS.filter(lambda text: not set(text) & set("/?"))


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that may be a reference into the document."""
    while "$ref" in schema:
        found: Any = DOCUMENT
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a schema of the document allows, or nearly so."""
    schema = resolved(schema)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    if "anyOf" in schema:
        return st.one_of([values(one) for one in schema["anyOf"]])
    match schema.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum", -5), min(schema.get("maximum", 10**6), 10**9))
        case "number":
            numbers = st.integers(0, 10**6) | st.decimals(0, 1000, places=9).map(float)
            return numbers if schema.get("minimum", 0) >= 0 else numbers.map(lambda one: -one)
        case "string":
            return TEXTS | st.sampled_from(
                ["team", "other", "monthly", "12h", "2026-10-15T12:00:00Z", "1792065600", "echo"]
            )
        case "array":
            return st.lists(values(schema.get("items", {})), max_size=3)
        case "object" if "properties" in schema:
            needed, properties = set(schema.get("required", ())), schema["properties"]
            return st.fixed_dictionaries(
                {name: values(one) for name, one in properties.items() if name in needed},
                optional={name: values(one) for name, one in properties.items() if name not in needed},
            )
        case "object":
            more = schema.get("additionalProperties")
            return st.dictionaries(TEXTS, values(more) if isinstance(more, dict) else JUNK, max_size=2)
    return JUNK


@st.composite
def asked(draw: st.DrawFn) -> tuple[str, str, str, Any, dict[str, Any]]:
    """Method, path as described, path as asked, body, and what the document says of it."""
    method, template, told = draw(st.sampled_from(CALLS))
    path = template
    for one in told.get("parameters", ()):
        if one["in"] == "path":
            path = path.replace("{" + one["name"] + "}", draw(IDS) or "x")
    query = {
        one["name"]: draw(values(one["schema"]) | TEXTS)
        for one in told.get("parameters", ())
        if one["in"] == "query" and draw(st.booleans())
    }
    if query:
        path += "?" + urlencode(query)
    body = None
    if "requestBody" in told:
        body = draw(values(told["requestBody"]["content"]["application/json"]["schema"]))
        how = draw(st.integers(0, 5))
        if how == 0 and body:
            body = draw(spoilt(body))
        elif how == 1:
            body = draw(JUNK | st.binary(max_size=30))
    return method, template, path, body, told


def check(answer: Answer, told: dict[str, Any], where: str) -> None:
    """The answer is one that the document foresees, in its shape."""
    assert answer.status < 500, (where, answer.body[:300])
    foreseen = told["responses"].get(str(answer.status))
    assert foreseen is not None, (where, answer.status, answer.body[:300])
    content = foreseen.get("content", {})
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if content:
        assert kind in content, (where, kind)
    if kind == "application/json" and answer.body:
        schema = {**content[kind]["schema"], "components": DOCUMENT["components"]}
        jsonschema.Draft202012Validator(schema).validate(json.loads(answer.body))


@examples(120)
@given(st.lists(asked(), min_size=1, max_size=6))
def test_whatever_is_asked_is_answered_as_described(calls: list[tuple[str, str, str, Any, dict[str, Any]]]) -> None:
    """One after the other on the same store: no 5xx, no status and no shape that the document does not name."""

    async def run() -> None:
        office = Office()
        await office.team(budget_usd=5)
        await office.key()
        await office.settle(cost=1000)
        for method, template, path, body, told in calls:
            async with asyncio.timeout(20):
                raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
                answer = await office.ask(method, path, raw)
            check(answer, told, f"{method} {template}: {path} {body!r:.200}")

    asyncio.run(run())


@examples(150)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]),
    path=st.text(st.sampled_from("/apitenskyrcodv.%;\\ \x00Aé{}?&="), max_size=24),
    body=st.binary(max_size=20),
    key=st.sampled_from([None, "", "x", "é", "gw-" + "a" * 300]),
)
def test_without_a_key_nothing_is_learnt_on_any_path(method: str, path: str, body: bytes, key: str | None) -> None:
    """A08: one refusal for all that lies below /api, whatever it is."""

    async def run() -> tuple[Answer, Answer]:
        office = Office()
        return await office.ask(method, "/api/" + path, body, key=key), await office.get("/api/tenants", key=None)

    answer, usual = asyncio.run(run())
    assert answer.status == 401
    assert answer.body in (usual.body, b"")  # HEAD has none
