"""What a caller may take in a window, and what its call asks for."""

from __future__ import annotations

from typing import NamedTuple

from ..records import Identity
from ..tokens import BYTES_PER_TOKEN, answers, estimate, more_than_text
from ..wire import LLMRequest
from .wants import Want, want


class Terms(NamedTuple):
    """The settings of a RateLimitMiddleware; ``None`` is no limit.

    A tenant's record replaces ``requests``, ``tokens`` and ``calls``, a key's the three below them. ``parts`` are the
    processes among which limits are divided where nothing is shared; ``output`` is the output limit, in tokens, that is
    assumed of a request which names none.
    """

    seconds: float
    parts: int
    requests: int | None
    tokens: int | None = None
    calls: int | None = None
    key_requests: int | None = None
    key_tokens: int | None = None
    key_calls: int | None = None
    output: int = 4096
    least_output: int = 16

    @property
    def plain(self) -> bool:
        """Whether nothing but requests is limited, and only by tenant, where no record says more."""
        return all(value is None for value in self[3:8])


class Plan(NamedTuple):
    """The limits that hold for a caller.

    ``wants`` asks of each what can be told without the request; ``tokens`` are the places in it where its tokens are to be
    put. ``ends``: something is to be done when a call ends. ``line`` is where the caller's calls wait for their turn,
    ``output`` its output limit.
    """

    wants: tuple[Want, ...]
    tokens: tuple[int, ...]
    ends: bool
    line: str
    output: int
    least_output: int

    def wants_of(self, request: LLMRequest | None, *, metered: bool = True) -> list[Want]:
        """What a call asks of each limit: no tokens on a path that is not ``metered``, such as the list of models."""
        wants = list(self.wants)
        for at in self.tokens:
            name, what, account, limit, _ = wants[at]
            amount = expected(request, limit, self.output, self.least_output) if metered else 0
            wants[at] = _new(Want, (name, what, account, limit, amount))
        return wants


_new = tuple.__new__


def plan_of(terms: Terms, identity: Identity) -> Plan:
    """The limits that hold for a caller.

    A key that takes another's place at a rotation goes on with its account.
    """
    tenant, key = identity
    limits = [
        ("", _own(tenant.rate_requests, terms.requests), _own(tenant.rate_tokens, terms.tokens),
         _own(tenant.concurrency, terms.calls)),
    ]  # fmt: skip
    if key is not None:
        limits.append(
            (key.account or key.id, _own(key.rate_requests, terms.key_requests),
             _own(key.rate_tokens, terms.key_tokens), _own(key.concurrency, terms.key_calls))
        )  # fmt: skip
    wants: list[Want] = []
    for account, requests, tokens, calls in limits:
        if requests is not None:
            wants.append(want("requests", tenant.id, account, requests, 1))
        if tokens is not None:
            wants.append(want("tokens", tenant.id, account, tokens, 1))
        if calls is not None:
            wants.append(want("calls", tenant.id, account, calls, 1))
    own = wants[-1].account if wants else ""
    return Plan(
        tuple(wants),
        tuple(at for at, one in enumerate(wants) if one.what == "tokens"),
        any(one.what != "requests" for one in wants),
        f"{tenant.id} {own}" if own else tenant.id,
        tenant.max_output_tokens or terms.output,
        terms.least_output,
    )


_ANSWERED_IN_TEXT = frozenset({"chat", "completions", "responses", "messages"})


def _own(own: int | None, default: int | None) -> int | None:
    return default if own is None else own


def expected(request: LLMRequest | None, limit: int, output: int, least: int) -> int:
    """Tokens that a call is admitted on: its prompt by length, and the most that it may be answered with.

    Where the request names no output limit, ``output`` is assumed, but no more than a window has, and not less than
    ``least``. Of a call whose body nobody reads nothing is known before its end: it takes one token to begin with.
    """
    if request is None:
        return 1
    plain = request.route.dialect == "chat" and not more_than_text(request)  # as most are: the same in a glance
    prompt = -(-len(request.raw) // BYTES_PER_TOKEN) if plain else estimate(request).prompt
    if request.route.dialect not in _ANSWERED_IN_TEXT:
        return max(1, prompt)
    times = answers(request)
    if request.max_tokens is not None:
        return max(1, prompt + request.max_tokens * times)
    return prompt + max(min(output * times, limit - prompt), least)
