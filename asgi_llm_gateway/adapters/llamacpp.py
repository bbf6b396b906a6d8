"""llama.cpp's own server. Source: its C++ source and README, autumn 2026.

It speaks OpenAI's dialect with a few words of its own (``grammar``, ``json_schema``, ``top_k``, ...; ``timings`` in the
answer), which pass. Some of them reach beyond the caller's own call, and are not let through.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson

from ..errors import BadRequest, GatewayError, Header, UpstreamError
from ..tokens import answers
from ..wire import LLMRequest
from ._around import StreamAround
from .base import Answer, Endpoint, StreamDecoder, Unsupported, UpstreamRequest, error_fields, retry_after
from .compatible import VENDORS, Vendor
from .openai import OpenAIAdapter

_SHARED = ("id_slot", "cache_prompt")
"""With these a caller can push another out of its slot, and learn by the clock what others asked (the prompt cache)."""

_LOADING_SECONDS = b"2"  # a model of some gigabytes takes seconds; the server does not say
# A file of the operator's. What may be repeated is bounded: the text is a stranger's.
_FILE = re.compile(r"(?:[A-Za-z]:)?[/\\][^\s'\"<>|]{1,512}|[^\s'\"<>|/\\]{1,256}\.gguf\b")
_MODEL = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.){1,1024}")')
_PATH = re.compile(r"(?:[A-Za-z]:[/\\]|[/\\.~]).*|.*\.gguf\Z", re.DOTALL)


class LlamaCppAdapter(OpenAIAdapter):
    """llama.cpp's server.

    Args:
        name: The provider's name.
        base_url: With the version in it.
        api_key: The key there, if it wants one.
        vendor: See OpenAIAdapter.
        models: See OpenAIAdapter.
        remote_urls: Media by URL are let through; the model's host then loads what a caller names.
        trust_clients: ``id_slot`` and ``cache_prompt`` are let through, and calls for several answers, though the server
            counts one of them only.
        default_max_tokens: Output tokens where nobody names a limit: without one the server goes on without an end.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None = None,
        *,
        vendor: Vendor = VENDORS["llamacpp"],
        models: Sequence[str] | None = None,
        remote_urls: bool = False,
        trust_clients: bool = False,
        default_max_tokens: int | None = None,
    ) -> None:
        super().__init__(
            name,
            base_url,
            api_key,
            vendor=vendor,
            models=models,
            remote_urls=remote_urls,
            trust_clients=trust_clients,
            default_max_tokens=default_max_tokens,
        )
        self._counting = Endpoint("POST", f"{self._url}/messages/count_tokens{self._query}", self._headers)

    def _fitted(self, request: LLMRequest, model: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        changes, ignored = super()._fitted(request, model)
        data = request.data
        if not self._trusts:
            if answers(request) > 1:
                # Of several, its usage has the tokens of one, and a stream has one usage event for each.
                raise Unsupported(
                    f"The provider '{self.name}' counts the tokens of one answer only. Send one prompt and 'n': 1 a call.",
                    param="n" if request.choices > 1 else "prompt",
                )
            kept_back = tuple(name for name in _SHARED if name in data)
            changes.update(dict.fromkeys(kept_back))
            ignored += kept_back
        choice = data.get("tool_choice")
        if type(choice) is dict:
            changes.update(_one_tool(choice, data.get("tools"), request.route.dialect == "messages"))
        return changes, ignored

    def count_request(self, request: LLMRequest, model: str) -> UpstreamRequest:
        """See CountsTokens: the server counts a prompt of Messages exactly, images included."""
        changes, _ = self._fitted(request, model)
        return UpstreamRequest(self._counting, request.with_fields(**changes, model=model).body)

    def response(self, request: LLMRequest, body: bytes) -> Answer:
        """See Adapter. A model's name that is a file's path is told by the name that was asked for."""
        answer = super().response(request, body)
        hiding = _Hiding(request.model)
        return Answer(hiding.hide(answer.body), answer.usage)

    def stream(self, request: LLMRequest) -> StreamDecoder:
        """See Adapter."""
        return _HidingStream(super().stream(request), _Hiding(request.model))

    def error(self, status: int, headers: Sequence[Header], body: bytes) -> GatewayError:
        """See Adapter. A model that is being loaded is ``upstream_loading``: not a failure, and soon over."""
        fields = error_fields(body)
        message = fields.get("message")
        if status == 503 and type(message) is str and message.lower().startswith("loading model"):
            return UpstreamError(
                f"The provider '{self.name}' is loading the model. Try again in a moment.",
                status=503,
                code="upstream_loading",
                headers=retry_after(headers) or ((b"retry-after", _LOADING_SECONDS),),
            )
        if fields.get("type") == "exceed_context_size_error":
            asked, most = fields.get("n_prompt_tokens"), fields.get("n_ctx")
            counts = f" The prompt has {asked} tokens, the model takes {most}." if _counts(asked, most) else ""
            return GatewayError(
                f"The request is longer than the model's context.{counts} Shorten the prompt.",
                status=400,
                type="invalid_request_error",
                code="context_length_exceeded",
                param="messages",
            )
        error = super().error(status, headers, body)
        error.message = _FILE.sub("[redacted]", error.message)
        return error


def _counts(*values: Any) -> bool:
    return all(type(value) is int for value in values)


def _one_tool(choice: dict[str, Any], tools: Any, messages: bool) -> dict[str, Any]:
    """``tool_choice`` as an object: the server takes words only, and makes ``auto`` of anything else without a word.

    One function is asked for by giving the model no other, and calling for one. Raises BadRequest, Unsupported.
    """
    kind = choice.get("type")
    required: Any = {"type": "any"} if messages else "required"
    if kind in ("auto", "any", "none"):  # Anthropic's words, which are objects
        return {}
    if kind == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        listed = allowed.get("tools") if type(allowed) is dict else None
        names = [_name(one) for one in listed] if type(listed) is list else []
        mode = allowed.get("mode") if type(allowed) is dict else None
        if mode not in ("auto", "required"):
            raise BadRequest("'tool_choice.allowed_tools.mode' must be 'auto' or 'required'.", param="tool_choice")
        wanted: Any = mode
    elif kind in ("function", "tool"):
        names, wanted = [_name(choice)], required
    else:
        raise Unsupported(
            "'tool_choice.type' must be 'function': the model server knows no other.", param="tool_choice"
        )
    kept = [tool for tool in tools if _name(tool) in names and _name(tool)] if type(tools) is list else []
    if not kept:
        raise BadRequest("'tool_choice' names no function that is in 'tools'. Name one of them.", param="tool_choice")
    return {"tool_choice": wanted, "tools": kept}


def _name(tool: Any) -> str | None:
    """A function's name, wherever the dialect puts it."""
    if type(tool) is not dict:
        return None
    function = tool.get("function")
    name = function.get("name") if type(function) is dict else tool.get("name")
    return name if type(name) is str else None


class _Hiding:
    """Puts the model's name in the place of its file's path, which the server calls it by where it was given no alias."""

    __slots__ = ("_asked", "_found", "_needle")

    def __init__(self, asked: str) -> None:
        self._asked = asked
        self._found = False
        self._needle: bytes | None = None

    def hide(self, out: bytes) -> bytes:
        """Bytes with whole events, or a whole answer. The first name that is met decides."""
        if not self._found:
            met = _MODEL.search(out)
            if met is None:
                return out
            self._found = True
            name = orjson.loads(met[1])
            if name != self._asked and _PATH.match(name) is not None:
                self._needle = met[0]
        if self._needle is None:
            return out
        # No text can hold the needle: there its quotes would be escaped.
        return out.replace(self._needle, b'"model":' + orjson.dumps(self._asked))


class _HidingStream(StreamAround):
    """A stream whose events go through a ``_Hiding``."""

    __slots__ = ("_hiding",)

    def __init__(self, inner: StreamDecoder, hiding: _Hiding) -> None:
        super().__init__(inner)
        self._hiding = hiding

    def feed(self, data: bytes) -> bytes:
        """See StreamDecoder."""
        out = self._inner.feed(data)
        return self._hiding.hide(out) if out else out


__all__ = ["LlamaCppAdapter"]
