"""Response headers that make browsers careful, and limits on what comes in: for every path, not those of the LLM API only."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable, Mapping
from typing import Literal

from .._asgi import ASGIApp, Message, Receive, Scope, Send, send_error
from .._recovery import failure_of
from ..errors import GatewayError, Header, SettingsError, Unavailable
from ..exchange import KEY, MAX_BODY, Exchange, _Noted
from ..passport import entered
from ._security_incoming import Bounded, Head, Limits, check_head, host_of
from .base import LLMMiddleware, Rank

log = logging.getLogger("asgi_llm_gateway")

HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "origin-agent-cluster": "?1",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "x-content-type-options": "nosniff",
    "x-dns-prefetch-control": "off",
    "x-download-options": "noopen",
    "x-frame-options": "DENY",
    "x-permitted-cross-domain-policies": "none",
    "x-xss-protection": "0",
}
"""What Helmet 8 sets, as it is right for an API: nothing may be loaded, nothing may be framed.

``strict-transport-security`` is sent over HTTPS only (RFC 6797, 7.2).
"""

PAGE_POLICY = (
    "default-src 'self'; base-uri 'self'; connect-src 'self'; font-src 'self' data:; form-action 'self'; "
    "frame-ancestors 'none'; img-src 'self' data:; object-src 'none'; script-src 'self'; script-src-attr 'none'; "
    "style-src 'self' 'unsafe-inline'"
)
"""The ``content-security-policy`` of HTML pages: Helmet's, without what comes from elsewhere."""

_HSTS = b"strict-transport-security"
_TOKEN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


class SecurityHeadersMiddleware(LLMMiddleware):
    """Put security headers on every answer, and refuse what is too large, too slow, too deep or malformed.

    It stands outermost, and covers every path: a malformed or repeated ``Host``, lengths that disagree and line breaks in
    headers are 400 ``malformed_headers``; too many or too long headers 431 ``headers_too_large``; a body over its limit 413
    ``request_too_large``; one that takes too long to arrive 408 ``request_timeout``; one nested too deeply 400
    ``invalid_json``; another host name than those allowed 421 ``host_not_allowed``. A header that the app set itself stays.

    Args:
        app: The ASGI app further in.
        headers: Other values for response headers by name, or more of them; ``None`` leaves one out.
        page_policy: The content-security-policy of HTML pages; ``None`` leaves it out there.
        override: Ours stand in the place of those that the app set.
        allowed_hosts: Host names that are served, ``*.example.com`` for all below one; ``None`` takes ALLOWED_HOSTS, and any
            is served where that is empty.
        max_body: Bytes of a body; ``None`` takes MAX_BODY_BYTES.
        max_headers: Number of request headers; ``None`` takes MAX_HEADER_COUNT.
        max_header_bytes: Bytes of all request headers; ``None`` takes MAX_HEADER_BYTES.
        max_depth: Levels of nesting of a JSON body; ``None`` takes MAX_JSON_DEPTH.
        receive_seconds: Seconds for the whole body to arrive; ``None`` takes RECEIVE_TIMEOUT_SECONDS.
        paths: See LLMMiddleware.
        govern: See LLMMiddleware.

    Raises:
        ValueError: An argument that can't be meant.
    """

    rank = Rank.SECURITY

    def __init__(
        self,
        app: ASGIApp,
        *,
        headers: Mapping[str, str | None] | None = None,
        page_policy: str | None = PAGE_POLICY,
        override: bool = False,
        allowed_hosts: Iterable[str] | None = None,
        max_body: int | None = None,
        max_headers: int | None = None,
        max_header_bytes: int | None = None,
        max_depth: int | None = None,
        receive_seconds: float | None = None,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
    ) -> None:
        limits = (max_body, max_headers, max_header_bytes, max_depth, receive_seconds)
        for limit in limits:
            if limit is not None and limit <= 0:
                raise ValueError(f"a limit of {limit}: it must be more than 0")
        wanted = {**HEADERS, **{name.lower(): value for name, value in (headers or {}).items()}}
        own_policy = headers is not None and "content-security-policy" in {name.lower() for name in headers}
        api = {name: value for name, value in wanted.items() if value is not None}
        page = dict(api)
        if not own_policy:
            page.pop("content-security-policy")
            if page_policy is not None:
                page["content-security-policy"] = page_policy
        self._headers = _Headers(_pairs(api), _pairs(page), override)
        self._plain = self._headers.plain()
        hosts = None if allowed_hosts is None else _hosts(allowed_hosts)
        super().__init__(
            app,
            paths=paths,
            govern=govern,
            max_body=max_body or MAX_BODY,
            settings=(*self._headers.settings, *limits, hosts),
        )
        self._given = limits
        self._given_hosts = hosts
        self._limits: Limits | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        head: Head | None = None
        try:
            limits = self._limits or self._load()
            head = check_head(scope, limits)
        except GatewayError as error:
            refusal = error
        except SettingsError as error:
            log.error("a setting is wrong: %s", error)
            refusal = Unavailable(f"The gateway's settings are wrong: {error}.", code="misconfigured")
        if scope["type"] == "websocket":
            if head is None:
                await _close(receive, send)
            else:
                await self.app(entered(scope, self), receive, send)
            return
        exchange: Exchange | None = scope.get(KEY)
        headers = self._headers if scope.get("scheme") == "https" else self._plain
        if head is None:
            outer = send if exchange is not None else _Headed(send, headers, None)
            await send_error(outer, refusal, self._table.match(scope).envelope)
            return
        bounded = Bounded(receive, limits, json=head.json) if head.comes else None
        if exchange is not None or self._governs(scope):
            await super().__call__(scope, bounded or receive, send)
            return
        headed = _Headed(send, headers, bounded)
        if bounded is None:
            await self.app(scope, receive, headed)
            return
        try:
            await self.app(scope, bounded, headed)
        except Exception:
            # An app that was told of a disconnect may say so in its own way.
            if bounded.fault is None or headed.started:
                raise
        if bounded.fault is not None and not headed.started:
            bounded_fault, bounded.fault = bounded.fault, None
            await send_error(headed, bounded_fault)

    def _governs(self, scope: Scope) -> bool:
        return scope["method"] != "OPTIONS" and self._table.match(scope).kind != "open"

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        headers = self._headers if scope.get("scheme") == "https" else self._plain
        exchange.headers += headers.api
        limits = self._limits
        if limits is not None and limits.body < exchange.max_body:
            exchange.max_body = limits.body
        bounded = receive if type(receive) is Bounded else None
        overseen = _Overseen(exchange, send, headers, bounded)
        try:
            await self.forward(exchange, scope, receive, overseen)
        except GatewayError:
            raise
        except Exception as error:  # an app that was told of a disconnect may say so in its own way
            if bounded is None or bounded.fault is None or exchange.response_started:
                if not exchange.response_started:  # else the server's own words go out, without a header of ours
                    await send_error(overseen, failure_of(exchange, error), exchange.route.envelope)
                raise
        if bounded is not None and bounded.fault is not None and not exchange.response_started:
            fault, bounded.fault = bounded.fault, None
            raise fault

    def _load(self) -> Limits:
        from ..settings import current

        settings = current()
        body, count, size, depth, seconds = self._given
        hosts = self._given_hosts
        if hosts is None and settings.allowed_hosts.strip():
            try:
                hosts = _hosts(part.strip() for part in settings.allowed_hosts.split(",") if part.strip())
            except ValueError as fault:
                raise SettingsError(f"ALLOWED_HOSTS: {fault}") from None
        self._limits = Limits(
            settings.max_body_bytes if body is None else int(body),
            settings.max_header_count if count is None else int(count),
            settings.max_header_bytes if size is None else int(size),
            settings.max_json_depth if depth is None else int(depth),
            settings.receive_timeout_seconds if seconds is None else seconds,
            hosts,
        )
        return self._limits


class _Headers:
    """Headers for answers of the API, and for pages; and whether they stand in the place of the app's own."""

    def __init__(self, api: tuple[Header, ...], page: tuple[Header, ...], override: bool) -> None:
        self.api = api
        self.page = page
        self.override = override
        self.names = frozenset(name for name, _ in api + page)
        self.settings = (api, page, override)

    def plain(self) -> _Headers:
        """The same for answers that are not sent over HTTPS."""
        api, page = (tuple(pair for pair in each if pair[0] != _HSTS) for each in (self.api, self.page))
        return _Headers(api, page, self.override)

    def of(self, own: Iterable[Header]) -> list[Header]:
        """The headers of an answer whose own are these."""
        own = list(own)
        named = {name.lower(): value for name, value in own}
        ours = self.page if b"text/html" in named.get(b"content-type", b"").lower() else self.api
        if self.names.isdisjoint(named):
            return [*own, *ours]
        if self.override:
            return [*(pair for pair in own if pair[0].lower() not in self.names), *ours]
        return [*own, *(pair for pair in ours if pair[0] not in named)]


def _pairs(headers: Mapping[str, str]) -> tuple[Header, ...]:
    for name, value in headers.items():
        if not name or not _TOKEN.issuperset(name):
            raise ValueError(f"headers: {name!r} is no name of a header")
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"headers: the value of {name!r} must be printable ASCII")
    return tuple((name.encode(), value.encode()) for name, value in headers.items())


def _hosts(names: Iterable[str]) -> frozenset[str]:
    if isinstance(names, str):
        raise ValueError("a list of host names, not one text")
    found = set()
    for name in names:
        star = "*." if name.startswith("*.") else ""
        plain = host_of(name.removeprefix("*.").encode())
        if plain is None or (":" in name and not name.startswith("[")) or (star and plain.startswith("[")):
            raise ValueError(f"{name!r} is no host name; write example.com or *.example.com, without a port")
        found.add(star + plain)
    return frozenset(found)


class _Headed:
    """The ``send`` of a path that is not the LLM API's: puts the headers on its answer."""

    __slots__ = ("_bounded", "_headers", "_inner", "started")

    def __init__(self, inner: Send, headers: _Headers, bounded: Bounded | None) -> None:
        self._inner = inner
        self._headers = headers
        self._bounded = bounded
        self.started = False

    def __call__(self, message: Message) -> Awaitable[None]:
        if not self.started:
            if self._bounded is not None and self._bounded.fault is not None:
                return _nothing()  # what the app says to a client that it believes gone; we answer
            if message["type"] == "http.response.start":
                self.started = True
                message = {**message, "headers": self._headers.of(message.get("headers") or ())}
        return self._inner(message)


class _Overseen(_Noted):
    """The ``send`` of a governed path. The exchange puts the headers on; those that the app sets itself are taken off first.

    It is one of the exchange's own, so that a terminal that writes to the server directly passes it by.
    """

    __slots__ = ("_bounded", "_headers")

    def __init__(self, exchange: Exchange, inner: Send, headers: _Headers, bounded: Bounded | None) -> None:
        super().__init__(exchange, inner)
        self._headers = headers
        self._bounded = bounded

    def __call__(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            if self._bounded is not None and self._bounded.fault is not None:
                return _nothing()
            own, headers = message.get("headers") or (), self._headers
            if not headers.names.isdisjoint([name.lower() for name, _ in own]):
                if headers.override:
                    message = {**message, "headers": [pair for pair in own if pair[0].lower() not in headers.names]}
                else:
                    theirs = {name.lower() for name, _ in own}
                    kept = self._exchange.headers
                    kept[:] = [pair for pair in kept if pair[0] not in theirs or pair not in headers.api]
        elif self._bounded is not None and self._bounded.fault is not None and not self._exchange.response_started:
            return _nothing()
        return self.inner(message)


async def _nothing() -> None:
    pass


async def _close(receive: Receive, send: Send) -> None:
    if (await receive())["type"] == "websocket.connect":
        await send({"type": "websocket.close", "code": 1008, "reason": "the request's head can't be taken"})


__all__ = ["HEADERS", "PAGE_POLICY", "SecurityHeadersMiddleware"]
