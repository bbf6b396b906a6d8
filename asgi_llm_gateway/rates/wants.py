"""What a call asks of its limits, and what it is answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

NEVER = math.inf
"""Seconds until a call is admitted that asks for more than its limit."""

CALL_RETRY = 1.0
"""Seconds until one should ask again for a place among the running calls: nobody knows when one of them ends."""

Measure = Literal["requests", "tokens", "calls"]


class Want(NamedTuple):
    """What a call asks of one limit.

    ``account`` is empty for the tenant's limit, else the account of the key that has one of its own. ``limit`` is the whole
    limit, over all processes; ``amount`` is what the call takes of it: requests, tokens, or a place among the running calls.
    With an amount of 0 it only looks where the caller stands, and is never refused for that.
    """

    name: str
    what: Measure
    account: str
    limit: int
    amount: int


def want(what: Measure, tenant: str, account: str, limit: int, amount: int) -> Want:
    """A Want with the name under which it is counted: a tenant's id has no space, so no two are the same."""
    return Want(f"{tenant} {what} {account}", what, account, limit, amount)


class Stand(NamedTuple):
    """Where a caller stands with one limit.

    ``limit`` is what holds here and now, ``reset`` seconds until nothing counts any more, ``retry`` seconds until the call
    would be admitted (0 where it was): ``NEVER`` where it asks for more than the limit.
    """

    limit: int
    remaining: int
    reset: float
    retry: float


class Verdict(NamedTuple):
    """Whether a call is admitted, and where it stands with each limit, in the order of its wants."""

    admitted: bool
    stands: Sequence[Stand]


def share(limit: int, parts: int) -> int:
    """One process's share of a limit: at least 1, but for a limit of 0."""
    return limit if parts == 1 or not limit else max(1, limit // parts)
