"""A session's scope to the scope of one call: a fresh ASGI http request, as a server would have made it."""

from __future__ import annotations

from typing import Any

from .._asgi import Scope
from ..errors import Header
from ..exchange import KEY
from ..passport import ENTRY, PASSPORT, REALTIME, Passport

# What belongs to the channel, or to the request that opened it.
_OWN = frozenset({KEY, ENTRY, PASSPORT, "headers", "extensions", "subprotocols", "reason"})

# What a call has in common with the request that opened its session. No credential: the passport speaks for it.
_KEPT = frozenset({b"host", b"user-agent", b"x-tenant-id", b"accept-language", b"via", b"forwarded",
                   b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-real-ip"})  # fmt: skip


class Origin:
    """Where a session was opened: what its calls' scopes are made from.

    Args:
        scope: Of the request that opened the session, an http or a websocket one.
        passport: Who it speaks for.
    """

    def __init__(self, scope: Scope, passport: Passport) -> None:
        self._passport = passport
        self._scope: dict[str, Any] = {name: value for name, value in scope.items() if name not in _OWN}
        # Before "/realtime/...": what a host app mounted us at, and /v1.
        own = REALTIME[REALTIME.index("/", 1) :]
        self._front: str = scope["path"].rpartition(own)[0]
        self._headers = [(bytes(name), bytes(value)) for name, value in scope.get("headers") or ()
                         if name.lower() in _KEPT]  # fmt: skip

    def scope(self, path: str, size: int, headers: tuple[Header, ...]) -> Scope:
        """The scope of a call.

        Args:
            path: Below ``/v1``.
            size: Bytes of its body.
            headers: More headers.
        """
        full = self._front + path
        scheme = self._scope.get("scheme")
        scope = {
            **self._scope,
            "type": "http",
            "http_version": "1.1",  # whatever the channel speaks: a body of known length follows
            "method": "POST",
            "scheme": {"ws": "http", "wss": "https"}.get(scheme or "http", scheme),
            "path": full,
            "raw_path": full.encode(),
            "query_string": b"",
            "headers": [
                *self._headers,
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % size),
                *headers,
            ],
            PASSPORT: self._passport.again(),
        }
        if "state" in scope:  # Source: ASGI specification, "Lifespan State": a shallow copy for each request
            scope["state"] = dict(scope["state"])
        return scope


__all__ = ["Origin"]
