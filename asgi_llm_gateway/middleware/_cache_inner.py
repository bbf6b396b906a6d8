"""What stands between a call and the app that answers it for several: an exchange of its own, and a scope to match."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._asgi import Receive, Scope
from ..errors import Header
from ..exchange import Exchange

_FILES = ("http.response.pathsend", "http.response.zerocopysend")
_VARY = frozenset({b"", b"accept-encoding", b"origin"})  # which do not change what the answer says


class Inner(Exchange):
    """The exchange of a call that may outlive the one it was begun for. It is paid by the same key."""

    __slots__ = ()

    def __init__(self, outer: Exchange, scope: Scope, receive: Receive) -> None:
        super().__init__(outer.entry, outer.route, scope, max_body=outer.max_body)
        self.request = outer.request
        self.amended = outer.amended
        self.identity = outer.identity
        self.record = outer.record
        self.tracer = outer.tracer
        self.calls = outer.calls
        self.seen = list(outer.seen)
        self.rank = outer.rank
        self._receive = receive
        for guard in outer.guards:
            self.guard(guard)

    def over(self) -> None:
        """Let go of who refers back, so that no garbage collector is needed."""
        self.close()
        self._receive = None

    def mirror(self, outer: Exchange) -> None:
        """Let those further out see what is known of the call by now."""
        outer.usage = self.usage
        outer.cost = self.cost
        outer.reader = self.reader
        outer.exact = self.exact
        outer.answering = self.answering


def private(headers: Iterable[Header]) -> bool:
    """Whether an answer is for one caller only. Source: RFC 9111, sections 3 and 4.1; ``no-cache`` is on every event stream."""
    for name, value in headers:
        if name == b"set-cookie":
            return True
        if name == b"cache-control" and (b"no-store" in value.lower() or b"private" in value.lower()):
            return True
        if name == b"vary" and not _VARY.issuperset(one.strip() for one in value.lower().split(b",")):
            return True
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            return True
    return False


def readable(scope: dict[str, Any]) -> Scope:
    """The scope for an app whose answer others may read: it shall not compress it, nor hand over a file."""
    headers = scope.get("headers") or ()
    if any(one[0].lower() == b"accept-encoding" for one in headers):
        scope["headers"] = [one for one in headers if one[0].lower() != b"accept-encoding"]
    extensions = scope.get("extensions")
    if extensions:
        scope["extensions"] = {name: value for name, value in extensions.items() if name not in _FILES}
    return scope


__all__ = ["Inner", "private", "readable"]
