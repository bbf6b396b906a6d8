"""The table of the admin API: one row for each method of each path."""

from __future__ import annotations

from functools import lru_cache

import orjson
from starlette.responses import Response

from . import calls, keys, tenants, traces
from .answers import (
    AdjustmentsAnswer,
    BookedAnswer,
    KeysAnswer,
    NewKeyAnswer,
    RecordsAnswer,
    StatsAnswer,
    TenantAnswer,
    TenantsAnswer,
)
from .models import (
    AdjustmentsQuery,
    KeysQuery,
    NewAdjustment,
    NewKey,
    NewTenant,
    RecordsQuery,
    Rotation,
    StatsQuery,
    TenantChange,
    TenantsQuery,
)
from .openapi import Operation, document
from .trace_models import TraceCallsAnswer, TracesAnswer, TracesQuery
from .visit import Visit


@lru_cache(maxsize=1)
def _document() -> bytes:
    return orjson.dumps(document(OPERATIONS))


async def openapi(visit: Visit) -> Response:
    """This description."""
    return Response(_document(), media_type="application/json")


_TENANT = "/api/tenants/{id}"
_TAKEN = ((409, "The id is taken."),)

OPERATIONS = (
    Operation("GET", "/api/openapi.json", openapi),
    Operation("GET", "/api/stats", calls.stats, answer=StatsAnswer, query=StatsQuery, tenant=True,
              also=((404, "There is no such tenant, and there are no records of one."),)),
    Operation("GET", "/api/traces", traces.list_traces, answer=TracesAnswer, query=TracesQuery, tenant=True),
    Operation("GET", "/api/traces/{trace_id}", traces.show_trace, answer=TraceCallsAnswer, tenant=True),
    Operation("GET", "/api/tenants", tenants.list_tenants, answer=TenantsAnswer, query=TenantsQuery),
    Operation("POST", "/api/tenants", tenants.create_tenant, 201, TenantAnswer, NewTenant, also=_TAKEN),
    Operation("GET", _TENANT, tenants.show_tenant, answer=TenantAnswer, tenant=True),
    Operation("PUT", _TENANT, tenants.change_tenant, answer=TenantAnswer, body=TenantChange),
    Operation("DELETE", _TENANT, tenants.delete_tenant, 204),
    Operation("GET", _TENANT + "/records", calls.records, answer=RecordsAnswer, query=RecordsQuery, tenant=True,
              csv=True),
    Operation("GET", _TENANT + "/adjustments", tenants.list_adjustments, answer=AdjustmentsAnswer,
              query=AdjustmentsQuery, tenant=True),
    Operation("POST", _TENANT + "/adjustments", tenants.adjust, 201, BookedAnswer, NewAdjustment,
              also=((200, "Booked before."), (409, "Another adjustment was booked with this id."))),
    Operation("GET", _TENANT + "/keys", keys.list_keys, answer=KeysAnswer, query=KeysQuery),
    Operation("POST", _TENANT + "/keys", keys.create_key, 201, NewKeyAnswer, NewKey),
    Operation("DELETE", _TENANT + "/keys/{key_id}", keys.revoke_key, 204),
    Operation("POST", _TENANT + "/keys/{key_id}/rotate", keys.rotate_key, 201, NewKeyAnswer, Rotation,
              also=((409, "The key has an end already."),)),
)  # fmt: skip
