"""The admin API's description. Source: OpenAPI Specification 3.1.1."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from .. import __version__
from .answers import ErrorAnswer
from .visit import Visit

_REF = "#/components/schemas/{model}"
_ERRORS = {
    "401": "No key, or one that is unknown, revoked or expired.",
    "403": "The API is closed, or the key may not do this.",
    "503": "The store does not answer; nothing was decided.",
}
_HEALTH = {
    "operationId": "health",
    "summary": "The process answers; nothing else is asked.",
    "security": [],
    "responses": {"200": {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}}},
}
_READY = {
    "operationId": "ready",
    "summary": "Whether calls should come here: the stores answer, and the process does not end. Parts for admins only.",
    "security": [{}, {"key": []}],
    "responses": {
        status: {"description": said, "content": {"application/json": {"schema": {"type": "object"}}}}
        for status, said in {"200": "Ready.", "503": "Not ready, or draining."}.items()
    },
}
_PARAMETERS = {"id": "A tenant's id.", "key_id": "A key's id.", "trace_id": "A trace's id, or a request's."}


class Operation(NamedTuple):
    """A row of the table that makes both the routes and their description.

    ``body``, ``query`` and ``answer`` are the models of what is taken and given; ``tenant``: a tenant's own key may ask,
    for its own; ``also`` are more answers by status; ``csv``: the answer may be had as CSV too.
    """

    method: str
    path: str
    handler: Callable[[Visit], Awaitable[Response]]
    status: int = 200
    answer: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    tenant: bool = False
    csv: bool = False
    also: tuple[tuple[int, str], ...] = ()


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document of these operations."""
    asked = {model for one in operations for model in (one.body, one.query) if model is not None}
    given = {one.answer for one in operations if one.answer is not None} | {ErrorAnswer}
    pairs: list[Any] = [(model, "validation") for model in asked] + [(model, "serialization") for model in given]
    pairs.sort(key=lambda pair: pair[0].__name__)
    _, definitions = models_json_schema(pairs, ref_template=_REF)
    schemas = definitions["$defs"]
    queries = {one.query.__name__ for one in operations if one.query is not None}
    paths: dict[str, dict[str, Any]] = {"/health": {"get": _HEALTH}, "/ready": {"get": _READY}}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "asgi-llm-gateway admin API",
            "version": __version__,
            "description": "Amounts (`*_usd`) are JSON numbers of at most 9 decimals and exact: read them as decimals.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {name: schema for name, schema in schemas.items() if name not in queries},
        },
    }


def _operation(one: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    told = inspect.getdoc(one.handler) or ""
    summary, _, rest = told.partition("\n\n")
    who = "For admins, and for a tenant's own key." if one.tenant else "For admins."
    parameters = [
        {"name": name, "in": "path", "required": True, "description": _PARAMETERS[name], "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", one.path)
    ]
    if one.query is not None:
        shape = schemas[one.query.__name__]
        for name, schema in shape["properties"].items():
            parameters.append(
                {"name": name, "in": "query", "required": name in shape.get("required", ()), "schema": schema}
            )
    found: dict[str, Any] = {
        "operationId": one.handler.__name__,
        "summary": " ".join(summary.split()),
        "description": "\n\n".join(part for part in (rest, who) if part),
        "responses": _responses(one),
    }
    if parameters:
        found["parameters"] = parameters
    if one.body is not None:
        needed = bool(schemas[one.body.__name__].get("required"))
        found["requestBody"] = {"required": needed, "content": _content(one.body)}
    return found


def _responses(one: Operation) -> dict[str, Any]:
    done: dict[str, Any] = {"description": "Done."}
    if one.answer is not None:
        done["content"] = _content(one.answer)
    elif one.status != 204:
        done["content"] = {"application/json": {"schema": {"type": "object"}}}
    if one.csv:
        done["content"]["text/csv"] = {"schema": {"type": "string"}}
    errors = dict(_ERRORS)
    if "{" in one.path:
        errors["404"] = "There is none of that id."
    if one.body is not None:
        errors["400"] = "The body is not valid JSON."
        errors["413"] = "The body is too long."
    if one.body is not None or one.query is not None:
        errors["422"] = "A field is unknown, missing or out of its bounds; `param` names it."
    found = {str(one.status): done}
    for status, told in one.also:
        if status < 400:
            found[str(status)] = {**done, "description": told}
        else:
            errors[str(status)] = told
    for code, told in sorted(errors.items()):
        found[code] = {"description": told, "content": _content(ErrorAnswer)}
    return found


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
