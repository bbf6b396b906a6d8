"""The order in which a call tries its targets: shares of the calls by weight, by chance or by what is pending."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.proxy.health import BreakerRules, Health
from asgi_llm_gateway.proxy.ways import Balance, Place, Way
from asgi_llm_gateway.records import ApiKey, Identity, Target, Tenant

ANYBODY = Identity(Tenant("t"), None)
ECHO = EchoAdapter()


def place(name: str, weight: float = 1.0, *, pending: int = 0, asked: str = "") -> Place:
    """A target at a provider of that name."""
    health = Health(BreakerRules())
    health.pending = pending
    return Place(Target(name, "x"), ECHO, health, weight, asked)


def way(weights: dict[str, float], balance: Balance = "weighted", **pending: int) -> Way:
    """A way with so much weight on each target."""
    return Way(tuple(place(name, weight, pending=pending.get(name, 0)) for name, weight in weights.items()), balance)


def names(places: Any) -> list[str]:
    """The providers, in order."""
    return [one.target.provider for one in places]


def test_targets_are_tried_in_the_order_in_which_they_stand() -> None:
    """Where nothing else is asked for, weights and what is pending change nothing."""
    ordered = way({"a": 1, "b": 100, "c": 10}, "ordered", a=50)
    assert all(names(ordered.order(ANYBODY)) == ["a", "b", "c"] for _ in range(100))


@pytest.mark.parametrize(
    "weights",
    [{"a": 1, "b": 1}, {"a": 3, "b": 1}, {"a": 1, "b": 2, "c": 7}, {"a": 1e-6, "b": 3e-6}, {"a": 0.001, "b": 1000},
     {"a": 1e6, "b": 1e6}],
)  # fmt: skip
def test_each_target_is_first_for_its_share_of_the_calls(weights: dict[str, float]) -> None:
    """Within four standard deviations of 20,000 calls, also where the weights are tiny or huge."""
    random.seed(20_260_101)
    calls = 20_000
    ways = way(weights)
    first = Counter(names(ways.order(ANYBODY))[0] for _ in range(calls))
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(first[name] - calls * share) <= 4 * (calls * share * (1 - share)) ** 0.5


def test_the_second_is_drawn_by_weight_from_those_that_are_left() -> None:
    """So that a target's failure spreads its calls over the others by their weights."""
    random.seed(20_260_102)
    ways = way({"a": 100, "b": 3, "c": 1})
    second = Counter(order[1] for order in (names(ways.order(ANYBODY)) for _ in range(20_000)) if order[0] == "a")
    assert second["b"] / second.total() == pytest.approx(0.75, abs=0.02)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(1e-300, 1e300), min_size=1))
def test_nobody_is_left_out_and_nobody_is_twice_in_an_order(weights: dict[str, float]) -> None:
    """Whatever the weights."""
    for balance in ("ordered", "weighted", "least_pending"):
        order = names(way(weights, balance).order(ANYBODY))
        assert sorted(order) == sorted(weights)


def test_the_target_with_the_fewest_pending_calls_comes_first() -> None:
    """For its weight: twice the weight may have twice the calls."""
    for _ in range(50):
        assert names(way({"a": 1, "b": 1, "c": 1}, "least_pending", a=2, b=0, c=1).order(ANYBODY)) == ["b", "c", "a"]
        assert names(way({"a": 1, "b": 4}, "least_pending", a=1, b=5).order(ANYBODY)) == ["b", "a"]
        assert names(way({"a": 1, "b": 4}, "least_pending", a=1, b=8).order(ANYBODY)) == ["a", "b"]


def test_among_equals_chance_decides() -> None:
    """Else an idle house would ask the first one only."""
    random.seed(20_260_103)
    idle = way({"a": 1, "b": 1}, "least_pending")
    first = Counter(names(idle.order(ANYBODY))[0] for _ in range(1000))
    assert 400 < first["a"] < 600


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=5))
def test_calls_that_stay_are_spread_by_weight(weights: list[float]) -> None:
    """Each call goes to the first of the order and stays: no target ever has over its share by more than one call."""
    ways = way({str(at): weight for at, weight in enumerate(weights)}, "least_pending")
    whole = sum(weights)
    for calls in range(1, 40):
        best = ways.order(ANYBODY)[0]
        best.health.pending += 1
        assert best.health.pending <= calls * best.weight / whole + len(weights)


def test_a_fallback_comes_after_all_targets_and_only_for_those_who_may_use_its_name() -> None:
    """The tenant's list and the key's, both; where there is none, everybody may."""
    first, own, dear = place("a"), place("b", asked="own"), place("c", asked="dear")
    both = Way((first,), fallbacks=(own, dear))
    assert names(both.order(ANYBODY)) == ["a", "b", "c"]
    assert names(both.order(Identity(Tenant("t", allowed_models=("m", "dear")), None))) == ["a", "c"]
    assert names(both.order(Identity(Tenant("t", allowed_models=("m",)), None))) == ["a"]
    assert names(both.order(Identity(Tenant("t", allowed_models=()), None))) == ["a"]
    key = ApiKey("k", "t", "0" * 64, allowed_models=("own",))
    assert names(both.order(Identity(Tenant("t"), key))) == ["a", "b"]
    assert names(both.order(Identity(Tenant("t", allowed_models=("dear",)), key))) == ["a"]


def test_a_target_that_two_fallback_names_lead_to_is_tried_once() -> None:
    """By the name that the caller may use."""
    by_one, by_other = place("b", asked="one"), place("b", asked="other")
    ways = Way((place("a"),), fallbacks=(by_one, by_other))
    assert names(ways.order(ANYBODY)) == ["a", "b"]
    assert names(ways.order(Identity(Tenant("t", allowed_models=("other",)), None))) == ["a", "b"]
