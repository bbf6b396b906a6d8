"""Anthropic's SDK inside a FastAPI app that is wrapped by the gateway's layers."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from ..upstream import always, event, streaming, whole
from .host import COST, HELLO, host

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 5},
}


def named(kind: str, **fields: Any) -> bytes:
    """One of Anthropic's events."""
    return f"event: {kind}\n".encode() + event({"type": kind, **fields})


MESSAGE_STREAM = (
    named("message_start", message={**MESSAGE, "content": [], "usage": {"input_tokens": 3, "output_tokens": 1}}),
    named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    named("content_block_delta", index=0, delta={"type": "text_delta", "text": "hi"}),
    named("content_block_stop", index=0),
    named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}),
    named("message_stop"),
)


async def test_a_message_is_metered() -> None:
    """Anthropic's SDK, unchanged but for its client."""
    async with host(always(whole(MESSAGE))) as shop:

        async def handler() -> Any:
            said = await shop.anthropic.messages.create(model="m", messages=HELLO, max_tokens=50)
            return [block.text for block in said.content if isinstance(block, anthropic.types.TextBlock)]

        shop.route(handler)
        assert (await shop.ask()).json() == ["hi"]
        assert await shop.spent() == COST
        assert shop.provider.requests[0].json() == {"model": "m", "messages": HELLO, "max_tokens": 50}


async def test_a_message_stream_is_metered() -> None:
    """With the SDK's helper."""
    async with host(streaming(*MESSAGE_STREAM)) as shop:

        async def handler() -> Any:
            async with shop.anthropic.messages.stream(model="m", messages=HELLO, max_tokens=50) as stream:
                return [text async for text in stream.text_stream]

        shop.route(handler)
        assert (await shop.ask()).json() == ["hi"]
        assert await shop.spent() == COST


async def test_anthropics_sdk_is_refused_in_its_own_words() -> None:
    """402 with Anthropic's envelope, and no second try."""
    async with host(always(whole(MESSAGE)), budget=100) as shop:

        async def handler() -> Any:
            with pytest.raises(anthropic.APIStatusError) as refused:
                await shop.anthropic.messages.create(model="m", messages=HELLO, max_tokens=50)
            return [refused.value.status_code, refused.value.body]

        shop.route(handler)
        status, body = (await shop.ask()).json()
        assert (status, body["error"]["type"], body["error"]["code"]) == (402, "billing_error", "would_exceed_budget")
        assert shop.provider.requests == []
        assert await shop.spent() == 0
