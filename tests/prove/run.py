"""One run: workers, faults, and the end, when all is quiet and the store is asked what it has."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from asgi_llm_gateway.records import Balance, Hold
from asgi_llm_gateway.settings import Settings
from asgi_llm_gateway.stores.redis import RedisLedger

from .callers import record
from .checker import Final, Verdict, check
from .history import Event, Recorded, read
from .stages import Stage, stage
from .stories import AccountKey, tell

ROOT = Path(__file__).parents[2]
LANES = 10
"""Calls at once in each worker."""

TTL = 2.5
"""Seconds that a hold lives: short, so that holds lapse while calls run."""

CLOCK_STEPS = (-30.0, 30.0, 0.0)
_MOST_RECORDS = 10_000_000


class Report(NamedTuple):
    """What happened in a run, and the verdict; ``kept`` is where the histories of one that broke a promise are."""

    backend: str
    seed: int
    seconds: float
    events: Sequence[Event]
    final: Final
    faults: Counter[str]
    verdict: Verdict
    kept: str

    def text(self) -> str:
        """For people."""
        answers = Counter((event.verb, event.kind) for event in self.events)
        lines = [f"{self.backend}: seed {self.seed}, {self.seconds:g} s of faults, {len(self.events)} events"]
        for verb in ("hold", "raise", "renew", "settle", "release", "sweep"):
            asked, yes, no, unknown = (answers[verb, kind] for kind in ("ask", "yes", "no", "unknown"))
            lost = asked - yes - no - unknown
            lines.append(
                f"  {verb:8}{asked:7} asked  {yes:7} yes  {no:7} no  {unknown:5} unknown  {lost:4} died with their process"
            )
        records = self.final.records
        lapsed, over = sum(one.lapsed for one in records), sum(one.overdraft > 0 for one in records)
        accounts = len(self.final.balances["ledger"])
        lines.append(f"  {len(records)} records ({lapsed} lapsed, {over} overdrafts) on {accounts} accounts")
        lines.append("  faults: " + ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items())))
        lines += [f"  {count:8} x {promise}" for promise, count in sorted(self.verdict.checked.items())]
        lines += [f"  BROKEN {wrong}" for wrong in self.verdict.violations[:20]]
        if len(self.verdict.violations) > 20:
            lines.append(f"  and {len(self.verdict.violations) - 20} more")
        broken = f"{len(self.verdict.violations)} VIOLATIONS; the histories are in {self.kept}"
        lines.append("  result: " + (broken if self.verdict.violations else "all kept"))
        return "\n".join(lines)


class Workers:
    """The worker processes, which come and go."""

    def __init__(self, folder: Path, chosen: Stage, seed: int, ttl: float) -> None:
        self._folder = folder
        ours = {name.upper() for name in Settings.model_fields}  # no setting of the machine reaches a worker
        clean = {name: value for name, value in os.environ.items() if name not in ours}
        self._environment = {**clean, "PYTHONPATH": str(ROOT), **chosen.environment}
        self._seed = seed
        self._ttl = ttl
        self._started = 0
        self._running: dict[subprocess.Popen[bytes], Path] = {}

    def histories(self) -> list[Path]:
        """Those of all processes."""
        return sorted(self._folder.glob("*.jsonl"))

    def path(self, name: str) -> Path:
        """The history of a process."""
        return self._folder / f"{name}.jsonl"

    def start(self) -> None:
        """One more."""
        self._started += 1
        path = self.path(f"worker{self._started}")
        seed = self._seed * 1000 + self._started
        command = [sys.executable, "-m", "tests.prove.worker", str(path), str(seed), str(LANES), str(self._ttl)]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=self._environment, cwd=ROOT
            )
        self._running[process] = path

    @property
    def log(self) -> Path:
        """What they print."""
        return self._folder / "workers.log"

    def at_work(self) -> None:
        """Wait until each has asked something."""
        until = time.monotonic() + 30
        while not all(path.exists() and path.stat().st_size for path in self._running.values()):
            if time.monotonic() > until or any(one.poll() is not None for one in self._running):
                raise RuntimeError("a worker did not start:\n" + self.log.read_text("utf-8", "replace"))
            time.sleep(0.02)

    def kill(self, chance: random.Random) -> None:
        """SIGKILL one, and start another in its place."""
        process = chance.choice(list(self._running))
        process.kill()
        process.wait()
        del self._running[process]
        self.start()

    def freeze(self, chance: random.Random, seconds: float) -> None:
        """SIGSTOP one for a while, whatever it may hold."""
        process = chance.choice(list(self._running))
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    def step_clock(self, chance: random.Random) -> None:
        """One is told a wrong time from now on, or the right one again."""
        self._tell(chance.choice(list(self._running)), f"clock {chance.choice(CLOCK_STEPS)}")

    def _tell(self, process: subprocess.Popen[bytes], words: str) -> None:
        assert process.stdin is not None
        process.stdin.write(words.encode() + b"\n")
        process.stdin.flush()

    def stop(self) -> None:
        """Each ends its calls and goes. Raises RuntimeError where one can't."""
        for process in self._running:
            self._tell(process, "stop")
        try:
            codes = [process.wait(60) for process in self._running]
        except subprocess.TimeoutExpired:
            codes = [-1]
        if any(codes):
            raise RuntimeError(f"workers ended with {codes}:\n" + self.log.read_text("utf-8", "replace"))

    def end(self) -> None:
        """Whatever happened, none is left."""
        for process in self._running:
            process.kill()
            process.wait()


def _trouble(workers: Workers, chosen: Stage, chance: random.Random, seconds: float, longest: float) -> Counter[str]:
    """Faults, one after the other, in an order that has each before any comes again."""
    faults: dict[str, Callable[[float], None]] = {
        "worker killed": lambda _: workers.kill(chance),
        "worker frozen": lambda seconds: workers.freeze(chance, seconds),
        "clock stepped": lambda _: workers.step_clock(chance),
        **chosen.faults,
    }
    done: Counter[str] = Counter()
    until = time.monotonic() + seconds
    order: list[str] = []
    while time.monotonic() < until or len(done) < len(faults):
        time.sleep(chance.uniform(0.05, longest / 4))
        if not order:
            order = chance.sample(sorted(faults), len(faults))
        name = order.pop()
        faults[name](chance.uniform(0.2, longest))
        done[name] += 1
    return done


async def _end(workers: Workers, chosen: Stage, chance: random.Random, ttl: float) -> Final:
    """Settle late what some of the dead left, sweep the rest, and read everything."""
    ledgers = chosen.ledgers()
    ledger = Recorded(ledgers["ledger"], workers.path("end"))
    stories = tell(read(workers.histories()))
    now = time.time()
    for story in stories.values():
        if story.held is not None and not story.settles and not story.released and chance.random() < 0.5:
            places = tuple((account, window) for _, account, window in story.accounts)
            hold = Hold(story.id, story.tenant, *story.held, story.expires, places)
            await ledger.settle(hold, record(hold, 7, 7, now))
    await ledger.sweep(now + ttl + 60)  # 60: more than any clock was ahead
    if isinstance(ledgers["ledger"], RedisLedger):
        async with asyncio.timeout(60):
            while await ledgers["ledger"].waiting():  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.02)
    accounts = sorted({account for story in stories.values() for account in story.accounts})
    tenants = sorted({account[0] for account in accounts})
    balances: dict[str, dict[AccountKey, Balance]] = {
        name: {account: await one.balance(*account) for account in accounts} for name, one in ledgers.items()
    }
    log = chosen.log()
    final = Final(
        balances,
        [one for tenant in tenants for one in (await log.records(tenant, limit=_MOST_RECORDS)).records],
        [one for tenant in tenants for one in await log.adjustments(tenant, limit=_MOST_RECORDS)],
        {tenant: await log.stats(tenant=tenant) for tenant in tenants},
    )
    await log.close()
    await ledger.close()
    if "archive" in ledgers:
        await ledgers["archive"].close()
    return final


def prove(backend: str, *, seconds: float, workers: int, seed: int, ttl: float = TTL, longest: float = 2.5) -> Report:
    """A run on a fresh store of that kind; ``longest`` is how many seconds a fault may last."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="prove-") as name, stage(backend, Path(name)) as chosen:
        crew = Workers(Path(name), chosen, seed, ttl)
        try:
            for _ in range(workers):
                crew.start()
            crew.at_work()
            faults = _trouble(crew, chosen, chance, seconds, longest)
            crew.at_work()
            crew.stop()
        finally:
            crew.end()
        final = asyncio.run(_end(crew, chosen, chance, ttl))
        events = read(crew.histories())
        verdict = check(events, final)
        kept = ""
        if verdict.violations:
            kept = tempfile.mkdtemp(prefix="prove-broken-")
            for path in crew.histories():
                shutil.copy(path, kept)
    return Report(backend, seed, seconds, events, final, faults, verdict, kept)
