"""Labels that stay few, whatever clients send: what a caller may choose never makes a time series of its own without bound.

Source: Prometheus documentation, "Metric and label naming" and "Instrumentation", "Do not overuse labels".
"""

from __future__ import annotations

from collections.abc import Collection

from ..wire import METERED

OTHER = "other"
"""The label of all that is beyond a bound."""

LONGEST = 128
"""Characters of a label's value; longer ones are ``other``."""

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_BELOW = (
    ("/v1/models/", "/v1/models/{model}"),
    ("/v1/responses/", "/v1/responses/{id}"),
    ("/v1/realtime/", "/v1/realtime/*"),
    ("/api/", "/api/*"),
    ("/dashboard/", "/dashboard/*"),
)
_ROUTES = frozenset(
    {
        *METERED,
        "/v1/models",
        "/v1/messages/count_tokens",
        "/health",
        "/ready",
        "/metrics",
        "/v1/realtime",
        "/api",
        "/dashboard",
        "/",
    }
)
_STATUSES = {code: str(code) for code in (
    200, 201, 202, 204, 206, 301, 302, 303, 304, 307, 308, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 411, 412, 413,
    414, 415, 416, 417, 421, 422, 424, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 507, 508, 511, 529,
)}  # fmt: skip


class Bound:
    """The first so many distinct values are told apart; all later ones are ``other``.

    Args:
        most: How many; 0 makes all ``other``.
        always: Values that are told apart whatever came before them, and do not count.
    """

    __slots__ = ("_most", "_taken", "known")

    def __init__(self, most: int, always: Collection[str] = ()) -> None:
        self._most = most
        self._taken = 0
        self.known = {value: value for value in always}
        """Each value that is told apart, as itself."""

    def admit(self, value: str | None) -> str:
        """The value's label, which is its own while there is room."""
        if value is None:
            return OTHER
        found = self.known.get(value)
        if found is not None:
            return found
        if self._taken >= self._most or not 0 < len(value) <= LONGEST or not value.isprintable():
            return OTHER
        self._taken += 1
        self.known[value] = value
        return value

    def find(self, value: str | None) -> str:
        """The value's label if it was admitted, else ``other``: nothing that only failed takes up room."""
        return OTHER if value is None else self.known.get(value, OTHER)


def method_label(method: str) -> str:
    """An HTTP method as a label."""
    return method if method in _METHODS else OTHER


def status_label(status: int) -> str:
    """An HTTP status as a label: the code where it is a usual one, else its class."""
    found = _STATUSES.get(status)
    if found is not None:
        return found
    return f"{status // 100}xx" if 100 <= status < 600 else OTHER


def route_label(path: str, own: Collection[str] = ()) -> str:
    """A path as a label: what the gateway knows, and the paths (or prefixes, as ``/x/*``) that it was told of.

    Whatever a client makes up is ``other``.
    """
    if path in _ROUTES or path in own:
        return path
    for start, label in _BELOW:
        if path.startswith(start):
            return label
    for prefix in own:
        if prefix.endswith("/*") and path.startswith(prefix[:-1]):
            return prefix
    return OTHER


__all__ = ["LONGEST", "OTHER", "Bound", "method_label", "route_label", "status_label"]
