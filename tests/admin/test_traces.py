"""``/api/traces``: calls as they went, chosen, paged, with their steps; each tenant sees its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_llm_gateway import TracingMiddleware
from asgi_llm_gateway.admin.app import Admin
from asgi_llm_gateway.admin.trace_models import TraceAnswer, TraceSteps
from asgi_llm_gateway.records import TraceRecord
from asgi_llm_gateway.stores.memory import MemoryStore

from ..conversation import CHAT, ask
from ..middleware import Stranger
from ..traces.parts import NOON, RECORDS, TENANTS, record
from .conftest import ADMIN_KEY, Office, bearer, exact


async def test_a_call_is_shown_with_all_that_is_known_of_it(office: Office) -> None:
    """Times in milliseconds, money in USD and exact; the list without the steps, the trace with them."""
    office.traces.add(record(1, cost=1_000_000_001, saved=7, cache="miss", stream=True, started=NOON + 0.5))
    shown = exact(await office.get("/api/traces"))
    row = shown["data"][0]
    assert json.loads(json.dumps(row, default=float)) == {
        "trace_id": f"{1:032x}", "request_id": "req-1", "started": NOON + 0.5, "tenant": "team", "key_id": "key_1",
        "model": "fast", "provider": "echo", "method": "POST", "path": "/v1/chat/completions", "status": 200,
        "stream": True, "duration_ms": 500.0, "first_byte_ms": 250.0, "tokens_in": 10, "tokens_out": 5,
        "tokens_cached": 4, "cost_usd": 1.000000001, "saved_usd": 7e-9, "error": None, "aborted": False, "cache": "miss",
        "attempts": 1,
    }  # fmt: skip
    assert (set(row), shown["next"]) == (set(TraceAnswer.model_fields), None)
    (call,) = (await office.get(f"/api/traces/{1:032x}")).json()["data"]
    assert set(call) == set(TraceSteps.model_fields)
    assert [(step["name"], step["start_ms"], step["ms"]) for step in call["steps"]] == [
        ("auth", 0, 50), ("attempt", 100, 300), ("first_token", 250, 0), ("settle", 400, 50), ("last_byte", 500, 0),
    ]  # fmt: skip
    assert call["steps"][1]["detail"] == {"provider": "echo", "model": "echo", "status": 200, "error": None}


async def test_what_is_not_known_is_null(office: Office) -> None:
    """A call that came to nothing has no tokens, which is not zero tokens."""
    office.traces.add(TraceRecord("a" * 32, "r", NOON, "POST", "/v1/embeddings", error="CancelledError", aborted=True))
    (row,) = (await office.get("/api/traces")).json()["data"]
    assert {name for name, value in row.items() if value is None} == {
        "tenant", "key_id", "model", "provider", "status", "duration_ms", "first_byte_ms", "tokens_in", "tokens_out",
        "tokens_cached", "cost_usd", "saved_usd", "cache",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", [5, 4, 3, 2, 1, 0]), ("limit=2", [5, 4]), ("tenant=other", [4]), ("tenant=nobody", []), ("model=slow", [3]),
        ("status=200", [4, 3, 1, 0]), ("status=4xx", [2]), ("status=503", [5]), ("status=5xx", [5]), ("status=1xx", []),
        ("min_ms=500", [5, 4, 3, 2, 0]), ("min_ms=500.001", [3]), ("min_ms=0", [5, 4, 3, 2, 1, 0]),
        ("since=1792065603", [5, 4, 3]), ("until=2026-10-15T12:00:02Z", [1, 0]), ("error=any", [5, 2]),
        ("error=rate_limit_exceeded", [2]), ("error=x", []), ("status=4xx&error=any&tenant=team&min_ms=1", [2]),
    ],
)  # fmt: skip
async def test_calls_are_chosen(office: Office, query: str, found: list[int]) -> None:
    """By tenant, model, status or its class, time taken, time begun, error."""
    more: list[dict[str, Any]] = [
        {}, {"duration": 0.1}, {"status": 429, "error": "rate_limit_exceeded"}, {"model": "slow", "duration": 2.0},
        {"tenant": "other"}, {"status": 503, "error": "upstream_error"},
    ]  # fmt: skip
    for number, fields in enumerate(more):
        office.traces.add(record(number, **fields))
    shown = (await office.get(f"/api/traces?{query}")).json()["data"]
    assert [row["request_id"] for row in shown] == [f"req-{number}" for number in found]


@pytest.mark.parametrize(
    ("name", "value"),
    [("limit", "0"), ("limit", "1001"), ("limit", "x"), ("cursor", "x"), ("cursor", "%00"), ("tenant", "Team"),
     ("tenant", ""), ("model", ""), ("model", "x" * 300), ("status", "600"), ("status", "6xx"), ("status", "ok"),
     ("status", "20"), ("status", "2xx3"), ("status", ""), ("min_ms", "-1"), ("min_ms", "nan"), ("min_ms", "1e3"),
     ("min_ms", "9" * 10), ("since", "soon"), ("until", "nan"), ("error", ""), ("error", "a%20b"), ("key", "x"),
     ("steps", "1")],
)  # fmt: skip
async def test_a_query_that_is_none_is_refused(office: Office, name: str, value: str) -> None:
    """422 that names the parameter, for admins and tenants."""
    await office.team()
    key = (await office.key())["key"]
    for who in (ADMIN_KEY, key):
        answer = await office.get(f"/api/traces?{name}={value}", key=who)
        assert (answer.status, answer.error["param"]) == (422, name)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=RECORDS, limit=st.integers(1, 7), tenant=TENANTS)
def test_pages_give_every_call_once_and_a_tenant_only_its_own(
    records: list[TraceRecord], limit: int, tenant: str | None
) -> None:
    """Whatever the size of a page; to an admin all, or those of one tenant."""
    import asyncio

    async def look() -> None:
        office = Office()
        key = ADMIN_KEY
        if tenant is not None:
            await office.team(tenant)
            key = (await office.key(tenant))["key"]
        for one in records:
            office.traces.add(one)
        seen, cursor = [], ""
        while True:
            page = (await office.get(f"/api/traces?limit={limit}{cursor}", key=key)).json()
            seen += page["data"]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        wanted = [one for one in reversed(records) if tenant is None or one.tenant == tenant]
        wanted.sort(key=lambda one: one.started, reverse=True)
        assert [(row["request_id"], row["started"], row["tenant"]) for row in seen] == [
            (one.request_id, one.started, one.tenant) for one in wanted
        ]
        for one in records:
            answer = await office.get(f"/api/traces/{one.trace_id}", key=key)
            own = [other for other in wanted if other.trace_id == one.trace_id]
            assert answer.status == (200 if own else 404)
            if own:
                assert len(answer.json()["data"]) == len(own)

    asyncio.run(look())


async def test_a_tenant_learns_nothing_of_anothers_calls(office: Office) -> None:
    """One 404 for a trace of another, of nobody, and none at all; one 403 for another's list, existing or not."""
    await office.team()
    await office.team("other")
    key = (await office.key())["key"]
    office.traces.add(record(1, tenant="other"))
    office.traces.add(record(2, tenant=None))
    answers = [await office.get(f"/api/traces/{name}", key=key) for name in ("req-1", "req-2", f"{1:032x}", "none")]
    assert {answer.status for answer in answers} == {404}
    assert len({answer.body for answer in answers}) == 1
    answers = [await office.get(f"/api/traces?tenant={name}", key=key) for name in ("other", "nobody")]
    assert {answer.status for answer in answers} == {403}
    assert len({answer.body for answer in answers}) == 1
    assert (await office.get("/api/traces?tenant=team", key=key)).json()["data"] == []


@pytest.mark.parametrize("name", ["x" * 129, "a b", "%00", "%C3%A9", "'", "..;", "a%2Fb"])
async def test_what_can_be_no_id_is_404(office: Office, name: str) -> None:
    """And no store is asked for it."""
    assert (await office.get(f"/api/traces/{name}")).status == 404


async def test_without_a_store_the_traces_of_this_process_are_shown() -> None:
    """``TracingMiddleware(app)`` and an admin app of one's own, and nothing else: the memory is read."""
    store = MemoryStore()

    async def opened() -> MemoryStore:
        return store

    admin = Admin(admin_key=ADMIN_KEY, tenants=opened, ledger=opened, log=opened).app()
    made = await ask(TracingMiddleware(Stranger()), CHAT)
    name = made.headers["x-request-id"]
    answer = await ask(admin, None, f"/api/traces/{name}", method="GET", headers=[bearer(ADMIN_KEY)])
    (call,) = answer.json()["data"]
    assert (call["trace_id"], call["tenant"]) == (made.headers["x-trace-id"], "default")
    assert [step["name"] for step in call["steps"]] == ["first_byte", "last_byte"]


async def test_the_description_has_both(office: Office) -> None:
    """Parameters with their bounds, answers by name."""
    paths = (await office.get("/api/openapi.json")).json()["paths"]
    listed = paths["/api/traces"]["get"]
    assert {one["name"] for one in listed["parameters"]} == {
        "limit", "cursor", "tenant", "model", "status", "min_ms", "since", "until", "error",
    }  # fmt: skip
    assert "tenant's own key" in listed["description"]
    one = paths["/api/traces/{trace_id}"]["get"]
    assert one["parameters"][0]["in"] == "path"
    assert one["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/TraceCallsAnswer")
