"""Tokens before they are counted: a bound that is never too low, and an estimate for what nobody reported."""

from __future__ import annotations

from .records import Usage
from .wire import LLMRequest

BYTES_PER_TOKEN = 4
"""A rough average of English text; for estimates only, never for holds."""


def prompt_bound(request: LLMRequest) -> int:
    """At most so many prompt tokens: no tokenizer makes more than one token of a byte.

    The body's JSON syntax is longer than what a provider's template adds for it.
    """
    return len(request.raw)


def estimate(request: LLMRequest | None, events: int = 0) -> Usage:
    """What a call used of which nobody told: the prompt by its length, the answer by the stream events seen."""
    prompt = 0 if request is None else -(-len(request.raw) // BYTES_PER_TOKEN)
    return Usage(prompt, max(0, events), estimated=True)
