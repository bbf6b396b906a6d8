"""What ``/ready`` looks at, over real sockets: what a look asks for, and what it takes for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway import create_app, settings
from asgi_llm_gateway.admin import parts
from asgi_llm_gateway.admin.health import Down
from asgi_llm_gateway.errors import SettingsError, StoreError
from asgi_llm_gateway.stores.memory import MemoryStore

from ..conversation import get
from ..servers import free_port
from ..stores.redis_servers import redis_server


class Server:
    """A TCP server that says ``said`` to whoever comes and keeps what it was told; ``None``: it says nothing, ever."""

    def __init__(self, said: bytes | None) -> None:
        self.said = said
        self.heard: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.heard.append(b"")
        at = len(self.heard) - 1
        try:
            if self.said is not None and self.said:
                self.heard[at] = await reader.readuntil(b"\r\n\r\n")
                writer.write(self.said)
                await writer.drain()
            else:
                self.heard[at] = await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(said: bytes | None) -> AsyncIterator[Server]:
    """A Server for the length of a test."""
    made = Server(said)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


async def look(part: Any) -> None:
    """One look at it."""
    await part.check()


async def test_a_provider_is_connected_to_and_asked_for_nothing() -> None:
    """No byte goes out: no call, no cost, no line in its log."""
    async with listening(None) as server:
        await look(parts.upstream("up", f"http://127.0.0.1:{server.port}/v1", 2, list))
        await asyncio.sleep(0.05)
        assert server.heard == [b""]


async def test_a_provider_that_cannot_be_reached_or_whose_breakers_are_open_is_down() -> None:
    """One breaker that is closed is enough: a model of it answers."""
    with pytest.raises(OSError, match="failed"):
        await look(parts.upstream("up", f"http://127.0.0.1:{free_port()}/v1", 2, list))
    with pytest.raises(Down, match="breaker"):
        await look(parts.upstream("up", None, 2, lambda: ["open", "open"]))
    await look(parts.upstream("up", None, 2, lambda: ["open", "closed"]))
    await look(parts.upstream("echo", None, 2, list))


async def test_opa_is_asked_by_its_health_api() -> None:
    """200 is well, 500 is not, and what speaks no HTTP is something else."""
    async with listening(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") as server:
        await look(parts.opa(f"http://127.0.0.1:{server.port}/base/", 2, fails="closed", counts=True))
        assert server.heard[0].startswith(b"GET /base/health HTTP/1.1\r\n")
    async with listening(b"HTTP/1.1 500 Internal Server Error\r\n\r\n") as server:
        with pytest.raises(Down, match="answered 500"):
            await look(parts.opa(f"http://127.0.0.1:{server.port}", 2, fails="closed", counts=True))
    async with listening(b"SSH-2.0-x\r\n") as server:
        with pytest.raises(Down, match="no HTTP"):
            await look(parts.opa(f"http://127.0.0.1:{server.port}", 2, fails="open", counts=False))
    async with listening(None) as server:
        with pytest.raises(TimeoutError):
            await look(parts.opa(f"http://127.0.0.1:{server.port}", 0.1, fails="open", counts=False))


@pytest.mark.parametrize("cluster", [False, True])
async def test_redis_is_looked_at_and_its_return_is_seen(cluster: bool, tmp_path: Path) -> None:
    """Killed and started again: down and up, by the same part."""
    with redis_server(tmp_path, cluster=cluster) as server:
        part = parts.redis("cache", server.url, 1.0)
        await look(part)
        server.kill()
        with pytest.raises((StoreError, Down)):
            await look(part)
        server.start()
        await look(part)


async def test_stores_are_read_and_nothing_is_written() -> None:
    """One look-up of nobody's key, one balance of nobody."""
    store = MemoryStore()

    async def opened() -> MemoryStore:
        return store

    await look(parts.store(opened))
    await look(parts.ledger(opened))
    assert await store.tenants() == []
    assert (await store.balance("")).spent == 0


async def test_every_part_of_a_configured_gateway_is_told_to_admins(configured: Any) -> None:
    """Store, ledger, OPA and the named providers; what is not configured is not there."""
    async with listening(b"HTTP/1.1 200 OK\r\n\r\n") as server:
        app = configured(OPA_URL=f"http://127.0.0.1:{server.port}", READY_UPSTREAMS="echo", GATEWAY_ADMIN_KEY="k" * 40)
        answer = await get(app, "/ready", headers=[(b"authorization", b"Bearer " + b"k" * 40)])
    assert answer.status == 200, answer.body
    found = {part["name"]: (part["state"], part["fails"], part["counts"]) for part in answer.json()["parts"]}
    assert found == {
        "store": ("ok", "closed", True),
        "ledger": ("ok", "closed", True),
        "opa": ("ok", "closed", False),
        "upstream:echo": ("ok", "closed", True),
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"READY_CHECKS": "store,redis"}, "READY_CHECKS: 'redis'"),
        ({"READY_CHECKS": "opa"}, "OPA_URL is not set"),
        ({"READY_UPSTREAMS": "nobody"}, "there is no provider 'nobody'; there are echo"),
        ({"READY_INTERVAL_SECONDS": "0"}, "READY_INTERVAL_SECONDS"),
        ({"SHUTDOWN_GRACE_SECONDS": "-1"}, "SHUTDOWN_GRACE_SECONDS"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(given: dict[str, str], said: str, configured: Any) -> None:
    """When the gateway is made, not at a probe."""
    with pytest.raises(SettingsError, match=said.replace("(", "\\(")):
        configured(**given)


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """``create_app`` with these settings."""

    def make(**given: str) -> Any:
        for name, text in {"GATEWAY_DATA_DIR": str(tmp_path / "data"), **given}.items():
            monkeypatch.setenv(name, text)
        settings.forget()
        return create_app()

    yield make
    settings.forget()
