"""What an adapter is: a provider's dialect as plain functions of bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

from ..errors import GatewayError, Header, LoopDetected, UpstreamError, UpstreamTimeout
from ..errors import Unsupported as Unsupported
from ..records import Usage
from ..wire import Dialect, LLMRequest


class Endpoint:
    """Where requests of one kind go: made once per provider and path.

    Attributes:
        method: The HTTP method.
        url: Absolute, http or https.
        headers: The headers that every request there has. They may hold a key: not for logs.
    """

    __slots__ = ("headers", "method", "prepared", "url")

    def __init__(self, method: str, url: str, headers: Sequence[Header]) -> None:
        self.method = method
        self.url = url
        self.headers = tuple(headers)
        self.prepared: Any = None
        """The HTTP client's own rendering of all this."""

    def __repr__(self) -> str:
        return f"Endpoint({self.method} {self.url})"


class UpstreamRequest(NamedTuple):
    """A request to send.

    ``dropped`` are fields of the client's that the provider has no word for; the client is told. ``headers`` are those of
    this request alone, beside its endpoint's.
    """

    endpoint: Endpoint
    body: bytes
    dropped: tuple[str, ...] = ()
    headers: tuple[Header, ...] = ()

    def __repr__(self) -> str:
        return f"UpstreamRequest({self.endpoint!r}, {len(self.body)} bytes)"  # no prompt


class Script(NamedTuple):
    """An answer that needs no server: pieces of the body, each after some seconds. ``cut`` ends it without an end."""

    status: int
    headers: Sequence[Header]
    steps: Sequence[tuple[float, bytes]]
    cut: bool = False

    def __repr__(self) -> str:
        return f"Script({self.status}, {len(self.steps)} steps)"


class StreamDecoder(Protocol):
    """One event stream: takes the provider's bytes cut anywhere, gives the client's bytes back."""

    @property
    def usage(self) -> Usage | None:
        """The counts reported so far."""
        ...

    @property
    def ending(self) -> bool:
        """The stream's last news has been fed: the money can be settled."""
        ...

    @property
    def complete(self) -> bool:
        """The stream came to its own end."""
        ...

    @property
    def failed(self) -> bool:
        """The stream itself told of an error."""
        ...

    def feed(self, data: bytes) -> bytes:
        """The next bytes. Raises UpstreamError for what is no event stream."""
        ...

    @property
    def events(self) -> int:
        """Events with data seen so far."""
        ...

    def tokens(self, model: str | None = None) -> int:
        """About so many tokens were streamed so far: for a stream that broke off before it told."""
        ...

    def finish(self) -> bytes:
        """The provider ended the stream: what is left to say."""
        ...

    def failure(self, error: GatewayError) -> bytes:
        """How a failure is told in the middle of this stream, in the client's dialect."""
        ...


class Answer(NamedTuple):
    """A whole JSON answer in the client's dialect."""

    body: bytes
    usage: Usage | None

    def __repr__(self) -> str:
        return f"Answer({len(self.body)} bytes, {self.usage})"


class FailedAnswer(UpstreamError):
    """A 200 whose body tells of an error.

    Attributes:
        usage: The tokens that it reports all the same, and that are paid for; ``None`` where it reports none.
    """

    def __init__(self, error: GatewayError, usage: Usage | None) -> None:
        super().__init__(
            error.message,
            status=error.http_status,
            type=error.error_type,
            code=error.error_code,
            param=error.param,
            headers=error.headers,
        )
        self.usage = usage


class Adapter(Protocol):
    """A provider, as it is configured.

    Attributes:
        name: The provider's name, the part before the slash of ``provider/model``.
        models: The models that are known to be there.
        speaks: The dialects that the adapter takes; any other front dialect is first put into chat's words.
        translates: Those among them whose answers are not passed on as they are, so that none goes on before it is
            complete.
    """

    name: str
    models: tuple[str, ...]
    speaks: frozenset[Dialect]
    translates: frozenset[Dialect]

    def request(self, request: LLMRequest, model: str) -> UpstreamRequest | Script:
        """The request to send, for the provider's own ``model``. Raises Unsupported."""
        ...

    def response(self, request: LLMRequest, body: bytes) -> Answer:
        """A successful JSON answer. Raises UpstreamError for what is none."""
        ...

    def stream(self, request: LLMRequest) -> StreamDecoder:
        """A decoder for a successful event stream."""
        ...

    def error(self, status: int, headers: Sequence[Header], body: bytes) -> GatewayError:
        """What a failure is called towards the client. Without keys and hosts, whatever the provider says."""
        ...


def cost_in(adapter: Adapter, headers: Sequence[Header]) -> int | None:
    """What a provider says in an answer's headers that it cost, in nano-USD; ``None`` where it doesn't.

    An adapter may have a method ``cost_in(headers)`` for it; most providers tell no cost, or tell it in the body.
    """
    ask = getattr(adapter, "cost_in", None)
    return None if ask is None else ask(headers)


PATHS: Mapping[Dialect, str] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "moderations": "/moderations",
    "transcriptions": "/audio/transcriptions",
    "translations": "/audio/translations",
    "speech": "/audio/speech",
    "images": "/images/generations",
    "image_edits": "/images/edits",
}
"""Paths below an OpenAI-compatible base URL."""

_SECRETS = re.compile(r"\b(?:sk|pk|gsk|xai|ek|key|gw)[-_][A-Za-z0-9_*.-]{6,}|\bBearer\s+\S+|AIza[\w-]{10,}")
# Every repetition that can be tried at each place of a text is bounded: a provider may send megabytes of dots.
_PLACES = re.compile(
    r"\b[a-z][a-z0-9+.-]{0,20}://[^\s'\"<>)]+"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"
    r"|\[(?:[0-9a-f]{0,4}:){2,7}[0-9a-f.]{0,15}\](?::\d+)?"
    r"|(?<![\w:])(?:(?:[0-9a-f]{1,4}:){1,7}|:)(?::[0-9a-f]{1,4}){1,7}(?!\w)"
    r"|(?<![\w:])(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}(?!\w)"
    r"|\b(?:[\w-]{1,63}\.){1,8}(?:internal|local|svc|lan)\b(?::\d+)?"
    r"|\b(?:localhost|(?:[\w-]{1,63}\.){1,8}[a-z]{2,24}):\d+\b",
    re.IGNORECASE,
)
MAX_ERROR_TEXT = 600
"""Characters of a provider's error message that are passed on."""


def clean(text: str, secrets: Sequence[str] = ()) -> str:
    """A provider's words without what must not leave the house: keys, URLs, addresses."""
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    text = text[: 16 * MAX_ERROR_TEXT]  # of megabytes, what follows would take seconds
    text = _PLACES.sub("[redacted]", _SECRETS.sub("[redacted]", text))
    return text[:MAX_ERROR_TEXT]


def error_fields(body: bytes) -> dict[str, Any]:
    """The error object in a provider's answer, read leniently: an object, a string, in an array, or nothing."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if type(found) is list and found:
        found = found[0]
    if type(found) is not dict:
        return {}
    error = found.get("error", found)
    if type(error) is str:
        return {"message": error}
    return error if type(error) is dict else {}


# The status of an error that comes without one, by its type. Source: Anthropic API reference, "Errors".
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "server_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def error_status(body: bytes) -> int:
    """The HTTP status that an error inside a stream or a 200 speaks of; 502 where it tells none.

    Its ``code`` is one at OpenRouter and llama.cpp, and one as text at LiteLLM; else its type has one.
    """
    fields = error_fields(body)
    code, kind = fields.get("code"), fields.get("type")
    if type(code) is str and len(code) == 3 and code.isdecimal():
        code = int(code)
    if type(code) is int and 400 <= code < 600:
        return code
    return _STATUSES.get(kind, 502) if type(kind) is str else 502


def retry_after(headers: Sequence[Header]) -> tuple[Header, ...]:
    """The provider's own wish when to come again."""
    return tuple((name, value) for name, value in headers if name in (b"retry-after", b"retry-after-ms"))


def failure(
    name: str, status: int, headers: Sequence[Header], body: bytes, secrets: Sequence[str] = ()
) -> GatewayError:
    """A provider's failure as the client is told: its own fault keeps its status, the gateway's becomes 502."""
    fields = error_fields(body)
    said = fields.get("message")
    message = clean(said, secrets) if type(said) is str and said else f"The provider '{name}' answered {status}."
    code = fields.get("code")
    code = code if type(code) is str and not code.isdigit() else None
    param = fields.get("param")
    param = param if type(param) is str else None
    if status in (401, 402, 403):
        # The gateway's key at the provider is at fault, not the client's: 401 would send it looking for its own.
        return UpstreamError(f"The provider '{name}' refused the gateway's credentials or account ({status}).",
                             code="upstream_auth")  # fmt: skip
    if status == 429:
        return GatewayError(message, status=429, type="rate_limit_error", code=code or "upstream_rate_limited",
                            headers=retry_after(headers))  # fmt: skip
    if status == 508:
        return LoopDetected(f"The provider '{name}' leads back to a gateway that the request has been through. "
                            "Correct its base URL.")  # fmt: skip
    if status in (408, 504, 524):
        return UpstreamTimeout(f"The provider '{name}' timed out ({status}).")
    if status in (503, 529):
        return UpstreamError(message, status=503, code="upstream_unavailable", headers=retry_after(headers))
    if 400 <= status < 500:
        return GatewayError(
            message, status=status, type="invalid_request_error", code=code or "upstream_refused", param=param
        )
    return UpstreamError(message)
