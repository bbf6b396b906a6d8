"""The ids that an answer tells of its call: sound ones of the client's own, else fresh ones."""

from __future__ import annotations

import random
import re

# What a client may choose as its request id. It is echoed and recorded, never a key of anything.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}\Z")
# Source: W3C Trace Context, "traceparent header" (version 00): ids of zeros only are invalid.
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")

# Not secrets, and drawn for every call: the Mersenne twister is enough, and is seeded anew in every process.
_bits = random.getrandbits


def request_id(told: bytes | None) -> str:
    """A call's request id, by the client's ``x-request-id``."""
    if told and _REQUEST_ID.match(told) is not None:
        return told.decode()
    return "req_" + _bits(128).to_bytes(16, "big").hex()


def trace_id(told: bytes | None) -> str:
    """A trace's id in hex, by the client's ``traceparent``."""
    if told is not None:
        found = _TRACEPARENT.match(told)
        if found is not None and not told.startswith(b"ff"):
            return found[1].decode()
    return _bits(128).to_bytes(16, "big").hex()
