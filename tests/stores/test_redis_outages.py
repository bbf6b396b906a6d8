"""Redis down, frozen, full, read-only, empty or out of date: never a free call, never a hang, and no restart of ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import Adjustment, Amount, Balance, Hold, Limit, Refusal
from asgi_llm_gateway.stores import _redis_wire
from asgi_llm_gateway.stores.redis import RedisLedger

from .redis_parts import ACME, BookArchive, drained, held, hold, record, spend, until
from .redis_servers import RedisServer, binaries, redis_server

pytestmark = pytest.mark.real  # servers and processes of its own, for long

PATIENCE = 0.5
SLACK = 0.4
"""Seconds that a busy machine may add."""


KINDS = [*binaries(), "cluster"]


@pytest.fixture(params=binaries())
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of each kind, that loses all when it is killed."""
    cluster = request.param == "cluster"
    with redis_server(tmp_path / "redis", binary="valkey" if cluster else request.param, cluster=cluster) as running:
        yield running


@asynccontextmanager
async def opened(server: RedisServer, archive: BookArchive, **more: Any) -> AsyncIterator[RedisLedger]:
    """A ledger of little patience."""
    ledger = RedisLedger(server.url, archive=archive, patience=PATIENCE, **more)
    try:
        yield ledger
    finally:
        await ledger.close()


async def refused_in_time(ledger: RedisLedger, *calls: Any) -> None:
    """All of it fails with StoreError, within the patience."""
    begun = time.monotonic()
    found = await asyncio.gather(*(calls or [hold(ledger, 1) for _ in range(20)]), return_exceptions=True)
    assert time.monotonic() - begun < PATIENCE + SLACK
    assert [type(one) for one in found] == [StoreError] * len(found), found


# -- the server is away ------------------------------------------------------------------------------------------------


async def test_a_server_that_forgot_its_scripts_gets_them_again(server: RedisServer) -> None:
    """After SCRIPT FLUSH, in the middle of work, all verbs go on."""
    async with opened(server, BookArchive()) as ledger:
        await spend(ledger, 1)
        for _ in range(5):
            assert server.ask("SCRIPT", "FLUSH") == "+OK"
            await asyncio.gather(*[spend(ledger, 1) for _ in range(20)])
        assert await ledger.balance(ACME) == Balance(spent=101)


async def test_a_dead_server_is_an_error_and_its_return_is_noticed(tmp_path: Path) -> None:
    """Killed and started again with all its data: StoreError in between, and afterwards nothing is missing."""
    archive = BookArchive()
    with redis_server(tmp_path / "redis", keep=True) as server:
        async with opened(server, archive) as ledger:
            kept = await held(ledger, 100)
            server.kill()
            await refused_in_time(ledger)
            await refused_in_time(
                ledger, ledger.settle(kept, record(kept, 60)), ledger.balance(ACME), ledger.sweep(0.0)
            )
            server.start()
            assert await ledger.settle(kept, record(kept, 60)) is True
            assert await ledger.balance(ACME) == Balance(spent=60)
            await drained(ledger)
    assert await archive.balance(ACME) == Balance(spent=60)


@pytest.mark.parametrize("server", KINDS, indirect=True)
async def test_a_frozen_server_makes_nobody_wait_longer_than_the_patience(server: RedisServer) -> None:
    """SIGSTOP: connections stay open and nothing answers. Holds undone meanwhile are not taken when it wakes."""
    archive = BookArchive()
    async with opened(server, archive) as ledger:
        kept = await held(ledger, 100)
        server.freeze()
        given_up = [new_hold_id() for _ in range(5)]
        await refused_in_time(ledger, *[hold(ledger, 10, hold_id=one) for one in given_up])
        await refused_in_time(ledger, *[ledger.release(Hold(one, ACME, 0, 0, 0.0)) for one in given_up])
        await refused_in_time(ledger)
        server.thaw()
        for one in given_up:
            await until(lambda one=one: ledger.release(Hold(one, ACME, 0, 0, 0.0)), lambda _: True)  # type: ignore[misc]
        await until(lambda: ledger.settle(kept, record(kept, 60)), lambda _: True)
        # What dead connections sent has been carried out by now, or never will be: only the twenty holds of 1 can be left.
        await asyncio.sleep(0.1)
        balance = await ledger.balance(ACME)
        assert balance.spent == 60
        assert balance.held <= 20
        await drained(ledger)
    assert await archive.balance(ACME) == Balance(spent=60)


async def test_a_full_server_takes_no_new_call_and_settles_those_that_run(server: RedisServer) -> None:
    """Out of memory: holds fail, running calls are booked, the outbox empties, and then there is room again."""
    archive = BookArchive()
    async with opened(server, archive) as ledger:
        one, two = await held(ledger, 100), await held(ledger, 100)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        await refused_in_time(ledger)
        assert await ledger.settle(one, record(one, 60)) is True
        assert await ledger.release(two) is True
        await until(lambda: archive.balance(ACME), lambda balance: balance == Balance(spent=60))
        await drained(ledger)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        await spend(ledger, 1)
        assert await ledger.balance(ACME) == Balance(spent=61)


async def test_a_server_that_evicts_keys_is_no_ledger(server: RedisServer) -> None:
    """With an allkeys policy accounts would vanish: it is refused, by name of the setting, until that is changed."""
    server.ask("CONFIG", "SET", "maxmemory", "100mb")
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    async with opened(server, BookArchive()) as ledger:
        with pytest.raises(StoreError, match="maxmemory-policy"):
            await hold(ledger, 1)
        server.ask("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        await spend(ledger, 1)


async def test_a_replica_takes_no_calls(server: RedisServer, tmp_path: Path) -> None:
    """Read-only after a failover the other way: StoreError, until it is a primary again."""
    with redis_server(tmp_path / "primary") as primary:
        async with opened(server, BookArchive()) as ledger:
            await spend(ledger, 1)
            server.ask("REPLICAOF", "127.0.0.1", str(primary.port))
            await refused_in_time(ledger)
            server.ask("REPLICAOF", "NO", "ONE")
            await until(lambda: spend(ledger, 1), lambda _: True)


# -- the server lost its data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", KINDS, indirect=True)
async def test_an_empty_server_knows_from_the_archive_what_was_spent(server: RedisServer) -> None:
    """Killed and back with nothing: spending, tokens and credit count on; the budget is not fresh again."""
    archive = BookArchive()
    limits = (Limit("", 0, 1000, None), Limit("key_1", 86400, 950, None))
    async with opened(server, archive) as ledger:
        await ledger.adjust(Adjustment("a", ACME, "credit", 50))
        await spend(ledger, 900, limits=limits)
        await drained(ledger)
        server.kill()
        server.start()
        got = await until(lambda: hold(ledger, 51, limits=limits), lambda _: True)
        assert got == Refusal(limits[1], "money", 900, 0)
        assert isinstance(await hold(ledger, 50, limits=limits), Hold)
        assert (await ledger.balance(ACME)) == Balance(900, 50, 0, 50, 50)


async def test_a_call_that_ran_while_the_data_was_lost_is_paid(server: RedisServer) -> None:
    """Nobody knows its hold any more: it is neither raised nor renewed, and its settle is booked all the same, once."""
    archive = BookArchive()
    async with opened(server, archive) as ledger:
        first, second, third = await held(ledger, 100), await held(ledger, 200), await held(ledger, 50)
        server.ask("FLUSHALL")
        assert await ledger.settle(first, record(first, 60, 7)) is True  # the account is not even there
        assert await ledger.settle(first, record(first, 60, 7)) is False
        assert await ledger.renew(second, now=time.time(), ttl=60.0) is False
        ended = await ledger.raise_hold(second, Amount(300, 300), limits=(Limit("", 0, 1000, None),))
        assert isinstance(ended, Refusal)
        assert ended.what == "ended"
        await spend(ledger, 1)  # now it is
        assert server.ask("SMEMBERS", "gw:tenants").endswith("acme")  # for the sweeps of others
        assert (await ledger.balance(ACME)) == Balance(spent=61, tokens_spent=7)
        assert await ledger.settle(second, record(second, 250)) is True
        assert await ledger.release(third) is False
        assert await ledger.balance(ACME) == Balance(spent=311, tokens_spent=7)
        await drained(ledger)
    assert await archive.balance(ACME) == Balance(spent=311, tokens_spent=7)
    assert archive.records[second.id].overdraft == 50


async def test_an_account_that_was_lost_alone_holds_nothing_for_older_calls(server: RedisServer) -> None:
    """Evicted while calls run: what they settle or give back takes nothing from what newer calls hold."""
    archive = BookArchive()
    async with opened(server, archive) as ledger:
        settled, released, raised = await held(ledger, 100), await held(ledger, 200), await held(ledger, 300)
        server.ask("DEL", "gw:{acme}:a::0")
        newer = await held(ledger, 10)
        assert await ledger.settle(settled, record(settled, 60)) is True
        assert await ledger.release(released) is True
        got = await ledger.raise_hold(raised, Amount(320, 320), limits=(Limit("", 0, 1000, None),))
        assert isinstance(got, Hold)
        assert await ledger.balance(ACME) == Balance(spent=60, held=330, tokens_held=330)
        assert await ledger.settle(got, record(got, 1)) is True
        assert await ledger.settle(newer, record(newer, 1)) is True
        assert await ledger.balance(ACME) == Balance(spent=62)
        await drained(ledger)
    assert await archive.balance(ACME) == Balance(spent=62)


async def test_what_is_booked_while_an_account_is_read_counts(server: RedisServer) -> None:
    """A settle and a credit between the read of the archive and the filling of the account: it is read once more."""
    archive = BookArchive()
    async with opened(server, archive) as ledger:
        old = await held(ledger, 300)
        server.ask("FLUSHALL")
        archive.gate = asyncio.Event()
        archive.read.clear()
        waiting = asyncio.create_task(hold(ledger, 700))
        await archive.read.wait()  # it has read that nothing was spent
        assert await ledger.settle(old, record(old, 299)) is True
        archive.gate.set()
        assert await waiting == await held(ledger, 700, hold_id=(await waiting).id)  # type: ignore[union-attr]
        assert await ledger.balance(ACME) == Balance(299, 700, 0, 700)

        server.ask("DEL", "gw:{acme}:a::0")
        await drained(ledger)
        archive.gate = asyncio.Event()
        archive.read.clear()
        waiting = asyncio.create_task(hold(ledger, 701))
        await archive.read.wait()  # it has read that there is no credit
        gate, archive.gate = archive.gate, None
        assert await ledger.adjust(Adjustment("a", ACME, "debit", 1)) is True
        gate.set()
        assert await waiting == Refusal(Limit("", 0, 1000, None), "money", 299, 0, -1)


async def test_accounts_are_filled_rightly_while_calls_end(server: RedisServer) -> None:
    """Lost again and again under load: when all is quiet, Redis and the archive agree with what was settled."""
    archive = BookArchive()
    limits = (Limit("", 0, 10**9, None),)
    settled = 0

    async def caller(ledger: RedisLedger) -> None:
        nonlocal settled
        for _ in range(60):
            kept = await until(lambda: hold(ledger, 5, limits=limits), lambda _: True)
            await asyncio.sleep(0.002)
            assert await ledger.settle(kept, record(kept, 3)) is True
            settled += 3

    async def loser() -> None:
        for _ in range(30):
            await asyncio.sleep(0.017)
            await asyncio.to_thread(server.ask, "DEL", "gw:{acme}:a::0")

    async with opened(server, archive) as one, opened(server, archive) as two:
        await asyncio.gather(*[caller(ledger) for _ in range(8) for ledger in (one, two)], loser())
        await drained(one)
        assert (await archive.balance(ACME)).spent == settled
        await held(one, 1, limits=limits)
        balance = await one.balance(ACME)
        assert balance.spent == settled
        assert balance.held == 1


@pytest.mark.parametrize("server", KINDS, indirect=True)
async def test_a_server_that_comes_back_with_old_data_catches_up(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed after more was settled than it had written to disk: the rest is read from the archive."""
    monkeypatch.setattr(_redis_wire, "RUNS_KNOWN", 0.0)  # a cluster is asked now and then only
    archive = BookArchive()
    async with opened(server, archive) as ledger:
        await spend(ledger, 100)
        await drained(ledger)
        assert server.ask("SAVE") == "+OK"
        await spend(ledger, 800)
        await ledger.adjust(Adjustment("a", ACME, "debit", 50))
        await drained(ledger)
        server.kill()
        server.start()
        assert (await until(lambda: ledger.balance(ACME), lambda _: True)).spent == 100
        assert isinstance(await hold(ledger, 51), Refusal)
        assert isinstance(await hold(ledger, 50), Hold)
        assert await ledger.balance(ACME) == Balance(900, 50, 0, 50, -50)
