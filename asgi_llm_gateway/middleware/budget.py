"""For how much money: a tenant pays at most its budget, also when calls run side by side."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from .._asgi import ASGIApp, Receive, Scope, Send, finish
from ..errors import BadRequest, BudgetError, Forbidden, MethodNotAllowed, StoreError, Unavailable
from ..exchange import MAX_BODY, Call, Exchange
from ..keys import new_hold_id
from ..prices import DEFAULT_PRICES, FREE, PriceTable, cost_of
from ..records import NANO_PER_USD, CallRecord, Hold, Price, Usage
from ..stores.base import Ledger
from ..tokens import estimate, prompt_bound
from ..usage import UsageReader
from ..wire import LLMRequest
from .base import LLMMiddleware, Rank

log = logging.getLogger("asgi_llm_gateway")

_MILLION = 1_000_000
# A call is given so long; the process that runs it may have died when it lapses.
HOLD_SECONDS = 3600.0


class BudgetMiddleware(LLMMiddleware):
    """Reserve what a call can cost at most, settle what it did cost.

    An explicit output limit is never changed: where it does not fit, the call is refused (402 ``would_exceed_budget``).
    Where none is given one is chosen, lowered to what the budget still holds, and put into the request.

    Args:
        app: The ASGI app further in.
        ledger: Where money is counted; ``None`` takes the shared ledger that the settings name.
        prices: What a model's tokens cost; ``None`` takes the default table with the settings' own prices.
        default_max_output: Output tokens of a request that names no limit; ``None`` takes DEFAULT_MAX_OUTPUT_TOKENS.
        min_output: The fewest output tokens worth a call; ``None`` takes MIN_OUTPUT_TOKENS.
        unknown_price: ``"refuse"`` or ``"free"``: what happens to a model without a price when the tenant has a budget.
        clock: Unix time in seconds.
        paths: See LLMMiddleware.
        govern: See LLMMiddleware.
        max_body: See LLMMiddleware.
    """

    rank = Rank.BUDGET

    def __init__(
        self,
        app: ASGIApp,
        *,
        ledger: Ledger | None = None,
        prices: PriceTable | None = None,
        default_max_output: int | None = None,
        min_output: int | None = None,
        unknown_price: str = "refuse",
        clock: Callable[[], float] = time.time,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        if unknown_price not in ("refuse", "free"):
            raise ValueError(f"unknown_price={unknown_price!r}: use 'refuse' or 'free'")
        same = (id(ledger) if ledger else None, id(prices) if prices else None, default_max_output, min_output)
        super().__init__(app, settings=(*same, unknown_price), paths=paths, govern=govern, max_body=max_body)
        self._ledger = ledger
        self._prices = prices
        self._wanted = default_max_output
        self._least = min_output
        self._unknown_free = unknown_price == "free"
        self._clock = clock

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        if exchange.route.kind != "metered":
            _refuse_unpriced(exchange, scope)
            await self.forward(exchange, scope, receive, send)
            return
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"Use POST for {exchange.route.path}.", headers=((b"allow", b"POST"),))
        if exchange.request is None:
            receive = await exchange.read(receive, scope)
        if self._wanted is None or self._least is None or self._prices is None:
            self._take_settings()
        ledger = self._ledger or await _shared()
        account = Account(ledger, exchange, self._prices or DEFAULT_PRICES, self._clock, self._unknown_free)
        await account.open(self._wanted or 1, self._least or 1)
        exchange.guard(account)
        exchange.at_end(account.settle)
        try:
            await self.forward(exchange, scope, receive, exchange.watch(send))
        finally:
            if not account.closed:  # cut, cancelled or crashed: the tokens are paid for all the same
                await finish(account.settle(cut=True))

    def _take_settings(self) -> None:
        from ..settings import current, current_file

        settings = current()
        if self._wanted is None:
            self._wanted = settings.default_max_output_tokens
        if self._least is None:
            self._least = settings.min_output_tokens
        if self._prices is None:
            self._prices = prices_of(current_file().models)


async def _shared() -> Ledger:
    from ..stores.shared import shared_ledger

    return await shared_ledger()


def prices_of(models: Any) -> PriceTable:
    """The default prices with those of the settings file in front."""
    own = {
        name: Price(model.usd_per_million_in or 0, model.usd_per_million_out or 0)
        for name, model in models.items()
        if model.usd_per_million_in is not None or model.usd_per_million_out is not None
    }
    return PriceTable(own) if own else DEFAULT_PRICES


_FREE_GETS = ("/v1/models", "/v1/realtime")


def _refuse_unpriced(exchange: Exchange, scope: Scope) -> None:
    """Let through what costs nothing; an endpoint that can't be priced is no way round for a tenant with a budget."""
    path = exchange.route.path
    if scope["method"] in ("GET", "HEAD") and any(path == free or path.startswith(free + "/") for free in _FREE_GETS):
        return
    if (
        path.startswith("/v1/realtime/")
        or path == "/v1/messages/count_tokens"
        or exchange.identity.tenant.budget is None
    ):
        return
    raise Forbidden(
        f"'{path}' has no price, and the tenant has a budget. Ask the operator to list the path in 'paths'.",
        code="unpriced_endpoint",
    )


class Account:
    """The money of one call: a hold at its start, raised before each further upstream call, settled once."""

    __slots__ = ("_clock", "_entry", "_exchange", "_hold", "_ledger", "_prices", "_rates", "_request", "_settling",
                 "_started", "_unknown_free", "closed")  # fmt: skip

    def __init__(
        self, ledger: Ledger, exchange: Exchange, prices: PriceTable, clock: Callable[[], float], unknown_free: bool
    ) -> None:
        self._ledger = ledger
        self._exchange = exchange
        self._prices = prices
        self._clock = clock
        self._started = clock()
        self._hold: Hold | None = None
        self._request: LLMRequest | None = None
        self._entry: tuple[LLMRequest | None, Price, int] = (None, FREE, 0)  # what was held first, at which price
        self._rates: dict[Call, Price] = {}
        self._settling = False
        self.closed = False
        self._unknown_free = unknown_free

    # -- at the start --------------------------------------------------------------------------------------------------

    async def open(self, wanted_output: int, least_output: int) -> None:
        """Take the entry hold, and choose an output limit where the request has none."""
        exchange = self._exchange
        request = self._request = exchange.request
        limit = exchange.identity.tenant.budget
        if request is None:  # a path of the user's own: nothing is known before its handler calls an upstream
            self._hold = await self._take(0, 0, limit)
            return
        price = self._price(request.model, None)
        if request.max_tokens is not None or request.route.dialect == "embeddings":
            most = _ceiling(request, request.max_tokens or 0, price)
            self._entry = (request, price, most)
            self._hold = await self._take(most, most, limit)
            return
        least = _ceiling(request, min(least_output, wanted_output), price)
        self._hold = await self._take(least, _ceiling(request, wanted_output, price), limit)
        granted = _output_for(request, self._hold.amount, price, wanted_output)
        exchange.amend(**{_limit_field(request): granted})
        self._request = exchange.request

    async def _take(self, least: int, wanted: int, limit: int | None) -> Hold:
        tenant = self._exchange.identity.tenant.id
        hold_id, now = new_hold_id(), self._clock()
        try:
            hold = await self._ledger.hold(
                tenant, hold_id=hold_id, least=least, wanted=wanted, limit=limit, now=now, ttl=HOLD_SECONDS
            )
            if hold is None:
                raise await self._refusal(least, limit or 0)
        except StoreError as error:
            raise _unavailable(error) from error
        except asyncio.CancelledError:  # the client left meanwhile; nobody would know the hold
            await finish(self._ledger.release(Hold(hold_id, tenant, 0, now)))
            raise
        return hold

    async def _refusal(self, least: int, limit: int) -> BudgetError:
        balance = await self._ledger.balance(self._exchange.identity.tenant.id)
        if balance.spent >= limit:
            return BudgetError(f"The tenant's budget of {usd(limit)} USD is spent.")
        left = limit - balance.spent - balance.held
        return BudgetError(
            f"The request could cost {usd(least)} USD; {usd(max(left, 0))} USD of the budget of {usd(limit)} USD are free "
            f"({usd(balance.held)} USD are held for calls that run). Ask for fewer tokens, or raise the budget.",
            code="would_exceed_budget",
        )

    def _price(self, model: str, provider: str | None) -> Price:
        asked = self._request.model if self._request is not None else None
        price = self._prices.find(model, provider, asked)
        if price is None:
            if self._exchange.identity.tenant.budget is not None and not self._unknown_free:
                raise BadRequest(
                    f"The model '{model}' has no price, and the tenant has a budget. "
                    "Ask the operator to set its price in the settings file.",
                    code="unpriced_model",
                    param="model",
                )
            return FREE
        return price

    # -- before each upstream call -------------------------------------------------------------------------------------

    async def begin(self, call: Call) -> None:
        """Raise the hold to what ended calls cost and running ones may. Raises BudgetError, Unavailable."""
        if self.closed or self._hold is None:
            raise BudgetError("The call has been settled; no further upstream call can be made for it.")
        request = call.request or self._request
        self._rates[call] = self._price(call.target.model, call.target.provider)  # refused here, not when it is settled
        needed = self._most(call, request)
        for other in self._exchange.calls:
            if other is call:
                continue
            needed += self._cost(other) if other.ended else self._most(other, other.request or self._request)
        if needed <= self._hold.amount:
            return
        limit = self._exchange.identity.tenant.budget
        try:
            raised = await self._ledger.raise_hold(self._hold, needed, limit=limit)
            if raised is None:
                raise await self._refusal(needed - self._hold.amount, limit or 0)
        except StoreError as error:
            raise _unavailable(error) from error
        self._hold = raised

    def _most(self, call: Call, request: LLMRequest | None) -> int:
        price = self._rate(call)
        if request is None:
            return 0
        known, at, most = self._entry
        return most if known is request and at is price else _ceiling(request, request.max_tokens or 0, price)

    def _rate(self, call: Call) -> Price:
        """The price of a call's target, looked up once."""
        price = self._rates.get(call)
        return self._price(call.target.model, call.target.provider) if price is None else price

    # -- at the end ----------------------------------------------------------------------------------------------------

    async def settle(self, *, cut: bool = False) -> None:
        """Book what the call cost, once, whoever asks; ``cut`` where its answer did not come to its end."""
        if self.closed or self._settling or self._hold is None:
            return
        self._settling = True
        exchange = self._exchange
        used, cost, provider = self._total()
        try:
            if not used.total and not cost and (exchange.status or 500) >= 400 and not exchange.calls:
                await self._ledger.release(self._hold)
            else:
                await self._ledger.settle(self._hold, cost, self._record(used, cost, provider, cut))
            self.closed = True
        except StoreError as error:
            # The hold stays, and lapses charged whole: never a free call.
            log.error("a call could not be settled: %s", error)
            self.closed = True
        finally:
            self._settling = False
        if exchange.record is not None:
            exchange.record.cost = cost

    def _total(self) -> tuple[Usage, int, str | None]:
        """Tokens and nano-USD of the whole call: the sum over its upstream calls, or what the watcher read."""
        exchange = self._exchange
        if exchange.calls:
            call = exchange.calls[0]
            used = self._used(call)
            cost = cost_of(used, self._rate(call))
            for call in exchange.calls[1:]:
                cost += self._cost(call)
                used = _sum(used, self._used(call))
            return used, cost, call.target.provider
        usage = exchange.usage
        if usage is None:
            if exchange.exact or (exchange.status is not None and exchange.status >= 400):
                return Usage(), 0, None  # the app further in refused, or made no call
            usage = _so_far(self._request, exchange.reader)
        price = self._price(self._request.model, None) if self._request is not None else FREE
        return usage, cost_of(usage, price), None

    def _used(self, call: Call) -> Usage:
        return call.usage if call.usage is not None else estimate(call.request or self._request)

    def _cost(self, call: Call) -> int:
        return cost_of(self._used(call), self._rate(call))

    def _record(self, used: Usage, cost: int, provider: str | None, cut: bool) -> CallRecord:
        exchange = self._exchange
        key = exchange.identity.key
        trace = exchange.record
        return CallRecord(
            request_id=trace.request_id if trace is not None else "",
            trace_id=trace.trace_id if trace is not None else "",
            tenant=exchange.identity.tenant.id,
            key=key.id if key is not None else None,
            model=self._request.model if self._request is not None else None,
            provider=provider,
            usage=used,
            cost=cost,
            status=exchange.status,
            started=self._started,
            aborted=cut or exchange.gone,
            overdraft=max(0, cost - (self._hold.amount if self._hold else 0)),
        )


def _so_far(request: LLMRequest | None, reader: UsageReader | None) -> Usage:
    """What an answer that was cut had used: what it told of itself, at least its events."""
    if reader is None or reader.usage is None:
        return estimate(request, reader.events if reader is not None else 0)
    if reader.final:
        return reader.usage
    return reader.usage._replace(completion=max(reader.usage.completion, reader.events), estimated=True)


def _ceiling(request: LLMRequest, output: int, price: Price) -> int:
    """What a call can cost at most, in nano-USD."""
    tokens = output * _answers(request)
    return -(-(prompt_bound(request) * price.prompt + tokens * price.completion) // _MILLION)


def _answers(request: LLMRequest) -> int:
    """How many answers are paid for: so many for each prompt, of which the completions dialect takes a list."""
    each = max(request.choices, int(request.data.get("best_of") or 1))
    prompts = request.data.get("prompt") if request.route.dialect == "completions" else None
    if type(prompts) is list and type(prompts[0]) is not int:  # a list of numbers is one prompt, in tokens
        return each * len(prompts)
    return each


def _output_for(request: LLMRequest, amount: int, price: Price, wanted: int) -> int:
    """Output tokens per choice that ``amount`` nano-USD pay for, at most ``wanted``."""
    if price.completion == 0:
        return wanted
    left = amount * _MILLION - prompt_bound(request) * price.prompt
    return max(1, min(wanted, left // (price.completion * _answers(request))))


def _limit_field(request: LLMRequest) -> str:
    """The output limit's name in the dialect: the one that every server understands; an adapter may know a newer one."""
    return "max_output_tokens" if request.route.dialect == "responses" else "max_tokens"


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.prompt + other.prompt,
        one.completion + other.completion,
        one.cached + other.cached,
        one.cache_write + other.cache_write,
        one.reasoning + other.reasoning,
        one.estimated or other.estimated,
    )


def usd(nano: int) -> str:
    """Nano-USD as dollars, exactly: at least two decimals, at most nine."""
    whole, part = divmod(nano, NANO_PER_USD)
    return f"{whole}.{f'{part:09d}'.rstrip('0').ljust(2, '0')}"


def _unavailable(error: StoreError) -> Unavailable:
    log.error("the ledger does not answer: %s", error)
    return Unavailable(f"The budget can't be checked now: {error}.", code="store_unavailable")


__all__ = ["Account", "BudgetMiddleware", "prices_of", "usd"]
