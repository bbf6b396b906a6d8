"""Failures that a chat stream tells in itself, as clients of Anthropic's dialect are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..adapters.base import clean
from ..errors import GatewayError, UpstreamError

# The status of a type or a code, where the error has none: OpenAI API reference, "Error codes", and what vendors add.
_STATUSES: Mapping[Any, int] = {
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "content_policy_violation": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 402,
    "overloaded_error": 503,
    "server_is_overloaded": 503,
    "unavailable_error": 503,
    "timeout_error": 504,
}


def told_failure(error: Any) -> GatewayError:
    """An error object in the middle of a stream: an object or a string, its code a status, a word or nothing.

    Its words go on without keys, URLs and addresses. The gateway's own trouble with its account there is not the client's.
    """
    fields = error if type(error) is dict else {"message": error}
    said = fields.get("message")
    message = clean(said) if type(said) is str and said else "The provider failed in the middle of its answer."
    code, kind = fields.get("code"), fields.get("type")
    status = int(code) if type(code) is int or (type(code) is str and code.isdecimal() and len(code) == 3) else 0
    if not 400 <= status < 600:
        words = [one for one in (code, kind) if type(one) is str]
        status = next((_STATUSES[one] for one in words if one in _STATUSES), 502)
    if status in (401, 402, 403):
        return UpstreamError("The provider refused the gateway's credentials or account.", code="upstream_auth")
    if status >= 500:
        status = {529: 503, 503: 503, 504: 504, 524: 504}.get(status, 502)
        return UpstreamError(message, status=status)
    kind = "rate_limit_error" if status == 429 else "invalid_request_error"
    return GatewayError(message, status=status, type=kind, code="upstream_refused")
