"""URLs in a request that the provider's own host would fetch.

A model server on the operator's network that loads a caller's ``image_url`` is a way into that network (server-side request
forgery). Fields: OpenAI API reference, "Chat" and "Responses"; Anthropic API reference,
"Messages"; vLLM documentation, "Multimodal inputs" (``video_url``, ``audio_url``).
"""

from __future__ import annotations

from typing import Any

from ..wire import MEDIA, Dialect

_DEEPEST = 8
_URLS = ("image_url", "video_url", "audio_url", "file_url")


def remote_url(dialect: Dialect | None, data: dict[str, Any]) -> str | None:
    """The place of the first media in a request that is no ``data:`` URI; ``None`` where all stands in the request itself."""
    if dialect in MEDIA:  # an image to be edited may come by its address
        return _within(data.get("images"), "images", 0) or _within(data.get("mask"), "mask", 0)
    name = "input" if dialect == "responses" else "messages"
    items = data.get(name)
    for at, item in enumerate(items if type(items) is list else ()):
        if type(item) is dict and (type(item.get("content")) is list or type(item.get("output")) is list):
            found = _within(item, f"{name}[{at}]", 0)
            if found is not None:
                return found
    return None


def _within(value: Any, place: str, depth: int) -> str | None:
    if depth > _DEEPEST:
        return place  # no client nests parts so deeply
    if type(value) is list:
        for at, inner in enumerate(value):
            if type(inner) in (dict, list) and (found := _within(inner, f"{place}[{at}]", depth + 1)) is not None:
                return found
    elif type(value) is dict:
        for name in _URLS:
            url = value.get(name)
            if type(url) is dict:
                url = url.get("url")
            if url is not None and not (type(url) is str and url.startswith("data:")):
                return f"{place}.{name}"
        source = value.get("source")
        if type(source) is dict and source.get("url") is not None and not str(source["url"]).startswith("data:"):
            return f"{place}.source"
        for name in ("content", "output"):
            if (
                type(inner := value.get(name)) is list
                and (found := _within(inner, f"{place}.{name}", depth + 1)) is not None
            ):
                return found
    return None
