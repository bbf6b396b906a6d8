"""A Book loaded from PostgreSQL's rows, which stay locked, and written back in one statement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import orjson

from ..records import About, Amount, CallRecord, Hold, Usage
from .book import AccountKey, Book, Entry, Open

# Locks are taken in this order everywhere, and within each in the order of the database: so no two transactions ever wait for
# each other. New balances come first, since an insert waits for whoever inserts the same; then holds, then balances.
MAKE_BALANCES = """
insert into balances select k.*, 0, 0, 0, 0, 0 from unnest($1::text[], $2::text[], $3::bigint[]) as k(a, b, c)
order by 1, 2, 3 on conflict do nothing"""

LOCK_HOLDS = """
select id, tenant, money, tokens, expires, spent, accounts, about, lapsed, charged_money, charged_tokens
from holds where id = any($1::text[]) order by id for update"""

LOCK_BALANCES = """
select b.tenant, b.account, b.period_start, b.spent, b.held, b.tokens_spent, b.tokens_held, b.credit
from unnest($1::text[], $2::text[], $3::bigint[]) as k(tenant, account, period_start)
join balances b using (tenant, account, period_start) order by 1, 2, 3 for update of b"""

BALANCE = """
select spent, held, tokens_spent, tokens_held, credit from balances
where tenant = $1 and account = $2 and period_start = $3"""

EXPIRED = "select id from holds where expires <= $1 and not lapsed order by expires limit $2"

FORGET = """
delete from holds where id in
(select id from holds where expires <= $1 and lapsed order by expires limit $2 for update skip locked)"""

RECORDED = "select hold, cost, prompt_tokens, completion_tokens, lapsed from records where hold = any($1::text[])"

NOTED = "select id from adjustments where id = any($1::text[])"


class _Part(NamedTuple):
    """One thing to write: the types of its columns, and the statement, whose ``{rows}`` are they."""

    types: str
    statement: str


_RECORD_COLUMNS = (
    "hold, tenant, request_id, trace_id, key_id, model, provider, prompt_tokens, completion_tokens, cached_tokens, "
    "cache_write_tokens, reasoning_tokens, estimated, provider_cost, cost, status, started, ended, aborted, overdraft, "
    "lapsed, local"
)

_PARTS = (
    _Part(
        "text text bigint bigint bigint bigint bigint bigint",
        """update balances b set spent = k.d, held = k.e, tokens_spent = k.f, tokens_held = k.g, credit = k.h
        from {rows} as k(a, b, c, d, e, f, g, h) where b.tenant = k.a and b.account = k.b and b.period_start = k.c""",
    ),
    _Part(
        "text text bigint bigint float8 bigint text text",
        """insert into holds (id, tenant, money, tokens, expires, spent, accounts, about, lapsed)
        select k.*, false from {rows} as k""",
    ),
    _Part(
        "text bigint bigint float8 boolean bigint bigint",
        """update holds h set money = k.b, tokens = k.c, expires = k.d, lapsed = k.e, charged_money = k.f,
        charged_tokens = k.g from {rows} as k(a, b, c, d, e, f, g) where h.id = k.a""",
    ),
    _Part("text", "delete from holds where id in (select * from {rows})"),
    _Part(
        "text text text text text text text bigint bigint bigint bigint bigint boolean bigint bigint int "
        "float8 float8 boolean bigint boolean boolean",
        f"insert into records ({_RECORD_COLUMNS}) select * from {{rows}} on conflict (hold) do update set "  # noqa: S608
        + ", ".join(f"{name} = excluded.{name}" for name in _RECORD_COLUMNS.split(", ")),
    ),
    _Part(
        "text bigint bigint bigint bigint",
        """insert into sums as s select * from {rows} order by 1 on conflict (tenant) do update set
        requests = s.requests + excluded.requests, tokens_in = s.tokens_in + excluded.tokens_in,
        tokens_out = s.tokens_out + excluded.tokens_out, cost = s.cost + excluded.cost""",
    ),
    _Part(
        "text text text bigint text bigint float8 text",
        """insert into adjustments (id, tenant, kind, amount, reason, period_start, created, created_by)
        select * from {rows}""",
    ),
)


@cache
def _statement(parts: tuple[int, ...]) -> str:
    """One statement for these parts: one round trip."""
    number, steps = 0, []
    for part in parts:
        places = []
        for type_name in _PARTS[part].types.split():
            number += 1
            places.append(f"${number}::{type_name}[]")
        steps.append(f"p{part} as ({_PARTS[part].statement.format(rows='unnest(' + ', '.join(places) + ')')})")
    return f"with {', '.join(steps)} select 1"


async def lock_holds(connection: Any, book: Book, ids: Iterable[str]) -> set[AccountKey]:
    """Load holds, and say which accounts they are on."""
    keys: set[AccountKey] = set()
    for row in await connection.fetch(LOCK_HOLDS, list(ids)):
        hold_id, tenant, money, tokens, expires, spent, accounts, about, lapsed, charged, charged_tokens = row
        on = tuple([(account, window) for account, window in orjson.loads(accounts)])
        hold = Hold(hold_id, tenant, money, tokens, expires, on, spent)
        charge = None if charged is None else Amount(charged, charged_tokens)
        book.holds[hold_id] = Open(hold, About(*orjson.loads(about)), lapsed, charge)
        keys.update([(tenant, account, window) for account, window in on])
    return keys


async def lock_balances(connection: Any, book: Book, keys: Iterable[AccountKey]) -> bool:
    """Load accounts; False where one has no row."""
    wanted = list(keys)
    rows = await connection.fetch(LOCK_BALANCES, *_columns(wanted))
    for tenant, account, window, *amounts in rows:
        book.entries[tenant, account, window] = Entry(*amounts)
    return len(rows) == len(wanted)


async def make_balances(connection: Any, keys: Iterable[AccountKey]) -> None:
    """See to it that accounts have a row."""
    await connection.execute(MAKE_BALANCES, *_columns(list(keys)))


async def recorded(connection: Any, ids: Iterable[str]) -> dict[str, CallRecord]:
    """The records that are kept of some holds, as far as Book.archive looks at them."""
    return {
        hold: CallRecord(hold, "", usage=Usage(prompt, completion), cost=cost, lapsed=lapsed)
        for hold, cost, prompt, completion, lapsed in await connection.fetch(RECORDED, list(ids))
    }


async def save(connection: Any, book: Book, loaded: Iterable[str]) -> None:
    """Write what changed in a book; ``loaded`` are the holds that have a row."""
    known = set(loaded)
    new, changed, gone = [], [], []
    for hold_id, kept in book.changed.items():
        if kept is None:
            if hold_id in known:
                gone.append((hold_id,))
            continue
        hold, about, lapsed, charged = kept
        if hold_id in known:
            charge: tuple[int | None, int | None] = (None, None) if charged is None else charged
            changed.append((hold_id, hold.money, hold.tokens, hold.expires, lapsed, *charge))
        else:
            accounts = orjson.dumps(hold.accounts).decode()
            said = orjson.dumps([clean(about.request_id), clean(about.trace_id), clean(about.key), clean(about.model),
                                 about.started]).decode()  # fmt: skip
            new.append((hold_id, hold.tenant, hold.money, hold.tokens, hold.expires, hold.spent, accounts, said))
    entries = [(*key, entry.spent, entry.held, entry.tokens_spent, entry.tokens_held, entry.credit)
               for key, entry in ((key, book.entries[key]) for key in book.touched)]  # fmt: skip
    notes = [(n.id, n.tenant, n.kind, n.amount, clean(n.reason), n.window, n.created, clean(n.by)) for n in book.notes]
    sums = [(tenant, *stats) for tenant, stats in book.sums.items()]
    records = [_record_row(record) for record in book.records.values()]
    parts: tuple[list[Any], ...] = (entries, new, changed, gone, records, sums, notes)  # in the order of _PARTS
    filled, columns = [], []
    for part, rows in enumerate(parts):
        if rows:
            filled.append(part)
            columns += _columns(rows)
    if filled:
        await connection.fetch(_statement(tuple(filled)), *columns)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return list(zip(*rows, strict=True))


def _record_row(record: CallRecord) -> tuple[Any, ...]:
    usage = record.usage
    return (
        record.hold, record.tenant, clean(record.request_id), clean(record.trace_id), clean(record.key),
        clean(record.model), clean(record.provider), usage.prompt, usage.completion, usage.cached, usage.cache_write,
        usage.reasoning, usage.estimated, usage.provider_cost, record.cost, record.status, record.started, record.ended,
        record.aborted, record.overdraft, record.lapsed, record.local,
    )  # fmt: skip


def clean(text: str | None) -> str | None:
    """A text that PostgreSQL can keep: it has no NUL and no half of a surrogate pair, and a client's JSON may have both."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
