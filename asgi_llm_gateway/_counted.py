"""What a call used: the counts that can be believed, and estimates for those that were not told."""

from __future__ import annotations

import logging

from .records import Price, Usage
from .tokens import answers, estimate
from .units import completed
from .usage import UsageReader
from .wire import MEDIA, LLMRequest

log = logging.getLogger("asgi_llm_gateway")

_ABSURD = 10  # times the model's context: no count that a provider could mean
_LARGEST_CONTEXT = 10_000_000  # tokens, of a model whose context is not known


def sane(usage: Usage | None, request: LLMRequest | None, price: Price, model: str | None = None) -> Usage:
    """Counts that can be meant: unknown and absurd ones are estimated; an estimate never passes what was allowed.

    ``model`` is the model's name at its provider, if it is another than was asked for.
    """
    if request is not None and request.route.dialect in MEDIA:
        if usage is not None and not _meant(usage, price):
            usage = None
        return completed(usage, request, price, model)
    if usage is None:
        usage = estimate(request)
    if usage.estimated:
        if request is not None and request.max_tokens is not None:
            most = request.max_tokens * answers(request)
            return usage if usage.completion <= most else usage._replace(completion=most)
        return usage
    if _meant(usage, price):
        return usage
    most = _ABSURD * (price.context or _LARGEST_CONTEXT)
    return sane(estimate(request, usage.completion if usage.completion <= most else 0), request, price)


def _meant(usage: Usage, price: Price) -> bool:
    """Whether a provider can mean these counts."""
    most = _ABSURD * (price.context or _LARGEST_CONTEXT)
    if usage.prompt <= most and usage.completion <= most:
        return True
    log.warning(
        "a provider reported absurd counts (%d and %d tokens); estimated instead", usage.prompt, usage.completion
    )
    return False


def so_far(request: LLMRequest | None, reader: UsageReader | None) -> Usage:
    """What an answer that was cut had used: what it told of itself, at least its events."""
    made = reader.tokens if reader is not None else 0
    if reader is None or reader.usage is None:
        return estimate(request, made)
    if reader.final:
        return reader.usage
    return reader.usage._replace(completion=max(reader.usage.completion, made), estimated=True)


def sum_of(one: Usage, other: Usage) -> Usage:
    """The tokens of two calls together."""
    told = None
    if one.provider_cost is not None or other.provider_cost is not None:
        told = (one.provider_cost or 0) + (other.provider_cost or 0)
    return Usage(
        one.prompt + other.prompt,
        one.completion + other.completion,
        one.cached + other.cached,
        one.cache_write + other.cache_write,
        one.reasoning + other.reasoning,
        one.estimated or other.estimated,
        told,
    )
