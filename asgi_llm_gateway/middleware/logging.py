"""One line a call: who asked for what, how it went, what it took and what it cost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Literal

from .._asgi import ASGIApp, Receive, Scope, Send
from .._closing import on_close
from .._perloop import PerLoop
from ..errors import GatewayError, SettingsError
from ..exchange import MAX_BODY, ClientGone, Exchange
from ..logs import Lines, Logger, shared_lines
from ..records import TraceRecord
from ._logging_line import line_of
from .base import LLMMiddleware, Rank

log = logging.getLogger("asgi_llm_gateway")


class LoggingMiddleware(LLMMiddleware):
    """Log every call when it is over, as one structured line ``call``.

    It has the request's and the trace's id, tenant, key id, path, model, provider, tokens, cost in USD, milliseconds in all
    and to the first byte, status and error code. ``error`` is its level for a status of 500 and more, ``info`` for all else.
    It never has a prompt, an answer or a key, and no text of an exception. The line is written by a thread: a log that
    nobody reads stops no call, and what does not fit the queue is dropped and counted.

    Args:
        app: The ASGI app further in.
        logger: A structlog logger, or what has its ``info`` and ``error``; it is called on the event loop. ``None`` takes
            structlog's where the host app has configured it, else our own on stderr, by LOG_FORMAT and LOG_QUEUE_LINES.
        paths: See LLMMiddleware.
        govern: See LLMMiddleware.
        max_body: See LLMMiddleware.

    Raises:
        ModuleNotFoundError: ``structlog`` (extra ``logging``) is not installed, and no ``logger`` is given.
    """

    rank = Rank.LOGGING

    def __init__(
        self,
        app: ASGIApp,
        *,
        logger: Logger | None = None,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        same = (id(logger) if logger is not None else None,)
        super().__init__(app, settings=same, paths=paths, govern=govern, max_body=max_body)
        self._structlog = logger is None and _host_configured()
        self._logger = logger
        self._lines = logger if isinstance(logger, Lines) else None
        self._flushed: PerLoop[bool] = PerLoop()
        inner = app
        while isinstance(inner, LLMMiddleware) and inner.rank != Rank.TRACING:
            inner = inner.app
        self._notes = not isinstance(inner, LLMMiddleware)  # nobody else is known to keep a record of the call

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        started = time.perf_counter()
        if self._notes and exchange.record is None:
            exchange.record = TraceRecord("", "", 0.0, scope["method"], exchange.route.path)
        status: int | None = None
        failure: str | None = None
        try:
            await self.forward(exchange, scope, receive, send)
        except GatewayError as error:
            status, failure = error.http_status, error.error_code
            raise
        except SettingsError:
            status, failure = 503, "misconfigured"
            raise
        except (asyncio.CancelledError, ClientGone):
            failure = "client_gone"
            raise
        except BaseException as error:  # noted for the line, and raised again
            status, failure = 500, type(error).__name__
            raise
        finally:
            status = exchange.status or status
            try:
                self._write(exchange, scope["method"], status, failure, started)
            except Exception:  # a host app's own processors, for example: the call was answered all the same
                log.exception("a call could not be logged")

    def _write(self, exchange: Exchange, method: str, status: int | None, failure: str | None, started: float) -> None:
        logger = self._logger or self._open()
        line = line_of(exchange, method, status, failure, started, time.perf_counter())
        level: Literal["info", "error"] = "error" if status is not None and status >= 500 else "info"
        if self._lines is None:
            getattr(logger, level)("call", **line)
            return
        self._lines.put(level, "call", line)
        if self._flushed.get() is None:
            self._flushed.put(True)
            on_close(self._close)

    def _open(self) -> Logger:
        """Where lines go, on first use."""
        found: Logger
        if self._structlog:
            import structlog

            found = structlog.get_logger("asgi_llm_gateway")
        else:
            found = self._lines = shared_lines()
        self._logger = found
        return found

    async def _close(self) -> None:
        self._flushed.pop()
        if self._lines is not None:
            await self._lines.aclose()


def _host_configured() -> bool:
    """Whether the host app has told structlog where its lines go."""
    try:
        import structlog
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("logging needs: pip install 'asgi-llm-gateway[logging]'", name=error.name) from None
    return structlog.is_configured()


__all__ = ["LoggingMiddleware"]
