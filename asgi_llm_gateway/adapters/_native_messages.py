"""Anthropic's Messages passed on as they are, from any server that speaks them.

Sources: Anthropic API reference, "Messages", "Streaming messages", "Errors" and "Count tokens", 2023-06-01.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import orjson

from .._sample import StreamSample, streamed_tokens
from .._sse import EventSplitter, EventTooLong, data_of, split
from ..errors import GatewayError, UpstreamError
from ..records import Usage
from ..usage import WHOLE_PARSE
from ..wire import LLMRequest
from ._anthropic_usage import Tally, counts
from .base import Answer, FailedAnswer, UpstreamRequest, error_status, failure


def native_answer(name: str, body: bytes, failed_with: Callable[[bytes], GatewayError]) -> Answer:
    """A whole message, byte for byte, and its counts.

    Args:
        name: The provider's name.
        body: What it sent with a 200.
        failed_with: What an error inside a 200 is called towards the client.

    Raises UpstreamError for what is no message, FailedAnswer with what ``failed_with`` makes of an error.
    """
    usage = _usage_at_end(body)
    if usage is not None and body.find(b'"error"') < 0 and body.find(b'"content"') >= 0:
        return Answer(body, usage)
    if len(body) > WHOLE_PARSE:
        return Answer(body, usage)
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise UpstreamError(f"The provider '{name}' sent what is not JSON.") from None
    if type(told) is dict and (told.get("type") == "error" or (told.get("error") and "content" not in told)):
        raise FailedAnswer(failed_with(body), counts(told.get("usage")))
    if type(told) is not dict or type(told.get("content")) is not list:
        raise UpstreamError(f"The provider '{name}' sent JSON that is no answer.")
    return Answer(body, counts(told.get("usage")))


def _usage_at_end(body: bytes) -> Usage | None:
    """The counts, where they stand at the end as servers write them: then the content need not be parsed.

    ``{`` and the tail from the key on parse as an object only if the key stands at the top level.
    """
    at = body.rfind(b'"usage"')
    try:
        usage = orjson.loads(b"{" + body[at:])["usage"] if at >= 0 else None
    except orjson.JSONDecodeError:
        return None
    return counts(usage) if type(usage) is dict and "input_tokens" in usage else None


@runtime_checkable
class CountsTokens(Protocol):
    """An adapter whose provider counts the tokens of a prompt, for nothing: ``POST /v1/messages/count_tokens``."""

    def count_request(self, request: LLMRequest, model: str) -> UpstreamRequest | None:
        """What to send for the provider's own ``model``; ``None`` where it does not count. Raises Unsupported, BadRequest.

        The answer is ``{"input_tokens": n}``, see ``counted``.
        """
        ...


def counted(name: str, body: bytes) -> int:
    """The tokens in the answer of the provider ``name`` to a ``count_request``. Raises UpstreamError for what is no count."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        told = None
    found = told.get("input_tokens") if type(told) is dict else None
    if type(found) is not int or found < 0:
        raise UpstreamError(f"The provider '{name}' sent no count of tokens.")
    return found


# The pieces of content, which most events of a stream are, as servers write them. Neither text can stand inside another
# event: JSON has no line break but in white space.
_PIECES = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta"',
    b'event: content_block_delta\ndata: {"type": "content_block_delta"',
)
_TYPE = re.compile(rb'\s*\{\s*"type"\s*:\s*"([a-z_]+)"')
_ERROR_LINE = re.compile(rb"(?:^|[\r\n])event: ?error *[\r\n]")
_NEWS = ("message_start", "message_delta", "message_stop", "error")
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


class MessagesStream:
    """One event stream of Messages: relayed byte for byte, event by event, and read only where it tells news.

    The news are its start and its end, the counts in both, and an error, which goes on in the gateway's own words.

    Args:
        name: The provider's name.
        failed_with: What an error is called towards the client, without keys and hosts; it takes the event's data, whose
            status ``error_status`` knows. ``None`` knows no keys and hosts but by their looks.
    """

    __slots__ = ("_failed_with", "_name", "_splitter", "_stopped", "_tally", "complete", "ending", "failed", "sample")

    def __init__(self, name: str, failed_with: Callable[[bytes], GatewayError] | None = None) -> None:
        self.sample = StreamSample()
        self.ending = False
        self.complete = False
        self.failed = False
        self._name = name
        self._failed_with = failed_with or (lambda data: failure(name, error_status(data), (), data))
        self._splitter = EventSplitter()
        self._tally = Tally()
        self._stopped = False  # the reason of the end was told

    @property
    def usage(self) -> Usage | None:
        """See StreamDecoder."""
        return self._tally.so_far(self._stopped or self.complete, self.tokens)

    @property
    def events(self) -> int:
        """See StreamDecoder."""
        return self.sample.events

    def tokens(self, model: str | None = None) -> int:
        """See StreamDecoder."""
        return streamed_tokens(self.sample, model)

    def feed(self, data: bytes) -> bytes:
        """See StreamDecoder. Only whole events go on, so that an error can follow at any time."""
        try:
            whole = self._splitter.whole(data)
        except EventTooLong:
            raise UpstreamError(f"The provider '{self._name}' sent an event without an end.") from None
        if self.failed or not whole:
            return b""
        for piece in _PIECES:
            if whole.startswith(piece):
                # Nothing but pieces, if each has its three line ends and there are no others.
                count = whole.count(piece)
                if whole.count(b"\n") == 3 * count and whole.find(b"\r") < 0:
                    self.sample.add(whole, count)
                    return whole
        return b"".join([self._read(event) for event in split(whole)])

    def finish(self) -> bytes:
        """See StreamDecoder. A stream may end without ``message_stop`` only where the answer said why it ended."""
        rest, out = self._splitter.rest, b""
        if rest.strip() and not self.failed:
            try:  # a last event without its blank line counts, if there is no half of it missing
                orjson.loads(data_of(rest) or b"")
            except orjson.JSONDecodeError:
                return b""
            out = self._read(rest.rstrip(b"\r\n") + b"\n\n")
        if self.complete or self.failed or not self._stopped:
            return out
        self.ending = self.complete = True
        return out + _STOP  # clients wait for it

    def failure(self, error: GatewayError) -> bytes:
        """See StreamDecoder."""
        return error.event("anthropic")

    def _read(self, event: bytes) -> bytes:
        """Look into one event; what of it goes on."""
        if self.failed:
            return b""
        data = data_of(event)
        if data is None:  # a comment
            return event
        kind, told = self._look(event, data)
        self.sample.add(event, int(kind != "ping"))  # a sign of life is no part of an answer
        if kind == "message_start":
            message = told.get("message")
            self._tally.begin(message.get("usage") if type(message) is dict else None)
        elif kind == "message_delta":
            self._tally.add(told.get("usage"))
            delta = told.get("delta")
            if type(delta) is dict and delta.get("stop_reason") is not None:
                self._stopped = True
            # Where the counts are still to come, the money waits for them.
            self.ending = self.ending or (self._stopped and self._tally.counted)
        elif kind == "message_stop":
            self.ending = self.complete = True
        elif kind == "error":
            if self.complete:
                return b""
            self.failed = self.ending = True
            return self._failed_with(data).event("anthropic")
        return event

    def _look(self, event: bytes, data: bytes) -> tuple[str, dict[str, Any]]:
        """What kind of event it is, and what it tells where that is news. Raises UpstreamError for news that are no JSON."""
        if _ERROR_LINE.search(event) is not None:  # the official client goes by this line
            return "error", {}
        found = _TYPE.match(data)
        if found is not None:
            kind = found[1].decode()
            if kind not in _NEWS or kind in ("message_stop", "error"):
                return kind, {}
        elif not any(data.find(word.encode()) >= 0 for word in _NEWS):
            return "", {}
        try:
            told = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise UpstreamError(f"The provider '{self._name}' sent an event that is not JSON.") from None
        if type(told) is not dict:
            return "", {}
        given = told.get("type")
        if given is None and told.get("error"):
            return "error", {}
        return given if type(given) is str else "", told


__all__ = ["CountsTokens", "MessagesStream", "counted", "native_answer"]
