"""Every request is counted once, with labels that say what it was and how it went."""

from __future__ import annotations

import asyncio

import pytest

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.errors import SettingsError
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.meters.exposition import render
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.metrics import MetricsMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.records import Tenant, Usage
from asgi_llm_gateway.stores.memory import MemoryLedger, MemoryStore
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import CHAT, JSON, ask, call, get
from ..metrics_parts import counting, shown, value
from . import DONE, Gate, Stranger, Streamer, counts, words

PAID = {**CHAT, "model": "gpt-4"}
CHATS = "/v1/chat/completions"


async def test_a_call_is_counted_by_method_route_and_status_with_its_seconds_tokens_and_money() -> None:
    """All that the specification names, of one call."""
    with counting() as meters:
        app = MetricsMiddleware(BudgetMiddleware(Stranger((10, 20)), ledger=MemoryLedger()), meters=meters)
        assert (await ask(app, PAID)).status == 200
        found = shown(meters)
    assert value(found, "http_requests_total", method="POST", route=CHATS, status="200") == 1
    assert value(found, "http_request_duration_seconds_count", route=CHATS, method="POST") == 1
    assert value(found, "http_request_duration_seconds_sum") > 0
    assert value(found, "llm_tokens_total", model="gpt-4", tenant="default", type="prompt") == 10
    assert value(found, "llm_tokens_total", model="gpt-4", tenant="default", type="completion") == 20
    assert value(found, "llm_cost_total", tenant="default") == 0.0015
    assert value(found, "llm_calls_total", model="gpt-4", tenant="default") == 1
    assert value(found, "http_requests_in_flight") == 0


async def test_alone_it_counts_in_the_meters_of_the_process_and_the_host_apps_registry_shows_them() -> None:
    """``MetricsMiddleware(app)`` and nothing else; the tokens as the app's answer tells them."""
    from prometheus_client import generate_latest

    from asgi_llm_gateway.meters.shared import shared_meters

    before = value(shown(shared_meters()), "llm_tokens_total")
    assert (await ask(MetricsMiddleware(Stranger((3, 4))), CHAT)).status == 200
    assert value(shown(shared_meters()), "llm_tokens_total") == before + 7
    page = generate_latest().decode()
    assert "http_requests_total{" in page
    assert "python_info" in page  # the host app's own


async def test_a_request_that_is_no_call_is_counted_too() -> None:
    """Health checks, pages and whatever else the host app serves."""
    with counting() as meters:
        layer = MetricsMiddleware(Stranger(), meters=meters, paths={"/static/*": "open", "/ask": "metered"})
        for path in ("/health", "/static/a.css", "/static/b.css", "/nobody/knows"):
            await get(layer, path)
        await ask(layer, {}, "/ask")
        await get(layer, CHATS)
        async with call(layer, None, CHATS, method="OPTIONS") as talk:
            await talk.answer()
        found = shown(meters)["http_requests_total"]
    assert {(dict(labels)["method"], dict(labels)["route"]): count for labels, count in found.items()} == {
        ("GET", "/health"): 1,
        ("GET", "/static/*"): 2,
        ("GET", "other"): 1,
        ("POST", "/ask"): 1,
        ("GET", CHATS): 1,
        ("OPTIONS", CHATS): 1,
    }


async def test_what_a_websocket_and_a_lifespan_say_is_left_alone() -> None:
    """No observer's affair."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: object) -> None:
        raise AssertionError("nobody asks")

    with counting() as meters:
        layer = MetricsMiddleware(app, meters=meters)
        for kind in ("websocket", "lifespan", "yet-to-come"):
            await layer({"type": kind, "path": "/"}, nothing, nothing)
        assert seen == ["websocket", "lifespan", "yet-to-come"]
        assert "http_requests_total" not in shown(meters)


@pytest.mark.parametrize("path", [CHATS, "/page"])
async def test_an_app_that_crashes_is_counted_as_500_and_a_client_that_leaves_as_499(path: str) -> None:
    """Whether the gateway governs the path or not."""

    async def crashing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    with counting() as meters:
        with pytest.raises(ZeroDivisionError):
            await ask(MetricsMiddleware(crashing, meters=meters), CHAT, path)
        gate = Gate(Stranger())
        async with call(MetricsMiddleware(gate, meters=meters), CHAT, path) as talk:
            await gate.reached.wait()
            assert value(shown(meters), "http_requests_in_flight") == 1
            talk.task.cancel()
            await asyncio.wait({talk.task})
        found = shown(meters)
    assert value(found, "http_requests_total", status="500") == 1
    assert value(found, "http_requests_total", status="499") == 1
    assert value(found, "http_requests_total") == 2
    assert value(found, "http_requests_in_flight") == 0


async def test_a_stream_is_timed_to_its_first_byte_and_a_token() -> None:
    """And its trace is the exemplar of the buckets it fell in, for readers that understand exemplars."""
    with counting() as meters:
        app = Streamer([*words(3), counts(4, 3), DONE])
        stack = MetricsMiddleware(
            TracingMiddleware(BudgetMiddleware(app, ledger=MemoryLedger()), traces=TraceLog()), meters=meters
        )
        answer = await ask(stack, {**PAID, "stream": True})
        found = shown(meters)
        page, kind = render(meters, "application/openmetrics-text;version=1.0.0")
    assert value(found, "llm_time_to_first_token_seconds_count", model="gpt-4") == 1
    assert value(found, "llm_time_per_output_token_seconds_count", model="gpt-4") == 1
    assert value(found, "llm_aborted_total") == 0
    assert kind.startswith("application/openmetrics-text")
    shown_as = f'# {{trace_id="{answer.headers["x-trace-id"]}"}}'
    assert sum(shown_as in line for line in page.decode().splitlines()) == 3  # duration, first token, a token


async def test_a_json_answer_has_no_first_token() -> None:
    """It comes whole: that would only be its duration again."""
    with counting() as meters:
        await ask(MetricsMiddleware(BudgetMiddleware(Stranger(), ledger=MemoryLedger()), meters=meters), PAID)
        assert value(shown(meters), "llm_time_to_first_token_seconds_count") == 0


async def test_a_stream_whose_client_left_is_counted_as_aborted_and_paid_for() -> None:
    """Its time a token is not measured: it did not come to its end."""
    with counting() as meters:
        app = BudgetMiddleware(Streamer(words(5), endless=True), ledger=MemoryLedger())
        async with call(MetricsMiddleware(app, meters=meters), {**PAID, "stream": True}) as talk:
            for _ in range(4):
                await talk.next()
            talk.task.cancel()
            await asyncio.wait({talk.task})
        found = shown(meters)
    assert value(found, "llm_aborted_total", kind="stream") == 1
    assert value(found, "llm_cost_total") > 0
    assert value(found, "llm_time_per_output_token_seconds_count") == 0


async def test_refusals_are_counted_by_who_was_refused_and_why() -> None:
    """A budget that is spent and a rate limit that is reached, by tenant; every error by its code."""
    store = MemoryStore()
    keys = {}
    for tenant, budget in (("poor", 1), ("rich", None)):
        await store.add_tenant(Tenant(tenant, budget=budget))
        key, secret = new_key(tenant)
        await store.add_key(key)
        keys[tenant] = [JSON, (b"x-api-key", secret.encode())]
    with counting() as meters:
        inner = RateLimitMiddleware(BudgetMiddleware(Stranger(), ledger=store), requests=2, window=1e7)
        app = MetricsMiddleware(TenantMiddleware(inner, store=store), meters=meters)
        said = [(await ask(app, PAID, headers=keys[name])).status for name in ("poor", "rich", "rich", "rich")]
        assert said == [402, 200, 200, 429]
        assert (await ask(app, PAID, headers=[JSON, (b"x-api-key", b"gw-wrong-key")])).status == 401
        assert (await ask(app, {**PAID, "n": -1}, headers=keys["poor"])).status == 400
        found = shown(meters)
    assert found["llm_budget_exceeded_total"] == {(("tenant", "poor"),): 1}
    assert found["llm_rate_limited_total"] == {(("tenant", "rich"),): 1}
    codes = {dict(labels)["code"]: count for labels, count in found["llm_errors_total"].items()}
    assert codes.pop("would_exceed_budget") == 1
    assert codes.pop("rate_limit_exceeded") == 1
    assert codes.pop("invalid_api_key") == 1
    assert sum(codes.values()) == 1


async def test_what_a_record_says_of_the_cache_is_counted() -> None:
    """Events, and the money that was saved."""

    async def cached(scope: Scope, receive: Receive, send: Send) -> None:
        from asgi_llm_gateway.exchange import exchange_of

        exchange = exchange_of(scope)
        assert exchange is not None
        assert exchange.record is not None
        exchange.record.cache, exchange.record.saved = "hit", 1_500_000
        exchange.exact, exchange.usage = True, Usage(10, 20)
        await Stranger()(scope, receive, send)

    with counting() as meters:
        await ask(MetricsMiddleware(TracingMiddleware(cached, traces=TraceLog()), meters=meters), CHAT)
        found = shown(meters)
    assert value(found, "llm_cache_events_total", event="hit") == 1
    assert value(found, "llm_cache_saved_total") == 0.0015
    assert value(found, "llm_tokens_total") == 0  # none were used


async def test_two_equal_layers_count_once() -> None:
    """Added twice by mistake, it does its work once."""
    with counting() as meters:
        app = BudgetMiddleware(Stranger(), ledger=MemoryLedger())
        await ask(MetricsMiddleware(MetricsMiddleware(app, meters=meters), meters=meters), PAID)
        found = shown(meters)
    assert value(found, "http_requests_total") == value(found, "llm_calls_total") == 1


async def test_tokens_are_not_counted_twice_where_a_ledger_books_them() -> None:
    """The ledger's count is the one that stands, also where a layer of ours is hidden in an app of somebody's."""

    class Host:
        def __init__(self, app: object) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(scope, receive, send)  # type: ignore[operator]

    with counting() as meters:
        app = Host(BudgetMiddleware(Stranger((3, 4)), ledger=MemoryLedger()))
        assert (await ask(MetricsMiddleware(app, meters=meters), PAID)).status == 200
        assert value(shown(meters), "llm_tokens_total") == 7


async def test_labels_that_are_wrong_are_no_reason_to_fail_a_call() -> None:
    """A listener that raises is logged, and the answer goes out."""
    from asgi_llm_gateway import booked

    def broken(record: object) -> None:
        raise ZeroDivisionError

    booked.listen(broken)
    try:
        answer = await ask(BudgetMiddleware(Stranger(), ledger=MemoryLedger()), PAID)
    finally:
        booked.ignore(broken)
    assert answer.status == 200
    assert answer.headers["x-llm-cost-usd"] == "0.00033"


def test_a_setting_that_can_not_be_meant_is_refused_by_name() -> None:
    """When the stack is built, not with the first call."""
    with pytest.raises(ValueError, match="otel='all'"):
        MetricsMiddleware(Stranger(), otel="all")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("METRICS_TOKEN", "short"), ("METRICS_MAX_TENANTS", "-1"), ("METRICS_OTEL", "yes"), ("LOG_FORMAT", "xml")],
)
def test_a_wrong_setting_is_told_by_its_name_and_without_its_value(name: str, wrong: str) -> None:
    """Of a secret nothing is repeated."""
    from asgi_llm_gateway.settings import Settings

    with pytest.raises(SettingsError, match=name) as told:
        Settings.load({name: wrong})
    assert name != "METRICS_TOKEN" or wrong not in str(told.value)
