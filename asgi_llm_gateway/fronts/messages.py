"""Anthropic's Messages for providers that do not speak it. Source: Anthropic API reference, "Messages", 2023-06-01."""

from __future__ import annotations

from ..wire import LLMRequest
from ._messages_answer import whole
from ._messages_request import ask
from ._messages_stream import MessagesStream
from .base import Asked, FrontStream


class MessagesFront:
    """Anthropic's Messages to chat completions and back.

    What has no word in chat and would change the answer is refused by name (``Unsupported``): tools of Anthropic's own,
    files by id, documents by URL, an assistant message to go on from, more than four stop sequences, ``container``,
    ``mcp_servers``, ``inference_geo``. What is only a hint is left out and told: ``top_k``, thoughts of earlier turns,
    ``citations``, fields that are not known.
    """

    def request(self, request: LLMRequest) -> Asked:
        """See Front."""
        return ask(request)

    def response(self, request: LLMRequest, answer: bytes) -> bytes:
        """See Front.

        Arguments that are no JSON object come as ``{"INVALID_JSON": "..."}``; counts that the provider does not tell are
        estimated.
        """
        return whole(request, answer)

    def stream(self, request: LLMRequest) -> FrontStream:
        """See Front.

        Arguments go out as they come: only those that do not even begin as an object are held back and told as above.
        """
        return MessagesStream(request)


__all__ = ["MessagesFront"]
