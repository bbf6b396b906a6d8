"""What a batch of verbs reads and writes in SQLite: rows into a Book, the verbs, and what changed back into rows.

No transaction is begun or ended here, and nothing waits.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson

from ..records import About, Adjustment, Amount, Balance, CallRecord, Hold, Usage
from .base import KEEP_LAPSED
from .book import AccountKey, Book, Entry, Open

CHUNK = 500
"""Holds that are swept in one transaction."""

_READ_HOLD = (
    "SELECT id, tenant, money, tokens, expires, spent, accounts, lapsed, charged_money, charged_tokens FROM holds "
)
_ONE_HOLD = _READ_HOLD + "WHERE id = ?"
_SOME_HOLDS = _READ_HOLD + "WHERE id IN (SELECT value FROM json_each(?))"  # noqa: S608 - our own names
# One condition for each half, so that each finds its rows by the index on expires without the many of the other half.
_EXPIRED = _READ_HOLD + "WHERE expires <= ? AND lapsed = 0 ORDER BY expires LIMIT ?"
_OUTLIVED = _READ_HOLD + "WHERE expires <= ? AND lapsed = 1 ORDER BY expires LIMIT ?"
_ABOUT = "SELECT about FROM holds WHERE id = ?"
_ADD_HOLD = (
    "INSERT INTO holds (id, tenant, money, tokens, expires, spent, accounts, about, lapsed, charged_money, charged_tokens)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_CHANGE_HOLD = (
    "UPDATE holds SET money = ?, tokens = ?, expires = ?, lapsed = ?, charged_money = ?, charged_tokens = ?"
    " WHERE id = ?"
)
_DROP_HOLD = "DELETE FROM holds WHERE id = ?"

_READ_ENTRY = (
    "SELECT spent, held, tokens_spent, tokens_held, credit FROM balances"
    " WHERE tenant = ? AND account = ? AND period_start = ?"
)
_PUT_ENTRY = (
    "INSERT INTO balances (tenant, account, period_start, spent, held, tokens_spent, tokens_held, credit)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, account, period_start) DO UPDATE SET spent = excluded.spent,"
    " held = excluded.held, tokens_spent = excluded.tokens_spent, tokens_held = excluded.tokens_held,"
    " credit = excluded.credit"
)
_ADD_SUMS = (
    "INSERT INTO sums (tenant, requests, tokens_in, tokens_out, cost) VALUES (?, ?, ?, ?, ?) ON CONFLICT (tenant) DO"
    " UPDATE SET requests = requests + excluded.requests, tokens_in = tokens_in + excluded.tokens_in,"
    " tokens_out = tokens_out + excluded.tokens_out, cost = cost + excluded.cost"
)

_RECORD = (
    "hold, tenant, request_id, trace_id, key_id, model, provider, prompt_tokens, completion_tokens, cached_tokens,"
    " cache_write_tokens, reasoning_tokens, estimated, provider_cost, cost, status, started, ended, aborted, overdraft,"
    " lapsed, local"
)
_RECORD_NAMES = _RECORD.split(", ")
# A late settle takes the lapsed record's place, number and all: a page's cursor that has passed it stays true.
_PUT_RECORD = (
    f"INSERT INTO records ({_RECORD}) VALUES ({', '.join('?' * len(_RECORD_NAMES))})"  # noqa: S608 - our own names
    f" ON CONFLICT (hold) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _RECORD_NAMES[1:])}"
)
_READ_RECORD = "SELECT cost, prompt_tokens, completion_tokens, lapsed FROM records WHERE hold = ?"

_ADD_NOTE = (
    "INSERT INTO adjustments (id, tenant, kind, amount, reason, period_start, created, created_by)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)
_KNOWN_NOTE = "SELECT 1 FROM adjustments WHERE id = ?"


class Rows(Book):
    """A Book that has what else the verbs of one batch must know from the tables.

    Attributes:
        stored: Ids of the holds that are in the table.
        before: What records said of calls that are to be archived, by hold.
        known: Ids of adjustments that have been booked.
    """

    __slots__ = ("before", "known", "stored")

    def __init__(self) -> None:
        super().__init__()
        self.stored: set[str] = set()
        self.before: dict[str, CallRecord] = {}
        self.known: set[str] = set()


class Verb(NamedTuple):
    """One verb of the ledger: what it does to the book, and the rows it must find there.

    Attributes:
        does: Called with the book and ``args``; what it returns is the caller's answer.
        hold: The hold to load, with its accounts.
        accounts: Further accounts to load.
        reads: It changes nothing.
    """

    does: Callable[..., Any]
    args: tuple[Any, ...]
    hold: str | None = None
    accounts: Sequence[AccountKey] = ()
    reads: bool = False


def look(book: Rows, key: AccountKey) -> Balance:
    """See Ledger.balance."""
    return book.entries[key].balance()


def adjust(book: Rows, adjustment: Adjustment) -> bool:
    """See Ledger.adjust."""
    if adjustment.id in book.known:
        return False
    book.known.add(adjustment.id)
    book.adjust(adjustment)
    return True


def archive(book: Rows, calls: Sequence[tuple[Hold, CallRecord]]) -> None:
    """See Archive.archive."""
    for hold, record in calls:
        book.archive(hold, record, book.records.get(hold.id) or book.before.get(hold.id))


def carry_out(db: sqlite3.Connection, verbs: Sequence[Verb]) -> list[Any]:
    """Do all of it, in order; the answers."""
    book = Rows()
    _load(db, book, verbs)
    answers = [verb.does(book, *verb.args) for verb in verbs]
    _write(db, book)
    return answers


def sweep(db: sqlite3.Connection, now: float, charge: bool) -> tuple[int, bool]:
    """End what lapsed before ``now`` and forget what lapsed long ago, at most CHUNK of each.

    How many lapsed, and whether there may be more.
    """
    book = Rows()
    expired = db.execute(_EXPIRED, (now, CHUNK)).fetchall()
    outlived = db.execute(_OUTLIVED, (now - KEEP_LAPSED, CHUNK)).fetchall()
    for row in expired:
        kept = _open(row, About(*orjson.loads(db.execute(_ABOUT, (row[0],)).fetchone()[0])))
        book.stored.add(kept.hold.id)
        book.holds[kept.hold.id] = kept
        _load_entries(db, book, [(kept.hold.tenant, *account) for account in kept.hold.accounts])
        book.lapse(kept.hold.id, charge=charge)
    _write(db, book)
    db.executemany(_DROP_HOLD, [row[:1] for row in outlived])
    return len(expired), len(expired) == CHUNK or len(outlived) == CHUNK


# -- reading -----------------------------------------------------------------------------------------------------------


def _open(row: tuple[Any, ...], about: About) -> Open:
    hold_id, tenant, money, tokens, expires, spent, accounts, lapsed, charged, charged_tokens = row
    pairs = tuple([(account, window) for account, window in orjson.loads(accounts)])
    hold = Hold(hold_id, tenant, money, tokens, expires, pairs, spent)
    return Open(hold, about, bool(lapsed), None if charged is None else Amount(charged, charged_tokens))


def _load(db: sqlite3.Connection, book: Rows, verbs: Sequence[Verb]) -> None:
    ids = [verb.hold for verb in verbs if verb.hold is not None]
    if ids:
        if len(ids) == 1:
            rows = db.execute(_ONE_HOLD, (ids[0],)).fetchall()
        else:
            rows = db.execute(_SOME_HOLDS, (orjson.dumps(ids).decode(),)).fetchall()
        for row in rows:
            kept = _open(row, _NOBODY)  # only a lapse needs it, and a hold that is there is never inserted again
            book.stored.add(row[0])
            book.holds[row[0]] = kept
            _load_entries(db, book, [(kept.hold.tenant, *account) for account in kept.hold.accounts])
    for verb in verbs:
        if verb.accounts:
            _load_entries(db, book, verb.accounts)
        if verb.does is adjust:
            note = verb.args[0]
            if db.execute(_KNOWN_NOTE, (note.id,)).fetchone():
                book.known.add(note.id)
        elif verb.does is archive:
            _load_records(db, book, verb.args[0])


_NOBODY = About()


def _load_entries(db: sqlite3.Connection, book: Rows, keys: Sequence[AccountKey]) -> None:
    for key in keys:
        if key not in book.entries:
            row = db.execute(_READ_ENTRY, key).fetchone()
            book.entries[key] = Entry() if row is None else Entry(*row)


def _load_records(db: sqlite3.Connection, book: Rows, calls: Sequence[tuple[Hold, CallRecord]]) -> None:
    for hold, _ in calls:
        row = db.execute(_READ_RECORD, (hold.id,)).fetchone()
        if row is not None:
            cost, prompt, completion, lapsed = row
            usage = Usage(prompt, completion)
            book.before[hold.id] = CallRecord(hold.id, hold.tenant, usage=usage, cost=cost, lapsed=bool(lapsed))


# -- writing -----------------------------------------------------------------------------------------------------------


def _write(db: sqlite3.Connection, book: Rows) -> None:
    if book.touched:
        rows = []
        for key in book.touched:
            entry = book.entries[key]
            tenant, account, window = key
            rows.append(
                (
                    tenant, account, window,
                    entry.spent, entry.held, entry.tokens_spent, entry.tokens_held, entry.credit,
                )
            )  # fmt: skip
        db.executemany(_PUT_ENTRY, rows)
    if book.changed:
        _write_holds(db, book)
    if book.records:
        db.executemany(_PUT_RECORD, [_record_row(record) for record in book.records.values()])
        db.executemany(_ADD_SUMS, [(tenant, *added) for tenant, added in book.sums.items()])
    if book.notes:
        db.executemany(
            _ADD_NOTE,
            [
                (note.id, note.tenant, note.kind, note.amount, note.reason, note.window, note.created, note.by)
                for note in book.notes
            ],
        )


def _write_holds(db: sqlite3.Connection, book: Rows) -> None:
    stored = book.stored
    added, changed, gone = [], [], []
    for hold_id, kept in book.changed.items():
        if kept is None:
            if hold_id in stored:  # one that came and went in this batch never was a row
                gone.append((hold_id,))
            continue
        _, tenant, money, tokens, expires, accounts, spent = kept.hold
        charged = kept.charged or _NOTHING
        if hold_id in stored:
            changed.append((money, tokens, expires, kept.lapsed, *charged, hold_id))
        else:
            added.append(
                (
                    hold_id, tenant, money, tokens, expires, spent,
                    orjson.dumps(accounts).decode(), orjson.dumps(tuple(kept.about)).decode(), kept.lapsed, *charged,
                )
            )  # fmt: skip
    if gone:
        db.executemany(_DROP_HOLD, gone)
    if changed:
        db.executemany(_CHANGE_HOLD, changed)
    if added:
        db.executemany(_ADD_HOLD, added)


_NOTHING = (None, None)


def _record_row(record: CallRecord) -> tuple[Any, ...]:
    (
        hold, tenant, request_id, trace_id, key, model, provider, usage, cost, status, started, ended, aborted,
        overdraft, lapsed, local,
    ) = record  # fmt: skip
    prompt, completion, cached, cache_write, reasoning, estimated, provider_cost, _ = usage
    return (
        hold, tenant, request_id, trace_id, key, model, provider, prompt, completion, cached, cache_write, reasoning,
        estimated, provider_cost, cost, status, started, ended, aborted, overdraft, lapsed, local,
    )  # fmt: skip
