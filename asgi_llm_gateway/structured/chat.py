"""Chat completions. Source: OpenAI API reference, "Chat" (``response_format``, ``tools``), as of autumn 2026."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ..errors import GatewayError
from .form import (
    ANY_OBJECT,
    Format,
    Key,
    Piece,
    Unreadable,
    Wanted,
    Words,
    kind_at,
    listed,
    object_at,
    objects,
    schema_at,
    to_text,
)

_CUT = frozenset({"length", "content_filter"})


class ChatForm:
    """See Form."""

    field = "response_format"
    endings: tuple[bytes, ...] = (b"[DONE]",)

    def wanted(self, data: Mapping[str, Any]) -> Sequence[Wanted]:
        """See Form."""
        found = []
        asked = object_at(data, "response_format", "response_format")
        if asked is not None:
            kind = kind_at(asked, "response_format")
            if kind == "json_object":  # with a schema in it, as llama.cpp takes it
                schema = schema_at(asked, "schema", "response_format", ANY_OBJECT)
                if type(schema) is dict and "type" not in schema:
                    schema = {**schema, "type": "object"}
                found.append(Wanted(None, schema, "response_format.schema"))
            elif kind == "json_schema":
                param = "response_format.json_schema"
                schema = schema_at(object_at(asked, "json_schema", param) or {}, "schema", param)
                found.append(Wanted(None, schema, f"{param}.schema"))
        for at, tool in enumerate(listed(data.get("tools"))):
            function = tool.get("function") if type(tool) is dict else None
            if type(function) is dict and function.get("strict") is True and type(function.get("name")) is str:
                param = f"tools[{at}].function"
                schema = schema_at(function, "parameters", param, ANY_OBJECT)
                found.append(Wanted(function["name"], schema, f"{param}.parameters"))
        return found

    def instructed(self, data: Mapping[str, Any], words: str) -> dict[str, Any]:
        """See Form."""
        messages = list(data["messages"])
        first = messages[0]
        content = first.get("content")
        if first.get("role") in ("system", "developer") and type(content) in (str, list):
            # Templates of many models take one system message, and that first.
            more = f"{content}\n\n{words}" if type(content) is str else [*content, {"type": "text", "text": words}]
            messages[0] = {**first, "content": more}
        else:
            messages.insert(0, {"role": "system", "content": words})
        return {"response_format": None, "messages": messages}

    def corrected(self, data: Mapping[str, Any], answer: Mapping[str, Any], words: Words) -> dict[str, Any]:
        """See Form."""
        choices = objects(answer.get("choices"))
        wrong = {key[1] for key in words.tools}
        shown = next((one for at, one in enumerate(choices) if at in wrong), choices[0] if choices else {})
        message = shown.get("message") or {}
        content = message.get("content")
        said: list[dict[str, Any]]
        if not words.tools:
            said = [{"role": "assistant", "content": content or ""}, {"role": "user", "content": words.text}]
            return {"messages": [*data["messages"], *(said if content else said[1:])]}
        at = choices.index(shown)
        calls = objects(message.get("tool_calls"))
        if all(_readable(call) for call in calls):
            turn = {"role": "assistant", "content": content, "tool_calls": calls}
            results = [
                {"role": "tool", "tool_call_id": call["id"], "content": words.tools.get(("tool", at, one), words.other)}
                for one, call in enumerate(calls)
            ]
            said = [turn, *results]
        else:  # a server that reads old calls would fail over these
            quoted = "\n".join(f"{call.get('type')}: {to_text(call.get('function'))}" for call in calls)
            said = [
                {"role": "assistant", "content": quoted},
                {"role": "user", "content": "\n".join(words.tools.values())},
            ]
        return {"messages": [*data["messages"], *said]}

    def pieces(self, answer: Mapping[str, Any], format: Format) -> Sequence[Piece]:
        """See Form."""
        choices = answer.get("choices")
        if type(choices) is not list or not choices:
            raise Unreadable("it has no 'choices'")
        found: list[Piece] = []
        for at, choice in enumerate(choices):
            message = choice.get("message") if type(choice) is dict else None
            if type(message) is not dict:
                raise Unreadable(f"choices[{at}] has no 'message'")
            cut = choice.get("finish_reason") in _CUT
            calls = objects(message.get("tool_calls"))
            for one, call in enumerate(calls):
                function = call.get("function")
                name = function.get("name") if type(function) is dict else None
                schema = format.tools.get(name) if type(name) is str else None
                if schema is not None and type(function) is dict:
                    where = f"choices[{at}].message.tool_calls[{one}].function.arguments"
                    found.append(_of_call(("tool", at, one), where, function.get("arguments"), schema, cut))
            if format.text is None or calls or message.get("refusal") or message.get("function_call"):
                continue
            content = message.get("content")
            if content is not None and type(content) is not str:
                raise Unreadable(f"choices[{at}].message.content is no text")
            found.append(Piece(("text", at), f"choices[{at}].message.content", content or "", None, format.text, cut))
        return found

    def put(self, answer: dict[str, Any], texts: Mapping[Key, str]) -> None:
        """See Form."""
        for key, text in texts.items():
            message = answer["choices"][key[1]]["message"]
            if key[0] == "text":
                message["content"] = text
            else:
                objects(message["tool_calls"])[_int(key[2])]["function"]["arguments"] = text

    def reader(self) -> ChatReader:
        """See Form."""
        return ChatReader()

    def rewrite(self, event: dict[str, Any], texts: Mapping[Key, str], told: set[Key]) -> bool:
        """See Form."""
        changed = False
        for choice in objects(event.get("choices")):
            delta = choice.get("delta")
            if type(delta) is not dict:
                continue
            key: Key = ("text", choice.get("index", 0))
            if key in texts and type(delta.get("content")) is str:
                delta["content"] = "" if key in told else texts[key]
                told.add(key)
                changed = True
            for call in objects(delta.get("tool_calls")):
                key = ("tool", choice.get("index", 0), call.get("index", 0))
                function = call.get("function")
                if key in texts and type(function) is dict and type(function.get("arguments")) is str:
                    function["arguments"] = "" if key in told else texts[key]
                    told.add(key)
                    changed = True
        return changed

    def ends(self, data: bytes) -> bool:
        """See Form."""
        return data.startswith(b"[DONE]")

    def failure(self, error: GatewayError, events: int) -> bytes:
        """See Form."""
        return error.event("openai")


class ChatReader:
    """See Reader."""

    def __init__(self) -> None:
        self.failed = False
        self._choices: dict[int, _Choice] = {}

    def add(self, event: dict[str, Any]) -> None:
        """See Reader."""
        if event.get("error"):
            self.failed = True
        for one in objects(event.get("choices")):
            index = one.get("index")
            index = index if type(index) is int else 0
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = _Choice()
            choice.add(one)

    def answer(self) -> dict[str, Any] | None:
        """See Reader."""
        if not self._choices or any(choice.reason is None for choice in self._choices.values()):
            return None
        most = max(self._choices)
        if most >= len(self._choices):  # none may be missing: by its place a choice is found again
            return None
        return {"choices": [self._choices[index].whole() for index in range(most + 1)]}


class _Choice:
    def __init__(self) -> None:
        self.reason: Any = None
        self._content: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._arguments: dict[int, list[str]] = {}

    def add(self, choice: dict[str, Any]) -> None:
        if choice.get("finish_reason"):
            self.reason = choice["finish_reason"]
        delta = choice.get("delta")
        if type(delta) is not dict:
            return
        for name, kept in (("content", self._content), ("refusal", self._refusal)):
            if type(delta.get(name)) is str:
                kept.append(delta[name])
        for one in objects(delta.get("tool_calls")):
            index = one.get("index")
            index = index if type(index) is int else 0
            call = self._calls.setdefault(index, {"type": "function", "function": {}})
            call.update((name, one[name]) for name in ("id", "type") if one.get(name))
            function = one.get("function")
            if type(function) is dict:
                if function.get("name"):
                    call["function"]["name"] = function["name"]
                if type(function.get("arguments")) is str:
                    self._arguments.setdefault(index, []).append(function["arguments"])

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._content) or None}
        if self._refusal:
            message["refusal"] = "".join(self._refusal)
        if self._calls:
            for index, call in self._calls.items():
                call["function"]["arguments"] = "".join(self._arguments.get(index, ()))
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        return {"message": message, "finish_reason": self.reason}


def _of_call(key: Key, where: str, arguments: Any, schema: Any, cut: bool) -> Piece:
    """The arguments of a call; some servers send the value in place of its JSON."""
    if type(arguments) is str:
        return Piece(key, where, arguments or "{}", None, schema, cut)
    return Piece(key, where, None, arguments, schema, cut, repairable=False)


def _readable(call: dict[str, Any]) -> bool:
    """Whether a call can be shown again as a call."""
    function = call.get("function")
    if type(call.get("id")) is not str or type(function) is not dict:
        return False
    try:
        return type(orjson.loads(function.get("arguments") or "{}")) is dict
    except (orjson.JSONDecodeError, TypeError):
        return False


def _int(value: Any) -> int:
    return value if type(value) is int else 0


__all__ = ["ChatForm"]
