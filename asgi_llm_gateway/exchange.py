"""One LLM call, shared by the whole stack through the ASGI scope. It knows the call, and no concern."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ._asgi import ASGIApp, Headers, Message, Receive, Scope, Send, whole
from ._stepping import send_at_once, server_of, write_whole
from .calls import OVER, Call, Guard, Lasting, Tracer
from .errors import BadRequest, GatewayError, Header, TooLarge
from .records import DEFAULT_TENANT, Identity, Target, Tenant, TraceRecord, Usage
from .usage import UsageReader
from .watching import Watched
from .wire import FORMS, LLMRequest, Route, check_content_type, parse

KEY = "asgi_llm_gateway.exchange"
"""Where the exchange is kept in the scope. Private: no client can set a scope's keys."""

MAX_BODY = 32 * 1024 * 1024
"""Bytes of a request's body, where nothing else is set."""

_UNREAD = Headers([])
_NOBODY = Identity(Tenant(DEFAULT_TENANT), None)


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


class Exchange:
    """One LLM call on its way through the stack.

    Attributes:
        entry: The outermost gateway middleware; a message of a realtime session starts there again.
        route: The path's row in the closed table.
        request: The parsed request, once ``read`` was awaited.
        identity: Tenant and key; the tenant ``default`` where no TenantMiddleware stands.
        record: What is recorded of the call.
        headers: Response headers that layers add; the entry puts them on the answer.
        calls: The upstream calls made, in order.
        cost: What the call cost, in nano-USD, once that is booked.
        usage: Tokens of the answer, once known.
        reader: What the watcher read of a stranger's answer.
        exact: Somebody who knows sets ``usage`` (ProxyApp, a metered client); the watcher does not read it.
        ends_itself: Whoever answers awaits ``end`` at the right moment (ProxyApp); the watcher stays silent.
        answering: The answer's HTTP status, once it is known; its start may yet wait for what the call cost.
        status: The answer's HTTP status, once it started.
        first_byte_at: ``time.perf_counter()`` of the first body byte.
        lasting: Calls that may outlive the answer; while one runs, the money is not settled.
        gone: The client hung up before its answer was complete.
        complete: The answer's last message has gone out.
        deferred: A layer may yet ask for another answer: ``end`` waits until it says that this one is final.
        seen: The gateway layers that the call went through, outermost first.
        rank: The highest rank among them.
        refusal: Why the call is refused, where a layer further in is still to count it: it raises it then.
        max_body: Bytes that the request's body may have.
        tracer: Makes spans of the upstream calls, where somebody asked for them.
    """

    __slots__ = (
        "_at_end", "_guards", "_receive", "_replayed", "_sent", "_watched", "amended", "answering", "calls",
        "complete", "cost", "deferred", "ended", "ends_itself", "entry", "exact", "first_byte_at", "gone",
        "headers", "identity",
        "lasting", "max_body", "rank", "reader", "record", "refusal", "request", "route", "seen", "status", "tracer", "usage",
    )  # fmt: skip

    def __init__(self, entry: ASGIApp, route: Route, scope: Scope, *, max_body: int = MAX_BODY) -> None:
        self.entry = entry
        self.route = route
        self.max_body = max_body
        self.request: LLMRequest | None = None
        self.identity = _NOBODY
        self.record: TraceRecord | None = None
        self.headers: list[Header] = []
        self.calls: list[Call] = []
        self.seen: list[Any] = []
        self.tracer: Tracer | None = None
        self.rank = -1
        self.usage: Usage | None = None
        self.cost: int | None = None
        self.refusal: GatewayError | None = None
        self.reader: UsageReader | None = None
        self.exact = False
        self.ends_itself = False
        self.status: int | None = None
        self.answering: int | None = None
        self.first_byte_at: float | None = None
        self.lasting: Lasting | None = None
        self.gone = False
        self.complete = False
        self.ended = False
        self.deferred = False
        self.amended = False
        self._guards: list[Guard] = []
        self._at_end: list[Callable[[], Awaitable[None]]] = []
        self._receive: Receive | None = None
        self._replayed = False
        self._watched = False
        self._sent = _UNREAD

    def sent(self, scope: Scope) -> Headers:
        """The request's headers as that scope has them; read once, unless somebody in between changed them."""
        raw = scope.get("headers") or ()
        if raw is not self._sent.raw:
            self._sent = Headers(raw)
        return self._sent

    # -- the request ---------------------------------------------------------------------------------------------------

    async def read(self, receive: Receive, scope: Scope) -> Receive:
        """Buffer and parse the body, once, however many ask; bounded by ``max_body``.

        Returns a ``receive`` that gives the body (as amended) once and the truth from then on. A path whose body the
        gateway does not read keeps its own. Raises BadRequest, TooLarge, ClientGone.
        """
        if self.request is not None or self.route.dialect is None:
            return receive
        self._refuse_by_headers(scope)
        message = await receive()
        if message.get("more_body") or message["type"] == "http.disconnect":
            body = await self._buffer(message, receive)
        else:
            body = message.get("body", b"")
        if len(body) > self.max_body:
            raise self._too_large()
        get = self.sent(scope).get
        self.request = request = parse(self.route, body, get(b"content-type"))
        request.header = get
        self.amended = request.amended  # a default may have been written into it
        self._receive = receive
        if request.tenant is not None or "tenant" in request.data:
            self.amend(tenant=None)
        return self.replay

    def _refuse_by_headers(self, scope: Scope) -> None:
        get = self.sent(scope).get
        kind = get(b"content-type")
        if kind != b"application/json" or self.route.dialect in FORMS:
            check_content_type(self.route.dialect, kind)
        encoding = get(b"content-encoding")
        if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
            raise BadRequest("A compressed body is not accepted. Send it plain.", status=415, param="content-encoding",
                             code="unsupported_content_encoding")  # fmt: skip
        length = get(b"content-length")
        if length is not None and length.isdigit() and len(length) < 20 and int(length) > self.max_body:
            raise self._too_large()

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is over the limit of {self.max_body} bytes.")

    async def _buffer(self, message: Message, receive: Receive) -> bytes:
        """A body that comes in pieces, of which ``message`` is the first; given up on when it is too long."""
        parts: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body:
                raise self._too_large()
            if not message.get("more_body"):
                return b"".join(parts)
            message = await receive()

    async def replay(self) -> Message:
        """The ``receive`` for those further in: the body once, then what the server says."""
        if not self._replayed:
            self._replayed = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        assert self._receive is not None
        return await self._receive()

    def rewind(self) -> None:
        """The body is given once more: whoever stands further in is asked again."""
        self._replayed = False

    def truth(self, receive: Receive) -> Receive:
        """The ``receive`` that tells of a hang-up: the server's own where ours only stands before it."""
        if self._receive is not None and getattr(receive, "__self__", None) is self:
            self._replayed = True
            return self._receive
        return receive

    def waiting(self, receive: Receive) -> Receive:
        """The ``receive`` that tells of a hang-up while the call waits; whoever answers may read the body all the same."""
        if self._receive is not None and getattr(receive, "__self__", None) is self:
            return self._receive
        return receive

    def amend(self, **fields: Any) -> None:
        """Change the request: the one way to do so. ``None`` takes a field out.

        The body is written again at most once, when the one that answers reads it; an unamended body stays as it came,
        byte for byte.
        """
        assert self.request is not None, "read the request before you amend it"
        self.request = self.request.with_fields(**fields)
        self.amended = True

    @property
    def body(self) -> bytes:
        """The body as whoever answers shall read it."""
        assert self.request is not None
        return self.request.body

    def sealed(self, scope: Scope) -> Scope:
        """A copy of the scope whose content-length is that of the amended body."""
        size = b"%d" % len(self.body)
        drop = (b"content-length", b"transfer-encoding")
        headers = [(key, value) for key, value in scope["headers"] if key.lower() not in drop]
        return {**scope, "headers": [*headers, (b"content-length", size)]}

    def step(self, name: str, began: float) -> None:
        """What the call waited for since that ``time.perf_counter()`` is done; kept where calls are recorded."""
        if self.record is not None:
            self.record.steps.append((name, began, time.perf_counter()))

    # -- upstream calls ------------------------------------------------------------------------------------------------

    def guard(self, guard: Guard) -> None:
        """Ask ``guard`` before every upstream call from now on."""
        self._guards.append(guard)

    @property
    def guards(self) -> tuple[Guard, ...]:
        """Who is asked before upstream calls."""
        return tuple(self._guards)

    async def begin_call(self, target: Target, request: LLMRequest | None = None, url: str = "") -> Call:
        """Before every upstream call: all guards agree, or their GatewayError is raised and no call may go out.

        ``url`` is where it goes, as far as that is known.
        """
        call = Call(target, request)
        self.calls.append(call)  # before the guards wait for anything: calls that begin side by side see each other
        try:
            for guard in self._guards:
                await guard.begin(call)
        except BaseException:  # refused, or cancelled: it is no call of the exchange
            self.calls.remove(call)
            raise
        call.begun = time.perf_counter()
        if self.tracer is not None:
            self.tracer.begin(call, url)
        return call

    # -- the answer ----------------------------------------------------------------------------------------------------

    def at_end(self, work: Callable[[], Awaitable[None]]) -> None:
        """Await ``work`` when the answer's content is complete, before its last message goes out to the client."""
        self._at_end.append(work)

    async def end(self) -> None:
        """The content is complete (or given up): whoever registered does its work, innermost first, once."""
        if self.deferred:
            return
        if self._at_end:
            began = time.perf_counter()
            while self._at_end:
                await self._at_end.pop()()
            self.step("settle", began)
        self.ended = True

    def wrap(self, send: Send) -> Send:
        """The entry's ``send``: puts the layers' headers on the answer, and notes status and first byte."""
        return _Noted(self, send)

    def watch(self, send: Send) -> Send:
        """Count usage from the answer's bytes, once; later callers get ``send`` back unchanged.

        Before the last message is forwarded (of a stream: its last news), ``end`` is awaited; a JSON answer waits for that
        as a whole, so that headers can tell what it cost. Where somebody knows better (``exact``), no usage is read.
        """
        if self._watched:
            return send
        self._watched = True
        return Watched(self, send)

    @property
    def awaited(self) -> bool:
        """Somebody has work to do when the answer's content is complete."""
        return bool(self._at_end)

    def direct(self, send: Send) -> Send:
        """The ``send`` behind those that this exchange made and that have nothing more to do.

        That is so once the answer has begun and somebody else tells its usage.
        """
        return self.outermost(send) if self.exact and self.first_byte_at is not None else send

    def outermost(self, send: Send) -> Send:
        """The ``send`` behind those that this exchange made: the server's, where nobody else stands between."""
        while isinstance(send, (_Noted, Watched)):
            send = send.inner
        return send

    async def answer(self, send: Send, status: int, body: bytes, headers: Sequence[Header]) -> None:
        """Answer with a whole body: head and body leave together where the server is known."""
        direct = self.outermost(send) if self.exact else send
        server = server_of(direct)
        if server is not None and direct is not send:
            # What those between, which are all of this exchange, would do with the two messages.
            self.status = status
            self.first_byte_at = time.perf_counter()
            self.complete = True
            if not write_whole(server, status, body, [*headers, *self.headers]):
                start, end = whole(status, body, headers)
                start["headers"] += self.headers
                await send_at_once(direct, server, start, end)
        else:
            for message in whole(status, body, headers):
                await send(message)

    def close(self) -> None:
        """The entry is done: let go of who refers back, so that no garbage collector is needed."""
        if self._guards:  # what was guarded stays so: a task that outlives the call makes no call for it
            self._guards[:] = (OVER,)
        self._at_end.clear()

    @property
    def response_started(self) -> bool:
        """Whether the status line has gone out: from then on nothing else can be answered."""
        return self.status is not None


class _Noted:
    """The entry's ``send``. A plain call, no coroutine of its own: it runs for every message."""

    __slots__ = ("_exchange", "inner")

    def __init__(self, exchange: Exchange, inner: Send) -> None:
        self._exchange = exchange
        self.inner = inner

    def __call__(self, message: Message) -> Awaitable[None]:
        exchange = self._exchange
        kind = message["type"]
        if kind == "http.response.body":
            if exchange.first_byte_at is None and message.get("body"):
                exchange.first_byte_at = time.perf_counter()
            if not message.get("more_body"):
                exchange.complete = True
        elif kind == "http.response.start":
            exchange.status = exchange.answering = message["status"]
            if exchange.headers:
                message = {**message, "headers": [*(message.get("headers") or ()), *exchange.headers]}
        return self.inner(message)


def exchange_of(scope: Scope) -> Exchange | None:
    """The exchange that a scope carries, if a gateway middleware stands further out."""
    found = scope.get(KEY)
    return found if isinstance(found, Exchange) else None


__all__ = ["KEY", "MAX_BODY", "ClientGone", "Exchange", "GatewayError", "exchange_of"]
