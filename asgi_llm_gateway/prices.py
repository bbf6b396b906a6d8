"""What a call costs, in integer nano-USD: tokens by the million, images, audio and speech by their own measures.

A call's cost is rounded up once. Default prices: the product specification (gpt-4, gpt-3.5-turbo, claude-3-opus,
claude-3-sonnet; USD per 1K tokens); OpenAI's pricing page for images, audio and moderation; of all other models, where it is
installed, the ``genai-prices`` package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import _price_source
from .records import NANO_PER_USD, Price, UnitPrice, Units, Usage

_MILLION = 1_000_000
_REMEMBERED = 4_096  # look-ups; clients choose the names
_LONGEST = 256  # characters of a name that is looked up; no model has so long a one
LOCAL_PROVIDERS = frozenset({"echo", "llamacpp", "vllm", "ollama"})
"""Providers that run on own machines: their tokens cost nothing where no price is set."""

FREE = Price(0, 0, local=True)


def _per_thousand(prompt: str, completion: str) -> Price:
    """Prices as published, in USD per 1,000 tokens."""
    return Price(_nano_per_million(prompt), _nano_per_million(completion))


def _nano_per_million(usd_per_thousand: str) -> int:
    whole, _, part = usd_per_thousand.partition(".")
    return int(whole + part.ljust(12, "0"))  # 1e9 nano-USD times 1e3 thousands in a million


_SPECIFIED = {
    "gpt-4": _per_thousand("0.03", "0.06"),
    "gpt-3.5-turbo": _per_thousand("0.001", "0.001"),
    "claude-3-opus": _per_thousand("0.015", "0.075"),
    "claude-3-sonnet": _per_thousand("0.003", "0.015"),
}
# The dated variants that the providers list under the same price.
_DATED = {
    "gpt-4": ("gpt-4-0314", "gpt-4-0613"),
    "gpt-3.5-turbo": ("gpt-3.5-turbo-0301", "gpt-3.5-turbo-0613", "gpt-3.5-turbo-1106", "gpt-3.5-turbo-0125"),
    "claude-3-opus": ("claude-3-opus-20240229", "claude-3-opus-latest"),
    "claude-3-sonnet": ("claude-3-sonnet-20240229",),
}

_CENT = NANO_PER_USD // 100


def _images(*rows: tuple[str, str, int]) -> Price:
    """Prices of an image by quality and size, in tenths of a US cent."""
    images = tuple((quality, size, tenths * _CENT // 10) for quality, size, tenths in rows)
    return Price(0, 0, units=UnitPrice(image=max(nano for *_, nano in images), images=images))


# Source: OpenAI pricing page, "Image generation", "Transcription and speech generation" and "Moderation", as of autumn 2026.
# Models that are charged by tokens (gpt-image-1, gpt-4o-transcribe, gpt-4o-mini-tts) are in the package's list.
_OTHER_MEDIA = {
    "whisper-1": Price(0, 0, units=UnitPrice(minute=6 * _CENT // 10)),
    "tts-1": Price(0, 0, units=UnitPrice(characters=15 * NANO_PER_USD)),
    "tts-1-1106": Price(0, 0, units=UnitPrice(characters=15 * NANO_PER_USD)),
    "tts-1-hd": Price(0, 0, units=UnitPrice(characters=30 * NANO_PER_USD)),
    "tts-1-hd-1106": Price(0, 0, units=UnitPrice(characters=30 * NANO_PER_USD)),
    "dall-e-2": _images(("", "256x256", 16), ("", "512x512", 18), ("", "1024x1024", 20)),
    "dall-e-3": _images(
        ("standard", "1024x1024", 40), ("standard", "1024x1792", 80), ("standard", "1792x1024", 80),
        ("hd", "1024x1024", 80), ("hd", "1024x1792", 120), ("hd", "1792x1024", 120),
    ),
    "omni-moderation-latest": Price(0, 0),
    "omni-moderation-2024-09-26": Price(0, 0),
    "text-moderation-latest": Price(0, 0),
    "text-moderation-stable": Price(0, 0),
}  # fmt: skip

_Key = tuple[str, str | None, str | None]


class PriceTable:
    """Model names to prices: own ones, then the specified ones, then those of the ``genai-prices`` package.

    Args:
        own: Prices that come first: ``"model"`` or ``"provider/model"`` to a Price in nano-USD per million tokens.
        local: Providers on own machines, beside those that are called so (LOCAL_PROVIDERS).
        clock: Unix time in seconds: some listed prices begin at a date.
    """

    def __init__(
        self,
        own: Mapping[str, Price] | None = None,
        *,
        local: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._prices = _SPECIFIED | _OTHER_MEDIA
        for name, dated in _DATED.items():
            self._prices.update(dict.fromkeys(dated, _SPECIFIED[name]))
        self._own = dict(own or {})
        self._prices.update(self._own)
        self._local = LOCAL_PROVIDERS.union(local)
        self._clock = clock
        self._known: dict[_Key, Price | None] = {}
        self._ending: dict[_Key, _price_source.Listed] = {}  # the few whose price is known to change

    def find(self, model: str, provider: str | None = None, asked: str | None = None) -> Price | None:
        """The price of a model, ``None`` where it is not known.

        A name with a provider in front (``openai/gpt-4``) is looked up as it is, then without it. ``asked`` is the name
        that the client used: its own price counts, unless the target has one of its own.

        The first look-up of a listed model takes about 0.1 ms; the very first one loads the list, unless ``warm`` did.
        """
        try:
            return self._known[model, provider, asked]
        except KeyError:
            return self._look_up((model, provider, asked))

    def _look_up(self, key: _Key) -> Price | None:
        model, provider, asked = key
        if any(name is not None and len(name) > _LONGEST for name in key):
            return self._own.get(model)
        if (ending := self._ending.get(key)) is not None:
            if ending.until is not None and self._clock() < ending.until:
                return ending.price
            del self._ending[key]
        found = self._find(model, provider, asked)
        until = None
        if found is None:
            found, until = _price_source.listed(model, provider, self._clock())
        for known in (self._known, self._ending):
            if len(known) >= _REMEMBERED:
                known.clear()  # those in use are back at once; a client that makes names up can't fill the memory
        if until is not None:
            self._ending[key] = _price_source.Listed(found, until)
        else:
            self._known[key] = found
        return found

    def _find(self, model: str, provider: str | None, asked: str | None) -> Price | None:
        if asked in self._own and model not in self._own and f"{provider}/{model}" not in self._own:
            return self._own[asked]
        if provider is not None:
            found = self._prices.get(f"{provider}/{model}")
            if found is not None:
                return found
        found = self._prices.get(model)
        if found is not None:
            return found
        if provider in self._local or model in self._local:
            return FREE
        front, slash, rest = model.partition("/")
        return self._find(rest, front, None) if slash and rest else None


def warm() -> bool:
    """Load the ``genai-prices`` package, and say whether it is installed. Takes 0.2 s: call it in a thread at the start."""
    return _price_source.warm()


def cost_of(usage: Usage, price: Price) -> int:
    """What ``usage`` costs in nano-USD, rounded up once."""
    prompt_rate, completion_rate, _, cached_rate, write_rate, tiers, _, units = price
    if units is not None:
        return _cost_with_units(usage, price, units)
    if not tiers and cached_rate is None and write_rate is None:
        return -(-(usage.prompt * prompt_rate + usage.completion * completion_rate) // _MILLION)
    return -(-_tokens_of(usage, price) // _MILLION)


def _tokens_of(
    usage: Usage, price: Price, media_in: int = 0, in_rate: int = 0, media_out: int = 0, out_rate: int = 0
) -> int:
    """What the tokens cost, in nano-USD times a million; ``media_in`` and ``media_out`` of them have rates of their own."""
    prompt_rate, completion_rate, _, cached_rate, write_rate, tiers, _, _ = price
    prompt = usage.prompt
    for tier in reversed(tiers):
        if prompt > tier.above:
            _, prompt_rate, completion_rate, cached_rate, write_rate = tier
            break
    # A provider that reports more parts than there is whole is believed about the dearer part first, which is the write.
    written = min(usage.cache_write, prompt)
    cached = min(usage.cached, prompt - written)
    media = min(media_in, prompt - written - cached)
    made = min(media_out, usage.completion)
    return (
        (prompt - written - cached - media) * prompt_rate
        + cached * (prompt_rate if cached_rate is None else cached_rate)
        + written * (prompt_rate if write_rate is None else write_rate)
        + media * in_rate
        + (usage.completion - made) * completion_rate
        + made * out_rate
    )


_NO_UNITS = Units()


def _cost_with_units(usage: Usage, price: Price, units: UnitPrice) -> int:
    """The cost of a model that is not charged by text tokens alone, summed in parts of 1/60,000,000 nano-USD."""
    used = usage.units or _NO_UNITS
    heard, made = units.media_in, units.media_out
    tokens = _tokens_of(
        usage,
        price,
        used.media_in if heard is not None else 0,
        heard or 0,
        used.media_out if made is not None else 0,
        made or 0,
    )
    parts = 60 * (tokens + used.characters * (units.characters or 0)) + used.seconds * (units.minute or 0) * _MILLION
    each = used.images * (units.image or 0)
    if units.request is not None and (usage.prompt or usage.completion or usage.units is not None):
        each += units.request  # nothing used at all is a call that was refused, or not sent
    return each - (-parts // (60 * _MILLION))


def ceiling_of(prompt_bound: int, output: int, price: Price) -> int:
    """What a call of at most so many tokens can cost at most, in nano-USD.

    No usage of text with ``prompt <= prompt_bound`` and ``completion <= output`` costs more, whatever part of it is cached
    and whichever tier it falls into. What images and audio can cost at most, ``units.ceiling`` says.
    """
    prompt_rate, completion_rate = _dearest(prompt_bound, price)
    money = -(-(prompt_bound * prompt_rate + output * completion_rate) // _MILLION)
    return money if price.units is None else money + (price.units.request or 0)


def output_for(amount: int, prompt_bound: int, price: Price, wanted: int) -> int:
    """The most output tokens, at most ``wanted``, of which ``ceiling_of`` says that ``amount`` nano-USD pay for them.

    0 also where the prompt alone is too dear; ``wanted`` where output costs nothing.
    """
    prompt_rate, completion_rate = _dearest(prompt_bound, price)
    if price.units is not None:
        amount -= price.units.request or 0
    left = amount * _MILLION - prompt_bound * prompt_rate
    if left < 0:
        return 0
    return min(wanted, left // completion_rate) if completion_rate else wanted


def _dearest(prompt_bound: int, price: Price) -> tuple[int, int]:
    """The highest prices for a token of a prompt of at most so many tokens, and for one of its answer."""
    prompt_rate, completion_rate, _, cached_rate, write_rate, tiers, _, _ = price
    if not tiers and cached_rate is None and write_rate is None:
        return prompt_rate, completion_rate
    prompt_rate = max(prompt_rate, cached_rate or 0, write_rate or 0)
    for above, prompt, completion, cached, write in tiers:
        if prompt_bound > above:
            prompt_rate = max(prompt_rate, prompt, cached or 0, write or 0)
            completion_rate = max(completion_rate, completion)
    return prompt_rate, completion_rate


DEFAULT_PRICES = PriceTable()


def prices_of(models: Any, providers: Any = None) -> PriceTable:
    """The default prices with those of the settings file in front; its providers of a local type cost nothing."""
    own = {name: price for name, model in models.items() if (price := _price_in(model)) is not None}
    local = {name for name, one in (providers or {}).items() if (one.type or name) in LOCAL_PROVIDERS}
    return PriceTable(own, local=local) if own or local else DEFAULT_PRICES


def _price_in(model: Any) -> Price | None:
    """The price in a model's settings; ``None`` where they name none."""
    units = UnitPrice(
        image=model.usd_per_image,
        minute=model.usd_per_minute,
        characters=model.usd_per_million_characters,
        request=model.usd_per_request,
    )
    charged = units != UnitPrice()
    if model.usd_per_million_in is None and model.usd_per_million_out is None and not charged:
        return None
    return Price(
        model.usd_per_million_in or 0,
        model.usd_per_million_out or 0,
        cached=model.usd_per_million_cached,
        cache_write=model.usd_per_million_cache_write,
        context=model.context,
        units=units if charged else None,
    )
