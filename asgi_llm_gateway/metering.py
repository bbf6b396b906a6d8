"""Calls that a handler makes itself, with an SDK or by its own means: held, traced and booked like proxied ones."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ._metered_http import metered, of_failure, outgoing, package_of, provider_of, refusal, route_of
from ._metered_outside import Outside, is_own, open_own, own_exchange
from ._metered_stream import MeteredCall, enter, leave, note
from ._serving import Serving, current_exchange, serving
from .accounting import Account
from .errors import BadRequest, Forbidden, GatewayError, Unavailable
from .exchange import Exchange
from .prices import PriceTable
from .records import Target, Tenant, Usage
from .stores.base import Ledger
from .usage import usage_from
from .wire import LLMRequest, Route, parse

if TYPE_CHECKING:
    _Transport: Any  # either package's base class, for a type checker
else:
    _Transport = object

T = TypeVar("T")


class NoExchange(Forbidden):
    """A metered call was made where no request is being served, so that nobody is there to pay for it."""

    code = "no_exchange"

    def __init__(self) -> None:
        super().__init__(
            "The call was made outside a request that a gateway middleware serves, so that no tenant pays for it. "
            "Make it inside a handler whose path is metered (paths={'/ask': 'metered'} on each layer), "
            "or build MeteredTransport with outside='pass' (it is not counted) or outside='hold' and a tenant."
        )


# -- calls by other means ----------------------------------------------------------------------------------------------


async def record_usage(
    usage: Any = None,
    *,
    model: str,
    provider: str = "",
    prompt: int | None = None,
    completion: int | None = None,
    cached: int = 0,
    outside: Literal["refuse", "ignore"] = "refuse",
) -> None:
    """Report what a handler's own call to a model used. Several reports of a request add up.

    The call has been made: reporting it can refuse nothing that was used, only a model without a price, or a store that
    does not answer. What is reported is held at once where the budget has so much, so that the handler's next call and all
    others see it; else the part that was not held is booked as an overdraft. From a thread (a ``def`` handler):
    ``anyio.from_thread.run(partial(record_usage, ...))``.

    Args:
        usage: A ``Usage``, a usage object of any dialect (a dictionary, or as the SDKs have it), or ``None`` and the counts.
        model: The model's name, by which it is priced.
        provider: The provider's name, where the price depends on it.
        prompt: Prompt tokens.
        completion: Completion tokens.
        cached: How many of the prompt's tokens the provider read from its cache.
        outside: What happens where no request is being served: ``"refuse"`` raises NoExchange, ``"ignore"`` does nothing.

    Raises:
        ValueError: The counts are none.
        GatewayError: The guards refuse the call, see above.
    """
    used = _usage_of(usage, prompt, completion, cached)
    served = serving()
    if served is None:
        if outside == "ignore":
            return
        raise NoExchange
    await _on(served.loop, _report(served, Target(provider, model), used))


async def _report(served: Serving, target: Target, used: Usage) -> None:
    exchange, account = await _payer(served, Route("metered", None, served.exchange.route.path))
    call = await enter(exchange, account, target, None)
    try:
        note(exchange, call, used)
        if account is not None:
            await account.cover()
    finally:
        await leave(exchange)


def _usage_of(usage: Any, prompt: int | None, completion: int | None, cached: int) -> Usage:
    if isinstance(usage, Usage) and usage.prompt >= 0 and usage.completion >= 0:
        return usage
    told: Any
    if usage is None:
        told = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
    else:
        told = usage if isinstance(usage, Mapping) else usage.model_dump() if hasattr(usage, "model_dump") else {}
    found = usage_from(dict(told))
    if found is None:
        raise ValueError("no usage: give a usage object, or prompt= and completion= as whole numbers of at least 0")
    return found


# -- calls with an SDK -------------------------------------------------------------------------------------------------


class MeteredTransport(_Transport):  # type: ignore[misc]
    """A transport for ``httpx`` and ``httpx2`` clients that has their LLM calls paid by the request being served.

    ``AsyncOpenAI(http_client=httpx2.AsyncClient(transport=MeteredTransport()))``. Before each call, the SDK's own retries
    included, the request's hold is raised to what the call can cost at most; where that is refused, nothing is sent and
    the SDK raises its own error for the refusal's status. A call without an output limit gets one. Answers pass by as they
    come, streams included. A call after the request was settled (a background task) has a hold of its own. In ``def``
    handlers, which run in a thread, it serves the waiting ``Client`` just as well.

    Calls are known by their path: ``.../chat/completions``, ``.../completions``, ``.../embeddings``, ``.../responses``,
    ``.../moderations``, ``.../audio/*``, ``.../images/*`` and ``.../v1/messages``. All others pass by untouched, and unpaid.
    The proxies of the environment are not asked: give ``inner=httpx2.AsyncHTTPTransport(proxy=...)``.

    Args:
        inner: Who sends; ``None`` takes the client's own HTTP transport. It is closed with the client.
        provider: The provider's name, by which prices are found; ``None`` takes it from the host.
        outside: What happens to a call where no request is being served: ``"refuse"`` (403 ``no_exchange``), ``"pass"`` (it
            goes out and is not counted), or ``"hold"`` (``tenant`` pays).
        tenant: With ``outside="hold"``: who pays, a tenant or the id of one in the shared store; ``None`` is ``default``.
        ledger: With ``outside="hold"``: where money is counted; ``None`` takes the shared ledger that the settings name.
        prices: With ``outside="hold"``: what tokens cost; ``None`` takes the default table with the settings' own prices.
    """

    def __init__(
        self,
        inner: Any = None,
        *,
        provider: str | None = None,
        outside: Literal["refuse", "pass", "hold"] = "refuse",
        tenant: Tenant | str | None = None,
        ledger: Ledger | None = None,
        prices: PriceTable | None = None,
    ) -> None:
        if outside not in ("refuse", "pass", "hold"):
            raise ValueError(f"outside={outside!r}: use 'refuse', 'pass' or 'hold'")
        if outside != "hold" and not (tenant is None and ledger is None and prices is None):
            raise ValueError("tenant=, ledger= and prices= are for outside='hold'")
        if not any(find_spec(package) for package in ("httpx2", "httpx")):
            raise ModuleNotFoundError("MeteredTransport needs: pip install 'asgi-llm-gateway[httpx]'", name="httpx")
        self._inner = inner
        self._made: dict[str, Any] = {}
        self._provider = provider
        self._pass = outside == "pass"
        self._payer = Outside(tenant, ledger, prices) if outside == "hold" else None

    # -- awaiting --

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request, for ``AsyncClient``."""
        inner = self._transport(request, "AsyncHTTPTransport")
        route, served = route_of(request), serving()
        if route is None or (served is None and self._pass):
            return await inner.handle_async_request(request)
        try:
            call = await self._begun(route, request, await request.aread(), served)
        except GatewayError as error:
            return refusal(request, error, route)
        try:
            answer = await inner.handle_async_request(outgoing(request, call, self._named(request)))
        except GatewayError as error:
            await call.end(Usage())
            return refusal(request, error, route)
        except BaseException as error:  # cut or cancelled: what was used until then is paid for
            await call.end(of_failure(error), type(error).__name__)
            raise
        call.answered(answer.status_code)
        if is_own(call.exchange):
            call.exchange.answering = answer.status_code
        if answer.status_code >= 300:
            await call.end(Usage())
            return answer
        return metered(request, answer, call, self._named(request))

    async def _begun(self, route: Route, request: Any, body: bytes, served: Serving | None) -> MeteredCall:
        asked = parse(route, body, _content_type(request))
        target = Target(self._named(request), asked.model)
        if served is not None:
            return await _on(served.loop, _begin(served, target, asked, str(request.url)))
        if self._payer is None:
            raise NoExchange
        exchange, account = await self._payer.account(route)
        return MeteredCall(exchange, await enter(exchange, account, target, asked, str(request.url)))

    async def aclose(self) -> None:
        """Close what sends."""
        for inner in (self._inner, *self._made.values()):
            if hasattr(inner, "aclose"):
                await inner.aclose()
        self._made.clear()

    async def __aenter__(self) -> MeteredTransport:
        if self._inner is not None:
            await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self.aclose()

    # -- waiting --

    def handle_request(self, request: Any) -> Any:
        """Send a request, for ``Client``, in a thread that a handler is served in."""
        inner = self._transport(request, "HTTPTransport")
        route, served = route_of(request), serving()
        if route is None or (served is None and self._pass):
            return inner.handle_request(request)
        try:
            call = self._begun_waiting(route, request, request.read(), served)
        except GatewayError as error:
            return refusal(request, error, route)
        try:
            answer = inner.handle_request(outgoing(request, call, self._named(request)))
        except GatewayError as error:
            call.post(Usage())
            return refusal(request, error, route)
        except BaseException as error:  # cut or cancelled: what was used until then is paid for
            call.post(of_failure(error), type(error).__name__)
            raise
        call.answered(answer.status_code)
        if is_own(call.exchange):
            call.exchange.answering = answer.status_code
        if answer.status_code >= 300:
            call.post(Usage())
            return answer
        return metered(request, answer, call, self._named(request))

    def _begun_waiting(self, route: Route, request: Any, body: bytes, served: Serving | None) -> MeteredCall:
        asked = parse(route, body, _content_type(request))
        if served is None:
            if self._payer is None:
                raise NoExchange
            raise BadRequest("outside='hold' needs an event loop: use the SDK's async client.", code="no_exchange")
        if _running_loop() is not None:
            raise BadRequest(
                "A waiting client in an async handler would stop the event loop for ever. Use the SDK's async client, or "
                "make the handler a plain 'def'.",
                code="blocking_call",
            )
        beginning = _begin(served, Target(self._named(request), asked.model), asked, str(request.url))
        try:
            future = asyncio.run_coroutine_threadsafe(beginning, served.loop)
        except RuntimeError:
            beginning.close()
            raise Unavailable("The server has shut down; the call was not sent.") from None
        try:
            return future.result()
        except BaseException:  # the thread that waits is interrupted: the loop need not go on
            future.cancel()
            raise

    def close(self) -> None:
        """Close what sends."""
        for inner in (self._inner, *self._made.values()):
            if hasattr(inner, "close"):
                inner.close()
        self._made.clear()

    def __enter__(self) -> MeteredTransport:
        if self._inner is not None:
            self._inner.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    # -- both --

    def _transport(self, request: Any, kind: str) -> Any:
        """Who sends: the transport given, or one of the package that the request is of."""
        if self._inner is not None:
            return self._inner
        inner = self._made.get(kind)
        if inner is None:
            http: Any = sys.modules[package_of(request)]
            limits = http.Limits(max_connections=1000, max_keepalive_connections=100)  # as the SDKs have it
            inner = self._made[kind] = getattr(http, kind)(limits=limits)
        return inner

    def _named(self, request: Any) -> str:
        return provider_of(request) if self._provider is None else self._provider


def _content_type(request: Any) -> bytes | None:
    kind: str | None = request.headers.get("content-type")
    return None if kind is None else kind.encode("latin-1", "replace")


async def _begin(served: Serving, target: Target, request: LLMRequest, url: str) -> MeteredCall:
    """A call of the request being served; on its loop."""
    exchange, account = await _payer(served, request.route)
    return MeteredCall(exchange, await enter(exchange, account, target, request, url))


async def _payer(served: Serving, route: Route) -> tuple[Exchange, Account | None]:
    """Whose call it is, and who pays: the request being served, or once that is settled an exchange of the call's own."""
    exchange = served.exchange
    account = next((guard for guard in served.guards if isinstance(guard, Account)), None)
    if not (served.over or exchange.ended or (account is not None and account.over)):
        return exchange, account
    own = own_exchange(route, exchange.identity, exchange.record)
    if account is None:
        return own, None
    account = account.anew(own)
    await open_own(own, account)
    return own, account


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` on the loop that it belongs to."""
    if loop is asyncio.get_running_loop():
        return await work
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:
        work.close()
        raise Unavailable("The server has shut down; the call was not sent.") from None
    return await asyncio.wrap_future(future)


__all__ = ["MeteredTransport", "NoExchange", "current_exchange", "record_usage"]
