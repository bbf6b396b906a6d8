"""What Anthropic's models can do, by their names, and the JSON Schema that they take.

Sources: Anthropic API documentation, "Models overview", "Extended thinking" and "Structured outputs", autumn 2026. A
name that is not understood (an alias, a deployment) is taken for a present model: the provider has the last word.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import orjson

from .base import Unsupported

Version = tuple[int, int]

# claude-sonnet-4-20250514, claude-opus-4-1-20250805, claude-haiku-4.5; the older claude-3-5-sonnet-20241022.
_NEW = re.compile(r"claude-([a-z]+)-(\d)(?:[-.](\d{1,2}))?(?!\d)")
_OLD = re.compile(r"claude-(\d)(?:[-.](\d))?-([a-z]+)")

_FIXED_SAMPLING: dict[str, Version] = {
    "opus": (4, 7),
    "sonnet": (5, 0),
    "haiku": (5, 5),
    "fable": (5, 0),
    "mythos": (0, 0),
}
_NO_FORCED_TOOLS: dict[str, Version] = {"opus": (5, 5), "sonnet": (5, 5), "fable": (5, 1), "mythos": (5, 1)}
_LATER_SYSTEM: dict[str, Version] = {
    "opus": (4, 8),
    "sonnet": (5, 0),
    "haiku": (5, 5),
    "fable": (5, 0),
    "mythos": (5, 0),
}
_ALWAYS_THINKING: dict[str, Version] = {"opus": (5, 5), "sonnet": (5, 5), "fable": (5, 1), "mythos": (5, 1)}


class Abilities(NamedTuple):
    """What a model can do.

    Attributes:
        sampling: Takes another temperature, top_p or top_k than the default.
        forced_tools: Can be made to call a tool.
        later_system: Takes a system message amid the conversation.
        schemas: Has structured outputs and strict tools.
        thinking: How it is made to think: adaptively, by a budget of tokens, or not at all.
        rests: Can be told not to think.
        prefill: Goes on from an assistant message.
    """

    sampling: bool = True
    forced_tools: bool = True
    later_system: bool = False
    schemas: bool = True
    thinking: Literal["adaptive", "budget"] | None = "adaptive"
    rests: bool = True
    prefill: bool = True


def abilities(model: str, api_version: str = "2023-06-01") -> Abilities:
    """What a model can do in a version of the API."""
    sampling = api_version < "2026"  # later versions have no sampling parameters at all
    found = _NEW.search(model)
    if found is not None:
        family, major, minor = found.groups()
    elif (found := _OLD.search(model)) is not None:
        major, minor, family = found.groups()
    else:
        return Abilities(sampling)
    version = (int(major), int(minor or 0))

    def since(table: dict[str, Version]) -> bool:
        return family in table and version >= table[family]

    return Abilities(
        sampling=sampling and not since(_FIXED_SAMPLING),
        forced_tools=not since(_NO_FORCED_TOOLS),
        later_system=since(_LATER_SYSTEM),
        schemas=version >= (4, 5),
        thinking="adaptive" if version >= (4, 6) else "budget" if version >= (3, 7) else None,
        rests=not since(_ALWAYS_THINKING),
        prefill=version <= (4, 5),
    )


# "Structured outputs", JSON Schema limitations. What they can't hold is told to the model in words instead.
_WORDLESS = frozenset(
    {
        "maxItems", "uniqueItems", "contains", "minContains", "maxContains", "prefixItems", "minimum", "maximum",
        "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minProperties", "maxProperties",
        "patternProperties", "propertyNames", "dependentRequired", "dependentSchemas", "dependencies",
        "unevaluatedProperties", "unevaluatedItems", "if", "then", "else", "not",
    }
)  # fmt: skip
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"})
_MAPS = frozenset({"properties", "$defs", "definitions"})
_LISTS = frozenset({"anyOf", "allOf"})


def strict_schema(schema: Any, place: str) -> Any:
    """The schema in the part of JSON Schema that the provider enforces; ``place`` names it in a refusal.

    What is taken out goes into the description. An object that is open for any property can't be told: Unsupported.
    """
    if type(schema) is not dict:
        return schema
    kept: dict[str, Any] = {}
    lost: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _MAPS and type(value) is dict:
            kept[name] = {inner: strict_schema(one, place) for inner, one in value.items()}
        elif name in _LISTS and type(value) is list:
            kept[name] = [strict_schema(one, place) for one in value]
        elif name == "items":
            kept[name] = strict_schema(value, place)
        elif name == "oneOf" and type(value) is list and "anyOf" not in schema:
            kept["anyOf"] = [strict_schema(one, place) for one in value]
        elif (
            name in _WORDLESS
            or name == "oneOf"
            or (name == "minItems" and value not in (0, 1))
            or (name == "format" and (type(value) is not str or value not in _FORMATS))
            or (name == "pattern" and type(value) is str and "(?" in value.replace("(?:", ""))
        ):
            lost[name] = value
        else:
            kept[name] = value
    kinds = schema.get("type")
    if kinds == "object" or (type(kinds) is list and "object" in kinds) or "properties" in schema:
        closed = schema.get("additionalProperties") is False
        told = schema.get("properties") or ("properties" in schema and "additionalProperties" not in schema)
        if not (closed or told or not {"anyOf", "oneOf", "allOf", "$ref"}.isdisjoint(schema)):
            raise Unsupported(f"'{place}' has an object without 'properties': Anthropic's structured outputs need each "
                              "one named.", param=place)  # fmt: skip
        if type(schema.get("additionalProperties")) is dict:
            lost["additionalProperties"] = schema["additionalProperties"]
        kept["additionalProperties"] = False
    if lost:
        words = f"Must satisfy: {orjson.dumps(lost).decode()}"
        before = kept.get("description")
        kept["description"] = f"{before}\n{words}" if type(before) is str and before else words
    return kept
