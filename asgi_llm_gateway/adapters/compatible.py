"""Vendors whose API is OpenAI's: one row each, with what differs.

Sources: each vendor's API documentation, autumn 2026. A vendor that is missing here needs no code either: any server
with an OpenAI-like API is ``type = "openai"`` with its ``base_url``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_NO_FIELDS: Mapping[str, str] = {}


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
        one_limit: ``max_completion_tokens`` is unknown there, and would be no limit: it is sent as ``max_tokens``.
        include_usage: Whether a stream reports usage on being asked by ``stream_options`` (else always or never).
        local: Runs on own machines: its tokens cost nothing.
        responses: Speaks OpenAI's Responses itself.
        messages: Speaks Anthropic's Messages itself, below the same base URL.
        default_limit: Output tokens that are asked for where the request names no limit; ``None``: the server has a
            sensible limit of its own.
        fetches: Loads the URLs in a request from where it stands; only ``data:`` URIs go there unless it is configured.
        refused: Fields that no client may send, each with what to do instead.
        guarded: Fields that only trusted clients may send, each with why.
        ignored: Fields that the server passes over; the client is told.
        one_answer: ``n`` is passed over there, so that more than one answer is refused.
        loose_arguments: A tool call's arguments may come as an object, where OpenAI has a string.
        strict: Refuses fields that it does not know, also in the messages of the conversation.
        cost_header: The response header that tells the cost in USD, in lower case.
    """

    base_url: str | None
    auth: str = "bearer"
    key_env: str | None = None
    url_env: str | None = None
    models: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    limit_field: str = "max_tokens"
    one_limit: bool = False
    include_usage: bool = True
    local: bool = False
    responses: bool = False
    messages: bool = False
    default_limit: int | None = None
    fetches: bool = False
    refused: Mapping[str, str] = _NO_FIELDS
    guarded: Mapping[str, str] = _NO_FIELDS
    ignored: tuple[str, ...] = ()
    one_answer: bool = False
    loose_arguments: bool = False
    strict: bool = False
    cost_header: bytes | None = None


OPENAI = Vendor(
    "https://api.openai.com/v1",
    key_env="OPENAI_API_KEY",
    url_env="OPENAI_BASE_URL",
    models=(
        "gpt-5.2", "gpt-5", "gpt-5-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-4",
        "gpt-3.5-turbo", "o3", "o4-mini", "text-embedding-3-small", "text-embedding-3-large", "gpt-image-1", "dall-e-3",
        "gpt-4o-transcribe", "whisper-1", "gpt-4o-mini-tts", "tts-1", "omni-moderation-latest",
    ),
    patterns=("gpt-*", "chatgpt-*", "o1*", "o3*", "o4*", "text-embedding-*", "davinci-*", "babbage-*", "dall-e-*", "tts-*",
              "whisper-*", "omni-moderation-*", "text-moderation-*"),
    limit_field="max_completion_tokens",
    responses=True,
    strict=True,
)  # fmt: skip

_DEARER = "it may choose a model or a provider that is dearer than what was set aside for the call. Name one model in 'model'."
_EXTRA = "what it does is paid for apart from the tokens, and can't be metered. Remove it."
_PRICES = "prices are the operator's affair. Remove it."
# llama.cpp reads these in place of the fields that are checked and held for (server source, autumn 2026).
_LIMIT_ALIAS = "it would go past the output limit. Use 'max_tokens'."

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
        messages=True,
        guarded={"models": _DEARER, "route": _DEARER, "plugins": _EXTRA, "transforms": "it would cut the prompt without "
                 "a word. Send a prompt that fits the model.", "web_search_options": _EXTRA},
    ),
    "litellm": Vendor(
        "http://127.0.0.1:4000/v1",
        key_env="LITELLM_API_KEY",
        cost_header=b"x-litellm-response-cost",
        guarded={"fallbacks": _DEARER, "context_window_fallbacks": _DEARER, "content_policy_fallbacks": _DEARER,
                 "model_list": _DEARER, "user_config": _DEARER, "extra_body": "it could name another model. Send its "
                 "members as fields of the request.", "input_cost_per_token": _PRICES, "output_cost_per_token": _PRICES,
                 "input_cost_per_second": _PRICES, "output_cost_per_second": _PRICES},
    ),
    "llamacpp": Vendor(
        None,
        url_env="LLAMACPP_URL",
        models=("default",),
        local=True,
        responses=True,
        messages=True,
        default_limit=4096,  # it would go on without an end
        fetches=True,
        refused={"n_predict": _LIMIT_ALIAS, "n_cmpl": "it would go past the number of answers. Use 'n'."},
    ),
    "vllm": Vendor("http://127.0.0.1:8000/v1", local=True, messages=True, fetches=True),
    "ollama": Vendor(
        "http://127.0.0.1:11434/v1",
        local=True,
        messages=True,  # Anthropic's SDK takes the root as its base URL and adds /v1 itself: the same place
        one_limit=True,
        fetches=True,
        ignored=("logit_bias", "user"),
        one_answer=True,
        loose_arguments=True,
    ),
    "groq": Vendor("https://api.groq.com/openai/v1", key_env="GROQ_API_KEY", limit_field="max_completion_tokens"),
    "mistral": Vendor("https://api.mistral.ai/v1", key_env="MISTRAL_API_KEY", one_limit=True, include_usage=False),
    "together": Vendor("https://api.together.xyz/v1", key_env="TOGETHER_API_KEY", one_limit=True),
    "deepseek": Vendor("https://api.deepseek.com/v1", key_env="DEEPSEEK_API_KEY", one_limit=True),
    "fireworks": Vendor("https://api.fireworks.ai/inference/v1", key_env="FIREWORKS_API_KEY", one_limit=True),
    "xai": Vendor("https://api.x.ai/v1", key_env="XAI_API_KEY"),
    "gemini": Vendor("https://generativelanguage.googleapis.com/v1beta/openai", key_env="GEMINI_API_KEY"),
    "azure": Vendor(None, auth="api-key", key_env="AZURE_OPENAI_API_KEY", limit_field="max_completion_tokens", strict=True),
    "bedrock": Vendor(None, key_env="AWS_BEARER_TOKEN_BEDROCK"),
}  # fmt: skip
"""Provider types by name."""
