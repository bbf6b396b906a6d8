"""A chat completion as a response. Source: OpenAI API reference, "The response object", autumn 2026."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from secrets import token_hex
from typing import Any

import orjson

from ..errors import UpstreamError
from ..usage import usage_from
from ..wire import LLMRequest

Item = dict[str, Any]

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reasons of an answer that was cut, to ``incomplete_details.reason``."""

_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast"})


def dumps(value: Any) -> bytes:
    """JSON. orjson reads deeper than it writes, and the client's schemas are told again deeper than they came."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class Names:
    """The ids of one response and its items: one random number, so that they are seen to belong together."""

    __slots__ = ("response", "tail")

    def __init__(self) -> None:
        self.tail = token_hex(16)
        self.response = "resp_" + self.tail

    def item(self, kind: str, index: int) -> str:
        """The id of an item; ``kind`` is ``msg``, ``fc`` or ``rs``."""
        return f"{kind}_{self.tail}{index:04x}"


def frame(request: LLMRequest, names: Names, told: Item) -> Item:
    """The response object around an output, in progress: what was asked is told again, what was served is told so.

    ``told`` is the completion, or the first chunk of it.
    """
    data = request.data
    text, reasoning, tier = data.get("text") or {}, data.get("reasoning") or {}, told.get("service_tier")
    created, model = told.get("created"), told.get("model")
    return {
        "id": names.response,
        "object": "response",
        "created_at": created if type(created) is int and created > 0 else int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": data.get("instructions"),
        "max_output_tokens": request.max_tokens,
        "max_tool_calls": None,
        "model": model if type(model) is str and model else request.model,
        "output": [],
        "parallel_tool_calls": data.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": data.get("safety_identifier"),
        "service_tier": tier if type(tier) is str and tier in _TIERS else None,
        "store": False,
        "temperature": data.get("temperature"),
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": text.get("verbosity") or "medium"},
        "tool_choice": data.get("tool_choice") or "auto",
        "tools": [_tool(tool) for tool in data.get("tools") or ()],
        "top_logprobs": data.get("top_logprobs") or 0,
        "top_p": data.get("top_p"),
        "truncation": "disabled",
        "usage": None,
        "user": data.get("user"),
        "metadata": data.get("metadata") or {},
    }


def _tool(tool: Item) -> Item:
    return {"type": "function", "name": tool["name"], "description": tool.get("description"),
            "parameters": tool.get("parameters"), "strict": tool.get("strict") or False}  # fmt: skip


def ended(around: Item, output: Sequence[Item], reason: str | None, usage: Any) -> Item:
    """The response object at its end. ``usage`` is chat's object."""
    cut = INCOMPLETE.get(reason) if reason is not None else None
    return {
        **around,
        "status": "completed" if cut is None else "incomplete",
        "completed_at": int(time.time()) if cut is None else None,
        "incomplete_details": None if cut is None else {"reason": cut},
        "output": list(output),
        "usage": usage_object(usage),
    }


def usage_object(usage: Any) -> Item | None:
    """Chat's usage in this API's words; ``None`` where it tells none."""
    counts = usage_from(usage)
    if counts is None:
        return None
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": counts.cache_write},
        "output_tokens": counts.completion,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": counts.total,
    }


# -- items -------------------------------------------------------------------------------------------------------------


def reasoning_item(id: str, text: str) -> Item:
    """What the model thought, as far as it is told."""
    return {"id": id, "type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}


def text_part(text: str, annotations: Sequence[Item] = (), logprobs: Sequence[Item] = ()) -> Item:
    """A text of a message."""
    return {"type": "output_text", "text": text, "annotations": list(annotations), "logprobs": list(logprobs)}


def refusal_part(text: str) -> Item:
    """The words with which the model refused."""
    return {"type": "refusal", "refusal": text}


def message_item(id: str, status: str, parts: Sequence[Item]) -> Item:
    """A message."""
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": list(parts)}


def call_item(id: str, status: str, called: str, name: str, arguments: str) -> Item:
    """A call: ``id`` is the item's, ``called`` (``call_id``) is what its output is sent for."""
    return {"id": id, "type": "function_call", "status": status, "call_id": called, "name": name,
            "arguments": arguments}  # fmt: skip


# -- what chat says, read leniently ------------------------------------------------------------------------------------


def thoughts_in(message: Item) -> str:
    """Reasoning, under the names that vendors have for it."""
    for name in ("reasoning_content", "reasoning"):
        value = message.get(name)
        if type(value) is str and value:
            return value
    return ""


def text_in(content: Any) -> str:
    """Content that is a string, or parts of which the texts count."""
    if type(content) is str:
        return content
    if type(content) is not list:
        return ""
    return "".join(part["text"] for part in content if type(part) is dict and type(part.get("text")) is str)


def arguments_in(value: Any) -> str:
    """Arguments of a call as text: no words are no arguments, which a client reads as an empty object."""
    if type(value) is str:
        return value if value.strip() else "{}"
    return "{}" if value is None else dumps(value).decode()


def annotations_in(message: Item) -> list[Item]:
    """The sources that a text names, flat."""
    found = []
    listed = message.get("annotations")
    for one in listed if type(listed) is list else ():
        match one:
            case {"url_citation": {"url": str(url), "start_index": int(start), "end_index": int(end), **more}}:
                title = more.get("title")
                found.append({"type": "url_citation", "start_index": start, "end_index": end, "url": url,
                              "title": title if type(title) is str else ""})  # fmt: skip
    return found


def logprobs_in(choice: Item) -> list[Item]:
    """Log probabilities of the text's tokens."""
    told = choice.get("logprobs")
    listed = told.get("content") if type(told) is dict else None
    return [_logprob(one, more=True) for one in listed if _is_logprob(one)] if type(listed) is list else []


def _is_logprob(one: Any) -> bool:
    return type(one) is dict and type(one.get("token")) is str and type(one.get("logprob")) in (int, float)


def _logprob(one: Item, *, more: bool) -> Item:
    raw = one.get("bytes")
    known = type(raw) is list and all(type(byte) is int for byte in raw)
    told: Item = {
        "token": one["token"],
        "bytes": raw if known else list(one["token"].encode("utf-8", "replace")),
        "logprob": one["logprob"],
    }
    if more:
        top = one.get("top_logprobs")
        listed = top if type(top) is list else ()
        told["top_logprobs"] = [_logprob(other, more=False) for other in listed if _is_logprob(other)]
    return told


# -- a whole answer ----------------------------------------------------------------------------------------------------


def answer(request: LLMRequest, body: bytes) -> bytes:
    """A chat completion as a response. Raises UpstreamError."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise UpstreamError("The provider sent what is not JSON.") from None
    choices = told.get("choices") if type(told) is dict else None
    choice = choices[0] if type(choices) is list and choices else None
    if type(choice) is not dict or type(choice.get("message")) is not dict:
        raise UpstreamError("The provider sent JSON that is no chat completion.")
    message = choice["message"]
    names = Names()
    reason = choice.get("finish_reason")
    reason = reason if type(reason) is str else None
    status = "incomplete" if reason in INCOMPLETE else "completed"
    output: list[Item] = []
    if thought := thoughts_in(message):
        output.append(reasoning_item(names.item("rs", 0), thought))
    parts: list[Item] = []
    if text := text_in(message.get("content")):
        parts.append(text_part(text, annotations_in(message), logprobs_in(choice)))
    if refusal := text_in(message.get("refusal")):
        parts.append(refusal_part(refusal))
    if parts:
        output.append(message_item(names.item("msg", len(output)), status, parts))
    for id, name, arguments in _calls(message):
        index = len(output)
        called = id or f"call_{names.tail}{index:04x}"
        output.append(call_item(names.item("fc", index), status, called, name, arguments))
    return dumps(ended(frame(request, names, told), output, reason, told.get("usage")))


def _calls(message: Item) -> list[tuple[str | None, str, str]]:
    """Id, name and arguments of each call; the older ``function_call`` is one."""
    listed = message.get("tool_calls")
    found = []
    for one in listed if type(listed) is list else ():
        function = one.get("function") if type(one) is dict else None
        if type(function) is dict and type(function.get("name")) is str and function["name"]:
            id = one.get("id")
            found.append((id if type(id) is str and id else None, function["name"],
                          arguments_in(function.get("arguments"))))  # fmt: skip
    older = message.get("function_call")
    if not found and type(older) is dict and type(older.get("name")) is str and older["name"]:
        found.append((None, older["name"], arguments_in(older.get("arguments"))))
    return found
