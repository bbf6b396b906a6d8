"""A stream decoder round another one: what it knows of the stream is what the inner one knows."""

from __future__ import annotations

from ..errors import GatewayError
from ..records import Usage
from .base import StreamDecoder


class StreamAround:
    """See StreamDecoder. A subclass says what becomes of the inner one's events."""

    __slots__ = ("_inner",)

    def __init__(self, inner: StreamDecoder) -> None:
        self._inner = inner

    @property
    def usage(self) -> Usage | None:
        """See StreamDecoder."""
        return self._inner.usage

    @property
    def ending(self) -> bool:
        """See StreamDecoder."""
        return self._inner.ending

    @property
    def complete(self) -> bool:
        """See StreamDecoder."""
        return self._inner.complete

    @property
    def failed(self) -> bool:
        """See StreamDecoder."""
        return self._inner.failed

    @property
    def events(self) -> int:
        """See StreamDecoder."""
        return self._inner.events

    @property
    def sample(self) -> object:
        """The stream's last pieces, as the provider sent them."""
        return getattr(self._inner, "sample", None)

    def tokens(self, model: str | None = None) -> int:
        """See StreamDecoder."""
        return self._inner.tokens(model)

    def feed(self, data: bytes) -> bytes:
        """See StreamDecoder."""
        return self._inner.feed(data)

    def finish(self) -> bytes:
        """See StreamDecoder."""
        return self._inner.finish()

    def failure(self, error: GatewayError) -> bytes:
        """See StreamDecoder."""
        return self._inner.failure(error)
