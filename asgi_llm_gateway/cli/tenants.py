"""``tenants create | list | show | update | delete``."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

from ..admin.answers import TenantAnswer, TenantsAnswer, as_json, tenant_answer
from ..admin.models import NewTenant, TenantChange, checked
from ..periods import window_of
from ..records import Tenant, usd_number
from ..stores.shared import shared_ledger, shared_tenants
from .terminal import Commands, Mistake, add_json, names, number, run, say

_NUMBERS = ("budget_tokens", "max_output_tokens", "rate_requests", "rate_tokens", "concurrency")


def add(commands: Commands) -> None:
    """Put the commands into the parser."""
    verbs = commands.add_parser("tenants", help="tenants of the store").add_subparsers(required=True, metavar="VERB")
    create = verbs.add_parser("create", help="make a tenant")
    create.add_argument("id", help="1 to 64 of a-z, 0-9, '.', '_', '-'")
    _fields(create)
    create.set_defaults(run=lambda options: run(_create(options)))
    listing = verbs.add_parser("list", help="list the tenants")
    add_json(listing)
    listing.set_defaults(run=lambda options: run(_list(options)))
    show = verbs.add_parser("show", help="show a tenant and what it has spent in the current period, in US dollars")
    show.add_argument("id")
    add_json(show)
    show.set_defaults(run=lambda options: run(_show(options)))
    update = verbs.add_parser("update", help="change what is given; all else stays")
    update.add_argument("id")
    _fields(update)
    enabled = update.add_mutually_exclusive_group()
    enabled.add_argument("--enable", dest="enabled", action="store_true", default=None, help="let it call again")
    enabled.add_argument("--disable", dest="enabled", action="store_false", help="refuse its calls")
    update.set_defaults(run=lambda options: run(_update(options)))
    delete = verbs.add_parser("delete", help="forget a tenant and revoke its keys; its records and its spending stay")
    delete.add_argument("id")
    delete.set_defaults(run=lambda options: run(_delete(options)))


def _fields(command: argparse.ArgumentParser) -> None:
    command.add_argument("--name", help="for people to read")
    command.add_argument("--budget-usd", help="US dollars a period, at most 9 decimals; 'none' is no limit")
    command.add_argument("--budget-tokens", help="prompt and completion tokens a period; 'none' is no limit")
    command.add_argument(
        "--budget-period",
        "--period",
        help="when the budgets begin anew: none (never, the default), daily, weekly, monthly (UTC), or every 30m, 12h, 7d",
    )
    command.add_argument(
        "--soft-limit-usd", help="US dollars a period from which on answers carry a warning; or 'none'"
    )
    command.add_argument("--max-output-tokens", help="for requests that name no limit of their own; or 'none'")
    command.add_argument("--rate-requests", help="requests in a window of RATE_LIMIT_WINDOW_MS; 'none': the settings'")
    command.add_argument("--rate-tokens", help="tokens in a window of RATE_LIMIT_WINDOW_MS; 'none' is no limit")
    command.add_argument("--concurrency", help="calls at once; 'none' is no limit")
    command.add_argument("--models", help="names that may be asked for, with commas between; 'all' is no limit")
    command.add_argument(
        "--metadata",
        action="append",
        metavar="KEY=VALUE",
        help="a note on the tenant, repeatable; replaces the old ones",
    )


def _sent(options: argparse.Namespace) -> dict[str, Any]:
    """What was typed, by the names of the admin API: its models check both."""
    sent: dict[str, Any] = {}
    for name in ("name", "budget_period"):
        if getattr(options, name) is not None:
            sent[name] = getattr(options, name)
    for name in ("budget_usd", "soft_limit_usd"):
        text = getattr(options, name)
        if text is not None:
            sent[name] = None if text == "none" else text
    for name in _NUMBERS:
        text = getattr(options, name)
        if text is not None:
            sent[name] = number(name, text)
    if options.models is not None:
        sent["allowed_models"] = names(options.models)
    if options.metadata is not None:
        pairs = [text.partition("=") for text in options.metadata]
        if not all(mark for _, mark, _ in pairs):
            raise Mistake("--metadata: KEY=VALUE")
        sent["metadata"] = {key: value for key, _, value in pairs}
    return sent


async def _tenant(tenant_id: str) -> Tenant:
    tenant = await (await shared_tenants()).tenant(tenant_id)
    if tenant is None:
        raise Mistake(f"there is no tenant '{tenant_id}'; make it: python -m asgi_llm_gateway tenants create NAME")
    return tenant


async def _standing(tenant: Tenant) -> TenantAnswer:
    now = time.time()
    balance = await (await shared_ledger()).balance(tenant.id, "", window_of(tenant.period, now))
    return tenant_answer(tenant, balance, now)


async def _create(options: argparse.Namespace) -> int:
    wanted = checked(NewTenant, {"id": options.id, **_sent(options)})
    tenant = Tenant(created=time.time(), **wanted.for_record())
    if not await (await shared_tenants()).add_tenant(tenant):
        raise Mistake(f"the tenant '{options.id}' exists already")
    say(f"made the tenant '{options.id}'; a key for it: python -m asgi_llm_gateway keys create {options.id}")
    return 0


async def _list(options: argparse.Namespace) -> int:
    found = await (await shared_tenants()).tenants()
    if options.json:
        say(as_json(TenantsAnswer(data=[await _standing(tenant) for tenant in found], next=None)).decode())
        return 0
    for tenant in found:
        say(f"{tenant.id}\t{tenant.name}\t{'enabled' if tenant.enabled else 'disabled'}")
    return 0


async def _show(options: argparse.Namespace) -> int:
    answer = await _standing(await _tenant(options.id))
    if options.json:
        say(as_json(answer).decode())
        return 0
    for name, value in answer:
        say(f"{name:<18} {_shown(name, value)}".rstrip())
    return 0


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "all" if name == "allowed_models" else "none"
    if name.endswith("_usd"):
        return usd_number(value)
    if name in ("created", "period_start", "period_end"):
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(value))
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={text}" for key, text in value.items())
    return str(value)


async def _update(options: argparse.Namespace) -> int:
    sent = _sent(options)
    if options.enabled is not None:
        sent["enabled"] = options.enabled
    if not sent:
        raise Mistake("nothing to change was given; see: python -m asgi_llm_gateway tenants update --help")
    wanted = checked(TenantChange, sent)
    tenant = replace(await _tenant(options.id), **wanted.for_record())
    await (await shared_tenants()).put_tenant(tenant)
    say(f"changed the tenant '{options.id}': {', '.join(sent)}")
    return 0


async def _delete(options: argparse.Namespace) -> int:
    tenant = await _tenant(options.id)
    await (await shared_tenants()).drop_tenant(tenant.id, time.time())
    say(f"deleted the tenant '{tenant.id}' and revoked its keys; its records stay")
    return 0
