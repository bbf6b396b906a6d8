"""What a caller says of the cache. Source: RFC 9111, section 5.2.1 (request directives) and 5.4 (``pragma``)."""

from __future__ import annotations

from typing import NamedTuple

_LONGEST = 2**31  # seconds; RFC 9111, section 1.2.2: what is longer is as good as this


class Control(NamedTuple):
    """A request's directives.

    Attributes:
        lookup: A kept answer will do.
        store: The answer may be kept.
        max_age: Seconds that a kept answer may be old; ``None`` is any age.
        only: Nothing but a kept answer will do (``only-if-cached``).
    """

    lookup: bool = True
    store: bool = True
    max_age: int | None = None
    only: bool = False


_ANY = Control()
_FRESH = Control(lookup=False)


def control_of(cache_control: bytes | None, pragma: bytes | None = None) -> Control:
    """Read ``cache-control``; ``pragma: no-cache`` counts where there is none. What is not known is passed over.

    An age that is no number is taken for 0, which no kept answer is young enough for.
    """
    if cache_control is None:
        return _ANY if pragma is None or b"no-cache" not in pragma.lower() else _FRESH
    said: dict[bytes, bytes] = {}
    for directive in cache_control.lower().split(b","):
        name, _, value = directive.partition(b"=")
        said.setdefault(name.strip(), value.strip().strip(b'"'))
    max_age: int | None = None
    if b"max-age" in said:
        seconds = said[b"max-age"]
        max_age = min(int(seconds[:12]), _LONGEST) if seconds.isdigit() else 0
    no_store = b"no-store" in said
    lookup = not no_store and b"no-cache" not in said and max_age != 0
    return Control(lookup, not no_store, max_age, b"only-if-cached" in said)


__all__ = ["Control", "control_of"]
