"""Messages. Source: Anthropic API reference, "Messages", "Structured outputs" and "Streaming messages", 2023-06-01."""

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
)

_CUT = frozenset({"max_tokens", "model_context_window_exceeded", "refusal", "pause_turn"})


class MessagesForm:
    """See Form."""

    field = "output_config"
    endings: tuple[bytes, ...] = (b"message_stop",)

    def wanted(self, data: Mapping[str, Any]) -> Sequence[Wanted]:
        """See Form."""
        found = []
        config = object_at(data, "output_config", "output_config") or {}
        asked = object_at(config, "format", "output_config.format")
        if asked is not None and kind_at(asked, "output_config.format") == "json_schema":
            schema = schema_at(asked, "schema", "output_config.format")
            found.append(Wanted(None, schema, "output_config.format.schema"))
        for at, tool in enumerate(listed(data.get("tools"))):
            if type(tool) is dict and tool.get("strict") is True and type(tool.get("name")) is str:
                schema = schema_at(tool, "input_schema", f"tools[{at}]", ANY_OBJECT)
                found.append(Wanted(tool["name"], schema, f"tools[{at}].input_schema"))
        return found

    def instructed(self, data: Mapping[str, Any], words: str) -> dict[str, Any]:
        """See Form."""
        config = {name: value for name, value in data["output_config"].items() if name != "format"}
        before = data.get("system")
        block = {"type": "text", "text": words}
        system: Any = [*before, block] if type(before) is list else f"{before}\n\n{words}" if before else words
        return {"output_config": config or None, "system": system}

    def corrected(self, data: Mapping[str, Any], answer: Mapping[str, Any], words: Words) -> dict[str, Any]:
        """See Form."""
        # The blocks as they came: thinking must stay before the calls that it led to, and empty text is refused.
        blocks = [
            block
            for block in objects(answer.get("content"))
            if block.get("type") != "text" or str(block.get("text")).strip()
        ]
        told: list[dict[str, Any]] = [
            {
                "type": "tool_result",
                "tool_use_id": block.get("id"),
                "content": words.tools.get(("tool", at), words.other),
                "is_error": True,
            }
            for at, block in enumerate(objects(answer.get("content")))
            if block.get("type") == "tool_use"
        ]
        for block in blocks:
            if block.get("type") == "tool_use" and type(block.get("input")) is not dict:
                block["input"] = {}
        if not words.tools:
            told.append({"type": "text", "text": words.text})
        said: list[dict[str, Any]] = [{"role": "user", "content": told}]
        if blocks:
            said.insert(0, {"role": "assistant", "content": blocks})
        return {"messages": [*data["messages"], *said]}

    def pieces(self, answer: Mapping[str, Any], format: Format) -> Sequence[Piece]:
        """See Form."""
        content = answer.get("content")
        if type(content) is not list:
            raise Unreadable("it has no 'content'")
        cut = answer.get("stop_reason") in _CUT
        blocks = objects(content)
        found: list[Piece] = []
        calling = any(str(block.get("type")).endswith("tool_use") for block in blocks)
        for at, block in enumerate(blocks):
            kind = block.get("type")
            if kind == "tool_use":
                schema = format.tools.get(str(block.get("name")))
                if schema is not None:
                    given = block.get("input")
                    where = f"content[{at}].input"
                    if type(given) is str:  # of a stream, and no JSON
                        found.append(Piece(("tool", at), where, given, None, schema, cut))
                    else:
                        found.append(Piece(("tool", at), where, None, given, schema, cut, repairable=False))
            elif kind == "text" and format.text is not None and not calling and str(block.get("text")).strip():
                text = block.get("text")
                if type(text) is not str:
                    raise Unreadable(f"content[{at}].text is no text")
                found.append(Piece(("text", at), f"content[{at}].text", text, None, format.text, cut))
        if format.text is not None and not calling and not cut and not found:
            found.append(Piece(("none",), "content", "", None, format.text, repairable=False))
        return found

    def put(self, answer: dict[str, Any], texts: Mapping[Key, str]) -> None:
        """See Form."""
        blocks = objects(answer["content"])
        for key, text in texts.items():
            if key[0] == "text" and type(key[1]) is int:
                blocks[key[1]]["text"] = text

    def reader(self) -> MessagesReader:
        """See Form."""
        return MessagesReader()

    def rewrite(self, event: dict[str, Any], texts: Mapping[Key, str], told: set[Key]) -> bool:
        """See Form."""
        delta = event.get("delta")
        if event.get("type") != "content_block_delta" or type(delta) is not dict:
            return False
        field = {"text_delta": "text", "input_json_delta": "partial_json"}.get(str(delta.get("type")), "")
        key: Key = ("text" if field == "text" else "tool", event.get("index"))
        if not field or key not in texts:
            return False
        delta[field] = "" if key in told else texts[key]
        told.add(key)
        return True

    def ends(self, data: bytes) -> bool:
        """See Form."""
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            return False
        return type(event) is dict and event.get("type") == "message_stop"

    def failure(self, error: GatewayError, events: int) -> bytes:
        """See Form."""
        return error.event("anthropic")


class MessagesReader:
    """See Reader."""

    def __init__(self) -> None:
        self.failed = False
        self._blocks: dict[int, dict[str, Any]] = {}
        self._parts: dict[int, list[str]] = {}
        self._reason: Any = None
        self._ended = False

    def add(self, event: dict[str, Any]) -> None:
        """See Reader."""
        kind, index, delta = event.get("type"), event.get("index"), event.get("delta")
        if kind == "content_block_start" and type(index) is int and type(event.get("content_block")) is dict:
            self._blocks[index] = dict(event["content_block"])
        elif kind == "content_block_delta" and type(delta) is dict and type(index) is int and index in self._blocks:
            block = self._blocks[index]
            if type(delta.get("partial_json")) is str:
                self._parts.setdefault(index, []).append(delta["partial_json"])
            for name in ("text", "thinking"):
                if type(delta.get(name)) is str:
                    self._parts.setdefault(index, []).append(delta[name])
            if type(delta.get("signature")) is str:
                block["signature"] = delta["signature"]
        elif kind == "message_delta" and type(delta) is dict:
            self._reason = delta.get("stop_reason") or self._reason
        elif kind == "message_stop":
            self._ended = True
        elif kind == "error":
            self.failed = True

    def answer(self) -> dict[str, Any] | None:
        """See Reader."""
        if not self._ended or sorted(self._blocks) != list(range(len(self._blocks))):
            return None
        content = []
        for index in range(len(self._blocks)):
            block, said = self._blocks[index], "".join(self._parts.get(index, ()))
            if block.get("type") == "tool_use":
                try:
                    block["input"] = orjson.loads(said) if said else block.get("input") or {}
                except orjson.JSONDecodeError:
                    block["input"] = said
            elif block.get("type") in ("text", "thinking") and said:
                block[str(block["type"])] = said
            content.append(block)
        return {"content": content, "stop_reason": self._reason}


__all__ = ["MessagesForm"]
