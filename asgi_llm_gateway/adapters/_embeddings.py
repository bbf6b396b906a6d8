"""Vectors in the encoding that the client asked for, whatever the provider sent.

``encoding_format`` is ``float`` or ``base64`` (little-endian float32), ``float`` where nothing is asked. Source: OpenAI API
reference, "Embeddings". OpenAI's own SDKs ask for base64, and the one for JavaScript takes a list of numbers for base64
without a look, and returns nonsense: so the encoding is kept here.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from typing import Any

import orjson

from ..errors import UpstreamError

# The first vector: a string is base64. ``"object": "embedding"`` is followed by no colon.
_FIRST = re.compile(rb'"embedding"\s*:\s*(.)', re.DOTALL)
_KNOWN = ("float", "base64")


def encoded(body: bytes, wanted: Any) -> bytes:
    """An answer with its vectors as ``wanted``: as it came where they are so, which costs one look at the first of them.

    Vendors have more encodings (``int8``, ...); those are passed on as they came. Raises UpstreamError for vectors that
    are none.
    """
    wanted = "float" if wanted is None else wanted
    if wanted not in _KNOWN:
        return body
    first = _FIRST.search(body)
    if first is None or (first[1] == b'"') is (wanted == "base64"):
        return body
    try:
        answer = orjson.loads(body)
        for row in answer["data"]:
            row["embedding"] = _packed(row["embedding"]) if wanted == "base64" else _unpacked(row["embedding"])
        return orjson.dumps(answer)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, struct.error, OverflowError):
        raise UpstreamError("The provider sent embeddings that can't be read.") from None


def _packed(vector: Any) -> Any:
    """Numbers as base64."""
    if type(vector) is str:
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _unpacked(vector: Any) -> Any:
    """Base64 as numbers."""
    if type(vector) is not str:
        return vector
    try:
        raw = base64.b64decode(vector, validate=True)
    except binascii.Error as error:
        raise ValueError from error
    return struct.unpack(f"<{len(raw) // 4}f", raw)
