"""Do the histories and what the store has keep the promises? Each check fails only where there is no way that they do.

What happened between a question and its answer is not known, so that a hold counts from its answer to the question that
ends it, and a cost from its answer on. A lapse needs no guess: a hold that lapsed is charged whole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from asgi_llm_gateway.records import Adjustment, Balance, CallRecord, Stats

from .history import Event
from .stories import AccountKey, Grant, Pair, Story, tell

MEASURES = ("nano-USD", "tokens")


class Final(NamedTuple):
    """What the store has when all is over.

    ``balances`` is by who was asked: the ledger, and the archive where that is another.
    """

    balances: Mapping[str, Mapping[AccountKey, Balance]]
    records: Sequence[CallRecord]
    adjustments: Sequence[Adjustment]
    stats: Mapping[str, Stats]


class Verdict(NamedTuple):
    """How often each promise was checked, and each time that it was broken, in words."""

    checked: Counter[str]
    violations: list[str]


class Checker:
    """Compares histories and store."""

    def __init__(self, events: Sequence[Event], final: Final) -> None:
        self._events = events
        self._final = final
        self._stories = tell(events)
        self.verdict = Verdict(Counter(), [])

    def _see(self, promise: str, kept: bool, wrong: str) -> None:
        self.verdict.checked[promise] += 1
        if not kept:
            self.verdict.violations.append(f"{promise}: {wrong}")

    def run(self) -> Verdict:
        """Check everything."""
        self._limits()
        self._lapses()
        self._sweeps()
        self._records()
        self._sums()
        self._overdrafts()
        return self.verdict

    # -- P1 ------------------------------------------------------------------------------------------------------------

    def _limits(self) -> None:
        """At no moment is more held and settled than the limit; and what was granted fitted beside all the rest."""
        limits: dict[AccountKey, tuple[int | None, int | None]] = {}
        steps: dict[AccountKey, list[tuple[int, str, Pair, Pair]]] = defaultdict(list)
        grants: dict[AccountKey, list[tuple[Grant, str]]] = defaultdict(list)
        for story in self._stories.values():
            before: tuple[Pair, Pair] = (0, 0), (0, 0)
            for at, full, capped in story.steps:
                change = _minus(full, before[0]), _minus(capped, before[1])
                for account in story.accounts:
                    steps[account].append((at, story.id, *change))
                before = full, capped
            for grant in story.grants:
                for name, window, money, tokens in grant.limits:
                    account = (story.tenant, name, window)
                    limits[account] = (money, tokens)
                    grants[account].append((grant, story.id))
        for account, changes in steps.items():
            if account in limits:
                changes.sort()
                for measure, limit in enumerate(limits[account]):
                    if limit is not None:
                        self._limit(account, measure, limit, changes, grants[account])

    def _limit(
        self,
        account: AccountKey,
        measure: int,
        limit: int,
        changes: list[tuple[int, str, Pair, Pair]],
        grants: list[tuple[Grant, str]],
    ) -> None:
        unit = MEASURES[measure]
        total = capped = drops = 0
        times, totals, fallen = [0], [0], [0]
        own: dict[str, list[tuple[int, int]]] = defaultdict(lambda: [(0, 0)])
        for at, hold, full, less in changes:
            total += full[measure]
            capped += less[measure]
            drops -= min(0, full[measure])
            times.append(at)
            totals.append(total)
            fallen.append(drops)
            own[hold].append((at, own[hold][-1][1] + full[measure]))
            # An overdraft is the one thing that may pass a limit: here it is left out.
            self._see("P1 at every moment", capped <= limit, f"{account} has {capped} of {limit} {unit} at {at}")
        for (asked, answered, amount, more, _), hold in grants:
            if not more[measure]:
                continue
            first, last = bisect_right(times, asked) - 1, bisect_right(times, answered) - 1
            mine = own[hold][bisect_right(own[hold], (asked, 2**62)) - 1][1]
            # All that was taken from before the question until after the answer, overdrafts with it.
            beside = totals[first] - mine - (fallen[last] - fallen[first])
            self._see(
                "P1 for every grant",
                amount[measure] + beside <= limit,
                f"{hold} got {amount[measure]} beside {beside} of {limit} {unit} on {account}",
            )

    # -- P2, I4 --------------------------------------------------------------------------------------------------------

    def _ahead(self) -> tuple[list[int], list[float]]:
        """The latest time of day that anybody had told the ledger, by moment: nothing lapses before that is so late."""
        times, latest = [0], [0.0]
        for event in self._events:
            now = event.data.get("now") if event.kind == "ask" else None
            if now is not None and now > latest[-1]:
                times.append(event.at)
                latest.append(now)
        return times, latest

    def _lapses(self) -> None:
        """No hold lapses before its time, and none that was given up lives on."""
        times, latest = self._ahead()
        lapsed = {record.hold for record in self._final.records if record.lapsed}

        def told(at: int) -> float:
            return latest[bisect_right(times, at) - 1]

        for story in self._stories.values():
            for _, answered, lives in story.lives:
                if not lives and (story.ending is None or story.ending > answered):
                    early = told(answered) < story.expires
                    self._see("I4 no lapse before its time", not early, f"{story.id} was gone before it expired")
            for at, verb, answer in story.answers:
                if verb == "release" and answer != "unknown" and story.id in lapsed:
                    late = told(at) < story.expires
                    self._see("P2 what was released stays so", not late, f"{story.id} lapsed after its release")

    def _sweeps(self) -> None:
        """No hold outlives its time and a sweep."""
        sweeps: list[tuple[int, int, float]] = []  # answered and asked when, with what time of day
        asked: dict[tuple[str, int], Event] = {}
        for event in self._events:
            if event.verb == "sweep":
                if event.kind == "ask":
                    asked[event.process, event.op] = event
                elif event.kind == "yes":
                    question = asked[event.process, event.op]
                    sweeps.append((event.at, question.at, question.data["now"]))
        for story in self._stories.values():
            for at, _, lives in story.lives:
                if lives and story.grants:
                    first = bisect_right(sweeps, (story.grants[0].answered, 0, 0.0))
                    done = sweeps[first : bisect_right(sweeps, (at, 0, 0.0))]
                    dead = any(self._ended_by(story, *sweep) for sweep in done)
                    self._see("I4 no hold outlives a sweep", not dead, f"{story.id} lived on after its sweep")

    def _ended_by(self, story: Story, answered: int, asked: int, now: float) -> bool:
        if asked < story.grants[0].answered:
            return False
        return now >= max(expires for at, expires in story.renewals if at < answered)

    # -- P2, records ---------------------------------------------------------------------------------------------------

    def _records(self) -> None:
        """Each hold has the one record that its end calls for, or none."""
        kept: dict[str, list[CallRecord]] = defaultdict(list)
        for record in self._final.records:
            kept[record.hold].append(record)
            self._see("every record is of a call", record.hold in self._stories, f"nobody asked for {record.hold}")
        for story in self._stories.values():
            self._see("P2 ended once", story.yes <= 1, f"{story.id} was ended {story.yes} times")
            records = kept[story.id]
            self._see("P2 one record", len(records) <= 1, f"{story.id} has {len(records)} records")
            wrong = self._wrong(story, records[0] if records else None)
            self._see("P2 the right record", wrong is None, f"{story.id} {wrong}")

    def _wrong(self, story: Story, record: CallRecord | None) -> str | None:
        """What is wrong with a hold's record, if something is."""
        answered = [(verb, answer) for _, verb, answer in story.answers]
        if record is None:
            if story.settled is not None:
                return f"was settled for {story.settled}, and there is no record"
            if story.held is not None and not story.released:
                return f"held {story.held}, was never released, and there is no record"
            return None
        booked = (record.cost, record.usage.total)
        if ("release", "yes") in answered:
            return f"was released, and there is a record of {booked}"
        if story.refused:
            return f"was refused, and there is a record of {booked}"
        low, high = story.held or (0, 0), story.most
        if record.lapsed:
            if ("settle", "yes") in answered or (story.held is not None and ("settle", "no") in answered):
                return "was settled, and its record says that it lapsed"
            if not (low[0] <= booked[0] <= high[0] and low[1] <= booked[1] <= high[1]):
                return f"lapsed with {booked}, and held {low} to {high}"
            return None
        if story.settled is not None and booked != story.settled:
            return f"was settled for {story.settled}, and the record says {booked}"
        if booked not in story.settles:
            return f"has a record of {booked}, and nobody settled it so"
        if not max(0, booked[0] - high[0]) <= record.overdraft <= max(0, booked[0] - low[0]):
            return f"cost {booked[0]}, held {low[0]} to {high[0]}, and has an overdraft of {record.overdraft}"
        return None

    # -- P3, I5 --------------------------------------------------------------------------------------------------------

    def _sums(self) -> None:
        """Records, balances and statistics are the same money, on every account of a call alike; nothing is held."""
        spent: dict[AccountKey, Pair] = defaultdict(lambda: (0, 0))
        stats: dict[str, Stats] = defaultdict(Stats)
        for record in self._final.records:
            story = self._stories.get(record.hold)
            for account in story.accounts if story is not None else ():
                money, tokens = spent[account]
                spent[account] = money + record.cost, tokens + record.usage.total
            requests, tokens_in, tokens_out, cost = stats[record.tenant]
            usage = record.usage
            stats[record.tenant] = Stats(
                requests + 1, tokens_in + usage.prompt, tokens_out + usage.completion, cost + record.cost
            )
        for name, balances in self._final.balances.items():
            for account, balance in balances.items():
                booked = balance.spent, balance.tokens_spent
                wrong = f"{account}: {name} has {booked}, and its records are {spent[account]}"
                self._see("P3 sum of records = balance", booked == spent[account], wrong)
                held = balance.held, balance.tokens_held
                self._see("held is 0 in the end", held == (0, 0), f"{account}: {name} holds {held} for nobody")
        for tenant, found in self._final.stats.items():
            wrong = f"{tenant}: {found}, and its records are {stats[tenant]}"
            self._see("P3 sum of records = stats", found == stats[tenant], wrong)

    def _overdrafts(self) -> None:
        """Each overdraft has its row, and no other row is there."""
        rows: Counter[tuple[str, str, str, int]] = Counter(
            (row.id, row.tenant, row.kind, row.amount) for row in self._final.adjustments
        )
        wanted = Counter(
            ("over_" + record.hold, record.tenant, "overdraft", record.overdraft)
            for record in self._final.records
            if record.overdraft
        )
        for row in wanted | rows:
            self._see(
                "P1 a row for each overdraft", rows[row] == wanted[row], f"{row}: {rows[row]}, not {wanted[row]} rows"
            )


def _minus(one: Pair, other: Pair) -> Pair:
    return one[0] - other[0], one[1] - other[1]


def check(events: Sequence[Event], final: Final) -> Verdict:
    """The verdict on a run; ``events`` in their order."""
    return Checker(events, final).run()
