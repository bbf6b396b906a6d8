"""The parts that ``/ready`` looks at: a read of one row, a word with Redis or OPA, a connection to a provider. Never a call."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from .._closing import on_close
from .._perloop import PerLoop
from ..stores.base import Ledger, TenantStore
from .health import Down, Part

_NOBODY = "0" * 64  # the digest of no key

Fails = Callable[[], Awaitable[None]]


def store(opened: Callable[[], Awaitable[TenantStore]], *, counts: bool = True) -> Part:
    """Tenants and keys: one look-up."""

    async def check() -> None:
        await (await opened()).identify(_NOBODY)

    return Part("store", check, "closed", counts)


def ledger(opened: Callable[[], Awaitable[Ledger]], *, counts: bool = True) -> Part:
    """Money: the balance of nobody."""

    async def check() -> None:
        await (await opened()).balance("", "", 0)

    return Part("ledger", check, "closed", counts)


def redis(name: str, url: str, patience: float) -> Part:
    """What Redis shares beside the ledger (``rate_limit``, ``cache``): processes do without it, each by itself.

    Args:
        name: What it is used for.
        url: As REDIS_URL.
        patience: Seconds.
    """
    wires: PerLoop[Fails] = PerLoop()

    def connect() -> Fails:
        from ..stores._redis_wire import Cluster, Plain, run

        scheme, _, rest = url.partition("://")
        cluster = scheme.endswith("+cluster")
        wire = Cluster(f"{scheme.removesuffix('+cluster')}://{rest}", patience) if cluster else Plain(url, patience)

        async def ask() -> None:
            reply = (await run(wire, [("GET", "gw:ready")], patience))[0]
            if isinstance(reply, Exception):
                raise Down(f"Redis: {type(reply).__name__}")

        async def close() -> None:
            wires.pop()
            await wire.close()

        on_close(close)
        return wires.put(ask)

    async def check() -> None:
        await (wires.get() or connect())()

    return Part(name, check, "local", False)


def opa(url: str, patience: float, *, fails: str, counts: bool) -> Part:
    """OPA, by its health API. Source: OPA documentation, "REST API", "Health API"."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/") + "/health"

    async def check() -> None:
        async with asyncio.timeout(patience):
            status = await _get(parts.scheme, parts.hostname or "", parts.port, path)
        if status != 200:
            raise Down(f"OPA's health API answered {status}")

    return Part("opa", check, "open" if fails == "open" else "closed", counts)


def upstream(name: str, url: str | None, patience: float, states: Callable[[], Sequence[str]]) -> Part:
    """A provider: its breakers, and a connection that asks for nothing.

    Args:
        name: The provider.
        url: Its base URL; ``None`` for one that is embedded.
        patience: Seconds for the connection.
        states: The breakers of its targets: ``closed``, ``open``, ``half_open``.
    """

    async def check() -> None:
        found = states()
        if found and all(one == "open" for one in found):
            raise Down("its breaker is open: calls to it failed")
        if url is not None:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            async with asyncio.timeout(patience):
                _, writer = await asyncio.open_connection(parts.hostname or "", port)
            writer.transport.abort()

    return Part(f"upstream:{name}", check, "closed", True)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Made once: it reads the system's certificates."""
    return ssl.create_default_context()


async def _get(scheme: str, host: str, port: int | None, path: str) -> int:
    """The status of a GET."""
    tls = _tls() if scheme == "https" else None
    reader, writer = await asyncio.open_connection(host, port or (443 if tls else 80), ssl=tls)
    try:
        name = f"[{host}]" if ":" in host else host
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n".encode())
        line = (await reader.readline()).split()
        if len(line) < 2 or not line[1].isdigit():
            raise Down("what answered speaks no HTTP")
        return int(line[1])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


__all__ = ["ledger", "opa", "redis", "store", "upstream"]
