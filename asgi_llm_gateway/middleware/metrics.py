"""How much, how fast, for whom: Prometheus counters and histograms of every call, with labels that stay few."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Literal

from .._asgi import ASGIApp, Message, Receive, Scope, Send
from ..errors import GatewayError
from ..exchange import MAX_BODY, ClientGone, Exchange
from ..meters.bounds import method_label, route_label, status_label
from ..meters.exposition import share
from ..meters.meters import Meters
from ..meters.shared import shared_meters
from ..records import TraceRecord
from ._metrics_call import count_call
from ._metrics_otel import Names, Telemetry, open_telemetry
from .base import LLMMiddleware, Rank

log = logging.getLogger("asgi_llm_gateway")

_CLOSED = 499  # nginx's word for a client that left before it was answered; never sent
_LABELS = 2000  # sets of labels that are remembered by what they were made of
_SHARE = 2.0  # seconds between two times that gauges are told to the other processes

Labels = tuple[tuple[str, str, str], tuple[str, str]]


class MetricsMiddleware(LLMMiddleware):
    """Count every call, and every other request that passes, for Prometheus.

    Requests and their seconds are counted for all paths; tokens and money as the ledger books them, so that the sum of
    ``llm_cost_total`` over all workers is what was settled. Where no BudgetMiddleware stands further in, the tokens of an
    answer are counted as it tells them. The admin app's ``/metrics`` shows it all, as does the host app's own page of
    ``prometheus_client``.

    Args:
        app: The ASGI app further in.
        meters: Where it is counted; ``None`` takes the meters of this process, made by METRICS_MAX_TENANTS,
            METRICS_MAX_MODELS and PROMETHEUS_MULTIPROC_DIR.
        otel: Record OpenTelemetry's GenAI metrics too, by the names that dashboards know (``"stable"``), by those of
            the newer conventions (``"new"``), or ``"both"``; ``"off"``: none; ``None`` takes METRICS_OTEL.
        meter_provider: OpenTelemetry's meter provider; ``None`` takes the global one.
        paths: See LLMMiddleware; they are routes' labels too.
        govern: See LLMMiddleware.
        max_body: See LLMMiddleware.

    Raises:
        ModuleNotFoundError: ``prometheus-client`` (extra ``metrics``) is not installed.
        ValueError: ``otel`` is none of the above.
    """

    rank = Rank.METRICS

    def __init__(
        self,
        app: ASGIApp,
        *,
        meters: Meters | None = None,
        otel: Names | None = None,
        meter_provider: Any = None,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        if otel not in (None, "off", "stable", "new", "both"):
            raise ValueError(f"otel={otel!r}: use 'off', 'stable', 'new' or 'both'")
        same = (id(meters) if meters is not None else None, otel, id(meter_provider) if meter_provider else None)
        super().__init__(app, settings=same, paths=paths, govern=govern, max_body=max_body)
        self._given = meters
        self._meters: Meters | None = None
        self._otel = otel
        self._provider = meter_provider
        self._telemetry: Telemetry | None = None
        self._own = tuple(paths or ())
        self._known: dict[tuple[str, str, int], Labels] = {}
        inner, last = inside(app)
        self._notes = Rank.TRACING not in inner  # nobody else keeps a record of the call
        # A stranger's answer tells its tokens to whoever reads it; a ledger or an app of ours does so already.
        self._watches = Rank.BUDGET not in inner and not getattr(type(last), "joins_exchange", False)
        self._share_at = 0.0

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request that is no call of the gateway's: it is counted, and nothing else."""
        meters = self._meters or self._open()
        started = self._begin(meters)
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except asyncio.CancelledError:
            status = status or _CLOSED
            raise
        except BaseException:  # noted for the counts, and raised again
            status = status or 500
            raise
        finally:
            path: str = scope["path"]
            root: str = scope.get("root_path") or ""
            if root and path.startswith(root):
                path = path[len(root) :]
            self._count(meters, None, scope["method"], path or "/", status or _CLOSED, started)

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        meters = self._meters or self._open()
        started = self._begin(meters)
        if self._notes and exchange.record is None:
            exchange.record = TraceRecord("", "", 0.0, scope["method"], exchange.route.path)
        if self._watches and exchange.route.kind == "metered":
            send = exchange.watch(send)
        status = 0
        try:
            await self.forward(exchange, scope, receive, send)
        except GatewayError as error:
            status = error.http_status
            raise
        except (asyncio.CancelledError, ClientGone):
            status = _CLOSED
            raise
        except BaseException:  # noted for the counts, and raised again
            status = 500
            raise
        finally:
            status = exchange.status or status or _CLOSED
            self._count(meters, exchange, scope["method"], exchange.route.path, status, started)

    def _begin(self, meters: Meters) -> float:
        """A request has come; its time by ``perf_counter``."""
        with meters.lock:
            meters.in_flight += 1
        now = time.perf_counter()
        if meters.folder is not None and now >= self._share_at:
            # Not at once: in two seconds it is known how it went, and all that happens until then is told with it.
            self._share_at = now + _SHARE
            asyncio.get_running_loop().call_later(_SHARE, share, meters)
        return now

    def _count(
        self, meters: Meters, exchange: Exchange | None, method: str, path: str, status: int, started: float
    ) -> None:
        """A request is over. Whatever goes wrong here (a full disk) is logged and keeps nobody from an answer."""
        ended = time.perf_counter()
        labels = self._known.get((method, path, status)) or self._label(method, path, status)
        record = exchange.record if exchange is not None else None
        try:
            with meters.lock:
                meters.in_flight -= 1
                meters.requests.add(labels[0])
                meters.duration.observe(labels[1], ended - started, record.trace_id if record is not None else "")
                if exchange is not None:
                    count_call(meters, exchange, status, started, ended)
            if self._telemetry is not None and exchange is not None:
                self._telemetry.ended(exchange, status, started, ended)
        except Exception:  # a mistake of ours: the request was answered all the same
            log.exception("a request could not be counted")

    def _label(self, method: str, path: str, status: int) -> Labels:
        route = route_label(path, self._own)
        verb = method_label(method)
        found = (verb, route, status_label(status)), (verb, route)
        if len(self._known) < _LABELS:
            self._known[method, path, status] = found
        return found

    def _open(self) -> Meters:
        """What needs the settings, on first use."""
        from ..settings import current

        names = self._otel or current().metrics_otel
        if names != "off":
            self._telemetry = open_telemetry(names, self._provider)
        self._meters = shared_meters() if self._given is None else self._given
        return self._meters


def inside(app: ASGIApp) -> tuple[set[Rank], ASGIApp]:
    """The ranks of the gateway layers that are known to stand further in, and the app behind them."""
    found: set[Rank] = set()
    while isinstance(app, LLMMiddleware):
        found.add(app.rank)
        app = app.app
    return found, app


__all__ = ["MetricsMiddleware"]
