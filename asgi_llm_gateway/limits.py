"""What a caller may spend, and what it is told when that does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from .errors import BadRequest, BudgetError, Forbidden, GatewayError
from .periods import window_end, window_of
from .records import Amount, Dialect, Identity, Limit, Refusal, usd_number
from .units import setting_of
from .wire import MEDIA

Status = Literal["auto", "402", "429"]


def limits_of(identity: Identity, now: float) -> tuple[Limit, ...]:
    """What a caller may spend at ``now``: its tenant's budget, and its key's own where it has one."""
    tenant, key = identity
    window = 0 if tenant.period == "none" else window_of(tenant.period, now)
    own = Limit("", window, tenant.budget, tenant.budget_tokens)
    if key is None or key.budget is None:
        return (own,)
    return own, Limit(key.account or key.id, window, key.budget, None)


def has_budget(identity: Identity) -> bool:
    """Whether anything limits what a caller spends."""
    tenant, key = identity
    return tenant.budget is not None or tenant.budget_tokens is not None or (key is not None and key.budget is not None)


def refused(refusal: Refusal, needed: Amount, identity: Identity, status: Status = "auto") -> BudgetError:
    """What the client is told: which budget, how much of it is left, and when it begins anew."""
    limit, what, spent, held, credit = refusal
    end = window_end(identity.tenant.period, limit.window)
    if what == "ended":
        said = "The call's hold has lapsed; no further upstream call can be made for it."
        return BudgetError(said, reset=end, status=status)
    show: Callable[[int], str] = _usd
    most, least = (limit.money or 0) + credit, needed.money
    if what == "tokens":
        show, most, least = _tokens, limit.tokens or 0, needed.tokens
    whose = "The key's" if limit.account else "The tenant's"
    if spent >= most:
        return BudgetError(f"{whose} budget of {show(most)} is spent.", reset=end, status=status)
    left = show(max(most - spent - held, 0))
    running = f" ({show(held)} are held for calls that run)" if held else ""
    said = (
        f"The request could cost {show(least)}; {left} of {whose.lower()} budget of {show(most)} are free{running}. "
        "Ask for fewer tokens, or raise the budget."
    )
    return BudgetError(said, code="would_exceed_budget", reset=end, status=status)


def unpriced(model: str, dialect: Dialect | None) -> GatewayError:
    """The refusal of a model whose price is not known to a tenant with a budget, naming the setting that gives it one."""
    if dialect in MEDIA:
        return Forbidden(
            f"The model '{model}' has no price for this endpoint, and the tenant has a budget. Ask the operator to set "
            f"'{setting_of(dialect)}', or its price of tokens, below [models.\"{model}\"] in the settings file.",
            code="unpriced_endpoint",
            param="model",
        )
    return BadRequest(
        f"The model '{model}' has no price here, and the tenant has a budget. GET /v1/models lists the models and their "
        "prices; ask the operator to set this one's in the settings file.",
        code="unpriced_model",
        param="model",
    )


def usd(nano: int) -> str:
    """Nano-USD as dollars, exactly: at least two decimals, at most nine."""
    text = usd_number(nano)
    return text + "0" if text[-2] == "." else text


def _usd(nano: int) -> str:
    return usd(nano) + " USD"


def _tokens(count: int) -> str:
    return f"{count} tokens"
