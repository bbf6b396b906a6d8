"""OpenAI's SDK, Chat Completions, with every provider."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, ClassVar

import openai

from .clients import TLS, TOOLS, Ask, City, Seen, entered, everything, now
from .model import Called, Counts
from .pairs import Pairs, called

ENDS = {"stop": "stop", "length": "length", "tool_calls": "calls", "content_filter": "refusal"}


class ChatClient:
    """See Client."""

    sdk: ClassVar[Any] = openai
    tells_thoughts: ClassVar[frozenset[str]] = frozenset(
        {"anthropic", "vendor"}
    )  # OpenAI has no word for them in this API
    replays_thoughts: ClassVar[frozenset[str]] = frozenset({"anthropic"})
    hands_over_errors: ClassVar[frozenset[str]] = frozenset()
    cannot_move_to: ClassVar[frozenset[str]] = frozenset()

    def open(self, url: str, key: str, *, sync: bool, max_retries: int = 0, strict: bool = True) -> Any:
        """See Client."""
        kind: Any = openai.OpenAI if sync else openai.AsyncOpenAI
        http: Any = openai.DefaultHttpxClient if sync else openai.DefaultAsyncHttpxClient
        return kind(base_url=url + "/v1", api_key=key, max_retries=max_retries, http_client=http(verify=TLS),
                    _strict_response_validation=strict)  # fmt: skip

    def fields(self, ask: Ask) -> dict[str, Any]:
        """See Client."""
        content: Any = ask.words
        if ask.image is not None:
            url = "data:image/png;base64," + base64.b64encode(ask.image).decode()
            content = [{"type": "text", "text": ask.words}, {"type": "image_url", "image_url": {"url": url}}]
        messages: list[Any] = [{"role": "system", "content": ask.system}] if ask.system else []
        fields: dict[str, Any] = {"model": ask.model, "messages": [*messages, {"role": "user", "content": content}]}
        if ask.tools:
            fields["tools"] = [{"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}
                               for name, schema in TOOLS.items()]  # fmt: skip
        if ask.thinks:
            fields["reasoning_effort"] = "medium"
        if ask.limit is not None:
            fields["max_completion_tokens"] = ask.limit
        return fields

    def goes_on(self, fields: dict[str, Any], seen: Seen, results: dict[str, str]) -> dict[str, Any]:
        """See Client."""
        told = [{"role": "tool", "tool_call_id": id, "content": text} for id, text in results.items()]
        said = seen.raw.choices[0].message  # the SDK's own object, with what it does not know of
        return {**fields, "messages": [*fields["messages"], said, *told]}

    def _seen(self, answer: Any) -> Seen:
        choice, usage = answer.choices[0], answer.usage
        message = choice.message
        calls: list[Called] = [
            called(one.id, one.function.name, one.function.arguments) for one in message.tool_calls or ()
        ]
        parts, made = usage.prompt_tokens_details, usage.completion_tokens_details
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        counts = Counts(usage.prompt_tokens, usage.completion_tokens, parts.cached_tokens or 0,
                        (parts.model_extra or {}).get("cache_write_tokens", getattr(parts, "cache_write_tokens", 0)) or 0,
                        made.reasoning_tokens if made is not None and made.reasoning_tokens else 0)  # fmt: skip
        thoughts = (message.model_extra or {}).get("reasoning_content") or ""
        refusal = message.refusal or ""
        end = "refusal" if refusal else ENDS[choice.finish_reason]
        return Seen(message.content or "", end, counts, calls, thoughts, refusal, raw=answer)

    async def whole(self, client: Any, fields: dict[str, Any]) -> Seen:
        """See Client."""
        raw = await now(client.chat.completions.with_raw_response.create(**fields))
        seen = self._seen(raw.parse())
        seen.cost, seen.trace = float(raw.headers["x-llm-cost-usd"]), raw.headers["x-trace-id"]
        return seen

    async def stream(self, client: Any, fields: dict[str, Any], first: Callable[[], Any] | None = None) -> Seen:
        """See Client."""
        asked = {**fields, "stream_options": {"include_usage": True}}
        async with entered(client.chat.completions.stream(**asked)) as events:
            await everything(events, first)
            return self._seen(await now(events.get_final_completion()))

    def put_together(self, events: list[Any]) -> Seen:
        """See Client."""
        choices = [event.choices[0] for event in events if event.choices]
        text = "".join(choice.delta.content or "" for choice in choices)
        refusal = "".join(choice.delta.refusal or "" for choice in choices)
        (reason,) = [choice.finish_reason for choice in choices if choice.finish_reason is not None]
        return Seen(text, "refusal" if refusal else ENDS[reason], None, refusal=refusal)

    async def begun(self, client: Any, fields: dict[str, Any]) -> Any:
        """See Client."""
        asked = {**fields, "stream_options": {"include_usage": True}}
        return await now(client.chat.completions.create(**asked, stream=True))

    def piece(self, event: Any) -> str:
        """See Client."""
        return (event.choices[0].delta.content or "") if event.choices else ""

    def cost(self, event: Any) -> float | None:
        """See Client."""
        return (event.model_extra or {}).get("cost_usd")

    async def parsed(self, client: Any, fields: dict[str, Any], *, stream: bool) -> Any:
        """See Client."""
        if not stream:
            return (await now(client.chat.completions.parse(**fields, response_format=City))).choices[0].message.parsed
        async with entered(client.chat.completions.stream(**fields, response_format=City)) as events:
            return (await now(events.get_final_completion())).choices[0].message.parsed


class TestChat(Pairs):
    """Chat Completions."""

    client = ChatClient()
