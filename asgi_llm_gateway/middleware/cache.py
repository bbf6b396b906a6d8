"""What was answered before: the same request gets the same answer, and costs nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .._asgi import ASGIApp, Headers, Receive, Scope, Send
from .._closing import on_close
from .._hangup import Patience
from .._perloop import PerLoop
from ..caching.control import Control, control_of
from ..caching.keys import CACHED, deterministic, key_of, repeatable
from ..caching.memory import MemoryAnswers
from ..caching.replay import told_again
from ..errors import GatewayError, Header, SettingsError
from ..exchange import MAX_BODY, Exchange
from ..wire import LLMRequest
from ._cache_flight import Flight
from ._cache_read import Alone, answer, follow, free, pay, unfree
from .base import LLMMiddleware, Rank

if TYPE_CHECKING:
    from ..caching.redis import RedisAnswers

_HIT: Header = (b"x-cache", b"hit")
_MISS: Header = (b"x-cache", b"miss")
_JOINED: Header = (b"x-cache", b"joined")
_BYPASS: Header = (b"x-cache", b"bypass")

_HEADERS = (b"anthropic-version", b"anthropic-beta", b"openai-beta", b"cookie")
"""Request headers that may change what is answered."""
_CREDENTIALS = (b"authorization", b"x-api-key", b"api-key")
"""Where no TenantMiddleware knows the caller, whoever answers may look at these."""


class NotCached(GatewayError):
    """``cache-control: only-if-cached``, and there is no kept answer. Source: RFC 9111, section 5.2.1.7."""

    status, type, code = 504, "invalid_request_error", "not_cached"


class _Terms(NamedTuple):
    every: bool
    ttl: float
    most: int
    shared: frozenset[str]
    ignore: frozenset[str]
    namespace: str
    redis_url: str
    redis_patience: float


class _Here(NamedTuple):
    """What one event loop has open: the calls that are under way, by key."""

    flights: dict[bytes, Flight]
    running: set[Flight]  # also those that nobody may join any more
    patience: Patience
    redis: RedisAnswers | None


class CacheMiddleware(LLMMiddleware):
    """Answer a request that was answered before, by exact match; ask once where many ask the same at the same time.

    Chat, completions, embeddings, Messages and Responses. An answer is known by all that can change it: who asks, path,
    dialect, model, messages, tools, sampling and every other field; not by how it is sent, so that a kept stream answers a
    call that wants JSON, and the other way round. Only complete, successful answers are kept, by default only those of calls
    that ask for determinism (``temperature`` 0, a ``seed``, embeddings), for their own tenant only.

    ``x-cache`` says what was done: ``hit`` (with ``age`` in seconds), ``joined`` (the answer of a call that is under way,
    live), ``miss``, ``bypass``. A hit touches no budget and costs 0. ``cache-control`` of the request is obeyed: ``no-cache``
    asks anew and keeps the answer, ``no-store`` passes the cache by, ``max-age=S`` takes none that is older,
    ``only-if-cached`` is 504 ``not_cached`` where there is none.

    A call that others have joined goes on when its own client hangs up; it ends at once when the last one has left. It is
    paid by the key that asked first.

    Args:
        app: The ASGI app further in.
        calls: ``"deterministic"`` or ``"all"``: whose answers are kept; ``None`` takes CACHE_CALLS.
        ttl: Seconds that an answer is kept; ``None`` takes CACHE_TTL_SECONDS.
        max_bytes: Bytes of all answers in this process; ``None`` takes CACHE_MAX_BYTES.
        max_answer: Bytes of one answer; a longer one is not kept. ``None`` takes CACHE_MAX_ANSWER_BYTES.
        shared: Tenants that share answers with each other; ``None`` takes CACHE_SHARED_TENANTS.
        ignore: Body fields that change no answer here, such as ``user``; ``None`` takes CACHE_IGNORE_FIELDS.
        headers: More request headers that change an answer here.
        namespace: Keeps gateways apart that have one Redis and not the same models; ``None`` takes CACHE_NAMESPACE.
        redis_url: Where answers are kept for all processes, beside their own memory; ``""`` for nowhere, ``None`` takes
            REDIS_URL where CACHE_REDIS allows it.
        redis_patience: Seconds that a call waits for Redis; ``None`` takes CACHE_REDIS_TIMEOUT_MS.
        clock: Unix time in seconds.
        paths: See LLMMiddleware.
        govern: See LLMMiddleware.
        max_body: See LLMMiddleware.

    Raises:
        ValueError: An argument that can't be meant.
    """

    rank = Rank.CACHE

    def __init__(
        self,
        app: ASGIApp,
        *,
        calls: Literal["deterministic", "all"] | None = None,
        ttl: float | None = None,
        max_bytes: int | None = None,
        max_answer: int | None = None,
        shared: Collection[str] | None = None,
        ignore: Collection[str] | None = None,
        headers: Sequence[str] = (),
        namespace: str | None = None,
        redis_url: str | None = None,
        redis_patience: float | None = None,
        clock: Callable[[], float] = time.time,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        if calls not in (None, "deterministic", "all"):
            raise ValueError(f"calls={calls!r}: use 'deterministic' or 'all'")
        for name, value in (
            ("ttl", ttl),
            ("max_bytes", max_bytes),
            ("max_answer", max_answer),
            ("redis_patience", redis_patience),
        ):
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value}: more than 0")
        for name, names in (("shared", shared), ("ignore", ignore), ("headers", headers)):
            if isinstance(names, str):
                raise ValueError(f"{name}={names!r}: a list of names, not one string")
        refused = _KEPT_IN_KEY & set(ignore or ())
        if refused:
            raise ValueError(f"ignore={sorted(refused)}: these always change the answer")
        given = (
            calls, ttl, max_bytes, max_answer, None if shared is None else frozenset(shared),
            None if ignore is None else frozenset(ignore), namespace, redis_url, redis_patience,
        )  # fmt: skip
        super().__init__(app, settings=(*given, tuple(headers)), paths=paths, govern=govern, max_body=max_body)
        self._given = given
        self._headers = (*_HEADERS, *(name.lower().encode("latin-1") for name in headers))
        self._clock = clock
        self._opening = Lock()
        self._terms: _Terms | None = None
        self._memory: MemoryAnswers | None = None
        self._open: PerLoop[_Here] = PerLoop()

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        if exchange.route.dialect not in CACHED or scope["method"] != "POST":
            await self.forward(exchange, scope, receive, send)
            return
        if exchange.request is None:
            receive = await exchange.read(receive, scope)
        request = exchange.request
        assert request is not None
        terms = self._terms or self._read_settings()
        get = exchange.sent(scope).get
        control = control_of(get(b"cache-control"), get(b"pragma"))
        if not control.store or not (terms.every or deterministic(request)) or not repeatable(request):
            if control.only:
                raise _not_cached()
            self._note(exchange, "bypass", _BYPASS)
            await self.forward(exchange, scope, receive, send)
            return
        began = time.perf_counter()
        key = self._key(terms, exchange, scope, request)
        here = self._open.get() or self._open_here(terms)
        if control.lookup or control.only:
            if await self._kept(terms, here, key, control, exchange, send, began):
                return
            if control.only:
                raise _not_cached()
            if await self._joined(here, key, control, exchange, receive, send):
                return
        exchange.step("cache", began)
        await self._asked(terms, here, key, exchange, scope, receive, send)

    # -- who is known by what ------------------------------------------------------------------------------------------

    def _key(self, terms: _Terms, exchange: Exchange, scope: Scope, request: LLMRequest) -> bytes:
        (tenant, key), sent = exchange.identity, exchange.sent(scope)
        get = sent.get
        # A fallback target answers only those who may use it.
        models = tenant.allowed_models and sorted(tenant.allowed_models)
        owner: list[Any] = [terms.namespace, None if tenant.id in terms.shared else tenant.id, models]
        if key is not None:
            owner.append(key.allowed_models and sorted(key.allowed_models))
        else:
            owner.append([_told(sent, name) for name in _CREDENTIALS if get(name) is not None])
        place: list[Any] = [scope["path"], (scope.get("query_string") or b"").decode("latin-1")]
        place += [_told(sent, name) for name in self._headers if get(name) is not None]
        return key_of(request, owner=owner, place=place, ignore=terms.ignore)

    # -- the three ways to an answer -----------------------------------------------------------------------------------

    async def _kept(
        self, terms: _Terms, here: _Here, key: bytes, control: Control, exchange: Exchange, send: Send, began: float
    ) -> bool:
        """Answer with what is kept, if anything is that will do."""
        assert self._memory is not None
        request = exchange.request
        assert request is not None
        now = self._clock()
        kept = self._memory.get(key)
        if kept is None and here.redis is not None and key not in here.flights:
            kept = await here.redis.get(key)
            if kept is not None and kept.size <= terms.most + 65536 and kept.fresh(now, terms.ttl):
                self._memory.put(key, kept)
        if kept is None or not kept.fresh(now, terms.ttl, control.max_age):
            return False
        told = told_again(kept, request)
        if told is None:
            return False
        free(exchange)
        self._note(exchange, "hit", _HIT)
        exchange.step("cache", began)
        if exchange.record is not None:
            exchange.record.saved = kept.cost
        await answer(exchange, send, told, int(now - kept.made))
        return True

    async def _joined(
        self, here: _Here, key: bytes, control: Control, exchange: Exchange, receive: Receive, send: Send
    ) -> bool:
        """Share the answer of a call that is under way, if there is one."""
        flight = here.flights.get(key)
        if flight is None or (control.max_age is not None and self._clock() - flight.began > control.max_age):
            return False
        headers = len(exchange.headers)
        self._note(exchange, "joined", _JOINED)
        try:
            await follow(flight, exchange, receive, send, here.patience)
        except Alone:
            del exchange.headers[headers:]
            unfree(exchange)
            return False
        return True

    async def _asked(
        self, terms: _Terms, here: _Here, key: bytes, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Ask, for all who may join."""
        flight = Flight(
            exchange, scope, most=terms.most, clock=self._clock, settled=lambda done: self._keep(here, key, done)
        )
        here.flights[key] = flight
        here.running.add(flight)
        self._note(exchange, "miss", _MISS)
        exchange.ends_itself = True  # what is read of the answer is read further in
        reader = flight.join(own=True)
        flight.begin(self.forward, here.running.discard)
        await pay(flight, reader, exchange, receive, send, here.patience)

    def _keep(self, here: _Here, key: bytes, flight: Flight) -> None:
        """A call is settled: nobody may join any more, and what may be kept is."""
        if here.flights.get(key) is flight:
            del here.flights[key]
        kept = flight.kept
        if kept is not None and self._memory is not None:
            self._memory.put(key, kept)
            if here.redis is not None:
                here.redis.put(key, kept, self._clock())

    def _note(self, exchange: Exchange, what: str, shown: Header) -> None:
        exchange.headers.append(shown)
        if exchange.record is not None:
            exchange.record.cache = what

    # -- opened on first use -------------------------------------------------------------------------------------------

    def _read_settings(self) -> _Terms:
        from ..settings import current, secret

        with self._opening:  # threads may share an instance
            if self._terms is not None:
                return self._terms
            calls, ttl, max_bytes, max_answer, shared, ignore, namespace, redis_url, redis_patience = self._given
            settings = current()
            if redis_url is None:
                redis_url = (secret(settings.redis_url) or "") if settings.cache_redis else ""
            ignore = _names(settings.cache_ignore_fields) if ignore is None else ignore
            if _KEPT_IN_KEY & ignore:
                raise SettingsError(
                    f"CACHE_IGNORE_FIELDS: {', '.join(sorted(_KEPT_IN_KEY & ignore))} always change the answer"
                )
            found = _Terms(
                (calls or settings.cache_calls) == "all",
                settings.cache_ttl_seconds if ttl is None else ttl,
                max_answer or settings.cache_max_answer_bytes,
                _names(settings.cache_shared_tenants) if shared is None else shared,
                ignore,
                settings.cache_namespace if namespace is None else namespace,
                redis_url,
                redis_patience or settings.cache_redis_timeout_ms / 1000,
            )
            most = max_bytes or settings.cache_max_bytes
            self._memory = MemoryAnswers(max_bytes=most, ttl=found.ttl, clock=self._clock)
            self._terms = found
            return found

    def _open_here(self, terms: _Terms) -> _Here:
        redis = _redis(terms) if terms.redis_url else None
        on_close(self._close)
        return self._open.put(_Here({}, set(), Patience(asyncio.get_running_loop()), redis))

    async def _close(self) -> None:
        here = self._open.pop()
        if here is not None:
            for flight in list(here.running):
                flight.stop()
            if here.redis is not None:
                await here.redis.close()


_KEPT_IN_KEY = frozenset({"model", "messages", "input", "prompt", "system", "instructions", "tools", "stream"})
"""Fields that nobody can mean to ignore."""


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _told(sent: Headers, name: bytes) -> list[str]:
    """A header's name and values as they go into a key, which is a digest of all that does."""
    return [name.decode("latin-1"), *[value.decode("latin-1") for value in sent.all(name)]]


def _not_cached() -> NotCached:
    return NotCached("There is no kept answer to this request, and 'cache-control: only-if-cached' wants no other.",
                     param="cache-control")  # fmt: skip


def _redis(terms: _Terms) -> RedisAnswers:
    try:
        from ..caching.redis import RedisAnswers

        return RedisAnswers(terms.redis_url, patience=terms.redis_patience, ttl=terms.ttl)
    except ModuleNotFoundError:
        raise SettingsError("REDIS_URL is set; the cache needs: pip install 'asgi-llm-gateway[redis]'") from None
    except ValueError:  # the driver's words may repeat the URL, which holds a password
        raise SettingsError("REDIS_URL can't be read; write redis://:password@host:6379/0") from None


__all__ = ["CacheMiddleware"]
