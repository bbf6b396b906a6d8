"""``usage``: what was called and what it cost, as sums or call by call."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import orjson

from ..admin.answers import as_json, record_answer, usd_json
from ..admin.export import HEAD, Exact, csv_lines, csv_of
from ..admin.models import MAX_PAGE, moment
from ..records import CallRecord, Stats, usd_number
from ..stores.base import CallLog
from ..stores.shared import shared_log, shared_tenants
from .terminal import Commands, Mistake, put, run, say, table, tenant_id

_COLUMNS = ("requests", "tokens_in", "tokens_out", "cost_usd")


def add(commands: Commands) -> None:
    """Put the command into the parser."""
    usage = commands.add_parser(
        "usage",
        help="requests, tokens and cost",
        description="Requests, tokens and cost in US dollars: a line for each tenant, or for each model of one tenant.",
    )
    usage.add_argument(
        "tenant", nargs="?", help="one tenant, also one that was deleted; without it: all that there are"
    )
    usage.add_argument("--since", help="calls begun at or after: Unix seconds, or ISO 8601 such as 2026-01-31 (UTC)")
    usage.add_argument("--until", help="calls begun before: as --since")
    usage.add_argument("--model", help="calls of this model only")
    usage.add_argument(
        "--records", action="store_true", help="call by call instead of sums, newest first (needs a tenant)"
    )
    form = usage.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print CSV")
    form.add_argument("--json", action="store_true", help="print JSON (--records: a line for each call)")
    usage.set_defaults(run=lambda options: run(_usage(options)))


def _range(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"model": options.model}
    for name in ("since", "until"):
        text = getattr(options, name)
        try:
            found[name] = None if text is None else moment(text)
        except ValueError as error:
            raise Mistake(f"--{name}: {error}") from None
    return found


async def _usage(options: argparse.Namespace) -> int:
    asked = _range(options)
    if options.tenant is None:
        if options.records:
            raise Mistake("--records needs a tenant")
        _print(options, "tenant", *await _by_tenant(asked))
        return 0
    tenant = tenant_id(options.tenant)
    log = await shared_log()
    if await (await shared_tenants()).tenant(tenant) is None and not (await log.stats(tenant=tenant)).requests:
        raise Mistake(f"there is no tenant '{tenant}', and there are no records of one")
    if options.records:
        await _print_records(options, log, tenant, asked)
        return 0
    _print(options, "model", *await _by_model(log, tenant, asked))
    return 0


async def _by_tenant(asked: dict[str, Any]) -> tuple[dict[str, Stats], Stats]:
    """Sums of each tenant that there is, and of all; of all time and all models, deleted tenants are in the latter."""
    log = await shared_log()
    rows: dict[str, Stats] = {}
    kept = asked["model"] is None and asked["until"] is None  # sums that the store keeps; others are read call by call
    for tenant in await (await shared_tenants()).tenants():
        if kept:
            rows[tenant.id] = await log.stats(tenant=tenant.id, since=asked["since"])
        else:
            rows[tenant.id] = (await _by_model(log, tenant.id, asked))[1]
    total = await log.stats(since=asked["since"]) if kept else _sum(rows.values())
    return rows, total


async def _by_model(log: CallLog, tenant: str, asked: dict[str, Any]) -> tuple[dict[str, Stats], Stats]:
    rows: dict[str, Stats] = defaultdict(Stats)
    async for record in _records(log, tenant, asked):
        name = record.model or ""
        rows[name] = _sum((rows[name], Stats(1, record.usage.prompt, record.usage.completion, record.cost)))
    return dict(sorted(rows.items())), _sum(rows.values())


def _sum(rows: Any) -> Stats:
    return Stats(*map(sum, zip(Stats(), *rows, strict=True)))


async def _records(log: CallLog, tenant: str, asked: dict[str, Any]) -> AsyncIterator[CallRecord]:
    cursor: str | None = None
    while True:
        page = await log.records(tenant, limit=MAX_PAGE, cursor=cursor, **asked)
        for record in page.records:
            yield record
        cursor = page.next
        if cursor is None:
            return


def _print(options: argparse.Namespace, kind: str, rows: dict[str, Stats], total: Stats) -> None:
    if options.json:
        data = [{kind: name, **_json(stats)} for name, stats in rows.items()]
        say(orjson.dumps({"data": data, "total": _json(total)}).decode())
        return
    lines = [(name, *map(str, stats[:3]), usd_number(stats.cost)) for name, stats in rows.items()]
    if options.csv:
        put(csv_lines([(kind, *_COLUMNS), *((line[0], *map(Exact, line[1:])) for line in lines)]))
        return
    all_of_it = ("all", *map(str, total[:3]), usd_number(total.cost))
    say(table([(kind, *_COLUMNS), *lines, all_of_it], numbers=4))


def _json(stats: Stats) -> dict[str, Any]:
    return {
        "requests": stats.requests,
        "tokens_in": stats.tokens_in,
        "tokens_out": stats.tokens_out,
        "cost_usd": usd_json(stats.cost),
    }


async def _print_records(options: argparse.Namespace, log: CallLog, tenant: str, asked: dict[str, Any]) -> None:
    if not options.json:
        put(HEAD)
    async for record in _records(log, tenant, asked):
        answer = record_answer(record)
        put(as_json(answer) + b"\n" if options.json else csv_of([answer]))
