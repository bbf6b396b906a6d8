"""What an answer is known by: everything in a request that can change the answer, in one way of writing it.

Fields: OpenAI API reference ("Chat", "Completions", "Embeddings", "Responses") and Anthropic API reference ("Messages"), as
of autumn 2026.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from operator import itemgetter
from typing import Any

import orjson

from ..wire import Dialect, LLMRequest, may_be_huge

CACHED: frozenset[Dialect | None] = frozenset({"chat", "completions", "embeddings", "messages", "responses"})
"""Dialects whose answers are kept."""

_VERSION = "1"  # of the key and of what is kept under it

# How an answer is sent, not what it says.
_STREAMING = frozenset({"stream", "stream_options"})
# Hints for the provider's own cache of prompts. A Responses object repeats them, so there they stay in.
_HINTS = frozenset({"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"})
_SENT = _STREAMING | _HINTS
# What changes no word of a stream's answer, and is put right when it is told again.
_OPTIONS = frozenset({"include_usage", "include_obfuscation"})
# Documented as nullable, null being the default.
_NULL_IS_DEFAULT = frozenset(
    {
        "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_output_tokens", "max_tokens", "n",
        "presence_penalty", "seed", "stop", "temperature", "top_logprobs", "top_p", "user",
    }
)  # fmt: skip
_EXACT = 2.0**53  # whole floats below it are the same number as an int
_ACTING = frozenset(
    {
        "audio", "background", "container", "conversation", "mcp_servers", "plugins", "store", "tools",
        "web_search_options",
    }
)  # fmt: skip
_OWN_TOOLS = frozenset({None, "function", "custom"})  # tools that the caller runs; others act while the model answers


def key_of(
    request: LLMRequest, *, owner: Sequence[Any], place: Sequence[Any], ignore: Collection[str] = frozenset()
) -> bytes:
    """The 32 bytes that an answer is known by.

    The order of fields, of a message's fields and of its parts' fields does not count; deeper down (in a tool's schema, in
    arguments) it does, for the model sees it.

    Args:
        request: The request, as changed by whoever stands further out.
        owner: Who may share the answer.
        place: What else the answer depends on: path, query, headers.
        ignore: Fields that are said not to matter.
    """
    dialect = request.route.dialect
    told: Any
    if may_be_huge(request.raw):
        told = request.body.decode("latin-1")  # numbers that were rounded when they were read: its bytes are the key
    else:
        told = _fields(request.data, dialect, ignore)
    try:
        text = orjson.dumps([_VERSION, dialect, owner, place, told])
    except TypeError:  # it reads deeper than it writes
        text = orjson.dumps([_VERSION, dialect, owner, place, request.body.decode("latin-1")])
    return sha256(text).digest()


def _fields(data: Mapping[str, Any], dialect: Dialect | None, ignore: Collection[str]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    skipped = _STREAMING if dialect == "responses" else _SENT
    if ignore:
        skipped = skipped.union(ignore)
    for name in sorted(data):
        if name in skipped:
            continue
        value = data[name]
        kind = type(value)
        if kind is list:
            if name in ("messages", "input"):
                value = _plain(value) or [_ordered(one) if type(one) is dict else one for one in value]
        elif kind is float:
            if value.is_integer() and abs(value) < _EXACT:
                value = int(value)
        elif value is None and name in _NULL_IS_DEFAULT:
            continue
        found.append((name, value))
    options = data.get("stream_options")
    if type(options) is dict and (others := {name: options[name] for name in sorted(options) if name not in _OPTIONS}):
        found.append(("stream_options", others))
    return found


_ROLE_AND_CONTENT = itemgetter("role", "content")
_STRINGS = {str}


def _plain(messages: list[Any]) -> list[tuple[str, str]] | None:
    """Messages of a role and a text, as most are, in one go; ``None`` where one of them is something else."""
    try:
        told = list(map(_ROLE_AND_CONTENT, messages))
        if sum(map(len, messages)) == 2 * len(told) and {type(text) for _, text in told} == _STRINGS:
            return told
    except (KeyError, TypeError):
        pass
    return None


def _ordered(message: dict[str, Any]) -> dict[str, Any]:
    """A message's fields in one order, and those of its parts."""
    told = {}
    for name in sorted(message):
        value = message[name]
        if type(value) is list:
            value = [dict(sorted(one.items())) if type(one) is dict else one for one in value]
        told[name] = value
    return told


def deterministic(request: LLMRequest) -> bool:
    """Whether the caller asks for the same answer every time: temperature 0 or a seed. Embeddings are always so."""
    if request.route.dialect == "embeddings":
        return True
    temperature = request.data.get("temperature")
    return (type(temperature) in (int, float) and temperature == 0) or request.data.get("seed") is not None


def repeatable(request: LLMRequest) -> bool:
    """Whether an answer can stand for another call: not where the call does more than answer, or depends on what is not in it.

    Such are background answers, conversations and completions that the provider keeps, the provider's own tools (a search
    tells of today; another may act), and spoken answers, which can be referred to for a while only.
    """
    data = request.data
    if _ACTING.isdisjoint(data):  # as most are
        return True
    if data.get("background") is True or data.get("conversation") is not None or data.get("audio") is not None:
        return False
    if request.route.dialect == "chat" and data.get("store") is True:
        return False
    for name in ("web_search_options", "plugins", "mcp_servers", "container"):
        if data.get(name):
            return False
    tools = data.get("tools")
    for tool in tools if type(tools) is list else ():
        if type(tool) is dict:
            kind = tool.get("type")
            if type(kind) is not str and kind is not None:
                return False
            if kind not in _OWN_TOOLS:
                return False
    return True


__all__ = ["CACHED", "deterministic", "key_of", "repeatable"]
