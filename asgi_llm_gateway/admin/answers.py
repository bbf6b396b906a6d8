"""What the admin API and the command line show: each answer a closed list of fields, made from the records."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, PlainSerializer, WithJsonSchema

from ..periods import window_end, window_of
from ..records import Adjustment, ApiKey, Balance, CallRecord, Stats, Tenant, usd_number


def usd_json(nano: int | None) -> Any:
    """Nano-USD as a JSON number of at most nine decimals, exact."""
    return None if nano is None else orjson.Fragment(usd_number(nano))


Usd = Annotated[
    int,
    PlainSerializer(usd_json, return_type=Any),
    WithJsonSchema({"type": "number", "description": "US dollars, at most 9 decimals, exact."}),
]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TenantAnswer(_Answer):
    """A tenant, and where its money stands in the current period (``null``: without limit, or without end)."""

    id: str
    name: str
    enabled: bool
    created: float
    budget_usd: Usd | None
    budget_tokens: int | None
    budget_period: str
    soft_limit_usd: Usd | None
    max_output_tokens: int | None
    rate_requests: int | None
    rate_tokens: int | None
    concurrency: int | None
    allowed_models: tuple[str, ...] | None
    metadata: dict[str, Any]
    spent_usd: Usd
    held_usd: Usd
    remaining_usd: Usd | None
    credit_usd: Usd
    tokens_spent: int
    tokens_held: int
    remaining_tokens: int | None
    period_start: int | None
    period_end: int | None


class TenantsAnswer(_Answer):
    """Tenants by id; ``next`` is the ``after`` of the next page."""

    data: list[TenantAnswer]
    next: str | None


class KeyAnswer(_Answer):
    """A key without its secret, which nobody has any more. Times are Unix seconds; ``revoked`` may lie ahead.

    ``spent_usd`` and ``remaining_usd`` are of its own budget in the current period; ``null`` where it has none.
    """

    id: str
    tenant: str
    kind: str
    name: str
    created: float
    expires: float | None
    revoked: float | None
    budget_usd: Usd | None
    spent_usd: Usd | None
    remaining_usd: Usd | None
    rate_requests: int | None
    rate_tokens: int | None
    concurrency: int | None
    allowed_models: tuple[str, ...] | None
    also_tenants: tuple[str, ...]


class NewKeyAnswer(KeyAnswer):
    """A new key with its secret: the only time that it is shown."""

    key: str


class KeysAnswer(_Answer):
    """Keys, oldest first; ``next`` is the ``after`` of the next page."""

    data: list[KeyAnswer]
    next: str | None


class RecordAnswer(_Answer):
    """One call as it was booked. ``flags``: estimated, aborted, overdraft, lapsed, local. Times are Unix seconds."""

    request_id: str
    trace_id: str
    model: str | None
    provider: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: Usd
    provider_cost_usd: Usd | None
    status: int | None
    started: float
    ended: float
    key_id: str | None
    flags: tuple[str, ...]
    overdraft_usd: Usd


class RecordsAnswer(_Answer):
    """Records, newest first; ``next`` is the ``cursor`` of the next page."""

    records: list[RecordAnswer]
    next: str | None


class AdjustmentAnswer(_Answer):
    """An operator's credit or debit (a negative amount), or by how much a call cost more than was held for it."""

    id: str
    kind: str
    amount_usd: Usd
    reason: str
    period_start: int | None
    created: float
    by: str


class AdjustmentsAnswer(_Answer):
    """Adjustments, newest first."""

    data: list[AdjustmentAnswer]


class BookedAnswer(AdjustmentAnswer):
    """An adjustment as it was booked, and where the tenant's money stands now."""

    balance: TenantAnswer


class StatsAnswer(_Answer):
    """Sums over calls: of one tenant or of all, of all time or of calls begun since."""

    requests: int
    tokens_in: int
    tokens_out: int
    cost_total_usd: Usd
    tenant: str | None
    since: float | None


class Problem(_Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(_Answer):
    """A refusal or a failure."""

    error: Problem


def tenant_answer(tenant: Tenant, balance: Balance, now: float) -> TenantAnswer:
    """A tenant, and its balance in the window around ``now``."""
    window = window_of(tenant.period, now)
    money, tokens = tenant.budget, tenant.budget_tokens
    return TenantAnswer(
        id=tenant.id,
        name=tenant.name,
        enabled=tenant.enabled,
        created=tenant.created,
        budget_usd=money,
        budget_tokens=tokens,
        budget_period=tenant.period,
        soft_limit_usd=tenant.soft_limit,
        max_output_tokens=tenant.max_output_tokens,
        rate_requests=tenant.rate_requests,
        rate_tokens=tenant.rate_tokens,
        concurrency=tenant.concurrency,
        allowed_models=tenant.allowed_models,
        metadata=dict(tenant.metadata),
        spent_usd=balance.spent,
        held_usd=balance.held,
        remaining_usd=None if money is None else money + balance.credit - balance.spent - balance.held,
        credit_usd=balance.credit,
        tokens_spent=balance.tokens_spent,
        tokens_held=balance.tokens_held,
        remaining_tokens=None if tokens is None else tokens - balance.tokens_spent - balance.tokens_held,
        period_start=window or None,
        period_end=window_end(tenant.period, window),
    )


def key_answer(key: ApiKey, balance: Balance = Balance()) -> KeyAnswer:  # noqa: B008 - a constant
    """A key without its secret and the digest that it is found by; ``balance`` is of its own account."""
    budget = key.budget
    return KeyAnswer(
        id=key.id,
        tenant=key.tenant,
        kind=key.kind,
        name=key.name,
        created=key.created,
        expires=key.expires,
        revoked=key.revoked,
        budget_usd=budget,
        spent_usd=None if budget is None else balance.spent,
        remaining_usd=None if budget is None else budget - balance.spent - balance.held,
        rate_requests=key.rate_requests,
        rate_tokens=key.rate_tokens,
        concurrency=key.concurrency,
        allowed_models=key.allowed_models,
        also_tenants=key.also_tenants,
    )


def new_key_answer(key: ApiKey, secret: str) -> NewKeyAnswer:
    """A key that was just made."""
    return NewKeyAnswer(**dict(key_answer(key)), key=secret)


def record_answer(record: CallRecord) -> RecordAnswer:
    """A call's record."""
    usage = record.usage
    flags = {
        "estimated": usage.estimated,
        "aborted": record.aborted,
        "overdraft": record.overdraft > 0,
        "lapsed": record.lapsed,
        "local": record.local,
    }
    return RecordAnswer(
        request_id=record.request_id,
        trace_id=record.trace_id,
        model=record.model,
        provider=record.provider,
        prompt_tokens=usage.prompt,
        completion_tokens=usage.completion,
        cached_tokens=usage.cached,
        cache_write_tokens=usage.cache_write,
        reasoning_tokens=usage.reasoning,
        cost_usd=record.cost,
        provider_cost_usd=usage.provider_cost,
        status=record.status,
        started=record.started,
        ended=record.ended,
        key_id=record.key,
        flags=tuple(name for name, there in flags.items() if there),
        overdraft_usd=record.overdraft,
    )


def adjustment_answer(adjustment: Adjustment) -> AdjustmentAnswer:
    """An adjustment; its id as it was sent."""
    return AdjustmentAnswer(
        id=adjustment.id.removeprefix(adjustment.tenant + ":"),
        kind=adjustment.kind,
        amount_usd=-adjustment.amount if adjustment.kind == "debit" else adjustment.amount,
        reason=adjustment.reason,
        period_start=adjustment.window or None,
        created=adjustment.created,
        by=adjustment.by,
    )


def stats_answer(stats: Stats, tenant: str | None, since: float | None) -> StatsAnswer:
    """Sums over calls."""
    return StatsAnswer(
        requests=stats.requests,
        tokens_in=stats.tokens_in,
        tokens_out=stats.tokens_out,
        cost_total_usd=stats.cost,
        tenant=tenant,
        since=since,
    )


def as_json(answer: BaseModel) -> bytes:
    """An answer as it goes over the wire."""
    return orjson.dumps(answer.model_dump())
