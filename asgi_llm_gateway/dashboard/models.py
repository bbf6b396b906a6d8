"""What the dashboard's own operations take and give: closed lists of fields, as the admin API's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from ..admin.answers import Usd
from ..admin.models import Moment, Name
from ..admin.trace_models import TraceAnswer
from ..settings import TenantId

MAX_SPAN = 100 * 366 * 86400.0
"""Seconds that an overview may span: all that was ever called, and no sum that a number can't hold."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SignIn(_Closed):
    """A key, once."""

    key: Annotated[SecretStr, Field(min_length=1, max_length=1024)]


class Nothing(_Closed):
    """An empty body."""


class OverviewQuery(_Closed):
    """Which calls: begun in [since, until), the last 24 hours where neither is given; of one tenant, or of all."""

    since: Moment | None = None
    until: Moment | None = None
    tenant: TenantId | None = None


class CourseQuery(OverviewQuery):
    """Of which calls, and what they are told apart by."""

    by: Literal["model", "tenant"] = "model"


class LiveQuery(_Closed):
    """Which calls: those recorded after ``after``, the newest ``limit`` of them."""

    after: Name | None = Field(default=None, description="The ``cursor`` of the answer before.")
    limit: int = Field(default=50, ge=1, le=200)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Me(_Answer):
    """Who is signed in. ``csrf`` is to be sent as ``x-csrf-token`` with each change; ``expires`` is Unix seconds."""

    role: Literal["admin", "tenant"]
    tenant: str | None
    csrf: str
    expires: int


class _Sums(_Answer):
    """Sums over calls.

    Money, tokens and ``booked`` are those of the ledger's call records, to the last nano-USD. ``calls`` are all that came in,
    as far as they are still recorded; ``errors`` are those that failed, ``refused`` those that ended with a 4xx, ``cached``
    those that the cache answered, which ``saved_usd`` what the answers had cost.
    """

    calls: int = 0
    booked: int = 0
    errors: int = 0
    aborted: int = 0
    refused: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: Usd = 0
    saved_usd: Usd = 0


class Totals(_Sums):
    """Of the whole time. Percentiles are milliseconds; ``null`` where no call has one."""

    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None


class Point(Totals):
    """Of the ``step`` seconds that begin at ``t`` (Unix seconds)."""

    t: float


class Group(_Sums):
    """Of one model, or of one tenant; ``null`` where a call had none."""

    name: str | None
    p95_ms: float | None = None


class BudgetRow(_Answer):
    """Where a tenant's money stands in its current period; ``null``: it has no limit."""

    tenant: str
    name: str
    budget_usd: Usd | None
    spent_usd: Usd
    held_usd: Usd
    left_usd: Usd | None
    period: str


class Overview(_Answer):
    """The calls of a time. Times are Unix seconds; the last point may span less than ``step`` seconds.

    ``budgets`` are the nearest to their ends first; ``budgets_unlisted`` is how many tenants with one are not in it.
    """

    since: float
    until: float
    step: float
    totals: Totals
    series: list[Point]
    by_model: list[Group]
    by_tenant: list[Group]
    budgets: list[BudgetRow]
    budgets_unlisted: int


class LiveAnswer(_Answer):
    """The newest calls, and the ``after`` of those that come after them."""

    calls: list[TraceAnswer]
    cursor: str


class CoursePoint(_Answer):
    """The ``step`` seconds that begin at ``t`` (Unix seconds): money, and tokens in and out, of each name in turn."""

    t: float
    cost_usd: list[Usd]
    tokens: list[int]


class CourseAnswer(_Answer):
    """Spend over time, as booked, by model or by tenant: the dearest first (``null``: not known).

    Where there are more, one more column behind the names has all others together: ``others`` says so.
    """

    since: float
    until: float
    step: float
    by: Literal["model", "tenant"]
    names: list[str | None]
    others: bool
    series: list[CoursePoint]


class TierAnswer(_Answer):
    """What tokens cost where the prompt has more than ``above_tokens``."""

    above_tokens: int
    usd_per_million_in: Usd
    usd_per_million_out: Usd
    usd_per_million_cached: Usd | None
    usd_per_million_cache_write: Usd | None


class PriceAnswer(_Answer):
    """What a model costs at a provider; ``null``: nothing more, or as other tokens. ``known``: it has a price at all."""

    model: str
    provider: str | None
    upstream_model: str
    known: bool
    local: bool
    usd_per_million_in: Usd | None
    usd_per_million_out: Usd | None
    usd_per_million_cached: Usd | None
    usd_per_million_cache_write: Usd | None
    usd_per_million_media_in: Usd | None
    usd_per_million_media_out: Usd | None
    usd_per_image: Usd | None
    usd_per_minute: Usd | None
    usd_per_million_characters: Usd | None
    usd_per_request: Usd | None
    context: int | None
    tiers: list[TierAnswer]


class PricesAnswer(_Answer):
    """The price list, by model."""

    data: list[PriceAnswer]
