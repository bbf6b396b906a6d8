"""JSON answers from models without structured outputs: a tool that the model is made to call, whose input is the answer.

Source: Anthropic docs, "Tool use", "JSON mode" (of models before 4.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._anthropic_messages import safe_name
from .base import Unsupported

_NAME = "json_answer"
_SAID = "Gives the answer to the user: what is asked for, as this tool's input. Call it once, with the whole answer."


def answer_tool_name(data: Mapping[str, Any]) -> str | None:
    """The name that the answer tool of a chat request has or would have; ``None`` where no JSON is asked for."""
    wanted = data.get("response_format")
    if type(wanted) is not dict or wanted.get("type") not in ("json_object", "json_schema"):
        return None
    taken = set()
    tools = data.get("tools")
    for tool in tools if type(tools) is list else ():
        function = tool.get("function") if type(tool) is dict else None
        name = function.get("name") if type(function) is dict else None
        if type(name) is str:
            taken.add(safe_name(name))
    name = _NAME
    while name in taken:
        name += "_"
    return name


def answer_tool(data: Mapping[str, Any], schema: dict[str, Any] | None) -> dict[str, Any]:
    """The tool; ``schema`` is what the answer must be, ``None`` for any JSON object. Raises Unsupported."""
    if schema is None:
        schema = {"type": "object", "additionalProperties": True}
    if schema.get("type", "object") != "object" or not {"anyOf", "oneOf", "allOf"}.isdisjoint(schema):
        raise Unsupported("'response_format' must be a schema of one object: this model has no structured outputs. Put it "
                          "into a property of an object, or use a newer model.", param="response_format")  # fmt: skip
    return {"name": answer_tool_name(data), "description": _SAID, "input_schema": {"type": "object", **schema}}
