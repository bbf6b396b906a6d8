"""The names that an operator makes up: aliases, patterns, weights and fallbacks, and what is wrong with some of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.base import Adapter
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.errors import NotFound
from asgi_llm_gateway.proxy.providers import router_of
from asgi_llm_gateway.proxy.routing import Model, Router
from asgi_llm_gateway.proxy.ways import Hedge, Place
from asgi_llm_gateway.records import Identity, Tenant
from asgi_llm_gateway.settings import FileConfig, Settings, SettingsError

ANYBODY = Identity(Tenant("t"), None)


def router(models: Mapping[str, Sequence[str] | Model], *providers: str) -> Router:
    """Providers "a", "b", "c" (or those that are named) and these names."""
    adapters = [OpenAIAdapter(name, f"http://{name}.example/v1", models=()) for name in providers or ("a", "b", "c")]
    return Router(adapters, models)


def told(places: Sequence[Place]) -> list[str]:
    """The targets, in order."""
    return ["/".join(place.target) for place in places]


def loaded(models: dict[str, Any], **providers: Any) -> Router:
    """The router that a settings file makes."""
    given = {name: {"type": "openai", "base_url": f"http://{name}/v1"} for name in ("a", "b")} | providers
    return router_of(Settings.load({}), FileConfig.model_validate({"providers": given, "models": models}))


# -- aliases and weights -----------------------------------------------------------------------------------------------


def test_a_name_may_stand_for_another_name() -> None:
    """And that for its targets, which share its weight by their own."""
    found = router({
        "fast": Model([("a/x", 3.0), ("b/x", 1.0)], "weighted"),
        "any": Model([("fast", 8.0), ("c/x", 2.0)], "weighted"),
    }).way("any")  # fmt: skip
    assert {place.target.provider: place.weight for place in found.places} == {"a": 6.0, "b": 2.0, "c": 2.0}


def test_a_target_that_stands_there_twice_has_the_weight_of_both() -> None:
    """And is tried once."""
    found = router({"m": Model([("a/x", 1.0), ("b/x", 2.0), ("a/x", 3.0)], "weighted")}).way("m")
    assert {place.target.provider: place.weight for place in found.places} == {"a": 4.0, "b": 2.0}
    assert told(found.places) == ["a/x", "b/x"]


@given(st.lists(st.tuples(st.sampled_from(["n1", "n2", "c/x"]), st.floats(0.01, 100)), min_size=1, max_size=4))
def test_the_weights_of_a_name_add_up(targets: list[tuple[str, float]]) -> None:
    """However they are nested."""
    made = router({
        "n1": Model([("a/x", 5.0), ("b/x", 0.5)], "weighted"),
        "n2": Model([("n1", 2.0), ("c/y", 7.0)], "weighted"),
        "m": Model(targets, "weighted"),
    })  # fmt: skip
    assert sum(place.weight for place in made.way("m").places) == pytest.approx(sum(weight for _, weight in targets))


def test_all_names_of_a_target_share_what_is_known_of_its_health() -> None:
    """What one name's calls find out, the others know."""
    made = router({"m": ["a/x"], "n": Model(["b/y"], fallbacks=["m"]), "k": ["m"], "p-*": ["a/*"]})
    healths = {id(made.way(name).places[0].health) for name in ("m", "k", "a/x", "p-x")}
    healths.add(id(made.way("n").fallbacks[0].health))
    assert len(healths) == 1
    assert made.way("a/other").places[0].health is not made.way("m").places[0].health


# -- fallbacks ---------------------------------------------------------------------------------------------------------


def test_fallbacks_come_after_the_targets_each_once() -> None:
    """What is among the targets already is no fallback."""
    found = router({"m": Model(["a/x", "b/x"], fallbacks=["b/x", "n", "c/x"]), "n": ["a/x", "c/x"]}).way("m")
    assert told(found.places) == ["a/x", "b/x"]
    assert told(found.order(ANYBODY)) == ["a/x", "b/x", "c/x"]


def test_two_names_may_be_each_others_fallback() -> None:
    """Nobody goes round: a fallback's own fallbacks do not count."""
    made = router({"m": Model(["a/x"], fallbacks=["n"]), "n": Model(["b/x"], fallbacks=["m"])})
    assert told(made.way("m").order(ANYBODY)) == ["a/x", "b/x"]
    assert told(made.way("n").order(ANYBODY)) == ["b/x", "a/x"]


def test_a_fallback_that_leads_back_by_way_of_others_ends() -> None:
    """Its targets may have fallbacks that have it among theirs."""
    made = router({
        "one": Model(["two"]),
        "two": Model(["a/x"], fallbacks=["three"]),
        "three": Model(["one", "b/x"]),
    })  # fmt: skip
    assert told(made.way("two").order(ANYBODY)) == ["a/x", "b/x"]
    assert told(made.way("three").order(ANYBODY)) == ["a/x", "b/x"]
    assert told(made.way("one").order(ANYBODY)) == ["a/x", "b/x"]


def test_the_fallbacks_of_an_alias_hold_for_the_alias() -> None:
    """They bear the name that a caller must be allowed to use."""
    found = router({"m": ["n"], "n": Model(["a/x"], fallbacks=["b/x"])}).way("m")
    assert [(place.target.provider, place.name) for place in found.fallbacks] == [("b", "b/x")]
    assert told(found.order(Identity(Tenant("t", allowed_models=("m",)), None))) == ["a/x"]


_NAMES = ["n0", "n1", "n2", "n3"]
_TARGETS = st.lists(st.sampled_from([*_NAMES, "a/x", "b/x", "c/x"]), min_size=1, max_size=3)


@given(
    st.lists(
        st.tuples(_TARGETS, st.lists(st.sampled_from([*_NAMES, "a/x", "b/y"]), max_size=3)), min_size=4, max_size=4
    )
)
def test_any_names_end_in_targets_or_are_refused_as_a_circle(
    graph: list[tuple[list[str], list[str]]],
) -> None:
    """Never an endless way; a circle is one only if targets (not fallbacks) lead round."""
    models = {name: Model(targets, fallbacks=later) for name, (targets, later) in zip(_NAMES, graph, strict=True)}

    def circular(name: str, via: tuple[str, ...]) -> bool:
        return name in via or any(circular(str(one), (*via, name)) for one in models[name].targets if one in models)

    if any(circular(name, ()) for name in _NAMES):
        with pytest.raises(SettingsError, match=r"lead back to itself \(n\d -> "):
            router(models)
        return
    made = router(models)
    for name in _NAMES:
        order = told(made.way(name).order(ANYBODY))
        assert len(order) == len(set(order))
        direct = {one for one in models[name].targets if "/" in str(one)}
        assert direct <= set(order)


# -- patterns ----------------------------------------------------------------------------------------------------------

PATTERNS = router(
    {
        "gpt-*": ["a/gpt-*"],
        "gpt-5*": Model([("b/gpt-5*", 1.0), ("a/gpt-5*", 1.0)], fallbacks=["c/gpt-5*"]),
        "gpt-5-exact": ["c/y"],
        "team-*": ["*"],
        "best-*": ["gpt-5"],
        "c/*": ["a/c-*"],
    }
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-4", ["a/gpt-4"]),
        ("gpt-", ["a/gpt-"]),
        ("gpt-5", ["b/gpt-5", "a/gpt-5", "c/gpt-5"]),
        ("gpt-5.2-mini", ["b/gpt-5.2-mini", "a/gpt-5.2-mini", "c/gpt-5.2-mini"]),
        ("gpt-5-exact", ["c/y"]),
        ("team-gpt-4", ["a/gpt-4"]),
        ("team-team-gpt-4", None),
        ("team-b/z", ["b/z"]),
        ("best-of-all", ["b/gpt-5", "a/gpt-5", "c/gpt-5"]),
        ("c/anything", ["a/c-anything"]),
        ("b/z", ["b/z"]),
    ],
)
def test_a_pattern_stands_for_names_and_its_star_for_the_rest(name: str, expected: list[str] | None) -> None:
    """An exact name first, then the longest pattern, then provider/model; a pattern is not used twice in one name."""
    if expected is None:
        with pytest.raises(NotFound):
            PATTERNS.way(name)
    else:
        assert told(PATTERNS.way(name).order(ANYBODY)) == expected


@pytest.mark.parametrize("name", ["team-", "team-nothing", "team-team-", "nothing", "GPT-4", ""])
def test_a_name_of_a_pattern_that_leads_nowhere_does_not_exist(name: str) -> None:
    """404 for the client that made it up: the settings are in order."""
    with pytest.raises(NotFound) as caught:
        PATTERNS.way(name)
    assert caught.value.error_code == "model_not_found"


def test_a_pattern_goes_before_what_a_provider_lists_itself() -> None:
    """``gpt-5`` of OpenAI's list goes where the operator sends ``gpt-*``."""
    made = loaded({"gpt-*": {"targets": ["b/gpt-*"]}}, openai={"api_key": "k"})
    assert "gpt-5" in made.models
    assert told(made.way("gpt-5").places) == ["b/gpt-5"]
    assert told(made.way("openai/gpt-5").places) == ["openai/gpt-5"]


def test_a_pattern_may_lead_to_a_vendors_own_name() -> None:
    """Also to one that it matches itself."""
    made = loaded({"gpt-*": {"targets": ["gpt-5"]}, "*": {"targets": ["gpt-5"]}}, openai={"api_key": "k"})
    assert told(made.way("gpt-99").places) == ["openai/gpt-5"]
    assert told(made.way("anything").places) == ["openai/gpt-5"]


def test_a_server_that_only_speaks_like_a_vendor_lists_none_of_its_models() -> None:
    """What is not known to be there is not listed, and can be asked for all the same."""
    made = loaded(
        {}, openai={"base_url": "http://proxy/v1"}, mine={"type": "openai", "base_url": "http://h/v1", "models": ["m"]}
    )
    assert [name for name in made.models if name.startswith(("a/", "b/"))] == []
    assert {"mine/m", "gpt-5"} <= set(made.models)
    assert told(made.way("a/gpt-5").places) == ["a/gpt-5"]


def test_a_name_with_its_providers_own_in_front_is_whole() -> None:
    """``openrouter/auto`` is called so at OpenRouter itself, for a client and as a target."""
    made = loaded({"any": {"targets": ["openrouter/auto"]}}, openrouter={"api_key": "k"})
    assert told(made.way("openrouter/auto").places) == told(made.way("any").places) == ["openrouter/openrouter/auto"]
    assert told(made.way("openrouter/x/y").places) == ["openrouter/x/y"]


def test_what_is_listed_can_be_asked_for() -> None:
    """A pattern that takes a provider's listed name and leads nowhere takes it off the list; the rest is still there."""
    adapters: list[Adapter] = [OpenAIAdapter("openai", "http://o/v1", models=["gpt-5", "o3"]), EchoAdapter()]
    made = Router(adapters, {"gpt-*": ["none-*"]})
    assert set(made.models) == {"o3", "echo"}
    for name in made.models:
        made.way(name)


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({"m": Model([])}, ["models.m", "no targets"]),
        ({"m": Model(["m"])}, ["models.m", "m -> m"]),
        ({"m": Model(["n"]), "n": Model(["k"]), "k": Model(["m"])}, ["lead back", "m -> n -> k -> m"]),
        ({"m": Model(["nobody/x"])}, ["models.m", "nobody", "a, b, c"]),
        ({"m": Model(["a/x"], fallbacks=["nobody/x"])}, ["models.m", "nobody"]),
        ({"m": Model(["a/x"], fallbacks=["nothing"])}, ["models.m", "'nothing' is no target"]),
        ({"m": Model(["n"]), "n": Model(["nobody/x"])}, ["models.n", "nobody"]),
        ({"p-*": Model(["nobody/*"])}, ["models.p-*", "nobody"]),
        ({"p-*": Model(["a/*"], fallbacks=["nobody/*"])}, ["models.p-*", "nobody"]),
        ({"p-*": Model(["nothing"])}, ["models.p-*", "'nothing' is no target"]),
        ({"p-*": Model([])}, ["models.p-*", "no targets"]),
        ({"m": Model(["a/*"])}, ["models.m", "'a/*'", "none for it"]),
        ({"m": Model(["a/x"], fallbacks=["b/*"])}, ["models.m", "'b/*'"]),
        ({"a*b": Model(["a/x"])}, ["models.a*b", "end of a name"]),
        ({"m": Model(["a/x"], cast(Any, "fastest"))}, ["models.m", "fastest", "least_pending"]),
        *(({"m": Model([("a/x", bad)])}, ["models.m", "weight of 'a/x'"]) for bad in (0.0, -1.0, float("inf"), float("nan"))),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_meant_is_refused_at_the_start(models: dict[str, Any], words: list[str]) -> None:
    """Which one, and what is wrong with it."""
    with pytest.raises(SettingsError) as caught:
        router(models)
    for word in words:
        assert word in str(caught.value)


def test_a_fallback_needs_targets_before_it() -> None:
    """Of a model that has a price only, nothing is to be routed; of one with fallbacks, something was forgotten."""
    assert "priced" not in loaded({"priced": {"usd_per_million_in": 1}}).models
    with pytest.raises(SettingsError, match=r"models\.m.*no targets"):
        loaded({"m": {"fallbacks": ["a/x"]}})


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"targets": [{"target": "a/x", "weight": 0}]}, "weight"),
        ({"targets": [{"target": "a/x", "weight": -1}]}, "weight"),
        ({"targets": [{"target": "a/x", "wait": 1}]}, "wait"),
        ({"targets": ["a/x"], "balance": "fastest"}, "balance"),
        ({"targets": ["a/x"], "hedge_after_ms": 0}, "hedge_after_ms"),
        ({"targets": ["a/x"], "hedge_max_usd": "much"}, "hedge_max_usd"),
        ({"targets": ["a/x"], "fallback": ["b/x"]}, "fallback"),
    ],
)
def test_a_wrong_setting_of_a_model_is_named(tmp_path: Any, fields: dict[str, Any], word: str) -> None:
    """When the file is read."""
    with pytest.raises(ValueError, match=word):
        FileConfig.model_validate({"models": {"m": fields}})


def test_the_file_says_all_of_it() -> None:
    """Weights, balance, fallbacks, hedges, as they are written there."""
    made = loaded({
        "m": {
            "targets": [{"target": "a/x", "weight": 3}, "b/x"],
            "balance": "least_pending",
            "fallbacks": ["echo"],
            "hedge_after_ms": 1500,
            "hedge_max_usd": "0.02",
        },
        "n": {"targets": ["m"], "hedge_after_ms": 1},
    })  # fmt: skip
    found = made.way("m")
    assert [(place.target.provider, place.weight) for place in found.places] == [("a", 3.0), ("b", 1.0)]
    assert (found.balance, found.hedge) == ("least_pending", Hedge(1.5, 20_000_000))
    assert told(found.fallbacks) == ["echo/echo"]
    assert made.way("n").hedge == Hedge(0.001, 100_000_000)  # ten cents, where nothing is said
    assert made.way("b/x").hedge is None


@pytest.mark.parametrize(
    "url", ["http://", "http://user@host/v1", "http://host:port/v1", "http://host/a b", "http://[::1/v1"]
)
def test_a_url_that_nothing_can_be_sent_to_is_told_at_the_start(url: str) -> None:
    """And not to the first caller."""
    with pytest.raises(SettingsError, match=r"^\[providers\.own\]: (?!.*providers)"):
        loaded({}, own={"type": "openai", "base_url": url})


def test_many_names_are_looked_up_and_few_are_remembered() -> None:
    """Clients make names up; neither their ways nor their health fill the memory."""
    made = router({"p-*": ["a/*"]})
    for at in itertools.chain(range(10_100), range(10)):
        made.way(f"p-{at}")
    assert len(made._found) <= 10_000
    assert len(made._health) <= 10_000
