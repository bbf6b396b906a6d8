"""The whole stack with sessions, over a store in memory, and peers that are driven by hand over ASGI websockets.

At its end a stage audits its ledger: nothing is held, and what was spent is what was recorded.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.damping import Damping
from asgi_llm_gateway.draining import drain
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.cache import CacheMiddleware
from asgi_llm_gateway.middleware.policy import PolicyMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.realtime import RealtimeMiddleware
from asgi_llm_gateway.middleware.security import SecurityHeadersMiddleware
from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.realtime import frames
from asgi_llm_gateway.realtime.limits import Limits
from asgi_llm_gateway.records import NANO_PER_USD, ApiKey, Price, Tenant
from asgi_llm_gateway.stores.memory import MemoryStore
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import Answer, ask, scope_of

MANY = 10**9
DEAR = Price(prompt=NANO_PER_USD, completion=2 * NANO_PER_USD)
"""A dollar a million tokens in, two out."""

CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
STREAM: dict[str, Any] = {**CHAT, "stream": True}
SLOW: dict[str, Any] = {**STREAM, "metadata": {"echo_delay_ms": "10000"}}
"""A stream whose first event comes when no test waits any more."""

PLENTY = "word " * 20_000
LIVELY = Limits(ping=0)
"""The default limits, and no pings between the frames."""


def yes(_: Any) -> bool:
    """A policy that allows everything."""
    return True


class Peer:
    """The client's end of one websocket."""

    def __init__(self, app: Any, scope: Mapping[str, Any]) -> None:
        self._in: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._out: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._gate = asyncio.Event()
        self._gate.set()
        self._joiner = frames.Joiner(MANY)
        self._gone = False
        self.messages = 0
        """Messages that have left the gateway."""
        self._in.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.ensure_future(app(dict(scope), self._in.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        await self._gate.wait()
        if self._gone:
            raise OSError("the peer has left")
        self.messages += 1
        self._out.put_nowait(message)

    def pause(self) -> None:
        """Read nothing: the gateway's ``send`` waits."""
        self._gate.clear()

    def resume(self) -> None:
        """Read again."""
        self._gate.set()

    def send(self, text: str) -> None:
        """One message as it is."""
        self._in.put_nowait({"type": "websocket.receive", "text": text})

    def say(self, kind: str, **fields: Any) -> None:
        """One frame."""
        self.send(json.dumps({"type": kind, **fields}))

    def chat(self, call: str, body: Any = None, **fields: Any) -> None:
        """Ask for a chat completion; a stream, where no body is given."""
        self.say("chat.completions.create", id=call, body=STREAM if body is None else body, **fields)

    async def message(self, timeout: float = 20.0) -> dict[str, Any]:
        """The next ASGI message; AssertionError where the app has ended and says no more."""
        getting = asyncio.ensure_future(self._out.get())
        await asyncio.wait({getting, self.task}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done() and self._out.empty():
            getting.cancel()
            assert self.task.done(), "nothing came in time"
            self.task.result()
            raise AssertionError("the session has ended")
        return await getting

    async def hear(self) -> dict[str, Any]:
        """The next frame, joined."""
        while True:
            message = await self.message()
            assert message["type"] == "websocket.send", message
            assert len(message["text"].encode()) <= 64 * 1024
            frame: dict[str, Any] = json.loads(message["text"])
            if frame["type"] != "part":
                return frame
            part = frames.read(message["text"])
            assert isinstance(part, frames.Part)
            whole = self._joiner.feed(part)
            if whole is not None:
                joined: dict[str, Any] = json.loads(whole)
                return joined

    async def rest(self, *calls: str) -> dict[str, list[dict[str, Any]]]:
        """The frames of these calls, by id, until all of them have ended."""
        found: dict[str, list[dict[str, Any]]] = {call: [] for call in calls}
        left = set(calls)
        while left:
            frame = await self.hear()
            if frame.get("id") in found:
                found[frame["id"]].append(frame)
                if frame["type"] in ("response.done", "error"):
                    left.discard(frame["id"])
        return found

    async def ask(self, call: str, kind: str = "chat.completions.create", body: Any = None) -> list[dict[str, Any]]:
        """A call and all its frames."""
        self.say(kind, id=call, body=STREAM if body is None else body)
        return (await self.rest(call))[call]

    async def last(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The frame ``session.closed`` and the close message."""
        while (frame := await self.hear())["type"] != "session.closed":
            pass
        closed = await self.message()
        assert closed["type"] == "websocket.close"
        return frame, closed

    def vanish(self) -> None:
        """Be gone without a word: the server notices at once, as for a killed process."""
        self._gone = True
        self._gate.set()
        self._in.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def end(self) -> None:
        """Leave, and wait for the session's end."""
        if not self.task.done():
            self.vanish()
        async with asyncio.timeout(20):
            await asyncio.wait({self.task})
        self.task.result()


class Stage:
    """The stack, and what it keeps. Tenant ``a`` has a key.

    Args:
        terminal: In the place of ProxyApp.
        requests: Calls that a tenant may make in a minute.
        policy: What PolicyMiddleware asks.
        limits: Those of sessions.
        store: One of the test's own.
        clock: Of keys and client secrets, in Unix seconds.
        more: Arguments of RealtimeMiddleware.
    """

    def __init__(
        self,
        *,
        terminal: Any = None,
        requests: int = MANY,
        policy: Any = yes,
        limits: Limits = LIVELY,
        store: MemoryStore | None = None,
        clock: Callable[[], float] = time.time,
        **more: Any,
    ) -> None:
        self.store = store or MemoryStore()
        self.traces = TraceLog()
        self.prices = PriceTable({"echo": DEAR, "m": DEAR})
        proxy = terminal or ProxyApp(router=Router([EchoAdapter()], {}), prices=self.prices, max_retries=0)
        inner: Any = StructuredOutputMiddleware(proxy)
        inner = BudgetMiddleware(inner, ledger=self.store, prices=self.prices)
        inner = PolicyMiddleware(CacheMiddleware(inner), decide=policy)
        inner = RateLimitMiddleware(inner, requests=requests, window=60)
        inner = self.realtime = RealtimeMiddleware(inner, store=self.store, limits=limits, clock=clock, **more)
        inner = TenantMiddleware(inner, store=self.store, damping=Damping(longest=0), remember=0, clock=clock)
        self.app: Any = SecurityHeadersMiddleware(TracingMiddleware(inner, traces=self.traces))
        self.secrets: dict[str, str] = {}
        self.keys: dict[str, ApiKey] = {}
        self._peers: list[Peer] = []

    async def tenant(self, name: str, *, key: Mapping[str, Any] | None = None, **fields: Any) -> str:
        """A tenant with a key; the secret."""
        made, secret = new_key(name)
        await self.store.put_tenant(Tenant(name, **{"budget": 10**6 * NANO_PER_USD, **fields}))
        self.keys[name] = replace(made, **(key or {}))
        await self.store.add_key(self.keys[name])
        self.secrets[name] = secret
        return secret

    def bearer(self, name: str = "a") -> tuple[bytes, bytes]:
        """The header with a tenant's key."""
        return (b"authorization", b"Bearer " + self.secrets[name].encode())

    def dial(
        self,
        headers: Iterable[tuple[bytes, bytes]] | None = None,
        *,
        subprotocols: Iterable[str] = (),
        path: str = "/v1/realtime/ws",
        **more: Any,
    ) -> Peer:
        """A peer before its handshake is answered; with tenant a's key, where no headers are given."""
        sent = [self.bearer()] if headers is None else list(headers)
        scope = scope_of(path, headers=[(b"host", b"gateway.example"), *sent])
        del scope["method"]
        scope |= {"type": "websocket", "scheme": "ws", "subprotocols": list(subprotocols),
                  "extensions": {"websocket.http.response": {}}, **more}  # fmt: skip
        peer = Peer(self.app, scope)
        self._peers.append(peer)
        return peer

    async def connect(self, headers: Iterable[tuple[bytes, bytes]] | None = None, **more: Any) -> Peer:
        """A peer with a session; its first frame is heard."""
        peer = self.dial(headers, **more)
        assert (await peer.message())["type"] == "websocket.accept"
        assert (await peer.hear())["type"] == "session.created"
        return peer

    async def refused(self, headers: Iterable[tuple[bytes, bytes]] | None = None, **more: Any) -> tuple[int, str]:
        """Status and code of a handshake that is refused."""
        peer = self.dial(headers, **more)
        start = await peer.message()
        assert start["type"] == "websocket.http.response.start", start
        body = json.loads((await peer.message())["body"])
        return start["status"], body["error"]["code"]

    async def http(self, method: str, path: str, body: Any = None, *, headers: Any = None, **more: Any) -> Answer:
        """A plain request, with tenant a's key where no headers are given."""
        sent = [self.bearer(), (b"content-type", b"application/json")] if headers is None else list(headers)
        host = (b"host", b"gateway.example")
        return await ask(self.app, body, path, method=method, headers=[host, *sent], **more)

    async def spent(self, name: str = "a") -> int:
        """Nano-USD that a tenant has spent."""
        return (await self.store.balance(name)).spent

    async def holding(self, name: str = "a") -> None:
        """Wait until something is held: a call is under way."""
        async with asyncio.timeout(20):
            while not (await self.store.balance(name)).held:  # noqa: ASYNC110 - the ledger tells nobody
                await asyncio.sleep(0.005)

    async def audit(self) -> None:
        """Every hold has ended, and the sum of what was settled is that of the records."""
        assert not drain().calls, "a call has not ended"
        for name in self.secrets:
            balance = await self.store.balance(name)
            records = (await self.store.records(name, limit=1000)).records
            assert (balance.held, balance.tokens_held) == (0, 0), balance
            assert balance.spent == sum(record.cost for record in records)

    async def close(self) -> None:
        """All peers leave."""
        for peer in self._peers:
            await peer.end()


@asynccontextmanager
async def stage(**more: Any) -> AsyncIterator[Stage]:
    """A stage with tenant a, audited at its end."""
    made = Stage(**more)
    await made.tenant("a")
    try:
        yield made
    finally:
        await made.close()
    await made.audit()
