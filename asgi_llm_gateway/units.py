"""What a call that is not (only) text costs at most, and what it did cost: images, audio, speech, moderation.

A hold must never be less than what may be charged, and what a provider did not tell is taken for what was asked. Numbers:
OpenAI guides "Image generation" and "Speech to text" and its pricing page, as of autumn 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .audio import seconds_at_most
from .prices import cost_of
from .records import Amount, Dialect, Price, UnitPrice, Units, Usage
from .validation import MAX_CHOICES
from .wire import LLMRequest

FIXED_TOKENS = 128
"""What a provider may put before any prompt."""

INPUT_IMAGE_TOKENS = 16_384
"""The most tokens of an image that is sent in: 12 megapixels at 32 x 32 pixels a token, with some to spare."""

PARTIAL_IMAGE_TOKENS = 100
"""Tokens of each preview of an image that is streamed. Source: OpenAI guide "Image generation", "Streaming"."""

HEARD_TOKENS = 20
"""Tokens that a second of audio takes at most, and those of the words in it. OpenAI's prices give 1,000 a minute (0.006 USD
a minute at 6 USD a million)."""

TRANSCRIPT_TOKENS = 2_000
"""The longest answer of OpenAI's gpt-4o transcription models. Source: their model pages, "Max output tokens"."""

SPOKEN_TOKENS = 8
"""Audio tokens that a byte of text makes at most when it is spoken: 0.4 seconds, as a digit takes; English prose takes 1.3."""

_LIKELY_SPOKEN = 2
_LEAST_SPEECH = 256
_ABSURD_SECONDS = 10_000_000
_BYTES_PER_TOKEN = 4

# Output tokens of one image: square, and any other shape. Source: OpenAI guide "Image generation", "Cost and latency"; of the
# mini model, and of those that take any size, what their prices an image come to, the largest size and effort included.
_LARGEST = 32_768
_OUTPUT: tuple[tuple[re.Pattern[str], Mapping[str, tuple[int, int]]], ...] = tuple(
    (re.compile(name), rows)
    for name, rows in (
        (r"gpt-image-1-mini", {"low": (625, 750), "medium": (1_375, 1_875), "high": (4_500, 6_500)}),
        (r"gpt-image-1(?![\d.])|gpt-image-1\.5|chatgpt-image",
         {"low": (272, 408), "medium": (1_056, 1_584), "high": (4_160, 6_240)}),
        (r"gpt-image-2", {"low": (1_024, 1_024), "medium": (8_192, 8_192), "high": (_LARGEST, _LARGEST)}),
    )
)  # fmt: skip
_SQUARE = "1024x1024"
_OTHER_SHAPES = frozenset({"1024x1536", "1536x1024"})
_IMAGE_TEXT_TOKENS = 512  # that a model may write before it draws

_MEASURED: Mapping[Dialect | None, tuple[str, str]] = {
    "images": ("image", "usd_per_image"),
    "image_edits": ("image", "usd_per_image"),
    "transcriptions": ("minute", "usd_per_minute"),
    "translations": ("minute", "usd_per_minute"),
    "speech": ("characters", "usd_per_million_characters"),
}
"""By dialect: what is measured beside tokens, and the setting that gives it a price."""


# -- the price ---------------------------------------------------------------------------------------------------------


def applies(price: Price, dialect: Dialect | None) -> bool:
    """Whether a model's price says what a call in that dialect costs."""
    units = price.units
    if units is None or price.prompt or price.completion or units.request is not None:
        return True
    measured = _MEASURED.get(dialect)
    if measured is not None and getattr(units, measured[0]) is not None:
        return True
    # Only rates of audio and image tokens: the text is free, as it seems.
    return units.image is None and units.minute is None and units.characters is None


def setting_of(dialect: Dialect | None) -> str:
    """The setting of a model that gives a call in that dialect its price."""
    measured = _MEASURED.get(dialect)
    return measured[1] if measured is not None else "usd_per_million_in"


def applied(price: Price, request: LLMRequest) -> Price:
    """The price with that of an image as it was asked for, where quality and size make one: the dearest that may be meant.

    A quality that is not given is ``standard``, a size that is not given is ``1024x1024``. Source: OpenAI API reference,
    "Create image" (dall-e-2, dall-e-3).
    """
    units = price.units
    if units is None or not units.images:
        return price
    quality = request.data.get("quality") or "standard"
    size = request.data.get("size") or _SQUARE
    by_quality = [row for row in units.images if row[0] in ("", quality)] or units.images
    by_size = [row for row in by_quality if row[1] == size] or by_quality
    return price._replace(units=units._replace(image=max(row[2] for row in by_size), images=()))


# -- before the call ---------------------------------------------------------------------------------------------------


def most(request: LLMRequest, model: str | None = None, context: int | None = None) -> Usage:
    """What a call can use at most, by every measure.

    Not covered: compressed audio below the lowest rate of its codec, as long silence is.

    Args:
        request: What was asked.
        model: The model's name at its provider; ``None`` takes the request's.
        context: The model's context window in tokens, if it is known.
    """
    name = (model or request.model).lower().rpartition("/")[2]
    dialect = request.route.dialect
    prompt = _text_bytes(request) + FIXED_TOKENS
    if dialect in ("images", "image_edits"):
        count = request.choices
        prompt = (prompt + _images_in(request) * INPUT_IMAGE_TOKENS) * count  # some bill the prompt for each image
        made = _output_tokens(request, name) + _IMAGE_TEXT_TOKENS
        made += PARTIAL_IMAGE_TOKENS * (request.data.get("partial_images") or 0)
        return Usage(prompt, made * count, estimated=True, units=Units(images=count))
    if dialect in ("transcriptions", "translations"):
        seconds = _seconds(request)
        prompt += seconds * HEARD_TOKENS
        made = seconds * HEARD_TOKENS + FIXED_TOKENS
        if not request.data.get("chunking_strategy"):  # else each chunk has a window and an answer of its own
            if context is not None:
                prompt = min(prompt, context + context // 16)  # lists round windows down
            if name.startswith("gpt-4o"):
                made = min(made, TRANSCRIPT_TOKENS)
        return Usage(prompt, made, estimated=True, units=Units(seconds=seconds))
    if dialect == "speech":
        return Usage(prompt, _spoken(request, SPOKEN_TOKENS), estimated=True, units=_characters(request))
    return Usage(prompt + _images_in(request) * INPUT_IMAGE_TOKENS, 0, estimated=True, units=Units())


def ceiling(request: LLMRequest, price: Price, model: str | None = None) -> Amount:
    """What a call can cost at most: nano-USD, and tokens where it is charged by them (or by nothing).

    No usage within ``most`` costs more, whichever of its tokens are text, cached, audio or images.
    """
    used = most(request, model, price.context)
    price = applied(price, request)
    units = price.units
    tokens = used.total if _counts_tokens(price) else 0
    prompt, completion = max(price.prompt, price.cached or 0, price.cache_write or 0), price.completion
    for tier in price.tiers:
        prompt = max(prompt, tier.prompt, tier.cached or 0, tier.cache_write or 0)
        completion = max(completion, tier.completion)
    if units is not None:
        prompt = max(prompt, units.media_in or 0)
        completion = max(completion, units.media_out or 0)
        units = units._replace(media_in=None, media_out=None)
    return Amount(cost_of(used, Price(prompt, completion, units=units)), tokens)


def _counts_tokens(price: Price) -> bool:
    """Whether tokens are charged, or nothing is: then a budget of tokens counts them all the same."""
    units = price.units
    if units is None or price.prompt or price.completion or units.media_in or units.media_out:
        return True
    return units.image is None and units.minute is None and units.characters is None and units.request is None


# -- after the call ----------------------------------------------------------------------------------------------------


def completed(usage: Usage | None, request: LLMRequest, price: Price, model: str | None = None) -> Usage:
    """A call's usage in all the measures that its price charges: what the provider told, else what was asked for.

    A refused call, which used nothing, stays so. Where tokens are charged and none were told, they are estimated; audio of
    unknown length is taken for all that was held. Never more than ``most``, but for what was told.
    """
    if usage is not None and usage.units is None and not usage.total and not usage.estimated:
        return usage
    told = Usage(units=Units()) if usage is None or usage.estimated else usage
    units = told.units or Units()
    by = applied(price, request).units or _NOTHING
    asked = most(request, model, price.context)
    bound = asked.units or Units()
    # What is spoken is known to the letter, whether the provider tells it or not.
    estimated = (usage is None or usage.estimated) and by.characters is None
    if units.images > MAX_CHOICES or units.seconds > _ABSURD_SECONDS:
        units = units._replace(images=0, seconds=0)
    if by.image is not None and not units.images:
        units = units._replace(images=bound.images)
        estimated = True
    if by.minute is not None and not units.seconds:
        units = units._replace(seconds=bound.seconds)
        estimated = True
    if by.characters is not None:
        units = units._replace(characters=bound.characters)
    if not told.total and (price.prompt or price.completion or by.media_in or by.media_out):
        prompt, completion = _likely(request, asked, units.seconds)
        told = told._replace(prompt=prompt, completion=completion)
        units = units._replace(media_in=asked.prompt, media_out=asked.completion)  # the dearer rate for all of it
        estimated = True
    return told._replace(units=units, estimated=estimated)


_NOTHING = UnitPrice()


def likely(request: LLMRequest) -> Usage:
    """What a call used of which nobody told, before a price says what counts: the text's tokens, and what was asked for."""
    return Usage(-(-_text_bytes(request) // _BYTES_PER_TOKEN), 0, estimated=True, units=most(request).units)


def _likely(request: LLMRequest, asked: Usage, seconds: int) -> tuple[int, int]:
    """Tokens, prompt and answer, of a call of which only other measures are known, if any."""
    dialect = request.route.dialect
    text = -(-_text_bytes(request) // _BYTES_PER_TOKEN)
    if dialect == "speech":
        return text, _spoken(request, _LIKELY_SPOKEN)
    if dialect in ("transcriptions", "translations") and seconds:
        heard = seconds * HEARD_TOKENS
        return min(asked.prompt, text + heard), min(asked.completion, heard)
    if dialect == "moderations":
        return text, 0
    return asked.prompt, asked.completion


# -- what was asked ----------------------------------------------------------------------------------------------------


def _text_bytes(request: LLMRequest) -> int:
    """Bytes of a request without the files in it."""
    if request.form is not None:
        return sum(part.end - part.start for part in request.form.parts if not part.file)
    size = len(request.raw)
    if request.route.dialect == "image_edits":
        size -= sum(len(url) for url in _urls(request.data) if url.startswith("data:"))
    return max(size, 0)


def _urls(data: Mapping[str, Any]) -> Iterator[str]:
    """The places of images in a JSON request, which for some are the images themselves."""
    images = data.get("images")
    for image in (*(images if type(images) is list else ()), data.get("image"), data.get("mask")):
        url = image.get("image_url") if type(image) is dict else image
        if type(url) is str:
            yield url


def _images_in(request: LLMRequest) -> int:
    """Images that are sent in."""
    if request.form is not None:
        return len(request.form.files())
    data = request.data
    if request.route.dialect == "image_edits":
        images = data.get("images")
        return (len(images) if type(images) is list else 0) + sum(
            data.get(name) is not None for name in ("image", "mask")
        )
    given = data.get("input")
    return sum(type(part) is dict and part.get("type") != "text" for part in given) if type(given) is list else 0


def _output_tokens(request: LLMRequest, name: str) -> int:
    """Tokens of one image at most, by model, quality and shape: of what is not known, the dearest."""
    rows = next((rows for pattern, rows in _OUTPUT if pattern.match(name)), None)
    if rows is None:
        return _LARGEST
    quality, size = request.data.get("quality") or "auto", request.data.get("size")
    if quality == "auto":
        told = list(rows.values())
    elif quality in rows:
        told = [rows[quality]]
    else:
        return _LARGEST
    if size == _SQUARE:
        return max(square for square, _ in told)
    if size in (None, "auto") or size in _OTHER_SHAPES or name.startswith("gpt-image-2"):
        return max(max(row) for row in told)
    return _LARGEST


def _characters(request: LLMRequest) -> Units:
    return Units(characters=len(request.data["input"]))


def _spoken(request: LLMRequest, each: int) -> int:
    """Audio tokens of a text, of which a byte makes ``each``; slow speech takes longer."""
    size = len(request.data["input"].encode("utf-8", "replace")) * each + _LEAST_SPEECH
    speed = request.data.get("speed") or 1.0
    return int(size / min(speed, 1.0)) + 1


def _seconds(request: LLMRequest) -> int:
    """Seconds of audio in a form's files, at most."""
    if request.form is None:
        return 0
    return sum(seconds_at_most(request.raw, part.start, part.end) for part in request.form.files())


__all__ = [
    "FIXED_TOKENS", "HEARD_TOKENS", "INPUT_IMAGE_TOKENS", "PARTIAL_IMAGE_TOKENS", "SPOKEN_TOKENS", "TRANSCRIPT_TOKENS",
    "applied", "applies", "ceiling", "completed", "likely", "most", "setting_of",
]  # fmt: skip
