"""What the proof found, each in the few steps that show it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import Amount, CallRecord, Hold, Limit, Refusal
from asgi_llm_gateway.stores import keeper
from asgi_llm_gateway.stores.memory import MemoryLedger
from asgi_llm_gateway.stores.migrate import upgrade
from asgi_llm_gateway.stores.redis import RedisLedger
from asgi_llm_gateway.stores.sqlite import SQLiteLedger

from ..stores.redis_servers import redis_server
from .callers import record

LIMITS = (Limit("", 0, 1000, None),)


class Gated(SQLiteLedger):
    """An archive that books when the test lets it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.open = asyncio.Event()
        self.open.set()

    async def archive(self, calls: Sequence[tuple[Hold, CallRecord]]) -> None:
        """See Archive."""
        await self.open.wait()
        await super().archive(calls)


async def _hold(ledger: RedisLedger, now: float) -> Hold | Refusal:
    amount = Amount(170, 10)
    return await ledger.hold(
        "t", hold_id=new_hold_id(), limits=LIMITS, least=amount, wanted=amount, now=now, ttl=10.0
    )  # fmt: skip


async def _tried(ledger: RedisLedger) -> Hold | Refusal | None:
    """A hold, or ``None`` where the look into the archive that others began has just run out of time."""
    try:
        return await _hold(ledger, 1013.0)
    except StoreError:
        return None


async def _drained(ledger: RedisLedger) -> None:
    async with asyncio.timeout(10):
        while await ledger.waiting():  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)


async def test_a_settle_after_the_lapse_and_a_restart_of_redis_is_counted_once(tmp_path: Path) -> None:
    """P3: an account that is read anew while the archive has the lapse's charge, and not yet what took its place."""
    upgrade(f"sqlite:///{tmp_path}/gateway.db")
    with redis_server(tmp_path / "redis", keep=True) as server:
        archive = Gated(tmp_path / "gateway.db")
        ledger = RedisLedger(server.url, archive=archive)
        hold = await _hold(ledger, 1000.0)
        assert isinstance(hold, Hold)
        assert await ledger.sweep(1011.0) == 1
        await _drained(ledger)
        archive.open.clear()
        assert await ledger.settle(hold, record(hold, 7, 7, 1012.0))
        server.kill()
        server.start()
        with pytest.raises(StoreError):  # what was spent is not known before the archive has it
            await _hold(ledger, 1012.0)
        archive.open.set()
        await _drained(ledger)
        async with asyncio.timeout(10):
            while not isinstance(await _tried(ledger), Hold):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        assert (await ledger.balance("t")).spent == (await archive.balance("t")).spent == 7
        await ledger.close()
        await archive.close()


async def test_one_failure_now_and_then_does_not_keep_settles_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure doubles the wait for the next try, up to a long one; a success ends that."""
    monkeypatch.setattr(keeper, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(keeper, "_LONGEST_WAIT", 3600.0)
    tries = count()

    class Shaky(MemoryLedger):
        async def release(self, hold: Hold) -> bool:
            """See Ledger. Every second time it fails."""
            if next(tries) % 2 == 0:
                raise StoreError("no answer")
            return False

    kept = keeper.Keeper(Shaky(), ttl=60)
    for number in range(40):
        kept.later(Hold(f"h{number}", "t", 0, 0, 0.0), None)
    async with asyncio.timeout(30):
        while kept.waiting:  # noqa: ASYNC110 - the keeper has no event for it
            await asyncio.sleep(0.01)
    await kept.close()
