"""The arithmetic of the ledger, without I/O: what each verb does to accounts and holds.

A store loads the rows that its verbs are about into a Book, applies them, and writes back what changed, all in one
transaction; the memory store keeps one Book for good. So every backend that can do transactions does the same sums.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import NamedTuple

from ..records import About, Adjustment, Amount, Balance, CallRecord, Hold, Limit, Refusal, Stats, Usage

_new = tuple.__new__  # what Hold(...) does, less a frame: some are made for every call

AccountKey = tuple[str, str, int]
"""Tenant, account, window."""


class Entry:
    """An account in one window, to be changed; see Balance."""

    __slots__ = ("credit", "held", "spent", "tokens_held", "tokens_spent")

    def __init__(
        self, spent: int = 0, held: int = 0, tokens_spent: int = 0, tokens_held: int = 0, credit: int = 0
    ) -> None:
        self.spent = spent
        self.held = held
        self.tokens_spent = tokens_spent
        self.tokens_held = tokens_held
        self.credit = credit

    def balance(self) -> Balance:
        """The entry as it is now."""
        return Balance(self.spent, self.held, self.tokens_spent, self.tokens_held, self.credit)


class Open(NamedTuple):
    """A hold at the store. One that ``lapsed`` is kept, with what was ``charged`` for it, for a settle that may come late.

    ``charged`` is ``None`` where nothing was: the hold runs, or its lapse released it.
    """

    hold: Hold
    about: About
    lapsed: bool = False
    charged: Amount | None = None


class Book:
    """Accounts and holds, and what verbs did to them.

    Attributes:
        entries: The accounts loaded; one that is missing has never been used.
        holds: The holds loaded.
        touched: Accounts that changed.
        changed: Holds that changed, by id; ``None`` for one that is gone.
        records: Records to keep, by the hold's id (a late settle replaces the lapsed one).
        notes: Overdrafts to keep.
        sums: What was added to the tenants' sums.
    """

    __slots__ = ("changed", "entries", "holds", "notes", "records", "sums", "touched")

    def __init__(self) -> None:
        self.entries: dict[AccountKey, Entry] = {}
        self.holds: dict[str, Open] = {}
        self.touched: set[AccountKey] = set()
        self.changed: dict[str, Open | None] = {}
        self.records: MutableMapping[str, CallRecord] = {}
        self.notes: list[Adjustment] = []
        self.sums: dict[str, Stats] = {}

    def _entry(self, key: AccountKey) -> Entry:
        """An account, to be looked at."""
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = Entry()
        return entry

    # -- the verbs -----------------------------------------------------------------------------------------------------

    def hold(
        self,
        tenant: str,
        hold_id: str,
        limits: tuple[Limit, ...],
        least: Amount,
        wanted: Amount,
        expires: float,
        about: About,
    ) -> Hold | Refusal:
        """See Ledger.hold."""
        known = self.holds.get(hold_id)
        if known is not None:
            return Refusal(limits[0], "ended", 0, 0) if known.lapsed else known.hold
        money, tokens = wanted
        least_money, least_tokens = least
        found = []
        for limit in limits:
            account, window, most, most_tokens = limit
            key = (tenant, account, window)
            entry = self.entries.get(key)
            if entry is None:
                entry = self.entries[key] = Entry()
            if most is not None:
                room = most + entry.credit - entry.spent - entry.held
                if room < money:
                    if room < least_money or room < 0:
                        return Refusal(limit, "money", entry.spent, entry.held, entry.credit)
                    money = room
            if most_tokens is not None:
                room = most_tokens - entry.tokens_spent - entry.tokens_held
                if room < tokens:
                    if room < least_tokens or room < 0:
                        return Refusal(limit, "tokens", entry.tokens_spent, entry.tokens_held)
                    tokens = room
            found.append(entry)
            self.touched.add(key)
        for entry in found:
            entry.held += money
            entry.tokens_held += tokens
        accounts = tuple([limit[:2] for limit in limits])
        spent = found[0].spent if found else 0
        hold = _new(Hold, (hold_id, tenant, money, tokens, expires, accounts, spent))
        self.holds[hold_id] = self.changed[hold_id] = _new(Open, (hold, about, False, None))
        return hold

    def raise_hold(self, hold: Hold, amount: Amount, limits: tuple[Limit, ...]) -> Hold | Refusal:
        """See Ledger.raise_hold. Limits are those of the hold's own accounts and windows."""
        kept = self.holds.get(hold.id)
        if kept is None or kept.lapsed:
            return Refusal(limits[0] if limits else Limit("", 0, None, None), "ended", 0, 0)
        current = kept.hold
        more, more_tokens = max(0, amount.money - current.money), max(0, amount.tokens - current.tokens)
        if not more and not more_tokens:
            return current
        most = {(limit.account, limit.window): limit for limit in limits}
        keys = [(current.tenant, account, window) for account, window in current.accounts]
        for key in keys:
            entry, limit = self._entry(key), most.get(key[1:])
            if limit is None:
                continue
            if more and limit.money is not None and limit.money + entry.credit - entry.spent - entry.held < more:
                return Refusal(limit, "money", entry.spent, entry.held, entry.credit)
            free = None if limit.tokens is None else limit.tokens - entry.tokens_spent - entry.tokens_held
            if more_tokens and free is not None and free < more_tokens:
                return Refusal(limit, "tokens", entry.tokens_spent, entry.tokens_held)
        for key in keys:
            entry = self._entry(key)
            entry.held += more
            entry.tokens_held += more_tokens
            self.touched.add(key)
        raised = current._replace(money=current.money + more, tokens=current.tokens + more_tokens)
        self.holds[hold.id] = self.changed[hold.id] = kept._replace(hold=raised)
        return raised

    def renew(self, hold: Hold, expires: float) -> bool:
        """See Ledger.renew."""
        kept = self.holds.get(hold.id)
        if kept is None or kept.lapsed:
            return False
        if expires > kept.hold.expires:
            self.holds[hold.id] = self.changed[hold.id] = kept._replace(hold=kept.hold._replace(expires=expires))
        return True

    def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger.settle."""
        kept = self.holds.pop(hold.id, None)
        if kept is None:
            return False
        self.changed[hold.id] = None
        current = kept.hold
        usage = record.usage
        cost = record.cost
        over = cost - current.money
        self._book(kept, cost, usage.prompt + usage.completion)
        if over > 0:
            record = record._replace(overdraft=over)
            self._note_overdraft(current, record)
        self._keep(record, kept.charged)
        return True

    def release(self, hold: Hold) -> bool:
        """See Ledger.release."""
        kept = self.holds.get(hold.id)
        if kept is None or kept.lapsed:
            return False
        del self.holds[hold.id]
        self.changed[hold.id] = None
        self._book(kept, 0, 0)
        return True

    def lapse(self, hold_id: str, *, charge: bool) -> None:
        """End a hold that nobody settled: charged whole and recorded so, or released; kept for a settle that comes late."""
        kept = self.holds[hold_id]
        if kept.lapsed:
            return
        hold, about = kept.hold, kept.about
        charged = Amount(hold.money, hold.tokens) if charge else None
        self._book(kept, hold.money if charge else 0, hold.tokens if charge else 0)
        self.holds[hold_id] = self.changed[hold_id] = kept._replace(lapsed=True, charged=charged)
        if charged is not None:
            record = CallRecord(
                hold=hold_id, tenant=hold.tenant, request_id=about.request_id, trace_id=about.trace_id, key=about.key,
                model=about.model, usage=Usage(0, charged.tokens, estimated=True), cost=charged.money,
                started=about.started, ended=hold.expires, aborted=True, lapsed=True,
            )  # fmt: skip
            self._keep(record, None)

    def forget(self, hold_id: str) -> None:
        """Let go of a lapsed hold for which no settle will come any more."""
        del self.holds[hold_id]
        self.changed[hold_id] = None

    def archive(self, hold: Hold, record: CallRecord, before: CallRecord | None) -> None:
        """Book a call that was settled at another ledger (Redis): ``before`` is the record kept of it, if there is one.

        A second time it changes nothing; a settle that came late takes the place of the lapsed record.
        """
        if before is not None and (record.lapsed or not before.lapsed):
            return
        charged = None
        if before is not None:
            charged = Amount(before.cost, before.usage.prompt + before.usage.completion)
        done = Open(hold, About(), lapsed=True, charged=charged)
        self._book(done, record.cost, record.usage.prompt + record.usage.completion)
        if record.overdraft:
            self._note_overdraft(hold, record)
        self._keep(record, charged)

    def adjust(self, adjustment: Adjustment) -> None:
        """See Ledger.adjust; that it is new, the store knows."""
        key = (adjustment.tenant, "", adjustment.window)
        entry = self._entry(key)
        self.touched.add(key)
        entry.credit += adjustment.amount if adjustment.kind == "credit" else -adjustment.amount
        self.notes.append(adjustment)

    def _note_overdraft(self, hold: Hold, record: CallRecord) -> None:
        self.notes.append(
            Adjustment(
                id="over_" + hold.id,
                tenant=hold.tenant,
                kind="overdraft",
                amount=record.overdraft,
                reason=f"request {record.request_id}" if record.request_id else "",
                window=hold.accounts[0][1],
                created=record.ended,
            )
        )

    # -- the sums ------------------------------------------------------------------------------------------------------

    def _book(self, kept: Open, cost: int, tokens: int) -> None:
        """Move a hold's amount to what was spent; of one that lapsed, what was charged then is taken back."""
        hold, _, lapsed, charged = kept
        _, tenant, held, tokens_held, _, accounts, _ = hold
        if lapsed:
            held = tokens_held = 0
            if charged is not None:
                cost -= charged.money
                tokens -= charged.tokens
        for account, window in accounts:
            key = (tenant, account, window)
            entry = self._entry(key)
            self.touched.add(key)
            entry.held -= held
            entry.tokens_held -= tokens_held
            entry.spent += cost
            entry.tokens_spent += tokens

    def _keep(self, record: CallRecord, charged: Amount | None) -> None:
        """A record, and what it adds to its tenant's sums; one that replaces a lapsed record adds the difference."""
        self.records[record.hold] = record
        usage = record.usage
        requests, tokens_in, tokens_out, cost = self.sums.get(record.tenant, _NO_STATS)
        requests, tokens_in = requests + 1, tokens_in + usage.prompt
        tokens_out, cost = tokens_out + usage.completion, cost + record.cost
        if charged is not None:
            requests, tokens_out, cost = requests - 1, tokens_out - charged.tokens, cost - charged.money
        self.sums[record.tenant] = _new(Stats, (requests, tokens_in, tokens_out, cost))


_NO_STATS = Stats()
