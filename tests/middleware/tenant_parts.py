"""A tenant with a key, a store that counts its look-ups, and a clock that is moved by hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.records import ApiKey, Identity, Tenant
from asgi_llm_gateway.stores.memory import MemoryStore

from ..conversation import CHAT, JSON, Answer, ask
from . import Stranger


class Clock:
    """Time, moved by hand."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Unix time in seconds."""
        return self.now


class Asked(MemoryStore):
    """A store that counts its look-ups, waits where the test wants it, and fails where the test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.lookups = 0
        self.broken = False
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def identify(self, digest: str) -> Identity | None:
        """See TenantStore."""
        self.lookups += 1
        self.asked.set()
        await self.gate.wait()
        if self.broken:
            raise StoreError("the database is away")
        return await super().identify(digest)

    async def tenant(self, tenant_id: str) -> Tenant | None:
        """See TenantStore."""
        if self.broken:
            raise StoreError("the database is away")
        return await super().tenant(tenant_id)


class Setup:
    """A store with tenants a and b, a key for a, and a middleware round an app."""

    def __init__(self, tenant: Tenant, key: ApiKey, secret: str, **settings: Any) -> None:
        self.tenant, self.key, self.secret = tenant, key, secret
        self.app = Stranger()
        self.store = Asked()
        self.clock = Clock()
        self.layer = TenantMiddleware(self.app, store=self.store, clock=self.clock, **settings)

    async def ask(self, body: Any = CHAT, *headers: tuple[bytes, bytes], path: str = "/v1/chat/completions") -> Answer:
        """A call with the key."""
        shown = (b"authorization", b"Bearer " + self.secret.encode())
        return await ask(self.layer, body, path, headers=[JSON, shown, *headers])


async def setup(*, key: dict[str, Any] | None = None, remember: float = 2.0, **tenant: Any) -> Setup:
    """See Setup; ``key`` and the others are fields of the key and of the tenant."""
    made, secret = new_key("a")
    found = Setup(Tenant("a", **tenant), replace(made, **(key or {})), secret, remember=remember)
    await found.store.add_tenant(found.tenant)
    await found.store.add_tenant(Tenant("b"))
    await found.store.add_key(found.key)
    return found


def served(answer: Answer) -> bool:
    """Whether the call went through."""
    return answer.status == 200
