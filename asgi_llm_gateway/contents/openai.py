"""Content of OpenAI's dialects: chat and legacy completions, Responses and embeddings.

Source: OpenAI API reference, "Chat", "Completions", "Embeddings" and "Responses", as of autumn 2026.
"""

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

FINISH = {"tool_calls": "tool_call", "function_call": "tool_call"}
"""Reasons why an answer ended that the convention calls otherwise."""

_AUDIO = "audio/"


def content_parts(content: Any, limit: int) -> list[Part]:
    """A message's content: a text, or a list of parts of which the first ``limit`` are read."""
    if type(content) is str:
        return [text(content)] if content else []
    return [_part(fields_of(one)) if type(one) is not str else text(one) for one in items_of(content)[:limit]]


def _part(one: dict[str, Any]) -> Part:
    kind = one.get("type")
    if kind in ("text", "input_text", "output_text"):
        return text(text_of(one.get("text")))
    if kind == "refusal":
        return text(text_of(one.get("refusal")))
    if kind in ("image_url", "input_image"):
        url = one.get("image_url")
        if type(url) is dict:
            url = url.get("url")
        if type(url) is str:
            return link(url, modality="image")
        return file(text_of(one.get("file_id")), modality="image")
    if kind == "input_audio":
        audio = fields_of(one.get("input_audio"))
        form = text_of(audio.get("format"))
        return blob(text_of(audio.get("data")), _AUDIO + form if form else "", "audio")
    if kind in ("file", "input_file"):
        told = fields_of(one.get("file")) if kind == "file" else one
        if type(told.get("file_data")) is str:
            return link(told["file_data"]) if told["file_data"].startswith("data:") else blob(told["file_data"], "")
        if type(told.get("file_url")) is str:
            return link(told["file_url"])
        return file(text_of(told.get("file_id")))
    if kind == "reasoning_text":
        return reasoning(text_of(one.get("text")))
    return other(one)


# -- chat and completions ----------------------------------------------------------------------------------------------


def chat_message(told: Any, limit: int) -> Message:
    """A message of a chat: one that was sent, or one that came back."""
    message = fields_of(told)
    role = text_of(message.get("role")) or "assistant"
    if role in ("tool", "function"):
        answer = tool_answer(message.get("tool_call_id") or message.get("name"), message.get("content"))
        return {"role": "tool", "parts": [answer]}
    parts: list[Part] = []
    thought = message.get("reasoning_content") or message.get("reasoning")
    if type(thought) is str and thought:
        parts.append(reasoning(thought))
    parts += content_parts(message.get("content"), limit)
    if type(message.get("refusal")) is str and message["refusal"]:
        parts.append(text(message["refusal"]))
    audio = fields_of(message.get("audio"))
    if type(audio.get("data")) is str:
        parts.append(blob(audio["data"], "", "audio"))
    parts += [_chat_call(fields_of(call)) for call in items_of(message.get("tool_calls"))[:limit]]
    call = message.get("function_call")
    if type(call) is dict:
        parts.append(tool_call(None, call.get("name"), call.get("arguments")))
    found: Message = {"role": role, "parts": parts}
    if type(message.get("name")) is str:
        found["name"] = message["name"]
    return found


def _chat_call(call: dict[str, Any]) -> Part:
    function = fields_of(call.get("function"))
    if function:
        return tool_call(call.get("id"), function.get("name"), function.get("arguments"))
    custom = fields_of(call.get("custom"))
    return tool_call(call.get("id"), custom.get("name"), custom.get("input"))


def prompt_messages(prompt: Any, limit: int) -> list[Message]:
    """What a completion or an embedding is made of: a text, several, or tokens."""
    many = prompt if type(prompt) is list and prompt and type(prompt[0]) in (str, list) else [prompt]
    parts = [text(one) if type(one) is str else {"type": "tokens", "count": len(items_of(one))} for one in many[:limit]]
    return [{"role": "user", "parts": parts}] if prompt else []


def chat_tools(data: dict[str, Any], limit: int) -> list[Part]:
    """The tools that a chat offers."""
    found = []
    for told in items_of(data.get("tools"))[:limit]:
        tool = fields_of(told)
        inner = tool.get("function") or tool.get("custom")
        found.append(_tool(fields_of(inner) if inner else tool, text_of(tool.get("type")) or "function"))
    return found + [_tool(fields_of(one), "function") for one in items_of(data.get("functions"))[:limit]]


def _tool(tool: dict[str, Any], kind: str) -> Part:
    found: Part = {"type": kind}
    for name in ("name", "description", "parameters"):
        if tool.get(name) is not None:
            found[name] = tool[name]
    return found


def choices(answer: dict[str, Any], limit: int) -> list[Message]:
    """The choices of a chat or a completion, each with why it ended."""
    found: list[Message] = []
    for told in items_of(answer.get("choices"))[:limit]:
        choice = fields_of(told)
        if "message" in choice:
            message = chat_message(choice["message"], limit)
        else:
            message = {"role": "assistant", "parts": content_parts(choice.get("text"), limit)}
        found.append({**message, "finish_reason": finish(choice.get("finish_reason"))})
    return found


def finish(reason: Any) -> str:
    """Why a choice ended, in the convention's word; ``error`` for one that never did."""
    return FINISH.get(reason, reason) if type(reason) is str and reason else "error"


# -- Responses ---------------------------------------------------------------------------------------------------------


def response_item(told: Any, limit: int) -> Message:
    """An item of a response's input or output."""
    item = fields_of(told)
    kind = text_of(item.get("type"))
    if kind in ("", "message"):
        return {"role": text_of(item.get("role")) or "user", "parts": content_parts(item.get("content"), limit)}
    if kind in ("function_call", "custom_tool_call"):
        call = tool_call(item.get("call_id"), item.get("name"), item.get("arguments", item.get("input")))
        return {"role": "assistant", "parts": [call]}
    if kind in ("function_call_output", "custom_tool_call_output"):
        return {"role": "tool", "parts": [tool_answer(item.get("call_id"), item.get("output"))]}
    if kind == "reasoning":
        said = [*items_of(item.get("summary"))[:limit], *items_of(item.get("content"))[:limit]]
        thoughts = [text_of(fields_of(one).get("text")) for one in said]
        return {"role": "assistant", "parts": [reasoning(one) for one in thoughts if one]}
    if kind == "compaction":
        return {"role": "assistant", "parts": [{"type": "compaction", "id": text_of(item.get("id"))}]}
    if kind.endswith("_call_output"):
        return {"role": "tool", "parts": [server_answer(item.get("call_id"), item)]}
    if kind.endswith("_call"):
        name = text_of(item.get("name")) or kind.removesuffix("_call")
        return {"role": "assistant", "parts": [server_call(item.get("call_id") or item.get("id"), name, item)]}
    return {"role": "assistant", "parts": [other(item)]}


def response_tools(data: dict[str, Any], limit: int) -> list[Part]:
    """The tools that a response may use: functions, and the provider's own by their kind and name."""
    found = []
    for told in items_of(data.get("tools"))[:limit]:
        tool = fields_of(told)
        found.append(_tool(tool, text_of(tool.get("type")) or "function"))
    return found


def response(answer: dict[str, Any], limit: int) -> list[Message]:
    """All that a response says, as the one choice that it is."""
    items = items_of(answer.get("output"))[:limit]
    parts = [part for item in items for part in response_item(item, limit)["parts"]]
    if not parts and answer.get("status") not in ("failed", "cancelled"):
        return []
    return [{"role": "assistant", "parts": parts, "finish_reason": _response_finish(answer, items)}]


def _response_finish(answer: dict[str, Any], items: list[Any]) -> str:
    status = answer.get("status")
    if status == "completed":
        calls = any(text_of(fields_of(item).get("type")) in ("function_call", "custom_tool_call") for item in items)
        return "tool_call" if calls else "stop"
    reason = text_of(fields_of(answer.get("incomplete_details")).get("reason"))
    if status == "incomplete" and reason:
        return "length" if reason == "max_output_tokens" else reason
    return "error"
