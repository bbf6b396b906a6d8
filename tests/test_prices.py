"""What tokens cost: the specified prices, the listed ones, and a ceiling that no call passes."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway import _price_source
from asgi_llm_gateway.prices import (
    DEFAULT_PRICES,
    FREE,
    LOCAL_PROVIDERS,
    PriceTable,
    ceiling_of,
    cost_of,
    output_for,
    prices_of,
    warm,
)
from asgi_llm_gateway.records import Price, Tier, UnitPrice, Usage
from asgi_llm_gateway.settings import ProviderConfig

GIGA = 10**9  # nano-USD in a dollar


def usd(prompt: str, completion: str, cached: str | None = None, write: str | None = None) -> tuple[int | None, ...]:
    """Prices in USD per million tokens, as they are published."""
    return tuple(None if one is None else int(Decimal(one) * GIGA) for one in (prompt, completion, cached, write))


def shown(price: Price | None) -> tuple[int | None, ...]:
    """The four rates of a price."""
    assert price is not None
    return price.prompt, price.completion, price.cached, price.cache_write


# -- which price -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "prompt", "completion"),
    [
        ("gpt-4", "0.03", "0.06"),
        ("gpt-4-0613", "0.03", "0.06"),
        ("openai/gpt-4", "0.03", "0.06"),
        ("gpt-3.5-turbo", "0.001", "0.001"),
        ("gpt-3.5-turbo-0125", "0.001", "0.001"),
        ("claude-3-opus", "0.015", "0.075"),
        ("claude-3-opus-20240229", "0.015", "0.075"),
        ("claude-3-sonnet", "0.003", "0.015"),
        ("claude-3-sonnet-20240229", "0.003", "0.015"),
    ],
)
def test_the_specified_prices_come_before_the_listed_ones(model: str, prompt: str, completion: str) -> None:
    """USD per 1,000 tokens, whatever the list says today."""
    found = DEFAULT_PRICES.find(model)
    assert found == Price(int(Decimal(prompt) * 1000 * GIGA), int(Decimal(completion) * 1000 * GIGA))


@pytest.mark.parametrize(
    ("model", "provider", "rates"),
    [
        ("gpt-4o", None, usd("2.5", "10", "1.25")),
        ("gpt-4o", "openai", usd("2.5", "10", "1.25")),
        ("openai/gpt-4o", None, usd("2.5", "10", "1.25")),
        ("gpt-4o", "azure", usd("2.5", "10", "1.25")),
        ("gpt-4o", "a-name-of-our-own", usd("2.5", "10", "1.25")),
        ("text-embedding-3-small", None, usd("0.02", "0")),
        ("claude-sonnet-4-5", "anthropic", usd("3", "15", "0.3", "3.75")),
        ("anthropic/claude-sonnet-4.5", "openrouter", usd("3", "15", "0.3", "3.75")),
        ("anthropic/claude-sonnet-4.5", None, usd("3", "15", "0.3", "3.75")),
        ("gemini-2.5-pro", "gemini", usd("1.25", "10", "0.125")),
        ("grok-4", "xai", usd("3", "15", "0.75")),
        ("llama-3.3-70b-versatile", "groq", usd("0.59", "0.79")),
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "together", usd("0.88", "0.88")),
        ("mistral-large-latest", "mistral", usd("2", "6")),
        ("anthropic.claude-sonnet-4-5-20250929-v1:0", "bedrock", usd("3.3", "16.5", "0.33", "4.125")),
    ],
)
def test_other_models_have_their_listed_price(model: str, provider: str | None, rates: tuple[int | None, ...]) -> None:
    """With the provider's own naming, or without a provider."""
    assert shown(DEFAULT_PRICES.find(model, provider)) == rates


def test_a_tier_for_long_prompts_is_taken_over() -> None:
    """gemini-2.5-pro costs twice as much above 200,000 tokens."""
    price = DEFAULT_PRICES.find("gemini-2.5-pro", "gemini")
    assert price is not None
    (tier,) = price.tiers
    assert tier.above == 200_000
    assert (tier.prompt, tier.completion, tier.cached) == usd("2.5", "15", "0.25")[:3]
    short, long = Usage(200_000, 1_000_000), Usage(200_001, 1_000_000)
    assert cost_of(short, price) == 10_250_000_000
    assert cost_of(long, price) == 15_500_002_500


def test_of_prices_by_the_hour_the_dearest_counts() -> None:
    """A call may run into the next hour, and a bound is never too low."""
    assert shown(DEFAULT_PRICES.find("deepseek-chat", "deepseek")) == usd("0.27", "1.1", "0.07")


def test_a_price_of_the_past_does_not_count() -> None:
    """o3 began at 10 and 40 USD, and has cost 2 and 8 since June 2025."""
    assert shown(DEFAULT_PRICES.find("o3")) == usd("2", "8", "0.5")
    long_ago = datetime(2025, 5, 1, tzinfo=UTC).timestamp()
    assert shown(PriceTable(clock=lambda: long_ago).find("o3")) == usd("10", "40", "0.5")


def test_a_price_that_begins_later_counts_from_its_day_on() -> None:
    """A process that runs for weeks changes over by itself."""
    now = [datetime(2025, 6, 9, 23, 59, tzinfo=UTC).timestamp()]
    table = PriceTable(clock=lambda: now[0])
    before = [table.find("o3"), table.find("o3")]
    now[0] += 120
    after = [table.find("o3"), table.find("o3")]
    assert {shown(price) for price in before} == {usd("10", "40", "0.5")}
    assert {shown(price) for price in after} == {usd("2", "8", "0.5")}


def test_the_context_window_is_known_where_it_can_be_true() -> None:
    """Not where longer prompts have a price of their own: then it is out of date."""
    known, outdated = DEFAULT_PRICES.find("gpt-4o"), DEFAULT_PRICES.find("claude-sonnet-4-5", "anthropic")
    assert known is not None
    assert outdated is not None
    assert known.context == 128_000
    assert outdated.tiers[0].above == 200_000
    assert outdated.context is None


@pytest.mark.parametrize(
    "model", ["no-such-model", "gpt-4o-of-mine", "mistral-ocr-latest", "", "/", "x/", "/x", "\0", "é" * 200]
)
def test_a_model_that_nobody_lists_has_no_price(model: str) -> None:
    """Nor one that is priced by the page."""
    assert DEFAULT_PRICES.find(model) is None
    assert DEFAULT_PRICES.find(model) is None  # remembered


@pytest.mark.parametrize("provider", sorted(LOCAL_PROVIDERS))
def test_an_own_machine_costs_nothing_and_is_not_looked_up(provider: str) -> None:
    """Even under the name of a model that others sell; but an own price counts."""
    assert PriceTable().find("gpt-4o", provider) == FREE
    assert PriceTable().find(f"{provider}/gpt-4o") == FREE
    own = Price(7, 9)
    assert PriceTable({f"{provider}/gpt-4o": own}).find("gpt-4o", provider) == own
    assert PriceTable({"gpt-4o": own}).find("gpt-4o", provider) == own


def test_an_own_price_comes_before_all() -> None:
    """By the model's name, by provider and name, and by the name that the client used."""
    own = Price(1, 2)
    assert PriceTable({"gpt-4o": own}).find("gpt-4o", "openai") == own
    assert PriceTable({"openai/gpt-4o": own}).find("gpt-4o", "openai") == own
    assert PriceTable({"fast": own}).find("gpt-4o", "openai", "fast") == own
    assert shown(PriceTable({"fast": own}).find("gpt-4o", "openai", "slow")) == usd("2.5", "10", "1.25")


def test_names_that_clients_make_up_do_not_fill_the_memory() -> None:
    """Neither ours nor the list's own; and a real model is found all the same."""
    table = PriceTable()
    snapshot = _price_source._package().get_snapshot()
    held = len(snapshot._lookup_cache), len(snapshot._provider_cache), len(snapshot._provider_misses)
    for number in range(5_000):
        assert table.find(f"made-up-{number}") is None
    assert len(table._known) <= 4_096
    assert held == (len(snapshot._lookup_cache), len(snapshot._provider_cache), len(snapshot._provider_misses))
    assert shown(table.find("gpt-4o")) == usd("2.5", "10", "1.25")


@pytest.mark.parametrize("model", ["x" * 100_000, "a/" * 50_000, "gpt-4" + "/" * 300])
def test_an_absurd_name_is_refused_at_once(model: str) -> None:
    """No recursion, nothing remembered."""
    table = PriceTable()
    assert table.find(model) is None
    assert not table._known


def test_the_list_is_not_loaded_before_it_is_needed() -> None:
    """Importing the module and finding a specified price load neither the list nor its pydantic; ``warm`` does."""
    code = """
import sys
from asgi_llm_gateway.prices import DEFAULT_PRICES, warm
assert DEFAULT_PRICES.find("gpt-4") and DEFAULT_PRICES.find("llama", "ollama")
print(*{name.split(".")[0] for name in sys.modules} & {"genai_prices", "pydantic", "httpx2"})
print(warm(), "genai_prices" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["", "True True"]


def test_without_the_package_only_our_own_prices_are_known() -> None:
    """As in an installation without the extra."""
    code = """
import sys
sys.modules["genai_prices"] = None
from asgi_llm_gateway.prices import DEFAULT_PRICES, warm
print(warm(), DEFAULT_PRICES.find("gpt-4o"), DEFAULT_PRICES.find("gpt-4") is not None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "None", "True"]


def test_every_listed_price_is_exact() -> None:
    """All of the list, against its own arithmetic: no nano-USD per million tokens is lost, none comes out negative."""
    assert warm()
    seen = 0
    for vendor in _price_source._package().get_snapshot().providers:
        for model in vendor.models:
            price = _price_source._price_of(model, datetime(2026, 11, 1, tzinfo=UTC).date()).price
            if price is None:
                continue
            seen += 1
            rates = [price[:2] + price[3:5], *(tier[1:] for tier in price.tiers)]
            assert all(rate is None or (type(rate) is int and rate >= 0) for row in rates for rate in row)
            assert [tier.above for tier in price.tiers] == sorted({tier.above for tier in price.tiers})
            if not isinstance(model.prices, list) and "output_mtok" in model.prices.__dict__:
                told = model.prices.__dict__["output_mtok"]
                assert price.completion == -(-Fraction(getattr(told, "base", told)) * GIGA // 1)
    assert seen > 1_500


# -- what a call costs -------------------------------------------------------------------------------------------------

SONNET = Price(
    3 * GIGA, 15 * GIGA, cached=300_000_000, cache_write=3_750_000_000,
    tiers=(Tier(200_000, 6 * GIGA, 22_500_000_000, 600_000_000, 7_500_000_000),),
)  # fmt: skip

rates = st.integers(0, 2 * 10**11)
maybe = st.none() | rates
tokens = st.integers(0, 3_000_000)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    """Any price, with any cached and tiered parts, cheaper or dearer."""
    above = sorted(draw(st.sets(tokens, max_size=3)))
    tiers = tuple(Tier(start, draw(rates), draw(rates), draw(maybe), draw(maybe)) for start in above)
    return Price(draw(rates), draw(rates), cached=draw(maybe), cache_write=draw(maybe), tiers=tiers)


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(), 0),
        (Usage(1000, 100), 4_500_000),
        (Usage(1000, 100, cached=1000), 1_800_000),
        (Usage(1000, 100, cached=400, cache_write=500), 3_795_000),
        (Usage(200_001, 0, cached=200_000), 120_006_000),
        (Usage(10, 0, cached=50), 3_000),  # more parts than there is whole
        (Usage(10, 0, cached=50, cache_write=6), 23_700),
    ],
)
def test_each_part_of_a_prompt_has_its_price(usage: Usage, cost: int) -> None:
    """Cached reads, cache writes, the rest, and all of it by the tier that the whole prompt falls into."""
    assert cost_of(usage, SONNET) == cost


@given(tokens, tokens, tokens, tokens, prices())
def test_a_cost_is_rounded_up_once(prompt: int, completion: int, cached: int, write: int, price: Price) -> None:
    """The exact sum of its parts, and less than a nano-USD more."""
    usage = Usage(prompt, completion, cached, write)
    of: Price | Tier = price
    for tier in price.tiers:
        if prompt > tier.above:
            of = tier
    written = min(write, prompt)
    read = min(cached, prompt - written)
    dear = [(of.prompt, prompt - written - read), (of.completion, completion)]
    dear += [(of.prompt if of.cached is None else of.cached, read)]
    dear += [(of.prompt if of.cache_write is None else of.cache_write, written)]
    exact = Fraction(sum(rate * count for rate, count in dear), 1_000_000)
    assert 0 <= cost_of(usage, price) - exact < 1


@given(prices(), tokens, tokens, st.data())
def test_no_call_costs_more_than_its_ceiling(price: Price, bound: int, output: int, data: st.DataObject) -> None:
    """Whatever part of its prompt is cached, whichever tier it falls into."""
    edges = [tier.above + more for tier in price.tiers for more in (0, 1) if tier.above + more <= bound]
    prompt = data.draw(st.sampled_from([bound, *edges]) | st.integers(0, bound))
    usage = Usage(prompt, data.draw(st.integers(0, output)), data.draw(tokens), data.draw(tokens))
    assert cost_of(usage, price) <= ceiling_of(bound, output, price)


@given(rates, rates, tokens, tokens)
def test_the_ceiling_of_a_plain_price_is_its_cost(prompt: int, completion: int, bound: int, output: int) -> None:
    """Nothing is held that the call could not cost."""
    price = Price(prompt, completion)
    assert ceiling_of(bound, output, price) == cost_of(Usage(bound, output), price)


@given(prices(), tokens, st.integers(0, 10**15), tokens)
def test_the_output_that_fits_is_the_most_that_fits(price: Price, bound: int, amount: int, wanted: int) -> None:
    """One token more would be above the amount."""
    most = output_for(amount, bound, price, wanted)
    assert 0 <= most <= wanted
    if ceiling_of(bound, 0, price) > amount:
        assert most == 0
        return
    assert ceiling_of(bound, most, price) <= amount
    assert most == wanted or ceiling_of(bound, most + 1, price) > amount


@given(prices(), tokens, tokens)
def test_what_was_held_for_an_output_pays_for_it(price: Price, bound: int, output: int) -> None:
    """Back and forth: a hold taken for a limit grants that limit."""
    assert output_for(ceiling_of(bound, output, price), bound, price, output) == output


# -- what is not text --------------------------------------------------------------------------------------------------


def test_audio_is_listed_by_the_hour_and_speech_by_the_character() -> None:
    """As prices of a minute and of a million characters; our own table says the same."""
    listed = _price_source.listed("whisper-1", "openai", 1.8e9).price
    assert listed is not None
    assert listed.units == UnitPrice(minute=6_000_000)
    assert _price_source.listed("tts-1", "openai", 1.8e9).price == DEFAULT_PRICES.find("tts-1")
    own = DEFAULT_PRICES.find("whisper-1")
    assert own is not None
    assert own.units == listed.units
    newer = DEFAULT_PRICES.find("gpt-transcribe", "openai")
    assert newer is not None
    assert newer.units == UnitPrice(minute=4_500_000)


def test_tokens_of_images_and_audio_have_their_own_prices() -> None:
    """Where the list tells them: the dearest of one side stands for all media of that side."""
    image, heard = DEFAULT_PRICES.find("gpt-image-1", "openai"), DEFAULT_PRICES.find("gpt-4o-transcribe", "openai")
    newer = DEFAULT_PRICES.find("gpt-image-1.5", "openai")
    assert image is not None
    assert heard is not None
    assert newer is not None
    assert (image.prompt, image.completion, image.units) == (5 * 10**9, 40 * 10**9, UnitPrice(media_in=10 * 10**9))
    assert (heard.prompt, heard.units) == (25 * 10**8, UnitPrice(media_in=6 * 10**9))
    assert newer.units == UnitPrice(media_in=8 * 10**9, media_out=32 * 10**9)


def test_a_chat_costs_what_it_did_where_media_have_other_prices() -> None:
    """Text that is told as such is charged as such."""
    price = DEFAULT_PRICES.find("gpt-audio", "openai")
    assert price is not None
    assert price.units is not None
    usage = Usage(1000, 100, cached=10)
    assert cost_of(usage, price) == cost_of(usage, price._replace(units=None))
    assert ceiling_of(1000, 100, price) == ceiling_of(1000, 100, price._replace(units=None))


def test_a_provider_of_a_local_type_costs_nothing_whatever_it_is_called() -> None:
    """By the type that the settings file gives it, beside those that are called so."""
    providers = {"gpu": ProviderConfig(type="llamacpp"), "far": ProviderConfig(type="openai"), "vllm": ProviderConfig()}
    prices = prices_of({}, providers)
    assert prices.find("qwen", "gpu") == prices.find("gpu/qwen") == prices.find("qwen", "vllm") == FREE
    assert prices.find("no-such-model", "far") is None
    assert prices_of({}, {"far": ProviderConfig(type="openai")}) is DEFAULT_PRICES
