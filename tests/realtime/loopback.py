"""``examples:app`` whose WebRTC peers meet on loopback, too: tests run where a machine has no other address."""

from __future__ import annotations

from typing import Any

import aioice.ice

from examples.realtime.app import app as playground
from examples.realtime.app import gateway as app

_found = aioice.ice.get_host_addresses


def addresses(*given: Any, **named: Any) -> list[str]:
    """Those of the machine, and loopback, which aioice never offers."""
    return ["127.0.0.1", *_found(*given, **named)]


aioice.ice.get_host_addresses = addresses

__all__ = ["addresses", "app", "playground"]
