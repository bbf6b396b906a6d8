"""A Messages request in chat's words. Source: Anthropic API reference, "Messages", 2023-06-01 (and 2026-10-21).

What changes the meaning and has no word in chat is refused by name. A hint that has none is left out, and told in
``Asked.dropped``, as is every field that is not known. Bookkeeping for the provider (``cache_control``) goes silently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import orjson

from ..errors import BadRequest, NoThreads
from ..wire import LLMRequest, may_be_huge
from ._messages_turns import Conversation
from ._messages_words import Block, Dropped, no_word_for, short_name, wrong
from .base import Asked

MAX_STOPS = 4
"""Stop sequences that chat takes. Source: OpenAI API reference, "Create chat completion"."""

MAX_USER = 64
"""Characters of ``user`` that OpenAI takes; a longer id goes as its SHA-256, which has as many."""

# What is told as left out, unless it has this value, which asks for nothing. Any field that is not named here, too.
_HINTS: Mapping[str, Any] = {"speed": "standard", "inference_geo": "global"}
_MAPPED = frozenset(
    {
        "model", "messages", "max_tokens", "system", "stream", "tools", "tool_choice", "stop_sequences", "temperature",
        "top_p", "metadata", "thinking", "output_config", "output_format", "service_tier", "cache_control", "tenant",
    }
)  # fmt: skip
_REFUSED: Mapping[str, str] = {
    "container": "asks for a container of Anthropic's",
    "mcp_servers": "asks Anthropic to call MCP servers",
    "compaction": "asks Anthropic for a summary of the conversation",
}
_TOOL = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_TIERS = {"standard_only": "default"}
# Keywords of JSON Schema that OpenAI's strict mode refuses ("Structured Outputs", "Supported schemas").
_LOOSE = frozenset(
    {"allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties"}
)


def ask(request: LLMRequest) -> Asked:
    """Write a request. Raises Unsupported, BadRequest."""
    dropped = Dropped()
    try:
        return Asked(_Writer(request, dropped).write(), dropped.names)
    except RecursionError:
        raise BadRequest("The body is nested too deeply.", code="invalid_json") from None


class _Writer:
    """Writes one body."""

    def __init__(self, request: LLMRequest, dropped: Dropped) -> None:
        self._request = request
        self._data = {name: value for name, value in request.data.items() if value is not None}
        self._dropped = dropped

    def write(self) -> Block:
        """The whole body."""
        data = self._data
        self._refuse()
        messages = Conversation(self._dropped).write(data.get("system"), _exact(self._request))
        body: Block = {"model": self._request.model, "messages": messages}
        if self._request.max_tokens is not None:
            body["max_tokens"] = self._request.max_tokens
        if self._request.stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        self._put_tools(body)
        self._put_thinking(body)
        self._put_format(body)
        for name in ("temperature", "top_p"):
            if name in data:
                if type(data[name]) not in (int, float) or not 0 <= data[name] <= 1:
                    raise wrong(name, "a number from 0 to 1")
                body[name] = data[name]
        if stops := self._stops():
            body["stop"] = stops
        if user := self._user():
            body["user"] = user
        if (tier := data.get("service_tier")) not in (None, "auto"):
            if type(tier) is not str or tier not in _TIERS:
                raise wrong("service_tier", "'auto' or 'standard_only'")
            body["service_tier"] = _TIERS[tier]
        return body

    def _refuse(self) -> None:
        for name, value in self._data.items():
            if name in _MAPPED:
                continue
            if name == "thread":
                raise NoThreads
            if name in _REFUSED:
                if value != []:
                    raise no_word_for(name, _REFUSED[name])
            elif name == "context_management":
                self._edits(value)
            elif name not in _HINTS or value != _HINTS[name]:
                if name == "inference_geo":  # where the data may go is nothing to be quiet about
                    raise no_word_for(name, "asks for a place of inference")
                self._dropped.add(name)

    def _edits(self, value: Any) -> None:
        """What Anthropic would take out of the context. Thoughts are not sent at all: to clear them asks for nothing."""
        edits = value.get("edits", []) if type(value) is dict else None
        if type(edits) is not list or not all(type(edit) is dict for edit in edits):
            raise wrong("context_management", "an object with 'edits'")
        for at, edit in enumerate(edits):
            kind = edit.get("type")
            if type(kind) is not str or not kind.startswith("clear_thinking"):
                raise no_word_for(f"context_management.edits[{at}]", "asks Anthropic to edit the conversation")
        if edits:
            self._dropped.add("context_management")

    # -- tools ---------------------------------------------------------------------------------------------------------

    def _put_tools(self, body: Block) -> None:
        given = self._data.get("tools", [])
        if type(given) is not list:
            raise wrong("tools", "an array")
        choice = self._data.get("tool_choice")
        if choice is not None and type(choice) is not dict:
            raise wrong("tool_choice", "an object")
        if not given:
            if choice is not None and choice.get("type") in ("any", "tool"):
                raise BadRequest("'tool_choice' asks for a call, and there are no 'tools'.", param="tool_choice")
            return
        body["tools"] = [self._tool(tool, f"tools[{at}]") for at, tool in enumerate(given)]
        if choice is None:
            return
        kind, name = choice.get("type"), choice.get("name")
        if type(kind) is str and kind in _CHOICES:
            body["tool_choice"] = _CHOICES[kind]
        elif kind == "tool":
            if type(name) is not str or name not in [tool["name"] for tool in given]:
                raise wrong("tool_choice.name", "the name of one of 'tools'")
            body["tool_choice"] = {"type": "function", "function": {"name": short_name(name)}}
        else:
            raise wrong("tool_choice.type", "'auto', 'any', 'tool' or 'none'")
        alone = choice.get("disable_parallel_tool_use")
        if alone is not None and type(alone) is not bool:
            raise wrong("tool_choice.disable_parallel_tool_use", "true or false")
        if alone and kind != "none":
            body["parallel_tool_calls"] = False

    def _tool(self, tool: Any, place: str) -> Block:
        if type(tool) is not dict:
            raise wrong(place, "an object")
        kind, name, schema = tool.get("type"), tool.get("name"), tool.get("input_schema")
        if kind not in (None, "custom"):
            raise no_word_for(f"{place}.type", f"is '{str(kind)[:40]}', a tool of Anthropic's own",
                              "Describe a tool of yours by 'input_schema'.")  # fmt: skip
        if type(name) is not str or not name:
            raise wrong(f"{place}.name", "a string")
        if type(schema) is not dict:
            raise wrong(f"{place}.input_schema", "an object")
        function: Block = {"name": short_name(name), "parameters": schema}
        told = tool.get("description")
        if told is not None and type(told) is not str:
            raise wrong(f"{place}.description", "a string")
        if told:
            function["description"] = told
        if tool.get("strict") is True:
            if is_strict(schema):
                function["strict"] = True
            else:
                self._dropped.add("strict", "tools.")
        if not _TOOL.issuperset(tool):
            for more in tool.keys() - _TOOL:
                if tool[more] not in (None, False, [], ["direct"]):
                    self._dropped.add(more, "tools.")
        return {"type": "function", "function": function}

    # -- how to answer -------------------------------------------------------------------------------------------------

    def _config(self) -> Block:
        config = self._data.get("output_config", {})
        if type(config) is not dict:
            raise wrong("output_config", "an object")
        for name in config.keys() - {"effort", "format"}:
            self._dropped.add(name, "output_config.")
        return config

    def _put_thinking(self, body: Block) -> None:
        """How hard to think. A budget of tokens becomes a word; "as you see fit" is what a model does unasked."""
        effort = self._config().get("effort")
        thinking = self._data.get("thinking")
        if thinking is not None:
            kind = thinking.get("type") if type(thinking) is dict else None
            if kind == "enabled":
                budget = thinking.get("budget_tokens")
                if type(budget) is not int or budget < 1:
                    raise wrong("thinking.budget_tokens", "a whole number of at least 1")
                # The inverse of what the Anthropic adapter makes of these words; those above are not every model's.
                effort = effort or ("low" if budget < 2048 else "medium" if budget < 4096 else "high")
            elif kind == "disabled":
                self._dropped.add("thinking")  # there is no word for it that every model takes
            elif kind not in ("adaptive", "between_tools"):
                raise wrong("thinking.type", "'enabled', 'adaptive', 'between_tools' or 'disabled'")
        if effort is not None:
            if type(effort) is not str or effort not in _EFFORTS:
                raise wrong("output_config.effort", f"one of {', '.join(_EFFORTS)}")
            body["reasoning_effort"] = effort

    def _put_format(self, body: Block) -> None:
        """A schema for the answer. It binds the model where it is one that OpenAI's strict mode takes."""
        place = "output_config.format"
        wanted = (self._data.get("output_config") or {}).get("format")
        if wanted is None and "output_format" in self._data:  # its name before there was output_config
            place, wanted = "output_format", self._data["output_format"]
        if wanted is None:
            return
        if type(wanted) is not dict or wanted.get("type") != "json_schema":
            raise wrong(f"{place}.type", "'json_schema'")
        schema = wanted.get("schema")
        if type(schema) is not dict:
            raise wrong(f"{place}.schema", "an object")
        strict = is_strict(schema)
        if not strict:
            self._dropped.add("strict", f"{place}.")
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": strict},
        }

    def _stops(self) -> list[str]:
        stops = self._data.get("stop_sequences", [])
        if type(stops) is not list or not all(type(one) is str and one for one in stops):
            raise wrong("stop_sequences", "an array of strings")
        if len(stops) > MAX_STOPS:
            raise no_word_for("stop_sequences", f"has {len(stops)} entries", f"Send at most {MAX_STOPS}.")
        return stops

    def _user(self) -> str | None:
        """Who asks. ``user`` and not ``safety_identifier``: it is the older name, which most servers take or pass over."""
        metadata = self._data.get("metadata", {})
        if type(metadata) is not dict:
            raise wrong("metadata", "an object")
        for name in metadata.keys() - {"user_id"}:
            self._dropped.add(name, "metadata.")
        user = metadata.get("user_id")
        if user is not None and type(user) is not str:
            raise wrong("metadata.user_id", "a string")
        if user and len(user) > MAX_USER:
            return hashlib.sha256(user.encode("utf-8", "replace")).hexdigest()
        return user


def _exact(request: LLMRequest) -> list[Block]:
    """The messages, with every digit of the inputs of tools in them."""
    messages: list[Block] = request.data["messages"]
    if not may_be_huge(request.raw):
        return messages
    try:
        if orjson.loads(request.raw)["messages"] == messages:
            exact: list[Block] = json.loads(request.raw)["messages"]
            return exact
    except (ValueError, KeyError, TypeError):  # it was changed since it came
        pass
    return messages


def is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes a schema: every object closed, all its properties required."""
    return type(schema) is dict and schema.get("type") == "object" and "anyOf" not in schema and _is_closed(schema)


def _is_closed(schema: Any) -> bool:
    if type(schema) is not dict:
        return type(schema) is not bool
    if not _LOOSE.isdisjoint(schema):
        return False
    properties = schema.get("properties", {})
    if "properties" in schema or schema.get("type") == "object":
        required = schema.get("required", [])
        if schema.get("additionalProperties") is not False or type(properties) is not dict:
            return False
        if type(required) is not list or any(name not in required for name in properties):
            return False
    inner = [*properties.values()]
    for name in ("$defs", "definitions"):
        if type(schema.get(name)) is dict:
            inner += schema[name].values()
    if type(schema.get("anyOf")) is list:
        inner += schema["anyOf"]
    if "items" in schema:
        inner.append(schema["items"])
    return all(_is_closed(one) for one in inner)
