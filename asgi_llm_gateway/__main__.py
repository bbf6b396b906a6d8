"""The command line: ``python -m asgi_llm_gateway serve | check | tenants | keys``."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any
from urllib.parse import urlsplit

from ._closing import close_all
from .errors import StoreError
from .keys import check_tenant_id, new_key
from .proxy.routing import Router, router_of
from .records import Tenant
from .settings import Settings, SettingsError, current, current_file, nano_usd
from .stores.shared import shared_tenants, store_url

DEMO = "demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 is success, 1 a mistake that was told on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (SettingsError, StoreError) as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if "pip install" not in str(error):
            raise
        return _fail(str(error))


def _fail(text: str) -> int:
    sys.stderr.write(f"error: {text}\n")
    return 1


def _say(text: str) -> None:
    # To the terminal, never through logging: a key may be in it.
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asgi_llm_gateway", description="An LLM gateway in ASGI middleware."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the gateway (HOST, PORT, WEB_CONCURRENCY)")
    serve.set_defaults(run=_serve)
    check = commands.add_parser("check", help="validate the environment and the settings file, show what is served")
    check.set_defaults(run=_check)
    tenants = commands.add_parser("tenants", help="tenants of the store").add_subparsers(required=True, metavar="VERB")
    create = tenants.add_parser("create", help="make a tenant")
    create.add_argument("id")
    create.add_argument("--name", default="")
    create.add_argument("--budget-usd", default=None, help="for its lifetime; none is no limit")
    create.set_defaults(run=lambda options: _run(_create_tenant(options)))
    listing = tenants.add_parser("list", help="list the tenants")
    listing.set_defaults(run=lambda options: _run(_list_tenants()))
    keys = commands.add_parser("keys", help="API keys of a tenant").add_subparsers(required=True, metavar="VERB")
    create = keys.add_parser("create", help="make a key and show it, once")
    create.add_argument("tenant")
    create.add_argument("--name", default="")
    create.set_defaults(run=lambda options: _run(_create_key(options)))
    revoke = keys.add_parser("revoke", help="end a key")
    revoke.add_argument("key_id")
    revoke.set_defaults(run=lambda options: _run(_revoke_key(options)))
    return parser


def _run(work: Coroutine[Any, Any, int]) -> int:
    async def closing() -> int:
        try:
            return await work
        finally:
            await close_all()

    return asyncio.run(closing())


# -- serve -------------------------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    try:
        import uvicorn
    except ModuleNotFoundError:
        return _fail("serving needs: pip install 'asgi-llm-gateway[server]'")
    settings = current()
    router_of(settings, current_file())  # a mistake is told here, once, not by every worker
    store_url(settings)
    if settings.gateway_demo:
        if settings.host not in ("127.0.0.1", "localhost", "::1"):
            return _fail(f"GATEWAY_DEMO=1 serves this machine only, and HOST is {settings.host}. Unset one of them.")
        _run(_demo(settings))
    uvicorn.run(
        "asgi_llm_gateway.gateway:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.web_concurrency,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=30,
    )
    return 0


async def _demo(settings: Settings) -> int:
    """A tenant ``demo`` with a fresh key for the model ``echo``; the keys of earlier starts are revoked."""
    store = await shared_tenants()
    await store.put_tenant(Tenant(DEMO, "Demo", allowed_models=("echo",), created=time.time()))
    for old in await store.keys(DEMO):
        await store.revoke_key(old.id, time.time())
    key, secret = new_key(DEMO, name="demo")
    await store.add_key(key)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    _say(
        f"""
asgi_llm_gateway on http://{host}:{settings.port} - a key for the model 'echo', good until the next start. Try:

  curl -N http://{host}:{settings.port}/v1/chat/completions \\
    -H 'Authorization: Bearer {secret}' \\
    -H 'Content-Type: application/json' \\
    -d '{{"model": "echo", "stream": true, "messages": [{{"role": "user", "content": "Hello from curl"}}]}}'
"""
    )
    return 0


# -- check -------------------------------------------------------------------------------------------------------------


def _check(options: argparse.Namespace) -> int:
    settings, file = current(), current_file()
    router = router_of(settings, file)
    url = urlsplit(store_url(settings))
    where = url.path.removeprefix("/") if url.scheme.startswith("sqlite") else f"{url.hostname}{url.path}"
    _say(f"store      {url.scheme.partition('+')[0]}: {where}")
    _say(
        f"admin API  {'open with GATEWAY_ADMIN_KEY' if settings.gateway_admin_key else 'closed (GATEWAY_ADMIN_KEY is unset)'}"
    )
    if settings.enable_rate_limit:
        window = settings.rate_limit_window_ms / 1000
        _say(f"rate limit {settings.rate_limit_max_requests} requests in {window:g} s a tenant")
    else:
        _say("rate limit off")
    _say(f"streaming  {'on' if settings.enable_streaming else 'off'}")
    for adapter in router.adapters:
        _say(f"provider   {adapter.name}: {getattr(adapter, 'base_url', 'embedded')}")
    _say(f"models     {', '.join(router.models)}")
    for name in _loops(router, settings):
        _say(f"warning: the provider '{name}' points at this gateway's own address; its calls would be answered 508")
    return 0


def _loops(router: Router, settings: Settings) -> list[str]:
    """Providers whose base URL is where this gateway listens."""
    here = {settings.host, "127.0.0.1", "localhost", "::1", "0.0.0.0"}  # noqa: S104 - compared, not bound
    found = []
    for adapter in router.adapters:
        parts = urlsplit(getattr(adapter, "base_url", "") or "")
        if parts.hostname in here and (parts.port or {"http": 80, "https": 443}.get(parts.scheme)) == settings.port:
            found.append(adapter.name)
    return found


# -- tenants and keys --------------------------------------------------------------------------------------------------


async def _create_tenant(options: argparse.Namespace) -> int:
    try:
        check_tenant_id(options.id)
        budget = None if options.budget_usd is None else nano_usd(options.budget_usd)
    except ValueError as error:
        return _fail(str(error))
    tenant = Tenant(options.id, options.name, budget, created=time.time())
    if not await (await shared_tenants()).add_tenant(tenant):
        return _fail(f"the tenant '{options.id}' exists already")
    _say(f"made the tenant '{options.id}'; a key for it: python -m asgi_llm_gateway keys create {options.id}")
    return 0


async def _list_tenants() -> int:
    for tenant in await (await shared_tenants()).tenants():
        _say(f"{tenant.id}\t{tenant.name}\t{'enabled' if tenant.enabled else 'disabled'}")
    return 0


async def _create_key(options: argparse.Namespace) -> int:
    store = await shared_tenants()
    if await store.tenant(options.tenant) is None:
        return _fail(f"there is no tenant '{options.tenant}'; make it: python -m asgi_llm_gateway tenants create NAME")
    key, secret = new_key(options.tenant, name=options.name)
    await store.add_key(key)
    _say(f"{key.id}\n{secret}")
    return 0


async def _revoke_key(options: argparse.Namespace) -> int:
    if not await (await shared_tenants()).revoke_key(options.key_id, time.time()):
        return _fail(f"there is no key '{options.key_id}'")
    _say(f"revoked {options.key_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
