"""The parts that messages are made of, in OpenTelemetry's shape.

Source: OpenTelemetry semantic conventions for generative AI, JSON schemas of ``gen_ai.input.messages`` and
``gen_ai.output.messages``, as of autumn 2026. What comes from a client or a provider may be anything: a field of another
kind than it should be counts as one that is not there, and nothing here raises.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson

_HEAD = 512
"""Characters of a ``data:`` address before its data."""

Part = dict[str, Any]
Message = dict[str, Any]

_PARSED = 64 * 1024
"""Characters of a tool's arguments that are read as JSON; longer ones stay a text."""


def text_of(value: Any) -> str:
    """The value where it is a text; else the empty one."""
    return value if type(value) is str else ""


def items_of(value: Any) -> list[Any]:
    """The value where it is a list; else an empty one."""
    return value if type(value) is list else []


def fields_of(value: Any) -> dict[str, Any]:
    """The value where it is an object; else an empty one."""
    return value if type(value) is dict else {}


def text(content: str) -> Part:
    """Plain text."""
    return {"type": "text", "content": content}


def reasoning(content: str) -> Part:
    """What a model thought."""
    return {"type": "reasoning", "content": content}


def tool_call(identity: Any, name: Any, arguments: Any) -> Part:
    """A model asks for a tool. Arguments that are JSON in a text, as OpenAI's are, are given as what they say."""
    if type(arguments) is str and len(arguments) <= _PARSED:
        with suppress(orjson.JSONDecodeError):  # cut short, or no JSON at all: what was said is told
            arguments = orjson.loads(arguments)
    return {"type": "tool_call", "id": text_of(identity), "name": text_of(name), "arguments": arguments}


def tool_answer(identity: Any, response: Any) -> Part:
    """What a tool answered."""
    return {"type": "tool_call_response", "id": text_of(identity), "response": response}


def server_call(identity: Any, name: str, details: dict[str, Any]) -> Part:
    """A tool that the provider runs itself; ``details`` are in its own words."""
    return {"type": "server_tool_call", "id": text_of(identity), "name": name, "server_tool_call": details}


def server_answer(identity: Any, details: dict[str, Any]) -> Part:
    """What a tool of the provider's own answered."""
    return {"type": "server_tool_call_response", "id": text_of(identity), "server_tool_call_response": details}


def modality_of(mime: str, otherwise: str = "document") -> str:
    """Image, video, audio or document, by the media type."""
    first = mime.partition("/")[0].lower()
    return first if first in ("image", "video", "audio") else otherwise


def link(url: str, mime: str = "", modality: str = "document") -> Part:
    """Something at an address; a ``data:`` address holds it itself."""
    if url.startswith("data:"):
        end = url.find(",", 5, _HEAD)  # what follows may be megabytes: copied once
        mime = url[5 : max(end, 5)].partition(";")[0] or mime
        return blob(url[end + 1 :] if end > 0 else "", mime, modality)
    return {"type": "uri", "mime_type": mime or None, "modality": modality_of(mime, modality), "uri": url}


def blob(content: str, mime: str, modality: str = "document") -> Part:
    """Bytes in base64."""
    return {"type": "blob", "mime_type": mime or None, "modality": modality_of(mime, modality), "content": content}


def file(identity: str, mime: str = "", modality: str = "document") -> Part:
    """A file that the provider keeps."""
    return {"type": "file", "mime_type": mime or None, "modality": modality_of(mime, modality), "file_id": identity}


def other(value: dict[str, Any], kind: str = "unknown") -> Part:
    """What the convention has no word for, in the provider's own: a generic part."""
    return {**value, "type": text_of(value.get("type")) or kind}
