"""What a call that is not text costs: never more than was held, never nothing, to the nano-USD."""

from __future__ import annotations

import json
import struct
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway._counted import sane, so_far
from asgi_llm_gateway.audio import LEAST_BYTES_PER_SECOND, LEAST_MP3_BYTES_PER_SECOND, seconds_at_most
from asgi_llm_gateway.media_usage import MediaReader
from asgi_llm_gateway.prices import DEFAULT_PRICES, FREE, ceiling_of, cost_of, output_for, prices_of
from asgi_llm_gateway.records import NANO_PER_USD, Amount, Price, Tier, UnitPrice, Units, Usage
from asgi_llm_gateway.settings import ModelConfig
from asgi_llm_gateway.tokens import estimate, exact_bound, prompt_bound
from asgi_llm_gateway.units import applied, applies, ceiling, completed, likely, most, setting_of
from asgi_llm_gateway.wire import MEDIA, METERED, LLMRequest, Route, parse

from .forms import form, part

PATHS = {dialect: path for path, dialect in METERED.items()}
FORM_TYPE = b"multipart/form-data; boundary=xYz"
WORDS = {"speech": {"input": "one two three"}, "moderations": {"input": "one two"}}


def asked(dialect: Any, *parts: bytes, **fields: Any) -> LLMRequest:
    """A request in that dialect; a form where parts are given."""
    route = Route("metered", dialect, PATHS[dialect])
    if parts:
        return parse(route, form(part("model", fields.pop("model", "m").encode()), *parts), FORM_TYPE)
    told = {"model": "m", **({"prompt": "a cat"} if "image" in dialect else {}), **WORDS.get(dialect, {}), **fields}
    return parse(route, json.dumps(told).encode(), b"application/json")


def audio(content: bytes, *more: bytes, model: str = "m", dialect: str = "transcriptions") -> LLMRequest:
    """A transcription of a file."""
    return asked(dialect, part("file", content, filename="a"), *more, model=model)


def wav(
    seconds: float, *, rate: int = 16_000, bits: int = 16, channels: int = 1, tag: int = 1, claims: int = 0
) -> bytes:
    """A WAV file of silence, with an odd chunk before its format."""
    each = rate * channels * bits // 8
    data = bytes(int(seconds * each))
    header = struct.pack("<HHIIHH", tag, channels, rate, each, channels * bits // 8, bits)
    chunks = b"LIST" + struct.pack("<I", 3) + b"abc\0" + b"fmt " + struct.pack("<I", 16) + header
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVE" + chunks + b"data" + struct.pack("<I", claims) + data


def price_of(model: str) -> Price:
    """The default price of a model."""
    found = DEFAULT_PRICES.find(model, "openai")
    assert found is not None
    return found


def usd(text: str) -> int:
    """Dollars in nano-USD."""
    return int(Fraction(text) * NANO_PER_USD)


# -- what is held, and what is charged ---------------------------------------------------------------------------------

_RATE = st.integers(0, 10**11)
_MAYBE = st.one_of(st.none(), _RATE)
_UNITS = st.tuples(*[_MAYBE] * 6).map(lambda rates: UnitPrice(*rates))
_TIERS = st.lists(
    st.builds(lambda above, one, two: Tier(above, one, two), st.integers(0, 5000), _RATE, _RATE), max_size=1
)
_PRICES = st.builds(
    lambda one, two, cached, write, tiers, units: Price(one, two, False, cached, write, tuple(tiers), None, units),
    _RATE, _RATE, _MAYBE, _MAYBE, _TIERS, st.one_of(st.none(), _UNITS),
)  # fmt: skip
_TEXT = st.text(min_size=1, max_size=40)
_SIZES = st.sampled_from([None, "auto", "1024x1024", "1536x1024", "odd"])
_REQUESTS = st.one_of(
    st.builds(lambda n, size, how: asked("images", n=n, size=size, quality=how), st.integers(1, 5), _SIZES,
              st.sampled_from([None, "low", "high"])),
    st.builds(lambda text, speed: asked("speech", input=text, speed=speed), _TEXT, st.floats(0.25, 4)),
    st.builds(lambda size: audio(bytes(size)), st.integers(0, 5000)),
    st.builds(lambda text: asked("moderations", input=text), _TEXT),
    st.builds(lambda count: asked("image_edits", *[part("image[]", b"x", filename="a")] * count), st.integers(1, 3)),
)  # fmt: skip


@given(_REQUESTS, _PRICES, st.data())
def test_no_usage_within_what_was_asked_costs_more_than_was_held(request: LLMRequest, price: Price, data: Any) -> None:
    """Whichever of its tokens are cached, written, audio or images; told in part, in whole, or not at all."""
    bound = most(request, context=price.context)
    units = bound.units or Units()
    prompt = data.draw(st.integers(0, bound.prompt))
    completion = data.draw(st.integers(0, bound.completion))
    part_of = st.integers(0, prompt)
    told = Usage(
        prompt, completion, data.draw(part_of), data.draw(part_of),
        units=Units(data.draw(st.integers(0, units.images)), data.draw(st.integers(0, units.seconds)), 0,
                    data.draw(part_of), data.draw(st.integers(0, completion))),
    )  # fmt: skip
    held = ceiling(request, price)
    by = applied(price, request)
    for usage in (None, told, told._replace(prompt=0, completion=0), told._replace(units=None), estimate(request)):
        used = completed(usage, request, price)
        assert cost_of(used, by) <= held.money
        if held.tokens:
            assert used.total <= held.tokens


@given(_REQUESTS, _PRICES)
def test_what_nobody_told_is_never_free(request: LLMRequest, price: Price) -> None:
    """P5: where anything that was asked for is charged, it costs something, and an estimate says that it is one."""
    used = completed(None, request, price)
    units = price.units
    measured = None
    if request.route.dialect in ("images", "image_edits"):
        measured = units.image if units is not None else None
    elif request.route.dialect == "speech":
        measured = units.characters if units is not None else None
    elif request.route.dialect == "transcriptions":
        measured = units.minute if units is not None else None
    if measured or (price.prompt and price.completion):
        assert cost_of(used, price) > 0
    assert used.estimated or (units is not None and units.characters is not None)


_COUNT = st.integers(0, 10**6)
_USED = st.builds(
    lambda one, two, units: Usage(one, two, units=Units(*units)), _COUNT, _COUNT, st.tuples(*[_COUNT] * 5)
)


@given(_USED, _UNITS, _RATE, _RATE)
def test_the_cost_is_the_exact_sum_rounded_up_once(
    usage: Usage, units: UnitPrice, prompt: int, completion: int
) -> None:
    """P4: in fractions, and rounded at the end only."""
    used = usage.units
    assert used is not None
    heard, made = min(used.media_in, usage.prompt), min(used.media_out, usage.completion)
    media_in = prompt if units.media_in is None else units.media_in
    media_out = completion if units.media_out is None else units.media_out
    million = 10**6
    exact = (
        Fraction((usage.prompt - heard) * prompt + heard * media_in, million)
        + Fraction((usage.completion - made) * completion + made * media_out, million)
        + Fraction(used.seconds * (units.minute or 0), 60)
        + Fraction(used.characters * (units.characters or 0), million)
        + used.images * (units.image or 0)
        + (units.request or 0)
    )
    assert cost_of(usage, Price(prompt, completion, units=units)) == -(-exact.numerator // exact.denominator)


def test_a_call_that_was_refused_costs_nothing() -> None:
    """Not even the fee of a request: it was not made."""
    price = Price(1, 1, units=UnitPrice(image=5, request=7))
    assert completed(Usage(), asked("images"), price) == Usage()
    assert cost_of(Usage(), price) == 0


@given(st.integers(0, 10**6), st.integers(0, 10**5), st.integers(0, 10**9))
def test_a_fee_for_a_request_is_held_with_its_tokens(prompt: int, output: int, fee: int) -> None:
    """Of text as well; and what the rest of a budget pays for leaves room for it."""
    price = Price(3_000_000, 7_000_000, units=UnitPrice(request=fee))
    most_money = ceiling_of(prompt, output, price)
    assert cost_of(Usage(prompt, output), price) in (most_money, 0)
    fits = output_for(most_money, prompt, price, 10**6)
    assert fits >= output
    assert ceiling_of(prompt, fits, price) <= most_money + 1


# -- well-known prices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "fields", "cost"),
    [
        ("dall-e-3", {}, "0.04"),
        ("dall-e-3", {"size": "1024x1792"}, "0.08"),
        ("dall-e-3", {"quality": "hd"}, "0.08"),
        ("dall-e-3", {"quality": "hd", "size": "1792x1024", "n": 1}, "0.12"),
        ("dall-e-3", {"quality": "auto"}, "0.08"),
        ("dall-e-3", {"quality": "auto", "size": "auto"}, "0.12"),
        ("dall-e-3", {"size": "4096x4096"}, "0.08"),
        ("dall-e-2", {"n": 3}, "0.06"),
        ("dall-e-2", {"size": "256x256", "n": 10}, "0.16"),
        ("dall-e-2", {"size": "512x512"}, "0.018"),
    ],
)
def test_an_image_costs_what_its_size_and_quality_do(model: str, fields: dict[str, Any], cost: str) -> None:
    """OpenAI pricing page; what is not known is the dearest that may be meant. Held and charged is the same."""
    request, price = asked("images", model=model, **fields), price_of(model)
    assert ceiling(request, price) == Amount(usd(cost), 0)
    count = fields.get("n", 1)
    assert cost_of(completed(Usage(units=Units(images=count)), request, price), applied(price, request)) == usd(cost)


@pytest.mark.parametrize(("model", "dollars"), [("tts-1", 15), ("tts-1-hd", 30), ("tts-1-1106", 15)])
def test_speech_costs_by_the_character(model: str, dollars: int) -> None:
    """Characters, not bytes; known to the letter, so that nothing about it is an estimate."""
    request, price = asked("speech", model=model, input="zwölf €"), price_of(model)
    used = completed(None, request, price)
    assert (used.units, used.estimated, used.total) == (Units(characters=7), False, 0)
    assert cost_of(used, price) == ceiling(request, price).money == 7 * dollars * 1000


def test_a_transcription_costs_by_the_second() -> None:
    """0.006 USD a minute; the provider's seconds count, and a file of unknown length is what was held."""
    request, price = audio(wav(60), model="whisper-1"), price_of("whisper-1")
    told = completed(Usage(units=Units(seconds=59)), request, price)
    assert (cost_of(told, price), told.estimated) == (usd("0.0059"), False)
    unknown = completed(None, request, price)
    assert (cost_of(unknown, price), unknown.estimated) == (ceiling(request, price).money, True)
    assert ceiling(request, price).money == usd("0.0061")  # a minute, and the second of which its header is a part


@pytest.mark.parametrize("model", ["omni-moderation-latest", "text-moderation-stable"])
def test_moderation_is_free(model: str) -> None:
    """Nothing is held in money, and nothing is charged."""
    request, price = asked("moderations", model=model), price_of(model)
    assert ceiling(request, price).money == cost_of(completed(None, request, price), price) == 0


@pytest.mark.parametrize(
    ("model", "size", "quality", "tokens"),
    [
        ("gpt-image-1", "1024x1024", "low", 272),
        ("gpt-image-1", "1024x1024", "medium", 1056),
        ("gpt-image-1", "1024x1536", "high", 6240),
        ("gpt-image-1.5", "1024x1024", "high", 4160),
        ("gpt-image-1", None, None, 6240),
        ("gpt-image-1", "auto", "auto", 6240),
        ("gpt-image-1", "1024x1024", None, 4160),
        ("gpt-image-1-mini", "1024x1024", "medium", 1375),
        ("gpt-image-1", "9999x9999", "low", 32768),
        ("gpt-image-1", "1024x1024", "unheard-of", 32768),
        ("gpt-image-2", "3840x2160", "high", 32768),
        ("somebody/else", "1024x1024", "low", 32768),
    ],
)
def test_an_images_tokens_are_bounded_by_size_and_quality(
    model: str, size: str | None, quality: str | None, tokens: int
) -> None:
    """OpenAI guide "Image generation": of what is not known, the most there is."""
    request = asked("images", model=model, size=size, quality=quality, n=2)
    assert most(request).completion == 2 * (tokens + 512)
    more = most(asked("images", model=model, size=size, quality=quality, n=2, partial_images=3))
    assert more.completion == most(request).completion + 600


def test_dearer_tokens_are_charged_as_what_they_are() -> None:
    """gpt-image-1: text in 5, image in 10, image out 40 USD a million; the hold takes the dearest for all."""
    request, price = asked("images", model="gpt-image-1", quality="low", size="1024x1024"), price_of("gpt-image-1")
    used = Usage(50, 272, units=Units(images=1, media_in=40, media_out=272))
    assert cost_of(completed(used, request, price), price) == 10 * 5_000 + 40 * 10_000 + 272 * 40_000
    bound = most(request)
    assert ceiling(request, price) == Amount(bound.prompt * 10_000 + bound.completion * 40_000, bound.total)


def test_a_transcriptions_tokens_are_bounded_by_the_models_window() -> None:
    """Unless the provider cuts the audio up: then each chunk has a window of its own."""
    price = price_of("gpt-4o-transcribe")
    assert price.context == 16_000
    whole = audio(bytes(10**6), model="gpt-4o-transcribe")
    cut = audio(bytes(10**6), part("chunking_strategy", b"auto"), model="gpt-4o-transcribe")
    assert most(whole, context=16_000)[:2] == (17_000, 2_000)
    assert most(cut, context=16_000).prompt > 26_000
    assert ceiling(whole, price).money == 17_000 * 6_000 + 2_000 * 10_000


def test_slow_speech_takes_longer() -> None:
    """Fast one is not bounded lower: a bound is no wish."""
    slow, plain, fast = (most(asked("speech", speed=speed)).completion for speed in (0.25, None, 4.0))
    assert plain == fast
    assert slow > 3 * plain


# -- which price applies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "dialects"),
    [
        (Price(0, 0, units=UnitPrice(image=5)), {"images", "image_edits"}),
        (Price(0, 0, units=UnitPrice(minute=5)), {"transcriptions", "translations"}),
        (Price(0, 0, units=UnitPrice(characters=5)), {"speech"}),
        (Price(0, 0, units=UnitPrice(request=5)), MEDIA | {"chat"}),
        (Price(1, 0), MEDIA | {"chat"}),
        (Price(1, 0, units=UnitPrice(image=5)), MEDIA | {"chat"}),
        (FREE, MEDIA | {"chat"}),
        (Price(0, 0), MEDIA | {"chat"}),
    ],
)
def test_a_price_applies_to_what_it_measures(price: Price, dialects: set[Any]) -> None:
    """An image's says nothing of a minute's, nor of a chat's tokens; tokens and fees say it of all."""
    assert {dialect for dialect in (*MEDIA, "chat") if applies(price, dialect)} == dialects


def test_each_setting_gives_its_dialects_a_price() -> None:
    """What a refusal names is what is missing: set, the price applies."""
    for dialect in (*MEDIA, "chat"):
        if dialect == "moderations":
            assert setting_of(dialect) == "usd_per_million_in"
            continue
        config = ModelConfig.model_validate({setting_of(dialect): "0.5"})
        price = prices_of({"m": config}).find("m")
        assert price is not None
        assert applies(price, dialect)


def test_a_models_own_prices_come_from_its_settings() -> None:
    """In dollars, exactly; they come on top of its tokens."""
    told = {
        "usd_per_image": "0.03",
        "usd_per_minute": "0.006",
        "usd_per_million_characters": "15",
        "usd_per_request": "0.001",
    }
    price = prices_of({"m": ModelConfig.model_validate({**told, "usd_per_million_in": "2"})}).find("m")
    assert price == Price(2 * 10**9, 0, units=UnitPrice(usd("0.03"), usd("0.006"), usd("15"), usd("0.001")))
    assert prices_of({"m": ModelConfig()}).find("m") is None


# -- what was told in another measure ----------------------------------------------------------------------------------


def test_seconds_are_tokens_where_only_tokens_have_a_price() -> None:
    """And the other way round: a provider's own measure never makes a call free."""
    request = audio(wav(30), model="m")
    tokens = completed(Usage(units=Units(seconds=30)), request, Price(10**6, 10**6))
    assert tokens.estimated
    assert 600 <= tokens.prompt <= 1000
    seconds = completed(Usage(300, 50, units=Units(media_in=300)), request, Price(0, 0, units=UnitPrice(minute=60)))
    assert (seconds.total, seconds.estimated, seconds.units) == (350, True, Units(seconds=31, media_in=300))
    images = completed(Usage(3, 4, units=Units()), asked("images", n=2), Price(0, 0, units=UnitPrice(image=1)))
    assert images.units == Units(images=2)


def test_absurd_measures_are_not_believed() -> None:
    """A hostile provider's numbers do not empty a budget."""
    price = Price(0, 0, units=UnitPrice(image=1, minute=60))
    told = Usage(units=Units(images=10**9, seconds=10**12))
    assert sane(told, asked("images", n=2), price).units == Units(images=2)
    assert sane(told, audio(wav(3)), price).units == Units(images=0, seconds=4)
    assert sane(Usage(2**40, 2**40, units=Units(images=1)), asked("images"), Price(1, 1)).total < 10**6


@pytest.mark.parametrize("dialect", ["images", "speech", "moderations"])
def test_the_shared_bounds_know_what_is_not_text(dialect: str) -> None:
    """Rate limits and estimates ask them, too."""
    request = asked(dialect)
    assert prompt_bound(request) == most(request).prompt
    assert estimate(request) == likely(request)
    assert exact_bound(request, "gpt-4o") is None
    assert so_far(request, None).estimated


def test_a_files_bytes_are_not_taken_for_text() -> None:
    """Neither in a form, nor inline in JSON; an image counts by its rule."""
    big = audio(bytes(10**6), model="m")
    assert likely(big).prompt < 10
    inline = asked("image_edits", images=[{"image_url": "data:image/png;base64," + "A" * 10**6}])
    assert most(inline).prompt < 20_000
    assert most(inline).prompt > most(asked("images")).prompt + 16_000


# -- how long audio can be ---------------------------------------------------------------------------------------------


@given(st.floats(0.1, 5), st.sampled_from([8_000, 16_000, 44_100]), st.sampled_from([8, 16, 24, 32]), st.integers(1, 2))
def test_plain_wav_is_as_long_as_its_bytes_say(seconds: float, rate: int, bits: int, channels: int) -> None:
    """At least its true length, and at most a second more."""
    file = wav(seconds, rate=rate, bits=bits, channels=channels)
    found = seconds_at_most(b"xx" + file, 2, 2 + len(file))
    assert seconds - 0.01 <= found <= seconds + 2


def test_a_wav_that_lies_about_its_length_is_measured() -> None:
    """By its bytes, whatever its header claims."""
    file = wav(60, claims=1)
    assert seconds_at_most(file, 0, len(file)) == 61


@pytest.mark.parametrize(
    ("head", "rate"),
    [
        (b"OggS", LEAST_BYTES_PER_SECOND),
        (b"fLaC", LEAST_BYTES_PER_SECOND),
        (b"\x1aE\xdf\xa3", LEAST_BYTES_PER_SECOND),
        (b"ID3\x04", LEAST_MP3_BYTES_PER_SECOND),
        (b"\xff\xfb\x90\x00", LEAST_MP3_BYTES_PER_SECOND),
        (b"\xff\xf1\x50\x80", LEAST_BYTES_PER_SECOND),  # AAC
        (b"RIFF", LEAST_BYTES_PER_SECOND),
        (wav(1, tag=2)[:60], LEAST_BYTES_PER_SECOND),  # ADPCM: its rate says nothing
        (wav(1).replace(struct.pack("<I", 32_000), struct.pack("<I", 32_001))[:60], LEAST_BYTES_PER_SECOND),
        (b"", LEAST_BYTES_PER_SECOND),
    ],
)
def test_packed_audio_is_bounded_by_its_codecs_lowest_rate(head: bytes, rate: int) -> None:
    """Whatever a header says of itself: no plain file, no measure."""
    body = head + bytes(30_000 - len(head))
    assert seconds_at_most(body, 0, len(body)) == -(-30_000 // rate)


@given(st.binary(max_size=200))
def test_any_file_has_some_length(data: bytes) -> None:
    """At least a second; and no bytes make an exception."""
    for body in (data, b"RIFF1234WAVE" + data, b"RIFF1234WAVEfmt " + data):
        assert seconds_at_most(body, 0, len(body)) >= 1


def test_a_reader_and_a_refusal_agree_on_nothing_used() -> None:
    """An answer without a word of usage is unknown, not zero."""
    reader = MediaReader(asked("images"), b"application/json")
    reader.feed(b'{"created": 1}')
    assert reader.end() is None
