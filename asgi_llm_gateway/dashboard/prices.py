"""``/dashboard/api/prices``: what is charged, for the models that are set up and those that were used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from starlette.responses import Response

from ..admin.visit import Visit, reply
from ..prices import PriceTable
from ..records import Price, Target
from .models import PriceAnswer, PricesAnswer, TierAnswer

_USED = 90 * 86400.0  # seconds for which a model counts as used


class PriceList(NamedTuple):
    """What calls are charged by.

    Attributes:
        table: The prices.
        models: The names that are set up.
        targets: Where a name leads; nowhere for one that is not served.
    """

    table: PriceTable
    models: Sequence[str]
    targets: Callable[[str], Sequence[Target]]

    def rows(self, names: Iterable[str]) -> list[PriceAnswer]:
        """A row for each target of each name, by name, and one for a name that leads nowhere.

        The very first look-up of a model that is not in the settings loads a list, in 0.2 s: for a thread.
        """
        found = []
        for model in sorted(set(names)):
            targets = self.targets(model)
            for provider, name in dict.fromkeys(targets) or [(None, model)]:
                found.append(_row(model, provider, name, self.table.find(name, provider, model)))
        return found


async def listed(prices: PriceList, visit: Visit) -> Response:
    """The price list in force; for a tenant, of the models that it may use and of those that it did use."""
    own = visit.caller.tenant
    log = await visit.log()
    spend = await log.spend(since=max(0.0, visit.now - _USED), until=visit.now + 1, step=_USED, tenant=own)
    names = {model for _, model, _ in spend.by_model if model is not None}
    if own is None:
        names.update(prices.models)
    else:
        tenant = await (await visit.tenants()).tenant(own)
        allowed = None if tenant is None else tenant.allowed_models
        names.update(model for model in prices.models if allowed is None or model in allowed)
    return reply(PricesAnswer(data=await asyncio.to_thread(prices.rows, names)))


def _row(model: str, provider: str | None, name: str, price: Price | None) -> PriceAnswer:
    known = price is not None
    price = price or Price(0, 0)
    units = price.units
    return PriceAnswer(
        model=model,
        provider=provider,
        upstream_model=name,
        known=known,
        local=price.local,
        usd_per_million_in=price.prompt if known else None,
        usd_per_million_out=price.completion if known else None,
        usd_per_million_cached=price.cached,
        usd_per_million_cache_write=price.cache_write,
        usd_per_million_media_in=units and units.media_in,
        usd_per_million_media_out=units and units.media_out,
        usd_per_image=units and units.image,
        usd_per_minute=units and units.minute,
        usd_per_million_characters=units and units.characters,
        usd_per_request=units and units.request,
        context=price.context,
        tiers=[
            TierAnswer(
                above_tokens=tier.above,
                usd_per_million_in=tier.prompt,
                usd_per_million_out=tier.completion,
                usd_per_million_cached=tier.cached,
                usd_per_million_cache_write=tier.cache_write,
            )
            for tier in price.tiers
        ],
    )


__all__ = ["PriceList", "listed"]
