"""One call's way over its targets: retries, fallbacks and hedges, until one answers and that answer is relayed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

from .._asgi import Send
from .._hangup import Patience
from ..adapters.base import UpstreamRequest
from ..calls import Call
from ..draining import ShuttingDown
from ..errors import GatewayError, Header, UpstreamError
from ..exchange import ClientGone, Exchange
from ..prices import PriceTable
from ..records import Attempted, Usage
from ..wire import LLMRequest
from .attempt import Attempt
from .clients import Client
from .failures import Failed, backoff, of_unsupported
from .hedging import hedged
from .routing import Router
from .transfer import SHUTDOWN, Flight, TransferError
from .ways import Place

_MOST_ATTEMPTS = 16  # of one call, whatever the settings say


class Rules(NamedTuple):
    """How long a call goes on.

    Attributes:
        max_retries: Further rounds over the targets after each was tried once.
        longest_wait: Seconds before a retry at most: a provider that wants more is not waited for.
        total: Seconds for the whole call, all its attempts together.
        first_event: Seconds for a stream's first event.
    """

    max_retries: int = 2
    longest_wait: float = 10.0
    total: float = 1800.0
    first_event: float = 300.0


class Here(NamedTuple):
    """What an app has open in one event loop."""

    client: Client
    patience: Patience
    rules: Rules
    prices: PriceTable
    calls: set[Relay]


class Relay:
    """One call. ``gone`` and ``shut`` may be called at any time: its client has left, or the process ends."""

    __slots__ = ("_asked", "_exchange", "_flights", "_gone", "_here", "_hops", "_pausing", "_request", "_router", "_send",
                 "_shut", "_started", "_tried", "_way")  # fmt: skip

    def __init__(
        self, here: Here, router: Router, exchange: Exchange, request: LLMRequest, hops: tuple[Header, ...], send: Send
    ) -> None:
        self._here = here
        self._router = router
        self._exchange = exchange
        self._request = request
        self._hops = hops
        self._send = send
        self._started = time.monotonic()
        self._flights: list[Flight] = []
        self._gone = False
        self._shut = False
        self._pausing: asyncio.Future[None] | None = None
        self._tried: list[Attempted] = []
        self._asked: Place | None = None  # who failed last, while nobody has answered

    def gone(self) -> None:
        """The client has left: whatever is under way ends at once."""
        self._gone = True
        for flight in self._flights:
            flight.abort(ClientGone())
        if self._pausing is not None and not self._pausing.done():
            self._pausing.set_exception(ClientGone())

    def shut(self) -> None:
        """The process ends: a stream ends with an error event, any other call is answered with 503; both are settled."""
        if not self._gone:
            self._shut = True
            for flight in self._flights:
                flight.abort(TransferError(SHUTDOWN, "ended: the gateway is shutting down"))
            if self._pausing is not None and not self._pausing.done():
                self._pausing.set_exception(ShuttingDown())

    async def run(self) -> None:
        """Ask one target after the other until one answers. Raises GatewayError, ClientGone."""
        way = self._way = self._router.way(self._request.model)
        places: Sequence[Place] = way.places
        if len(places) > 1 or way.fallbacks:
            places = way.order(self._exchange.identity)
        left = list(places)
        failed: Failed | None = None
        if not left[0].health.tripped:  # as it mostly is: the first target answers
            failed = await self._try(place := left.pop(0), left, None)
            if failed is None:
                return
            await self._go_on(places, left, place, failed)
        else:
            await self._go_on(places, left, None, None)

    async def _go_on(
        self, places: Sequence[Place], left: list[Place], last: Place | None, failed: Failed | None
    ) -> None:
        """What is left of a round, and further ones; ``last`` has ``failed``."""
        retries = 0
        hopeless: set[Place] = set()
        place = last
        while True:
            if failed is not None and place is not None:
                if not failed.again:
                    hopeless.add(place)
                if not failed.elsewhere:
                    left.clear()
            place = self._next(left)
            if place is None:
                left = [one for one in places if one not in hopeless]
                wait = self._wait(failed, retries, left)
                retries += 1
                await self._pause(wait)
                continue
            if failed is not None and (len(self._tried) >= _MOST_ATTEMPTS or self._left() <= 0):
                place.health.left(self)
                raise failed.error
            failed = await self._try(place, left, failed)
            if failed is None:
                return

    def _next(self, left: list[Place]) -> Place | None:
        """The next target that may be asked, taken off the list."""
        while left:
            place = left.pop(0)
            if not place.health.tripped or place.health.allows(time.monotonic(), self):
                return place
        return None

    def _wait(self, failed: Failed | None, retries: int, left: list[Place]) -> float:
        """Seconds until another round is worth it. Raises what the client is told where none is."""
        rules = self._here.rules
        now = time.monotonic()
        if failed is None:
            raise self._resting(left, now)
        if not left or retries >= rules.max_retries or not (failed.again or failed.elsewhere):
            raise failed.error
        # The one that is ready first; that it tripped its breaker is no reason to wait for the others.
        ready = min(place.health.opens_in(now) for place in left)
        wait = max(backoff(retries), ready)
        if wait > rules.longest_wait or wait >= self._left():
            raise failed.error
        return wait

    def _resting(self, places: list[Place], now: float) -> GatewayError:
        """All targets are being left alone."""
        soon = max(1, round(min((place.health.opens_in(now) for place in places), default=1.0)))
        return UpstreamError(
            f"No provider of the model '{self._request.model}' is available now; it is tried again in {soon} s.",
            status=503,
            code="upstream_unavailable",
            headers=((b"retry-after", b"%d" % soon),),
        )

    def _left(self) -> float:
        """Seconds that are left of the call's time: ours, or less where the client (an official SDK) says how long it waits."""
        total = self._here.rules.total
        told = self._request.header(b"x-stainless-read-timeout")
        if told is not None:
            try:
                seconds = float(told)
            except ValueError:
                seconds = 0.0
            if 0 < seconds < total:
                total = seconds
        return self._started + total - time.monotonic()

    def _go(self) -> None:
        """Whether anything may still be sent. Raises ClientGone, ShuttingDown."""
        if self._gone:
            raise ClientGone
        if self._shut:
            raise ShuttingDown

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the client leaves. Raises ClientGone, ShuttingDown."""
        self._go()
        self._pausing = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._pausing
        except TimeoutError:
            pass
        finally:
            self._pausing = None

    # -- one attempt ---------------------------------------------------------------------------------------------------

    async def _try(self, place: Place, left: list[Place], before: Failed | None) -> Failed | None:
        """Ask a target, and relay its answer; why it came to nothing, if it did before a byte had gone out."""
        try:
            attempt = await self.open(place)
        except Failed as failed:
            # What a target cannot do is told only if no other target did worse.
            return before or failed
        except GatewayError:
            if before is None:
                raise
            # The money does not suffice for another attempt: what the last one said is the answer.
            raise before.error from None
        here, hedge = self._here, self._way.hedge
        # All attempts share the call's time; the first one's own limit is just that.
        timer = None if before is None else self._cut_short(attempt)
        try:
            if hedge is None or not left:
                await attempt.begin(here.rules.first_event)
            else:
                wait = here.rules.first_event
                attempt, none = await hedged(self, attempt, left, self._request, hedge, here.prices, wait)
                if none is not None:
                    raise none
                self._answered_by(attempt)
            health = attempt.place.health
            if health.tripped:  # the probe is answered: nobody need wait until it has streamed to its end
                health.succeeded()
            self._announce(attempt)
            await attempt.relay()
        except Failed as failed:
            self.lost(attempt, failed)
            return failed
        except BaseException:  # the client has left, or the task is cancelled: nothing is learnt of the target
            if not attempt.cut:
                attempt.place.health.left(self)
            raise
        else:
            if not attempt.cut:
                attempt.place.health.succeeded()
            return None
        finally:
            if timer is not None:
                timer.cancel()
            if attempt.cut and not self._shut:
                attempt.place.health.failed(time.monotonic(), self)
            self.close(attempt)

    def _cut_short(self, attempt: Attempt) -> asyncio.TimerHandle:
        late = TransferError("timeout", "timed out: total, over all attempts")
        left = self._started + self._here.rules.total - time.monotonic()
        return asyncio.get_running_loop().call_later(left, attempt.flight.abort, late)

    async def open(self, place: Place) -> Attempt:
        """An attempt at a target, agreed by whoever guards the call, and not yet sent.

        Raises Failed, GatewayError (ShuttingDown), ClientGone.
        """
        request = self._request
        call: Call | None = None
        try:
            self._go()
            adapter = self._router.speaking(place.adapter, request.route.dialect)
            try:
                sent = adapter.request(request, place.target.model)
            except GatewayError as error:
                raise of_unsupported(error) from None
            call = await self._exchange.begin_call(
                place.target, request, sent.endpoint.url if type(sent) is UpstreamRequest else ""
            )
            self._go()  # while the money was asked for: nothing is sent for nobody
            extra = self._hops + call.headers
            dropped: tuple[str, ...] = ()
            if type(sent) is UpstreamRequest:
                extra, dropped = extra + sent.headers, sent.dropped
            flight = self._here.client.open(sent, extra, stream=request.stream)
        except BaseException:  # refused or cancelled: nothing was sent, and a probe is free again
            place.health.left(self)
            if call is not None:
                call.end(Usage())
            raise
        self._flights.append(flight)
        place.health.pending += 1
        return Attempt(self._exchange, place, adapter, call, request, flight, self._send, dropped)

    def lost(self, attempt: Attempt, failed: Failed) -> None:
        """An attempt came to nothing."""
        attempt.call.error = failed.error.error_code
        self.close(attempt)
        health = attempt.place.health
        now = time.monotonic()
        if failed.blamed:
            health.failed(now, self)
        else:
            health.left(self)
        if failed.wait is not None and (failed.status == 429 or failed.status >= 500):
            health.rests(now, failed.wait)
        self._tried.append(self._note(attempt, failed.error.error_code))
        self._asked = attempt.place

    def outrun(self, attempt: Attempt) -> None:
        """Another attempt was faster."""
        attempt.call.error = "outrun"
        self.close(attempt)
        attempt.place.health.left(self)
        self._tried.append(self._note(attempt, "outrun"))

    def _answered_by(self, attempt: Attempt) -> None:
        """The call that is recorded as the one that answered is the last one, also where a rival began after it."""
        calls = self._exchange.calls
        if calls[-1] is not attempt.call:
            calls.remove(attempt.call)
            calls.append(attempt.call)

    def close(self, attempt: Attempt) -> None:
        """Nobody wants an attempt any more: its connection is free, its tokens are counted. Safe to repeat."""
        if attempt.flight not in self._flights:
            return
        self._flights.remove(attempt.flight)
        attempt.call.status = attempt.flight.status or None
        attempt.place.health.pending -= 1
        attempt.flight.close()
        attempt.account()

    # -- what is told of it --------------------------------------------------------------------------------------------

    def _note(self, attempt: Attempt, error: str | None) -> Attempted:
        target = attempt.place.target
        return Attempted(target.provider, target.model, attempt.flight.status or None, error,
                         time.monotonic() - self._started)  # fmt: skip

    def _announce(self, attempt: Attempt) -> None:
        """Which provider answers, and what was tried before."""
        headers = self._exchange.headers
        headers += attempt.place.headers
        self._asked = None
        if attempt.dropped:
            headers.append((b"x-llm-dropped-fields", ", ".join(attempt.dropped).encode("ascii", "replace")))
        if self._tried:
            self._tried.append(self._note(attempt, None))
            self.record()

    def record(self) -> None:
        """Say what was tried: how many in a header, where there were several, and all of it in the call's trace."""
        tried, exchange = self._tried, self._exchange
        if not tried:
            return
        if self._asked is not None:  # none answered: whom the failure is of
            exchange.headers += self._asked.headers
            self._asked = None
        self._tried = []
        if len(tried) > 1:
            exchange.headers.append((b"x-llm-attempts", b"%d" % len(tried)))
        if exchange.record is not None:
            exchange.record.attempts = tuple(tried)
