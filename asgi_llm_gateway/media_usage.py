"""What images, audio, speech and moderation used, read from their answers: JSON, event streams, texts and sound.

Fields: OpenAI API reference, "Create image", "Create transcription", "Create speech" and their streaming events, as of autumn
2026.
"""

from __future__ import annotations

import math
import re
from typing import Any

import orjson

from ._sse import data_of, split
from .records import Dialect, Units, Usage
from .usage import MAX_COUNT, WHOLE_PARSE, UsageReader, usage_from
from .wire import MEDIA, LLMRequest

MAX_MEDIA_EVENT = 32 * 1024 * 1024
"""Bytes of an event that brings an image: the largest in base64, with some to spare."""

_LONGEST_MARK = 64
_IMAGE = re.compile(rb'"(?:b64_json|url)"\s*:\s*"')
_IMAGE_DIALECTS = frozenset({"images", "image_edits"})
# The last event of an answer, or of one image of it. Source: OpenAI API reference, the streaming events of each endpoint.
_DONE = frozenset({"speech.audio.done", "transcript.text.done", "image_generation.completed", "image_edit.completed"})
_NEEDLES = (b"[DONE]", b".done", b".completed", b'"error"', b'"usage"')


def media_usage(dialect: Dialect | None, answer: Any) -> Usage | None:
    """The usage in an answer or a last event, as an object; ``None`` where it tells nothing.

    ``units`` is never ``None`` in it, so that nothing used can be told from nothing told. Tokens of which it is not said
    whether they are text or not count as what is dearer: made images, spoken audio, heard audio.
    """
    if type(answer) is not dict:
        return None
    usage: Any = answer.get("usage")
    images = _images(answer) if dialect in _IMAGE_DIALECTS else 0
    seconds = _seconds(usage, answer) if dialect in ("transcriptions", "translations") else 0
    told = usage_from(usage)
    if told is None:
        return Usage(units=Units(images, seconds)) if images or seconds else None
    given, made = _parts(usage, "input_token"), _parts(usage, "output_token")
    media_in = _media(given) if given else (told.prompt if dialect in ("transcriptions", "translations") else 0)
    media_out = _media(made) if made else (told.completion if dialect in ("images", "image_edits", "speech") else 0)
    # Of tokens that were read from a cache it is not said which they are: charged in full.
    return told._replace(cached=0, units=Units(images, seconds, 0, media_in, media_out))


def _images(answer: dict[str, Any]) -> int:
    data = answer.get("data")
    if type(data) is list:
        return len(data)
    return 1 if answer.get("b64_json") else 0  # an event that brings one


def _seconds(usage: Any, answer: dict[str, Any]) -> int:
    """Seconds of audio, begun ones counted whole: of the usage, else of what ``verbose_json`` says."""
    told: Any = (
        usage.get("seconds") if type(usage) is dict and usage.get("type") == "duration" else answer.get("duration")
    )
    if type(told) is str and len(told) < 32:  # as translations have it
        try:
            told = float(told)
        except ValueError:
            return 0
    if type(told) not in (int, float) or not 0 <= told <= MAX_COUNT:
        return 0
    seconds: int = math.ceil(told)
    return seconds


def _parts(usage: dict[str, Any], name: str) -> dict[str, Any]:
    """What the tokens are: images say ``input_tokens_details``, audio ``input_token_details``."""
    for key in (name + "s_details", name + "_details"):
        found = usage.get(key)
        if type(found) is dict:
            return found
    return {}


def _media(parts: dict[str, Any]) -> int:
    told = (parts.get(name) for name in ("image_tokens", "audio_tokens"))
    return sum(value for value in told if type(value) is int and 0 <= value <= MAX_COUNT)


class MediaReader(UsageReader):
    """Reads the usage of such an answer as it passes by. Of sound and of texts nothing is kept; of JSON no more than a part.

    Args:
        request: What was asked.
        kind: The answer's content type, in lower case.

    Attributes:
        failed: An event stream told of an error.
    """

    __slots__ = ("_carried", "_dialect", "_json", "_left", "_seen", "failed")

    def __init__(self, request: LLMRequest, kind: bytes) -> None:
        stream = kind.startswith(b"text/event-stream")
        super().__init__(stream=stream, limit=MAX_MEDIA_EVENT if stream else WHOLE_PARSE)
        self.failed = False
        self._dialect = request.route.dialect
        self._json = kind.find(b"json") >= 0
        self._left = request.choices if self._dialect in _IMAGE_DIALECTS else 1
        self._seen = 0
        self._carried = b""

    def feed(self, data: bytes) -> None:
        """See UsageReader."""
        if self._splitter is not None:
            super().feed(data)
        elif self._json:
            if self._dialect in _IMAGE_DIALECTS:
                self._count(data)
            super().feed(data)

    def _count(self, data: bytes) -> None:
        """Count images in passing, for a long answer is not parsed. What is carried on begins after the last mark."""
        data = self._carried + data
        end = 0
        for mark in _IMAGE.finditer(data):
            self._seen += 1
            end = mark.end()
        self._carried = data[max(end, len(data) - _LONGEST_MARK) :]

    def read(self, whole: bytes) -> None:
        """Whole events of a stream."""
        self.sample.add(b"", whole.count(b"data:"))  # counted and not kept: it is no text
        if any(whole.find(news) >= 0 for news in _NEEDLES):
            for event in split(whole):
                self._look(data_of(event))

    _read = read

    def _look(self, data: bytes | None) -> None:
        if data == b"[DONE]":
            self.complete = self.ending = True
            return
        if data is None or not any(data.find(news) >= 0 for news in _NEEDLES):
            return
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        if type(event) is not dict:
            return
        if event.get("error") or event.get("type") == "error":
            self.failed = self.ending = True
            return
        found = media_usage(self._dialect, event)
        if event.get("type") in _DONE:
            self.complete = True
            self._left -= 1
            self.ending = self.final = self._left <= 0  # of several images, the others are still made
            self.usage = found if self.usage is None or found is None else _sum(self.usage, found)
        elif found is not None and found.total:  # a vendor's own event
            self.usage, self.final = found, True

    def end(self) -> Usage | None:
        """See UsageReader."""
        if self._splitter is not None:
            return super().end()
        self.complete = self.final = True
        body = b"".join(self._body)
        self._body.clear()
        if self._json:
            self.usage = media_usage(self._dialect, _object_in(body) if self._size >= 0 else self._seen_in(body))
        return self.usage

    def _seen_in(self, tail: bytes) -> dict[str, Any]:
        """What is known of a long answer: its usage, which stands at the end, and the images that were counted."""
        at = tail.rfind(b'"usage"')
        found = _object_in(b"{" + tail[at:]) if at >= 0 else {}
        return {"usage": found.get("usage"), "data": [None] * self._seen}


def _object_in(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if type(found) is dict else {}


def _sum(one: Usage, other: Usage) -> Usage:
    """The usage of two images that each have an event of their own."""
    units, more = one.units or Units(), other.units or Units()
    return one._replace(
        prompt=one.prompt + other.prompt,
        completion=one.completion + other.completion,
        units=Units(*(mine + theirs for mine, theirs in zip(units, more, strict=True))),
    )


def reader_of(request: LLMRequest | None, kind: bytes) -> UsageReader:
    """Who reads the usage of an answer, by what was asked and its content type (in lower case)."""
    if request is not None and request.route.dialect in MEDIA:
        return MediaReader(request, kind)
    return UsageReader(stream=kind.startswith(b"text/event-stream"))


__all__ = ["MAX_MEDIA_EVENT", "MediaReader", "media_usage", "reader_of"]
