"""``GET /metrics``: what Prometheus scrapes; for those who show a key, unless the operator made it public."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from .._perloop import PerLoop
from ..errors import Forbidden, StoreError
from ..meters import families as f
from ..meters.exposition import render
from ..meters.meters import Meters, Reading
from ..periods import window_of
from ..records import NANO_PER_USD, Balance, Tenant
from ..stores.base import CallLog, Ledger, TenantStore
from .access import Access

log = logging.getLogger("asgi_llm_gateway")

_FRESH = 5.0  # seconds for which what the store told is told again: two Prometheus servers ask it once
_PATIENCE = 5.0  # seconds for the store; a page without its budgets is better than none
_AT_ONCE = 16  # balances that the ledger is asked for side by side


class Openers(NamedTuple):
    """How the page finds the stores."""

    tenants: Callable[[], Awaitable[TenantStore]]
    ledger: Callable[[], Awaitable[Ledger]]
    log: Callable[[], Awaitable[CallLog]]


class MetricsPage:
    """The page. It is made in a thread, one at a time: the event loop goes on with the calls meanwhile.

    Args:
        access: Who is an admin.
        stores: Where budgets stand; asked when the page is, with ``llm_store_up`` 0 in place of them where that fails.
        meters: Opens the meters that are shown.
        token: METRICS_TOKEN: a key for this page and nothing else; ``None``: there is none.
        public: Anybody may read it.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        access: Access,
        stores: Openers,
        meters: Callable[[], Meters],
        *,
        token: str | None = None,
        public: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._access = access
        self._stores = stores
        self._meters = meters
        self._token = hashlib.sha256(token.encode()).digest() if token else None
        self._public = public
        self._clock = clock
        self._told: tuple[float, list[Reading]] | None = None
        self._rendering: PerLoop[dict[str, asyncio.Task[tuple[bytes, str]]]] = PerLoop()

    async def __call__(self, request: Request) -> Response:
        """The page. Raises InvalidKey, Forbidden, StoreError."""
        await self._admit([value for name, value in request.scope["headers"] if name.lower() == b"authorization"])
        accept = request.headers.get("accept", "")[:1000]
        form = "openmetrics" if accept.find("application/openmetrics-text") >= 0 else "text"
        under_way = self._rendering.get() or self._rendering.put({})
        task = under_way.get(form)
        if task is None or task.done():  # else whoever asks meanwhile gets the same page
            task = under_way[form] = asyncio.get_running_loop().create_task(self._render(form))
        body, kind = await asyncio.shield(task)
        under_way.pop(form, None)
        return Response(body, media_type=None, headers={"content-type": kind, "cache-control": "no-store"})

    async def _admit(self, shown: list[bytes]) -> None:
        if self._public:
            return
        if self._token is not None and len(shown) == 1:
            kind, _, key = shown[0].partition(b" ")
            digest = hashlib.sha256(key.strip()).digest()
            if kind.lower() == b"bearer" and hmac.compare_digest(digest, self._token):
                return
        caller = await self._access.caller(shown, self._clock())
        if caller.tenant is not None:
            raise Forbidden("A tenant's key can't read the metrics, which tell of all tenants. Use METRICS_TOKEN.")

    async def _render(self, form: str) -> tuple[bytes, str]:
        more = await self._standing()
        accept = "application/openmetrics-text; version=1.0.0" if form == "openmetrics" else ""
        return await asyncio.to_thread(render, self._meters(), accept, more)

    async def _standing(self) -> list[Reading]:
        """What the store knows, and no process: budgets and holds over all workers."""
        now = self._clock()
        if self._told is not None and 0 <= now - self._told[0] < _FRESH:
            return self._told[1]
        try:
            async with asyncio.timeout(_PATIENCE):
                found = [*await self._budgets(now), Reading(f.STORE_UP, (), 1)]
        except (StoreError, TimeoutError) as error:
            log.warning("the metrics have no budgets: the store does not answer: %s", error or "timed out")
            return [Reading(f.STORE_UP, (), 0)]
        self._told = now, found
        return found

    async def _budgets(self, now: float) -> list[Reading]:
        most = self._meters().max_tenants
        ledger = await self._stores.ledger()
        tenants = await (await self._stores.tenants()).tenants()
        with_budget = [tenant for tenant in tenants if tenant.budget is not None]
        settled = (await (await self._stores.log()).stats()).cost
        found = [
            Reading(f.SETTLED, (), settled / NANO_PER_USD),
            Reading(f.UNLISTED, (), max(0, len(with_budget) - most)),
        ]
        left = iter(with_budget[:most])
        while some := list(islice(left, _AT_ONCE)):
            balances = await asyncio.gather(
                *(ledger.balance(one.id, "", 0 if one.period == "none" else window_of(one.period, now)) for one in some)
            )
            for tenant, balance in zip(some, balances, strict=True):
                found += _rows(tenant, balance)
        return found


def _rows(tenant: Tenant, balance: Balance) -> Iterator[Reading]:
    most = (tenant.budget or 0) + balance.credit
    labels = (tenant.id,)
    yield Reading(f.BUDGET, labels, most / NANO_PER_USD)
    yield Reading(f.BUDGET_LEFT, labels, (most - balance.spent - balance.held) / NANO_PER_USD)
    yield Reading(f.HELD, labels, balance.held / NANO_PER_USD)


__all__ = ["MetricsPage", "Openers"]
