"""Several processes with one SQLite file: shares of one budget, kills, forks."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from asgi_llm_gateway.records import Balance, Hold

from .test_sqlite_ledger import ledger_at, record, rows, take, taken

ROOT = Path(__file__).parents[2]
BUDGET = 500


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database that is not there yet: whoever comes first makes it."""
    return tmp_path / "gateway.db"


def start(part: str, path: Path) -> subprocess.Popen[str]:
    """One of the parts below, in a process of its own."""
    command = [sys.executable, "-m", "tests.stores.test_sqlite_processes", part, str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_one_budget_exactly(path: Path) -> None:
    """Both spend until they are refused: all of the budget is spent, and nothing above it."""
    children = [start("spend", path) for _ in range(2)]
    counts = [int(child.communicate(timeout=60)[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum(counts) == BUDGET
    assert rows(path, "SELECT spent, held FROM balances") == [(BUDGET, 0)]
    assert rows(path, "SELECT count(*), sum(cost) FROM records") == [(BUDGET, BUDGET)]


def test_a_kill_loses_nothing_that_was_acknowledged(path: Path) -> None:
    """However often a process is killed: each settle that it told of is in the file, and the sums agree."""
    told: set[str] = set()
    for _ in range(4):
        child = start("acknowledge", path)
        assert child.stdout is not None
        told.add(child.stdout.readline().strip())
        time.sleep(random.uniform(0.05, 0.4))
        child.send_signal(signal.SIGKILL)
        lines = child.stdout.read().split("\n")
        child.wait()
        child.stdout.close()
        told.update(lines[:-1])  # the last one may have been cut
    kept = {hold for (hold,) in rows(path, "SELECT hold FROM records")}
    assert told <= kept
    ((spent, held),) = rows(path, "SELECT spent, held FROM balances")
    assert rows(path, "SELECT requests, cost FROM sums") == rows(path, "SELECT count(*), sum(cost) FROM records")
    assert rows(path, "SELECT sum(cost) FROM records") == [(spent,)]
    assert rows(path, "SELECT coalesce(sum(money), 0) FROM holds") == [(held,)]

    async def after() -> Balance:
        ledger = ledger_at(path)
        await ledger.sweep(1e10)
        balance = await ledger.balance("a")
        await ledger.close()
        return balance

    balance = asyncio.run(after())
    assert (balance.spent, balance.held) == (spent + held, 0)
    assert rows(path, "SELECT sum(cost) FROM records") == [(spent + held,)]


def test_a_child_opens_the_file_anew(path: Path) -> None:
    """After a fork the parent's connection is the parent's alone; both go on, and every hold is there."""
    child = start("fork", path)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0, out
    assert rows(path, "SELECT held FROM balances") == rows(path, "SELECT sum(money) FROM holds") == [(50,)]
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def _spend(path: str) -> None:
    ledger = ledger_at(path)

    async def client() -> int:
        count = 0
        while isinstance(hold := await take(ledger, 1, limit=BUDGET), Hold):
            count += await ledger.settle(hold, record(hold, 1))
        return count

    counts = await asyncio.gather(*(client() for _ in range(8)))
    await ledger.close()
    # A client that was refused while others' holds were out leaves it to them: what they hold they settle in full.
    print(sum(counts))


async def _acknowledge(path: str) -> None:
    ledger = ledger_at(path)

    async def client() -> None:
        while True:
            hold = await taken(ledger)
            if await ledger.settle(hold, record(hold)):
                os.write(1, f"{hold.id}\n".encode())

    await asyncio.gather(*(client() for _ in range(8)))


def _fork(path: str) -> None:
    ledger = ledger_at(path)

    async def twice(close: bool) -> None:
        await taken(ledger)
        await taken(ledger)
        if close:
            await ledger.close()

    async def main() -> int:
        await taken(ledger)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                asyncio._set_running_loop(None)  # what multiprocessing's fork does for its children
                asyncio.run(twice(True))
                code = 0
            finally:
                os._exit(code)
        await twice(True)
        return child

    child = asyncio.run(main())
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


PARTS: dict[str, Callable[[str], None]] = {
    "spend": lambda path: asyncio.run(_spend(path)),
    "acknowledge": lambda path: asyncio.run(_acknowledge(path)),
    "fork": _fork,
}

if __name__ == "__main__":
    PARTS[sys.argv[1]](sys.argv[2])
