"""Who a realtime session speaks for: carried under private keys of the scope, which no client can set."""

from __future__ import annotations

from typing import Any

PASSPORT = "asgi_llm_gateway.passport"
"""The scope's key for a Passport: TenantMiddleware puts it there when a session begins, the session when it calls."""

ENTRY = "asgi_llm_gateway.entry"
"""The scope's key, on a websocket, for the outermost gateway middleware: where the session's messages begin again."""

REALTIME = "/v1/realtime/"
"""What the paths of sessions begin with."""

SOCKET_PATH = REALTIME + "ws"
SECRETS_PATH = REALTIME + "client_secrets"
ICE_PATH = REALTIME + "ice"
CALLS_PATH = REALTIME + "calls"

PROTOCOL = "llm-stream.v1"
"""The frames' name and version: a WebSocket's subprotocol, a data channel's protocol."""

SECRET_PROTOCOL = "llm-secret."  # noqa: S105 - what stands before one
"""Before a client secret, as a second "subprotocol": the one header of a handshake that a browser's page can set."""


class Passport:
    """An identity as a digest: the key itself is not kept, and is looked up anew for every call.

    Attributes:
        digest: SHA-256 of the key that pays, in hex; ``None`` in a stack without a TenantMiddleware.
        acting: The id of the tenant that the session was opened for.
        bound: The only tenant that it may act for; ``None``: as far as the key reaches.
        ephemeral: It was shown a client secret, which can't make another.
        exchange: Of a call: its exchange, once the call is in the stack.
    """

    __slots__ = ("acting", "bound", "digest", "ephemeral", "exchange")

    def __init__(self, digest: str | None, acting: str, *, bound: str | None = None, ephemeral: bool = False) -> None:
        self.digest = digest
        self.acting = acting
        self.bound = bound
        self.ephemeral = ephemeral
        self.exchange: Any = None

    def again(self) -> Passport:
        """The same for one call."""
        return Passport(self.digest, self.acting, bound=self.bound, ephemeral=self.ephemeral)


def entered(scope: Any, entry: Any) -> Any:
    """A websocket's scope as it leaves the outermost gateway layer: where it may be a session's, that layer is noted."""
    if ENTRY in scope or not scope["path"].rstrip("/").endswith(_SOCKET_END):
        return scope
    return {**scope, ENTRY: entry}


_SOCKET_END = SOCKET_PATH.removeprefix("/v1")

__all__ = [
    "CALLS_PATH", "ENTRY", "ICE_PATH", "PASSPORT", "PROTOCOL", "REALTIME", "SECRETS_PATH", "SECRET_PROTOCOL",
    "SOCKET_PATH", "Passport", "entered",
]  # fmt: skip
