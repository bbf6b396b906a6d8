"""What happened: a request id and a trace id on every answer, and one recorded trace a call."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from typing import Literal

from .._asgi import ASGIApp, Headers, Receive, Scope, Send
from ..errors import GatewayError
from ..exchange import MAX_BODY, Exchange
from ..records import TraceRecord
from ..tracelog import TraceLog, shared_traces
from .base import LLMMiddleware, Rank

# What a client may choose as its request id. It is echoed and recorded, never a key of anything.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}\Z")
# Source: W3C Trace Context, "traceparent header" (version 00): ids of zeros only are invalid.
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")


class TracingMiddleware(LLMMiddleware):
    """Give every call a request id and a trace id, and record how it went.

    ``x-request-id`` (the client's own where it sent a sound one) and ``x-trace-id`` (that of a ``traceparent``, else a
    fresh one) stand on every answer, errors included. A record holds no prompt, no answer and no secret.

    Args:
        app: The ASGI app further in.
        traces: Where calls are recorded; ``None`` takes the shared log of this process.
        paths: See LLMMiddleware.
        govern: See LLMMiddleware.
        max_body: See LLMMiddleware.
    """

    rank = Rank.TRACING

    def __init__(
        self,
        app: ASGIApp,
        *,
        traces: TraceLog | None = None,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        super().__init__(
            app, settings=(id(traces) if traces is not None else None,), paths=paths, govern=govern, max_body=max_body
        )
        self._traces = shared_traces if traces is None else traces

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        request_id, trace_id = _ids(exchange.sent(scope))
        started = time.perf_counter()
        record = TraceRecord(
            trace_id.decode(), request_id.decode(), time.time(), scope["method"], exchange.route.path or scope["path"]
        )
        exchange.record = record
        exchange.headers += ((b"x-request-id", request_id), (b"x-trace-id", trace_id))
        try:
            await self.forward(exchange, scope, receive, send)
        except GatewayError as error:
            record.error = record.error or error.error_code
            record.status = error.http_status
            raise
        except BaseException as error:  # noted in the record, and raised again
            record.error = record.error or type(error).__name__
            raise
        finally:
            record.duration = time.perf_counter() - started
            if exchange.first_byte_at is not None:
                record.first_byte = exchange.first_byte_at - started
            if exchange.status is not None:
                record.status = exchange.status
            request = exchange.request
            if request is not None:
                record.model, record.stream = request.model, request.stream
            if exchange.calls:
                record.provider = exchange.calls[-1].target.provider
            record.tenant = exchange.identity.tenant.id if record.tenant is None else record.tenant
            record.usage = exchange.usage
            record.aborted = exchange.gone or not exchange.complete
            self._traces.add(record)


def _ids(headers: Headers) -> tuple[bytes, bytes]:
    """The call's request id and trace id: the client's where they are sound, else fresh ones."""
    request_id = headers.get(b"x-request-id") or b""
    if request_id and _REQUEST_ID.match(request_id) is None:
        request_id = b""
    trace_id = b""
    parent = headers.get(b"traceparent")
    if parent is not None:
        found = _TRACEPARENT.match(parent)
        if found is not None and not parent.startswith(b"ff"):
            trace_id = found[1]
    # Not secrets, and drawn for every call: the Mersenne twister is enough, and is seeded anew in every process.
    if not trace_id:
        trace_id = b"%032x" % random.getrandbits(128)
    if not request_id:
        request_id = b"req_%032x" % random.getrandbits(128)
    return request_id, trace_id
