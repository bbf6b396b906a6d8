"""OpenAI's Responses as a scripted provider, as strict as OpenAI is.

Source: OpenAI API reference, "Create a model response" and "Streaming events", autumn 2026.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from .model import Called, Failure, Heard, Said
from .speaks_chat import check_strict, picture

_TOP = frozenset(
    {"model", "input", "instructions", "max_output_tokens", "max_tool_calls", "tools", "tool_choice",
     "parallel_tool_calls", "text", "reasoning", "include", "temperature", "top_p", "top_logprobs", "truncation", "store",
     "metadata", "prompt_cache_key", "safety_identifier", "user", "service_tier", "stream", "stream_options"}
)  # fmt: skip
_ITEMS = {
    "message": {"type", "role", "content", "id", "status", "phase"},
    "function_call": {"type", "call_id", "name", "arguments", "id", "status"},
    "function_call_output": {"type", "call_id", "output", "id", "status"},
    "reasoning": {"type", "id", "summary", "content", "encrypted_content", "status"},
}
_PREFIX = {"message": "msg_", "function_call": "fc_", "reasoning": "rs_"}


def _is(true: Any, param: str, why: str) -> None:
    if not true:
        raise Failure(400, f"Invalid '{param}': {why}", param)


def _encrypted(thought: str) -> str:
    return base64.b64encode(hashlib.sha256(("its key" + thought).encode()).digest()).decode()


def hear(body: dict[str, Any]) -> Heard:
    """A request. Raises Failure."""
    for name in body.keys() - _TOP:
        raise Failure(400, f"Unknown parameter: '{name}'.", name)
    _is(body.get("store") is False, "store", "this account keeps nothing")
    heard = Heard(
        stream=body.get("stream", False), limit=body.get("max_output_tokens"), system=body.get("instructions") or ""
    )
    _is(heard.limit is None or heard.limit >= 16, "max_output_tokens", "Expected a value >= 16")
    for at, tool in enumerate(body.get("tools") or ()):
        param = f"tools[{at}]"
        _is(tool.keys() <= {"type", "name", "description", "parameters", "strict"}, param, "unknown field")
        _is(tool["type"] == "function" and len(tool["name"]) <= 64, param, "not a function")
        if tool.get("strict", True):
            check_strict(tool["parameters"], f"{param}.parameters")
        heard.tools.append(tool["name"])
    choice = body.get("tool_choice")
    heard.forced = choice == "required" or type(choice) is dict
    for one in body.get("include") or ():
        _is(one in ("reasoning.encrypted_content", "message.output_text.logprobs"), "include", f"'{one}' is unknown")
    wanted = (body.get("text") or {}).get("format") or {"type": "text"}
    if wanted["type"] == "json_schema":
        _is(wanted.keys() <= {"type", "name", "schema", "strict", "description"}, "text.format", "unknown field")
        if wanted.get("strict"):
            check_strict(wanted["schema"], "text.format.schema")
        heard.schema = wanted["schema"]
    heard.thinks = (body.get("reasoning") or {}).get("effort", "none") != "none"
    given = body.get("input")
    _hear_items([{"role": "user", "content": given}] if type(given) is str else given, heard)
    return heard


def _hear_items(items: Any, heard: Heard) -> None:
    _is(type(items) is list and items, "input", "expected a string or an array")
    waiting: list[str] = []
    for at, item in enumerate(items):
        param, kind = f"input[{at}]", item.get("type", "message")
        _is(kind in _ITEMS, f"{param}.type", "unknown")
        _is(item.keys() <= _ITEMS[kind], param, f"unknown field in {sorted(item)}")
        prefix = _PREFIX.get(kind)
        _is(
            prefix is None or item.get("id", prefix).startswith(prefix),
            f"{param}.id",
            f"Expected an ID that begins with {prefix}",
        )
        if kind == "message":
            _is(not waiting, param, f"No tool output found for function call {waiting}")
            _hear_message(item, param, heard)
        elif kind == "function_call":
            heard.history.append(Called(item["call_id"], item["name"], json.loads(item["arguments"])))
            waiting.append(item["call_id"])
            heard.results = []
        elif kind == "function_call_output":
            _is(item["call_id"] in waiting, param, "No tool call found for function call output")
            waiting.remove(item["call_id"])
            output = item["output"]
            heard.results.append(
                (item["call_id"], output if type(output) is str else "".join(p["text"] for p in output))
            )
        else:
            thought = "".join(part["text"] for part in item["summary"])
            _is(item.get("encrypted_content") == _encrypted(thought), param,
                "not found: items are not persisted when `store` is false. Send 'encrypted_content'.")  # fmt: skip
            heard.replayed = True
    _is(not waiting, "input", f"No tool output found for function call {waiting}")


def _hear_message(item: dict[str, Any], param: str, heard: Heard) -> None:
    content, role = item["content"], item["role"]
    parts = [{"type": "input_text", "text": content}] if type(content) is str else content
    for part in parts:
        if role == "assistant":
            _is(part["type"] in ("output_text", "refusal", "input_text"), param, "assistant content is output")
        elif part["type"] == "input_text":
            if role == "user":
                heard.command = part["text"]
                heard.first = heard.first or part["text"]
            else:
                heard.system += part["text"]
        else:
            _is(part["type"] == "input_image", param, "unknown part")
            heard.images.append(picture(part["image_url"], param))


# -- what it says ------------------------------------------------------------------------------------------------------


def usage(said: Said) -> dict[str, Any]:
    """What is billed."""
    counts = said.counts
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": counts.written},
        "output_tokens": counts.made,
        "output_tokens_details": {"reasoning_tokens": counts.thought},
        "total_tokens": counts.prompt + counts.made,
    }


def _part(said: Said) -> dict[str, Any]:
    text = "".join(said.texts)
    if said.end == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _items(said: Said, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The items of the output, whole."""
    status = "incomplete" if said.end == "length" else "completed"
    items: list[dict[str, Any]] = []
    if said.thoughts:
        thought = "".join(said.thoughts)
        items.append({"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": thought}]})
        if "reasoning.encrypted_content" in (body.get("include") or ()):
            items[0]["encrypted_content"] = _encrypted(thought)
    if said.texts:
        items.append(
            {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": [_part(said)]}
        )
    for number, call in enumerate(said.calls):
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        items.append({"id": f"fc_{number}", "type": "function_call", "status": "completed", "call_id": f"call_{number}",
                      "name": call.name, "arguments": arguments})  # fmt: skip
    return items


def whole(said: Said, model: str, body: dict[str, Any], *, begun: bool = False) -> dict[str, Any]:
    """A response; ``begun``: as it stands in a stream's first events."""
    cut = said.end == "length" and not begun
    return {
        "id": "resp_test", "object": "response", "created_at": 1_790_000_000,
        "status": "in_progress" if begun else "incomplete" if cut else "completed", "background": False, "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None, "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"), "model": model, "output": [] if begun else _items(said, body),
        "parallel_tool_calls": True, "previous_response_id": None, "reasoning": {"effort": None, "summary": None},
        "service_tier": "default", "store": False, "temperature": 1.0, "text": {"format": {"type": "text"}},
        "tool_choice": "auto", "tools": body.get("tools") or [], "top_p": 1.0, "truncation": "disabled",
        "usage": None if begun else usage(said), "user": None, "metadata": {},
    }  # fmt: skip


def stream(said: Said, model: str, body: dict[str, Any]) -> tuple[list[bytes], list[bytes]]:
    """The events of a stream: up to the last of the content, and the rest."""
    out: list[bytes] = []

    def tell(kind: str, **fields: Any) -> None:
        told = {"type": f"response.{kind}", "sequence_number": len(out), **fields}
        data = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
        out.append(f"event: response.{kind}\ndata: {data}\n\n".encode())

    tell("created", response=whole(said, model, body, begun=True))
    tell("in_progress", response=whole(said, model, body, begun=True))
    content_ends = 0
    for index, item in enumerate(_items(said, body)):
        at = {"item_id": item["id"], "output_index": index}
        if item["type"] == "reasoning":
            tell("output_item.added", output_index=index, item={**item, "summary": []})
            tell("reasoning_summary_part.added", **at, summary_index=0, part={"type": "summary_text", "text": ""})
            for piece in said.thoughts:
                tell("reasoning_summary_text.delta", **at, summary_index=0, delta=piece)
            tell("reasoning_summary_text.done", **at, summary_index=0, text=item["summary"][0]["text"])
            tell("reasoning_summary_part.done", **at, summary_index=0, part=item["summary"][0])
        elif item["type"] == "message":
            (part,) = item["content"]
            word, key = ("refusal", "refusal") if part["type"] == "refusal" else ("output_text", "text")
            more: dict[str, Any] = {} if word == "refusal" else {"logprobs": []}
            tell("output_item.added", output_index=index, item={**item, "status": "in_progress", "content": []})
            tell("content_part.added", **at, content_index=0, part={**part, key: ""})
            for piece in said.texts:
                tell(f"{word}.delta", **at, content_index=0, delta=piece, **more)
            content_ends = len(out)
            tell(f"{word}.done", **at, content_index=0, **{key: part[key]}, **more)
            tell("content_part.done", **at, content_index=0, part=part)
        else:
            tell("output_item.added", output_index=index, item={**item, "status": "in_progress", "arguments": ""})
            for start in range(0, len(item["arguments"]), 5):
                tell("function_call_arguments.delta", **at, delta=item["arguments"][start : start + 5])
            tell("function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"])
        tell("output_item.done", output_index=index, item=item)
    tell("incomplete" if said.end == "length" else "completed", response=whole(said, model, body))
    return out[:content_ends], out[content_ends:]


def error_event(message: str) -> bytes:
    """An error amid a stream."""
    told = {"type": "error", "code": "server_error", "message": message, "param": None, "sequence_number": 99}
    return f"event: error\ndata: {json.dumps(told)}\n\n".encode()
