"""The ledger in PostgreSQL when connections break, answers are lost, and servers stall or are away."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import Adjustment, Amount, Balance, Hold, Refusal
from asgi_llm_gateway.stores.calllog import SQLCallLog
from asgi_llm_gateway.stores.postgres import PostgresLedger

from .postgres_parts import NOW, Proxy, eventually, limit, opened, record_of, run_sql, take, url

__all__ = ["url"]


async def test_a_server_that_ends_connections_is_not_noticed(url: str) -> None:
    """After an administrator's ``pg_terminate_backend`` the next call goes through, on a fresh connection."""
    end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where pid <> pg_backend_pid()" \
          " and datname = current_database()"  # fmt: skip
    async with opened(url) as ledger:
        hold = await take(ledger, 100)
        assert isinstance(hold, Hold)
        assert await ledger.balance("team") == Balance(0, 100, 0, 10)
        assert await run_sql(url, end) == 2
        assert await ledger.settle(hold, record_of(hold, 60))
        assert await ledger.balance("team") == Balance(60, 0, 7, 0)


Verb = Callable[[PostgresLedger, Hold], Awaitable[Any]]


@pytest.mark.parametrize(
    ("verb", "answer", "after"),
    [
        (lambda ledger, hold: ledger.settle(hold, record_of(hold, 60)), True, Balance(60, 0, 7, 0)),
        (lambda ledger, hold: ledger.release(hold), True, Balance()),
        (lambda ledger, hold: ledger.renew(hold, now=NOW, ttl=99.0), True, Balance(0, 100, 0, 10)),
        (lambda ledger, hold: take(ledger, 5), None, Balance(0, 105, 0, 20)),
        (
            lambda ledger, hold: ledger.adjust(Adjustment("adj", "team", "credit", 7, created=NOW)),
            True,
            Balance(0, 100, 0, 10, 7),
        ),
    ],
    ids=["settle", "release", "renew", "hold", "adjust"],
)
@pytest.mark.parametrize("word", [b"commit", b"begin"])
async def test_a_lost_answer_is_found_out(url: str, verb: Verb, answer: Any, after: Balance, word: bytes) -> None:
    """The connection breaks when the server has carried out a commit (or a begin) and nobody heard: done once, and said so."""
    async with Proxy(url) as proxy, opened(proxy.url) as ledger:
        hold = await take(ledger, 100)
        assert isinstance(hold, Hold)
        proxy.cut_after = word
        found = await verb(ledger, hold)
        assert proxy.seen == 1
        assert isinstance(found, Hold) if answer is None else found is answer
        assert await ledger.balance("team") == after
        # And the sums are what the records say.
        log = SQLCallLog(url)
        assert (await log.stats(tenant="team")).cost == after.spent
        await log.close()


async def test_who_settles_twice_in_one_lost_batch_is_told_once(url: str) -> None:
    """Of two that settle one hold, one ended it: also when the commit's answer was lost."""
    async with Proxy(url) as proxy, opened(proxy.url) as ledger:
        hold = await take(ledger, 100)
        assert isinstance(hold, Hold)
        proxy.cut_after = b"commit"
        assert await asyncio.gather(*(ledger.settle(hold, record_of(hold, 60)) for _ in range(3))) == [
            True,
            False,
            False,
        ]
        assert await ledger.balance("team") == Balance(60, 0, 7, 0)


async def test_a_server_that_stalls_fails_callers_in_time(url: str) -> None:
    """Each caller waits for its patience and no longer; when the server goes on, so does the ledger."""
    async with Proxy(url) as proxy, opened(proxy.url, patience=0.5) as ledger:
        hold = await take(ledger, 100)
        assert isinstance(hold, Hold)
        proxy.stall()
        for _ in range(2):
            begun = time.monotonic()
            answers = await asyncio.gather(
                ledger.settle(hold, record_of(hold, 60)),
                ledger.balance("team"),
                take(ledger, 1),
                return_exceptions=True,
            )
            assert [type(answer) for answer in answers] == [StoreError] * 3
            assert time.monotonic() - begun < 1.0
        proxy.go_on()
        await eventually(lambda: ledger.settle(hold, record_of(hold, 60)))
        log = SQLCallLog(url)
        assert (await log.stats(tenant="team")).cost == 60
        assert (await ledger.balance("team")).spent == 60
        await log.close()


async def test_one_who_keeps_an_account_locked_delays_but_stops_nobody(url: str) -> None:
    """A process that hangs in its transaction: callers fail in time, and go on when it has gone."""
    async with opened(url, patience=0.5) as ledger:
        hold = await take(ledger, 100)
        stuck = await asyncpg.connect(url)
        await stuck.execute("begin; select * from balances for update")
        begun = time.monotonic()
        with pytest.raises(StoreError, match="no answer"):
            await take(ledger, 1)
        assert time.monotonic() - begun < 1.0
        stuck.terminate()
        assert isinstance(await eventually(lambda: take(ledger, 1)), Hold)
        assert isinstance(hold, Hold)


async def test_a_server_that_is_away_is_a_store_error(url: str) -> None:
    """Nobody listens: StoreError at once, without the password; then somebody does."""
    async with Proxy(url) as proxy:
        late = proxy.url
        await proxy.__aexit__()
        async with opened(re.sub("//[^@]*@", "//postgres:hidden-word@", late)) as ledger:
            for verb in (lambda: take(ledger, 1), lambda: ledger.balance("team"), lambda: ledger.sweep(NOW)):
                with pytest.raises(StoreError) as refused:
                    await verb()
                assert "hidden-word" not in str(refused.value)


async def test_a_database_without_tables_is_a_store_error(postgres_url: str) -> None:
    """Not the driver's own error."""
    async with opened(postgres_url) as ledger:
        for verb in (lambda: take(ledger, 1), lambda: ledger.balance("team"), lambda: ledger.sweep(NOW)):
            with pytest.raises(StoreError):
                await verb()


async def test_connections_that_keep_breaking_lose_and_double_nothing(url: str) -> None:
    """Two ledgers while every connection is ended again and again: each hold is settled once, records are what was spent."""
    end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'broken'"
    told: dict[str, int] = {}

    async def call(ledger: PostgresLedger, number: int) -> None:
        hold_id, amount = new_hold_id(), Amount(10, 1)

        async def take_it() -> Hold | Refusal:
            return await ledger.hold(
                "team", hold_id=hold_id, limits=limit(35), least=amount, wanted=amount, now=NOW, ttl=9e9
            )

        hold = await eventually(take_it)
        if isinstance(hold, Hold):
            told[hold_id] = await eventually(lambda: ledger.settle(hold, record_of(hold, 0)))

    async def break_all() -> None:
        while True:
            await run_sql(url, end)
            await asyncio.sleep(0.015)

    broken = url + ("&" if "?" in url else "?") + "application_name=broken"
    async with opened(broken) as one, opened(broken) as other:
        breaking = asyncio.create_task(break_all())
        for turn in range(20):
            await asyncio.gather(*(call((one, other)[n % 2], turn) for n in range(8)))
        breaking.cancel()
        await asyncio.gather(breaking, return_exceptions=True)
        # A caller who heard StoreError and asked again may be told that another try of his own did it.
        assert await one.balance("team") == Balance(0, 0, 7 * len(told), 0)
        assert await run_sql(url, "select count(*) from holds") == 0
        assert await run_sql(url, "select count(*) from records") == len(told)
        assert await run_sql(url, "select requests from sums") == len(told)
        assert len(told) >= 60
