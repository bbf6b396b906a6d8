"""``keys create | list | revoke | rotate``. A secret goes to the terminal once, and nowhere else."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

from ..admin.answers import KeysAnswer, as_json, key_answer, new_key_answer
from ..admin.models import NewKey, Rotation, checked
from ..keys import new_admin_key, new_key, successor
from ..periods import window_of
from ..records import ApiKey, Balance, Tenant
from ..stores.base import TenantStore
from ..stores.shared import shared_ledger, shared_tenants
from .terminal import Commands, Mistake, add_json, names, run, say, seconds


def add(commands: Commands) -> None:
    """Put the commands into the parser."""
    verbs = commands.add_parser("keys", help="API keys of a tenant, and admin keys").add_subparsers(
        required=True, metavar="VERB"
    )
    create = verbs.add_parser("create", help="make a key and show it, once")
    create.add_argument("tenant", nargs="?", help="whose calls the key makes; none with --admin")
    create.add_argument("--admin", action="store_true", help="a key for the admin API, and for nothing else")
    create.add_argument("--name", default="", help="for people to read")
    create.add_argument("--expires-in", help="a duration such as 12h or 30d; without it the key does not expire")
    create.add_argument("--budget-usd", help="US dollars that this key may spend of its tenant's budget, a period")
    create.add_argument("--rate-requests", help="requests of this key in a window, within its tenant's")
    create.add_argument("--rate-tokens", help="tokens of this key in a window, within its tenant's")
    create.add_argument("--concurrency", help="calls of this key at once, within its tenant's")
    create.add_argument("--models", default="all", help="names that may be asked for, with commas between")
    create.add_argument("--also-tenants", default="", help="other tenants that it may act for, with commas between")
    add_json(create)
    create.set_defaults(run=lambda options: run(_create(options)))
    listing = verbs.add_parser("list", help="list the keys of a tenant, revoked ones too, without their secrets")
    listing.add_argument("tenant", nargs="?")
    listing.add_argument("--admin", action="store_true", help="the admin keys")
    add_json(listing)
    listing.set_defaults(run=lambda options: run(_list(options)))
    revoke = verbs.add_parser("revoke", help="end a key now")
    revoke.add_argument("key_id", help="as 'keys list' shows it")
    revoke.set_defaults(run=lambda options: run(_revoke(options)))
    rotate = verbs.add_parser("rotate", help="make a key with the settings of another, which ends after the overlap")
    rotate.add_argument("key_id", help="as 'keys list' shows it")
    rotate.add_argument(
        "--overlap", help="how long the old key still works, such as 10m or 1d, at most 30d; default: not"
    )
    add_json(rotate)
    rotate.set_defaults(run=lambda options: run(_rotate(options)))


_RATES = ("rate_requests", "rate_tokens", "concurrency")


async def _owner(options: argparse.Namespace) -> Tenant | None:
    """The tenant that was named; ``None`` for ``--admin``. Raises Mistake."""
    if options.admin == (options.tenant is not None):
        raise Mistake("name a tenant, or give --admin, one of them")
    if options.admin:
        return None
    tenant = await (await shared_tenants()).tenant(options.tenant)
    if tenant is None:
        raise Mistake(f"there is no tenant '{options.tenant}'; make it: python -m asgi_llm_gateway tenants create NAME")
    return tenant


async def _create(options: argparse.Namespace) -> int:
    sent: dict[str, Any] = {"name": options.name, "allowed_models": names(options.models)}
    if options.expires_in is not None:
        sent["expires_in_seconds"] = seconds("--expires-in", options.expires_in)
    if options.budget_usd is not None:
        sent["budget_usd"] = options.budget_usd
    for name in _RATES:
        if getattr(options, name) is not None:
            sent[name] = getattr(options, name)
    sent["also_tenants"] = names(options.also_tenants) or []
    wanted = checked(NewKey, sent)
    tenant = await _owner(options)
    store = await shared_tenants()
    expires = None if wanted.expires_in_seconds is None else time.time() + wanted.expires_in_seconds
    if tenant is None:
        limited = any(getattr(wanted, name) is not None for name in ("budget_usd", *_RATES))
        if limited or wanted.allowed_models is not None or wanted.also_tenants:
            raise Mistake("an admin key makes no calls: it has no budget, no limits, no models and no tenants")
        key, secret = new_admin_key(name=wanted.name, expires=expires)
    else:
        for other in wanted.also_tenants:
            if await store.tenant(other) is None:
                raise Mistake(f"--also-tenants: there is no tenant '{other}'")
        key, secret = new_key(tenant.id, name=wanted.name, expires=expires)
        models = None if wanted.allowed_models is None else tuple(wanted.allowed_models)
        key = replace(
            key,
            budget=wanted.budget_usd,
            rate_requests=wanted.rate_requests,
            rate_tokens=wanted.rate_tokens,
            concurrency=wanted.concurrency,
            allowed_models=models,
            also_tenants=tuple(wanted.also_tenants),
        )
    await store.add_key(key)
    _show_once(key, secret, options)
    return 0


def _show_once(key: ApiKey, secret: str, options: argparse.Namespace) -> None:
    say(as_json(new_key_answer(key, secret)).decode() if options.json else f"{key.id}\n{secret}")


async def _list(options: argparse.Namespace) -> int:
    tenant = await _owner(options)
    found = await (await shared_tenants()).keys("" if tenant is None else tenant.id)
    if options.json:
        rows = [key_answer(key, await _balance(tenant, key)) for key in found]
        say(as_json(KeysAnswer(data=rows, next=None)).decode())
        return 0
    for key in found:
        say(f"{key.id}\t{key.name}\t{_state(key, time.time())}")
    return 0


async def _balance(tenant: Tenant | None, key: ApiKey) -> Balance:
    if tenant is None or key.budget is None:
        return Balance()
    return await (await shared_ledger()).balance(tenant.id, key.id, window_of(tenant.period, time.time()))


def _state(key: ApiKey, now: float) -> str:
    ends = [(at, word) for at, word in ((key.revoked, "revoked"), (key.expires, "expires")) if at is not None]
    if not ends:
        return "valid"
    at, word = min(ends)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    if word == "expires":
        return f"expired {when}" if at <= now else f"valid until {when}"
    return f"revoked {when}" if at <= now else f"valid until {when}"


async def _revoke(options: argparse.Namespace) -> int:
    if not await (await shared_tenants()).revoke_key(options.key_id, time.time()):
        raise Mistake(f"there is no key '{options.key_id}'")
    say(f"revoked {options.key_id}")
    return 0


async def _rotate(options: argparse.Namespace) -> int:
    overlap = 0 if options.overlap is None else seconds("--overlap", options.overlap)
    checked(Rotation, {"overlap_seconds": overlap})
    store = await shared_tenants()
    old = await _find(store, options.key_id)
    now = time.time()
    if old.revoked is not None or (old.expires is not None and old.expires <= now):
        raise Mistake(f"the key '{old.id}' was rotated or revoked before, or has expired; make a new one")
    key, secret = successor(old)
    await store.add_key(key)
    await store.revoke_key(old.id, now + overlap)
    _show_once(key, secret, options)
    return 0


async def _find(store: TenantStore, key_id: str) -> ApiKey:
    """A key by its id alone, as ``revoke`` takes it: the store finds keys by tenant, so each is asked."""
    for owner in ("", *(tenant.id for tenant in await store.tenants())):
        for key in await store.keys(owner):
            if key.id == key_id:
                return key
    raise Mistake(f"there is no key '{key_id}'")
