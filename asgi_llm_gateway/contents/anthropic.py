"""Content of Anthropic's dialect. Source: Anthropic API reference, "Messages", 2023-06-01."""

from __future__ import annotations

from typing import Any

from .parts import (
    Message,
    Part,
    blob,
    fields_of,
    file,
    items_of,
    link,
    other,
    reasoning,
    server_answer,
    server_call,
    text,
    text_of,
    tool_answer,
    tool_call,
)

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_call",
    "refusal": "content_filter",
    "compaction": "compaction",
}
"""Why a message ended, in the convention's words; any other one stays as it is."""


def message(told: Any, limit: int) -> Message:
    """One message of the conversation."""
    given = fields_of(told)
    return {"role": text_of(given.get("role")) or "user", "parts": blocks(given.get("content"), limit)}


def blocks(content: Any, limit: int) -> list[Part]:
    """A content: a text, or a list of blocks of which the first ``limit`` are read."""
    if type(content) is str:
        return [text(content)] if content else []
    return [_block(fields_of(one)) for one in items_of(content)[:limit]]


def _block(block: dict[str, Any]) -> Part:
    kind = text_of(block.get("type"))
    if kind == "text":
        return text(text_of(block.get("text")))
    if kind == "thinking":
        return reasoning(text_of(block.get("thinking")))
    if kind == "redacted_thinking":
        return reasoning("")  # encrypted: there is nothing to read
    if kind in ("image", "document"):
        return _source(fields_of(block.get("source")), kind)
    if kind == "tool_use":
        return tool_call(block.get("id"), block.get("name"), block.get("input"))
    if kind == "tool_result":
        return tool_answer(block.get("tool_use_id"), block.get("content"))
    if kind in ("server_tool_use", "mcp_tool_use"):
        name = text_of(block.get("name"))
        return server_call(block.get("id"), name, {"type": name or kind, "input": block.get("input")})
    if kind.endswith("_tool_result"):
        return server_answer(block.get("tool_use_id"), {"type": kind, "content": block.get("content")})
    return other(block)


def _source(source: dict[str, Any], kind: str) -> Part:
    mime = text_of(source.get("media_type"))
    match source.get("type"):
        case "base64":
            return blob(text_of(source.get("data")), mime, kind)
        case "url":
            return link(text_of(source.get("url")), mime, kind)
        case "file":
            return file(text_of(source.get("file_id")), mime, kind)
        case "text":
            return text(text_of(source.get("data")))
        case _:
            return other(source, kind)


def tools(data: dict[str, Any], limit: int) -> list[Part]:
    """The tools on offer: the caller's own are functions, the provider's keep their kind."""
    found = []
    for told in items_of(data.get("tools"))[:limit]:
        tool = fields_of(told)
        kind = text_of(tool.get("type"))
        one: Part = {"type": "function" if kind in ("", "custom") else kind, "name": text_of(tool.get("name"))}
        if tool.get("description") is not None:
            one["description"] = tool["description"]
        if tool.get("input_schema") is not None:
            one["parameters"] = tool["input_schema"]
        found.append(one)
    return found


def answer(told: dict[str, Any], limit: int) -> list[Message]:
    """The one message that came back, with why it ended."""
    if "content" not in told:
        return []
    reason = told.get("stop_reason")
    why = FINISH.get(reason, reason) if type(reason) is str and reason else "error"
    return [{"role": "assistant", "parts": blocks(told["content"], limit), "finish_reason": why}]
