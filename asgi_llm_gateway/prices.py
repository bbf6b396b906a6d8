"""What tokens cost, in integer nano-USD per million tokens. A call's cost is rounded up once.

Default prices: the product specification (gpt-4, gpt-3.5-turbo, claude-3-opus, claude-3-sonnet; USD per 1K tokens).
"""

from __future__ import annotations

from collections.abc import Mapping

from .records import Price, Usage

_MILLION = 1_000_000
_REMEMBERED = 10_000  # look-ups; clients choose the names
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


class PriceTable:
    """Model names to prices.

    Args:
        own: Prices that come first: ``"model"`` or ``"provider/model"`` to a Price in nano-USD per million tokens.
    """

    def __init__(self, own: Mapping[str, Price] | None = None) -> None:
        self._prices = dict(_SPECIFIED)
        for name, dated in _DATED.items():
            self._prices.update(dict.fromkeys(dated, _SPECIFIED[name]))
        self._own = dict(own or {})
        self._prices.update(self._own)
        self._known: dict[tuple[str, str | None, str | None], Price] = {}

    def find(self, model: str, provider: str | None = None, asked: str | None = None) -> Price | None:
        """The price of a model, ``None`` where it is not known.

        A name with a provider in front (``openai/gpt-4``) is looked up as it is, then without it. ``asked`` is the name
        that the client used: its own price counts, unless the target has one of its own.
        """
        key = (model, provider, asked)
        known = self._known.get(key)
        if known is None:
            known = self._find(model, provider, asked)
            if known is not None and len(self._known) < _REMEMBERED:
                self._known[key] = known
        return known

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
        if provider in LOCAL_PROVIDERS or model in LOCAL_PROVIDERS:
            return FREE
        front, slash, rest = model.partition("/")
        return self._find(rest, front, None) if slash and rest else None


def cost_of(usage: Usage, price: Price) -> int:
    """What ``usage`` costs in nano-USD, rounded up once."""
    return -(-(usage.prompt * price.prompt + usage.completion * price.completion) // _MILLION)


DEFAULT_PRICES = PriceTable()
