"""The fields of a form that the gateway reads, as JSON would have them, and how a form is made to say others."""

from __future__ import annotations

from typing import Any

import orjson

from .errors import BadRequest
from .multipart import Form, text_of

_READ = (
    "model", "stream", "tenant", "n", "size", "quality", "response_format", "partial_images", "input_fidelity",
    "chunking_strategy",
)  # fmt: skip
_NUMBERS = frozenset({"n", "partial_images"})


def fields_of(form: Form, raw: bytes) -> dict[str, Any]:
    """The fields of a form that the gateway reads, as JSON would have them. Raises BadRequest."""
    data: dict[str, Any] = {}
    for name in _READ:
        text = text_of(form, raw, name)
        if text is None:
            continue
        if name == "stream":
            if text.lower() not in ("true", "false"):
                raise BadRequest("'stream' must be true or false.", param="stream")
            data[name] = text.lower() == "true"
        elif name in _NUMBERS:
            if not (text.isascii() and text.isdigit() and len(text) < 10):
                raise BadRequest(f"'{name}' must be a whole number.", param=name)
            data[name] = int(text)
        else:
            data[name] = text
    return data


def changes_to(form: Form, raw: bytes, data: dict[str, Any]) -> dict[str, str | None]:
    """What is to be written into a form so that it says what ``data`` says."""
    before = fields_of(form, raw)
    changes: dict[str, str | None] = {name: None for name in before if name not in data}
    for name, value in data.items():
        if name not in before or before[name] != value:
            changes[name] = value if type(value) is str else orjson.dumps(value).decode()
    return changes


__all__ = ["changes_to", "fields_of"]
