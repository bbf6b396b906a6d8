"""Policies that stand in for OPA, and tenants with keys: what the tests of policies share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.stores.memory import MemoryStore


class Rules:
    """A policy that counts what it is asked. ``say`` decides; ``gate`` holds its answers back where it is closed."""

    def __init__(self, say: Callable[[dict[str, Any]], Any]) -> None:
        self.say = say
        self.asked: list[dict[str, Any]] = []
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, question: dict[str, Any]) -> Any:
        """See PolicyMiddleware."""
        self.asked.append(question)
        self.reached.set()
        await self.gate.wait()
        return self.say(question)


def always(result: Any) -> Rules:
    """The same document for every question."""
    return Rules(lambda question: result)


async def team(*names: str, **more: Any) -> tuple[MemoryStore, dict[str, tuple[bytes, bytes]]]:
    """A store with tenants, and the header that shows each one's key."""
    store = MemoryStore()
    shown = {}
    for name in names:
        key, secret = new_key(name)
        await store.put_tenant(Tenant(name, **more))
        await store.add_key(key)
        shown[name] = (b"authorization", b"Bearer " + secret.encode())
    return store, shown


def raising(question: dict[str, Any]) -> Any:
    """A policy with a bug, whose message has what it was shown."""
    raise RuntimeError(str(question))
