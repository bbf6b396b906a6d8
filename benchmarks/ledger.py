"""What a ledger costs and bears: hold and settle, again and again. ``python -m benchmarks.ledger --backend sqlite``.

A pair is one hold and one settle, as each call makes them. CPU is this process's, all threads, in microseconds a pair;
what a server of its own (Redis, PostgreSQL) burns is not in it. Waits are of single verbs, in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import tempfile
import time
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import NamedTuple

from asgi_llm_gateway.keys import new_hold_id
from asgi_llm_gateway.records import About, Amount, CallRecord, Hold, Limit, Usage
from asgi_llm_gateway.stores.base import Ledger

LIMIT = 10**15
LEAST, WANTED = Amount(0, 0), Amount(10**6, 1000)
TENANTS = 8


class Round(NamedTuple):
    """One run of some clients in one process."""

    pairs: int
    seconds: float
    cpu: float
    waits: list[float]

    def line(self, name: str) -> str:
        """For people."""
        waits = sorted(self.waits)
        at = [waits[min(len(waits) - 1, int(len(waits) * part))] * 1e3 for part in (0.5, 0.99, 1.0)]
        return (
            f"{name:>14}: {self.cpu / self.pairs * 1e6:7.1f} us CPU a pair, {self.pairs / self.seconds:8.0f} pairs/s,"
            f" wait p50 {at[0]:.2f} p99 {at[1]:.2f} max {at[2]:.1f} ms"
        )


def make(backend: str, url: str) -> Ledger:
    """A ledger of that kind. Redis moves its records on to a SQLite file beside us, as a gateway on one machine would."""
    if backend == "memory":
        from asgi_llm_gateway.stores.memory import MemoryLedger

        return MemoryLedger()
    if backend == "sqlite":
        from asgi_llm_gateway.stores.sqlite import SQLiteLedger

        return SQLiteLedger(url)
    if backend == "redis":
        from asgi_llm_gateway.stores.redis import RedisLedger
        from asgi_llm_gateway.stores.sqlite import SQLiteLedger

        return RedisLedger(url, archive=SQLiteLedger(Path(tempfile.gettempdir()) / f"archive-{os.getpid()}.db"))
    from asgi_llm_gateway.stores.postgres import PostgresLedger

    return PostgresLedger(url)


async def measure(ledger: Ledger, clients: int, seconds: float) -> Round:
    """So many clients, one pair after the other, for so long."""
    waits: list[float] = []
    clock, end = time.perf_counter, time.perf_counter() + seconds

    async def client(number: int) -> int:
        tenant = f"tenant{number % TENANTS}"
        limits = (Limit("", 0, LIMIT, None),)
        pairs = 0
        while (began := clock()) < end:
            now = time.time()
            hold_id = new_hold_id()
            about = About("req_" + hold_id, "0af7651916cd43dd8448eb211c80319c", "key_1", "gpt-4o-mini", now)
            hold = await ledger.hold(
                tenant, hold_id=hold_id, limits=limits, least=LEAST, wanted=WANTED, now=now, ttl=600, about=about
            )
            waits.append(clock() - began)
            assert isinstance(hold, Hold), hold
            record = CallRecord(
                hold_id, tenant, about.request_id, about.trace_id, about.key, about.model, "openai",
                Usage(100, 200), 450_000, 200, now, now + 1.0,
            )  # fmt: skip
            began = clock()
            assert await ledger.settle(hold, record)
            waits.append(clock() - began)
            pairs += 1
        return pairs

    cpu, began = time.process_time(), clock()
    pairs = sum(await asyncio.gather(*(client(number) for number in range(clients))))
    return Round(pairs, clock() - began, time.process_time() - cpu, waits)


async def rounds(backend: str, url: str, clients: int, seconds: float) -> dict[str, Round]:
    """One client, then many."""
    ledger = make(backend, url)
    try:
        await measure(ledger, 1, 0.2)  # opened, and warm
        return {
            "1 client": await measure(ledger, 1, seconds),
            f"{clients} clients": await measure(ledger, clients, seconds),
        }
    finally:
        await ledger.close()


async def one_of_many(backend: str, url: str, clients: int, seconds: float) -> Round:
    """The many clients of one process of several."""
    ledger = make(backend, url)
    try:
        await measure(ledger, 1, 0.2)
        return await measure(ledger, clients, seconds)
    finally:
        await ledger.close()


def worker(told: SimpleQueue[Round], backend: str, url: str, clients: int, seconds: float) -> None:
    """A process of its own."""
    told.put(asyncio.run(one_of_many(backend, url, clients, seconds)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("memory", "sqlite", "redis", "postgresql"), default="sqlite")
    parser.add_argument("--url", help="path of the SQLite file (default: a temporary one), or the server's URL")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    if given.url is None and given.backend in ("redis", "postgresql"):
        parser.error("--url is needed: redis://host or postgresql://user:password@host/name")
    with tempfile.TemporaryDirectory(prefix="ledger-") as folder:
        url = given.url or str(Path(folder) / "ledger.db")
        if given.processes == 1:
            for name, found in asyncio.run(rounds(given.backend, url, given.clients, given.seconds)).items():
                print(found.line(name))
            return
        context = multiprocessing.get_context("spawn")
        told: SimpleQueue[Round] = context.SimpleQueue()
        args = (told, given.backend, url, given.clients, given.seconds)
        workers = [context.Process(target=worker, args=args) for _ in range(given.processes)]
        for process in workers:
            process.start()
        for number in range(given.processes):
            print(told.get().line(f"process {number + 1}"))
        for process in workers:
            process.join()


if __name__ == "__main__":
    main()
