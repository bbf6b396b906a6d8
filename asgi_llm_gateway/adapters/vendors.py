"""The adapter of each provider type that speaks OpenAI's dialect."""

from __future__ import annotations

from collections.abc import Sequence

from .compatible import VENDORS
from .llamacpp import LlamaCppAdapter
from .openai import OpenAIAdapter
from .openrouter import OpenRouterAdapter


def adapter_of(
    kind: str,
    name: str,
    base_url: str,
    api_key: str | None = None,
    *,
    models: Sequence[str] | None = None,
    referer: str | None = None,
    title: str | None = None,
    remote_urls: bool = False,
    trust_clients: bool = False,
    default_max_tokens: int | None = None,
) -> OpenAIAdapter:
    """An adapter for a row of the vendor table.

    Args:
        kind: The row's name.
        name: The provider's name.
        base_url: Where the API is, with the version in it.
        api_key: The key there, if it wants one.
        models: Models known to be there; ``None`` takes the row's.
        referer: See OpenRouterAdapter.
        title: See OpenRouterAdapter.
        remote_urls: See OpenAIAdapter.
        trust_clients: See OpenAIAdapter.
        default_max_tokens: See OpenAIAdapter.

    Raises:
        ValueError: No such row, a setting that the provider has no use for, or one that can't be sent.
    """
    vendor = VENDORS.get(kind)
    if vendor is None:
        raise ValueError(f"no vendor '{kind}'; there are: {', '.join(sorted(VENDORS))}")
    if kind == "openrouter":
        if remote_urls or default_max_tokens is not None:
            raise ValueError("'remote_urls' and 'default_max_tokens' are for servers of your own")
        return OpenRouterAdapter(
            name, base_url, api_key, referer=referer, title=title, models=models, trust_clients=trust_clients
        )
    if referer is not None or title is not None:
        raise ValueError("'referer' and 'title' are for OpenRouter")
    made = LlamaCppAdapter if kind == "llamacpp" else OpenAIAdapter
    return made(
        name,
        base_url,
        api_key,
        vendor=vendor,
        models=models,
        remote_urls=remote_urls,
        trust_clients=trust_clients,
        default_max_tokens=default_max_tokens,
    )
