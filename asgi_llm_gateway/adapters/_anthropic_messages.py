"""Messages in Anthropic's words: a system, and turns of blocks. Source: Anthropic API reference, "Messages", 2023-06-01."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from ..errors import BadRequest
from ._anthropic_models import Abilities
from .base import Unsupported

Block = dict[str, Any]

# What is read of a message.
_READ = frozenset({"role", "content", "tool_calls", "tool_call_id", "refusal", "thinking_blocks", "cache_control"})
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}\Z")
_ODD = re.compile(r"[^a-zA-Z0-9_-]")
_IMAGES = {"image/jpeg": "image/jpeg", "image/jpg": "image/jpeg", "image/png": "image/png", "image/gif": "image/gif",
           "image/webp": "image/webp"}  # fmt: skip
_PLACEHOLDER: Block = {"type": "text", "text": "."}


def safe_name(name: str) -> str:
    """A name or an id in the letters that Anthropic takes: as it is if it can be, else marked by its hash."""
    if _NAME.match(name) is not None:
        return name
    return f"{_ODD.sub('_', name)[:100]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def wrong(place: str, wanted: str) -> BadRequest:
    """The refusal of a value."""
    return BadRequest(f"'{place}' must be {wanted}.", param=place)


def no_word_for(place: str, instead: str = "Remove it.") -> Unsupported:
    """The refusal of a field."""
    return Unsupported(f"Anthropic's API has no '{place}'. {instead}", param=place)


def cache_control(value: Any, place: str) -> Any:
    """A mark of the prompt cache, as the client wrote it."""
    if type(value) is not dict:
        raise wrong(place, "an object")
    return value


def named(function: Block, place: str) -> str:
    """A function's name."""
    name = function.get("name")
    if type(name) is not str or not name:
        raise wrong(f"{place}.name", "a string")
    return name


class Conversation:
    """Writes the messages of one request.

    Args:
        able: What the model can do.
        drop: Told the name of each field that is left out.
    """

    def __init__(self, able: Abilities, drop: Callable[[str], None]) -> None:
        self._able = able
        self._drop = drop

    def write(self, messages: list[Any]) -> tuple[list[Block], list[Block]]:
        """The system's blocks and the turns: no two of one role in a row, the first one the user's."""
        system: list[Block] = []
        turns: list[Block] = []
        for at, message in enumerate(messages):
            place = f"messages[{at}]"
            role = message["role"]
            if role in ("system", "developer"):
                blocks = self._parts(message.get("content"), f"{place}.content", ("text",))
            elif role == "user":
                blocks = self._parts(message.get("content"), f"{place}.content", ("text", "image_url", "file"))
            elif role == "assistant":
                blocks = self._said(message, place)
            elif role == "tool":
                role, blocks = "user", [self._result(message, place)]
            else:
                raise no_word_for(f"{place}.role", "Use 'system', 'developer', 'user', 'assistant' or 'tool'.")
            self._look_for_more(message, place)
            if blocks and message.get("cache_control") is not None:
                blocks[-1]["cache_control"] = cache_control(message["cache_control"], f"{place}.cache_control")
            if role in ("system", "developer"):
                # Only the leading run: to hoist a later one would change the prefix that was cached.
                if not turns:
                    system += blocks
                    continue
                role = "system" if self._able.later_system and not _open_calls(turns) else "user"
            if not blocks:
                continue
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] += blocks
            else:
                turns.append({"role": role, "content": blocks})
        for turn in turns:
            turn["content"].sort(key=lambda block: block["type"] != "tool_result")  # they must lead; the sort is stable
        if not turns or turns[0]["role"] != "user":
            turns.insert(0, {"role": "user", "content": [dict(_PLACEHOLDER)]})
        if turns[-1]["role"] == "assistant":
            self._prefill(turns)
        return system, turns

    def _look_for_more(self, message: Block, place: str) -> None:
        for name, value in message.items():
            if name in _READ or value is None or value == []:
                continue
            if name in ("audio", "function_call"):
                raise no_word_for(f"{place}.{name}")
            self._drop(f"messages.{name}" if _WORD.match(name) else "messages.?")

    def _prefill(self, turns: list[Block]) -> None:
        """The beginning of the answer, put in the model's mouth: it must not end in white space."""
        last = turns[-1]["content"][-1]
        if last["type"] != "text":
            return
        if not self._able.prefill:
            raise Unsupported(
                "This model can't go on from an assistant message. End with a user message.", param="messages"
            )
        last["text"] = last["text"].rstrip()

    def _parts(self, content: Any, place: str, kinds: Sequence[str]) -> list[Block]:
        """Content as blocks, without the empty ones, which the provider refuses."""
        if content is None:
            return []
        if type(content) is str:
            return [{"type": "text", "text": content}] if content.strip() else []
        if type(content) is not list:
            raise wrong(place, "a string or an array of parts")
        blocks = []
        for at, part in enumerate(content):
            here = f"{place}[{at}]"
            if type(part) is not dict:
                raise wrong(here, "an object")
            kind = part.get("type")
            if type(kind) is not str or kind not in kinds:
                raise Unsupported(
                    f"'{here}' of type '{str(kind)[:40]}' can't be sent to Anthropic; these can: {', '.join(kinds)}.",
                    param=f"{here}.type",
                )
            block = self._part(kind, part, here)
            if part.get("prompt_cache_breakpoint") is not None:
                self._drop("prompt_cache_breakpoint")
            if block is not None:
                if part.get("cache_control") is not None:
                    block["cache_control"] = cache_control(part["cache_control"], f"{here}.cache_control")
                blocks.append(block)
        return blocks

    def _part(self, kind: str, part: Block, place: str) -> Block | None:
        inner = part.get(kind)
        if kind in ("text", "refusal"):
            if type(inner) is not str:
                raise wrong(f"{place}.{kind}", "a string")
            return {"type": "text", "text": inner} if inner.strip() else None
        if type(inner) is not dict:
            raise wrong(f"{place}.{kind}", "an object")
        if kind == "file":
            return _document(inner, f"{place}.file")
        if inner.get("detail") not in (None, "auto"):
            self._drop("image_url.detail")
        return _image(inner.get("url"), f"{place}.image_url.url")

    def _said(self, message: Block, place: str) -> list[Block]:
        """What the assistant thought, said and called."""
        blocks: list[Block] = []
        thoughts = message.get("thinking_blocks")
        for thought in thoughts if type(thoughts) is list else ():
            if type(thought) is dict and (
                (thought.get("type") == "thinking" and thought.get("signature"))
                or (thought.get("type") == "redacted_thinking" and thought.get("data"))
            ):
                blocks.append({name: value for name, value in thought.items() if name != "index"})
            else:  # without its signature the provider does not take it back
                self._drop("messages.thinking_blocks")
        blocks += self._parts(message.get("content"), f"{place}.content", ("text", "refusal"))
        if message.get("refusal") is not None:
            blocks += self._parts(message["refusal"], f"{place}.refusal", ("text",))
        calls = message.get("tool_calls") or []
        if type(calls) is not list:
            raise wrong(f"{place}.tool_calls", "an array")
        blocks += [_call(call, f"{place}.tool_calls[{at}]") for at, call in enumerate(calls)]
        return blocks

    def _result(self, message: Block, place: str) -> Block:
        called = message.get("tool_call_id")
        if type(called) is not str or not called:
            raise wrong(f"{place}.tool_call_id", "the id of a tool call")
        content: Any = message.get("content")
        if type(content) is not str:
            content = self._parts(content, f"{place}.content", ("text", "image_url"))
        block: Block = {"type": "tool_result", "tool_use_id": safe_name(called)}
        if content:
            block["content"] = content
        return block


def _open_calls(turns: list[Block]) -> bool:
    return any(block["type"] == "tool_use" for block in turns[-1]["content"])


def _call(call: Any, place: str) -> Block:
    """A call of the history. Its arguments go on as they are: no digit is rounded, no key moved."""
    function = call.get("function") if type(call) is dict else None
    if type(call) is not dict or type(function) is not dict:
        raise no_word_for(f"{place}.type", "Only calls of functions can be sent.")
    if type(call.get("id")) is not str or not call["id"]:
        raise wrong(f"{place}.id", "a string")
    arguments: Any = function.get("arguments")
    if arguments is None or (type(arguments) is str and not arguments.strip()):
        arguments = "{}"
    try:
        if type(arguments) is not str or type(orjson.loads(arguments)) is not dict:
            raise ValueError
    except ValueError:
        raise wrong(f"{place}.function.arguments", "a JSON object, as a string") from None
    name = safe_name(named(function, f"{place}.function"))
    return {"type": "tool_use", "id": safe_name(call["id"]), "name": name, "input": orjson.Fragment(arguments)}


def _data_url(url: str, place: str) -> tuple[str, str]:
    """Media type and base64 of a ``data:`` URL (RFC 2397); parameters other than ``base64`` are passed over."""
    head, comma, data = url[5:].partition(",")
    kind, *parameters = [word.strip().lower() for word in head[:200].split(";")]
    if not comma or "base64" not in parameters:
        raise wrong(place, "a data: URL in base64")
    return kind, data


def _image(url: Any, place: str) -> Block:
    if type(url) is not str:
        raise wrong(place, "a string")
    if url[:5].lower() == "data:":
        kind, data = _data_url(url, place)
        if kind not in _IMAGES:
            raise Unsupported(f"'{place}' must be image/jpeg, image/png, image/gif or image/webp.", param=place)
        return {"type": "image", "source": {"type": "base64", "media_type": _IMAGES[kind], "data": data}}
    if url[:8].lower().startswith(("http://", "https://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    raise wrong(place, "an http, https or data: URL")


def _document(file: Block, place: str) -> Block:
    if file.get("file_id") is not None:
        raise no_word_for(f"{place}.file_id", "Send the file itself, as 'file_data'.")
    data = file.get("file_data")
    if type(data) is not str:
        raise wrong(f"{place}.file_data", "a string")
    kind = "application/pdf"
    if data[:5].lower() == "data:":
        kind, data = _data_url(data, f"{place}.file_data")
    if kind != "application/pdf":
        raise Unsupported(f"'{place}.file_data' must be a PDF.", param=f"{place}.file_data")
    block: Block = {"type": "document", "source": {"type": "base64", "media_type": kind, "data": data}}
    if type(file.get("filename")) is str and file["filename"]:
        block["title"] = file["filename"]
    return block
