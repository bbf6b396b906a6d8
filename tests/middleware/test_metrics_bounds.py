"""However many names clients make up, the time series stay few, and nothing is lost from the sums."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.meters.bounds import OTHER, Bound, method_label, route_label, status_label
from asgi_llm_gateway.meters.breakers import breakers
from asgi_llm_gateway.meters.families import COST, TOKENS
from asgi_llm_gateway.meters.meters import Meters
from asgi_llm_gateway.meters.rows import MOST_ROWS, Counts
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.metrics import MetricsMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.records import CallRecord, Tenant, Usage
from asgi_llm_gateway.stores.memory import MemoryLedger, MemoryStore

from ..conversation import CHAT, JSON, ask, call, get
from ..metrics_parts import counting, shown, value
from . import Stranger

MANY = 10_000


def booked_call(tenant: str, model: str, *, status: int = 200, cost: int = 7) -> CallRecord:
    return CallRecord("hold", tenant, model=model, usage=Usage(3, 4), cost=cost, status=status)


def test_ten_thousand_tenants_and_models_are_a_few_hundred_series() -> None:
    """The first ones have their own, the rest is ``other``, and the sums are whole."""
    meters = Meters(max_tenants=20, max_models=10)
    for at in range(MANY):
        meters.booked(booked_call(f"team-{at}", f"model-{at}"))
    found = shown(meters)
    assert len(found["llm_cost_total"]) == 21
    assert len(found["llm_tokens_total"]) <= 2 * 21 * 11
    assert {dict(labels)["tenant"] for labels in found["llm_cost_total"]} == {
        *(f"team-{at}" for at in range(20)),
        OTHER,
    }
    assert value(found, "llm_cost_total", tenant=OTHER) == (MANY - 20) * 7 / 1e9
    assert value(found, "llm_tokens_total") == MANY * 7


async def test_a_client_that_makes_up_names_gets_no_series_for_them() -> None:
    """Models that do not exist, paths, methods and keys: none of it stays behind in the process or on the page."""
    with counting() as meters:
        refusing = Stranger(None, status=404)
        layer = MetricsMiddleware(BudgetMiddleware(refusing, ledger=MemoryLedger()), meters=meters)
        for at in range(1000):
            await ask(layer, {**CHAT, "model": f"made-up-{at}"})
            await get(layer, f"/v1/models/made-up-{at}")
            await get(layer, f"/pages/made-up-{at}")
            async with call(layer, None, "/v1/models", method=f"MADE{at}") as talk:
                await talk.answer()
            await ask(layer, b"", "/v1/chat/completions", headers=[JSON, (b"x-api-key", b"made-up-%d" % at)])
        found = shown(meters)
    text = repr(found)
    assert "made-up" not in text
    assert "MADE" not in text
    assert sum(len(rows) for rows in found.values()) < 200
    assert value(found, "http_requests_total", route="/v1/models/{model}") == 1000
    assert value(found, "http_requests_total", method=OTHER) == 1000
    assert not meters.models.known


async def test_statuses_that_are_none_are_bounded() -> None:
    """An app may answer with any number."""
    with counting() as meters:
        for status in range(100, 1000):
            await ask(MetricsMiddleware(Stranger(None, status=status), meters=meters), None, "/page")
        found = shown(meters)["http_requests_total"]
    assert len(found) < 60
    assert sum(found.values()) == 900


async def test_tenants_are_told_apart_by_their_keys_alone() -> None:
    """One that a client only names in its request gets no series."""
    store = MemoryStore()
    await store.add_tenant(Tenant("team"))
    key, secret = new_key("team")
    await store.add_key(key)
    shows = (b"x-api-key", secret.encode())
    with counting() as meters:
        inner = BudgetMiddleware(Stranger(), ledger=store)
        layer = MetricsMiddleware(TenantMiddleware(inner, store=store), meters=meters)
        for at in range(50):
            await ask(layer, {**CHAT, "model": "gpt-4", "tenant": f"made-up-{at}"}, headers=[JSON, shows])
        assert (await ask(layer, {**CHAT, "model": "gpt-4"}, headers=[JSON, shows])).status == 200
        assert set(meters.tenants.known) == {"team"}


def test_the_label_sets_of_a_metric_are_bounded_as_a_whole() -> None:
    """Many tenants times many models: beyond ten thousand rows all goes to one."""
    counts = Counts(TOKENS, None)
    for at in range(MOST_ROWS + 500):
        counts.add((f"m{at % 150}", f"t{at // 150}", "prompt"))
    assert len(counts.rows) == MOST_ROWS + 1
    assert counts.rows[(OTHER, OTHER, OTHER)].value == 500
    assert sum(row.value for row in counts.rows.values()) == MOST_ROWS + 500


@given(st.lists(st.tuples(st.text(max_size=200), st.integers(0, 10**15)), max_size=60), st.integers(0, 10))
def test_no_bound_is_passed_and_no_amount_is_lost(calls: list[tuple[str, int]], most: int) -> None:
    """Whatever the names are made of."""
    bound, counts = Bound(most), Counts(COST, None)
    for name, amount in calls:
        label = bound.admit(name)
        assert label in (name, OTHER)
        assert label == OTHER or bound.find(name) == name
        counts.add((label,), amount)
    assert len(counts.rows) <= most + 1
    assert sum(row.value for row in counts.rows.values()) == sum(amount for _, amount in calls)


@given(st.text(max_size=50), st.text(max_size=200), st.integers(-10, 2000))
def test_every_label_is_one_of_a_few_words(method: str, path: str, status: int) -> None:
    """No text of a client's comes through."""
    assert method_label(method) in (OTHER, "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
    label = route_label(path)
    assert label in (OTHER, path) or label.endswith(("/*", "/{model}", "/{id}"))
    assert label == OTHER or len(label) < 40
    assert status_label(status) in (OTHER, *(f"{klass}xx" for klass in range(1, 6)), str(status))


def test_breakers_of_made_up_targets_take_no_room_from_those_that_are_open() -> None:
    """Where a pattern leads anywhere, clients make targets."""
    states = [("local", f"made-up-{at}", "closed") for at in range(MANY)]
    read = breakers(lambda: [*states, ("openai", "gpt-4", "open"), ("openai", "gpt-5", "half_open")], most=50)
    readings = list(read())
    assert len(readings) == 52
    assert {reading.labels: reading.value for reading in readings[-2:]} == {
        ("openai", "gpt-4"): 1.0,
        ("openai", "gpt-5"): 0.5,
    }
    assert len(list(read())) == 52
