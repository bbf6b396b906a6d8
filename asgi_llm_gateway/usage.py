"""Tokens that a provider reports: read from its answer, once, whatever the dialect.

Fields: OpenAI API reference, "usage" objects of Chat, Completions, Embeddings and Responses; Anthropic API reference,
"Messages", ``usage`` (whose ``input_tokens`` leaves cache reads and writes out). Images and audio: ``_media_usage``.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Any

import orjson

from ._sample import StreamSample, streamed_tokens
from ._sse import EventSplitter, EventTooLong, data_of, split
from .records import NANO_PER_USD, Usage, usd_number
from .tokens import BYTES_PER_TOKEN

MAX_COUNT = 2**40
"""A token count beyond this is no count."""

_new = tuple.__new__  # what Usage(...) does, less a frame
_MOST_USD = 1e6  # of one call

WHOLE_PARSE = 1024 * 1024
"""Bytes up to which a JSON answer is parsed as a whole; of longer ones only the end is."""


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= MAX_COUNT else 0


def _nano(usd: Any) -> int | None:
    """A cost as a provider tells it (OpenRouter API reference, "Usage accounting": ``cost``), in nano-USD, rounded up."""
    if type(usd) not in (int, float) or not 0 <= usd < _MOST_USD:
        return None
    return int((Decimal(repr(usd)) * NANO_PER_USD).to_integral_value(ROUND_CEILING))


def _spent(usage: dict[str, Any]) -> int | None:
    """What OpenRouter says that a call cost, in nano-USD, rounded up.

    Where the operator's own key at the model's provider was used (``is_byok``), ``cost`` is the router's fee, and what that
    provider takes stands beside it. Source: OpenRouter documentation, "Usage accounting", autumn 2026.
    """
    cost = usage["cost"]
    details = usage.get("cost_details")
    more = details.get("upstream_inference_cost") if type(details) is dict else None
    if more is None or usage.get("is_byok") is False:
        return _nano(cost)
    fee, price = _nano(0 if cost is None else cost), _nano(more)
    if fee is None or price is None:
        return fee if price is None else price
    return int(((Decimal(repr(cost or 0)) + Decimal(repr(more))) * NANO_PER_USD).to_integral_value(ROUND_CEILING))


def _told(prompt: Any, completion: Any) -> bool:
    """Whether these are counts: one of them may be missing, and a senseless one makes both unknown, never zero."""
    for value in (prompt, completion):
        if value is not None and (type(value) is not int or not 0 <= value <= MAX_COUNT):
            return False
    return prompt is not None or completion is not None


def usage_from(usage: Any) -> Usage | None:
    """A ``usage`` object of any dialect as counts; ``None`` where it is none. An explicit zero is zero."""
    if type(usage) is not dict:
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if prompt is None and completion is None:
        return _other_usage(usage)
    if type(prompt) is not int or type(completion) is not int:
        if not _told(prompt, completion):
            return None
        prompt, completion = _count(prompt), _count(completion)
    if prompt < 0 or completion < 0 or prompt > MAX_COUNT or completion > MAX_COUNT:
        return None
    cached = cache_write = reasoning = 0
    details = usage.get("prompt_tokens_details")
    if type(details) is dict:
        if told := details.get("cached_tokens"):
            cached = _count(told)
        if told := details.get("cache_write_tokens"):
            cache_write = _count(told)
    elif told := usage.get("prompt_cache_hit_tokens"):  # DeepSeek's older word
        cached = _count(told)
    details = usage.get("completion_tokens_details")
    if type(details) is dict and (told := details.get("reasoning_tokens")):
        reasoning = _count(told)
    cost = _spent(usage) if "cost" in usage else None
    return _new(Usage, (prompt, completion, cached, cache_write, reasoning, False, cost, None))


def _other_usage(usage: dict[str, Any]) -> Usage | None:
    given, made = usage.get("input_tokens"), usage.get("output_tokens")
    if not _told(given, made):
        return None
    read, write = _count(usage.get("cache_read_input_tokens")), _count(usage.get("cache_creation_input_tokens"))
    details = usage.get("input_tokens_details")
    cached = told_write = 0
    if type(details) is dict:  # parts of the whole, where Anthropic's stand beside it
        cached, told_write = _count(details.get("cached_tokens")), _count(details.get("cache_write_tokens"))
    details = usage.get("output_tokens_details")
    reasoning = _count(details.get("reasoning_tokens")) if type(details) is dict else 0
    return Usage(_count(given) + read + write, _count(made), cached + read, write + told_write, reasoning)


def usage_of_answer(body: bytes) -> Usage | None:
    """The usage in a JSON answer; ``None`` where it reports none."""
    if len(body) > WHOLE_PARSE:
        return usage_at_end(body)
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return usage_from(answer.get("usage")) if type(answer) is dict else None


def usage_at_end(body: bytes) -> Usage | None:
    """The usage of a long answer, whose other part need not be parsed.

    ``{`` and the tail from the key on parse as an object only if the key stands at the top level.
    """
    at = body.rfind(b'"usage"')
    if at < 0:
        return None
    try:
        tail = orjson.loads(b"{" + body[at:])
    except orjson.JSONDecodeError:
        return None
    return usage_from(tail.get("usage"))


_NEWS = (b'"usage"', b"[DONE]", b"message_stop", b"response.")


class UsageReader:
    """Reads the usage of an answer that passes by, JSON or event stream, in any dialect.

    Attributes:
        usage: The last counts reported; ``None`` so far.
        final: Whether ``usage`` is the whole answer's; Anthropic's first event counts what was made until then.
        ending: A stream's last news have come: nothing will be added to what was used.
        complete: Whether the answer came to its own end.
        sample: The stream's last pieces, for an estimate.
        body: A JSON answer, once all of it was read; empty where it was too long.
    """

    __slots__ = ("_body", "_length", "_size", "_splitter", "body", "complete", "ending", "final", "sample", "usage")

    def __init__(self, *, stream: bool, limit: int = 8 * 1024 * 1024) -> None:
        self.usage: Usage | None = None
        self.complete = False
        self.final = False
        self.ending = False
        self.sample = StreamSample()
        self.body = b""
        self._splitter = EventSplitter(limit) if stream else None
        self._body: list[bytes] = []
        self._size = limit
        self._length = 0

    def feed(self, data: bytes) -> None:
        """The next bytes of the answer."""
        if self._splitter is None:
            self._size -= len(data)
            self._length += len(data)
            if self._size >= 0:
                self._body.append(data)
            else:  # too long to keep: the usage stands at the end
                self._body = [b"".join(self._body)[-65536:], data]
            return
        try:
            whole = self._splitter.whole(data)
        except EventTooLong:
            return
        if whole:
            self._read(whole)

    def _read(self, whole: bytes) -> None:
        self.sample.add(whole, whole.count(b"data:"))
        # Only an event that speaks of usage or of the end is looked into.
        if any(whole.find(news) >= 0 for news in _NEWS):
            for event in split(whole):
                self._look(data_of(event))

    def _look(self, data: bytes | None) -> None:
        if data is None:
            return
        if data == b"[DONE]":
            self.complete = self.ending = True
            return
        if b'"usage"' not in data and b"message_stop" not in data:
            return
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        if type(event) is not dict:
            return
        kind = event.get("type")
        if kind in ("message_stop", "response.completed", "response.incomplete", "response.failed"):
            self.complete = self.ending = True
        inner = event.get("message") or event.get("response")
        found = usage_from(event.get("usage") or (inner.get("usage") if type(inner) is dict else None))
        if found is not None:
            self.usage = _merge(self.usage, found) if kind == "message_delta" else found
            self.final = kind != "message_start"
            # Some vendors tell the counts so far with every piece of content; the last word has none.
            self.ending = self.ending or (self.final and kind is None and not event.get("choices"))

    def end(self) -> Usage | None:
        """No more bytes will come: the usage, if the answer told it."""
        if self._splitter is None:
            body = b"".join(self._body)
            self.usage = usage_of_answer(body) if self._size >= 0 else usage_at_end(body)
            if self._body and self._size >= 0:
                self.body = body
            self._body.clear()
            self.complete = True
        elif self._splitter.rest:  # a last event without its blank line counts all the same
            self._read(self._splitter.rest)
        return self.usage

    @property
    def events(self) -> int:
        """A stream's data events."""
        return self.sample.events

    @property
    def tokens(self) -> int:
        """The answer's length so far in tokens, roughly: for an estimate where no counts are told."""
        if self._splitter is None:
            return self._length // BYTES_PER_TOKEN
        return streamed_tokens(self.sample)


_TELLS_USAGE = re.compile(rb'"usage"\s*:\s*\{')


def with_cost(events: bytes, cost: int) -> bytes:
    """Whole events, with the field ``cost_usd`` beside ``usage`` in the one that reports it; ``cost`` in nano-USD.

    A field of ours that OpenAI's API does not have; its SDKs pass it by.
    """
    told = split(events)
    for at in range(len(told) - 1, -1, -1):  # the last one that tells it: Anthropic's first event does, too
        event = told[at]
        end = event.rfind(b"}")
        if end >= 0 and _TELLS_USAGE.search(event) is not None:
            told[at] = b'%b,"cost_usd":%b%b' % (event[:end], usd_number(cost).encode(), event[end:])
            break
    return b"".join(told)


def _merge(before: Usage | None, now: Usage) -> Usage:
    """Anthropic's ``message_delta`` is cumulative and may leave the prompt's counts out."""
    if before is None or now.prompt:
        return now
    return before._replace(completion=now.completion, reasoning=now.reasoning)
