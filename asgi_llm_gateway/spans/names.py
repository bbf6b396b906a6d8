"""Names of attributes and their closed sets of values.

Source: OpenTelemetry semantic conventions, "Generative AI" (the conventions' own repository, as of autumn 2026, in
development) and "HTTP spans" (stable). Written out here, as the Python package marks its own constants as deprecated.
"""

from __future__ import annotations

from collections.abc import Mapping

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
OUTPUT_TYPE = "gen_ai.output.type"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHE_READ = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE = "gen_ai.usage.cache_write.input_tokens"
REASONING = "gen_ai.usage.reasoning.output_tokens"

ERROR_TYPE = "error.type"
METHOD = "http.request.method"
STATUS = "http.response.status_code"
RESENT = "http.request.resend_count"
ROUTE = "http.route"
ADDRESS = "server.address"
PORT = "server.port"
URL = "url.full"
QUERY = "url.query"

OWN = "llm_gateway."
TENANT = OWN + "tenant"
KEY = OWN + "key_id"
REQUEST_ID = OWN + "request_id"
ATTEMPTS = OWN + "attempts"
ATTEMPT = OWN + "attempt"
TARGET_PROVIDER = OWN + "provider"
TARGET_MODEL = OWN + "model"
COST = OWN + "cost_usd"
SAVED = OWN + "saved_usd"
CACHE = OWN + "cache"
ABORTED = OWN + "aborted"
OUTRUN = OWN + "outrun"
ESTIMATED = OWN + "usage_estimated"

OPERATIONS: Mapping[str | None, str] = {
    "chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    # The conventions have no word for these yet, and allow one's own.
    "moderations": "moderation",
    "transcriptions": "transcription",
    "translations": "translation",
    "speech": "speech",
    "images": "image_generation",
    "image_edits": "image_edit",
}
"""Operations by dialect."""

COUNT_TOKENS = "count_tokens"
"""The operation of a count of tokens, for which the conventions have no word."""

PROVIDERS: Mapping[str, str] = {
    "llamacpp": "llama_cpp",
    "azure": "azure.ai.openai",
    "mistral": "mistral_ai",
    "xai": "x_ai",
    "moonshot": "moonshot_ai",
    "gemini": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "bedrock": "aws.bedrock",
    "watsonx": "ibm.watsonx.ai",
}
"""Providers that the conventions call by another name; all others by the name that they have here."""


def provider_name(provider: str, dialect: str | None) -> str:
    """The conventions' name of a provider.

    Where it is not known who answered (a cache, an app of the user's), it is the one whose API the caller spoke: what the
    convention calls the provider "as the client believes it to be".
    """
    if provider:
        return PROVIDERS.get(provider, provider)
    return "anthropic" if dialect == "messages" else "openai"


def short(text: str, most: int = 128) -> str:
    """A word that somebody else chose, no longer than a word may be."""
    return text if len(text) <= most else text[:most]
