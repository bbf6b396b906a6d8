"""Whose pages may open a session: the Origin that a browser names. Source: RFC 6454; WHATWG Fetch, "CORS protocol"."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from ..errors import Forbidden, Header, SettingsError

_PORTS = {"http": 80, "https": 443}


class Origins:
    """The origins that are allowed: those listed, and always the gateway's own. A call without one is no browser's.

    Args:
        listed: ``https://app.example.com`` or ``*`` for all. Raises SettingsError.
    """

    def __init__(self, listed: Iterable[str] = ()) -> None:
        self.listed = frozenset(one.strip().lower() for one in listed if one.strip())
        self._all = "*" in self.listed
        for one in self.listed - {"*"}:
            if _parts(one) is None:
                raise SettingsError(
                    "REALTIME_ORIGINS: each is https://host or https://host:port, without a path, or '*'"
                )

    def allows(self, origin: bytes | None, host: bytes | None) -> bool:
        """Whether a page of ``origin`` may; ``host`` is the request's Host header."""
        if origin is None or self._all:
            return True
        named = origin.decode("latin-1").lower()
        if named in self.listed:
            return True
        parts = _parts(named)
        if parts is None or host is None:
            return False
        # The scheme is not compared: behind a proxy that ends TLS we do not know our own.
        name, _, port = host.decode("latin-1").lower().rpartition(":")
        if not port.isdigit() or not name:
            name, port = host.decode("latin-1").lower(), str(_PORTS[parts[0]])
        return (name, port) == (parts[1], str(parts[2]))

    def check(self, origin: bytes | None, host: bytes | None) -> None:
        """Raises Forbidden (403 ``origin_not_allowed``)."""
        if not self.allows(origin, host):
            raise Forbidden(
                "Pages of this origin may not open realtime sessions here. Ask the operator to list it in REALTIME_ORIGINS.",
                code="origin_not_allowed",
                param="origin",
            )


def cors(origin: bytes) -> tuple[Header, ...]:
    """What lets a page of an allowed origin read the answer."""
    return (
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"location, retry-after, x-request-id, x-trace-id"),
        (b"vary", b"origin"),
    )


PREFLIGHT: tuple[Header, ...] = (
    (b"access-control-allow-methods", b"GET, POST, DELETE"),
    (b"access-control-allow-headers", b"authorization, content-type, x-api-key, x-request-id, x-tenant-id"),
    (b"access-control-max-age", b"600"),
)
"""What a browser asks before it sends such a call. Credentials are headers, never cookies."""


def _parts(origin: str) -> tuple[str, str, int] | None:
    try:
        found = urlsplit(origin)
        port = found.port
    except ValueError:
        return None
    if (
        found.scheme not in _PORTS
        or not found.hostname
        or found.username
        or found.path
        or found.query
        or found.fragment
    ):
        return None
    host = f"[{found.hostname}]" if ":" in found.hostname else found.hostname
    return found.scheme, host, port or _PORTS[found.scheme]


__all__ = ["PREFLIGHT", "Origins", "cors"]
