"""The command line: ``python -m asgi_llm_gateway serve | check | migrate | tenants | keys | usage``."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from .cli import keys, migrate, tenants, usage
from .cli.terminal import Mistake, fail, run, say
from .draining import LINGER
from .errors import GatewayError, StoreError
from .keys import new_key
from .proxy.providers import router_of
from .proxy.routing import Router
from .records import Tenant
from .settings import Settings, SettingsError, current, current_file, secret
from .stores.shared import shared_tenants, store_url

DEMO = "demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 is success, 1 a mistake that was told on stderr."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (SettingsError, StoreError, Mistake, GatewayError) as error:
        return fail(str(error))
    except ModuleNotFoundError as error:
        if "pip install" not in str(error):
            raise
        return fail(str(error))
    except BrokenPipeError:  # who read us (head, less) has enough
        # The interpreter would try once more to write what is left, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asgi_llm_gateway", description="An LLM gateway in ASGI middleware."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the gateway (HOST, PORT, WEB_CONCURRENCY)")
    serve.set_defaults(run=_serve)
    check = commands.add_parser("check", help="validate the environment and the settings file, show what is served")
    check.set_defaults(run=_check)
    for part in (migrate, tenants, keys, usage):
        part.add(commands)
    return parser


# -- serve -------------------------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    try:
        import uvicorn
    except ModuleNotFoundError:
        return fail("serving needs: pip install 'asgi-llm-gateway[server]'")
    settings = current()
    router_of(settings, current_file())  # a mistake is told here, once, not by every worker
    store_url(settings)
    if settings.gateway_demo:
        if settings.host not in ("127.0.0.1", "localhost", "::1"):
            return fail(f"GATEWAY_DEMO=1 serves this machine only, and HOST is {settings.host}. Unset one of them.")
        run(_demo(settings))
    uvicorn.run(
        "asgi_llm_gateway.gateway:served",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.web_concurrency,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # After that uvicorn cancels what is left; the gateway has ended its own calls before.
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_seconds + LINGER + 1.0),
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
    say(
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
    say(f"store      {migrate.place(store_url(settings))}")
    redis = secret(settings.redis_url)
    if redis is not None:
        say(f"budgets    in Redis at {urlsplit(redis).hostname}, with the store as the record")
    say(
        f"admin API  {'open with GATEWAY_ADMIN_KEY' if settings.gateway_admin_key else 'closed (GATEWAY_ADMIN_KEY is unset)'}"
    )
    say(f"dashboard  {'at /dashboard' if settings.enable_dashboard else 'off (ENABLE_DASHBOARD)'}")
    if settings.enable_rate_limit:
        window = settings.rate_limit_window_ms / 1000
        say(f"rate limit {settings.rate_limit_max_requests} requests in {window:g} s a tenant")
    else:
        say("rate limit off")
    say(f"streaming  {'on' if settings.enable_streaming else 'off'}")
    for adapter in router.adapters:
        say(f"provider   {adapter.name}: {getattr(adapter, 'base_url', 'embedded')}")
    say(f"models     {', '.join(router.models)}")
    for name in _loops(router, settings):
        say(f"warning: the provider '{name}' points at this gateway's own address; its calls would be answered 508")
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


if __name__ == "__main__":
    sys.exit(main())
