"""Vendors whose API is OpenAI's: one row each, with what differs.

Sources: each vendor's API documentation, autumn 2026. A vendor that is missing here needs no code either: any server
with an OpenAI-like API is ``type = "openai"`` with its ``base_url``.
"""

from __future__ import annotations

from typing import NamedTuple


class Vendor(NamedTuple):
    """A row of the table.

    Attributes:
        base_url: Where the API is, if the settings name no other place; ``None``: they must.
        auth: ``"bearer"``, or the name of the header that takes the key.
        key_env: The environment variable of the key, which turns the provider on.
        url_env: The environment variable of the base URL.
        models: Models known to be there, for ``/v1/models``.
        patterns: Names that are this vendor's without a prefix; ``*`` at the end stands for anything.
        limit_field: The chat field for the output limit.
        include_usage: Whether a stream reports usage on being asked by ``stream_options`` (else always or never).
        local: Runs on own machines: its tokens cost nothing.
    """

    base_url: str | None
    auth: str = "bearer"
    key_env: str | None = None
    url_env: str | None = None
    models: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    limit_field: str = "max_tokens"
    include_usage: bool = True
    local: bool = False


OPENAI = Vendor(
    "https://api.openai.com/v1",
    key_env="OPENAI_API_KEY",
    url_env="OPENAI_BASE_URL",
    models=(
        "gpt-5.2", "gpt-5", "gpt-5-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-4",
        "gpt-3.5-turbo", "o3", "o4-mini", "text-embedding-3-small", "text-embedding-3-large",
    ),
    patterns=("gpt-*", "chatgpt-*", "o1*", "o3*", "o4*", "text-embedding-*", "davinci-*", "babbage-*"),
    limit_field="max_completion_tokens",
)  # fmt: skip

VENDORS: dict[str, Vendor] = {
    "openai": OPENAI,
    "anthropic": Vendor(  # its own API, by the adapter of that name; its OpenAI-compatible one is type = "openai"
        "https://api.anthropic.com/v1",
        key_env="ANTHROPIC_API_KEY",
        url_env="ANTHROPIC_BASE_URL",
        models=("claude-opus-5", "claude-sonnet-5", "claude-haiku-5-5", "claude-3-opus-20240229",
                "claude-3-sonnet-20240229"),
        patterns=("claude-*",),
    ),
    "openrouter": Vendor(
        "https://openrouter.ai/api/v1",
        key_env="OPENROUTER_API_KEY",
        url_env="OPENROUTER_BASE_URL",
        models=("openrouter/auto",),
        include_usage=False,
    ),
    "litellm": Vendor("http://127.0.0.1:4000/v1", key_env="LITELLM_API_KEY"),
    "llamacpp": Vendor(None, url_env="LLAMACPP_URL", models=("default",), local=True),
    "vllm": Vendor("http://127.0.0.1:8000/v1", local=True),
    "ollama": Vendor("http://127.0.0.1:11434/v1", local=True),
    "groq": Vendor("https://api.groq.com/openai/v1", key_env="GROQ_API_KEY", limit_field="max_completion_tokens"),
    "mistral": Vendor("https://api.mistral.ai/v1", key_env="MISTRAL_API_KEY", include_usage=False),
    "together": Vendor("https://api.together.xyz/v1", key_env="TOGETHER_API_KEY"),
    "deepseek": Vendor("https://api.deepseek.com/v1", key_env="DEEPSEEK_API_KEY"),
    "fireworks": Vendor("https://api.fireworks.ai/inference/v1", key_env="FIREWORKS_API_KEY"),
    "xai": Vendor("https://api.x.ai/v1", key_env="XAI_API_KEY"),
    "gemini": Vendor("https://generativelanguage.googleapis.com/v1beta/openai", key_env="GEMINI_API_KEY"),
    "azure": Vendor(None, auth="api-key", key_env="AZURE_OPENAI_API_KEY", limit_field="max_completion_tokens"),
    "bedrock": Vendor(None, key_env="AWS_BEARER_TOKEN_BEDROCK"),
}  # fmt: skip
"""Provider types by name."""
