"""Who is told of each call that was booked: once, at the moment when the ledger has taken it, however late that is.

One list for the process: metrics count what all its event loops and stacks book, calls outside of any request included.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from .records import CallRecord

log = logging.getLogger("asgi_llm_gateway")

Listener = Callable[[CallRecord], None]

_listeners: tuple[Listener, ...] = ()


def listen(listener: Listener) -> None:
    """Call ``listener`` with the record of every call that this process books from now on; twice is once.

    It must not wait: it runs between the booking and the answer's last message.
    """
    global _listeners
    if listener not in _listeners:
        _listeners = (*_listeners, listener)


def ignore(listener: Listener) -> None:
    """Call it no more."""
    global _listeners
    _listeners = tuple(one for one in _listeners if one != listener)


def tell(record: CallRecord) -> None:
    """The ledger has acknowledged ``record``. What a listener raises is logged, and keeps no call from its answer."""
    for listener in _listeners:
        try:
            listener(record)
        except Exception:  # a listener's mistake: the call is booked all the same
            log.exception("a booked call could not be counted")


__all__ = ["Listener", "ignore", "listen", "tell"]
