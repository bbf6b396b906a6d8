"""Who pays for a call that belongs to no request any more, or to none at all: an exchange and an account of its own."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ._asgi import Receive, Scope, Send
from ._closing import on_close
from ._perloop import PerLoop
from ._vocabulary import load
from .accounting import Account, Terms
from .calls import Lasting
from .errors import Forbidden, StoreError, Unavailable
from .exchange import Exchange
from .prices import PriceTable, prices_of, warm
from .records import DEFAULT_TENANT, Identity, Tenant, TraceRecord
from .stores.base import Ledger
from .stores.keeper import Keeper
from .wire import Route


async def _nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """The entry of an exchange that no client waits for."""


def own_exchange(route: Route, identity: Identity, record: TraceRecord | None = None) -> Exchange:
    """An exchange for one call that no client waits for; ``record`` gives the ids of the request that it came from."""
    exchange = Exchange(_nobody, route, {})
    exchange.identity = identity
    exchange.record = None if record is None else replace(record, model=None, provider=None, usage=None, cost=None)
    return exchange


def is_own(exchange: Exchange) -> bool:
    """Whether it is one of those."""
    return exchange.entry is _nobody


async def open_own(exchange: Exchange, account: Account) -> None:
    """Take a hold for such an exchange; it is settled when its call has ended. Raises GatewayError."""
    await account.open()
    exchange.guard(account)
    exchange.lasting = Lasting()
    exchange.lasting.later = account.settle


class Outside:
    """A tenant that pays for calls outside any request, on the settings' terms.

    Args:
        tenant: The tenant, or the id of one in the shared store; ``None`` is ``default``, without a budget.
        ledger: Where money is counted; ``None`` takes the shared ledger.
        prices: What tokens cost; ``None`` takes the default table with the settings' own prices.
    """

    def __init__(self, tenant: Tenant | str | None, ledger: Ledger | None, prices: PriceTable | None) -> None:
        self._tenant = Tenant(DEFAULT_TENANT) if tenant is None else tenant
        self._ledger = ledger
        self._prices = prices
        self._terms: Terms | None = None
        self._keepers: PerLoop[Keeper] = PerLoop()

    async def account(self, route: Route) -> tuple[Exchange, Account]:
        """An exchange of its own for one call, and who pays for it. Raises GatewayError."""
        try:
            keeper = self._keepers.get() or await self._keeper()
            exchange = own_exchange(route, Identity(await self._payer(), None))
        except StoreError as error:
            raise Unavailable(f"The budget can't be checked now: {error}.", code="store_unavailable") from error
        account = Account(self._terms or self._take_terms(), keeper, exchange)
        await open_own(exchange, account)
        return exchange, account

    async def _payer(self) -> Tenant:
        tenant = self._tenant
        if isinstance(tenant, str):
            from .stores.shared import shared_tenants

            found = await (await shared_tenants()).tenant(tenant)
            if found is None:
                raise Forbidden(f"There is no tenant '{tenant}' to pay for the call.", code="tenant_not_found")
            tenant = found
        if not tenant.enabled:
            raise Forbidden("The tenant is disabled.", code="tenant_disabled")
        return tenant

    def _take_terms(self) -> Terms:
        from .settings import current, current_file

        settings = current()
        prices = self._prices
        if prices is None:
            prices = prices_of(current_file().models, current_file().providers)
        self._terms = Terms(
            prices,
            settings.default_max_output_tokens,
            settings.min_output_tokens,
            settings.unknown_price == "free",
            settings.prompt_bound,
            settings.budget_status,
        )
        return self._terms

    async def _keeper(self) -> Keeper:
        from .settings import current

        settings = current()
        ledger = self._ledger
        if ledger is None:
            from .stores.shared import shared_ledger

            ledger = await shared_ledger()
        await asyncio.to_thread(_warm, settings.prompt_bound == "exact")
        known = self._keepers.get()
        if known is not None:  # made while this call waited
            return known
        keeper = Keeper(ledger, ttl=settings.hold_ttl_seconds, charge=settings.hold_lapsed == "charge")
        on_close(self._close)
        return self._keepers.put(keeper)

    async def _close(self) -> None:
        keeper = self._keepers.pop()
        if keeper is not None:
            await keeper.close()


def _warm(exact: bool) -> None:
    warm()
    if exact:
        load()


__all__ = ["Outside", "is_own", "open_own", "own_exchange"]
