"""What of the Responses API is served to nobody: what is stored at the provider's account, and what nobody meters.

All tenants share that account: an id of one tenant's response, file or conversation would open it to another. Source:
OpenAI API reference, "Create a model response", autumn 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import BadRequest, Unsupported
from ..validation import kind_of

_RESEND = "Nothing is stored here: send the earlier items again, in 'input'."
_STORED: Mapping[str, str] = {
    "previous_response_id": _RESEND,
    "conversation": _RESEND,
    "prompt": "Prompts that are stored at the provider can't be used: send the text itself, in 'instructions' and 'input'.",
}
_REFERENCE = "it points at what is stored, and nothing is stored here. Send the item itself."
_ID_ALONE = frozenset({"id", "type", "status"})
_HOSTED: Mapping[str, str] = {
    "file_search": "its vector stores are shared by all tenants of the provider's account",
    "code_interpreter": "its containers are shared by all tenants of the provider's account",
    "mcp": "the provider would call a server of the client's choice with the gateway's account",
    "shell": "only a shell of the client's own is served ('environment': {'type': 'local'})",
}
_UNMETERED = "what it costs beside the tokens is not metered"


def wrong(place: str, wanted: str, value: Any) -> BadRequest:
    """The refusal of a value of the wrong kind. It shows the kind alone: the value may be a prompt."""
    return BadRequest(f"'{place}' must be {wanted}, not {kind_of(value)}.", param=place)


def shown(kind: Any) -> str:
    """A type that a client named, as it may stand in an error."""
    return f"'{kind[:40]}'" if type(kind) is str and kind.isprintable() else "(none)"


def refuse_stored(data: Mapping[str, Any]) -> None:
    """Refuse what needs a memory at the provider. ``store`` itself is no fault: it is served as false.

    Raises Unsupported, BadRequest.
    """
    for name, instead in _STORED.items():
        if data.get(name) is not None:
            raise Unsupported(f"'{name}' is not supported. {instead}", param=name)
    for name in ("background", "store"):
        value = data.get(name)
        if value is not None and type(value) is not bool:
            raise wrong(name, "true or false", value)
    if data.get("background"):
        raise Unsupported("'background' must be false: nothing is stored here that could be asked for later. "
                          "Use 'stream': true for long answers.", param="background")  # fmt: skip
    options = data.get("prompt_cache_options")
    if type(options) is dict and options.get("comparison_response_id") is not None:
        place = "prompt_cache_options.comparison_response_id"
        raise Unsupported(f"'{place}' is not supported: nothing is stored here. Remove it.", param=place)


def refuse_reference(item: Mapping[str, Any], place: str) -> None:
    """Refuse an item that only points at a stored one: one that has an id and nothing more, of whatever type it says.

    Raises Unsupported.
    """
    if item.get("type") == "item_reference" or ("id" in item and item.keys() <= _ID_ALONE):
        raise Unsupported(f"'{place}' is a reference: {_REFERENCE}", param=place)


def refuse_file_id(part: Mapping[str, Any], place: str, instead: str) -> None:
    """Refuse a part that names a file at the provider. Raises Unsupported."""
    if part.get("file_id") is not None:
        raise Unsupported(f"'{place}.file_id' is not supported: files at the provider are shared by all tenants of its "
                          f"account. Send {instead}.", param=f"{place}.file_id")  # fmt: skip


def hosted(kind: Any, place: str) -> Unsupported:
    """The refusal of a tool that the provider runs."""
    why = _HOSTED.get(kind, _UNMETERED) if type(kind) is str else _UNMETERED
    return Unsupported(f"'{place}' is of type {shown(kind)}, which is not served: {why}. Use tools of type 'function'.",
                       param=f"{place}.type")  # fmt: skip
