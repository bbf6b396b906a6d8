"""A chat request in Anthropic's words. Source: Anthropic API reference, "Messages", 2023-06-01 (and 2026-10-21).

What changes the meaning and has no word there is refused by name. A hint that has none is left out, and told in
``Translation.dropped``. Messages, tools and texts keep their order and their characters: a prompt cache depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from ..errors import BadRequest
from ..wire import LLMRequest
from ._anthropic_json import answer_tool
from ._anthropic_messages import Block, Conversation, cache_control, named, no_word_for, safe_name, wrong
from ._anthropic_models import Abilities, abilities, strict_schema
from .base import Unsupported


class Translation(NamedTuple):
    """A body to send, and the names of the fields that it had to leave out or to change."""

    body: bytes
    dropped: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Translation({len(self.body)} bytes)"  # no prompt


def translate(request: LLMRequest, model: str, *, version: str, default_max_tokens: int) -> Translation:
    """Write a chat request for the provider's ``model``. Raises Unsupported, BadRequest."""
    writer = _Writer(request, abilities(model, version))
    try:
        body = {
            "model": model,
            "max_tokens": default_max_tokens if request.max_tokens is None else request.max_tokens,
        }
        writer.write(body)
        return Translation(orjson.dumps(body), tuple(writer.dropped))
    except (RecursionError, orjson.JSONEncodeError):
        raise BadRequest("The body is nested too deeply.", code="invalid_json") from None


# What is left out and told, unless it has this value, which asks for nothing.
_HINTS: Mapping[str, Any] = {
    "seed": None, "frequency_penalty": 0, "presence_penalty": 0, "prediction": None, "verbosity": None, "store": False,
    "metadata": {}, "prompt_cache_key": None, "prompt_cache_retention": None, "prompt_cache_options": None,
}  # fmt: skip
# What is refused, as is every field that is not known, unless it has this value.
_REFUSED: Mapping[str, Any] = {
    "n": 1, "logprobs": False, "top_logprobs": 0, "logit_bias": {}, "modalities": ["text"], "functions": [],
}  # fmt: skip
_MAPPED = frozenset(
    {
        "model", "messages", "stream", "stream_options", "tenant", "tools", "tool_choice", "parallel_tool_calls", "stop",
        "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "response_format", "reasoning_effort",
        "thinking", "cache_control", "user", "safety_identifier", "service_tier",
    }
)  # fmt: skip
# Letters of an id, and what may be the number of a phone.
_OPAQUE = re.compile(r"[A-Za-z0-9_.:-]{1,256}\Z")
_PHONE = re.compile(r"[0-9.-]{6,16}\Z")
_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 16384}
_TIERS = {"auto": "auto", "default": "standard_only"}
_LEAST_BUDGET = 1024  # of thinking tokens; it must stay below max_tokens
_UNUSED_TOOL = {
    "name": "not_available",
    "description": "Not available. Stands for the tools of earlier turns.",
    "input_schema": {"type": "object", "properties": {}},
}
_ONLY_JSON = "Answer with exactly one JSON object and nothing else: no words around it and no code fence."


def given_names(data: Mapping[str, Any]) -> dict[str, str]:
    """The names of tools that had to be changed: what the provider says, to what the client said."""
    found = {}
    for tool in data.get("tools") or ():
        name = tool["function"]["name"]
        if (safe := safe_name(name)) != name:
            found[safe] = name
    return found


class _Writer:
    """Writes one body."""

    def __init__(self, request: LLMRequest, able: Abilities) -> None:
        self._request = request
        self._data = {name: value for name, value in request.data.items() if value is not None}
        self._able = able
        self._answer_tool: Block | None = None
        self.dropped: dict[str, None] = {}  # in order

    def _drop(self, name: str) -> None:
        self.dropped[name] = None

    def write(self, body: dict[str, Any]) -> None:
        """Put all but the model and the limit into ``body``."""
        data = self._data
        self._refuse()
        system, messages = Conversation(self._able, self._drop).write(data["messages"])
        self._put_answer_format(body, system)
        if system:
            body["system"] = system
        body["messages"] = messages
        if self._request.stream:
            body["stream"] = True
        forced = self._put_tools(body, messages)
        self._put_thinking(body, forced)
        self._put_sampling(body)
        if stops := self._stops():
            body["stop_sequences"] = stops
        if user := self._user():
            body["metadata"] = {"user_id": user}
        if "service_tier" in data:
            if data["service_tier"] in ("auto", "default"):
                body["service_tier"] = _TIERS[data["service_tier"]]
            else:
                self._drop("service_tier")
        if "cache_control" in data:
            body["cache_control"] = cache_control(data["cache_control"], "cache_control")

    def _refuse(self) -> None:
        for name, value in self._data.items():
            if name in _MAPPED:
                continue
            if name in _HINTS:
                if value != _HINTS[name]:
                    self._drop(name)
            elif name not in _REFUSED or value != _REFUSED[name]:
                raise no_word_for(name[:64], "Use 'n': 1." if name == "n" else "Remove it.")

    # -- tools ---------------------------------------------------------------------------------------------------------

    def _put_tools(self, body: dict[str, Any], messages: list[Block]) -> bool:
        """Tools and the choice among them; whether one must be called."""
        given = self._data.get("tools", [])
        if type(given) is not list:
            raise wrong("tools", "an array")
        tools = [self._tool(tool, f"tools[{at}]") for at, tool in enumerate(given)]
        choice = self._choice(tools)
        if self._answer_tool is not None:
            choice = self._choose_answer(tools, choice)
        elif not tools:
            if choice is not None and choice["type"] in ("any", "tool"):
                raise BadRequest("'tool_choice' asks for a call, and there are no 'tools'.", param="tool_choice")
            choice = None
            if any(block["type"] in ("tool_use", "tool_result") for turn in messages for block in turn["content"]):
                # Calls in the history are refused where no tool is declared.
                tools, choice = [_UNUSED_TOOL], {"type": "none"}
        elif self._data.get("parallel_tool_calls") is False and (choice is None or choice["type"] != "none"):
            choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
        if tools:
            body["tools"] = tools
        if choice is not None:
            body["tool_choice"] = choice
        return choice is not None and choice["type"] in ("any", "tool")

    def _choose_answer(self, tools: list[Block], choice: Block | None) -> Block:
        """Add the tool that gives the answer: to be called in any case, or instead of one of the client's own."""
        assert self._answer_tool is not None
        own = bool(tools) and (choice is None or choice["type"] == "auto")
        tools.append(self._answer_tool)
        if not own:
            return {"type": "tool", "name": self._answer_tool["name"], "disable_parallel_tool_use": True}
        if self._data.get("parallel_tool_calls") is False:
            return {"type": "any", "disable_parallel_tool_use": True}
        return {"type": "any"}

    def _tool(self, tool: Any, place: str) -> Block:
        if type(tool) is not dict:
            raise wrong(place, "an object")
        if tool.get("type") != "function":
            raise Unsupported(f"'{place}' must be of type 'function' for Anthropic.", param=f"{place}.type")
        function = tool.get("function")
        if type(function) is not dict:
            raise wrong(f"{place}.function", "an object")
        written: Block = {"name": safe_name(named(function, f"{place}.function"))}
        if function.get("description"):
            written["description"] = function["description"]
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        if type(schema) is not dict:
            raise wrong(f"{place}.function.parameters", "an object")
        if function.get("strict") is True:
            if self._able.schemas:
                written["strict"] = True
                schema = strict_schema(schema, f"{place}.function.parameters")
            else:
                self._drop("tools.strict")
        written["input_schema"] = schema if "type" in schema else {"type": "object", **schema}
        marked = tool.get("cache_control") or function.get("cache_control")
        if marked is not None:
            written["cache_control"] = cache_control(marked, f"{place}.cache_control")
        return written

    def _choice(self, tools: list[Block]) -> Block | None:
        """The choice; ``tools`` loses those that the client does not allow."""
        asked = self._data.get("tool_choice")
        if asked is None:
            return None
        if type(asked) is dict and asked.get("type") == "allowed_tools":
            allowed = asked.get("allowed_tools")
            listed = allowed.get("tools") if type(allowed) is dict else None
            if type(allowed) is not dict or type(listed) is not list:
                raise wrong("tool_choice.allowed_tools", "an object with 'mode' and 'tools'")
            names = {_chosen(one) for one in listed}
            tools[:] = [tool for tool in tools if tool["name"] in names]
            asked = allowed.get("mode")
        if asked in ("auto", "none"):
            return {"type": asked}
        if asked == "required":
            choice = {"type": "any"}
        elif type(asked) is dict and asked.get("type") == "function":
            choice = {"type": "tool", "name": _chosen(asked)}
        else:
            raise Unsupported("'tool_choice' must be 'auto', 'none', 'required' or name a function.",
                              param="tool_choice")  # fmt: skip
        if not self._able.forced_tools:
            raise Unsupported("This model can't be made to call a tool. Use 'tool_choice': 'auto'.",
                              param="tool_choice")  # fmt: skip
        return choice

    # -- how to answer -------------------------------------------------------------------------------------------------

    def _put_answer_format(self, body: dict[str, Any], system: list[Block]) -> None:
        wanted = self._data.get("response_format")
        if wanted is None:
            return
        kind = wanted.get("type") if type(wanted) is dict else None
        if kind == "json_object":
            if self._able.schemas or not self._can_force():
                system.append({"type": "text", "text": _ONLY_JSON})
            elif not self._calls_instead():
                self._answer_tool = answer_tool(self._data, None)
        elif kind == "json_schema":
            told = wanted.get("json_schema")
            schema = told.get("schema") if type(told) is dict else None
            if type(schema) is not dict:
                raise wrong("response_format.json_schema.schema", "an object")
            if told.get("description") and "description" not in schema:
                schema = {**schema, "description": told["description"]}
            if not self._able.schemas:
                if not self._can_force():
                    raise Unsupported("This model has no structured outputs while it thinks. Remove 'thinking', use "
                                      "'json_object', or a newer model.", param="response_format")  # fmt: skip
                if not self._calls_instead():
                    self._answer_tool = answer_tool(self._data, schema)
                return
            body["output_config"] = {
                "format": {"type": "json_schema", "schema": strict_schema(schema, "response_format")}
            }
        elif kind != "text":
            raise wrong("response_format.type", "'text', 'json_object' or 'json_schema'")

    def _can_force(self) -> bool:
        """Whether the model can be made to call a tool; none can while it thinks."""
        thinking = self._data.get("thinking")
        thinks = type(thinking) is dict and thinking.get("type") != "disabled"
        return self._able.forced_tools and not thinks

    def _calls_instead(self) -> bool:
        """Whether the answer is to be a call of the client's tools, which has no format."""
        choice = self._data.get("tool_choice")
        if type(choice) is dict and choice.get("type") == "allowed_tools":
            allowed = choice.get("allowed_tools")
            choice = allowed.get("mode") if type(allowed) is dict else None
        return choice == "required" or type(choice) is dict

    def _put_thinking(self, body: dict[str, Any], forced: bool) -> None:
        """How hard to think. A call that is forced can't be thought about: there only the effort is told."""
        own = self._data.get("thinking")
        if own is not None:
            if type(own) is not dict:
                raise wrong("thinking", "an object")
            body["thinking"] = own
        effort = self._data.get("reasoning_effort")
        if effort is None:
            return
        if effort != "none" and (type(effort) is not str or effort not in _BUDGETS):
            raise wrong("reasoning_effort", f"one of none, {', '.join(_BUDGETS)}")
        thinking: Block | None = None
        if effort == "none":
            if not self._able.rests:
                self._drop("reasoning_effort")
            elif self._able.thinking == "adaptive":
                thinking = {"type": "disabled"}
        elif self._able.thinking == "adaptive":
            body.setdefault("output_config", {})["effort"] = "low" if effort == "minimal" else effort
            thinking = None if forced else {"type": "adaptive", "display": "summarized"}
        elif self._able.thinking is None:
            raise Unsupported("This model does not reason. Remove 'reasoning_effort'.", param="reasoning_effort")
        elif forced or body["max_tokens"] <= _LEAST_BUDGET or _unthought(body["messages"]):
            self._drop("reasoning_effort")
        else:
            thinking = {"type": "enabled", "budget_tokens": min(_BUDGETS[effort], body["max_tokens"] - 1)}
        if thinking is not None:
            body.setdefault("thinking", thinking)

    def _put_sampling(self, body: dict[str, Any]) -> None:
        """Temperature, top_p and top_k, where model and version have them; a model that thinks has its own."""
        thinks = body.get("thinking", {}).get("type") not in (None, "disabled")
        for name, most, default, least in (
            ("temperature", 2, 1, 1.0),
            ("top_p", 1, 1, 0.95),
            ("top_k", 2**31, None, None),
        ):
            value = self._data.get(name)
            if value is None:
                continue
            if type(value) not in (int, float) or not 0 <= value <= most:
                raise wrong(name, f"a number from 0 to {most}")
            refused = not self._able.sampling or (thinks and (least is None or value < least))
            # Some models refuse both together; the temperature says more.
            if value != default and (refused or (name == "top_p" and "temperature" in body)):
                self._drop(name)
            elif self._able.sampling and not (name == "top_p" and "temperature" in body):
                if name == "temperature" and value > 1:
                    self._drop(name)
                    value = 1
                body[name] = value

    def _stops(self) -> list[str]:
        stop = self._data.get("stop")
        given = [stop] if type(stop) is str else stop if stop is not None else []
        if type(given) is not list or not all(type(one) is str for one in given):
            raise wrong("stop", "a string or an array of strings")
        kept = [one for one in given if one.strip()]
        if len(kept) < len(given):
            self._drop("stop")  # the provider refuses white space
        return kept

    def _user(self) -> str | None:
        """Who asks, where that is an opaque id: the provider forbids names, addresses and numbers of phones."""
        for name in ("safety_identifier", "user"):
            value = self._data.get(name)
            if value is not None:
                if type(value) is str and _OPAQUE.match(value) is not None and _PHONE.match(value) is None:
                    return value
                self._drop(name)
        return None


def _unthought(turns: list[Block]) -> bool:
    """Whether a call is being answered whose thoughts the client did not keep: with a budget they must stand before it."""
    if len(turns) < 2 or turns[-1]["content"][0]["type"] != "tool_result":
        return False
    return turns[-2]["content"][0]["type"] not in ("thinking", "redacted_thinking")


def _chosen(choice: Any) -> str:
    function = choice.get("function") if type(choice) is dict else None
    if type(function) is not dict:
        raise wrong("tool_choice.function", "an object with a 'name'")
    return safe_name(named(function, "tool_choice.function"))
