"""The description: made from the table of routes, valid, and true."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from starlette.routing import Route

from asgi_llm_gateway.admin.answers import ErrorAnswer
from asgi_llm_gateway.admin.routes import OPERATIONS

from ..conversation import Answer
from ..traces.parts import record
from .conftest import Office


async def described(office: Office) -> Any:
    """The document, as it is served."""
    answer = await office.get("/api/openapi.json")
    assert answer.status == 200
    return answer.json()


async def test_the_document_is_valid(office: Office) -> None:
    """OpenAPI 3.1, by the specification's own schema."""
    document = await described(office)
    assert document["openapi"].startswith("3.1")
    validate(document)


async def test_every_route_is_described_and_nothing_else(office: Office) -> None:
    """Method by method, from what the app really serves."""
    served = {
        (method.lower(), route.path)
        for route in office.app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    paths = (await described(office))["paths"]
    assert {(method, path) for path, item in paths.items() for method in item} == served
    names = [operation["operationId"] for item in paths.values() for operation in item.values()]
    assert len(names) == len(set(names))


async def test_every_operation_says_who_may_ask(office: Office) -> None:
    """A summary, a bearer key for all but the health check, and what is refused."""
    document = await described(office)
    assert document["security"] == [{"key": []}]
    for one in OPERATIONS:
        operation = document["paths"][one.path][one.method.lower()]
        assert operation["summary"]
        assert "security" not in operation
        assert ("tenant's own key" in operation["description"]) == one.tenant
        assert {"401", "403", "503"} <= set(operation["responses"])


async def test_every_field_that_is_taken_is_closed(office: Office) -> None:
    """No object of the document takes fields that it does not list."""
    schemas = (await described(office))["components"]["schemas"]
    for name, schema in schemas.items():
        assert schema["additionalProperties"] is False, name


@pytest.mark.parametrize("one", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
async def test_what_is_answered_is_what_is_described(office: Office, one: Any) -> None:
    """A real answer of each operation, and a refusal, against the document's schemas."""
    document = await described(office)
    await office.team(budget_usd=5, metadata={"a": "b"})
    key = await office.key(budget_usd=1)
    await office.settle(cost=5, model="echo", overdraft=1)
    await office.ask("POST", "/api/tenants/team/adjustments", {"amount_usd": 5, "reason": "r"})
    bodies = {"create_tenant": {"id": "new"}, "adjust": {"amount_usd": -1.5, "reason": "r"}}
    office.traces.add(record(1))
    path = one.path.format(id="team", key_id=key["id"], trace_id="req-1")
    answer = await office.ask(one.method, path, bodies.get(one.handler.__name__, {}) if one.body else None)
    assert answer.status == one.status
    told = document["paths"][one.path][one.method.lower()]["responses"]
    _check(document, told[str(answer.status)], answer)
    refused = await office.ask(one.method, path, {}, key=None)
    assert set(refused.json()) == set(ErrorAnswer.model_fields)
    _check(document, told["401"], refused)


def _check(document: Any, told: Any, answer: Answer) -> None:
    if answer.status == 204:
        assert "content" not in told
        assert answer.body == b""
        return
    schema = {**told["content"]["application/json"]["schema"], "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(json.loads(answer.body))


async def test_the_document_is_guarded_like_the_rest(office: Office) -> None:
    """401 without a key, 403 for a tenant."""
    await office.team()
    key = (await office.key())["key"]
    assert (await office.get("/api/openapi.json", key=None)).status == 401
    assert (await office.get("/api/openapi.json", key=key)).status == 403
