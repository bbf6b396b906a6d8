"""What a metered call looks like on an HTTP client's side: which requests are calls, how they go out, what comes back.

The clients are those of ``httpx`` and ``httpx2``, which are alike and have no common base. Neither is imported here: who
makes a request has done so.
"""

from __future__ import annotations

import sys
from typing import Any

from ._asgi import JSON
from ._metered_stream import MeteredCall, stream_class
from .errors import NO_RETRY, GatewayError
from .records import Usage
from .wire import METERED, LLMRequest, Route

# The end of the path, whatever stands before it: providers put the same API below other prefixes.
_ROUTES = tuple(
    (known if dialect == "messages" else known.removeprefix("/v1"), Route("metered", dialect, known))
    for known, dialect in METERED.items()
)
# By the host; any other host is a provider of that name. Sources: each vendor's API documentation, autumn 2026.
_PROVIDERS = {
    "api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "openrouter.ai": "openrouter",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral",
    "api.together.xyz": "together",
    "api.deepseek.com": "deepseek",
    "api.fireworks.ai": "fireworks",
    "api.x.ai": "xai",
    "generativelanguage.googleapis.com": "gemini",
}
_NEWER_LIMIT = frozenset({"openai", "azure", "groq"})  # who calls a chat's output limit ``max_completion_tokens``
_TELL_ANYWAY = frozenset({"openrouter", "mistral"})  # whose streams tell the usage without being asked
# The client's exceptions (of both packages, which have no common base) that say that nothing was sent.
_UNSENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})


def package_of(request: Any) -> str:
    """``httpx`` or ``httpx2``."""
    for base in type(request).__mro__:
        package = base.__module__.partition(".")[0]
        if package in ("httpx", "httpx2"):
            return package
    raise TypeError("MeteredTransport is for clients of httpx and httpx2")


def route_of(request: Any) -> Route | None:
    """The row of the table for an LLM call; ``None`` for any other request."""
    if request.method != "POST":
        return None
    path: str = request.url.path
    return next((route for end, route in _ROUTES if path.endswith(end)), None)


def outgoing(request: Any, call: MeteredCall, provider: str) -> Any:
    """The request as it goes out: with the output limit that was chosen, and the question for a stream's usage."""
    asked = call.request
    changes: dict[str, Any] = {}
    if _asks_usage(asked, provider):
        changes["stream_options"] = {**(asked.data.get("stream_options") or {}), "include_usage": True}
    if "max_tokens" in asked.added and asked.route.dialect == "chat" and provider in _NEWER_LIMIT:
        changes.update(max_tokens=None, max_completion_tokens=asked.max_tokens)
    body = (asked.with_fields(**changes) if changes else asked).body
    drop = (b"content-length", b"transfer-encoding", b"accept-encoding")
    headers = [(name, value) for name, value in request.headers.raw if name.lower() not in drop]
    headers.append((b"accept-encoding", b"identity"))  # the usage is read as it passes
    if call.headers:  # in place of the same from a client that traces itself
        names = {name for name, _ in call.headers}
        headers = [*(one for one in headers if one[0].lower() not in names), *call.headers]
    return type(request)(request.method, request.url, headers=headers, content=body, extensions=request.extensions)


def _asks_usage(asked: LLMRequest, provider: str) -> bool:
    """Whether a stream's usage must be asked for, and the event that tells it be kept from a caller who did not ask."""
    return (
        asked.stream
        and asked.route.dialect in ("chat", "completions")
        and provider not in _TELL_ANYWAY
        and not asked.wants_usage
    )


def metered(request: Any, answer: Any, call: MeteredCall, provider: str) -> Any:
    """The answer, read as its bytes pass by."""
    package = package_of(request)
    kind = answer.headers.get("content-type", "").lower().encode("latin-1", "replace")
    encoded = answer.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity")
    if answer.is_stream_consumed:  # a transport for tests may give an answer that is read already, and decoded
        http: Any = sys.modules[package]
        drop = ("content-encoding", "content-length", "transfer-encoding")
        headers = [(name, value) for name, value in answer.headers.multi_items() if name.lower() not in drop]
        content, encoded = http.ByteStream(answer.content), False
        answer = http.Response(answer.status_code, headers=headers, stream=content, extensions=answer.extensions)
    # Work in the background is told of later, and not to us.
    blind = encoded or call.request.data.get("background") is True
    drop_usage = _asks_usage(call.request, provider)
    answer.stream = stream_class(package)(answer.stream, call, kind=kind, drop_usage=drop_usage, blind=blind)
    return answer


def of_failure(error: BaseException) -> Usage | None:
    """What a call used that had no answer: nothing where it was not sent, else nobody knows."""
    return Usage() if any(base.__name__ in _UNSENT for base in type(error).__mro__) else None


def refusal(request: Any, error: GatewayError, route: Route) -> Any:
    """The answer to a call that did not go out: the SDK makes its own error of it, and does not try again."""
    body = error.body(route.envelope)
    headers = [JSON, (b"content-length", b"%d" % len(body)), *error.headers]
    if error.http_status < 500 and NO_RETRY not in headers:
        headers.append(NO_RETRY)
    http: Any = sys.modules[package_of(request)]
    return http.Response(error.http_status, headers=headers, stream=http.ByteStream(body), request=request)


def provider_of(request: Any) -> str:
    """The provider that a request goes to, by its host."""
    host: str = request.url.host
    return "azure" if host.endswith(".azure.com") else _PROVIDERS.get(host, host)


__all__ = ["metered", "of_failure", "outgoing", "package_of", "provider_of", "refusal", "route_of"]
