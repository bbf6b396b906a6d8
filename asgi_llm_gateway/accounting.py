"""The money of one call: a hold at its start, raised before each further upstream call, settled once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from ._asgi import finish
from ._counted import sane, so_far, sum_of
from ._vocabulary import counter_of
from .booked import tell
from .calls import Call
from .errors import BudgetError, StoreError, Unavailable
from .exchange import Exchange
from .keys import new_hold_id
from .limits import Status, has_budget, limits_of, refused, unpriced, usd
from .prices import FREE, PriceTable, ceiling_of, cost_of, output_for
from .records import About, Amount, CallRecord, Hold, Price, Refusal, Usage, usd_number
from .stores.keeper import Keeper
from .tokens import answers, estimate, exact_bound, more_than_text, plain_bound, prompt_bound, surcharge
from .units import applied, applies, ceiling
from .wire import MEDIA, LLMRequest, limit_names

log = logging.getLogger("asgi_llm_gateway")

_NOTHING = Amount(0, 0)
_OWN_VOCABULARY = frozenset({"openai", "azure"})  # where a model's name says for certain how it counts
_COUNTED_HERE = 16 * 1024  # bytes of a request whose tokens are counted in no time; more go to a thread
_new = tuple.__new__  # what About(...) does, less a frame: these are made for every call


class Terms(NamedTuple):
    """How calls are held and settled: the settings of a BudgetMiddleware.

    ``bound`` is how the prompt's tokens are bounded: ``bytes`` takes one token a byte; ``exact`` counts with the model's
    vocabulary where it is installed and certain, and takes ``bytes`` elsewhere; ``estimate`` (a quarter of that) may
    undercount. ``status`` is that of a refusal, see BudgetError.
    """

    prices: PriceTable
    wanted_output: int
    least_output: int
    unknown_free: bool = False
    bound: Literal["bytes", "exact", "estimate"] = "bytes"
    status: Status = "auto"
    clock: Callable[[], float] = time.time


class Account:
    """The money of one call. It is also the guard that the exchange asks before every upstream call."""

    __slots__ = (
        "_answers", "_bound", "_exchange", "_hold", "_keeper", "_limits", "_most", "_named", "_percent", "_price0",
        "_rates", "_request", "_settling", "_started", "_terms", "closed",
    )  # fmt: skip

    def __init__(self, terms: Terms, keeper: Keeper, exchange: Exchange) -> None:
        self._terms = terms
        self._keeper = keeper
        self._exchange = exchange
        self._started = terms.clock()
        self._hold: Hold | None = None
        self._request: LLMRequest | None = None
        self._price0 = FREE
        self._most = _NOTHING  # what the first call can cost, at the price of the name that was asked for
        self._bound = 0
        self._answers = 1
        self._named = False  # the bound was counted by the model's name: exactly, or with images
        self._percent = 100
        self._rates: dict[Call, Price] = {}
        self._settling = False
        self.closed = False

    # -- at the start --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take the entry hold, and choose an output limit where the request has none. Raises BudgetError, Unavailable."""
        exchange, terms = self._exchange, self._terms
        identity = exchange.identity
        self._limits = limits_of(identity, self._started)
        request = self._request = exchange.request
        chosen = 0
        least = wanted = _NOTHING
        if request is not None:  # of a path of the user's own nothing is known before its handler calls an upstream
            price = self._price0 = self._price(request.model, None, request)
        if request is not None and request.route.dialect in MEDIA:
            least = wanted = self._most = ceiling(request, price)
            self._named = True  # what an image costs depends on who makes it
        elif request is not None:
            plain = plain_bound(request) if terms.bound == "bytes" and price.context is None else None
            if plain is not None:
                bound = self._bound = plain
                percent, times = 100, 1
            else:
                bound = self._bound = await self._bound_of(request, request.model, price, own=True)
                percent = self._percent = surcharge(request)
                times = self._answers = answers(request)
            if request.max_tokens is None and request.route.dialect != "embeddings":
                chosen = min(terms.wanted_output, identity.tenant.max_output_tokens or terms.wanted_output)
                smallest = min(terms.least_output, chosen) * times
                least = self._at_most(bound, smallest, price, percent)
                wanted = self._at_most(bound, chosen * times, price, percent)
            else:
                output = (request.max_tokens or 0) * times
                least = wanted = self._most = self._at_most(bound, output, price, percent)
        keeper = self._keeper
        (tenant, key), trace = identity, exchange.record
        hold_id = new_hold_id()
        about = _new(
            About,
            (
                trace.request_id if trace is not None else "",
                trace.trace_id if trace is not None else "",
                key.id if key is not None else None,
                request.model if request is not None else None,
                self._started,
            ),
        )
        try:
            hold = await keeper.ledger.hold(
                tenant.id, hold_id=hold_id, limits=self._limits, least=least, wanted=wanted, now=self._started,
                ttl=keeper.ttl, about=about,
            )  # fmt: skip
        except StoreError as error:  # it may have been carried out all the same
            keeper.later(Hold(hold_id, tenant.id, 0, 0, self._started), None)
            raise _unavailable(error) from error
        except asyncio.CancelledError:  # the client left meanwhile; nobody would know the hold
            await finish(self._give_back(Hold(hold_id, tenant.id, 0, 0, self._started)))
            raise
        if isinstance(hold, Refusal):
            raise refused(hold, least, identity, terms.status)
        keeper.add(hold)
        self._hold = hold
        soft = identity.tenant.soft_limit
        if soft is not None and hold.spent >= soft:
            exchange.headers.append((b"x-llm-budget-warning", b"soft limit of %s USD is spent" % usd(soft).encode()))
        if chosen and request is not None:
            most = output_for(hold.money * 100 // self._percent, bound, price, chosen * times) // times
            limit = limit_names(request.route.dialect)[-1]
            exchange.amend(**{limit: max(1, min(most, (hold.tokens - bound) // times, chosen))})
            self._request = exchange.request

    async def _give_back(self, hold: Hold) -> None:
        try:
            await self._keeper.ledger.release(hold)
        except StoreError:
            self._keeper.later(hold, None)

    def _price(self, model: str, provider: str | None, request: LLMRequest | None) -> Price:
        asked = self._request.model if self._request is not None else None
        price = self._terms.prices.find(model, provider, asked)
        if price is not None:
            if price.units is None or request is None:
                return price
            if applies(price, request.route.dialect):
                return applied(price, request)
        if has_budget(self._exchange.identity) and not self._terms.unknown_free:
            raise unpriced(model, request.route.dialect if request is not None else None)
        return FREE

    # -- before each upstream call -------------------------------------------------------------------------------------

    async def begin(self, call: Call) -> None:
        """Raise the hold to what ended calls cost and running ones may. Raises BudgetError, Unavailable."""
        hold = self._hold
        if self.closed or hold is None:
            raise BudgetError("The call has been settled; no further upstream call can be made for it.")
        target = call.target
        # Refused here, not when it is settled.
        price = self._rates[call] = self._price(target.model, target.provider, call.request or self._request)
        if len(self._exchange.calls) == 1 and call.request is not None and self._as_held(call, call.request, price):
            return
        money, tokens = await self._ceiling(call)
        for other in self._exchange.calls:
            if other is not call:
                used = self._used(other) if other.ended else None
                more = (
                    await self._ceiling(other) if used is None else Amount(cost_of(used, self._rate(other)), used.total)
                )
                money, tokens = money + more.money, tokens + more.tokens
        if money <= hold.money and tokens <= hold.tokens:
            return
        needed = Amount(money, tokens)
        try:
            raised = await self._keeper.ledger.raise_hold(hold, needed, limits=self._limits)
        except StoreError as error:
            raise _unavailable(error) from error
        if not isinstance(raised, Hold):
            raise refused(
                raised, Amount(money - hold.money, tokens - hold.tokens), self._exchange.identity, self._terms.status
            )
        self._hold = raised
        self._keeper.add(raised)

    async def _ceiling(self, call: Call) -> Amount:
        """What a call can cost at most, at its target's price."""
        request = call.request or self._request
        if request is None:
            return _NOTHING
        price = self._rate(call)
        if request.route.dialect in MEDIA:
            return self._most if self._as_held(call, request, price) else ceiling(request, price, call.target.model)
        if self._as_held(call, request, price):
            bound, times = self._bound, self._answers
            if self._most is not _NOTHING:
                return self._most
        else:
            own = call.target.provider in _OWN_VOCABULARY
            bound, times = await self._bound_of(request, call.target.model, price, own=own), answers(request)
        percent = self._percent if request is self._request else surcharge(request)
        return self._at_most(bound, (request.max_tokens or 0) * times, price, percent)

    def _as_held(self, call: Call, request: LLMRequest, price: Price) -> bool:
        """Whether a call is just what the entry hold was taken for: the request, its price, and its model if that counts."""
        if request is not self._request or price != self._price0:
            return False
        target = call.target
        return not self._named or (target.model == request.model and target.provider in _OWN_VOCABULARY)

    def _at_most(self, bound: int, output: int, price: Price, percent: int) -> Amount:
        """What so many tokens can cost at most, with what the request itself makes dearer."""
        money = ceiling_of(bound, output, price)
        return _new(Amount, (money if percent == 100 else -(-money * percent // 100), bound + output))

    async def _bound_of(self, request: LLMRequest, model: str, price: Price, *, own: bool) -> int:
        """At most so many prompt tokens; ``own``: the model's name says which vocabulary it has."""
        if self._terms.bound == "estimate":
            return estimate(request).prompt
        most = prompt_bound(request, price.context, model)
        if more_than_text(request):
            self._named = True
        if own and self._terms.bound == "exact" and counter_of(model) is not None:
            if len(request.raw) <= _COUNTED_HERE:
                exact = exact_bound(request, model)
            else:
                exact = await asyncio.to_thread(exact_bound, request, model)
            if exact is not None:
                self._named = True
                return exact
        return most

    def _rate(self, call: Call) -> Price:
        """The price of a call's target, looked up once."""
        price = self._rates.get(call)
        if price is None:
            price = self._price(call.target.model, call.target.provider, call.request or self._request)
        return price

    # -- for calls that a handler makes itself -------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether the money is settled, or about to be: no more calls are made on this account."""
        return self.closed or self._settling

    def anew(self, exchange: Exchange) -> Account:
        """An account on the same terms, for a call after this one was settled."""
        return Account(self._terms, self._keeper, exchange)

    def limited(self, request: LLMRequest) -> LLMRequest:
        """The request with an output limit: its own, or where it has none the one that is chosen for such requests."""
        if request.max_tokens is not None or request.route.dialect == "embeddings" or request.route.dialect in MEDIA:
            return request
        wanted = self._terms.wanted_output
        chosen = min(wanted, self._exchange.identity.tenant.max_output_tokens or wanted)
        return request.with_fields(**{limit_names(request.route.dialect)[-1]: chosen})

    async def cover(self) -> None:
        """Raise the hold to what was reported afterwards, where the budget has so much: used is used, and nobody is refused."""
        hold = self._hold
        if self.over or hold is None:
            return
        money = tokens = 0
        for call in self._exchange.calls:
            used = self._used(call) if call.ended else None
            more = await self._ceiling(call) if used is None else Amount(cost_of(used, self._rate(call)), used.total)
            money, tokens = money + more.money, tokens + more.tokens
        try:
            raised = await self._keeper.ledger.raise_hold(hold, Amount(money, tokens), limits=self._limits)
        except StoreError as error:
            log.warning("a hold could not be raised to what was used: %s", error)
            return
        if isinstance(raised, Hold):
            self._hold = raised
            self._keeper.add(raised)

    # -- at the end ----------------------------------------------------------------------------------------------------

    async def settle(self, *, cut: bool = False) -> None:
        """Book what the call cost, once, whoever asks; ``cut`` where its answer did not come to its end."""
        hold = self._hold
        if self.closed or self._settling or hold is None:
            return
        lasting = self._exchange.lasting
        if lasting is not None and lasting.count:  # the hold stays for a call that outlives the answer
            lasting.later = partial(self.settle, cut=cut)
            return
        self._settling = True
        exchange, keeper = self._exchange, self._keeper
        keeper.drop(hold)
        used, cost, provider, local = self._total()
        record = None
        if used.prompt or used.completion or cost or exchange.calls or (exchange.answering or 500) < 400:
            record = self._record(hold, used, cost, provider, local, cut)
        try:
            if record is None:
                await keeper.ledger.release(hold)
            else:
                await keeper.ledger.settle(hold, record)
                tell(record)
                exchange.cost = cost
                if exchange.status is None:
                    exchange.headers.append((b"x-llm-cost-usd", usd_number(cost).encode()))
        except StoreError as error:
            log.error("a call could not be settled yet: %s", error)
            keeper.later(hold, record)
        except BaseException:  # cancelled, or a fault: it may not have been carried out; a second time does no harm
            keeper.later(hold, record)
            raise
        finally:
            self.closed = True
            self._settling = False
        if exchange.record is not None:
            exchange.record.cost = cost

    def _total(self) -> tuple[Usage, int, str | None, bool]:
        """Tokens and nano-USD of the whole call: the sum over its upstream calls, or what the watcher read."""
        exchange = self._exchange
        if exchange.calls:
            call = exchange.calls[0]
            used, price = self._used(call), self._rate(call)
            cost = cost_of(used, price)
            for call in exchange.calls[1:]:
                more, price = self._used(call), self._rate(call)
                used, cost = sum_of(used, more), cost + cost_of(more, price)
            return used, cost, call.target.provider, price.local
        usage = exchange.usage
        if usage is None:
            if exchange.exact or (exchange.answering is not None and exchange.answering >= 400):
                return Usage(), 0, None, False  # the app further in refused, or made no call
            usage = so_far(self._request, exchange.reader)
        price = self._price0 if self._request is not None else FREE
        usage = sane(usage, self._request, price)
        return usage, cost_of(usage, price), None, price.local

    def _used(self, call: Call) -> Usage:
        return sane(call.usage, call.request or self._request, self._rate(call), call.target.model)

    def _record(self, hold: Hold, used: Usage, cost: int, provider: str | None, local: bool, cut: bool) -> CallRecord:
        exchange = self._exchange
        (tenant, key), trace, request = exchange.identity, exchange.record, self._request
        return _new(
            CallRecord,
            (
                hold.id,
                tenant.id,
                trace.request_id if trace is not None else "",
                trace.trace_id if trace is not None else "",
                key.id if key is not None else None,
                request.model if request is not None else (exchange.calls[-1].target.model if exchange.calls else None),
                provider,
                used if used.units is None else used._replace(units=None),  # stores keep tokens and money
                cost,
                exchange.answering,
                self._started,
                self._terms.clock(),
                exchange.gone or (cut and not exchange.complete),
                max(0, cost - hold.money),
                False,
                local,
            ),
        )


def _unavailable(error: StoreError) -> Unavailable:
    log.error("the ledger does not answer: %s", error)
    # Which store, where, and what its driver says is for the log.
    return Unavailable("The budget can't be checked now: the ledger does not answer.", code="store_unavailable")


__all__ = ["Account", "Terms"]
