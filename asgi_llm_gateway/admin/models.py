"""What the admin API takes: closed lists of fields, so that nothing else can be set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from ..errors import BadRequest
from ..periods import check_period
from ..records import NANO_PER_USD
from ..settings import NanoUSD, TenantId, nano_usd

MAX_BODY = 64 * 1024
"""Bytes that a request to the admin API may have."""

MAX_PAGE = 1000
"""Rows that one answer may have."""

MAX_COUNT = 2**53
"""The largest count of tokens: every reader of JSON has it exactly."""

MAX_ADJUSTMENT = 10**9 * NANO_PER_USD
"""Nano-USD that one adjustment may be: so that no few of them leave what a database's integer can hold."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("printable characters only")
    return text


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # JSON's true would be taken for a 1
        raise ValueError("a number")
    return value


# A number may be followed by nothing: "1_000", " 5" and "nan" are no seconds.
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
# A '+' in a query is a space once it has been decoded.
_SPACED_OFFSET = re.compile(r"(T[0-9:.]+) ([0-9]{2}:?[0-9]{2})\Z")


def moment(value: Any) -> float:
    """A point in time in Unix seconds, from those or from ISO 8601 (UTC where it names no zone). Raises ValueError."""
    text = str(value)
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        at = datetime.fromisoformat(_SPACED_OFFSET.sub(r"\1+\2", text))
    except ValueError:
        raise ValueError("Unix seconds, or ISO 8601 such as 2026-01-31 or 2026-01-31T12:00:00Z") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def signed_nano_usd(value: Any) -> int:
    """As ``nano_usd``, and with a sign; not zero, and not so much that sums of a few could not be kept."""
    text = str(value)
    nano = -nano_usd(text[1:]) if text.startswith("-") else nano_usd(text)
    if nano == 0 or abs(nano) > MAX_ADJUSTMENT:
        raise ValueError("an amount in USD: not 0, at most 1000000000 either way, at most 9 decimals")
    return nano


def _no_repeats(values: list[str] | None) -> list[str] | None:
    return None if values is None else list(dict.fromkeys(values))


# What a log line, a terminal and every database can hold.
Name = Annotated[str, Field(max_length=256), AfterValidator(_printable)]
ModelName = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]
Models = Annotated[list[ModelName], Field(max_length=1000), AfterValidator(_no_repeats)]

USD = {"type": "number", "description": "US dollars, at most 9 decimals; exact, read from the text."}
Usd = Annotated[NanoUSD, WithJsonSchema({**USD, "minimum": 0, "maximum": 4611686018.427387904})]
SignedUsd = Annotated[
    int, BeforeValidator(signed_nano_usd), WithJsonSchema({**USD, "minimum": -1e9, "maximum": 1e9, "not": {"const": 0}})
]
Tokens = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT)]
Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]
Period = Annotated[
    str,
    Field(max_length=16, description="none, daily, weekly, monthly (UTC), or a duration such as 30m, 12h, 7d"),
    AfterValidator(check_period),
]
Moment = Annotated[
    float,
    BeforeValidator(moment),
    WithJsonSchema(
        {"type": "string", "description": "Unix seconds, or ISO 8601 (UTC where no zone is named)."}, mode="validation"
    ),
]
Seconds = Annotated[float, BeforeValidator(_no_bool)]
_MetadataKey = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_printable)]
_MetadataValue = Annotated[str, Field(max_length=512), AfterValidator(_printable)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


# The JSON name of a field, where the record has another.
_RECORD_NAMES = {"budget_usd": "budget", "soft_limit_usd": "soft_limit", "budget_period": "period"}


class TenantChange(_Closed):
    """Settable fields of a tenant. Those that are sent change; ``null`` takes a limit away; all others stay."""

    name: Name = ""
    budget_usd: Usd | None = None
    budget_tokens: Tokens | None = None
    budget_period: Period = "none"
    soft_limit_usd: Usd | None = None
    max_output_tokens: Count | None = None
    rate_requests: Count | None = None
    rate_tokens: Count | None = None
    concurrency: Count | None = None
    allowed_models: Models | None = None
    enabled: Annotated[bool, Field(strict=True)] = True
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], Field(max_length=16)] = {}

    def for_record(self) -> dict[str, Any]:
        """What was sent, by the names that the record has."""
        found = {}
        for name in self.model_fields_set:
            value = getattr(self, name)
            found[_RECORD_NAMES.get(name, name)] = tuple(value) if isinstance(value, list) else value
        return found


class NewTenant(TenantChange):
    """A tenant to be made."""

    id: TenantId


class NewKey(_Closed):
    """A key to be made. ``budget_usd`` is what it may spend of its tenant's budget, in the tenant's period.

    ``rate_requests``, ``rate_tokens`` and ``concurrency`` limit it within its tenant's limits of rate.
    """

    name: Name = ""
    expires_in_seconds: Seconds | None = Field(default=None, gt=0, le=10 * 365 * 86400)
    budget_usd: Usd | None = None
    rate_requests: Count | None = None
    rate_tokens: Count | None = None
    concurrency: Count | None = None
    allowed_models: Models | None = None
    also_tenants: Annotated[list[TenantId], Field(max_length=100), AfterValidator(_no_repeats)] = Field(
        default=[], description="Other tenants that the key may act for."
    )


class Rotation(_Closed):
    """How long the old key goes on working beside the new one, in seconds."""

    overlap_seconds: Seconds = Field(default=0.0, ge=0, le=30 * 86400)


class NewAdjustment(_Closed):
    """A credit (positive) or a debit (negative) on what the tenant may spend in the current period.

    The same ``id`` is booked once, however often it is sent.
    """

    amount_usd: SignedUsd
    reason: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]
    id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,128}$")


class StatsQuery(_Closed):
    """Which calls are summed up."""

    tenant: TenantId | None = None
    since: Moment | None = None


class TenantsQuery(_Closed):
    """Which page of tenants."""

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    after: TenantId | None = Field(default=None, description="The last id of the page before.")


class KeysQuery(_Closed):
    """Which page of keys."""

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    after: Name | None = Field(default=None, description="The last id of the page before.")


class AdjustmentsQuery(_Closed):
    """How many of the newest adjustments."""

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)


class RecordsQuery(_Closed):
    """Which records. CSV has all of the range: ``limit`` and ``cursor`` are for JSON."""

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    cursor: Name | None = Field(default=None, description="The ``next`` of the page before.")
    since: Moment | None = Field(default=None, description="Begun at or after.")
    until: Moment | None = Field(default=None, description="Begun before.")
    model: ModelName | None = None
    format: Literal["json", "csv"] | None = Field(default=None, description="In place of an Accept header.")


T = TypeVar("T", bound=BaseModel)


def read(kind: type[T], body: bytes) -> T:
    """A body as its model; amounts are read by Decimal from the text. Raises BadRequest (400 or 422)."""
    try:
        data = json.loads(
            body or b"{}", parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_no_duplicates
        )
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON.", code="invalid_json") from None
    return checked(kind, data)


def read_query(kind: type[T], pairs: Iterable[tuple[str, str]]) -> T:
    """A query as its model. Raises BadRequest (422)."""
    data: dict[str, str] = {}
    for name, value in pairs:
        if name in data:  # which of the two counts, readers disagree
            raise BadRequest("A query parameter is given twice.", status=422)
        data[name] = value
    return checked(kind, data)


def checked(kind: type[T], data: Any) -> T:
    """Data as its model. Raises BadRequest (422) that names what is wrong, never what was sent."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False)[:10]
        told = "; ".join(
            f"{'.'.join(map(str, fault['loc']))[:100] or 'body'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in faults
        )
        param = str(faults[0]["loc"][0])[:100] if faults[0]["loc"] else None
        raise BadRequest(f"{_sayable(told)}.", status=422, param=param and _sayable(param)) from None


def _sayable(text: str) -> str:
    """Text that is UTF-8: the name of an unknown field may hold half a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is given twice")
    return found
