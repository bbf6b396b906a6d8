"""OpenRouter: OpenAI's dialect in front of many providers. Source: OpenRouter documentation, autumn 2026.

What a tenant could use to spend more than was set aside for its call is refused, unless clients are trusted: other models
(``models``), dearer providers for the same model (``provider.order``, ``:nitro``), and what is paid for apart from the
tokens (``plugins``, ``:online``, server tools). The usage comes with its ``cost``; where the operator's own provider key
is used (BYOK), that is OpenRouter's fee only, and ``cost_details.upstream_inference_cost`` is added to it (``usage``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from ..errors import GatewayError, Header
from ..wire import LLMRequest
from .base import Unsupported, clean, error_fields
from .compatible import VENDORS, Vendor
from .openai import OpenAIAdapter

_HARMLESS = frozenset(
    {"max_price", "data_collection", "zdr", "require_parameters", "enforce_distillable_text", "quantizations", "ignore",
     "allow_fallbacks"}
)  # fmt: skip
"""Members of ``provider`` that narrow the choice; the others can lead to a dearer provider of the same model."""

_DEARER_SUFFIXES = ("online", "nitro")
"""What a model's name may end in, after a colon, to cost more than the model: a web search, the fastest provider."""

# What OpenRouter calls an error, where that is the client's to mend. The gateway keeps the name as the error's code.
_CLIENTS = frozenset(
    {
        "context_length_exceeded", "max_tokens_exceeded", "token_limit_exceeded", "string_too_long", "invalid_request",
        "invalid_prompt", "not_found", "precondition_failed", "payload_too_large", "unprocessable",
        "content_policy_violation", "refusal", "invalid_image", "image_too_large", "image_too_small",
        "unsupported_image_format", "image_not_found", "image_download_failed",
    }
)  # fmt: skip


class OpenRouterAdapter(OpenAIAdapter):
    """OpenRouter.

    Args:
        name: The provider's name.
        base_url: With the version in it.
        api_key: The key there.
        referer: The app's URL, for OpenRouter's rankings (``HTTP-Referer``).
        title: The app's name, likewise (``X-OpenRouter-Title``).
        vendor: See OpenAIAdapter.
        models: See OpenAIAdapter; a model with a suffix that costs more can be asked for if it is listed here.
        trust_clients: Clients may choose among models, providers and plugins.

    Raises:
        ValueError: A referer or a title that no header can hold.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None = None,
        *,
        referer: str | None = None,
        title: str | None = None,
        vendor: Vendor = VENDORS["openrouter"],
        models: Sequence[str] | None = None,
        trust_clients: bool = False,
    ) -> None:
        told = ((b"http-referer", "referer", referer), (b"x-openrouter-title", "title", title))
        headers = [(header, _text(name, value)) for header, name, value in told if value]
        super().__init__(
            name, base_url, api_key, vendor=vendor, models=models, headers=headers, trust_clients=trust_clients
        )

    def _fitted(self, request: LLMRequest, model: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        fitted = super()._fitted(request, model)
        if not self._trusts:
            self._look_at(request, model)
        return fitted

    def _look_at(self, request: LLMRequest, model: str) -> None:
        data = request.data
        front, colon, suffix = model.rpartition(":")
        if colon and suffix in _DEARER_SUFFIXES and model not in self.models:
            raise Unsupported(
                f"'{model}' costs more than the model itself. Ask for '{front}', or ask the operator to list the name "
                f"among the models of the provider '{self.name}'.",
                param="model",
            )
        chosen = data.get("provider")
        if chosen is not None:
            if type(chosen) is not dict:
                raise Unsupported("'provider' must be an object.", param="provider")
            for name, value in chosen.items():
                if name not in _HARMLESS and not (name == "sort" and value == "price"):
                    raise Unsupported(
                        f"'provider.{name[:64]}' can't be sent: it may choose a dearer provider of the model than what was "
                        "set aside for the call. Remove it; 'provider.max_price' and 'sort': 'price' are allowed.",
                        param="provider",
                    )
        tools = data.get("tools") if request.route.dialect == "chat" else None  # those of Messages have been seen to
        for at, tool in enumerate(tools if type(tools) is list else ()):
            kind = tool.get("type") if type(tool) is dict else None
            if kind is not None and kind not in ("function", "custom"):
                raise Unsupported(
                    f"'tools[{at}].type' must be 'function': a tool that runs at the provider is paid for apart from the "
                    "tokens, and can't be metered.",
                    param=f"tools[{at}].type",
                )

    def error(self, status: int, headers: Sequence[Header], body: bytes) -> GatewayError:
        """See Adapter."""
        fields = error_fields(body)
        metadata = fields.get("metadata")
        metadata = metadata if type(metadata) is dict else {}
        kind = metadata.get("error_type")
        if kind == "payment_required":
            status = 402
        if status == 403 and (metadata.get("reasons") or metadata.get("flagged_input") is not None):
            # The input was flagged: that is the client's affair, unlike the other reasons for a 403. Its text is not told.
            reasons = metadata.get("reasons")
            named = ", ".join(str(one) for one in reasons[:8]) if type(reasons) is list else ""
            said = f"The input was refused by moderation{': ' + clean(named, self._secrets) if named else ''}."
            return GatewayError(said, status=400, type="invalid_request_error", code="content_policy_violation")
        if type(kind) is str and kind in _CLIENTS and 400 <= status < 500:
            body = orjson.dumps({"error": {"message": fields.get("message"), "code": kind}})
        return super().error(status, headers, body)


def _text(name: str, value: str) -> bytes:
    if not value.isprintable() or not value.isascii():
        raise ValueError(f"{name}={value!r}: use printable ASCII characters")
    return value.encode("ascii")


__all__ = ["OpenRouterAdapter"]
