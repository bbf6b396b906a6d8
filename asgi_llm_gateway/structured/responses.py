"""Responses. Source: OpenAI API reference, "Responses" and "Streaming events", as of autumn 2026."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ..errors import BadRequest, GatewayError
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
)

_ENDINGS = frozenset({"response.completed", "response.incomplete", "response.failed"})


class ResponsesForm:
    """See Form."""

    field = "text.format"
    endings: tuple[bytes, ...] = tuple(f'"{name}"'.encode() for name in sorted(_ENDINGS))

    def wanted(self, data: Mapping[str, Any]) -> Sequence[Wanted]:
        """See Form."""
        found = []
        text = object_at(data, "text", "text") or {}
        asked = object_at(text, "format", "text.format")
        if asked is not None:
            kind = kind_at(asked, "text.format")
            if kind == "json_object":
                found.append(Wanted(None, ANY_OBJECT, "text.format"))
            elif kind == "json_schema":
                found.append(Wanted(None, schema_at(asked, "schema", "text.format"), "text.format.schema"))
        for at, tool in enumerate(listed(data.get("tools"))):
            if type(tool) is dict and tool.get("strict") is True and type(tool.get("name")) is str:
                schema = schema_at(tool, "parameters", f"tools[{at}]", ANY_OBJECT)
                found.append(Wanted(tool["name"], schema, f"tools[{at}].parameters"))
        if found and data.get("background") is True:
            raise BadRequest("'background' can't be used with a format or strict tools: the answer is not there to be "
                             "validated. Remove it.", param="background", code="unsupported_parameter")  # fmt: skip
        return found

    def instructed(self, data: Mapping[str, Any], words: str) -> dict[str, Any]:
        """See Form."""
        text = {name: value for name, value in data["text"].items() if name != "format"}
        before = data.get("instructions")
        return {
            "text": text or None,
            "instructions": f"{before}\n\n{words}" if type(before) is str and before else words,
        }

    def corrected(self, data: Mapping[str, Any], answer: Mapping[str, Any], words: Words) -> dict[str, Any]:
        """See Form."""
        given = data.get("input")
        before = [{"role": "user", "content": given}] if type(given) is str else list(given or ())
        said: list[dict[str, Any]] = []
        for at, item in enumerate(objects(answer.get("output"))):
            if item.get("type") == "message":
                text = "".join(part["text"] for _, part in _texts(item))
                if text:
                    said.append({"role": "assistant", "content": text})
            elif item.get("type") == "function_call" and type(item.get("call_id")) is str:
                # Without the id of the item, for that would call for the reasoning before it.
                said.append({name: item[name] for name in ("type", "call_id", "name", "arguments") if name in item})
                told = words.tools.get(("tool", at), words.other)
                said.append({"type": "function_call_output", "call_id": item["call_id"], "output": told})
        if data.get("conversation") is not None:  # the provider has added the question and its answer already
            before = []
            said = [one for one in said if one.get("type") == "function_call_output"]
        if not words.tools:
            said.append({"role": "user", "content": words.text})
        return {"input": [*before, *said]}

    def pieces(self, answer: Mapping[str, Any], format: Format) -> Sequence[Piece]:
        """See Form."""
        output = answer.get("output")
        if type(output) is not list:
            raise Unreadable("it has no 'output'")
        cut = answer.get("status") not in ("completed", None)
        found: list[Piece] = []
        spoken = False
        for at, item in enumerate(objects(output)):
            kind = item.get("type")
            if kind == "function_call":
                spoken = True
                schema = format.tools.get(str(item.get("name")))
                if schema is not None:
                    arguments = item.get("arguments")
                    text = arguments if type(arguments) is str else ""
                    found.append(Piece(("tool", at), f"output[{at}].arguments", text or "{}", None, schema, cut))
            elif kind == "message" and item.get("phase") != "commentary":
                for one, part in _texts(item):
                    spoken = True
                    if format.text is not None:
                        where = f"output[{at}].content[{one}].text"
                        found.append(Piece(("text", at, one), where, part["text"], None, format.text, cut))
                spoken = spoken or any(part.get("type") == "refusal" for part in objects(item.get("content")))
            elif kind not in ("reasoning", "message"):
                spoken = True  # a call of another kind: the turn goes on
        if not spoken and format.text is not None and not cut:
            found.append(Piece(("none",), "output", "", None, format.text, repairable=False))
        return found

    def put(self, answer: dict[str, Any], texts: Mapping[Key, str]) -> None:
        """See Form."""
        for at, item in enumerate(objects(answer["output"])):
            _put(item, at, texts)
        if type(answer.get("output_text")) is str:
            parts = [part["text"] for item in objects(answer["output"]) for _, part in _texts(item)]
            answer["output_text"] = "".join(parts)

    def reader(self) -> ResponsesReader:
        """See Form."""
        return ResponsesReader()

    def rewrite(self, event: dict[str, Any], texts: Mapping[Key, str], told: set[Key]) -> bool:
        """See Form."""
        kind = str(event.get("type"))
        at = event.get("output_index")
        if kind in _ENDINGS:
            self.put(event["response"], texts)
            told.update(texts)
            return True
        if kind == "response.output_item.done" and type(event.get("item")) is dict and type(at) is int:
            return _put(event["item"], at, texts)
        if kind.startswith("response.function_call_arguments."):
            key: Key = ("tool", at)
            field = "delta" if kind.endswith(".delta") else "arguments"
        else:
            key = ("text", at, event.get("content_index"))
            field = {
                "response.output_text.delta": "delta",
                "response.output_text.done": "text",
                "response.content_part.done": "part",
            }.get(kind, "")
        if key not in texts or field not in event:
            return False
        if field == "part":
            event["part"] = {**event["part"], "text": texts[key]}
        else:
            event[field] = "" if field == "delta" and key in told else texts[key]
        told.add(key)
        return True

    def ends(self, data: bytes) -> bool:
        """See Form."""
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            return False
        return type(event) is dict and event.get("type") in _ENDINGS

    def failure(self, error: GatewayError, events: int) -> bytes:
        """See Form."""
        told = {"type": "error", "code": error.error_code, "message": error.message, "param": error.param}
        return b"event: error\ndata: " + orjson.dumps({**told, "sequence_number": events}) + b"\n\n"


class ResponsesReader:
    """See Reader. The last event holds the whole answer; where a server leaves its output out, the items make it up."""

    def __init__(self) -> None:
        self.failed = False
        self._last: dict[str, Any] | None = None
        self._items: dict[int, dict[str, Any]] = {}

    def add(self, event: dict[str, Any]) -> None:
        """See Reader."""
        kind = event.get("type")
        if kind == "response.output_item.done" and type(event.get("item")) is dict:
            index = event.get("output_index")
            self._items[index if type(index) is int else len(self._items)] = event["item"]
        elif kind in _ENDINGS and type(event.get("response")) is dict:
            self._last = event["response"]
        elif kind == "error":
            self.failed = True

    def answer(self) -> dict[str, Any] | None:
        """See Reader."""
        last = self._last
        if last is not None and not last.get("output") and self._items:
            return {**last, "output": [self._items[index] for index in sorted(self._items)]}
        return last


def _texts(item: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The parts of a message that are text, with their places."""
    return [
        (at, part)
        for at, part in enumerate(objects(item.get("content")))
        if part.get("type") == "output_text" and type(part.get("text")) is str
    ]


def _put(item: dict[str, Any], at: int, texts: Mapping[Key, str]) -> bool:
    changed = False
    if ("tool", at) in texts:
        item["arguments"] = texts[("tool", at)]
        changed = True
    for one, part in _texts(item):
        if ("text", at, one) in texts:
            part["text"] = texts[("text", at, one)]
            changed = True
    return changed


__all__ = ["ResponsesForm"]
