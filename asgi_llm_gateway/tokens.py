"""Tokens before they are counted: a bound that is never too low, and an estimate for what nobody reported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import orjson

from . import units
from ._vocabulary import Counter, counter_of
from .records import Dialect, Usage
from .wire import MEDIA, LLMRequest

BYTES_PER_TOKEN = 4
"""A rough average of English text; for estimates only, never for holds."""

FIXED_TOKENS = 128
"""What a chat template may add to any request: its own system prompt, the date, the first words of the answer."""

TOOL_TOKENS = 600
"""What tools add besides their text. Source: Anthropic docs, "Tool use pricing" (a system prompt of up to 530 tokens)."""

FILE_TOKENS = 50_000
"""The least that an attached file counts: its bytes are compressed, and an id or a URL says nothing of its length."""

TYPED_TOOL_TOKENS = 1_400
"""A tool that the provider describes itself. Source: Anthropic docs, "Tool use": bash 245, text editor 700, computer 735 and
a system prompt of 499."""

UNSEEN_TOKENS = 1_050_000
"""A prompt that is not in the body, such as a stored conversation: the largest context window in common use."""


def prompt_bound(request: LLMRequest, context: int | None = None, model: str | None = None) -> int:
    """At most so many prompt tokens: a byte of the body makes no more than one, an image counts by its model's rule.

    The body's JSON syntax is longer than what a provider's template adds for a message. Inline images count by rule
    instead of by their bytes. Not covered: a tokenizer that first spells single characters out (Unicode's NFKC), a
    compressed file of more than ``FILE_TOKENS``, and a hosted tool that has the model read its whole window several times.

    Args:
        request: What was asked.
        context: The context window of the model in tokens, if it is known: no prompt that is answered is longer.
        model: The model's name at its provider; ``None`` takes the request's.
    """
    if request.route.dialect in MEDIA:
        return units.most(request, model, context).prompt
    bound = len(request.body) + FIXED_TOKENS  # what is sent, not what came: a changed request may be longer
    data = request.data
    # Where earlier tool calls stand without the tools, Anthropic is sent a tool that has no use.
    if data.get("tools") or data.get("functions") or request.raw.find(b'"tool_calls"') >= 0:
        bound += _tools(data)
    if more_than_text(request):
        added, inline = _attachments(request, model or request.model)
        bound += added - inline
    for name in _UNSEEN.get(request.route.dialect, ()):
        if data.get(name) is not None:
            bound += UNSEEN_TOKENS
            break
    if context is None:
        return bound
    # Lists round windows down: 1,000,000 for 1,047,576.
    return min(bound, context + context // 16)


_SPECIAL = frozenset(
    {
        "tools",
        "functions",
        "service_tier",
        "speed",
        "cache_control",
        "system",
        "web_search_options",
        "plugins",
        "n",
        "best_of",
    }
)


def plain_bound(request: LLMRequest) -> int | None:
    """``prompt_bound`` of one answer to plain messages at the plain price, as most requests are; ``None`` for any other."""
    if request.route.dialect != "chat" or not _SPECIAL.isdisjoint(request.data) or more_than_text(request):
        return None
    return None if request.raw.find(b'"tool_calls"') >= 0 else len(request.body) + FIXED_TOKENS


def answers(request: LLMRequest) -> int:
    """How many answers are paid for: so many for each prompt, of which the completions dialect takes a list."""
    each = max(request.choices, int(request.data.get("best_of") or 1))
    prompts = request.data.get("prompt") if request.route.dialect == "completions" else None
    if type(prompts) is list and prompts and type(prompts[0]) is not int:  # a list of numbers is one prompt, in tokens
        return each * len(prompts)
    return each


_DEARER = frozenset({"service_tier", "speed", "tools", "functions", "system", "instructions", "cache_control"})


def surcharge(request: LLMRequest) -> int:
    """What a request may cost at most, in percent of the model's price: 100, where it asks for nothing dearer.

    Sources: OpenAI pricing, "Priority processing" (up to 2.5 times); Anthropic pricing, "Fast mode" (2 times) and "Prompt
    caching" (a write that stays for an hour costs 2 times a prompt token).
    """
    data = request.data
    if _DEARER.isdisjoint(data) and not more_than_text(request):  # plain text has no place for any of it
        return 100
    percent = 250 if data.get("service_tier") in ("priority", "fast") or data.get("speed") == "fast" else 100
    body = request.body
    if b"\\u00" in body:  # an escape may spell the words in disguise
        try:
            body = orjson.dumps(data)
        except orjson.JSONEncodeError:
            return 2 * percent
    return 2 * percent if b'"ttl"' in body and b'"1h"' in body else percent


def text_tokens(data: bytes | str, model: str | None = None) -> int:
    """Tokens of a text: exactly where the model's vocabulary is loaded, else by its bytes, rounded up."""
    counter = counter_of(model) if model is not None else None
    if counter is not None:
        return counter(data if isinstance(data, str) else data.decode("utf-8", "replace"))
    size = len(data.encode("utf-8", "replace")) if isinstance(data, str) else len(data)
    return -(-size // BYTES_PER_TOKEN)


def estimate(
    request: LLMRequest | None, events: int = 0, *, text: bytes | str = b"", model: str | None = None
) -> Usage:
    """What a call used of which nobody told: the prompt by its length, the answer by its text and the stream events seen.

    Args:
        request: What was asked; ``None`` where nobody read it.
        events: Data events of the stream: each has a token at least.
        text: The answer's text so far.
        model: Whose vocabulary counts ``text``.
    """
    prompt = 0
    if request is not None and request.route.dialect in MEDIA:
        return units.likely(request)
    if request is not None:
        size = len(request.raw)
        if more_than_text(request):
            added, inline = _attachments(request, model or request.model, least_file=0)
            prompt, size = added, max(0, size - inline)
        prompt += -(-size // BYTES_PER_TOKEN)
    return Usage(prompt, max(0, events, text_tokens(text, model) if text else 0), estimated=True)


# -- what is not text --------------------------------------------------------------------------------------------------

_GPT_4O_MINI = 48_169
# The most tokens that one image takes, and those at ``detail: low``, by the model's family. Sources: OpenAI guide "Images
# and vision": base and tile tokens, at most 8 tiles (2048 x 768); or 1,536 patches times a multiplier, whatever the
# detail. Anthropic docs, "Vision": 4,784 at the highest resolution.
_IMAGES: tuple[tuple[re.Pattern[str], int, int], ...] = tuple(
    (re.compile(rf"(?:{name})(?:-\d[\d-]*|-latest|-chat-latest|-preview[\d-]*)?$"), most, low)
    for name, most, low in (
        (r"gpt-4o|chatgpt-4o|gpt-4-turbo|gpt-4-vision|gpt-4\.5", 85 + 8 * 170, 85),
        (r"gpt-4\.1", 1_536, 1_536),  # told both ways: by tiles (1,445) and by patches
        (r"gpt-4o-mini", 2_833 + 8 * 5_667, 2_833),
        (r"gpt-5|gpt-5\.1", 70 + 8 * 140, 70),
        (r"o1|o1-pro|o3|o3-pro", 75 + 8 * 150, 75),
        (r"gpt-4\.1-mini|gpt-5-mini", 2_489, 2_489),  # 1.62
        (r"gpt-4\.1-nano|gpt-5-nano", 3_779, 3_779),  # 2.46
        (r"o4-mini", 2_642, 2_642),  # 1.72
        (r"claude-.*", 4_784, 4_784),
    )
)


def _image_rule(model: str) -> tuple[int, int]:
    """The most tokens of one image, and of one at ``detail: low``: of an unknown model, the dearest known."""
    name = model.lower().rpartition("/")[2].removeprefix("ft:").partition(":")[0]
    for pattern, most, low in _IMAGES:
        if pattern.match(name) is not None:
            return most, low
    return _GPT_4O_MINI, _GPT_4O_MINI


_IMAGE_KINDS = frozenset({"image_url", "image", "input_image", "computer_screenshot"})
_FILE_KINDS = frozenset(
    {"file", "input_file", "document", "video_url", "audio_url", "container_upload", "item_reference"}
)
_INLINE_KIND: Mapping[Dialect | None, str] = {"chat": "image_url", "messages": "image", "responses": "input_image"}
# Below these keys a message holds its parts; below any other (a tool call's arguments) what looks like one is text.
_PARTS = frozenset({"content", "output"})


_CONTENT = itemgetter("content")


def more_than_text(request: LLMRequest) -> bool:
    """Whether a request has parts at all. Looking at the parsed body is quicker than searching through its bytes."""
    if request.route.dialect in ("chat", "messages"):
        try:
            return list in map(type, map(_CONTENT, request.data["messages"]))  # at once: this runs for every request
        except KeyError:
            return any(type(message.get("content")) is list for message in request.data["messages"])
    given = request.data.get("input")
    return type(given) is list and any(type(item) is dict for item in given)


def _attachments(request: LLMRequest, model: str, least_file: int = FILE_TOKENS) -> tuple[int, int]:
    """Tokens of a request's images and files by rule, and the bytes of inline images, which count by rule instead."""
    added = inline = 0
    most, low = _image_rule(model)
    own = _INLINE_KIND.get(request.route.dialect)
    said = request.data["messages" if request.route.dialect in ("chat", "messages") else "input"]
    waiting: list[tuple[Any, bool]] = [(said, True)]
    while waiting:
        value, parts = waiting.pop()
        if type(value) is list:
            waiting.extend((item, parts) for item in value if type(item) in (list, dict))
            continue
        kind = value.get("type")
        if type(kind) is not str:
            kind = ""
        if kind in _IMAGE_KINDS or (parts and "image_url" in value):
            image = value.get("image_url")
            detail = value.get("detail") or (image.get("detail") if type(image) is dict else None)
            added += low if detail == "low" else most
            if parts and kind == own:
                inline += _inline_bytes(value, "data:image/")
        elif kind in _FILE_KINDS and not _is_plain(value):
            added += max(0, least_file - _inline_bytes(value, "data:"))
        for key, item in value.items():
            if type(item) in (list, dict):
                waiting.append((item, parts and key in _PARTS))
    return added, inline


def _inline_bytes(part: dict[str, Any], prefix: str) -> int:
    """Bytes of the file that a part holds in itself, in base64; 0 where it names another place."""
    source = part.get("source")
    if type(source) is dict:
        data = source.get("data")
        return len(data) if type(data) is str and source.get("type") == "base64" else 0
    held = part.get("image_url") or part.get("file") or part
    if type(held) is dict:
        held = held.get("url") or held.get("file_data")
    return len(held) if type(held) is str and held.startswith(prefix) else 0


def _is_plain(part: dict[str, Any]) -> bool:
    """Whether a document is text or parts of the body, whose bytes count."""
    source = part.get("source")
    return type(source) is dict and source.get("type") in ("text", "content")


# Fields that bring in what the body does not hold: a stored conversation or prompt, what a hosted tool finds.
_UNSEEN: Mapping[Dialect | None, tuple[str, ...]] = {
    "responses": ("previous_response_id", "conversation", "prompt"),
    "messages": ("mcp_servers", "container"),
    "chat": ("web_search_options", "plugins"),
}
# Tools that the client runs. Any other kind the provider runs itself, and what it finds is paid for as prompt tokens.
_CLIENTS_OWN = ("bash", "text_editor", "computer", "memory", "local_shell", "apply_patch")


def _tools(data: Mapping[str, Any]) -> int:
    """What a request's tools add to their text."""
    tools = data.get("tools")
    typed = [kind for tool in tools if (kind := _special(tool))] if type(tools) is list else []
    hosted = UNSEEN_TOKENS if any(not kind.startswith(_CLIENTS_OWN) for kind in typed) else 0
    return TOOL_TOKENS + TYPED_TOOL_TOKENS * len(typed) + hosted


def _special(tool: Any) -> str:
    """The kind of a tool that the provider knows already; empty where the request describes it in full."""
    kind = tool.get("type") if type(tool) is dict else None
    return kind if type(kind) is str and kind not in ("function", "custom") else ""


# -- by the vocabulary -------------------------------------------------------------------------------------------------

_REQUEST_TOKENS = 16
_MESSAGE_TOKENS = 8  # 3 or 4, and the role; source: OpenAI cookbook, "How to count tokens with tiktoken"
_PART_TOKENS = 4

# Fields without a word that the model reads.
_SILENT = frozenset(
    {
        "model", "stream", "stream_options", "tenant", "user", "metadata", "store", "seed", "stop", "n", "best_of",
        "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
        "logit_bias", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens", "max_output_tokens",
        "max_tool_calls", "parallel_tool_calls", "reasoning_effort", "reasoning", "verbosity", "service_tier",
        "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "include", "truncation", "background",
        "encoding_format", "dimensions", "echo",
    }
)  # fmt: skip
_TEXTS = frozenset({"prompt", "suffix", "input", "instructions"})
_SCHEMAS = frozenset({"tools", "functions", "tool_choice", "function_call", "response_format", "text"})
_MESSAGE_FIELDS = frozenset({"type", "id", "status", "role", "content", "name", "refusal", "tool_call_id"})
_TEXT_KINDS = frozenset({"text", "input_text", "output_text", "refusal"})
_TEXT_PART_FIELDS = frozenset({"type", "text", "refusal"})
_CALL_KINDS = frozenset({"function_call", "function_call_output"})


class _NotSure(Exception):
    """A request has something that is not known to be text."""


def exact_bound(request: LLMRequest, model: str | None = None) -> int | None:
    """At most so many prompt tokens, by the model's own vocabulary; ``None`` where that can't be told for sure.

    The exact tokens of every text, with 16 for the request, 8 a message and 4 a part; JSON that the provider writes in its
    own way (tools, tool calls, schemas) counts twice, with 16 for each. Never more than ``prompt_bound``.

    For text to one of OpenAI's own models whose vocabulary is loaded. Above 16 KiB counting takes milliseconds: the caller
    runs it in a thread then.
    """
    counter = counter_of(model or request.model)
    if counter is None or request.route.dialect == "messages" or request.route.dialect in MEDIA:
        return None
    try:
        tokens = _REQUEST_TOKENS + sum(_field(name, value, counter, request) for name, value in request.data.items())
    except (_NotSure, orjson.JSONEncodeError, RecursionError):
        return None
    return min(tokens, prompt_bound(request, model=model))


def _field(name: str, value: Any, counter: Counter, request: LLMRequest) -> int:
    if name in _SILENT or value is None:
        return 0
    if name == "messages":
        return sum(_message(message, counter) for message in value)
    if name in _SCHEMAS:
        if name == "tools" and (type(value) is not list or any(_special(tool) for tool in value)):
            raise _NotSure
        return _json(value, counter)
    if name in _TEXTS and (name != "prompt" or request.route.dialect == "completions"):
        return _text(value, counter)
    if name == "modalities" and value == ["text"]:
        return 0
    raise _NotSure


def _message(message: Any, counter: Counter) -> int:
    if type(message) is not dict:
        raise _NotSure
    if message.get("type") in _CALL_KINDS:
        return _json(message, counter)
    tokens = _MESSAGE_TOKENS
    for name, value in message.items():
        if name in ("tool_calls", "function_call") and value is not None:
            tokens += _json(value, counter)
        elif name == "type" and value != "message":
            raise _NotSure
        elif value is None:
            continue
        elif name == "content" and type(value) is list:
            tokens += sum(_part(part, counter) for part in value)
        elif name in _MESSAGE_FIELDS and type(value) is str:
            tokens += counter(value)
        elif value:  # an empty list says nothing
            raise _NotSure
    return tokens


def _part(part: Any, counter: Counter) -> int:
    if type(part) is not dict or part.get("type") not in _TEXT_KINDS:
        raise _NotSure
    tokens = _PART_TOKENS
    for name, value in part.items():
        if name in _TEXT_PART_FIELDS and type(value) is str:
            tokens += counter(value)
        elif value:
            raise _NotSure
    return tokens


def _text(value: Any, counter: Counter) -> int:
    """A text, a prompt in tokens, a list of them, or a list of the Responses API's messages."""
    if type(value) is str:
        return _MESSAGE_TOKENS + counter(value)
    if type(value) is int:
        return 1
    if type(value) is dict:
        return _message(value, counter)
    if type(value) is list:
        return _MESSAGE_TOKENS + sum(_text(item, counter) for item in value)
    raise _NotSure


def _json(value: Any, counter: Counter) -> int:
    each = len(value) if type(value) is list else 1
    return 2 * counter(orjson.dumps(value).decode()) + 16 * each


__all__ = [
    "BYTES_PER_TOKEN", "FILE_TOKENS", "FIXED_TOKENS", "TOOL_TOKENS", "TYPED_TOOL_TOKENS", "UNSEEN_TOKENS", "answers",
    "estimate", "exact_bound", "more_than_text", "plain_bound", "prompt_bound", "surcharge", "text_tokens",
]  # fmt: skip
