"""What each of Anthropic's models can do, and the part of a schema that they enforce."""

from __future__ import annotations

import pytest

from asgi_llm_gateway.adapters._anthropic_models import Abilities, abilities, strict_schema
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter

from .anthropic_asking import request


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("claude-3-5-sonnet-20241022", Abilities(schemas=False, thinking=None)),
        ("claude-3-7-sonnet-latest", Abilities(schemas=False, thinking="budget")),
        ("claude-3-opus-20240229", Abilities(schemas=False, thinking=None)),
        ("claude-sonnet-4-20250514", Abilities(schemas=False, thinking="budget")),
        ("claude-opus-4-1-20250805", Abilities(schemas=False, thinking="budget")),
        ("claude-haiku-4-5@20251001", Abilities(thinking="budget")),
        ("us.anthropic.claude-opus-4-6-v1:0", Abilities(prefill=False)),
        ("anthropic/claude-sonnet-4.6", Abilities(prefill=False)),
        ("claude-opus-4-7", Abilities(sampling=False, prefill=False)),
        ("claude-opus-5", Abilities(sampling=False, later_system=True, prefill=False)),
        ("claude-haiku-5-5", Abilities(sampling=False, later_system=True, prefill=False)),
        ("claude-opus-5-5", Abilities(False, False, True, True, "adaptive", False, False)),
        ("our-own-name", Abilities()),
    ],
)
def test_what_a_model_can_do(model: str, expected: Abilities) -> None:
    """By its name; what is not known is taken for a present one."""
    assert abilities(model) == expected


def test_the_later_version_has_no_sampling() -> None:
    """Not even default values."""
    later = AnthropicAdapter("a", "http://h", version="2026-10-21")
    found = later.request(request(temperature=0.5, top_k=3), "claude-opus-4-5")
    assert (b"anthropic-version", b"2026-10-21") in found.endpoint.headers
    assert found.dropped == ("temperature", "top_k")
    assert b"temperature" not in later.request(request(temperature=1), "claude-opus-4-5").body


def test_a_schema_in_the_part_that_is_enforced() -> None:
    """Every object closed; what can't be told is told in words."""
    written = strict_schema(
        {
            "type": "object",
            "properties": {
                "minimum": {"type": "integer", "minimum": 1, "description": "How many."},
                "tags": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"a": {}}},
                    "maxItems": 3,
                    "minItems": 1,
                },
                "when": {"type": "string", "format": "date-time"},
                "code": {"type": "string", "format": "regex", "pattern": "(?=a)b"},
                "plain": {"type": "string", "pattern": "^(?:a|b)$"},
                "any": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
                "one": {"oneOf": [{"type": "string"}, {"$ref": "#/$defs/other"}]},
            },
            "required": ["tags"],
            "$defs": {
                "other": {"type": "object", "properties": {"x": True}, "additionalProperties": {"type": "string"}}
            },
        },
        "response_format",
    )
    properties = written["properties"]
    assert properties["minimum"] == {"type": "integer", "description": 'How many.\nMust satisfy: {"minimum":1}'}
    assert properties["tags"] == {
        "type": "array",
        "items": {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
        "minItems": 1,
        "description": 'Must satisfy: {"maxItems":3}',
    }
    assert properties["when"] == {"type": "string", "format": "date-time"}
    assert set(properties["code"]) == {"type", "description"}
    assert properties["plain"]["pattern"] == "^(?:a|b)$"
    assert properties["any"]["anyOf"] == [
        {"type": "integer", "description": 'Must satisfy: {"minimum":1}'},
        {"type": "null"},
    ]
    assert properties["one"] == {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/other"}]}
    assert written["$defs"]["other"]["additionalProperties"] is False
    assert "additionalProperties" in written["$defs"]["other"]["description"]
    assert (written["required"], written["additionalProperties"]) == (["tags"], False)
