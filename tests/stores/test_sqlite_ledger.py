"""What is special to the ledger in a SQLite file: group commit, sweeping, locks, faults. Processes are next door."""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import About, Adjustment, Amount, Balance, CallRecord, Hold, Limit, Refusal, Usage
from asgi_llm_gateway.stores import _sqlite_file
from asgi_llm_gateway.stores._sqlite_rows import CHUNK
from asgi_llm_gateway.stores._sqlite_turn import Turn
from asgi_llm_gateway.stores.base import KEEP_LAPSED, Archive, Ledger
from asgi_llm_gateway.stores.migrate import ensure
from asgi_llm_gateway.stores.sqlite import SQLiteLedger


def ledger_at(path: str | Path, *, patience: float = 60.0, **more: Any) -> SQLiteLedger:
    """A ledger whose callers wait however busy the machine is."""
    return SQLiteLedger(path, patience=patience, **more)


async def take(ledger: Ledger, money: int = 10, **given: Any) -> Hold | Refusal:
    """A hold on the tenant's account; ``hold_id``, ``limit``, ``now`` and ``ttl`` may be given."""
    return await ledger.hold(
        given.get("tenant", "a"),
        hold_id=given.get("hold_id") or new_hold_id(),
        limits=(Limit("", 0, given.get("limit"), None),),
        least=Amount(money, 0),
        wanted=Amount(money, 7),
        now=given.get("now", 1000.0),
        ttl=given.get("ttl", 600.0),
        about=About("req", "trace", None, "m", 1000.0),
    )


async def taken(ledger: Ledger, money: int = 10, **given: Any) -> Hold:
    """A hold that was granted."""
    hold = await take(ledger, money, **given)
    assert isinstance(hold, Hold)
    return hold


def record(hold: Hold, cost: int = 4) -> CallRecord:
    """A record of the hold's call."""
    return CallRecord(hold.id, hold.tenant, "req", "trace", None, "m", "p", Usage(1, 2), cost, 200, 1000.0, 1001.0)


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """What the file holds, read as anybody would."""
    with closing(sqlite3.connect(path, timeout=10)) as db:
        return db.execute(query).fetchall()


def inner(ledger: SQLiteLedger) -> sqlite3.Connection:
    """The connection that the ledger writes with."""
    assert ledger._own is not None
    db = ledger._own.file._db
    assert db is not None
    return db


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody else, who knows of no turns, is writing."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield db
        db.execute("ROLLBACK")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database that has its tables."""
    ensure(f"sqlite:///{tmp_path}/gateway.db")
    return tmp_path / "gateway.db"


def test_it_is_a_ledger_and_an_archive(tmp_path: Path) -> None:
    """It keeps both protocols, making one touches no disk, and its first verb makes the tables."""
    ledger = ledger_at(tmp_path / "new.db")
    archive: Archive = ledger
    assert isinstance(ledger, Ledger)
    assert archive is ledger
    assert not (tmp_path / "new.db").exists()
    assert asyncio.run(ledger.balance("a")) == Balance()


@pytest.mark.parametrize("wrong", [":memory:", "", "a.db?mode=ro"])
def test_a_path_that_names_no_file_is_refused(wrong: str) -> None:
    """What could not be shared between processes is no ledger."""
    with pytest.raises(ValueError, match="path"):
        SQLiteLedger(wrong if wrong else "/")


async def test_what_arrives_in_one_turn_is_one_transaction(path: Path) -> None:
    """Holds, settles and releases of one turn of the loop share a commit, and the record costs none of its own."""
    ledger = ledger_at(path)
    first, second = await taken(ledger), await taken(ledger)
    statements: list[str] = []
    inner(ledger).set_trace_callback(statements.append)
    fresh, settled, released, balance = await asyncio.gather(
        take(ledger), ledger.settle(first, record(first)), ledger.release(second), ledger.balance("a")
    )
    assert isinstance(fresh, Hold)
    assert (settled, released, balance) == (True, True, Balance(4, 10, 3, 7))
    assert [text.split()[0] for text in statements if text.startswith(("BEGIN", "COMMIT"))] == ["BEGIN", "COMMIT"]
    assert rows(path, "SELECT hold, cost FROM records") == [(first.id, 4)]
    await ledger.close()


async def test_looking_at_a_balance_takes_no_lock(path: Path) -> None:
    """Reading goes on while another process writes."""
    ledger = ledger_at(path)
    await taken(ledger)
    with locked(path):
        assert await ledger.balance("a") == Balance(0, 10, 0, 7)
    await ledger.close()


async def test_a_hold_that_comes_and_goes_in_one_batch_leaves_its_record_only(path: Path) -> None:
    """The hold never was a row; the money is booked."""
    ledger = ledger_at(path)
    await ledger.balance("a")
    hold = Hold("here-and-gone", "a", 10, 7, 1600.0)
    held, settled = await asyncio.gather(take(ledger, hold_id=hold.id), ledger.settle(hold, record(hold)))
    assert (held, settled) == (hold, True)
    assert await ledger.balance("a") == Balance(4, 0, 3, 0)
    assert rows(path, "SELECT count(*) FROM holds") == [(0,)]
    await ledger.close()


async def test_what_cannot_be_stored_fails_alone(path: Path) -> None:
    """A number over 64 bits is refused, and the calls that happen to share its batch are not."""
    ledger = ledger_at(path)
    await ledger.balance("a")
    good, bad, other = await asyncio.gather(
        take(ledger), take(ledger, 2**70), take(ledger, tenant="b"), return_exceptions=True
    )
    assert isinstance(good, Hold)
    assert isinstance(other, Hold)
    assert isinstance(bad, StoreError)
    assert await ledger.balance("a") == Balance(0, 10, 0, 7)
    await ledger.close()


async def test_a_verb_may_be_repeated(path: Path) -> None:
    """After an outcome that nobody learnt, the same verb with the same id changes nothing more."""
    ledger = ledger_at(path)
    hold = await taken(ledger)
    assert await taken(ledger, hold_id=hold.id) == hold
    assert await ledger.settle(hold, record(hold, 25))
    assert not await ledger.settle(hold, record(hold, 25))
    assert not await ledger.release(hold)
    credit = Adjustment("adj_1", "a", "credit", 100, created=1.0)
    once, twice = await asyncio.gather(ledger.adjust(credit), ledger.adjust(credit))
    assert (once, twice) == (True, False)
    assert not await ledger.adjust(credit)
    assert await ledger.balance("a") == Balance(25, 0, 3, 0, 100)
    assert rows(path, "SELECT id, kind, amount FROM adjustments ORDER BY id") == [
        ("adj_1", "credit", 100), ("over_" + hold.id, "overdraft", 15),
    ]  # fmt: skip
    await ledger.close()


async def test_an_archived_call_is_booked_once(path: Path) -> None:
    """Twice in one list, again later, and the truth in the place of a lapse: one record, one cost."""
    ledger = ledger_at(path)
    hold = Hold("elsewhere-1", "a", 10, 7, 1600.0)
    lapse = record(hold, 10)._replace(lapsed=True, usage=Usage(0, 7, estimated=True))
    await ledger.archive([(hold, lapse), (hold, lapse)])
    assert await ledger.balance("a") == Balance(10, 0, 7, 0)
    await asyncio.gather(ledger.archive([(hold, record(hold))]), ledger.archive([(hold, record(hold))]))
    await ledger.archive([(hold, lapse)])
    assert await ledger.balance("a") == Balance(4, 0, 3, 0)
    assert rows(path, "SELECT hold, cost, lapsed FROM records") == [(hold.id, 4, 0)]
    assert rows(path, "SELECT requests, tokens_in, tokens_out, cost FROM sums") == [(1, 1, 2, 4)]
    await ledger.close()


@pytest.mark.parametrize(("lapsed", "spent"), [("charge", 10), ("release", 0)])
async def test_a_later_batch_sweeps_what_lapsed(path: Path, lapsed: Any, spent: int) -> None:
    """Nobody need call sweep: the holds of a dead process end with the calls of a living one, as was set."""
    dead = ledger_at(path)
    hold = await taken(dead, ttl=60.0)
    await dead.close()
    ledger = ledger_at(path, lapsed=lapsed)
    await taken(ledger, 1, now=1030.0)
    assert (await ledger.balance("a")).held == 11
    await taken(ledger, 1, now=1061.0)
    assert await ledger.balance("a") == Balance(spent, 2, 7 if spent else 0, 14)
    assert await ledger.settle(hold, record(hold))  # late, and the truth
    assert (await ledger.balance("a")).spent == 4
    await ledger.close()


async def test_a_sweep_of_many_takes_chunk_after_chunk(path: Path) -> None:
    """More holds than one transaction takes are all ended, counted once, and forgotten when nobody can come any more."""
    ledger = ledger_at(path)
    count = 2 * CHUNK + 7
    await asyncio.gather(*(take(ledger, 1) for _ in range(count)))
    swept, held = await asyncio.gather(ledger.sweep(2000.0), taken(ledger, 1, now=1900.0))
    assert swept == count
    assert await ledger.balance("a") == Balance(count, 1, count * 7, 7)
    assert await ledger.sweep(1600.0 + KEEP_LAPSED) == 1  # the one; the others are forgotten
    assert rows(path, "SELECT id, lapsed FROM holds") == [(held.id, 1)]
    await ledger.close()


async def test_a_locked_database_stops_no_loop(path: Path) -> None:
    """Callers are told within their patience while the loop ticks on; their verbs are done when the lock is gone."""
    ledger, patient = ledger_at(path, patience=0.2), ledger_at(path)
    first = await taken(patient)
    while (await asyncio.gather(ledger.balance("a"), return_exceptions=True))[0] != Balance(0, 10, 0, 7):
        pass  # it is open, and so would commit on the loop's thread
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    with locked(path):
        told = await asyncio.gather(take(ledger), ledger.settle(first, record(first)), return_exceptions=True)
        assert [type(one) for one in told] == [StoreError, StoreError]
        assert "0.2 s" in str(told[0])
        with pytest.raises(StoreError):
            await take(ledger)
    assert ticks > 1  # some forty; had the loop waited for the lock, it would wait still
    ticking.cancel()
    await taken(patient, 1)  # behind the others, whose verbs were under way
    while (balance := await patient.balance("a")) != Balance(4, 21, 3, 21):
        assert balance.held <= 31
        await asyncio.sleep(0.01)
    await ledger.close()
    await patient.close()


async def test_closing_carries_out_what_waits(path: Path) -> None:
    """What was asked before is done and told; what is asked after is refused."""
    ledger = ledger_at(path)
    waiting = [asyncio.create_task(take(ledger)) for _ in range(300)]
    await asyncio.sleep(0)
    await ledger.close()
    assert all(isinstance(hold, Hold) for hold in await asyncio.gather(*waiting))
    assert rows(path, "SELECT count(*), sum(money) FROM holds") == [(300, 3000)]
    with pytest.raises(StoreError, match="closed"):
        await take(ledger)
    await ledger.close()


async def test_closing_a_locked_ledger_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that stays does not hold the process: what waited is told so, and is not done afterwards."""
    monkeypatch.setattr("asgi_llm_gateway.stores._sqlite_writer.GRACE", 0.1)
    ledger = ledger_at(path)
    await taken(ledger)
    with locked(path):
        waiting = asyncio.create_task(take(ledger))
        await asyncio.sleep(0.01)
        await ledger.close()
        with pytest.raises(StoreError, match="closed"):
            await waiting
    assert rows(path, "SELECT count(*) FROM holds") == [(1,)]


async def test_synchronous_full_commits_beside_the_loop(path: Path) -> None:
    """Each commit waits for the disk, in the thread; the sums are the same."""
    ledger = ledger_at(path, synchronous="FULL")
    for _ in range(3):
        hold = await taken(ledger)
        assert await ledger.settle(hold, record(hold))
    assert inner(ledger).execute("PRAGMA synchronous").fetchone() == (2,)
    assert ledger._own is not None
    assert ledger._own._commits == 0  # on the loop's thread
    assert await ledger.balance("a") == Balance(12, 0, 9, 0)
    await ledger.close()


async def test_slow_commits_move_to_the_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is slow the loop stops waiting for it, after some commits, for a while."""
    monkeypatch.setattr("asgi_llm_gateway.stores._sqlite_writer.SLOW", 0.0)
    ledger = ledger_at(path)
    for _ in range(20):
        await taken(ledger)
    assert ledger._own is not None
    assert ledger._own._commits == 5
    await ledger.close()


async def test_a_full_disk_is_told_and_got_over(path: Path) -> None:
    """The error says so, nothing is half done, and with room the ledger goes on by itself."""
    ledger = ledger_at(path)
    await taken(ledger)
    pages = inner(ledger).execute("PRAGMA page_count").fetchone()[0]
    inner(ledger).execute(f"PRAGMA max_page_count = {pages}")
    told = await asyncio.gather(*(take(ledger) for _ in range(400)), return_exceptions=True)
    failed = [error for error in told if isinstance(error, StoreError)]
    assert failed
    assert "full" in str(failed[0])
    held = sum(isinstance(hold, Hold) for hold in told) + 1
    assert (await ledger.balance("a")).held == held * 10
    await taken(ledger)
    assert rows(path, "SELECT sum(money) FROM holds") == rows(path, "SELECT held FROM balances") == [(held * 10 + 10,)]
    await ledger.close()


async def test_a_missing_folder_is_told_and_got_over(tmp_path: Path) -> None:
    """The error names the file; once the folder is there, so is the ledger."""
    there = tmp_path / "missing" / "gateway.db"
    ledger = ledger_at(there)
    for _ in range(2):
        with pytest.raises(StoreError, match="missing"):
            await take(ledger)
    there.parent.mkdir()
    await taken(ledger)
    await ledger.close()


def test_a_corrupt_file_is_told(tmp_path: Path) -> None:
    """What is no database is never overwritten, and is a StoreError."""
    path = tmp_path / "other.db"
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        asyncio.run(take(ledger_at(path)))
    assert path.read_bytes().startswith(b"this is no database")


async def test_the_log_is_copied_and_begun_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a load that never pauses the write-ahead log begins anew again and again, and so stays bounded."""
    monkeypatch.setattr("asgi_llm_gateway.stores._sqlite_writer.PAGES", 50)
    monkeypatch.setattr(_sqlite_file, "MANY_PAGES", 100)
    ledger = ledger_at(path)
    pairs = 0
    while pairs == 0 or times_begun(path) < 5:
        holds = [hold for hold in await asyncio.gather(*(take(ledger) for _ in range(20))) if isinstance(hold, Hold)]
        await asyncio.gather(*(ledger.settle(hold, record(hold)) for hold in holds))
        pairs += len(holds)
    await ledger.close()
    assert rows(path, "SELECT count(*), sum(cost) FROM records") == [(pairs, 4 * pairs)]


def times_begun(path: Path) -> int:
    """How often the log was begun anew: SQLite, "Database File Format", 4.1, checkpoint sequence number."""
    with open(f"{path}-wal", "rb") as log:
        return int.from_bytes(log.read(16)[12:], "big")


def test_one_object_serves_one_loop_after_the_other(path: Path) -> None:
    """A loop that was closed without closing the ledger leaves it usable in the next one."""
    ledger = ledger_at(path)
    asyncio.run(take(ledger))
    assert isinstance(asyncio.run(take(ledger)), Hold)
    asyncio.run(ledger.close())
    assert rows(path, "SELECT held FROM balances") == [(20,)]


def test_who_stands_in_line_writes_next(path: Path) -> None:
    """One writes at a time; whoever comes while another waits for the turn waits behind it, though the turn is free."""
    first, second = Turn(str(path)), Turn(str(path))
    assert first.take()
    assert not second.take()
    first.give()
    with open(f"{path}.next") as waiting:
        fcntl.flock(waiting, fcntl.LOCK_EX)
        assert not first.take()
    assert first.take()
    first.close()  # as a killed process does
    assert second.take()
    second.close()
