"""What is allowed: every call is shown to a policy, OPA's or a callable's, before anything else is done for it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import orjson

from .._asgi import ASGIApp, Receive, Scope, Send
from .._closing import on_close
from .._perloop import PerLoop
from ..allowed import check_model
from ..errors import NO_RETRY, BadRequest, Forbidden, SettingsError, Unavailable
from ..exchange import MAX_BODY, Exchange
from ..opa import (
    Decision,
    Obligations,
    PolicyFault,
    Questions,
    changes,
    data_path,
    decision_header,
    read_answer,
    read_result,
)
from ..prices import PriceTable
from ..validation import check
from ._policy_http import OpaClient, place_of
from ._policy_memory import Decisions
from .base import LLMMiddleware, Rank

log = logging.getLogger("asgi_llm_gateway")

Decide = Callable[[dict[str, Any]], Any]
"""Stands in for OPA: takes the input document, returns (or is awaited for) what a policy's document would be."""


class _Terms(NamedTuple):
    timeout: float
    fail_open: bool
    dry_run: bool
    cache_seconds: float
    questions: Questions


class PolicyMiddleware(LLMMiddleware):
    """Ask a policy about every governed call; refuse what it does not allow, and carry out its obligations.

    OPA is asked by ``POST {url}/v1/data/{policy}``. The input has ``tenant {id, name, metadata}``, ``key {id, name}``,
    ``kind`` (``metered`` or ``authenticated``), ``method``, ``path``, ``dialect``, ``model``, ``stream``, ``parameters``,
    ``tools`` (names), ``estimate {prompt_tokens, output_tokens}``, ``client {address}`` and ``time`` (RFC 3339, UTC); never
    the prompt, unless ``prompt`` says so. The result is a boolean, or ``{allow, reason, obligations}``; undefined is a no.
    Obligations: ``model`` (one that the caller may use), ``max_tokens`` (lowers the output limit, never raises it), ``set``
    (body fields and their values) and ``remove`` (names of body fields); any other refuses the call.

    A refused call is 403 ``policy_denied``. A policy that does not answer (or not with yes or no) is 503
    ``policy_unavailable``; where it ``fail``s ``open``, the call goes on. Decisions are remembered by the whole input.

    Args:
        app: The ASGI app further in.
        url: OPA's base URL; ``None`` takes OPA_URL.
        policy: Path of the policy's document (``llm.gateway``, ``llm/gateway/allow``); ``None`` takes OPA_POLICY.
        token: A bearer token for OPA; ``None`` takes OPA_TOKEN.
        decide: Stands in for OPA, and neither URL nor token is used: a function or coroutine function of the input.
        timeout: Seconds for a question; ``None`` takes OPA_TIMEOUT_MS.
        fail: ``"closed"`` or ``"open"``; ``None`` takes OPA_FAIL.
        dry_run: Ask and log, but refuse and change nothing; ``None`` takes OPA_DRY_RUN.
        cache_seconds: How long a decision holds, 0 for not at all; ``None`` takes OPA_CACHE_SECONDS.
        cache_size: Decisions remembered per event loop.
        asks: ``"governed"`` asks about every path that is authenticated; ``"metered"`` about those that cost money only.
        prompt: Send the whole body of the request as ``input.body``; ``None`` takes OPA_SEND_PROMPT.
        parameters: More body fields for ``input.parameters``, such as ``user``.
        headers: Request headers for ``input.headers``.
        omit: Parts of the input to leave out: ``client``, ``estimate``, ``key``, ``parameters``, ``time``, ``tools``.
        time_step: Seconds to which ``input.time`` is rounded down.
        prices: Adds ``cost_usd`` to ``input.estimate``: what the call can cost at most, ``null`` where that is not known.
        clock: Unix time in seconds.
        paths: See LLMMiddleware.
        govern: See LLMMiddleware.
        max_body: See LLMMiddleware.

    Raises:
        ValueError: An argument that can't be meant.
    """

    rank = Rank.POLICY

    def __init__(
        self,
        app: ASGIApp,
        *,
        url: str | None = None,
        policy: str | None = None,
        token: str | None = None,
        decide: Decide | None = None,
        timeout: float | None = None,
        fail: Literal["closed", "open"] | None = None,
        dry_run: bool | None = None,
        cache_seconds: float | None = None,
        cache_size: int = 10_000,
        asks: Literal["governed", "metered"] = "governed",
        prompt: bool | None = None,
        parameters: Sequence[str] = (),
        headers: Sequence[str] = (),
        omit: Sequence[str] = (),
        time_step: float = 60.0,
        prices: PriceTable | None = None,
        clock: Callable[[], float] = time.time,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        if fail not in (None, "closed", "open"):
            raise ValueError(f"fail={fail!r}: use 'closed' or 'open'")
        if asks not in ("governed", "metered"):
            raise ValueError(f"asks={asks!r}: use 'governed' or 'metered'")
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout={timeout}: seconds, more than 0")
        if cache_seconds is not None and cache_seconds < 0:
            raise ValueError(f"cache_seconds={cache_seconds}: 0 or more")
        if cache_size < 1:
            raise ValueError(f"cache_size={cache_size}: at least 1")
        if url is not None:
            place_of(url)
        if policy is not None:
            data_path(policy)
        shown: dict[str, Any] = {
            "parameters": tuple(parameters), "headers": tuple(headers), "omit": tuple(omit), "step": time_step,
            "prices": prices, "clock": clock,
        }  # fmt: skip
        Questions(**shown)
        same = (url, policy, token, decide, timeout, fail, dry_run, cache_seconds, cache_size, asks, prompt)
        super().__init__(
            app, settings=(*same, *map(repr, shown.values())), paths=paths, govern=govern, max_body=max_body
        )
        self._url = url
        self._policy = policy
        self._token = token
        self._decide = decide
        self._given = (timeout, fail, dry_run, cache_seconds, prompt)
        self._most = cache_size
        self._metered_only = asks == "metered"
        self._shown = shown
        self._clock = clock
        self._found: _Terms | None = None
        self._open: PerLoop[_Asking] = PerLoop()

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        if self._metered_only and exchange.route.kind != "metered":
            await self.forward(exchange, scope, receive, send)
            return
        if exchange.request is None and exchange.route.dialect is not None and scope["method"] == "POST":
            receive = await exchange.read(receive, scope)
        terms = self._found or self._terms()
        asking = self._open.get() or self._opened(terms)
        document = terms.questions.about(exchange, scope)
        began = time.perf_counter()
        decision = asking.decisions.known(document)
        if decision is None:
            decision = await self._asked(asking.decisions, document, terms)
        # None where it could not be asked, and calls go on all the same.
        if decision is not None and (
            not decision.allow or decision.obligations is not None or decision.unmet is not None
        ):
            self._apply(decision, exchange, terms)
        exchange.step("policy", began)
        await self.forward(exchange, scope, receive, send)

    async def _asked(self, decisions: Decisions, document: bytes, terms: _Terms) -> Decision | None:
        """The policy's decision; ``None`` where there is none and calls go on all the same. Raises Unavailable."""
        try:
            decision = await decisions.find(document)
        except PolicyFault as fault:
            if not decisions.failing:  # said once, not for every call of an outage
                decisions.failing = True
                going = "go on without it" if terms.fail_open or terms.dry_run else "are refused"
                log.error("the policy can't be asked, and calls %s: %s", going, fault)
            if terms.fail_open or terms.dry_run:
                return None
            raise Unavailable(
                "The gateway's policy can't be asked now, and nothing is allowed without it. Try again later.",
                code="policy_unavailable",
                headers=((b"retry-after", b"1"),),
            ) from None
        if decisions.failing:
            decisions.failing = False
            log.info("the policy answers again")
        return decision

    def _apply(self, decision: Decision, exchange: Exchange, terms: _Terms) -> None:
        """Refuse, or change the request as the policy wants it. Raises Forbidden, NotFound."""
        if terms.dry_run:
            self._log(decision, exchange, "would be refused" if not decision.allow else "would be allowed with changes")
            return
        if not decision.allow:
            self._log(decision, exchange, "refused")
            raise _denied(decision)
        if decision.unmet is not None:
            log.error("the policy asks for what can't be done: %s", decision.unmet)
            raise _unmet(decision)
        assert decision.obligations is not None
        self._carry_out(decision.obligations, decision, exchange)

    def _carry_out(self, obligations: Obligations, decision: Decision, exchange: Exchange) -> None:
        request = exchange.request
        if request is None:
            if exchange.route.kind == "metered":  # a path of the user's own, whose body is not read
                log.error("the policy asks for changes to a request that is not read (%s)", exchange.route.path)
                raise _unmet(decision)
            return  # nothing is generated there
        fields = changes(request, obligations)
        if not fields:
            return
        if "model" in fields:
            check_model(exchange.identity, fields["model"])
        exchange.amend(**fields)
        try:
            check(request.route.dialect, exchange.request.data if exchange.request is not None else {})
        except BadRequest as fault:
            log.error("the policy's obligations make an invalid request: %s", fault.param)
            raise _unmet(decision) from None

    def _log(self, decision: Decision, exchange: Exchange, what: str) -> None:
        # A policy that is shown prompts may repeat them in its reason.
        reason = None if self._given[4] else decision.reason
        log.info(
            "a call %s by the policy: tenant=%s model=%r path=%s reason=%r undefined=%s decision=%s",
            what, exchange.identity.tenant.id, exchange.request.model if exchange.request else None,
            exchange.route.path, reason, decision.undefined, decision.id,
        )  # fmt: skip

    # -- opened on first use -------------------------------------------------------------------------------------------

    def _terms(self) -> _Terms:
        from ..settings import current

        timeout, fail, dry_run, cache_seconds, prompt = self._given
        settings = current()
        prompt = settings.opa_send_prompt if prompt is None else prompt
        self._given = (timeout, fail, dry_run, cache_seconds, prompt)
        self._found = _Terms(
            settings.opa_timeout_ms / 1000 if timeout is None else timeout,
            (fail or settings.opa_fail) == "open",
            settings.opa_dry_run if dry_run is None else dry_run,
            settings.opa_cache_seconds if cache_seconds is None else cache_seconds,
            Questions(prompt=prompt, **self._shown),
        )
        return self._found

    def _opened(self, terms: _Terms) -> _Asking:
        if self._decide is not None:
            client, ask = None, _of_callable(self._decide, terms.timeout)
        else:
            client = self._client(terms)
            ask = _of_opa(client)
        decisions = Decisions(ask, seconds=terms.cache_seconds, most=self._most, clock=self._clock)
        on_close(self._close)
        return self._open.put(_Asking(decisions, client))

    def _client(self, terms: _Terms) -> OpaClient:
        from ..settings import current, secret

        settings = current()
        url = self._url or settings.opa_url
        if url is None:
            raise SettingsError("OPA_URL: not set; it says where OPA listens, such as http://127.0.0.1:8181")
        try:
            place = place_of(url)
        except ValueError as fault:
            raise SettingsError(f"OPA_URL: {fault}") from None
        try:
            path = data_path(self._policy or settings.opa_policy)
        except ValueError as fault:
            raise SettingsError(f"OPA_POLICY: {fault}") from None
        token = self._token or secret(settings.opa_token)
        if token is not None and not (token.isascii() and token.isprintable()):
            raise SettingsError("OPA_TOKEN: printable ASCII only")
        return OpaClient(place, path, token=token, timeout=terms.timeout)

    async def _close(self) -> None:
        asking = self._open.pop()
        if asking is not None:
            asking.decisions.close()
            if asking.client is not None:
                await asking.client.close()


class _Asking(NamedTuple):
    """What one event loop has open."""

    decisions: Decisions
    client: OpaClient | None


def _of_opa(client: OpaClient) -> Callable[[bytes], Awaitable[Decision]]:
    async def ask(document: bytes) -> Decision:
        return read_answer(*await client.ask(document))

    return ask


def _of_callable(decide: Decide, timeout: float) -> Callable[[bytes], Awaitable[Decision]]:
    async def ask(document: bytes) -> Decision:
        # Its own copy: what it does to it changes neither the request nor what the decision is remembered by.
        shown = orjson.loads(document)["input"]
        try:
            result = decide(shown)
            if inspect.isawaitable(result):
                async with asyncio.timeout(timeout):
                    result = await result
        except TimeoutError:
            raise PolicyFault(f"it did not answer within {timeout:g} s") from None
        except Exception as error:  # its text may hold what it was shown
            raise PolicyFault(f"it raised {type(error).__name__}") from None
        return read_result(result)

    return ask


def _denied(decision: Decision) -> Forbidden:
    why = f": {decision.reason}" if decision.reason else "."
    return Forbidden(
        f"The gateway's policy does not allow this request{why}",
        code="policy_denied",
        headers=(NO_RETRY, *decision_header(decision)),
    )


def _unmet(decision: Decision) -> Forbidden:
    return Forbidden(
        "The gateway's policy allows this request only in a way that the gateway can't carry out. Tell the operator.",
        code="policy_denied",
        headers=(NO_RETRY, *decision_header(decision)),
    )


__all__ = ["Decide", "PolicyMiddleware"]
