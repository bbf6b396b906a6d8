"""Cursors of lists that are read newest first: a place in the order of time, as text that clients only hand back."""

from __future__ import annotations

import base64
import math
import struct

_PLACE = struct.Struct(">dq")
"""A place in such a list: ``started`` (Unix seconds) and ``seq``, exactly."""


def cursor_of(started: float, seq: int) -> str:
    """The cursor of the page that begins behind a row."""
    return base64.urlsafe_b64encode(_PLACE.pack(started, seq)).rstrip(b"=").decode()


def place_of(cursor: str) -> tuple[float, int]:
    """The place that a cursor was made of. Raises ValueError for what is no cursor of ours."""
    try:
        data = base64.b64decode(cursor.encode("ascii") + b"==", altchars=b"-_", validate=True)
        started, seq = _PLACE.unpack(data)
    except (ValueError, struct.error):
        raise ValueError("no cursor of this list") from None
    if not math.isfinite(started) or seq < 1 or cursor_of(started, seq) != cursor:
        raise ValueError("no cursor of this list")
    return started, seq


__all__ = ["cursor_of", "place_of"]
