"""A failure in the middle of a Responses stream."""

from __future__ import annotations

import orjson

from ..errors import GatewayError


def error_event(error: GatewayError, number: int) -> bytes:
    """An ``error`` event, with ``number`` as its ``sequence_number``.

    The API reference has the members flat ("Streaming events", ``error``). The object ``error`` beside them is for the
    official SDKs: they raise an APIError for it, whereas a flat one alone, and ``response.failed`` as well, they hand over
    like any other event, and a loop that only reads the text would take the broken answer for a whole one.
    """
    told = error.as_dict()["error"]
    flat = {"type": "error", "sequence_number": number, "code": told["code"], "message": told["message"],
            "param": told["param"], "error": told}  # fmt: skip
    return b"event: error\ndata: " + orjson.dumps(flat) + b"\n\n"
