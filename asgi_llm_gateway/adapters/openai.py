"""OpenAI's dialect, spoken by OpenAI and by everybody compatible. Source: OpenAI API reference, autumn 2026."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any
from urllib.parse import urlsplit

import orjson

from .. import __version__
from ..errors import GatewayError, Header, UpstreamError
from ..records import NANO_PER_USD
from ..usage import WHOLE_PARSE, usage_at_end, usage_from
from ..wire import MEDIA, Dialect, LLMRequest
from . import _media
from ._anthropic_guard import api_headers, guard
from ._embeddings import encoded
from ._moved import fit_chat, has_extensions
from ._native_messages import MessagesStream, native_answer
from ._native_responses import ResponsesStream, guarded
from ._openai_stream import OpenAIStream as OpenAIStream
from ._openai_stream import error_in
from ._remote import remote_url
from .base import (
    PATHS,
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
from .compatible import OPENAI, Vendor

_INCLUDE_USAGE = {"include_usage": True}
_MESSAGES_VERSION = "2023-06-01"
_MOST_USD = 1_000_000  # of one call
_ERROR = re.compile(rb'"error"\s*:\s*[^\sn]|"finish_reason"\s*:\s*"error"')
_OBJECT_ARGUMENTS = re.compile(rb'"arguments"\s*:\s*\{')
# The gateway's own account there is at fault. To a tenant it would read like the end of its own budget.
# Sources: OpenAI API reference, "Error codes"; LiteLLM source 1.109, proxy error types.
_ACCOUNT = frozenset(
    {
        "insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded", "payment_required",
        "project_spend_limit_exceeded", "organization_usage_limit_exceeded", "billing_hard_limit_reached",
        "budget_exceeded", "auth_error", "expired_key", "token_not_found_in_db",
    }
)  # fmt: skip
_TOO_LONG = re.compile(
    r"maximum context length|exceed\w{0,6} (?:the |this |its )?(?:available |model'?s? )?context|"
    r"context (?:size|window|length) (?:is |was )?exceed",
    re.IGNORECASE,
)
# Where a dialect's output limit stands; of chat, the vendor knows.
_LIMITED: Mapping[Dialect | None, str | None] = {
    "chat": None, "completions": "max_tokens", "responses": "max_output_tokens", "messages": "max_tokens",
}  # fmt: skip


class OpenAIAdapter:
    """A server that speaks OpenAI's API.

    Args:
        name: The provider's name.
        base_url: With the version in it (``https://api.openai.com/v1``), as the SDKs take it. It may have a query, which
            each request then has (``...?api-version=2024-10-21``).
        api_key: The key there, if it wants one.
        vendor: Where the server differs from OpenAI.
        models: Models that are known to be there.
        headers: More headers for each request there.
        remote_urls: Media by URL go to a server that would load them itself, from where it stands.
        trust_clients: Clients may send the fields that the vendor's row guards.
        default_max_tokens: Output tokens where neither the client nor a budget names a limit, for a vendor that needs one.

    Raises:
        ValueError: What can't be sent: a key or a header with a line break, a URL with a fragment.
    """

    translates: frozenset[Dialect] = frozenset()

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None = None,
        *,
        vendor: Vendor = OPENAI,
        models: Sequence[str] | None = None,
        headers: Sequence[Header] = (),
        remote_urls: bool = False,
        trust_clients: bool = False,
        default_max_tokens: int | None = None,
    ) -> None:
        if default_max_tokens is not None and default_max_tokens < 1:
            raise ValueError(f"default_max_tokens={default_max_tokens}: use a whole number of at least 1")
        self.name = name
        self.models = tuple(vendor.models if models is None else models)
        self._url, self._query = _url_and_query(base_url)
        self.base_url = self._url + self._query
        self.speaks: frozenset[Dialect] = frozenset((*PATHS, *_more_dialects(vendor)))
        self._vendor = vendor
        self._trusts = trust_clients
        self._remote_urls = remote_urls or not vendor.fetches
        self._default_limit = default_max_tokens or vendor.default_limit
        quirks = (
            vendor.one_answer,
            vendor.ignored,
            vendor.refused,
            vendor.guarded,
            vendor.one_limit,
            self._default_limit,
        )
        self._plain = not any(quirks) and self._remote_urls
        place = urlsplit(self.base_url).netloc
        # What a provider's words must not tell. A lone name without a port may be any word ("ollama").
        self._secrets = tuple(one for one in (api_key, place if re.search(r"[.:]", place) else None) if one)
        self._headers = [*_headers(vendor, api_key), *headers]
        self._endpoints: dict[Dialect, Endpoint] = {}

    def request(self, request: LLMRequest, model: str) -> UpstreamRequest:
        """See Adapter."""
        dialect = request.route.dialect
        endpoint = self._endpoints.get(dialect) if dialect is not None else None
        if endpoint is None:
            endpoint = self._endpoint(dialect)
        plain = (
            self._plain and dialect == "chat" and not request.stream and not request.added and model == request.model
        )
        if plain and not (self._vendor.strict and has_extensions(request.raw)):
            # As most are: to a vendor without quirks, and with nothing that only another vendor's answers have.
            return UpstreamRequest(endpoint, request.body)
        if dialect in MEDIA:
            self._guard(request.data)
            self._refuse_remote(request)
            return _media.upstream(endpoint, request, model)
        changes, ignored = self._fitted(request, model)
        if model != request.model:
            changes["model"] = model
        body = (request.with_fields(**changes) if changes else request).body
        more = api_headers(request, _MESSAGES_VERSION, None) if dialect == "messages" else ()
        return UpstreamRequest(endpoint, body, ignored, more)

    def _refuse_remote(self, request: LLMRequest) -> None:
        if not self._remote_urls and (place := remote_url(request.route.dialect, request.data)) is not None:
            raise Unsupported(
                f"'{place}' must be a data: URI: the provider '{self.name}' would load a URL from within its own network. "
                "Send the content itself in base64.",
                param=place,
            )

    def _fitted(self, request: LLMRequest, model: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What of a request is sent otherwise here, and which of its fields are passed over. Raises Unsupported."""
        vendor, data, dialect = self._vendor, request.data, request.route.dialect
        changes: dict[str, Any] = {}
        ignored: tuple[str, ...] = ()
        self._guard(data)
        if vendor.one_answer and request.choices > 1:
            raise Unsupported(f"The provider '{self.name}' gives one answer only. Send 'n': 1.", param="n")
        if vendor.ignored:
            ignored = tuple(name for name in vendor.ignored if data.get(name) is not None)
        self._refuse_remote(request)
        if dialect == "chat":
            if vendor.strict:
                moved, lost = fit_chat(request)
                changes.update(moved)
                ignored += lost
            if "max_tokens" in request.added:
                if vendor.limit_field != "max_tokens":
                    changes["max_tokens"] = None
                    changes[vendor.limit_field] = request.max_tokens
            elif vendor.one_limit and data.get("max_completion_tokens") is not None:
                changes["max_completion_tokens"] = None
                changes["max_tokens"] = request.max_tokens
        if self._default_limit is not None and request.max_tokens is None and dialect in _LIMITED:
            changes[_LIMITED[dialect] or vendor.limit_field] = self._default_limit
        if request.stream and dialect in ("chat", "completions"):
            options = data.get("stream_options") or {}
            if not vendor.include_usage:
                if options.keys() == _INCLUDE_USAGE.keys():
                    changes["stream_options"] = None  # usage comes all the same, and not all of them know the field
            elif not request.wants_usage:
                changes["stream_options"] = {**options, **_INCLUDE_USAGE}
        elif dialect == "responses":
            changes.update(guarded(request))
        elif dialect == "messages":
            guard(request, server_tools=self._trusts)
        return changes, ignored

    def _guard(self, data: dict[str, Any]) -> None:
        vendor = self._vendor
        if vendor.refused:
            self._refuse(vendor.refused, data)
        if vendor.guarded and not self._trusts:
            self._refuse(vendor.guarded, data)

    def _refuse(self, fields: Mapping[str, str], data: dict[str, Any]) -> None:
        for name in fields.keys() & data.keys():
            if data[name] is not None:
                raise Unsupported(f"'{name}' can't be sent to the provider '{self.name}': {fields[name]}", param=name)

    def _endpoint(self, dialect: Dialect | None) -> Endpoint:
        if dialect is None or dialect not in self.speaks:
            raise Unsupported(f"The provider '{self.name}' can't be asked in this API.", code="unsupported_api")
        path = PATHS.get(dialect) or f"/{dialect}"
        headers = _media.headers_of(self._headers) if dialect in MEDIA else self._headers
        endpoint = self._endpoints[dialect] = Endpoint("POST", self._url + path + self._query, headers)
        return endpoint

    def response(self, request: LLMRequest, body: bytes) -> Answer:
        """See Adapter."""
        if request.route.dialect == "messages":
            return native_answer(self.name, body, self._failed_message)
        if request.route.dialect in MEDIA:
            return _media.answer(self, request, body)
        usage = usage_at_end(body)
        troubled = body.find(b'"error"') >= 0 and _ERROR.search(body) is not None
        if troubled or (usage is None and len(body) <= WHOLE_PARSE):
            answer = self._parsed(body)
            usage = usage_from(answer.get("usage")) if type(answer) is dict else None
            if (told := error_in(answer)) is not None:
                raise FailedAnswer(self._inside(told), usage)
            if type(answer) is not dict:
                raise UpstreamError(f"The provider '{self.name}' sent JSON that is no answer.")
        if request.route.dialect == "embeddings":
            return Answer(encoded(body, request.data.get("encoding_format")), usage)
        if self._vendor.loose_arguments and _OBJECT_ARGUMENTS.search(body) is not None:
            answer = self._parsed(body)
            if type(answer) is dict and string_arguments(answer):
                body = orjson.dumps(answer)
        return Answer(body, usage)

    def _parsed(self, body: bytes) -> Any:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            raise UpstreamError(f"The provider '{self.name}' sent what is not JSON.") from None

    def stream(self, request: LLMRequest) -> StreamDecoder:
        """See Adapter."""
        dialect = request.route.dialect
        if dialect == "responses":
            return ResponsesStream(self.name, self._secrets)
        if dialect == "messages":
            return MessagesStream(self.name, self._failed_message)
        if dialect in MEDIA:
            return _media.MediaStream(self.name, request)
        loose = self._vendor.loose_arguments
        return OpenAIStream(
            self.name,
            drop_usage=not request.wants_usage,
            failed=self._failed,
            mend=string_arguments if loose else None,
            mends=_OBJECT_ARGUMENTS if loose else None,
        )

    def error(self, status: int, headers: Sequence[Header], body: bytes) -> GatewayError:
        """See Adapter."""
        fields = error_fields(body)
        for name in (fields.get("type"), fields.get("code")):
            if type(name) is str and (name in _ACCOUNT or name.endswith("_model_access_denied")):
                return UpstreamError(
                    f"The provider '{self.name}' refused the gateway's credentials or account ({status}).",
                    code="upstream_account",
                )
        message = fields.get("message")
        if status in (400, 413) and type(message) is str and _TOO_LONG.search(message[:1000]) is not None:
            return GatewayError(
                clean(message, self._secrets),
                status=400,
                type="invalid_request_error",
                code="context_length_exceeded",
                param="messages",
            )
        return failure(self.name, status, headers, body, self._secrets)

    def _failed(self, body: bytes) -> GatewayError:
        """An error without a status of its own: in a stream, or in a 200."""
        return self.error(error_status(body), (), body)

    def _failed_message(self, body: bytes) -> GatewayError:
        """The same in Anthropic's dialect, which has a type for it."""
        return self.error(error_status(body), (), body)

    def _inside(self, told: Any) -> GatewayError:
        return self._failed(orjson.dumps({"error": told}))

    def cost_in(self, headers: Sequence[Header]) -> int | None:
        """What an answer's headers say that it cost, in nano-USD, rounded up; ``None`` where they don't.

        Of a stream they can't: they are sent before the tokens exist.
        """
        wanted = self._vendor.cost_header
        if wanted is not None:
            for name, value in headers:
                if name == wanted:
                    return _nano_usd(value)
        return None


def string_arguments(chunk: dict[str, Any]) -> bool:
    """Write a tool call's arguments that came as an object as text; whether there were any."""
    changed = False
    choices = chunk.get("choices")
    for choice in choices if type(choices) is list else ():
        if type(choice) is not dict:
            continue
        for holder in (choice.get("message"), choice.get("delta")):
            calls = holder.get("tool_calls") if type(holder) is dict else None
            for call in calls if type(calls) is list else ():
                function = call.get("function") if type(call) is dict else None
                if type(function) is dict and type(function.get("arguments")) is dict:
                    function["arguments"] = orjson.dumps(function["arguments"]).decode()
                    changed = True
    return changed


def _more_dialects(vendor: Vendor) -> list[Dialect]:
    more: list[Dialect] = []
    if vendor.responses:
        more.append("responses")
    if vendor.messages:
        more.append("messages")
    return more


def _url_and_query(url: str) -> tuple[str, str]:
    """A base URL without its last slash, and its query with the question mark: paths go between the two."""
    if "#" in url:
        raise ValueError("a base URL has no fragment ('#')")
    url, mark, query = url.partition("?")
    return url.rstrip("/"), mark + query if query else ""


def _headers(vendor: Vendor, api_key: str | None) -> list[Header]:
    headers: list[Header] = [
        (b"content-type", b"application/json"),
        (b"accept", b"application/json, text/event-stream"),
        (b"accept-encoding", b"identity"),  # the usage is read as it passes
        (b"user-agent", b"asgi-llm-gateway/" + __version__.encode()),
    ]
    if api_key:
        if any(character in api_key for character in "\r\n\0"):
            raise ValueError("an API key can't hold line breaks")
        key = api_key.encode("latin-1")
        headers.append((b"authorization", b"Bearer " + key) if vendor.auth == "bearer" else (vendor.auth.encode(), key))
    return headers


def _nano_usd(text: bytes) -> int | None:
    """An amount in USD as a header tells it."""
    try:
        usd = Decimal(text[:64].decode("latin-1").strip())
        if usd.is_finite() and 0 <= usd < _MOST_USD:
            return int((usd * NANO_PER_USD).to_integral_value(ROUND_CEILING))
    except InvalidOperation:
        pass
    return None


__all__ = ["OpenAIAdapter", "OpenAIStream"]
