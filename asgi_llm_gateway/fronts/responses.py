"""OpenAI's Responses for providers that do not speak it. Source: OpenAI API reference, "Responses", autumn 2026.

No state is kept: every request is served as ``"store": false``, and what would need a memory is refused by name.
"""

from __future__ import annotations

from ..wire import LLMRequest
from ._responses_answer import answer
from ._responses_request import translate
from ._responses_stream import ResponsesEncoder
from .base import Asked


class ResponsesFront:
    """See Front."""

    def request(self, request: LLMRequest) -> Asked:
        """See Front."""
        return translate(request)

    def response(self, request: LLMRequest, body: bytes) -> bytes:
        """See Front."""
        return answer(request, body)

    def stream(self, request: LLMRequest) -> ResponsesEncoder:
        """See Front."""
        return ResponsesEncoder(request)
