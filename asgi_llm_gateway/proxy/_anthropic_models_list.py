"""``/v1/models`` as Anthropic's clients read it. They are known by their header ``anthropic-version``.

Source: Anthropic API reference, "List Models" and "Get a Model", 2023-06-01.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import orjson

from ..errors import BadRequest

MAX_LIMIT = 1000
DEFAULT_LIMIT = 20
_MAX_QUERY = 4096  # bytes
# "May be set to an epoch value if the release date is unknown."
_UNKNOWN_DATE = "1970-01-01T00:00:00Z"


class Page(NamedTuple):
    """Which part of a list is asked for: ``limit`` names, right after or right before one."""

    after_id: str | None = None
    before_id: str | None = None
    limit: int = DEFAULT_LIMIT


def page_of(query: bytes) -> Page:
    """A list's query string, ``after_id``, ``before_id`` and ``limit`` (1 to 1000, else 20). Raises BadRequest.

    Other parameters are passed over: ``lifecycle`` chooses nothing where all models are active.
    """
    if len(query) > _MAX_QUERY:
        raise BadRequest(f"The query is over {_MAX_QUERY} bytes.", param="query")
    found: dict[str, str] = {}
    try:
        given = parse_qs(query.decode("ascii"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise BadRequest("The query must be a form of at most 100 fields in ASCII.", param="query") from None
    for name in Page._fields:
        values = given.get(name, [])
        if len(values) > 1:
            raise BadRequest(f"'{name}' is given twice. Send it once.", param=name)
        if values and values[0]:
            found[name] = values[0]
    if "after_id" in found and "before_id" in found:
        raise BadRequest("Send 'after_id' or 'before_id', not both.", param="before_id")
    limit = found.get("limit", str(DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_LIMIT):
        raise BadRequest(f"'limit' must be a whole number from 1 to {MAX_LIMIT}.", param="limit")
    return Page(found.get("after_id"), found.get("before_id"), int(limit))


def anthropic_model_list(names: Sequence[str], page: Page = Page()) -> bytes:  # noqa: B008 - it can't be changed
    """The body of ``GET /v1/models``.

    Args:
        names: All names that the caller may use, each once, in order.
        page: Which of them.

    Raises BadRequest for a cursor that is none of the names.
    """
    for name, cursor in (("after_id", page.after_id), ("before_id", page.before_id)):
        if cursor is not None and cursor not in names:
            raise BadRequest(f"'{name}' is no model of this list.", param=name)
    if page.before_id is not None:
        end = names.index(page.before_id)
        start = max(0, end - page.limit)
        has_more = start > 0
    else:
        start = 0 if page.after_id is None else names.index(page.after_id) + 1
        end = min(start + page.limit, len(names))
        has_more = end < len(names)
    shown = names[start:end]
    return orjson.dumps(
        {
            "data": [_entry(name) for name in shown],
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
            "has_more": has_more,
        }
    )


def anthropic_model(name: str) -> bytes:
    """The body of ``GET /v1/models/{id}``, of a name that the caller may use."""
    return orjson.dumps(_entry(name))


def _entry(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": _UNKNOWN_DATE, "lifecycle": "active"}


__all__ = ["DEFAULT_LIMIT", "MAX_LIMIT", "Page", "anthropic_model", "anthropic_model_list", "page_of"]
