"""Chat Completions as a scripted provider: OpenAI itself, which is strict, and a vendor that has the API from it.

Source: OpenAI API reference, "Create chat completion", "Streaming" and "Error codes", autumn 2026.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from .model import Called, Failure, Heard, Said

_TOP = frozenset(
    {"messages", "model", "max_completion_tokens", "max_tokens", "temperature", "top_p", "n", "stop", "frequency_penalty",
     "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "seed", "stream", "stream_options", "response_format",
     "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "verbosity", "modalities", "prediction",
     "service_tier", "store", "metadata", "user", "safety_identifier", "prompt_cache_key"}
)  # fmt: skip
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")
_KEYS = {"system": {"role", "content", "name"}, "developer": {"role", "content", "name"},
         "user": {"role", "content", "name"}, "tool": {"role", "content", "tool_call_id"},
         "assistant": {"role", "content", "name", "refusal", "audio", "tool_calls", "function_call",
                       "annotations", "parsed"}}  # fmt: skip


def _is(true: Any, param: str, why: str) -> None:
    if not true:
        raise Failure(400, f"Invalid '{param}': {why}", param)


def hear(body: dict[str, Any], *, strict: bool) -> Heard:
    """A request; ``strict`` as OpenAI is where vendors pass over what they do not know. Raises Failure."""
    if strict:
        for name in body.keys() - _TOP:
            raise Failure(400, f"Unrecognized request argument supplied: {name}", name)
        _is("max_tokens" not in body, "max_tokens", "Use 'max_completion_tokens' instead.")
        _is(len(body.get("user", "")) <= 64, "user", "string too long")
    else:
        _is("max_completion_tokens" not in body, "max_completion_tokens", "this vendor would not know the limit")
    heard = Heard(stream=body.get("stream", False))
    heard.limit = body.get("max_completion_tokens", body.get("max_tokens"))
    _is(heard.limit is None or type(heard.limit) is int, "max_tokens", "not a number")
    _is("stream_options" not in body or heard.stream, "stream_options", "only allowed when 'stream' is enabled")
    heard.thinks = body.get("reasoning_effort", "none") != "none"
    _is(
        body.get("reasoning_effort") in (None, "none", "minimal", "low", "medium", "high", "xhigh"),
        "reasoning_effort",
        "?",
    )
    _hear_tools(body, heard, strict)
    _hear_format(body.get("response_format"), heard)
    _hear_messages(body, heard, strict)
    return heard


def check_strict(schema: Any, param: str) -> None:
    """The part of JSON Schema that strict mode takes ("Structured Outputs", "Supported schemas")."""
    if type(schema) is not dict:
        return
    if schema.get("type") == "object":
        _is(schema.get("additionalProperties") is False, param, "'additionalProperties' is required to be false")
        _is(
            set(schema.get("required", ())) == set(schema.get("properties", {})),
            param,
            "'required' must name every key",
        )
    for inner in (*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(), schema.get("items")):
        check_strict(inner, param)


def _hear_tools(body: dict[str, Any], heard: Heard, strict: bool) -> None:
    tools = body.get("tools")
    _is(tools is None or tools, "tools", "empty array. Expected an array with minimum length 1")
    for at, tool in enumerate(tools or ()):
        param = f"tools[{at}]"
        _is(tool.keys() <= {"type", "function"} and tool["type"] == "function", param, "unknown")
        function = tool["function"]
        _is(function.keys() <= {"name", "description", "parameters", "strict"}, f"{param}.function", "unknown field")
        _is(_NAME.match(function["name"]), f"{param}.function.name", "string does not match pattern")
        if function.get("strict"):
            check_strict(function["parameters"], f"{param}.function.parameters")
        heard.tools.append(function["name"])
    choice = body.get("tool_choice")
    if strict:
        _is(choice is None or heard.tools, "tool_choice", "only allowed when 'tools' are specified")
        _is("parallel_tool_calls" not in body or heard.tools, "parallel_tool_calls", "only allowed with 'tools'")
    if type(choice) is dict:
        _is(choice["type"] == "function" and choice["function"]["name"] in heard.tools, "tool_choice", "no such tool")
    heard.forced = choice == "required" or type(choice) is dict


def _hear_format(wanted: Any, heard: Heard) -> None:
    if wanted is None or wanted["type"] == "text":
        return
    _is(wanted["type"] == "json_schema", "response_format.type", "unknown")
    told = wanted["json_schema"]
    _is(told.keys() <= {"name", "schema", "strict", "description"}, "response_format.json_schema", "unknown field")
    _is(_NAME.match(told["name"]), "response_format.json_schema.name", "string does not match pattern")
    if told.get("strict"):
        check_strict(told["schema"], "response_format")
    heard.schema = told["schema"]


def _hear_messages(body: dict[str, Any], heard: Heard, strict: bool) -> None:
    messages = body.get("messages")
    _is(type(messages) is list and messages, "messages", "empty array")
    waiting: list[str] = []
    for at, message in enumerate(messages or ()):
        param, role = f"messages[{at}]", message.get("role")
        _is(role in _KEYS, f"{param}.role", "unknown")
        if strict:
            _is(message.keys() <= _KEYS[role], param, f"unknown field in {sorted(message)}")
        content = message.get("content")
        if role == "tool":
            _is(message["tool_call_id"] in waiting, param, "'tool' must be a response to a preceding 'tool_calls'")
            waiting.remove(message["tool_call_id"])
            heard.results.append((message["tool_call_id"], _text(content, f"{param}.content")))
            continue
        _is(not waiting, param, f"'tool_calls' must be followed by tool messages responding to each of {waiting}")
        if role == "assistant":
            calls = message.get("tool_calls")
            _is(calls is None or calls, f"{param}.tool_calls", "empty array")
            _is(content is not None or calls, f"{param}.content", "expected a string, got null")
            heard.results = []
            for call in calls or ():
                function = call["function"]
                _is(call["type"] == "function" and type(function["arguments"]) is str, param, "not a call")
                heard.history.append(Called(call["id"], function["name"], json.loads(function["arguments"])))
                waiting.append(call["id"])
        elif role == "user":
            _hear_user(content, f"{param}.content", heard)
        else:
            heard.system += _text(content, f"{param}.content")
    _is(not waiting, "messages", "the last tool calls have no response")


def _text(content: Any, param: str) -> str:
    if type(content) is str:
        return content
    _is(type(content) is list and all(part["type"] == "text" for part in content), param, "only text here")
    return "".join(part["text"] for part in content)


def _hear_user(content: Any, param: str, heard: Heard) -> None:
    parts: list[Any] = [{"type": "text", "text": content}] if type(content) is str else content
    for part in parts:
        if part["type"] == "text":
            heard.command = part["text"]
            heard.first = heard.first or part["text"]
        else:
            _is(part["type"] == "image_url", param, "unknown part")
            heard.images.append(picture(part["image_url"]["url"], param))


def picture(url: str, param: str) -> bytes:
    """The picture in a data URI. Raises Failure."""
    found = re.fullmatch(r"data:image/(png|jpeg|gif|webp);base64,(.*)", url)
    _is(found, param, "invalid image data")
    assert found is not None
    return base64.b64decode(found[2], validate=True)


# -- what it says ------------------------------------------------------------------------------------------------------


def failure(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The envelope of an error."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 500: "server_error",
             503: "service_unavailable_error", 529: "service_unavailable_error"}  # fmt: skip
    codes = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded", 503: "server_is_overloaded"}
    told = {"message": message, "type": kinds.get(status, "invalid_request_error"), "param": param}
    return {"error": {**told, "code": codes.get(status)}}


def usage(said: Said) -> dict[str, Any]:
    """What is billed; details are parts of the whole."""
    counts = said.counts
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.made,
        "total_tokens": counts.prompt + counts.made,
        "prompt_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": counts.written},
        "completion_tokens_details": {"reasoning_tokens": counts.thought},
    }


_FINISH = {"stop": "stop", "length": "length", "calls": "tool_calls", "refusal": "stop"}


def whole(said: Said, model: str, *, thoughts: bool) -> dict[str, Any]:
    """A completion; ``thoughts`` are told by vendors (``reasoning_content``), and never by OpenAI."""
    text = "".join(said.texts)
    refused = said.end == "refusal"
    message: dict[str, Any] = {"role": "assistant", "content": None if refused else text, "refusal": text if refused else None,
                               "annotations": []}  # fmt: skip
    if said.calls:
        message["tool_calls"] = [_call(number, call) for number, call in enumerate(said.calls)]
    if thoughts and said.thoughts:
        message["reasoning_content"] = "".join(said.thoughts)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH[said.end]}
    return {"id": "chatcmpl-test", "object": "chat.completion", "created": 1_790_000_000, "model": model,
            "choices": [choice], "usage": usage(said), "service_tier": "default", "system_fingerprint": "fp_1"}  # fmt: skip


def _call(number: int, call: Called) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": f"call_{number}", "type": "function", "function": {"name": call.name, "arguments": arguments}}


def event(value: Any) -> bytes:
    """An event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def stream(said: Said, model: str, *, thoughts: bool, asked: bool) -> tuple[list[bytes], list[bytes]]:
    """The events: up to the last of the content, and the rest; with usage if it was asked for."""
    usages = {"usage": None} if asked else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({"id": "chatcmpl-test", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": model,
                      "service_tier": "default", "choices": [choice], **usages, "obfuscation": "x" * 5})  # fmt: skip

    out = [chunk({"role": "assistant", "content": "", "refusal": None})]
    if thoughts:
        out += [chunk({"reasoning_content": piece}) for piece in said.thoughts]
    out += [chunk({"refusal" if said.end == "refusal" else "content": piece}) for piece in said.texts]
    for number, call in enumerate(said.calls):
        told = _call(number, call)
        opened = {**told["function"], "arguments": ""}
        out.append(chunk({"tool_calls": [{"index": number, **told, "function": opened}]}))
        text = told["function"]["arguments"]
        for at in range(0, len(text), 5):
            out.append(chunk({"tool_calls": [{"index": number, "function": {"arguments": text[at : at + 5]}}]}))
    end = [chunk({}, _FINISH[said.end])]
    if asked:
        end.append(event({"id": "chatcmpl-test", "object": "chat.completion.chunk", "created": 1_790_000_000,
                          "model": model, "choices": [], "usage": usage(said)}))  # fmt: skip
    return out, [*end, b"data: [DONE]\n\n"]


def error_event(message: str) -> bytes:
    """An error amid a stream."""
    return event({"error": {"message": message, "type": "server_error", "param": None, "code": None}})
