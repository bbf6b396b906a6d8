"""``/v1/models``: what the caller may use."""

from __future__ import annotations

from typing import Any

import orjson

from ..allowed import may_use
from ..errors import NotFound
from ..prices import PriceTable
from ..records import Identity, Price, UnitPrice, usd_number
from .routing import Router


def _entry(router: Router, prices: PriceTable, name: str) -> dict[str, Any]:
    place = router.way(name).places[0]
    price = prices.find(place.target.model, place.target.provider, name)
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": place.target.provider,
        "provider": place.target.provider,
        "pricing": None if price is None else _pricing(price),
    }
    if price is not None and price.context is not None:
        entry["context_length"] = price.context
    return entry


_NO_UNITS = UnitPrice()


def _pricing(price: Price) -> dict[str, orjson.Fragment]:
    """USD per million tokens, image, minute, million characters and call, as exact numbers."""
    units = price.units or _NO_UNITS
    by_unit = {
        "usd_per_image": units.image,
        "usd_per_minute": units.minute,
        "usd_per_million_characters": units.characters,
        "usd_per_request": units.request,
        "usd_per_million_media_in": units.media_in,
        "usd_per_million_media_out": units.media_out,
    }
    told = {name: value for name, value in by_unit.items() if value is not None}
    if price.prompt or price.completion or not told:  # what is charged by units alone is not free
        told = {"usd_per_million_in": price.prompt, "usd_per_million_out": price.completion, **told}
    if price.cached is not None:
        told["usd_per_million_cached"] = price.cached
    if price.cache_write is not None:
        told["usd_per_million_cache_write"] = price.cache_write
    return {name: orjson.Fragment(usd_number(value)) for name, value in told.items()}


def names_for(router: Router, identity: Identity) -> list[str]:
    """The names that a caller may use: in the order of the settings, then those that only its own list names."""
    names = [name for name in router.models if may_use(identity, name)]
    for listed in (identity.tenant.allowed_models, identity.key.allowed_models if identity.key is not None else None):
        # "provider/model", or what only a pattern leads to.
        names += (name for name in listed or () if name not in names and may_use(identity, name) and router.has(name))
    return names


def model_list(router: Router, prices: PriceTable, identity: Identity) -> bytes:
    """The body of ``GET /v1/models``: OpenAI's list, with the provider and its prices beside each name."""
    data = [_entry(router, prices, name) for name in names_for(router, identity)]
    return orjson.dumps({"object": "list", "data": data})


def one_model(router: Router, prices: PriceTable, identity: Identity, name: str) -> bytes:
    """The body of ``GET /v1/models/{id}``. Raises NotFound."""
    if not may_use(identity, name):
        raise NotFound(f"The model '{name}' does not exist.", code="model_not_found", param="model")
    return orjson.dumps(_entry(router, prices, name))
