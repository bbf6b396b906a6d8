"""A chat completion as a message of Anthropic's. Source: Anthropic API reference, "Messages", 2023-06-01.

Thoughts are told to a client that asked for thinking, and to no other, as Anthropic does. Their signature is empty: there
is nobody who could check one, and a front takes them back and leaves them out.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from ..errors import UpstreamError
from ..records import Usage
from ..tokens import estimate
from ..usage import usage_from
from ..wire import LLMRequest
from ._messages_failure import told_failure
from ._messages_words import Block, long_names

STOP_REASONS: Mapping[str, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""``finish_reason`` to ``stop_reason``."""

INVALID = "INVALID_JSON"
"""Where arguments that are no JSON object go, as text: an input is always an object, and clients can answer that one was
none. Source of the name: Anthropic API reference, "Fine-grained tool streaming"."""

_TIERS = {"priority": "priority", "fast": "priority", "default": "standard"}
_ODD = re.compile(r"[^A-Za-z0-9_-]")


def message_id(told: Any) -> str:
    """A message's id, as much the provider's own as it can be."""
    if type(told) is not str or not told:
        return f"msg_{secrets.token_hex(12)}"
    id = _ODD.sub("_", told[:100])
    return id if id.startswith("msg_") else "msg_" + id.removeprefix("chatcmpl-")


def call_id(told: Any) -> str:
    """A call's id: the provider's own, letter by letter, for it is sent back there; a new one where it gave none."""
    return told if type(told) is str and told else f"toolu_{secrets.token_hex(12)}"


def shows_thoughts(request: LLMRequest) -> bool:
    """Whether the client asked to see what the model thinks."""
    thinking = request.data.get("thinking")
    return (
        type(thinking) is dict
        and thinking.get("type") in ("enabled", "adaptive", "between_tools")
        and thinking.get("display") != "omitted"
    )


def ending(request: LLMRequest, choice: Block, finish: Any, called: bool, refusal: str) -> Block:
    """Why the answer ended: ``stop_reason`` and what goes with it. Never a word that Anthropic's clients do not know.

    A call that came makes it ``tool_use`` also where the provider says ``stop``, as some do of a forced one; and where none
    came it is not, for the client would look for one.
    """
    found = STOP_REASONS.get(finish) if type(finish) is str else None
    if refusal or found == "refusal":
        details = {"type": "refusal", "category": None, "explanation": refusal or None}
        return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}
    if found == "max_tokens":
        return {"stop_reason": found, "stop_sequence": None}
    if called:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    matched = choice.get("stop_reason")  # vLLM tells which one it was
    if type(matched) is str and matched in (request.data.get("stop_sequences") or ()):
        return {"stop_reason": "stop_sequence", "stop_sequence": matched}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def usage_object(usage: Usage, tier: Any = None) -> Block:
    """Counts as Anthropic writes them: ``input_tokens`` are those that no cache had to do with."""
    told: Block = {
        "input_tokens": max(0, usage.prompt - usage.cached - usage.cache_write),
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }
    if usage.reasoning:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    if type(tier) is str and tier in _TIERS:
        told["service_tier"] = _TIERS[tier]
    return told


def thought_in(message: Block) -> str:
    """What a message or a delta thinks: ``reasoning_content``, or as newer vLLM, Ollama and OpenRouter name it."""
    for name in ("reasoning_content", "reasoning"):
        told = message.get(name)
        if type(told) is str and told:
            return told
    return ""


def pieces(content: Any) -> Iterator[tuple[str, str]]:
    """Content as ``(kind, text)``, kind ``text`` or ``thinking``: a string, or parts as Mistral's reasoning models send."""
    if type(content) is str:
        yield "text", content
    for part in content if type(content) is list else ():
        match part:
            case {"type": "text", "text": str(text)}:
                yield "text", text
            case {"type": "thinking", "thinking": list(thoughts)}:
                for thought in thoughts:
                    if type(thought) is dict and type(thought.get("text")) is str:
                        yield "thinking", thought["text"]


def text_of_arguments(arguments: Any) -> str:
    """A call's arguments as text; some servers send the object itself. Raises UpstreamError for one that is too deep."""
    if type(arguments) is str:
        return arguments
    try:
        return orjson.dumps(arguments).decode() if type(arguments) is dict else ""
    except orjson.JSONEncodeError:
        raise UpstreamError("The provider sent a call that is nested too deeply.") from None


def is_object(text: str) -> bool:
    """Whether a text is one JSON object, whole."""
    try:
        return type(orjson.loads(text)) is dict
    except orjson.JSONDecodeError:
        return False


def input_of(text: str) -> str:
    """The text of arguments as the text of an input: as it is, digit by digit, if it is an object."""
    if not text.strip() or text.strip() == "null":
        return "{}"
    return text if is_object(text) else orjson.dumps({INVALID: text}).decode()


def whole(request: LLMRequest, body: bytes) -> bytes:
    """A whole answer. Raises UpstreamError for what is none, or tells that it failed."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise UpstreamError("The provider sent what is not JSON.") from None
    choices = told.get("choices") if type(told) is dict else None
    choice: Block = choices[0] if type(choices) is list and choices and type(choices[0]) is dict else {}
    message = choice.get("message")
    if choice.get("error") or choice.get("finish_reason") == "error":
        raise told_failure(choice.get("error"))
    if type(message) is not dict:
        raise UpstreamError("The provider sent JSON that is no answer.")
    return _message(request, told, choice, message)


def _message(request: LLMRequest, told: Block, choice: Block, message: Block) -> bytes:
    said = [*pieces(message.get("content"))]
    thought = thought_in(message) or "".join(text for kind, text in said if kind == "thinking")
    text = "".join(text for kind, text in said if kind == "text")
    refusal = message.get("refusal")
    refusal = refusal if type(refusal) is str else ""
    calls = _calls(request, message)
    content: list[Block] = []
    if thought.strip() and shows_thoughts(request):
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    for words in (text, refusal):  # an empty text is refused when it comes back
        if words.strip():
            content.append({"type": "text", "text": words})
    content += calls
    usage = usage_from(told.get("usage")) or estimate(request, text=thought + text)
    model = told.get("model")
    answer: Block = {
        "id": message_id(told.get("id")),
        "type": "message",
        "role": "assistant",
        "model": model if type(model) is str and model else request.model,
        "content": content,
        **ending(request, choice, choice.get("finish_reason"), bool(calls), refusal),
        "usage": usage_object(usage, told.get("service_tier")),
    }
    return orjson.dumps(answer)


def _calls(request: LLMRequest, message: Block) -> list[Block]:
    """The calls of a message. Calls of another kind than functions are passed over: none could be asked for."""
    names = long_names(request.data)
    found = []
    calls = message.get("tool_calls")
    given = [*calls] if type(calls) is list else []
    if not given and type(message.get("function_call")) is dict:  # before there were tools
        given = [{"function": message["function_call"]}]
    for call in given:
        function = call.get("function") if type(call) is dict else None
        name = function.get("name") if type(function) is dict else None
        if type(function) is dict and type(name) is str and name:
            text = input_of(text_of_arguments(function.get("arguments")))
            told = {"id": call_id(call.get("id")), "name": names.get(name, name), "input": orjson.Fragment(text)}
            found.append({"type": "tool_use", **told})
    return found
