"""Anthropic's API: natively for clients that speak it, and for those that speak OpenAI's.

Source: Anthropic API reference, "Messages", 2023-06-01 (and 2026-10-21).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson

from .. import __version__
from ..errors import GatewayError, Header, UpstreamError
from ..wire import Dialect, LLMRequest, may_be_huge
from ._anthropic_guard import api_headers, guard
from ._anthropic_json import answer_tool_name
from ._anthropic_request import given_names, translate
from ._anthropic_stream import AnthropicStream, finish_reason, usage_object
from ._anthropic_usage import counts
from ._moved import fit_messages
from ._native_messages import MessagesStream, native_answer
from .base import (
    Answer,
    Endpoint,
    FailedAnswer,
    StreamDecoder,
    Unsupported,
    UpstreamRequest,
    clean,
    error_fields,
    error_status,
    failure,
)

# The account's own limits, which come as 400 and 429: nothing that the client could wait for or do something about.
_ACCOUNT_CODE = re.compile(r"spend_limit|on_hold")
_ACCOUNT = re.compile(r"credit balance|spend(?:ing)? limit|API usage limits", re.IGNORECASE)
_TOO_LONG = re.compile(r"prompt is too long|exceed(?:s|ed)? (?:the )?context", re.IGNORECASE)
_TIERS = {"priority": "priority", "standard": "default"}


class AnthropicAdapter:
    """Anthropic, or a server that speaks its API.

    Args:
        name: The provider's name.
        base_url: ``https://api.anthropic.com``, with or without the version's ``/v1``.
        api_key: The key there.
        models: Models that are known to be there.
        version: The version of the API; of a client that speaks it natively, where it names none.
        default_max_tokens: The output limit in tokens where the client sets none; the API demands one.
        server_tools: Whether native clients may use tools that the provider runs itself (web search, code execution). They
            cost money a use beside the tokens, which no budget counts.
        betas: The beta features (``anthropic-beta``) that native clients may use; ``None`` for all.

    A native client's body goes on byte for byte, but for the model's name and for what another provider left in it. What
    names things of the account that all tenants share, or what decides where the provider's money and trust go, is refused
    by name.
    """

    speaks: frozenset[Dialect] = frozenset({"chat", "messages"})
    translates: frozenset[Dialect] = frozenset({"chat"})

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None = None,
        *,
        models: Sequence[str] | None = None,
        version: str = "2023-06-01",
        default_max_tokens: int = 4096,
        server_tools: bool = False,
        betas: Collection[str] | None = None,
    ) -> None:
        if any(character in f"{api_key}{version}" for character in "\r\n\0"):
            raise ValueError("an API key or a version can't hold line breaks")
        if default_max_tokens < 1:
            raise ValueError(f"default_max_tokens={default_max_tokens}: use a whole number of at least 1")
        self.name = name
        self.models = tuple(models or ())
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._version = version
        self._default_max_tokens = default_max_tokens
        self._server_tools = server_tools
        self._betas = None if betas is None else frozenset(betas)
        place = urlsplit(self.base_url).netloc
        # What a provider's words must not tell. A lone name without a port may be any word.
        self._secrets = tuple(one for one in (api_key, place if re.search(r"[.:]", place) else None) if one)
        headers: list[Header] = [
            (b"content-type", b"application/json"),
            (b"accept", b"application/json, text/event-stream"),
            (b"accept-encoding", b"identity"),  # the usage is read as it passes
            (b"user-agent", b"asgi-llm-gateway/" + __version__.encode()),
        ]
        if api_key:
            headers.append((b"x-api-key", api_key.encode("latin-1")))
        url = self.base_url + "/v1/messages"
        self._endpoint = Endpoint("POST", url, [*headers, (b"anthropic-version", version.encode("latin-1"))])
        # Natively, the version is the client's choice, a header of each request.
        self._native = Endpoint("POST", url, headers)
        self._counting = Endpoint("POST", url + "/count_tokens", headers)

    def request(self, request: LLMRequest, model: str) -> UpstreamRequest:
        """See Adapter."""
        if request.route.dialect == "messages":
            return self._natively(self._native, request, model, server_tools=self._server_tools)
        if request.route.dialect != "chat":
            raise Unsupported(f"The provider '{self.name}' can't be asked in this API.", code="unsupported_api")
        body, dropped = translate(request, model, version=self._version, default_max_tokens=self._default_max_tokens)
        return UpstreamRequest(self._endpoint, body, tuple(dropped))

    def count_request(self, request: LLMRequest, model: str) -> UpstreamRequest:
        """See CountsTokens. To count what a tool of the provider's adds costs nothing."""
        return self._natively(self._counting, request, model, server_tools=True)

    def _natively(self, endpoint: Endpoint, request: LLMRequest, model: str, *, server_tools: bool) -> UpstreamRequest:
        guard(request, server_tools=server_tools)
        headers = api_headers(request, self._version, self._betas)
        changes, dropped = fit_messages(request, model, headers[0][1].decode("latin-1"))
        if model != request.model:
            changes = {**changes, "model": model}
        body = (request.with_fields(**changes) if changes else request).body
        return UpstreamRequest(endpoint, body, dropped, headers)

    def response(self, request: LLMRequest, body: bytes) -> Answer:
        """See Adapter."""
        if request.route.dialect == "messages":
            return native_answer(self.name, body, self._failed)
        try:
            told = (json if may_be_huge(body) else orjson).loads(body)
        except (ValueError, RecursionError):
            raise UpstreamError(f"The provider '{self.name}' sent what is not JSON.") from None
        if type(told) is dict and told.get("type") == "error":
            raise FailedAnswer(self._failed(body), None)
        if type(told) is not dict or type(told.get("content")) is not list:
            raise UpstreamError(f"The provider '{self.name}' sent JSON that is no answer.")
        try:
            return _answer(told, given_names(request.data), answer_tool_name(request.data))
        except (RecursionError, orjson.JSONEncodeError):
            raise UpstreamError(f"The provider '{self.name}' sent an answer that is nested too deeply.") from None

    def stream(self, request: LLMRequest) -> StreamDecoder:
        """See Adapter."""
        if request.route.dialect == "messages":
            return MessagesStream(self.name, self._failed)
        data = request.data
        return AnthropicStream(self.name, request, given_names(data), self._failed, answer_tool_name(data))

    def error(self, status: int, headers: Sequence[Header], body: bytes) -> GatewayError:
        """See Adapter."""
        fields = error_fields(body)
        details, message = fields.get("details"), fields.get("message")
        code = details.get("error_code") if type(details) is dict else None
        message = message if type(message) is str else ""
        if 400 <= status < 500 and (
            (type(code) is str and _ACCOUNT_CODE.search(code)) or (status in (400, 429) and _ACCOUNT.search(message))
        ):
            status = 402
        if status == 400 and _TOO_LONG.search(message) is not None:
            return GatewayError(clean(message, self._secrets), status=400, type="invalid_request_error",
                                code="context_length_exceeded", param="messages")  # fmt: skip
        return failure(self.name, status, headers, body, self._secrets)

    def _failed(self, body: bytes) -> GatewayError:
        """An error without a status: in a stream, or in a 200."""
        return self.error(error_status(body), (), body)


def _answer(told: dict[str, Any], names: dict[str, str], answer_tool: str | None) -> Answer:
    """A message as a chat completion."""
    answered: str | None = None  # by the tool whose input is the answer
    texts: list[str] = []
    thoughts: list[str] = []
    blocks: list[dict[str, Any]] = []  # of thinking, as they must be sent back
    calls: list[dict[str, Any]] = []
    citations: list[dict[str, Any]] = []
    length = 0
    for block in told["content"]:
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
                citations += _citations(block, length, length + len(text))
                length += len(text)
            case {"type": "tool_use", "name": str(name)} if answer_tool is not None and name == answer_tool:
                answered = answered or _json(block.get("input") or {})
            case {"type": "tool_use", "name": str(name)}:
                function = {"name": names.get(name, name), "arguments": _json(block.get("input") or {})}
                calls.append({"id": block.get("id") or f"call_{len(calls)}", "type": "function", "function": function})
            case {"type": "thinking", "thinking": str(thought)}:
                thoughts.append(thought)
                if block.get("signature"):
                    blocks.append(block)
            case {"type": "redacted_thinking"}:
                blocks.append(block)
            case _:  # tools of the provider's own, which it was not given
                pass
    details = told.get("stop_details")
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answered or "".join(texts) or (None if calls else ""),
        "refusal": details.get("explanation") if type(details) is dict else None,
    }
    if calls:
        message["tool_calls"] = calls
    if citations:
        message["annotations"] = citations
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if blocks:
        message["thinking_blocks"] = blocks
    reason = finish_reason(told.get("stop_reason"), bool(calls))
    if reason == "tool_calls" and answered is not None and not calls:
        reason = "stop"
    answer: dict[str, Any] = {
        "id": told.get("id"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": told.get("model"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
    }
    usage = told.get("usage")
    tier = usage.get("service_tier") if type(usage) is dict else None
    if type(tier) is str and tier in _TIERS:
        answer["service_tier"] = _TIERS[tier]
    counted = counts(usage)
    if counted is not None:
        answer["usage"] = usage_object(counted)
    return Answer(orjson.dumps(answer), counted)


def _json(value: Any) -> str:
    """The arguments of a call as text, with every digit."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _citations(block: dict[str, Any], start: int, end: int) -> list[dict[str, Any]]:
    """The sources of a text that have an address."""
    found = []
    citations = block.get("citations")
    for one in citations if type(citations) is list else ():
        match one:
            case {"url": str(url)}:
                told = {"start_index": start, "end_index": end, "title": one.get("title"), "url": url}
                found.append({"type": "url_citation", "url_citation": told})
    return found


__all__ = ["AnthropicAdapter", "AnthropicStream"]
