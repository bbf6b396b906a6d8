"""A Responses request in the words of chat completions.

Source: OpenAI API reference, "Create a model response" and "Create chat completion", autumn 2026. What changes the answer and
has no word in chat is refused by name; a hint that has none is left out, and told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import BadRequest, Unsupported
from ..wire import LLMRequest
from ._responses_items import Conversation
from ._responses_rules import hosted, refuse_stored, shown, wrong
from .base import Asked

LOGPROBS = "message.output_text.logprobs"
"""What ``include`` calls the log probabilities."""

# Read here, or refused already.
_MAPPED = frozenset(
    {
        "model", "input", "instructions", "stream", "stream_options", "tenant", "tools", "tool_choice",
        "parallel_tool_calls", "text", "reasoning", "max_output_tokens", "temperature", "top_p", "top_logprobs",
        "include", "metadata", "user", "safety_identifier", "service_tier", "truncation", "store", "background",
        "previous_response_id", "conversation", "prompt",
    }
)  # fmt: skip
# What chat calls so, and Responses otherwise or not at all. A client that sends it would miss it.
_CHATS: Mapping[str, str] = {
    "messages": "Use 'input'.", "max_tokens": "Use 'max_output_tokens'.",
    "max_completion_tokens": "Use 'max_output_tokens'.", "response_format": "Use 'text': {'format': ...}.",
    "reasoning_effort": "Use 'reasoning': {'effort': ...}.", "verbosity": "Use 'text': {'verbosity': ...}.",
    "functions": "Use 'tools'.", "function_call": "Use 'tool_choice'.", "logprobs": "Use 'top_logprobs'.",
    "n": "One answer is made.", "best_of": "One answer is made.",
} | dict.fromkeys(
    ("stop", "seed", "frequency_penalty", "presence_penalty", "logit_bias", "modalities", "audio", "prediction",
     "web_search_options"),
    "Use /v1/chat/completions for it.",
)  # fmt: skip
# The part of a function that this API has and chat has not; each is a hint for a hosted tool.
_TOOL_HINTS = ("defer_loading", "output_schema", "allowed_callers", "async")
_FORMAT_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_MOST_TOLD = 20  # fields left out that a header names
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512  # of metadata; "Create a model response"


def translate(request: LLMRequest) -> Asked:
    """Write a request for chat. Raises Unsupported, BadRequest."""
    writer = _Writer(request.data)
    body = writer.write(request)
    return Asked(body, tuple(writer.dropped)[:_MOST_TOLD])


class _Writer:
    """Writes one body."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = {name: value for name, value in data.items() if value is not None}
        self.dropped: dict[str, None] = {}  # in order

    def _drop(self, name: str) -> None:
        self.dropped[name] = None

    def write(self, request: LLMRequest) -> dict[str, Any]:
        """The body."""
        data = self._data
        refuse_stored(data)
        if not data.keys() <= _MAPPED:
            self._look_for_more()
        given = data.get("input")
        if given is None:
            raise BadRequest("'input' is required.", param="input", code="missing_required_parameter")
        messages = Conversation(self._drop).write(data.get("instructions"), given)
        body: dict[str, Any] = {"model": request.model, "messages": messages}
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        if request.stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        if "tools" in data or "tool_choice" in data:
            self._put_tools(body)
        self._put_sampling(body)
        if "text" in data:
            self._put_text(body)
        if "reasoning" in data:
            self._put_reasoning(body)
        self._put_who(body)
        self._look_at_the_rest()
        return body

    def _look_for_more(self) -> None:
        for name in self._data:
            if name in _MAPPED:
                continue
            if name in _CHATS:
                raise Unsupported(f"The Responses API has no '{name}'. {_CHATS[name]}", param=name)
            if name == "moderation":
                raise Unsupported("'moderation' is not supported by this model's API. Remove it.", param=name)
            self._drop(name if _FIELD.match(name) is not None else "?")

    # -- tools ---------------------------------------------------------------------------------------------------------

    def _put_tools(self, body: dict[str, Any]) -> None:
        given = self._data.get("tools", [])
        if type(given) is not list:
            raise wrong("tools", "an array", given)
        tools = [self._tool(tool, f"tools[{at}]") for at, tool in enumerate(given)]
        choice = self._choice(tools)
        if not tools:
            if choice is not None and choice != "auto" and choice != "none":
                raise BadRequest("'tool_choice' asks for a call, and there is no tool that it could be.",
                                 param="tool_choice")  # fmt: skip
            return  # chat knows a choice only among tools
        body["tools"] = tools
        if choice is not None:
            body["tool_choice"] = choice
        parallel = self._data.get("parallel_tool_calls")
        if parallel is False:
            body["parallel_tool_calls"] = False
        elif parallel is not None and parallel is not True:
            raise wrong("parallel_tool_calls", "true or false", parallel)

    def _tool(self, tool: Any, place: str) -> dict[str, Any]:
        """A function, which lies flat here."""
        if type(tool) is not dict:
            raise wrong(place, "an object", tool)
        kind = tool.get("type")
        if kind == "custom":
            raise Unsupported(f"'{place}' is of type 'custom', which this model's API has no word for. Use a tool of type "
                              "'function' with one string as its parameter.", param=f"{place}.type")  # fmt: skip
        if kind != "function":
            raise hosted(kind, place)
        function: dict[str, Any] = {"name": _name(tool, place)}
        for name, kind_wanted, wanted in (
            ("description", str, "a string"), ("parameters", dict, "an object"), ("strict", bool, "true or false"),
        ):  # fmt: skip
            value = tool.get(name)
            if value is not None:
                if type(value) is not kind_wanted:
                    raise wrong(f"{place}.{name}", wanted, value)
                function[name] = value
        for name in _TOOL_HINTS:
            if tool.get(name):
                self._drop(f"tools.{name}")
        return {"type": "function", "function": function}

    def _choice(self, tools: list[dict[str, Any]]) -> Any:
        """The choice; ``tools`` loses those that the client does not allow."""
        asked = self._data.get("tool_choice")
        if asked is None or asked in ("auto", "none", "required"):
            return asked
        if type(asked) is not dict:
            raise BadRequest("'tool_choice' must be 'auto', 'none', 'required' or an object.", param="tool_choice")
        kind = asked.get("type")
        if kind == "function":
            name = _name(asked, "tool_choice")
            if not any(tool["function"]["name"] == name for tool in tools):
                raise BadRequest("'tool_choice.name' is that of no tool in 'tools'.", param="tool_choice.name")
            return {"type": "function", "function": {"name": name}}
        if kind != "allowed_tools":
            raise Unsupported(f"'tool_choice' is of type {shown(kind)}, which is not served. Use 'function' or "
                              "'allowed_tools'.", param="tool_choice.type")  # fmt: skip
        listed, mode = asked.get("tools"), asked.get("mode")
        if type(listed) is not list or mode not in ("auto", "required"):
            raise BadRequest("'tool_choice' of type 'allowed_tools' needs 'mode' ('auto' or 'required') and 'tools'.",
                             param="tool_choice")  # fmt: skip
        names = set()
        for at, one in enumerate(listed):
            if type(one) is not dict or one.get("type") != "function":
                raise wrong(f"tool_choice.tools[{at}]", "an object of type 'function'", one)
            names.add(_name(one, f"tool_choice.tools[{at}]"))
        # Few servers know the word; leaving the others out says the same to all.
        tools[:] = [tool for tool in tools if tool["function"]["name"] in names]
        return mode

    # -- how to answer -------------------------------------------------------------------------------------------------

    def _put_sampling(self, body: dict[str, Any]) -> None:
        for name, most in (("temperature", 2), ("top_p", 1)):
            value = self._data.get(name)
            if value is not None:
                if type(value) not in (int, float) or not 0 <= value <= most:
                    raise BadRequest(f"'{name}' must be a number from 0 to {most}.", param=name)
                body[name] = value
        include = self._data.get("include", [])
        if type(include) is not list:
            raise wrong("include", "an array", include)
        if any(one != LOGPROBS for one in include):
            self._drop("include")  # what stored items and hosted tools have, of which there are none
        top = self._data.get("top_logprobs", 0)
        if type(top) is not int or not 0 <= top <= 20:
            raise BadRequest("'top_logprobs' must be a whole number from 0 to 20.", param="top_logprobs")
        if top or LOGPROBS in include:
            body["logprobs"] = True
            if top:
                body["top_logprobs"] = top

    def _put_text(self, body: dict[str, Any]) -> None:
        text = self._data["text"]
        if type(text) is not dict:
            raise wrong("text", "an object", text)
        verbosity = text.get("verbosity")
        if verbosity is not None and verbosity not in ("low", "medium", "high"):
            raise BadRequest("'text.verbosity' must be 'low', 'medium' or 'high'.", param="text.verbosity")
        if verbosity is not None and verbosity != "medium":  # the default, which not all servers know the word for
            body["verbosity"] = verbosity
        wanted = text.get("format")
        if wanted is None:
            return
        kind = wanted.get("type") if type(wanted) is dict else None
        if kind == "json_object":
            body["response_format"] = {"type": "json_object"}
        elif kind == "json_schema":
            name, schema = wanted.get("name"), wanted.get("schema")
            if type(name) is not str or _FORMAT_NAME.match(name) is None:
                raise BadRequest("'text.format.name' must be 1 to 64 letters, digits, '_' or '-'.",
                                 param="text.format.name")  # fmt: skip
            if type(schema) is not dict:
                raise wrong("text.format.schema", "an object", schema)
            told: dict[str, Any] = {"name": name, "schema": schema}
            for field, kind_wanted, words in (("strict", bool, "true or false"), ("description", str, "a string")):
                value = wanted.get(field)
                if value is not None:
                    if type(value) is not kind_wanted:
                        raise wrong(f"text.format.{field}", words, value)
                    told[field] = value
            body["response_format"] = {"type": "json_schema", "json_schema": told}
        elif kind != "text":
            raise BadRequest("'text.format.type' must be 'text', 'json_object' or 'json_schema'.",
                             param="text.format.type")  # fmt: skip

    def _put_reasoning(self, body: dict[str, Any]) -> None:
        """How hard to think. A ``summary`` is what the provider tells of its thoughts, asked for or not."""
        reasoning = self._data["reasoning"]
        if type(reasoning) is not dict:
            raise wrong("reasoning", "an object", reasoning)
        effort = reasoning.get("effort")
        if effort is not None:
            if type(effort) is not str:
                raise wrong("reasoning.effort", "a string", effort)
            body["reasoning_effort"] = effort
        if reasoning.get("summary") not in (None, "auto", "concise", "detailed"):
            raise BadRequest("'reasoning.summary' must be 'auto', 'concise' or 'detailed'.", param="reasoning.summary")
        for name, default in (("context", "auto"), ("mode", "standard")):
            if reasoning.get(name) not in (None, default):
                self._drop(f"reasoning.{name}")

    def _put_who(self, body: dict[str, Any]) -> None:
        """Who asks, under the older name, which more servers know; and the tier, where it is not the default."""
        for name in ("user", "safety_identifier"):
            value = self._data.get(name)
            if value is not None:
                if type(value) is not str:
                    raise wrong(name, "a string", value)
                body["user"] = value
        tier = self._data.get("service_tier")
        if tier is not None and tier != "auto":
            if type(tier) is not str:
                raise wrong("service_tier", "a string", tier)
            body["service_tier"] = tier

    def _look_at_the_rest(self) -> None:
        truncation = self._data.get("truncation")
        if truncation == "auto":
            self._drop("truncation")
        elif truncation is not None and truncation != "disabled":
            raise BadRequest("'truncation' must be 'auto' or 'disabled'.", param="truncation")
        metadata = self._data.get("metadata")
        if metadata is not None:
            _check_metadata(metadata)


def _name(tool: Mapping[str, Any], place: str) -> str:
    name = tool.get("name")
    if type(name) is not str or not name:
        raise BadRequest(f"'{place}.name' must be the name of a function.", param=f"{place}.name")
    return name


def _check_metadata(metadata: Any) -> None:
    """It comes back in the answer and goes nowhere else."""
    if type(metadata) is not dict:
        raise wrong("metadata", "an object", metadata)
    if len(metadata) > _MAX_PAIRS or not all(
        len(key) <= _MAX_KEY and type(value) is str and len(value) <= _MAX_VALUE for key, value in metadata.items()
    ):
        raise BadRequest(f"'metadata' must be at most {_MAX_PAIRS} pairs of strings: keys of up to {_MAX_KEY} characters, "
                         f"values of up to {_MAX_VALUE}.", param="metadata")  # fmt: skip
