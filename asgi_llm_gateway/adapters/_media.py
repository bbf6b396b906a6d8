"""Images, audio, speech and moderation at OpenAI-compatible providers: how they are asked, and how their answers are read.

Source: OpenAI API reference, "Images", "Audio" and "Moderations", as of autumn 2026.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import orjson

from .._sse import EventSplitter, EventTooLong
from ..errors import GatewayError, Header, UpstreamError
from ..media_usage import MAX_MEDIA_EVENT, MediaReader
from ..records import Usage
from ..usage import WHOLE_PARSE
from ..wire import LLMRequest
from .base import Adapter, Answer, Endpoint, UpstreamRequest, error_status

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_JSON: Header = (b"content-type", b"application/json")
_PASSED = (b"audio/", b"text/plain", b"text/vtt", b"text/srt", b"application/octet-stream", b"application/x-subrip",
           b"video/mp4", b"application/ogg")  # fmt: skip


def headers_of(headers: Sequence[Header]) -> list[Header]:
    """A provider's headers less those that each of these requests has of its own: what it is, and what it takes."""
    return [(name, value) for name, value in headers if name not in (b"content-type", b"accept")]


def upstream(endpoint: Endpoint, request: LLMRequest, model: str) -> UpstreamRequest:
    """The request to send: as it came, byte for byte, but for the model's name where the provider has another one."""
    asked = request if model == request.model else request.with_fields(model=model)
    return UpstreamRequest(endpoint, asked.body, headers=(_content_type(request), (b"accept", b"*/*")))


def _content_type(request: LLMRequest) -> Header:
    if request.form is None:
        return _JSON
    boundary = request.form.boundary
    return b"content-type", b"multipart/form-data; boundary=" + (
        boundary if _TOKEN.match(boundary) is not None else b'"%b"' % boundary
    )


def passes(kind: bytes) -> bool:
    """Whether an answer of that content type (in lower case) is sound or a transcript, and goes on as it comes."""
    return kind.startswith(_PASSED)


def answer(adapter: Adapter, request: LLMRequest, body: bytes) -> Answer:
    """A whole JSON answer. Raises UpstreamError for what is none."""
    if len(body) <= WHOLE_PARSE:
        try:
            found = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise UpstreamError(f"The provider '{adapter.name}' sent what is not JSON.") from None
        # ``response_format: text`` may come as a JSON string from some servers: it is passed on.
        if (
            type(found) is dict
            and found.get("error")
            and not any(found.get(name) for name in ("data", "text", "results"))
        ):
            raise adapter.error(error_status(body), (), body)
    reader = MediaReader(request, b"application/json")
    reader.feed(body)
    return Answer(body, reader.end())


class MediaStream:
    """One event stream of images, sound or a transcript: whole events, relayed byte for byte. See StreamDecoder."""

    __slots__ = ("_finished", "_name", "_reader", "_splitter")

    def __init__(self, name: str, request: LLMRequest) -> None:
        self._finished = False
        self._name = name
        self._reader = MediaReader(request, b"text/event-stream")
        self._splitter = EventSplitter(MAX_MEDIA_EVENT)

    @property
    def usage(self) -> Usage | None:
        """See StreamDecoder. Of several images nothing is told before the last one: one that breaks off is paid in full."""
        return self._reader.usage if self._finished or self._reader.ending else None

    @property
    def ending(self) -> bool:
        """See StreamDecoder."""
        return self._reader.ending

    @property
    def complete(self) -> bool:
        """See StreamDecoder."""
        return self._reader.complete

    @property
    def failed(self) -> bool:
        """See StreamDecoder."""
        return self._reader.failed

    @property
    def events(self) -> int:
        """See StreamDecoder."""
        return self._reader.events

    def tokens(self, model: str | None = None) -> int:
        """See StreamDecoder. None that can be counted: what was asked is what a broken stream is charged for."""
        return 0

    def feed(self, data: bytes) -> bytes:
        """See StreamDecoder."""
        try:
            whole = self._splitter.whole(data)
        except EventTooLong:
            raise UpstreamError(f"The provider '{self._name}' sent an event without an end.") from None
        if whole:
            self._reader.read(whole)
        return whole

    def finish(self) -> bytes:
        """See StreamDecoder. The last event may lack its blank line, which clients need."""
        self._finished = True
        rest = self._splitter.rest
        if not rest.strip():
            return b""
        self._reader.read(rest)
        return rest.rstrip(b"\r\n") + b"\n\n" if self._reader.complete else b""

    def failure(self, error: GatewayError) -> bytes:
        """See StreamDecoder."""
        return error.event()


__all__ = ["MediaStream", "answer", "headers_of", "passes", "upstream"]
