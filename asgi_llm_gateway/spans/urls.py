"""Addresses as spans tell them: without credentials and without what a query holds."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

_PARTS = 20  # of a query that are told
_NAME = 64  # characters of a name in it

REDACTED = "REDACTED"
"""What stands for a value that is not told. Source: HTTP semantic conventions, ``url.query``."""

_PORTS = {"http": 80, "https": 443}


class Place(NamedTuple):
    """Where a request goes: host, port, and the URL as it may be told."""

    address: str
    port: int | None
    url: str


@lru_cache(maxsize=512)
def place_of(url: str) -> Place | None:
    """A URL's place; ``None`` for what is none. Credentials, query and fragment are left out."""
    try:
        found = urlsplit(url)
        host, port = found.hostname, found.port
    except ValueError:
        return None
    if not host:
        return None
    shown = f"[{host}]" if ":" in host else host
    if port is not None and port != _PORTS.get(found.scheme):
        shown = f"{shown}:{port}"
    return Place(host, port or _PORTS.get(found.scheme), f"{found.scheme}://{shown}{found.path}")


def query_shown(query: bytes) -> str:
    """A query's names; its values, of which any may be a secret, are left out. Sound for any bytes."""
    shown = []
    for part in query.split(b"&", _PARTS)[:_PARTS]:
        name, equals, _ = part.partition(b"=")
        known = bool(equals) and len(name) <= _NAME and name.isascii()
        shown.append(f"{name.decode('ascii')}={REDACTED}" if known else REDACTED)
    return "&".join(shown)
