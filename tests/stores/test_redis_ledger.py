"""The ledger on Redis: what is special to it. That it is a ledger, the suite over all backends says."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.records import Adjustment, Amount, Balance, Hold, Limit, Refusal
from asgi_llm_gateway.stores.memory import MemoryLedger
from asgi_llm_gateway.stores.redis import RedisLedger

from .redis_parts import ACME, ONE, BookArchive, Relay, drained, held, hold, record, spend, until
from .redis_servers import RedisServer, binaries, redis_server

KINDS = [*binaries(), "cluster"]


@pytest.fixture(scope="module", params=KINDS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running server of each kind, for the tests of this file."""
    binary = "valkey" if request.param == "cluster" else request.param
    with redis_server(tmp_path_factory.mktemp("redis"), binary=binary, cluster=request.param == "cluster") as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    """The same, empty."""
    shared.ask("FLUSHALL")
    return shared


@asynccontextmanager
async def opened(server: RedisServer, archive: BookArchive, **more: Any) -> AsyncIterator[RedisLedger]:
    """A ledger, closed at the end."""
    ledger = RedisLedger(more.pop("url", server.url), archive=archive, **{"patience": 20.0, **more})
    try:
        yield ledger
    finally:
        await ledger.close()


# -- the arithmetic ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1_000, 2**53 + 11, 2**61 + 7])
async def test_amounts_are_exact_to_the_last_unit(server: RedisServer, most: int) -> None:
    """A long run of verbs comes to the same sums, to the nano-USD, as in memory: also where a double would round."""
    dice = random.Random(most)
    archive, memory = BookArchive(), MemoryLedger()
    limits = (Limit("", 0, most, None), Limit("key_1", 86400, most // 2, most // 3))
    running: list[Hold] = []
    now = 1_000.0

    def amount(share: int) -> int:
        return dice.choice((0, 1, dice.randrange(1 + most // share), most // share))

    async with opened(server, archive) as ledger:
        for number in range(300):
            verb = dice.choice(("hold", "hold", "raise", "settle", "release", "renew", "adjust"))
            results: list[Any] = []
            one = dice.choice(running) if running else Hold("none", ACME, 0, 0, 0.0)
            wanted = Amount(amount(4), amount(8))
            least = Amount(min(amount(9), wanted.money), min(amount(9), wanted.tokens))
            cost = dice.choice((one.money, amount(5)))
            for each in (ledger, memory):
                match verb:
                    case "hold":
                        got: Any = await each.hold(
                            ACME, hold_id=f"h{number}", limits=limits, least=least, wanted=wanted, now=now, ttl=99.0
                        )
                    case "raise":
                        got = await each.raise_hold(one, wanted, limits=limits)
                    case "settle":
                        got = await each.settle(one, record(one, cost, wanted.tokens))
                    case "release":
                        got = await each.release(one)
                    case "renew":
                        got = await each.renew(one, now=now, ttl=dice.random() if each is ledger else 0.5)
                    case _:
                        kind = "credit" if number % 2 else "debit"
                        got = await each.adjust(Adjustment(f"a{number}", ACME, kind, wanted.money // 3))  # type: ignore[arg-type]
                results.append(got)
            assert results[0] == results[1], (number, verb)
            if verb in ("settle", "release"):
                running = [other for other in running if other.id != one.id]
            elif isinstance(results[0], Hold):
                running = [other for other in running if other.id != results[0].id] + [results[0]]
            for account in (("", 0), ("key_1", 86400)):
                assert await ledger.balance(ACME, *account) == await memory.balance(ACME, *account), (number, verb)
        await drained(ledger)
    page = await memory.records(ACME, limit=1000)
    assert archive.records == {kept.hold: kept for kept in page.records}
    for account in (("", 0), ("key_1", 86400)):
        there = await memory.balance(ACME, *account)
        assert (await archive.balance(ACME, *account)) == there._replace(held=0, tokens_held=0)


async def test_exactly_as_many_calls_pass_as_there_is_room_for(server: RedisServer) -> None:
    """Two gateways hammer one account that has money for seven calls: seven pass, whoever comes first."""
    archive = BookArchive()
    limits = (Limit("", 0, 7 * 2**50, None),)
    async with opened(server, archive) as one, opened(server, archive) as two:
        calls = [hold(ledger, 2**50, limits=limits) for _ in range(100) for ledger in (one, two)]
        kinds = Counter(type(got) for got in await asyncio.gather(*calls))
        assert kinds[Refusal] == 193
        assert (await two.balance(ACME)).held == 7 * 2**50


async def test_operations_that_arrive_together_share_a_round_trip(server: RedisServer) -> None:
    """Two hundred holds at once take a few reads of the server's socket, not two hundred."""

    def reads() -> int:
        facts = dict(line.split(":") for line in server.ask("INFO", "stats").splitlines() if ":" in line)
        return int(facts["total_reads_processed"])

    async with opened(server, BookArchive()) as ledger:
        await held(ledger, 1)
        before = reads()
        await asyncio.gather(*[held(ledger, 1) for _ in range(200)])
        assert reads() - before < 50


async def test_a_tenant_cannot_leave_its_slot(server: RedisServer) -> None:
    """An id with a brace would cut the part of the key that chooses the slot: it is refused before Redis hears of it."""
    async with opened(server, BookArchive()) as ledger:
        with pytest.raises(ValueError, match="not a tenant's id"):
            await hold(ledger, tenant="a}b")
        for tenant in ("a", "a.b-c_d", "0" * 64):
            await spend(ledger, 3, tenant=tenant)
            assert (await ledger.balance(tenant)).spent == 3


# -- verbs that are repeated -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", binaries(), indirect=True)  # a cluster's client asks for addresses, past the relay
async def test_a_verb_whose_answer_was_lost_gives_the_same_answer_again(server: RedisServer) -> None:
    """The connection breaks after the server did it: hold, settle and release are sent again, and count once."""
    archive = BookArchive()
    async with Relay.to(server.port) as relay, opened(server, archive, url=relay.url) as ledger:
        await spend(ledger, 1)
        await drained(ledger)
        relay.lose = 1
        kept = await held(ledger, 100)
        assert (await ledger.balance(ACME)).held == 100
        relay.lose = 1
        assert await ledger.settle(kept, record(kept, 60)) is True
        assert await ledger.settle(kept, record(kept, 60)) is False
        other = await held(ledger, 100)
        relay.lose = 1
        assert await ledger.release(other) is True
        assert await ledger.release(other) is False
        assert await ledger.balance(ACME) == Balance(spent=61)
        await drained(ledger)
    assert await archive.balance(ACME) == Balance(spent=61)


async def test_a_hold_that_was_undone_does_not_come_back(server: RedisServer) -> None:
    """A hold that arrives after its own release (over a connection thought dead) is not taken."""
    async with opened(server, BookArchive()) as ledger:
        await spend(ledger, 1)
        assert await ledger.release(Hold("late", ACME, 0, 0, 0.0)) is False
        with pytest.raises(Exception, match="has ended"):
            await hold(ledger, 10, hold_id="late")
        kept = await spend(ledger, 1)
        with pytest.raises(Exception, match="has ended"):
            await hold(ledger, 10, hold_id=kept.id)
        assert (await ledger.balance(ACME)).held == 0


async def test_a_settle_of_what_nobody_held_books_nothing(server: RedisServer) -> None:
    """A hold that this ledger never gave out is no reason to charge anybody."""
    async with opened(server, BookArchive()) as ledger:
        stranger = Hold("stranger", ACME, 10, 10, 1e12)
        assert await ledger.settle(stranger, record(stranger, 10)) is False
        assert await ledger.balance(ACME) == Balance()


# -- holds that lapse --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1, 2**53 + 3])
@pytest.mark.parametrize("lapsed", ["charge", "release"])
async def test_holds_of_a_dead_process_stand_in_nobodys_way(server: RedisServer, lapsed: Any, unit: int) -> None:
    """The next hold of the tenant ends those that lapsed, by the ledger's own policy, and a late settle is the truth."""
    archive = BookArchive()
    much = 80 * unit
    limits = (Limit("", 0, 100 * unit, None),)
    async with opened(server, archive, lapsed=lapsed) as ledger:
        dead = await held(ledger, much, limits=limits, now=1000.0)
        assert isinstance(await hold(ledger, much, limits=limits, now=1059.0), Refusal)
        assert await ledger.balance(ACME) == Balance(held=much, tokens_held=much)
        got = await hold(ledger, much, limits=limits, now=1061.0)
        assert isinstance(got, Refusal if lapsed == "charge" else Hold)
        await ledger.release(got if isinstance(got, Hold) else dead)
        charged = much if lapsed == "charge" else 0
        assert await ledger.balance(ACME) == Balance(spent=charged, tokens_spent=charged)
        assert await ledger.sweep(1061.0) == 0
        assert await ledger.renew(dead, now=1061.0, ttl=5.0) is False
        late = record(dead, 30 * unit + 1, 3)
        assert await ledger.settle(dead, late) is True
        assert await ledger.balance(ACME) == Balance(spent=late.cost, tokens_spent=3)
        await drained(ledger)
        assert await archive.balance(ACME) == Balance(spent=late.cost, tokens_spent=3)
        assert archive.records == {dead.id: late}


async def test_a_sweep_ends_the_holds_of_all_tenants(server: RedisServer) -> None:
    """Also of those that this process never heard of; what they were about is in the record."""
    archive = BookArchive()
    async with opened(server, archive) as ledger:
        for tenant in ("a", "b"):
            for _ in range(150):
                await held(ledger, 1, tenant=tenant, now=1000.0)
    async with opened(server, archive) as other:
        assert await other.sweep(1059.0) == 0
        assert await other.sweep(1060.0) == 300
        assert await other.sweep(1060.0) == 0
        await drained(other)
    assert await archive.balance("b") == Balance(spent=150, tokens_spent=150)
    one = next(iter(archive.records.values()))
    assert (one.request_id, one.key, one.model, one.started, one.ended, one.lapsed, one.aborted, one.cost) == (
        "req", "key_1", "m", 1.5, 1060.0, True, True, 1,
    )  # fmt: skip


# -- adjustments, and accounts from the archive ------------------------------------------------------------------------


async def test_adjustments_count_once_on_every_gateway(server: RedisServer) -> None:
    """Credits and debits from two gateways at once, one of them twice, while the account is being filled."""
    archive = BookArchive()
    async with opened(server, archive) as one, opened(server, archive) as two:
        notes = [Adjustment(f"adj_{n}", ACME, "credit", 2**n) for n in range(20)]
        verbs: list[Any] = [ledger.adjust(note) for note in notes for ledger in (one, two)]
        *booked, _, _ = await asyncio.gather(*verbs, held(one, 1), held(two, 1))
        assert booked.count(True) == 20
        assert await one.balance(ACME) == Balance(held=2, tokens_held=2, credit=2**20 - 1)
        assert isinstance(await hold(two, 2**20 + 990), Hold)


async def test_a_new_account_starts_from_what_is_archived(server: RedisServer) -> None:
    """A hundred first calls at once on an account that only the archive knows: its money counts, and it is read once."""
    archive = BookArchive()
    async with opened(server, archive) as ledger:
        await spend(ledger, 900)
        await drained(ledger)
        server.ask("FLUSHALL")
        assert await ledger.balance(ACME) == Balance(spent=900)
        got = await asyncio.gather(*[hold(ledger, 10) for _ in range(100)])
        assert Counter(type(one) for one in got)[Refusal] == 90


async def test_accounts_of_a_window_leave_redis_and_lifetimes_stay(server: RedisServer) -> None:
    """An account of a window expires some weeks after its last use; the account of a lifetime never does."""
    async with opened(server, BookArchive()) as ledger:
        await held(ledger, 1, limits=(*ONE, Limit("", 86400, None, None)))
        assert server.ask("TTL", "gw:{acme}:a::0") == ":-1"
        assert int(server.ask("TTL", "gw:{acme}:a::86400")[1:]) > 39 * 86400


# -- the outbox --------------------------------------------------------------------------------------------------------

_DYING = """
import asyncio, sys
from tests.stores.redis_parts import BookArchive, spend
from asgi_llm_gateway.stores.redis import RedisLedger

async def main():
    archive = BookArchive()
    ledger = RedisLedger(sys.argv[1], archive=archive)
    await spend(ledger, 1)
    archive.down = True  # from here on nothing leaves Redis
    await asyncio.gather(*[spend(ledger, 2) for _ in range(40)])
    print("settled", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_what_a_killed_process_settled_another_one_archives(server: RedisServer) -> None:
    """The money and the record are in Redis in one step; whoever comes next moves them on, without being asked."""
    root = Path(__file__).parents[2]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _DYING, server.url,
        cwd=root, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"settled\n"
    finally:
        child.kill()
        await child.wait()
    archive = BookArchive()
    async with opened(server, archive) as ledger:
        assert (await ledger.balance(ACME)).spent == 81
        await drained(ledger, within=20.0)  # the dead process' lock on the outbox ends by itself
    assert (await archive.balance(ACME)).spent in (80, 81)  # the first call may have been in the dead one's archive
    assert len(archive.records) in (40, 41)


async def test_entries_that_are_moved_twice_are_booked_once(server: RedisServer) -> None:
    """Two processes empty one outbox while the archive loses answers; each call is booked once, and none is lost."""
    archive = BookArchive()
    archive.forgetful = 3
    async with opened(server, archive) as one, opened(server, archive) as two:
        for _ in range(10):
            await asyncio.gather(*[spend(ledger, 1) for _ in range(20) for ledger in (one, two)])
        await drained(one)
    assert archive.forgetful == 0
    assert await archive.balance(ACME) == Balance(spent=400)
    assert len(archive.records) == 400
    assert archive.batches < 200


async def test_calls_go_on_while_the_archive_is_down(server: RedisServer) -> None:
    """What settles meanwhile waits in Redis, counted; it is moved when the archive is back, without a restart."""
    archive = BookArchive()
    async with opened(server, archive) as ledger:
        await spend(ledger, 1)
        await drained(ledger)
        archive.down = True
        for _ in range(30):
            await spend(ledger, 2)
        assert await ledger.waiting() == 30
        assert (await ledger.balance(ACME)).spent == 61
        with pytest.raises(Exception, match="archive"):
            await hold(ledger, 1, tenant="new")  # nobody can say what it has spent
        archive.down = False
        await spend(ledger, 1, tenant="new")
        await drained(ledger)
    assert await archive.balance(ACME) == Balance(spent=61)


async def test_one_tenants_calls_do_not_hold_up_the_others(server: RedisServer) -> None:
    """Where the archive does not take a tenant's calls, they wait, and those of all other tenants are booked."""
    archive = BookArchive()
    archive.refuses = "odd"
    async with opened(server, archive) as ledger:
        for tenant in ("a", "odd", "b"):
            await spend(ledger, 1, tenant=tenant)
        await until(ledger.waiting, lambda waiting: waiting == 1)
        assert sorted(booked.tenant for booked in archive.records.values()) == ["a", "b"]
        archive.refuses = ""
        await drained(ledger)
    assert await archive.balance("odd") == Balance(spent=1)


async def test_closing_moves_on_what_was_settled(server: RedisServer) -> None:
    """A gateway that ends in order leaves nothing in Redis; with the archive down it ends in time all the same."""
    archive = BookArchive()
    async with opened(server, archive) as ledger:
        await asyncio.gather(*[spend(ledger, 1) for _ in range(50)])
    assert len(archive.records) == 50
    async with asyncio.timeout(5):
        async with opened(server, archive) as ledger:
            await spend(ledger, 1)
            archive.down = True
    assert len(archive.records) == 50
