"""What the admin API takes and gives: closed lists of fields, so that nothing else can be set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..errors import BadRequest
from ..records import NANO_PER_USD, ApiKey, Balance, Tenant
from ..settings import NanoUSD, TenantId

MAX_BODY = 64 * 1024
"""Bytes that a request to the admin API may have."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("printable characters only")
    return text


# What a log line, a terminal and every database can hold.
Name = Annotated[str, Field(max_length=256), AfterValidator(_printable)]
ModelName = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class NewTenant(_Body):
    """``POST /api/tenants``."""

    id: TenantId
    name: Name = ""
    budget_usd: NanoUSD | None = None
    allowed_models: list[ModelName] | None = None


class NewKey(_Body):
    """``POST /api/tenants/{id}/keys``."""

    name: Name = ""
    expires_in_seconds: float | None = Field(default=None, gt=0, le=10 * 365 * 86400)


T = TypeVar("T", bound=BaseModel)


def read(kind: type[T], body: bytes) -> T:
    """A body as its model; amounts are read by Decimal from the text. Raises BadRequest (400 or 422)."""
    try:
        data = json.loads(body or b"{}", parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON.", code="invalid_json") from None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False)
        told = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults)
        raise BadRequest(f"{told}.", status=422, param=str(faults[0]["loc"][0]) if faults[0]["loc"] else None) from None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def usd_json(nano: int | None) -> Any:
    """Nano-USD as a JSON number of at most nine decimals, exact."""
    if nano is None:
        return None
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    whole, part = divmod(nano, NANO_PER_USD)
    return orjson.Fragment(f"{sign}{whole}.{f'{part:09d}'.rstrip('0') or '0'}")


def tenant_json(tenant: Tenant, balance: Balance) -> dict[str, Any]:
    """A tenant and where its money stands."""
    remaining = None if tenant.budget is None else tenant.budget - balance.spent - balance.held
    return {
        "id": tenant.id,
        "name": tenant.name,
        "enabled": tenant.enabled,
        "allowed_models": tenant.allowed_models,
        "created": tenant.created,
        "budget_usd": usd_json(tenant.budget),
        "spent_usd": usd_json(balance.spent),
        "held_usd": usd_json(balance.held),
        "remaining_usd": usd_json(remaining),
    }


def key_json(key: ApiKey) -> dict[str, Any]:
    """A key without its secret, which nobody has any more."""
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
    }


def listed(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as a JSON body."""
    return orjson.dumps({"data": rows})
