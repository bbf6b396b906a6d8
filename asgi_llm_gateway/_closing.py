"""What was opened on first use, and is to be closed when the event loop's app shuts down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from weakref import WeakKeyDictionary

log = logging.getLogger("asgi_llm_gateway")

CLOSE_SECONDS = 10.0
"""Seconds that each part has to close: one that hangs keeps neither the others nor the process."""

_closers: WeakKeyDictionary[asyncio.AbstractEventLoop, list[Callable[[], Awaitable[None]]]] = WeakKeyDictionary()


def on_close(close: Callable[[], Awaitable[None]]) -> None:
    """Await ``close`` when this event loop's gateway closes."""
    _closers.setdefault(asyncio.get_running_loop(), []).append(close)


async def close_all() -> None:
    """Close what this event loop opened, the newest first. A later call opens it anew."""
    closers = _closers.pop(asyncio.get_running_loop(), [])
    while closers:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await closers.pop()()
        except Exception:  # one that can't be closed must not keep the others open
            log.exception("could not be closed")
