"""A stream in OpenAI's dialect: read as it passes, changed only where it must be.

Source: OpenAI API reference, "Chat", streaming; in-band errors: OpenRouter documentation, "Errors" (autumn 2026).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson

from .._sample import StreamSample, streamed_tokens
from .._sse import EventSplitter, EventTooLong, count_data, data_of, split
from ..errors import GatewayError, UpstreamError
from ..records import Usage
from ..usage import usage_from
from .base import failure


def error_in(answer: Any) -> Any:
    """The error that an answer or an event tells of, whatever its status was: at the top, in a choice, or as the reason
    of its end; ``None`` where it tells of none."""
    if type(answer) is list and answer:  # Gemini puts an error into an array
        answer = answer[0]
    if type(answer) is not dict:
        return None
    if found := answer.get("error"):
        return found
    choices = answer.get("choices")
    for choice in choices if type(choices) is list else ():
        if type(choice) is dict:
            if found := choice.get("error"):
                return found
            if choice.get("finish_reason") == "error":
                return {"message": "The provider broke the answer off with an error."}
    return None


def _says_nothing_new(whole: bytes) -> bool:
    """Whether events hold neither an error nor usage that is not null.

    This runs for every event. ``find`` and not ``in``: the latter tries first to read the needle as a number, at the
    price of an exception (CPython 3.11, ``_Py_bytes_contains``).
    """
    if whole.find(b'"error"') >= 0:
        return False
    at = whole.find(b'"usage"')
    if at < 0:
        return True
    if whole.startswith(b":null", at + 7) and whole.find(b'"usage"', at + 12) < 0:
        return True
    return whole.count(b'"usage"') == whole.count(b'"usage":null')


# An event that says more than text: usage that is not null, an error, or the end.
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_NEWS = re.compile(rb'"usage"\s*:\s*\{|"error"\s*:\s*[^\sn]|"finish_reason"\s*:\s*"error"|\[DONE\]')


class OpenAIStream:
    """One event stream: relayed byte for byte, but for the usage event that only the gateway asked for, and for the words
    of an error, which may hold what must not leave the house.

    Args:
        name: The provider's name.
        drop_usage: Whether the event that holds nothing but usage is kept back.
        failed: What an error in the stream is called towards the client; it is given the error as ``{"error": ...}``.
        mend: Changes a chunk in place, for a vendor whose chunks need it; whether it did. ``mends`` finds those chunks.
        mends: A pattern that is in every event to be mended.
    """

    __slots__ = ("_drop", "_failed", "_mend", "_mends", "_name", "_splitter", "complete", "ending", "failed", "sample",
                 "usage")  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        drop_usage: bool,
        failed: Callable[[bytes], GatewayError] | None = None,
        mend: Callable[[dict[str, Any]], bool] | None = None,
        mends: re.Pattern[bytes] | None = None,
    ) -> None:
        self.usage: Usage | None = None
        self.sample = StreamSample()
        self.ending = False
        self.complete = False
        self.failed = False
        self._name = name
        self._drop = drop_usage
        self._failed = failed
        self._mend = mend
        self._mends = mends
        self._splitter = EventSplitter()

    def feed(self, data: bytes) -> bytes:
        """See StreamDecoder. Only whole events go on, so that an error can follow at any time."""
        try:
            whole = self._splitter.whole(data)
        except EventTooLong:
            raise UpstreamError(f"The provider '{self._name}' sent an event without an end.") from None
        if not whole:
            return b""
        if whole.find(b"\n") == len(whole) - 2 and whole.find(b"\r") < 0 and whole.startswith(b"data: {"):
            plain = _says_nothing_new(whole)  # one event in one line, as most pieces are
            count = 1
        else:
            plain = whole.find(b"[DONE]") < 0 and _says_nothing_new(whole)
            count = count_data(whole)
        self.sample.add(whole, count)
        if plain and (self._mends is None or self._mends.search(whole) is None):
            return whole
        return b"".join([self._look(event) for event in split(whole)])

    def _look(self, event: bytes) -> bytes:
        """Look into one event; what of it the client shall have."""
        data = data_of(event)
        if data is None:
            return event
        news = _NEWS.search(data) is not None
        if not news and (self._mends is None or self._mends.search(data) is None):
            return event
        if data.startswith(b"[DONE]"):
            self.ending = True
            self.complete = not self.failed
            return b"" if self.failed else event  # after an error it would be a lie
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            return event
        if news and (told := error_in(chunk)) is not None:
            event = self._error(chunk if type(chunk) is dict else {}, told)
        if type(chunk) is not dict:
            return event
        if self._mend is not None and not self.failed and self._mend(chunk):
            event = b"data: " + orjson.dumps(chunk) + b"\n\n"
        found = usage_from(chunk.get("usage"))
        if found is None:
            return event
        self.usage = found
        if chunk.get("choices"):  # some vendors report on the last chunk of content, or on every one
            return event
        self.ending = True
        return b"" if self._drop and not self.failed else event

    def _error(self, chunk: dict[str, Any], told: Any) -> bytes:
        """The event that tells of an error, in OpenAI's envelope and in words that may be told."""
        self.failed = self.ending = True
        body = orjson.dumps({"error": told})
        error = failure(self._name, 502, (), body) if self._failed is None else self._failed(body)
        kept = {**chunk, **error.as_dict()}
        if type(kept.get("choices")) is list:
            kept["choices"] = [
                {name: value for name, value in choice.items() if name != "error"}
                for choice in kept["choices"]
                if type(choice) is dict
            ]
        return b"data: " + orjson.dumps(kept) + b"\n\n"

    @property
    def events(self) -> int:
        """See StreamDecoder."""
        return self.sample.events

    def tokens(self, model: str | None = None) -> int:
        """See StreamDecoder."""
        return streamed_tokens(self.sample, model)

    def finish(self) -> bytes:
        """See StreamDecoder. A stream may end without ``[DONE]`` only where the answer said why it ended."""
        rest = self._splitter.rest
        if self.failed:
            return b""
        if rest.strip() == b"data: [DONE]":  # without its blank line, which clients need
            self.ending = self.complete = True
            return rest.strip() + b"\n\n"
        if not rest and _FINISHED.search(self.sample.tail) is not None:
            self.complete = True
        return b""

    def failure(self, error: GatewayError) -> bytes:
        """See StreamDecoder."""
        return error.event()
