"""Words that reading and writing Messages share: refusals, names of tools, what was left out."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from ..errors import BadRequest, Unsupported

Block = dict[str, Any]

MAX_NAME = 64
"""Characters of a tool's name in chat, where Messages has 128. Source: OpenAI API reference, "Create chat completion"."""

_TOLD = 32  # fields that were left out and are told: the client chooses how many it sends
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")


def wrong(place: str, wanted: str) -> BadRequest:
    """The refusal of a value."""
    return BadRequest(f"'{place}' must be {wanted}.", param=place)


def no_word_for(place: str, what: str, instead: str = "Remove it.") -> Unsupported:
    """The refusal of what means something and can't be said in chat's words."""
    return Unsupported(f"'{place}' {what}; the provider of this model has no word for that. {instead}", param=place)


def short_name(name: str) -> str:
    """A tool's name as chat takes it: as it is if it can be, else cut and marked by its hash."""
    if len(name) <= MAX_NAME:
        return name
    return f"{name[:51]}_{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:12]}"


def long_names(data: Block) -> dict[str, str]:
    """The names of tools that had to be cut: what the provider says, to what the client said."""
    tools = data.get("tools")
    found = {}
    for tool in tools if type(tools) is list else ():
        name = tool.get("name") if type(tool) is dict else None
        if type(name) is str and len(name) > MAX_NAME:
            found[short_name(name)] = name
    return found


class Dropped:
    """The names of fields that were left out, each once, in order. They go into a header, so they are words."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def add(self, name: str, prefix: str = "") -> None:
        """Note a field."""
        if len(self._names) < _TOLD:
            self._names[prefix + (name if _WORD.match(name) is not None else "?")] = None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(self._names)
