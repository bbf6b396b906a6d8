"""OpenAI's dialect, spoken by OpenAI and by everybody compatible. Source: OpenAI API reference, autumn 2026."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson

from .. import __version__
from .._sample import StreamSample, streamed_tokens
from .._sse import EventSplitter, EventTooLong, data_of, split
from ..errors import GatewayError, Header, UpstreamError
from ..records import Usage
from ..usage import WHOLE_PARSE, usage_at_end, usage_from
from ..wire import Dialect, LLMRequest
from .base import PATHS, Answer, Endpoint, Unsupported, UpstreamRequest, failure
from .compatible import OPENAI, Vendor

_INCLUDE_USAGE = {"include_usage": True}


class OpenAIAdapter:
    """A server that speaks OpenAI's API.

    Args:
        name: The provider's name.
        base_url: With the version in it (``https://api.openai.com/v1``), as the SDKs take it.
        api_key: The key there, if it wants one.
        vendor: Where the server differs from OpenAI.
        models: Models that are known to be there.
    """

    translates = False

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None = None,
        *,
        vendor: Vendor = OPENAI,
        models: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.models = tuple(vendor.models if models is None else models)
        self.base_url = base_url.rstrip("/")
        self._vendor = vendor
        place = urlsplit(self.base_url).netloc
        # What a provider's words must not tell. A lone name without a port may be any word ("ollama").
        self._secrets = tuple(one for one in (api_key, place if re.search(r"[.:]", place) else None) if one)
        self._headers = _headers(vendor, api_key)
        self._endpoints: dict[Dialect, Endpoint] = {}

    def request(self, request: LLMRequest, model: str) -> UpstreamRequest:
        """See Adapter."""
        dialect = request.route.dialect
        endpoint = self._endpoints.get(dialect) if dialect is not None else None
        if endpoint is None:
            endpoint = self._endpoint(dialect)
        changes: dict[str, Any] = {}
        if model != request.model:
            changes["model"] = model
        if request.stream and self._vendor.include_usage and not request.wants_usage:
            changes["stream_options"] = {**(request.data.get("stream_options") or {}), **_INCLUDE_USAGE}
        if "max_tokens" in request.added and dialect == "chat" and self._vendor.limit_field != "max_tokens":
            changes["max_tokens"] = None
            changes[self._vendor.limit_field] = request.max_tokens
        return UpstreamRequest(endpoint, (request.with_fields(**changes) if changes else request).body)

    def _endpoint(self, dialect: Dialect | None) -> Endpoint:
        path = PATHS.get(dialect) if dialect is not None else None
        if path is None or dialect is None:
            raise Unsupported(f"The provider '{self.name}' can't be asked in this API.", code="unsupported_api")
        endpoint = self._endpoints[dialect] = Endpoint("POST", self.base_url + path, self._headers)
        return endpoint

    def response(self, request: LLMRequest, body: bytes) -> Answer:
        """See Adapter."""
        usage = usage_at_end(body)
        if usage is not None and body.find(b'"error"') < 0:
            return Answer(body, usage)
        if len(body) > WHOLE_PARSE:
            return Answer(body, usage)
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise UpstreamError(f"The provider '{self.name}' sent what is not JSON.") from None
        if type(answer) is not dict:
            raise UpstreamError(f"The provider '{self.name}' sent JSON that is no answer.")
        if answer.get("error") and not answer.get("choices"):
            raise self.error(_status_in(answer["error"]), (), body)
        return Answer(body, usage_from(answer.get("usage")))

    def stream(self, request: LLMRequest) -> OpenAIStream:
        """See Adapter."""
        return OpenAIStream(self.name, drop_usage=not request.wants_usage)

    def error(self, status: int, headers: Sequence[Header], body: bytes) -> GatewayError:
        """See Adapter."""
        return failure(self.name, status, headers, body, self._secrets)


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


def _status_in(error: Any) -> int:
    """The status that an error inside a 200 speaks of (OpenRouter's ``code`` is one)."""
    code = error.get("code") if type(error) is dict else None
    return code if type(code) is int and 400 <= code < 600 else 502


def _says_nothing_new(whole: bytes) -> bool:
    """Whether events hold neither an error nor usage that is not null.

    This runs for every event. ``find`` and not ``in``: the latter tries first to read the needle as a number, at the
    price of an exception (CPython 3.11, ``_Py_bytes_contains``).
    """
    if whole.find(b'"error"') >= 0:
        return False
    at = whole.find(b'"usage"')
    if at < 0:
        return True
    if whole.startswith(b":null", at + 7) and whole.find(b'"usage"', at + 12) < 0:
        return True
    return whole.count(b'"usage"') == whole.count(b'"usage":null')


# An event that says more than text: usage that is not null, an error, or the end.
_DATA_LINE = re.compile(rb"(?:^|[\r\n])data:")
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_NEWS = re.compile(rb'"usage"\s*:\s*\{|"error"\s*:\s*[^\sn]|\[DONE\]')


class OpenAIStream:
    """One event stream: relayed byte for byte, but for the usage event that only the gateway asked for."""

    __slots__ = ("_drop", "_name", "_splitter", "complete", "ending", "failed", "sample", "usage")

    def __init__(self, name: str, *, drop_usage: bool) -> None:
        self.usage: Usage | None = None
        self.sample = StreamSample()
        self.ending = False
        self.complete = False
        self.failed = False
        self._name = name
        self._drop = drop_usage
        self._splitter = EventSplitter()

    def feed(self, data: bytes) -> bytes:
        """See StreamDecoder. Only whole events go on, so that an error can follow at any time."""
        try:
            whole = self._splitter.whole(data)
        except EventTooLong:
            raise UpstreamError(f"The provider '{self._name}' sent an event without an end.") from None
        if not whole:
            return b""
        if whole.find(b"\n") == len(whole) - 2 and whole.find(b"\r") < 0 and whole.startswith(b"data: {"):
            plain = _says_nothing_new(whole)  # one event in one line, as most pieces are
            count = 1
        else:
            plain = whole.find(b"[DONE]") < 0 and _says_nothing_new(whole)
            count = len(_DATA_LINE.findall(whole))
        self.sample.add(whole, count)
        if plain:
            return whole
        return b"".join([event for event in split(whole) if self._keep(event)])

    def _keep(self, event: bytes) -> bool:
        """Look into one event; whether the client shall have it."""
        data = data_of(event)
        if data is None or _NEWS.search(data) is None:
            return True
        if data.startswith(b"[DONE]"):
            self.ending = self.complete = True
            return True
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            return True
        if type(chunk) is not dict:
            return True
        if chunk.get("error"):
            self.failed = self.ending = True
        found = usage_from(chunk.get("usage"))
        if found is None:
            return True
        self.usage = found
        if chunk.get("choices"):  # some vendors report on the last chunk of content, or on every one
            return True
        self.ending = True
        return not self._drop

    @property
    def events(self) -> int:
        """See StreamDecoder."""
        return self.sample.events

    def tokens(self, model: str | None = None) -> int:
        """See StreamDecoder."""
        return streamed_tokens(self.sample, model)

    def finish(self) -> bytes:
        """See StreamDecoder. A stream may end without ``[DONE]`` only where the answer said why it ended."""
        rest = self._splitter.rest
        if rest.strip() == b"data: [DONE]":  # without its blank line, which clients need
            self.ending = self.complete = True
            return rest.strip() + b"\n\n"
        if not rest and (self.failed or _FINISHED.search(self.sample.tail) is not None):
            self.complete = True
        return b""
