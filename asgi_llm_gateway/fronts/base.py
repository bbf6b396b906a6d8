"""What a front is: a client's dialect to chat completions and back, as plain functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from ..errors import GatewayError
from ..wire import LLMRequest


class Asked(NamedTuple):
    """A request in chat's words.

    Attributes:
        data: The body of a chat completion. Of a stream it asks for the usage (``stream_options``).
        dropped: Fields of the client's that chat has no word for and that change no meaning; the client is told.
    """

    data: dict[str, Any]
    dropped: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"Asked({len(self.data)} fields)"  # no prompt


class FrontStream(Protocol):
    """One chat stream in the client's words: takes whole events, gives whole events back."""

    def feed(self, events: bytes) -> bytes:
        """The next events of the chat stream, whole ones (``data: {...}`` and comments). What cannot be read is passed over."""
        ...

    def finish(self) -> bytes:
        """The chat stream came to its own end: what is left to say. Nothing is said of a stream that did not."""
        ...

    def failure(self, error: GatewayError) -> bytes:
        """A failure in the middle of the stream, as one event."""
        ...


class Front(Protocol):
    """A client's dialect."""

    def request(self, request: LLMRequest) -> Asked:
        """The request in chat's words. Raises Unsupported for what has none and would change the answer."""
        ...

    def response(self, request: LLMRequest, answer: bytes) -> bytes:
        """A whole chat completion in the client's words. Raises UpstreamError for what is none."""
        ...

    def stream(self, request: LLMRequest) -> FrontStream:
        """An encoder for a chat stream."""
        ...
