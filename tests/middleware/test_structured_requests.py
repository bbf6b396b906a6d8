"""Structured output: formats and schemas that are refused or let through, and the settings of the layer."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_llm_gateway.exchange import KEY
from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware

from ..conversation import ask, get
from ..structured import BAD, DIALECTS, GOOD, Model, asking, saying, tooling
from ..structured.engines import engine
from .structured_parts import told

__all__ = ["engine"]
pytestmark = pytest.mark.usefixtures("engine")  # all of it with each engine


@pytest.mark.parametrize(
    ("dialect", "change", "param"),
    [
        ("chat", {"response_format": 7}, "response_format"),
        ("chat", {"response_format": {}}, "response_format.type"),
        ("chat", {"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ("chat", {"response_format": {"type": "json_schema", "json_schema": 7}}, "response_format.json_schema"),
        ("responses", {"text": 7}, "text"),
        ("responses", {"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ("responses", {"background": True}, "background"),
        (
            "messages",
            {"output_config": {"format": {"type": "json_schema", "schema": []}}},
            "output_config.format.schema",
        ),
    ],
)
async def test_a_malformed_format_is_refused_by_its_place(dialect: str, change: dict[str, Any], param: str) -> None:
    """Before anything is asked."""
    model = Model(saying(dialect, GOOD))
    answer = await told(model, dialect, {**asking(dialect), **change})
    assert (answer.status, model.asked) == (400, [])
    assert param in answer.json()["error"]["message"]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_bad_schema_is_refused_before_anything_is_asked(dialect: str) -> None:
    """Its place is named as the client wrote it."""
    schema = {"type": "object", "properties": {"a": {"$ref": "http://169.254.169.254/latest"}}}
    model = Model(saying(dialect, GOOD))
    answer = await told(model, dialect, asking(dialect, schema))
    tool = await told(model, dialect, tooling(dialect, schema))
    assert (answer.status, tool.status, model.asked) == (400, 400, [])
    assert "schema.properties.a.$ref" in answer.json()["error"]["message"]
    assert ".properties.a.$ref" in tool.json()["error"]["message"]


async def test_formats_it_does_not_know_pass() -> None:
    """A grammar, or plain text, is between the client and the provider."""
    for kind in ("text", "grammar"):
        body = {**asking("chat"), "response_format": {"type": kind}}
        assert (await told(Model(saying("chat", "free")), "chat", body)).status == 200


@pytest.mark.parametrize(
    "setting", [{"native": "maybe"}, {"streams": "drop"}, {"retries": 4}, {"retries": -1}, {"truncated": "guess"}]
)
def test_a_wrong_setting_is_named(setting: dict[str, Any]) -> None:
    """When the stack is made."""
    with pytest.raises(ValueError, match=next(iter(setting))):
        StructuredOutputMiddleware(Model(saying("chat", GOOD)), **setting)


async def test_twice_with_equal_settings_it_does_its_work_once() -> None:
    """As every layer."""
    model = Model(saying("chat", BAD))
    layer = StructuredOutputMiddleware(StructuredOutputMiddleware(model))
    assert (await ask(layer, asking("chat"))).status == 422
    assert len(model.asked) == 2


async def test_its_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none are given."""
    monkeypatch.setenv("STRUCTURED_RETRIES", "0")
    model = Model(saying("chat", BAD))
    assert (await told(model, "chat")).status == 422
    assert len(model.asked) == 1


async def test_the_exchange_is_shared_with_the_app() -> None:
    """A second pass is the same call."""
    model = Model(saying("chat", BAD), saying("chat", GOOD))
    await told(model, "chat")
    assert model.scopes[0][KEY] is model.scopes[1][KEY]
    lengths = [dict(scope["headers"]).get(b"content-length") for scope in model.scopes]
    assert lengths[1] is not None
    assert int(lengths[1]) > 0
    assert (await get(StructuredOutputMiddleware(Gone()), "/v1/models")).status == 204


class Gone:
    """An app that has nothing to say."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
