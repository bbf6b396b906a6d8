"""Anthropic as a scripted provider: as strict as it is with what it gets, and as exact with what it says.

Source: Anthropic API reference, "Messages", "Streaming messages", "Errors" and "Structured outputs", 2023-06-01.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from .model import Called, Failure, Heard, Said

TYPES = {400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
         404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 500: "api_error",
         504: "timeout_error", 529: "overloaded_error"}  # fmt: skip
MOST = 64_000  # output tokens of the models here
_TOP = frozenset(
    {"model", "max_tokens", "messages", "system", "stop_sequences", "stream", "tools", "tool_choice", "thinking",
     "output_config", "metadata", "service_tier", "cache_control", "temperature", "top_p", "top_k"}
)  # fmt: skip
_BETA = {"context_management": "context-management-2025-06-27"}
_BLOCKS: Mapping[str, tuple[set[str], set[str], tuple[str, ...]]] = {  # needed, allowed beside them, of which roles
    "text": ({"text"}, {"cache_control", "citations"}, ("user", "assistant", "system", "tool_result")),
    "image": ({"source"}, {"cache_control"}, ("user", "tool_result")),
    "document": ({"source"}, {"cache_control", "title", "context", "citations"}, ("user", "tool_result")),
    "tool_use": ({"id", "name", "input"}, {"cache_control"}, ("assistant",)),
    "tool_result": ({"tool_use_id"}, {"content", "is_error", "cache_control"}, ("user",)),
    "thinking": ({"thinking", "signature"}, set(), ("assistant",)),
    "redacted_thinking": ({"data"}, set(), ("assistant",)),
}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}\Z")
_UNTOLD = frozenset({"minimum", "maximum", "minLength", "maxLength", "maxItems", "uniqueItems", "oneOf", "not", "if",
                     "patternProperties", "multipleOf"})  # fmt: skip


def _is(true: Any, place: str, why: str) -> None:
    if not true:
        raise Failure(400, f"{place}: {why}")


def _only(value: Any, allowed: frozenset[str] | set[str], place: str) -> None:
    _is(type(value) is dict, place, "Input should be an object")
    for name in value.keys() - allowed:
        raise Failure(400, f"{place}.{name}: Extra inputs are not permitted".lstrip("."))


def hear(body: dict[str, Any], headers: Mapping[str, str], *, counting: bool = False) -> Heard:
    """A request, which is refused for anything that the API refuses. Raises Failure."""
    _is("anthropic-version" in headers, "anthropic-version", "header is required")
    betas = {one.strip() for one in headers.get("anthropic-beta", "").split(",")}
    top = _TOP | {name for name, beta in _BETA.items() if beta in betas}
    if counting:
        top -= {"max_tokens", "stream", "metadata", "service_tier", "stop_sequences"}
    _only(body, top, "")
    heard = Heard(stream=body.get("stream", False))
    if not counting:
        limit = body.get("max_tokens")
        if type(limit) is not int:
            raise Failure(400, "max_tokens: Field required")
        _is(0 <= limit <= MOST, "max_tokens", f"{limit} > {MOST}")
        heard.limit = limit
    _is(type(body.get("model")) is str, "model", "Field required")
    _only(body.get("metadata", {}), {"user_id"}, "metadata")
    _is(len(body.get("metadata", {}).get("user_id") or "") <= 256, "metadata.user_id", "too long")
    for stop in body.get("stop_sequences", ()):
        _is(stop.strip(), "stop_sequences", "each stop sequence must contain non-whitespace")
    _hear_system(body.get("system"), heard)
    _hear_tools(body, heard)
    _hear_config(body, heard)
    _hear_messages(body, heard)
    marks = json.dumps(body).count('"cache_control"')
    _is(marks <= 4, "cache_control", f"A maximum of 4 blocks with cache_control may be provided. Found {marks}.")
    return heard


def _hear_system(system: Any, heard: Heard) -> None:
    for at, block in enumerate([{"type": "text", "text": system}] if type(system) is str else system or ()):
        _check_block(block, "system", f"system.{at}")
        heard.system += block["text"]


def _hear_tools(body: dict[str, Any], heard: Heard) -> None:
    for at, tool in enumerate(body.get("tools", ())):
        place = f"tools.{at}"
        _only(tool, {"name", "description", "input_schema", "strict", "cache_control", "type", "input_examples",
                     "eager_input_streaming"}, place)  # fmt: skip
        _is(tool.get("type", "custom") == "custom", place, "not a custom tool")
        _is(_NAME.match(tool.get("name", "")), f"{place}.name", "String should match pattern")
        _is(type(tool.get("input_schema")) is dict, f"{place}.input_schema", "Field required")
        _is(tool["input_schema"].get("type") == "object", f"{place}.input_schema.type", "Input should be 'object'")
        if tool.get("strict"):
            _check_schema(tool["input_schema"], f"{place}.input_schema")
        heard.tools.append(tool["name"])
    _is(len(set(heard.tools)) == len(heard.tools), "tools", "Tool names must be unique.")
    choice = body.get("tool_choice")
    if choice is not None:
        _is(heard.tools, "tool_choice", "may only be specified while providing tools")
        _only(choice, {"type", "name", "disable_parallel_tool_use"}, "tool_choice")
        _is(choice.get("type") in ("auto", "any", "tool", "none"), "tool_choice.type", "unknown")
        _is(choice["type"] != "tool" or choice.get("name") in heard.tools, "tool_choice.name", "no such tool")
        heard.forced = choice["type"] in ("any", "tool")


def _hear_config(body: dict[str, Any], heard: Heard) -> None:
    config = body.get("output_config", {})
    _only(config, {"effort", "format"}, "output_config")
    _is(config.get("effort", "high") in ("low", "medium", "high", "xhigh", "max"), "output_config.effort", "unknown")
    if "format" in config:
        _only(config["format"], {"type", "schema"}, "output_config.format")
        _check_schema(config["format"]["schema"], "output_config.format.schema")
        heard.schema = config["format"]["schema"]
    thinking = body.get("thinking")
    if thinking is None:
        return
    _only(thinking, {"type", "budget_tokens", "display"}, "thinking")
    kind = thinking.get("type")
    _is(kind in ("enabled", "adaptive", "disabled"), "thinking.type", "unknown")
    _is(
        ("budget_tokens" in thinking) == (kind == "enabled"),
        "thinking.budget_tokens",
        "only, and always, with 'enabled'",
    )
    if kind == "enabled":
        budget = thinking["budget_tokens"]
        _is(budget >= 1024, "thinking.budget_tokens", "Input should be greater than or equal to 1024")
        _is(heard.limit is None or budget < heard.limit, "max_tokens", "must be greater than thinking.budget_tokens")
    heard.thinks = kind != "disabled"
    if heard.thinks:
        _is(not heard.forced, "tool_choice", "Thinking may not be enabled when tool_choice forces tool use.")
        _is(body.get("temperature", 1) == 1, "temperature", "may only be set to 1 when thinking is enabled")
        _is("top_k" not in body, "top_k", "must be unset when thinking is enabled")


def _check_schema(schema: Any, place: str) -> None:
    """The part of JSON Schema that is enforced."""
    if type(schema) is not dict:
        return
    for word in _UNTOLD & schema.keys():
        raise Failure(400, f"{place}: '{word}' is not supported")
    if schema.get("type") == "object":
        _is(schema.get("additionalProperties") is False, place, "additionalProperties must be explicitly set to false")
    for name in ("properties", "$defs"):
        for inner in schema.get(name, {}).values():
            _check_schema(inner, place)
    _check_schema(schema.get("items"), place)


def _check_block(block: Any, role: str, place: str) -> None:
    _is(type(block) is dict, place, "Input should be an object")
    kind = block.get("type")
    _is(kind in _BLOCKS, f"{place}.type", f"'{kind}' is unknown")
    needed, allowed, roles = _BLOCKS[kind]
    _is(role in roles, place, f"'{kind}' blocks are not allowed in {role}")
    _only(block, needed | allowed | {"type"}, place)
    for name in needed - block.keys():
        raise Failure(400, f"{place}.{kind}.{name}: Field required")
    if kind == "text":
        _is(block["text"], place, "text content blocks must be non-empty")
    elif kind == "tool_use":
        _is(_NAME.match(block["id"]), f"{place}.id", "String should match pattern '^[a-zA-Z0-9_-]+$'")
        _is(type(block["input"]) is dict, f"{place}.input", "Input should be a valid dictionary")
    elif kind == "thinking":
        _is(block["signature"] == signature(block["thinking"]), place, "Invalid `signature` in `thinking` block")
    mark = block.get("cache_control")
    if mark is not None:
        _only(mark, {"type", "ttl"}, f"{place}.cache_control")
        _is(
            mark.get("type") == "ephemeral" and mark.get("ttl", "5m") in ("5m", "1h"),
            f"{place}.cache_control",
            "unknown",
        )


def _picture(block: dict[str, Any], place: str) -> bytes:
    source = block["source"]
    _only(source, {"type", "media_type", "data"}, f"{place}.source")
    _is(source["type"] == "base64", f"{place}.source", "only base64 here")
    _is(
        source["media_type"] in ("image/jpeg", "image/png", "image/gif", "image/webp"), f"{place}.media_type", "unknown"
    )
    return base64.b64decode(source["data"], validate=True)


def _hear_messages(body: dict[str, Any], heard: Heard) -> None:
    messages = body.get("messages")
    _is(type(messages) is list and messages, "messages", "at least one message is required")
    turns: list[tuple[str, list[dict[str, Any]]]] = []
    for at, message in enumerate(messages or ()):
        _only(message, {"role", "content"}, f"messages.{at}")
        role, content = message["role"], message["content"]
        _is(role in ("user", "assistant"), f"messages.{at}.role", "unknown")
        _is(content, f"messages.{at}", "all messages must have non-empty content")
        blocks: list[Any] = [{"type": "text", "text": content}] if type(content) is str else content
        for number, block in enumerate(blocks):
            _check_block(block, role, f"messages.{at}.content.{number}")
        if turns and turns[-1][0] == role:  # consecutive turns of one role are one
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, list(blocks)))
    _is(turns[0][0] == "user", "messages", "first message must use the user role")
    _is(turns[-1][0] == "user", "messages", "this model does not support assistant message prefill")
    waiting: list[str] = []
    for at, (role, blocks) in enumerate(turns):
        place = f"messages.{at}"
        if role == "assistant":
            uses = [block for block in blocks if block["type"] == "tool_use"]
            _is(not uses or heard.tools, place, "tool_use without tools")
            heard.history += [Called(block["id"], block["name"], block["input"]) for block in uses]
            waiting = [block["id"] for block in uses]
            thought = blocks[0]["type"] in ("thinking", "redacted_thinking")
            if uses and at == len(turns) - 2:
                heard.replayed = thought
                budget = body.get("thinking", {}).get("type") == "enabled"
                _is(thought or not budget, place, "a final `assistant` message must start with a thinking block")
            continue
        results = [block for block in blocks if block["type"] == "tool_result"]
        told = [block["tool_use_id"] for block in results]
        _is(sorted(told) == sorted(waiting), place, "`tool_use` ids were found without `tool_result` blocks immediately after"
            if set(waiting) - set(told) else "unexpected `tool_use_id` found in `tool_result` blocks")  # fmt: skip
        _is(blocks[: len(results)] == results, place, "tool_result blocks must come first")
        waiting = []
        heard.results = [(block["tool_use_id"], _result(block, heard, place)) for block in results]
        for number, block in enumerate(blocks):
            if block["type"] == "text":
                heard.command = block["text"]
                heard.first = heard.first or block["text"]
            elif block["type"] == "image":
                heard.images.append(_picture(block, f"{place}.content.{number}"))


def _result(block: dict[str, Any], heard: Heard, place: str) -> str:
    content = block.get("content", "")
    if type(content) is str:
        text = content
    else:
        for inner in content:
            _check_block(inner, "tool_result", place)
        heard.images += [_picture(inner, place) for inner in content if inner["type"] == "image"]
        text = "".join(inner["text"] for inner in content if inner["type"] == "text")
    return f"failed: {text}" if block.get("is_error") else text


# -- what it says ------------------------------------------------------------------------------------------------------


def signature(thought: str) -> str:
    """The provider's mark under a thought."""
    return base64.b64encode(hashlib.sha256(("its key" + thought).encode()).digest()).decode()


def failure(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The envelope of an error."""
    return {"type": "error", "error": {"type": TYPES[status], "message": message}, "request_id": "req_011CTest"}


def usage(said: Said) -> dict[str, Any]:
    """What is billed; the parts of the prompt stand beside one another."""
    counts = said.counts
    return {
        "input_tokens": counts.prompt - counts.cached - counts.written,
        "cache_creation_input_tokens": counts.written,
        "cache_read_input_tokens": counts.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": counts.written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": counts.made,
        "output_tokens_details": {"thinking_tokens": counts.thought},
        "service_tier": "standard",
    }


def _ending(said: Said) -> dict[str, Any]:
    reasons = {"stop": "end_turn", "length": "max_tokens", "calls": "tool_use", "refusal": "refusal"}
    details = (
        {"type": "refusal", "category": None, "explanation": "".join(said.texts)} if said.end == "refusal" else None
    )
    return {"stop_reason": reasons[said.end], "stop_sequence": None, "stop_details": details}


def _calls(said: Said) -> list[dict[str, Any]]:
    return [{"type": "tool_use", "id": f"toolu_{number:02}{call.name}", "name": call.name, "input": call.arguments}
            for number, call in enumerate(said.calls)]  # fmt: skip


def _texts(said: Said) -> tuple[str, ...]:
    return () if said.end == "refusal" else said.texts  # why it refused stands in stop_details


def whole(said: Said, model: str) -> dict[str, Any]:
    """A message."""
    thought, text = "".join(said.thoughts), "".join(_texts(said))
    content: list[dict[str, Any]] = []
    if thought:
        content.append({"type": "thinking", "thinking": thought, "signature": signature(thought)})
    if text:
        content.append({"type": "text", "text": text})
    return {"id": "msg_01Test", "type": "message", "role": "assistant", "model": model,
            "content": content + _calls(said), **_ending(said), "usage": usage(said)}  # fmt: skip


def event(kind: str, **fields: Any) -> bytes:
    """An event of a stream."""
    data = json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


def stream(said: Said, model: str) -> tuple[list[bytes], list[bytes]]:
    """The events of a stream: up to the last of the content, and the rest."""
    begun = {**whole(said, model), "content": [], "stop_reason": None, "stop_details": None}
    begun["usage"] = {**usage(said), "output_tokens": 1, "output_tokens_details": {"thinking_tokens": 0}}
    out = [event("message_start", message=begun), event("ping")]
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if said.thoughts:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in said.thoughts]
        deltas.append({"type": "signature_delta", "signature": signature("".join(said.thoughts))})
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    if texts := _texts(said):
        blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in texts]))
    for call in _calls(said):
        written = json.dumps(call["input"], ensure_ascii=False) if call["input"] else ""
        pieces = [written[at : at + 6] for at in range(0, len(written), 6)]
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ["", *pieces]]
        blocks.append(({**call, "input": {}}, deltas))
    for index, (opened, deltas) in enumerate(blocks):
        out.append(event("content_block_start", index=index, content_block=opened))
        out += [event("content_block_delta", index=index, delta=delta) for delta in deltas]
        out.append(event("content_block_stop", index=index))
    told = {name: value for name, value in usage(said).items() if name != "service_tier"}
    end = [event("message_delta", delta=_ending(said), usage=told), event("message_stop")]
    return (out[:-1], [out[-1], *end]) if blocks else (out, end)


def error_event(message: str) -> bytes:
    """An error amid a stream."""
    return event("error", error={"type": "overloaded_error", "message": message})
