"""For how much money: a tenant pays at most its budget, also when calls run side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from .._asgi import ASGIApp, Receive, Scope, Send, finish
from .._closing import on_close
from .._perloop import PerLoop
from .._vocabulary import load
from ..accounting import Account, Terms
from ..errors import Forbidden, MethodNotAllowed, StoreError, Unavailable
from ..exchange import MAX_BODY, Exchange
from ..limits import has_budget
from ..prices import PriceTable, prices_of, warm
from ..stores.base import Ledger
from ..stores.keeper import Keeper
from .base import LLMMiddleware, Rank


class BudgetMiddleware(LLMMiddleware):
    """Reserve what a call can cost at most, settle what it did cost.

    An explicit output limit is never changed: where it does not fit, the call is refused (``would_exceed_budget``). Where
    none is given one is chosen, lowered to what the budget still holds, and put into the request. What a call cost stands
    in ``x-llm-cost-usd`` (JSON), or beside ``usage`` in a stream's last event, once it is booked.

    Args:
        app: The ASGI app further in.
        ledger: Where money is counted; ``None`` takes the shared ledger that the settings name.
        prices: What a model's tokens cost; ``None`` takes the default table with the settings' own prices.
        default_max_output: Output tokens of a request that names no limit; ``None`` takes DEFAULT_MAX_OUTPUT_TOKENS.
        min_output: The fewest output tokens worth a call; ``None`` takes MIN_OUTPUT_TOKENS.
        unknown_price: ``"refuse"`` or ``"free"``: what happens to a model without a price when the tenant has a budget;
            ``None`` takes UNKNOWN_PRICE.
        prompt_bound: ``"exact"``, ``"bytes"`` or ``"estimate"``, see ``accounting.Terms``; ``None`` takes PROMPT_BOUND.
        status: ``"auto"``, ``"402"`` or ``"429"``: of a refusal, see BudgetError; ``None`` takes BUDGET_STATUS.
        hold_seconds: Seconds that a hold lives without renewal; ``None`` takes HOLD_TTL_SECONDS.
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
        unknown_price: Literal["refuse", "free"] | None = None,
        prompt_bound: Literal["exact", "bytes", "estimate"] | None = None,
        status: Literal["auto", "402", "429"] | None = None,
        hold_seconds: float | None = None,
        clock: Callable[[], float] = time.time,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        _one_of("unknown_price", unknown_price, ("refuse", "free"))
        _one_of("prompt_bound", prompt_bound, ("exact", "bytes", "estimate"))
        _one_of("status", status, ("auto", "402", "429"))
        same = (id(ledger) if ledger else None, id(prices) if prices else None, default_max_output, min_output)
        super().__init__(
            app,
            settings=(*same, unknown_price, prompt_bound, status, hold_seconds),
            paths=paths,
            govern=govern,
            max_body=max_body,
        )
        self._watches = not getattr(type(app), "ends_exchange", False)
        self._ledger = ledger
        self._given: dict[str, Any] = {
            "prices": prices,
            "wanted": default_max_output,
            "least": min_output,
            "unknown_price": unknown_price,
            "bound": prompt_bound,
            "status": status,
            "hold_seconds": hold_seconds,
        }
        self._clock = clock
        self._terms: Terms | None = None
        self._keepers: PerLoop[Keeper] = PerLoop()

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
        account = Account(self._terms or self._take_terms(), self._keepers.get() or await self._keeper(), exchange)
        began = time.perf_counter()
        await account.open()
        exchange.step("hold", began)
        exchange.guard(account)
        exchange.at_end(account.settle)
        try:
            await self.forward(exchange, scope, receive, exchange.watch(send) if self._watches else send)
        finally:
            if not account.closed:  # cut, cancelled or crashed: the tokens are paid for all the same
                began = time.perf_counter()
                await finish(account.settle(cut=True))
                exchange.step("settle", began)

    def _take_terms(self) -> Terms:
        from ..settings import current, current_file

        given = self._given
        settings = current()
        self._terms = Terms(
            prices_of(current_file().models, current_file().providers) if given["prices"] is None else given["prices"],
            given["wanted"] or settings.default_max_output_tokens,
            given["least"] or settings.min_output_tokens,
            (given["unknown_price"] or settings.unknown_price) == "free",
            given["bound"] or settings.prompt_bound,
            given["status"] or settings.budget_status,
            self._clock,
        )
        return self._terms

    async def _keeper(self) -> Keeper:
        """Who looks after this event loop's holds."""
        from ..settings import current

        settings = current()
        try:
            ledger = self._ledger or await _shared()
        except StoreError as error:
            raise Unavailable(f"The budget can't be checked now: {error}.", code="store_unavailable") from error
        ttl = self._given["hold_seconds"] or settings.hold_ttl_seconds
        await asyncio.to_thread(_warm, self._terms is not None and self._terms.bound == "exact")
        keeper = Keeper(ledger, ttl=ttl, charge=settings.hold_lapsed == "charge", clock=self._clock)
        known = self._keepers.get()
        if known is not None:  # made while this call waited
            return known
        on_close(self._close)
        return self._keepers.put(keeper)

    async def _close(self) -> None:
        keeper = self._keepers.pop()
        if keeper is not None:
            await keeper.close()


def _one_of(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise ValueError(f"{name}={value!r}: use one of {', '.join(map(repr, allowed))}")


def _warm(exact: bool) -> None:
    """Load what takes long, before a call needs it: the price list, and the vocabularies where they are to count."""
    warm()
    if exact:
        load()


async def _shared() -> Ledger:
    from ..stores.shared import shared_ledger

    return await shared_ledger()


_FREE_GETS = ("/v1/models", "/v1/realtime")


def _refuse_unpriced(exchange: Exchange, scope: Scope) -> None:
    """Let through what costs nothing; an endpoint that can't be priced is no way round for a tenant with a budget."""
    path = exchange.route.path
    if scope["method"] in ("GET", "HEAD") and any(path == free or path.startswith(free + "/") for free in _FREE_GETS):
        return
    if path.startswith("/v1/realtime/") or path == "/v1/messages/count_tokens" or not has_budget(exchange.identity):
        return
    raise Forbidden(
        f"'{path}' has no price, and the tenant has a budget. Ask the operator to list the path in 'paths'.",
        code="unpriced_endpoint",
    )


__all__ = ["BudgetMiddleware"]
