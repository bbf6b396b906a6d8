"""The whole stack over a store in memory, as an attacker meets it: two tenants with a key each, and every layer there is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from asgi_llm_gateway.adapters.base import Adapter
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.damping import Damping
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.meters.meters import Meters
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.cache import CacheMiddleware
from asgi_llm_gateway.middleware.logging import LoggingMiddleware
from asgi_llm_gateway.middleware.metrics import MetricsMiddleware
from asgi_llm_gateway.middleware.policy import PolicyMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.security import SecurityHeadersMiddleware
from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Model, Router
from asgi_llm_gateway.records import NANO_PER_USD, ApiKey, Price, Tenant
from asgi_llm_gateway.stores.memory import MemoryStore
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import CHAT, JSON, Answer, ask, call

MANY = 10**9
DEAR = Price(prompt=NANO_PER_USD, completion=2 * NANO_PER_USD)
"""A dollar a million tokens in, two out."""


def yes(_: Any) -> bool:
    """A policy that allows everything."""
    return True


class Log:
    """A logger of the host app's own: the calls' lines as they are written, in the order in which they came."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, event: str, **fields: Any) -> None:
        """One line."""
        self.lines.append(json.dumps({"event": event, **fields}))

    def error(self, event: str, **fields: Any) -> None:
        """One line."""
        self.info(event, **fields)


class House:
    """The stack, and what it keeps.

    Args:
        adapters: Providers beside ``echo``.
        models: Names that clients use.
        prices: What models cost; ``echo`` and all others cost ``DEAR`` where none are given.
        terminal: In the place of ProxyApp.
        policy: What PolicyMiddleware asks.
        requests: Calls that a tenant may make in a minute.
        clock: The budget's, in Unix seconds.
        limits: Arguments of SecurityHeadersMiddleware.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter] = (),
        *,
        models: Mapping[str, Sequence[str] | Model] | None = None,
        prices: PriceTable | None = None,
        terminal: Any = None,
        policy: Any = yes,
        requests: int = MANY,
        clock: Callable[[], float] = time.time,
        **limits: Any,
    ) -> None:
        self.store = MemoryStore()
        self.traces = TraceLog()
        self.damping = Damping(longest=0)
        prices = prices or PriceTable({"echo": DEAR, "up/m": DEAR, "m": DEAR})
        self.proxy = ProxyApp(router=Router([EchoAdapter(), *adapters], models or {}), prices=prices, max_retries=0)
        self.meters = Meters()
        self.log = Log()
        inner: Any = StructuredOutputMiddleware(terminal or self.proxy)
        inner = BudgetMiddleware(inner, ledger=self.store, prices=prices, clock=clock)
        inner = PolicyMiddleware(CacheMiddleware(inner), decide=policy)
        inner = RateLimitMiddleware(inner, requests=requests, window=60)
        inner = TenantMiddleware(inner, store=self.store, damping=self.damping, remember=0)
        inner = MetricsMiddleware(TracingMiddleware(inner, traces=self.traces), meters=self.meters)
        inner = LoggingMiddleware(inner, logger=self.log)
        self.app = SecurityHeadersMiddleware(inner, **limits)
        self.secrets: dict[str, str] = {}
        self.keys: dict[str, ApiKey] = {}

    async def tenant(self, name: str, *, key: Mapping[str, Any] | None = None, **fields: Any) -> str:
        """A tenant with a key; the secret. ``key`` and ``fields`` are those of the key and of the tenant."""
        made, secret = new_key(name)
        await self.store.put_tenant(Tenant(name, **{"budget": 10**6 * NANO_PER_USD, **fields}))
        self.keys[name] = replace(made, **(key or {}))
        await self.store.add_key(self.keys[name])
        self.secrets[name] = secret
        return secret

    def headers(self, name: str = "a", *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """The headers of a tenant's call."""
        host = (b"host", b"gateway.example")
        return [host, JSON, (b"authorization", b"Bearer " + self.secrets[name].encode()), *more]

    async def ask(
        self,
        body: Any = CHAT,
        path: str = "/v1/chat/completions",
        *,
        tenant: str = "a",
        more: Sequence[tuple[bytes, bytes]] = (),
        **scope: Any,
    ) -> Answer:
        """A tenant's call and its whole answer."""
        return await ask(self.app, body, path, headers=self.headers(tenant, *more), **scope)

    def talk(self, body: Any = CHAT, path: str = "/v1/chat/completions", *, tenant: str = "a", **scope: Any) -> Any:
        """A tenant's call under way."""
        return call(self.app, body, path, headers=self.headers(tenant), **scope)

    async def spent(self, name: str = "a") -> int:
        """Nano-USD that a tenant has spent."""
        return (await self.store.balance(name)).spent

    async def held(self, name: str = "a") -> int:
        """Nano-USD that are set aside for a tenant."""
        return (await self.store.balance(name)).held


async def house(adapters: Sequence[Adapter] = (), **how: Any) -> House:
    """A house with the tenants ``a`` and ``b``."""
    made = House(adapters, **how)
    await made.tenant("a")
    await made.tenant("b")
    return made


def up(url: str, **how: Any) -> OpenAIAdapter:
    """A provider ``up`` with the model ``m`` at a URL."""
    return OpenAIAdapter("up", url + "/v1", "sk-the-providers-own-key-123456", models=("m",), **how)


def chat(**fields: Any) -> dict[str, Any]:
    """A chat with other fields."""
    return {**CHAT, **fields}


def raw(text: str) -> bytes:
    """A chat's bytes, written by hand: ``text`` stands in the place of its last brace."""
    return json.dumps(CHAT).encode()[:-1] + b"," + text.encode() + b"}"
