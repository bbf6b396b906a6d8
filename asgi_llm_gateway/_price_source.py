"""Prices of models that our own table lacks: the data of the ``genai-prices`` package, as integers.

An optional package, loaded by the first look-up that needs it (``warm`` does so ahead). Its own look-up keeps every name
that it was ever asked for; names come from clients, so its provider and model rules are asked here without that memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from .records import NANO_PER_USD, Price, Tier, UnitPrice

_MAX_NAME = 256  # characters; no model's name is longer
_ROUTER = "openrouter"  # whose names have their vendor in front: ``anthropic/claude-sonnet-4.5``


class Listed(NamedTuple):
    """A price as it stands, ``None`` where none is known, and the Unix second at which the list has another one."""

    price: Price | None
    until: float | None = None


_UNKNOWN = Listed(None)


def warm() -> bool:
    """Load the package, and say whether it is there: about 0.2 s, for a thread at the start."""
    package = _package()
    return package is not None and bool(package.get_snapshot().providers)


@cache
def _package() -> Any:
    """The package's module, looked for once; ``None`` where it is not installed."""
    try:
        return import_module("genai_prices.data_snapshot")
    except ImportError:
        return None


def listed(model: str, provider: str | None, now: float) -> Listed:
    """The price of a model at ``now`` (Unix seconds): with its provider, else with the vendor in its name, else by its name."""
    package = _package()
    if package is None or len(model) > _MAX_NAME:
        return _UNKNOWN
    today = datetime.fromtimestamp(now, UTC).date()
    for known in _candidates(package, model.lower(), provider):
        found = _price_of(known, today)
        if found.price is not None:
            return found
    return _UNKNOWN


def _candidates(package: Any, model: str, provider: str | None) -> Iterator[Any]:
    everybody = package.get_snapshot().providers
    front, slash, rest = model.partition("/")
    asked = [(provider, model)]
    if slash and rest:
        asked += [(front, rest), (_ROUTER, model)]
    for vendor, name in asked:
        # The package's rules know other spellings: bedrock is aws, gemini and vertex are google, xai is x-ai.
        known = package.find_provider_by_id(everybody, vendor) if vendor and len(vendor) <= _MAX_NAME else None
        if known is not None and (found := known.find_model(name, all_providers=everybody)) is not None:
            yield found
    for known in everybody:
        # Whose naming it is; and OpenAI's own, since its embeddings bear no mark of theirs.
        theirs = known.model_match is not None and known.model_match.is_match(model)
        if (theirs or known.id == "openai") and (found := known.find_model(model, all_providers=everybody)) is not None:
            yield found


def _price_of(model: Any, today: date) -> Listed:
    """A model's standard price. Not in it: batch and flex rebates, priority surcharges, fees a request or a page."""
    rows, until = _that_may_apply(model.prices, today)
    if any("input_mtok" not in row.__dict__ for row in rows):
        if (units := _units(rows)) is not None:
            return Listed(Price(0, 0, context=model.context_window, units=units), until)
        # Priced in other measures (pages), or not at all; but that one suffix says that it is free.
        free = model.id.endswith(":free") and not any(row.__dict__ for row in rows)
        return Listed(Price(0, 0, context=model.context_window), until) if free else _UNKNOWN
    starts = sorted({start for row in rows for value in row.__dict__.values() for start in _starts(value)})
    base, *tiers = (_rates(rows, above) for above in (0, *starts))
    context = model.context_window
    if context is not None and starts and context <= starts[-1]:
        context = None  # longer prompts have a price, so they are taken: the window is out of date
    return Listed(
        Price(*base[:2], cached=base[2], cache_write=base[3], context=context,
              tiers=tuple(Tier(above, *rates) for above, rates in zip(starts, tiers, strict=True)),
              units=_media_rates(rows)),
        until,
    )  # fmt: skip


# The package's words for a price by the hour of audio and by the million characters.
_HOURS = ("audio_hours", "input_audio_hours")
_CHARACTERS = ("input_mchars",)
_MEDIA_IN = ("input_audio_mtok", "input_image_mtok", "input_video_mtok")
_MEDIA_OUT = ("output_audio_mtok", "output_image_mtok", "output_video_mtok")


def _units(rows: list[Any]) -> UnitPrice | None:
    """The prices of a model that has none for tokens: by the minute, or by the character; ``None`` for other measures."""
    if all(set(row.__dict__) <= {*_HOURS, *_CHARACTERS} and row.__dict__ for row in rows):
        hour, characters = _dearest(rows, _HOURS), _dearest(rows, _CHARACTERS)
        return UnitPrice(minute=None if hour is None else -(-hour // 60), characters=characters)
    return None


def _media_rates(rows: list[Any]) -> UnitPrice | None:
    """The prices of tokens that are audio or images; ``None`` where they cost what other tokens do."""
    media_in, media_out = _dearest(rows, _MEDIA_IN), _dearest(rows, _MEDIA_OUT)
    return None if media_in is None and media_out is None else UnitPrice(media_in=media_in, media_out=media_out)


def _dearest(rows: list[Any], names: tuple[str, ...]) -> int | None:
    """The highest of those prices in any row, at any length."""
    told = [value for row in rows for name in names if (value := row.__dict__.get(name)) is not None]
    return max((_nano(value, above) for value in told for above in (0, *_starts(value))), default=None)


def _that_may_apply(prices: Any, today: date) -> tuple[list[Any], float | None]:
    """The prices that hold at some hour of today, and when the next ones begin.

    A later row goes before an earlier one. Those for an hour of the day are all kept, whatever the hour: the dearest of
    them is taken, since a call may run into the next hour, and a bound must never be too low.
    """
    if not isinstance(prices, list):
        return [prices], None
    found, until = [], None
    for row in reversed(prices):
        start: date | None = getattr(row.constraint, "start_date", None)
        if start is not None and start > today:
            begins = datetime.combine(start, time(), UTC).timestamp()
            until = begins if until is None else min(until, begins)
            continue
        found.append(row.prices)
        if row.constraint is None or start is not None:
            break  # it holds all day, so that nothing before it counts
    return found or [prices[0].prices], until


def _starts(value: Any) -> list[int]:
    return [tier.start for tier in getattr(value, "tiers", ())]


def _rates(rows: list[Any], above: int) -> tuple[int, int, int | None, int | None]:
    """Prompt, completion, cached read and cache write of a prompt longer than ``above``: the dearest of all rows."""
    prompt = max(_nano(row.__dict__["input_mtok"], above) for row in rows)
    completion = max(_nano(row.__dict__.get("output_mtok"), above) for row in rows)  # embeddings have none
    parts: list[int | None] = []
    for name in ("cache_read_mtok", "cache_write_mtok"):
        told = [row.__dict__.get(name) for row in rows]
        parts.append(max(prompt if value is None else _nano(value, above) for value in told) if any(told) else None)
    return prompt, completion, parts[0], parts[1]


def _nano(value: Any, above: int) -> int:
    """USD per million tokens, a Decimal or tiers of them, as nano-USD per million tokens: exact, a part of one rounded up."""
    if value is None:
        return 0
    if hasattr(value, "tiers"):
        fitting = [tier.price for tier in value.tiers if tier.start <= above] if above else []
        value = fitting[-1] if fitting else value.base  # the package keeps them in ascending order
    whole, parts = value.as_integer_ratio()
    return int(-(-whole * NANO_PER_USD // parts))


__all__ = ["Listed", "listed", "warm"]
