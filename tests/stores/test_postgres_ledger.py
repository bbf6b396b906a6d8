"""What is special about the ledger in PostgreSQL: connections that break, servers that stall, processes side by side."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg  # type: ignore[import-untyped]
import pytest

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import About, Adjustment, Amount, Balance, CallRecord, Hold, Limit, Refusal, Usage
from asgi_llm_gateway.stores import migrate
from asgi_llm_gateway.stores.base import KEEP_LAPSED, Ledger
from asgi_llm_gateway.stores.calllog import SQLCallLog
from asgi_llm_gateway.stores.postgres import PostgresLedger

NOW = 1_000_000.0
NOTHING = Amount(0, 0)


def limit(money: int | None = None, account: str = "", window: int = 0) -> tuple[Limit, ...]:
    """One account's limit."""
    return (Limit(account, window, money, None),)


async def take(
    ledger: PostgresLedger, money: int, *, most: int | None = None, tenant: str = "team", ttl: float = 60.0
) -> Hold | Refusal:
    """Hold an amount, all or nothing."""
    amount = Amount(money, 10)
    return await ledger.hold(
        tenant, hold_id=new_hold_id(), limits=limit(most), least=amount, wanted=amount, now=NOW, ttl=ttl,
        about=About("req", "trace", "key", "echo", NOW),
    )  # fmt: skip


def record_of(hold: Hold, cost: int, **more: Any) -> CallRecord:
    """What a call came to."""
    return CallRecord(
        hold.id, hold.tenant, "req", "trace", "key", "echo", "p", Usage(3, 4), cost, 200, NOW, NOW + 1, **more
    )


@pytest.fixture
def url(postgres_url: str) -> str:
    """A database with its tables."""
    migrate.upgrade(postgres_url)
    return postgres_url


@asynccontextmanager
async def opened(url: str, **more: Any) -> AsyncIterator[PostgresLedger]:
    """A ledger, closed at the end."""
    ledger = PostgresLedger(url, **more)
    try:
        yield ledger
    finally:
        await ledger.close()


async def run_sql(url: str, *statements: str) -> Any:
    """The last statement's first value, on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            found = await connection.fetchval(statement)
        return found
    finally:
        await connection.close()


class Proxy:
    """Stands between a ledger and the server's socket: hands bytes on until it is told to stall or to cut.

    Args:
        url: Where the server is.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        host = parse_qs(parts.query).get("host", [parts.hostname or "127.0.0.1"])[0]
        self._to = (host, parts.port or 5432)
        self._path = parts.path
        self._user = parts.netloc.rpartition("@")[0]
        self._open = asyncio.Event()
        self._open.set()
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut_after = b""  # once the client has said this, it never hears an answer again
        self.seen = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgresql://{self._user}@127.0.0.1:{port}{self._path}?sslmode=disable"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.go_on()
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        host, port = self._to
        if host.startswith("/"):
            server, forth = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            server, forth = await asyncio.open_connection(host, port)
        self._pairs.append((back, forth))
        muted = asyncio.Event()

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, asks: bool) -> None:
            try:
                while data := await source.read(65536):
                    await self._open.wait()
                    if not asks and muted.is_set():
                        back.transport.abort()
                        return
                    if asks and self.cut_after and self.cut_after in data:
                        self.cut_after = b""
                        self.seen += 1
                        muted.set()
                    sink.write(data)
                    await sink.drain()
            except OSError:
                pass
            finally:
                sink.close()

        for one in (pump(client, forth, asks=True), pump(server, back, asks=False)):
            task = asyncio.create_task(one)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def stall(self) -> None:
        """Nothing comes through from now on; connections stand."""
        self._open.clear()

    def go_on(self) -> None:
        """What waited goes through."""
        self._open.set()

    def cut(self) -> None:
        """End all connections at once."""
        for pair in self._pairs:
            for writer in pair:
                writer.transport.abort()
        self._pairs.clear()


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


async def eventually(verb: Callable[[], Awaitable[Any]]) -> Any:
    """The verb's answer once there is one."""
    end = time.monotonic() + 10.0
    while True:
        try:
            return await verb()
        except StoreError:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)


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
