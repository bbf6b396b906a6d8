"""How often, how much, how many at once: requests and tokens in a sliding window, and running calls, by tenant and key."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from .._asgi import ASGIApp, Receive, Scope, Send
from .._closing import on_close
from .._perloop import PerLoop
from ..errors import GatewayError, RateLimited, SettingsError
from ..exchange import MAX_BODY, ClientGone, Exchange
from ..rates.tally import TALLY
from ..rates.terms import Plan, Terms, plan_of
from ..rates.told import go_duration, headers_of, refusal, stand_headers, tightest
from ..rates.wants import NEVER, Stand, Verdict, Want, share, want
from ..rates.windows import Windows
from ..records import Identity
from ._rate_call import Ending
from ._rate_desk import Desk, LocalDesk, Ticket
from ._rate_queue import POLL, Lines, Said, Waiter
from ._rate_wait import Vigil
from ._window import WindowStorage
from .base import LLMMiddleware, Rank

_PLANS = 10_000  # callers whose limits are remembered


class _Here(NamedTuple):
    """What a layer has open in one event loop."""

    desk: Desk
    lines: Lines
    waits: bool  # somebody is waited for at the desk; where not, it need not be asked by a coroutine


class RateLimitMiddleware(LLMMiddleware):
    """Admit so many requests and tokens in a sliding window, and so many calls at once, by tenant and by key.

    A call takes all that it needs of its limits, or nothing. It takes its prompt's tokens, estimated, and the most that it
    may be answered with; when it ends, that is corrected to what it took. Its place among the running calls is free when its
    last byte is sent, or when it is aborted.

    Every answer says where its caller stands (``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``, OpenAI's names);
    a refusal is 429 ``rate_limit_exceeded`` with ``retry-after`` and ``retry-after-ms``. Limits are shared in Redis where
    REDIS_URL is set; without it, and while it does not answer, each process has its share: a limit divided by WEB_CONCURRENCY
    times REPLICAS, so that more workers never mean more rate.

    Args:
        app: The ASGI app further in.
        requests: Requests of a tenant in a window; ``None`` takes RATE_LIMIT_MAX_REQUESTS. A tenant's own record goes first.
        tokens: Tokens of a tenant in a window; ``None`` takes RATE_LIMIT_MAX_TOKENS, which is no limit where not set.
        concurrency: Calls of a tenant at once; ``None`` takes RATE_LIMIT_MAX_CONCURRENCY, no limit where not set.
        key_requests: The same for each key, within its tenant's limits; ``None`` is no limit. A key's own record goes first.
        key_tokens: See ``key_requests``.
        key_concurrency: See ``key_requests``.
        window: Seconds of the window; ``None`` takes RATE_LIMIT_WINDOW_MS.
        queue_seconds: How long a call over its limit waits for its turn before it is refused; ``None`` takes
            RATE_LIMIT_QUEUE_MS, and 0 refuses at once.
        queue_size: Calls of a tenant that may wait; a further one is refused at once.
        redis_url: Where limits are shared; ``None`` takes REDIS_URL, and an empty text shares nothing.
        redis_patience: Seconds that a call waits for Redis before its process decides alone; ``None`` takes
            RATE_LIMIT_REDIS_TIMEOUT_MS.
        lease_seconds: Seconds after which the running calls of a process that died no longer count in Redis.
        paths: See LLMMiddleware.
        govern: See LLMMiddleware.
        max_body: See LLMMiddleware.
    """

    rank = Rank.RATE_LIMIT

    def __init__(
        self,
        app: ASGIApp,
        *,
        requests: int | None = None,
        tokens: int | None = None,
        concurrency: int | None = None,
        key_requests: int | None = None,
        key_tokens: int | None = None,
        key_concurrency: int | None = None,
        window: float | None = None,
        queue_seconds: float | None = None,
        queue_size: int = 100,
        redis_url: str | None = None,
        redis_patience: float | None = None,
        lease_seconds: float = 30.0,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        limits = {
            "requests": requests,
            "tokens": tokens,
            "concurrency": concurrency,
            "key_requests": key_requests,
            "key_tokens": key_tokens,
            "key_concurrency": key_concurrency,
        }
        for name, value in {**limits, "queue_size": queue_size}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: at least 1")
        for name, seconds in (("window", window), ("redis_patience", redis_patience), ("lease_seconds", lease_seconds)):
            if seconds is not None and seconds <= 0:
                raise ValueError(f"{name}={seconds}: seconds, more than 0")
        if queue_seconds is not None and queue_seconds < 0:
            raise ValueError(f"queue_seconds={queue_seconds}: seconds, 0 or more")
        waits = (queue_seconds, queue_size, redis_url, redis_patience, lease_seconds)
        super().__init__(
            app, settings=(*limits.values(), window, *waits), paths=paths, govern=govern, max_body=max_body
        )
        self._limits = limits
        self._seconds = window
        self._queue_seconds = queue_seconds
        self._queue_size = queue_size
        self._redis_url = redis_url
        self._redis_patience = redis_patience
        self._lease = lease_seconds
        self._opening = threading.Lock()
        self._terms: Terms | None = None
        self._off = False
        self._plain = False
        self._waits = False
        self._share = 0
        self._windows = Windows(1.0)
        self._loops: PerLoop[_Here] = PerLoop()
        self._plans: dict[int, tuple[Identity, Plan]] = {}

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        began = time.perf_counter()
        terms = self._terms or self._open()
        tenant, key = exchange.identity
        if (
            self._plain
            and tenant.rate_tokens is None
            and tenant.concurrency is None
            and (key is None or (key.rate_requests is None and key.rate_tokens is None and key.concurrency is None))
        ):  # one limit, counted here: in one step, and nothing is to be done at the end
            limit = self._share if tenant.rate_requests is None else share(tenant.rate_requests, terms.parts)
            admitted, remaining, reset, retry = self._windows.hit(f"{tenant.id} requests ", limit)
            exchange.headers += stand_headers(b"requests", limit, remaining, reset)
            if not admitted:
                wants = [want("requests", tenant.id, "", limit, 1)]
                raise self._refuse((wants, Verdict(False, (Stand(limit, remaining, reset, retry),))))
            TALLY.admitted += 1
            exchange.step("limit", began)
            await self.forward(exchange, scope, receive, send)
        elif self._off:
            await self.forward(exchange, scope, receive, send)
        else:
            await self._limited(terms, exchange, scope, receive, send)

    async def _limited(self, terms: Terms, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """A call with several limits, with limits that are shared, or one that may wait."""
        began = time.perf_counter()
        here = self._loops.get() or self._open_here(terms)
        plan = self._plan(terms, exchange.identity)
        reads = exchange.request is None and exchange.refusal is None and scope["method"] == "POST"
        if reads and (plan.tokens or self._waits):
            try:
                receive = await exchange.read(receive, scope)
            except GatewayError as error:
                exchange.refusal = error  # it counts all the same
        wants = plan.wants_of(exchange.request, metered=exchange.route.kind == "metered")
        if not wants:
            await self.forward(exchange, scope, receive, send)
            return
        if self._waits and exchange.refusal is None:
            await self._in_turn(here, plan, wants, exchange, scope, receive, send)
            return
        if here.waits:
            verdict, ticket = await here.desk.admit(exchange.identity.tenant.id, wants)
        else:
            verdict, taken = self._windows.admit(wants, parts=terms.parts)
            ticket = None if taken is None else Ticket(exchange.identity.tenant.id, taken)
        ending = self._admit(here, plan, (wants, verdict), ticket, exchange, send)
        exchange.step("limit", began)
        try:
            await self.forward(exchange, scope, receive, ending or send)
        finally:
            if ending is not None:
                ending.close()

    async def _in_turn(
        self,
        here: _Here,
        plan: Plan,
        wants: Sequence[Want],
        exchange: Exchange,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """A call that waits where it is over its limit, or others of its caller's wait already."""
        began = time.perf_counter()
        tenant = exchange.identity.tenant.id
        said: Said | None = None
        ticket: Ticket | None = None
        ending: Ending | None = None
        vigil: Vigil | None = None
        try:
            if not here.lines.busy(plan.line):
                verdict, ticket = await here.desk.admit(tenant, wants)
                said = wants, verdict
            if ticket is None:
                waiter = Waiter(wants)
                vigil = Vigil(exchange, receive, waiter.leave)
                receive = vigil.receive
                first = None if said is None else said[1]
                said, ticket = await here.lines.wait(plan.line, waiter, lambda: here.desk.admit(tenant, wants), first)
                vigil.stop()
                if waiter.gone:
                    raise ClientGone
            ending = self._admit(here, plan, said, ticket, exchange, send)
            exchange.step("limit", began)
            await self.forward(exchange, scope, receive, ending or send)
        finally:
            if ending is not None:
                ending.close()
            elif ticket is not None:
                here.desk.leave(ticket)
            if vigil is not None:
                vigil.stop()
                vigil.end()

    def _admit(
        self, here: _Here, plan: Plan, said: Said | None, ticket: Ticket | None, exchange: Exchange, send: Send
    ) -> Ending | None:
        """Tell a call where its caller stands, and what ends it if something must; raises RateLimited without a ticket."""
        if said is not None:
            exchange.headers += headers_of(*said)
        if ticket is None or said is None:
            raise self._refuse(said)
        TALLY.admitted += 1
        if not plan.ends:
            return None
        tokens = [said[0][at] for at in plan.tokens]
        return Ending(exchange, send, here.desk, here.lines if self._waits else None, ticket, tokens)

    def _plan(self, terms: Terms, identity: Identity) -> Plan:
        """The caller's limits; who is calling is remembered for a while, and so are they."""
        known = self._plans.get(id(identity))
        if known is not None and known[0] is identity:
            return known[1]
        if len(self._plans) >= _PLANS:
            self._plans.clear()
        plan = plan_of(terms, identity)
        self._plans[id(identity)] = identity, plan
        return plan

    def _refuse(self, said: Said | None) -> RateLimited:
        if said is None:
            TALLY.refused["calls"] += 1
            return RateLimited(
                "Too many calls wait already. Try again in 1000 ms.",
                headers=((b"retry-after", b"1"), (b"retry-after-ms", b"1000")),
            )
        TALLY.refused[tightest(*said)[0].what] += 1
        return refusal(*said, self._windows.seconds)

    # -- what is opened on first use -----------------------------------------------------------------------------------

    def _open(self) -> Terms:
        with self._opening:  # threads may share an instance: they must not count apart
            return self._terms or self._read_settings()

    def _read_settings(self) -> Terms:
        from ..settings import current, secret

        settings = current()
        given = self._limits
        parts = settings.web_concurrency * settings.replicas
        enabled = settings.enable_rate_limit
        seconds = settings.rate_limit_window_ms / 1000 if self._seconds is None else self._seconds
        if self._queue_seconds is None:
            self._queue_seconds = settings.rate_limit_queue_ms / 1000
        if self._redis_url is None:
            self._redis_url = secret(settings.redis_url)
        if self._redis_patience is None:
            self._redis_patience = settings.rate_limit_redis_timeout_ms / 1000

        def limit(name: str, setting: int | None) -> int | None:
            own = given[name]
            return own if own is not None else setting if enabled else None

        terms = Terms(
            seconds,
            parts,
            limit("requests", settings.rate_limit_max_requests),
            limit("tokens", settings.rate_limit_max_tokens),
            limit("concurrency", settings.rate_limit_max_concurrency),
            given["key_requests"],
            given["key_tokens"],
            given["key_concurrency"],
            settings.default_max_output_tokens,
            settings.min_output_tokens,
        )
        self._windows = WindowStorage().windows(seconds)
        self._off = not enabled and all(value is None for value in given.values())
        self._waits = self._queue_seconds > 0
        if terms.requests is not None:
            self._share = share(terms.requests, parts)
            self._plain = terms.plain and not self._waits and not self._redis_url
        self._terms = terms
        return terms

    def _open_here(self, terms: Terms) -> _Here:
        """What belongs to the running event loop."""
        url = self._redis_url
        desk = self._shared(url, terms) if url else LocalDesk(self._windows, terms.parts)
        lines = Lines(self._queue_seconds or 0.0, self._queue_size, TALLY, poll=POLL if url else NEVER)
        on_close(self._close)
        return self._loops.put(_Here(desk, lines, bool(url)))

    def _shared(self, url: str, terms: Terms) -> Desk:
        try:
            from ._rate_redis import Lane

            return Lane(
                url,
                self._windows,
                parts=terms.parts,
                patience=self._redis_patience or 0.05,
                lease=self._lease,
                tally=TALLY,
            )
        except ModuleNotFoundError:
            raise SettingsError("REDIS_URL is set; it needs: pip install 'asgi-llm-gateway[redis]'") from None
        except ValueError:  # the driver's words may repeat the URL, which holds a password
            raise SettingsError("REDIS_URL can't be read; write redis://:password@host:6379/0") from None

    async def _close(self) -> None:
        here = self._loops.pop()
        if here is not None:
            await here.desk.close()


__all__ = ["RateLimitMiddleware", "go_duration"]
