"""OpenAI's SDK, Responses, with every provider."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, ClassVar

import openai

from .clients import TLS, TOOLS, Ask, City, Seen, entered, everything, now
from .model import Called, Counts
from .pairs import Pairs, called


class ResponsesClient:
    """See Client."""

    sdk: ClassVar[Any] = openai
    tells_thoughts: ClassVar[frozenset[str]] = frozenset({"openai", "anthropic", "vendor"})
    replays_thoughts: ClassVar[frozenset[str]] = frozenset(
        {"openai"}
    )  # the item holds no signature that Anthropic would take
    hands_over_errors: ClassVar[frozenset[str]] = frozenset({"openai"})
    cannot_move_to: ClassVar[frozenset[str]] = frozenset()

    def open(self, url: str, key: str, *, sync: bool, max_retries: int = 0, strict: bool = True) -> Any:
        """See Client."""
        kind: Any = openai.OpenAI if sync else openai.AsyncOpenAI
        http: Any = openai.DefaultHttpxClient if sync else openai.DefaultAsyncHttpxClient
        return kind(base_url=url + "/v1", api_key=key, max_retries=max_retries, http_client=http(verify=TLS),
                    _strict_response_validation=strict)  # fmt: skip

    def fields(self, ask: Ask) -> dict[str, Any]:
        """See Client."""
        given: Any = [{"role": "user", "content": ask.words}]
        if ask.image is not None:
            url = "data:image/png;base64," + base64.b64encode(ask.image).decode()
            parts = [
                {"type": "input_text", "text": ask.words},
                {"type": "input_image", "image_url": url, "detail": "auto"},
            ]
            given = [{"role": "user", "content": parts}]
        fields: dict[str, Any] = {"model": ask.model, "input": given}
        if ask.system:
            fields["instructions"] = ask.system
        if ask.tools:
            fields["tools"] = [{"type": "function", "name": name, "parameters": schema, "strict": True}
                               for name, schema in TOOLS.items()]  # fmt: skip
        if ask.thinks:
            fields |= {"reasoning": {"effort": "medium", "summary": "auto"}, "include": ["reasoning.encrypted_content"]}
        if ask.limit is not None:
            fields["max_output_tokens"] = ask.limit
        return fields

    def goes_on(self, fields: dict[str, Any], seen: Seen, results: dict[str, str]) -> dict[str, Any]:
        """See Client."""
        told = [{"type": "function_call_output", "call_id": id, "output": text} for id, text in results.items()]
        return {**fields, "input": [*fields["input"], *seen.raw.output, *told]}

    def _seen(self, answer: Any) -> Seen:
        text = thoughts = refusal = ""
        calls: list[Called] = []
        for item in answer.output:
            if item.type == "message":
                text += "".join(part.text for part in item.content if part.type == "output_text")
                refusal += "".join(part.refusal for part in item.content if part.type == "refusal")
            elif item.type == "reasoning":
                thoughts += "".join(part.text for part in item.summary)
            else:
                calls.append(called(item.call_id, item.name, item.arguments))
        why = answer.incomplete_details.reason if answer.incomplete_details is not None else None
        assert (answer.status == "incomplete") == (why is not None)
        end = "refusal" if refusal else "length" if why == "max_output_tokens" else "calls" if calls else "stop"
        usage = answer.usage
        parts, made = usage.input_tokens_details, usage.output_tokens_details  # llama.cpp tells some of them
        counts = Counts(usage.input_tokens, usage.output_tokens, parts.cached_tokens,
                        parts.cache_write_tokens or 0, made.reasoning_tokens if made is not None else 0)  # fmt: skip
        return Seen(text, end, counts, calls, thoughts, refusal, raw=answer)

    async def whole(self, client: Any, fields: dict[str, Any]) -> Seen:
        """See Client."""
        raw = await now(client.responses.with_raw_response.create(**fields))
        seen = self._seen(raw.parse())
        seen.cost, seen.trace = float(raw.headers["x-llm-cost-usd"]), raw.headers["x-trace-id"]
        return seen

    async def stream(self, client: Any, fields: dict[str, Any], first: Callable[[], Any] | None = None) -> Seen:
        """See Client."""
        async with entered(client.responses.stream(**fields)) as events:
            await everything(events, first)
            return self._seen(await now(events.get_final_response()))

    def put_together(self, events: list[Any]) -> Seen:
        """See Client."""
        seen = self._seen(events[-1].response)
        assert seen.text == "".join(map(self.piece, events))
        assert seen.refusal == "".join(event.delta for event in events if event.type == "response.refusal.delta")
        return seen

    async def begun(self, client: Any, fields: dict[str, Any]) -> Any:
        """See Client."""
        return await now(client.responses.create(**fields, stream=True))

    def piece(self, event: Any) -> str:
        """See Client."""
        return event.delta if event.type == "response.output_text.delta" else ""

    def cost(self, event: Any) -> float | None:
        """See Client."""
        return (event.model_extra or {}).get("cost_usd")

    async def parsed(self, client: Any, fields: dict[str, Any], *, stream: bool) -> Any:
        """See Client."""
        if not stream:
            return (await now(client.responses.parse(**fields, text_format=City))).output_parsed
        async with entered(client.responses.stream(**fields, text_format=City)) as events:
            return (await now(events.get_final_response())).output_parsed


class TestResponses(Pairs):
    """Responses."""

    client = ResponsesClient()
