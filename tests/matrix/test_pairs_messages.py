"""Anthropic's SDK, Messages, with every provider."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, ClassVar

import anthropic

from .clients import TLS, TOOLS, Ask, City, Seen, entered, everything, now
from .model import Called, Counts
from .pairs import Pairs

ENDS = {"end_turn": "stop", "max_tokens": "length", "tool_use": "calls", "refusal": "refusal"}


class MessagesClient:
    """See Client."""

    sdk: ClassVar[Any] = anthropic
    tells_thoughts: ClassVar[frozenset[str]] = frozenset(
        {"anthropic", "vendor"}
    )  # OpenAI tells none of its own in chat
    replays_thoughts: ClassVar[frozenset[str]] = frozenset({"anthropic"})
    hands_over_errors: ClassVar[frozenset[str]] = frozenset()
    cannot_move_to: ClassVar[frozenset[str]] = frozenset()

    def open(self, url: str, key: str, *, sync: bool, max_retries: int = 0, strict: bool = True) -> Any:
        """See Client."""
        kind: Any = anthropic.Anthropic if sync else anthropic.AsyncAnthropic
        http: Any = anthropic.DefaultHttpxClient if sync else anthropic.DefaultAsyncHttpxClient
        return kind(base_url=url, api_key=key, max_retries=max_retries, http_client=http(verify=TLS),
                    _strict_response_validation=strict)  # fmt: skip

    def fields(self, ask: Ask) -> dict[str, Any]:
        """See Client."""
        content: Any = ask.words
        if ask.image is not None:
            source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(ask.image).decode()}
            content = [{"type": "image", "source": source}, {"type": "text", "text": ask.words}]
        fields: dict[str, Any] = {"model": ask.model, "max_tokens": ask.limit or 4000,
                                  "messages": [{"role": "user", "content": content}]}  # fmt: skip
        if ask.system:
            fields["system"] = ask.system
        if ask.tools:
            fields["tools"] = [{"name": name, "input_schema": schema} for name, schema in TOOLS.items()]
        if ask.thinks:
            fields["thinking"] = {"type": "enabled", "budget_tokens": 2048}
        return fields

    def goes_on(self, fields: dict[str, Any], seen: Seen, results: dict[str, str]) -> dict[str, Any]:
        """See Client."""
        told = [{"type": "tool_result", "tool_use_id": id, "content": text} for id, text in results.items()]
        turns = [{"role": "assistant", "content": seen.raw.content}, {"role": "user", "content": told}]
        return {**fields, "messages": [*fields["messages"], *turns]}

    def _seen(self, answer: Any) -> Seen:
        texts, calls, thoughts = "", list[Called](), ""
        for block in answer.content:
            if block.type == "text":
                texts += block.text
            elif block.type == "tool_use":
                calls.append(Called(block.id, block.name, block.input))
            else:
                thoughts += block.thinking
        end, refusal = ENDS[answer.stop_reason], ""
        if end == "refusal":
            refusal, texts = answer.stop_details.explanation, ""
        usage = answer.usage
        cached, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
        details = usage.output_tokens_details
        thought = details.thinking_tokens if details is not None else 0
        counts = Counts(usage.input_tokens + cached + written, usage.output_tokens, cached, written, thought)
        return Seen(texts, end, counts, calls, thoughts, refusal, raw=answer)

    async def whole(self, client: Any, fields: dict[str, Any]) -> Seen:
        """See Client."""
        raw = await now(client.messages.with_raw_response.create(**fields))
        seen = self._seen(await now(raw.parse()))
        seen.cost, seen.trace = float(raw.headers["x-llm-cost-usd"]), raw.headers["x-trace-id"]
        return seen

    async def stream(self, client: Any, fields: dict[str, Any], first: Callable[[], Any] | None = None) -> Seen:
        """See Client."""
        async with entered(client.messages.stream(**fields)) as events:
            await everything(events, first)
            return self._seen(await now(events.get_final_message()))

    def put_together(self, events: list[Any]) -> Seen:
        """See Client."""
        (last,) = [event for event in events if event.type == "message_delta"]
        text, end, details = "".join(map(self.piece, events)), ENDS[last.delta.stop_reason], last.delta.stop_details
        return Seen("" if details else text, end, None, refusal=details.explanation if details else "")

    async def begun(self, client: Any, fields: dict[str, Any]) -> Any:
        """See Client."""
        return await now(client.messages.create(**fields, stream=True))

    def piece(self, event: Any) -> str:
        """See Client."""
        delta = event.delta if event.type == "content_block_delta" else None
        return delta.text if delta is not None and delta.type == "text_delta" else ""

    def cost(self, event: Any) -> float | None:
        """See Client."""
        return (event.model_extra or {}).get("cost_usd")

    async def parsed(self, client: Any, fields: dict[str, Any], *, stream: bool) -> Any:
        """See Client."""
        if not stream:
            return (await now(client.messages.parse(**fields, output_format=City))).parsed_output
        async with entered(client.messages.stream(**fields, output_format=City)) as events:
            return (await now(events.get_final_message())).parsed_output


class TestMessages(Pairs):
    """Messages."""

    client = MessagesClient()
