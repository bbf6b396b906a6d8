"""What is special about the ledger in PostgreSQL: processes side by side, lapses, what the tables can keep."""

from __future__ import annotations

import asyncio

import pytest

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import About, Amount, Balance, Hold, Limit, Usage
from asgi_llm_gateway.stores.base import KEEP_LAPSED, Ledger
from asgi_llm_gateway.stores.calllog import SQLCallLog
from asgi_llm_gateway.stores.postgres import PostgresLedger

from .postgres_parts import NOTHING, NOW, limit, opened, record_of, run_sql, take, url

__all__ = ["url"]


async def test_it_keeps_its_protocol(url: str) -> None:
    """A call from hold to record, with what every verb says."""
    async with opened(url) as ledger:
        assert isinstance(ledger, Ledger)
        hold = await take(ledger, 100, most=1000)
        assert isinstance(hold, Hold)
        assert await ledger.balance("team") == Balance(0, 100, 0, 10)
        raised = await ledger.raise_hold(hold, Amount(150, 10), limits=limit(1000))
        assert raised == hold._replace(money=150)
        assert await ledger.renew(hold, now=NOW, ttl=90.0)
        assert await ledger.settle(hold, record_of(hold, 170))
        assert not await ledger.settle(hold, record_of(hold, 170))
        assert not await ledger.release(hold)
        assert not await ledger.renew(hold, now=NOW, ttl=90.0)
        assert await ledger.balance("team") == Balance(170, 0, 7, 0)
    log = SQLCallLog(url)
    page = await log.records("team")
    assert list(page.records) == [record_of(hold, 170, overdraft=20)]
    assert [(note.kind, note.amount) for note in await log.adjustments("team")] == [("overdraft", 20)]
    assert await log.stats() == (1, 3, 4, 170)
    await log.close()


async def test_two_ledgers_let_in_exactly_what_fits(url: str) -> None:
    """Fifty at once on each of two ledgers, at head-room for seven."""
    async with opened(url, patience=10.0) as one, opened(url, patience=10.0) as other:
        held = await asyncio.gather(*(take((one, other)[n % 2], 100, most=799) for n in range(100)))
        won = [hold for hold in held if isinstance(hold, Hold)]
        assert len(won) == 7
        assert await other.balance("team") == Balance(0, 700, 0, 70)
        # Whoever took it, either may end it, and both at once end it once.
        ended = await asyncio.gather(
            *(ledger.settle(hold, record_of(hold, 1)) for hold in won for ledger in (one, other))
        )
        assert sum(ended) == 7
        assert await one.balance("team") == Balance(7, 0, 49, 0)


async def test_many_accounts_in_any_order_make_no_deadlock(url: str) -> None:
    """Holds over two accounts, named in opposite orders by two ledgers, fresh accounts all the time."""
    async with opened(url, patience=20.0) as one, opened(url, patience=20.0) as other:

        async def call(ledger: PostgresLedger, number: int) -> None:
            accounts = [Limit(f"key{number % 5}", number // 20, None, None), Limit("", number // 20, None, None)]
            if ledger is other:
                accounts.reverse()
            hold = await ledger.hold(
                f"team{number % 3}", hold_id=new_hold_id(), limits=tuple(accounts), least=NOTHING,
                wanted=Amount(5, 1), now=NOW, ttl=60.0,
            )  # fmt: skip
            assert isinstance(hold, Hold)
            assert await ledger.settle(hold, record_of(hold, 3))

        async def worker(ledger: PostgresLedger, first: int) -> None:
            for number in range(first, 200, 8):
                await call(ledger, number)

        await asyncio.gather(*(worker(ledger, first) for ledger in (one, other) for first in range(8)))
        log = SQLCallLog(url)
        assert (await log.stats()).requests == 400
        assert (await log.stats()).cost == 1200
        await log.close()
        sums = "select sum(spent)::bigint * 1000 + sum(held)::bigint from balances where account = ''"
        assert await run_sql(url, sums) == 1_200_000
        assert await run_sql(url, "select deadlocks from pg_stat_database where datname = current_database()") == 0


async def test_what_cannot_be_kept_fails_only_who_asked(url: str) -> None:
    """Money beyond 63 bits fails alone; a model's name with NUL or half a character is kept as near as can be."""
    async with opened(url) as ledger:
        wanted = Amount(2**63, 1)
        answers = await asyncio.gather(
            take(ledger, 1),
            ledger.hold("team", hold_id="big", limits=limit(), least=wanted, wanted=wanted, now=NOW, ttl=1.0),
            ledger.hold("team", hold_id="odd", limits=limit(), least=NOTHING, wanted=Amount(2, 1), now=NOW, ttl=1.0,
                        about=About("r\0", "", None, "\ud800x")),
            take(ledger, 1), return_exceptions=True,
        )  # fmt: skip
        assert [type(answer) for answer in answers] == [Hold, StoreError, Hold, Hold]
        odd = answers[2]
        assert isinstance(odd, Hold)
        assert await ledger.settle(odd, record_of(odd, 1)._replace(model="\ud800x", request_id="r\0"))
        assert await ledger.balance("team") == Balance(1, 2, 7, 20)
        with pytest.raises(StoreError):
            await ledger.balance("team", window=2**70)


async def test_what_lapsed_is_swept_by_the_next_call(url: str) -> None:
    """A killed process' hold makes room for another's call, charged whole or released, without anybody calling sweep."""
    for lapsed, spent in (("charge", 100), ("release", 0)):
        async with opened(url) as dead:
            hold = await take(dead, 100, tenant=lapsed, ttl=-1.0)
        async with opened(url, lapsed=lapsed) as ledger:
            assert isinstance(hold, Hold)
            assert isinstance(await take(ledger, 50, most=spent + 50, tenant=lapsed), Hold)
            assert (await ledger.balance(lapsed)).spent == spent
            # The truth comes late, and takes the place of the whole.
            assert await ledger.settle(hold, record_of(hold, 30))
            assert (await ledger.balance(lapsed)).spent == 30
            log = SQLCallLog(url)
            assert list((await log.records(lapsed)).records) == [record_of(hold, 30)]
            assert await log.stats(tenant=lapsed) == (1, 3, 4, 30)
            await log.close()


async def test_a_sweep_ends_any_number(url: str) -> None:
    """More than one chunk; each once, by whichever of two sweeps; and the oldest are forgotten in the end."""
    async with opened(url, patience=20.0) as one, opened(url, patience=20.0) as other:
        await take(one, 0)
        await asyncio.gather(*(take(one, 1) for _ in range(1200)))
        assert await one.sweep(NOW) == 0
        swept = await asyncio.gather(one.sweep(NOW + 61), other.sweep(NOW + 61))
        assert sum(swept) == 1201
        assert await one.balance("team") == Balance(1200, 0, 12010, 0)
        assert await run_sql(url, "select count(*) from holds") == 1201
        assert await one.sweep(NOW + 61 + KEEP_LAPSED) == 0
        assert await run_sql(url, "select count(*) from holds") == 0


async def test_calls_settled_elsewhere_are_archived_once(url: str) -> None:
    """However often they come, by whoever, at once; a late truth replaces what lapsed."""
    holds = [Hold(f"h{number}", "team", 50, 5, NOW, (("", 0), ("key", 7))) for number in range(30)]
    whole = Usage(0, 7, estimated=True)  # as a lapse books it
    lapsed = [(hold, record_of(hold, 50, lapsed=True)._replace(usage=whole)) for hold in holds]
    async with opened(url, patience=10.0) as one, opened(url, patience=10.0) as other:
        await asyncio.gather(*(ledger.archive(lapsed) for ledger in (one, other) for _ in range(3)))
        assert await one.balance("team") == Balance(1500, 0, 210, 0)
        truth = [(holds[0], record_of(holds[0], 80, overdraft=30)), (holds[0], record_of(holds[0], 80, overdraft=30))]
        await asyncio.gather(*(ledger.archive(truth) for ledger in (one, other)))
        await one.archive(lapsed)
        assert await one.balance("team") == await one.balance("team", "key", 7) == Balance(1530, 0, 210, 0)
        log = SQLCallLog(url)
        assert await log.stats(tenant="team") == (30, 3, 207, 1530)
        assert [note.amount for note in await log.adjustments("team")] == [30]
        await log.close()


async def test_a_closed_ledger_opens_again(url: str) -> None:
    """After a lifespan's end, the next call finds everything."""
    async with opened(url) as ledger:
        await take(ledger, 5)
        await ledger.close()
        assert isinstance(await take(ledger, 6), Hold)
        assert await ledger.balance("team") == Balance(0, 11, 0, 20)
