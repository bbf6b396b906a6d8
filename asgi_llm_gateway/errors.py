"""Every refusal and failure a client can meet: one tree, each error knows its status and its body.

Envelopes: OpenAI API reference, "Error codes" (``{"error": {message, type, param, code}}``), and Anthropic API
reference, "Errors" (``{"type": "error", "error": {type, message}}``).
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, Literal

import orjson

Envelope = Literal["openai", "anthropic"]
Header = tuple[bytes, bytes]

# Anthropic API reference, "Errors": the type goes with the status.
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

NO_RETRY: Header = (b"x-should-retry", b"false")
"""Both official SDKs obey it: a refusal that stays one is not asked for again."""


class GatewayError(Exception):
    """What the client is told instead of an answer.

    Args:
        message: What was asked, what is allowed, what to do. Never a secret, never a prompt.
        status: HTTP status; the class's own where none is given.
        type: OpenAI's ``error.type``.
        code: OpenAI's ``error.code``, the stable name of this failure.
        param: The request field that is at fault.
        headers: More response headers, as byte pairs.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: tuple[Header, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers
        self.http_status = self.status if status is None else status
        self.error_type = self.type if type is None else type
        self.error_code = self.code if code is None else code

    def as_dict(self, envelope: Envelope = "openai") -> dict[str, Any]:
        """The JSON body, as a dictionary."""
        if envelope == "anthropic":
            kind = _ANTHROPIC_TYPES.get(self.http_status)
            if kind is None:
                kind = "invalid_request_error" if self.http_status < 500 else "api_error"
            return {"type": "error", "error": {"type": kind, "message": self.message, "code": self.error_code}}
        error = {"message": self.message, "type": self.error_type, "param": self.param, "code": self.error_code}
        return {"error": error}

    def body(self, envelope: Envelope = "openai") -> bytes:
        """The JSON body, as it goes over the wire."""
        return orjson.dumps(self.as_dict(envelope))

    def event(self, envelope: Envelope = "openai") -> bytes:
        """The same failure as one server-sent event, for a stream that has started (no ``[DONE]`` follows it)."""
        if envelope == "anthropic":
            return b"event: error\ndata: " + self.body(envelope) + b"\n\n"
        return b"data: " + self.body(envelope) + b"\n\n"


class BadRequest(GatewayError):
    """The request can't be understood, or asks for what is not allowed in a body."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class Unsupported(BadRequest):
    """A request field that the provider has no word for."""

    code = "unsupported_parameter"


class NoThreads(Unsupported):
    """A conversation that the provider is to keep (``thread``): what is sent would be the last turn alone.

    The code is the one by which Anthropic's SDK sends the whole conversation itself from then on, as its tool runner does.
    Source: Anthropic Python SDK 2.12, ``lib/threads``.
    """

    code = "thread_unsupported_request"

    def __init__(self) -> None:
        super().__init__("'thread' can't be used here: nothing is kept of a conversation. Send all of it.",
                         param="thread")  # fmt: skip

    def as_dict(self, envelope: Envelope = "openai") -> dict[str, Any]:
        """See GatewayError."""
        told = super().as_dict(envelope)
        if envelope == "anthropic":
            told["error"]["details"] = {"error_code": self.code, "unsupported": ["thread"]}
        return told


class InvalidKey(GatewayError):
    """No key, or one that is unknown, revoked or expired: always the same words, so that nothing can be learnt."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"

    def __init__(self) -> None:
        super().__init__(
            "Missing or invalid API key. Send a key of this gateway as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
            headers=(NO_RETRY, (b"www-authenticate", b"Bearer")),
        )


class Forbidden(GatewayError):
    """The caller is known and may not do this."""

    status, type, code = 403, "permission_error", "forbidden"


class NotFound(GatewayError):
    """No such path, or no such model."""

    status, type, code = 404, "invalid_request_error", "not_found"


class MethodNotAllowed(GatewayError):
    """A known path, asked with another method."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class TooLarge(GatewayError):
    """The body is over the limit."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class BudgetError(GatewayError):
    """The tenant's money (or tokens) does not suffice.

    402 for a budget that never begins anew, 429 ``insufficient_quota`` with the time of the ``reset`` (Unix seconds) for one
    that does; ``status`` makes it always one of them. Never with a ``retry-after``, and SDKs are told not to retry.
    """

    status, type, code = 402, "insufficient_quota", "budget_exceeded"

    def __init__(
        self,
        message: str,
        *,
        code: str = "budget_exceeded",
        reset: int | None = None,
        status: Literal["auto", "402", "429"] = "auto",
    ) -> None:
        headers: tuple[Header, ...] = (NO_RETRY,)
        if reset is not None:
            # No retry-after: an SDK would sleep until then.
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(reset))
            message += f" The budget begins anew at {at}."
            headers = (NO_RETRY, (b"x-llm-budget-reset", at.encode()))
        # This is the one place where the status of a spent budget is decided.
        http_status = (402 if reset is None else 429) if status == "auto" else int(status)
        super().__init__(message, status=http_status, code=code, headers=headers)


class RateLimited(GatewayError):
    """Too many calls in the window."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class MisorderedStack(GatewayError):
    """The middlewares stand in an order in which one of them could not do its work."""

    status, type, code = 500, "server_error", "misordered_stack"


class UpstreamError(GatewayError):
    """The provider refused, failed, or sent what is not an answer."""

    status, type, code = 502, "upstream_error", "upstream_error"


class UpstreamTimeout(GatewayError):
    """The provider did not answer in time."""

    status, type, code = 504, "upstream_error", "upstream_timeout"


class Unavailable(GatewayError):
    """A part of the gateway (the store, a missing package) is not there; nothing was decided."""

    status, type, code = 503, "server_error", "service_unavailable"


class LoopDetected(GatewayError):
    """The request has been through this gateway before."""

    status, type, code = 508, "server_error", "gateway_loop"


class SettingsError(ValueError):
    """A setting or the settings file is wrong; the message names it and says what is allowed. It holds no secret."""


class StoreError(Exception):
    """A store could not be reached, or could not do what was asked. Never shown to a client as it is."""
