"""Chat requests for Anthropic's models, and what goes out for them: what the tests of the mapping begin with."""

from __future__ import annotations

import json
from typing import Any

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

ADAPTER = AnthropicAdapter("anthropic", "https://api.example.com", "sk-ant-abcdefghijklmnop")
NEW, OLD = "claude-sonnet-4-6", "claude-3-5-sonnet-20241022"
HI = [{"role": "user", "content": "hi"}]
PIXEL = "iVBORw0KGgo="
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {}}}}}
CACHED = {"type": "ephemeral"}


def request(path: str = "/v1/chat/completions", **fields: Any) -> LLMRequest:
    """A parsed request."""
    told: dict[str, Any] = {"model": "m", "messages": HI, **fields}
    return parse(Route("metered", METERED[path], path), json.dumps(told).encode())


def sent(model: str = NEW, **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body that goes out, and what was left out of it."""
    found = ADAPTER.request(request(**fields), model)
    return json.loads(found.body), found.dropped


def turns(*messages: dict[str, Any], model: str = NEW) -> Any:
    """The messages that go out."""
    return sent(model, messages=list(messages))[0]["messages"]


def call(id: str, name: str = "look", arguments: Any = "{}") -> dict[str, Any]:
    """A call of the history."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def user(*content: Any) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": content[0] if len(content) == 1 and type(content[0]) is str else list(content)}


def text(words: str, **more: Any) -> dict[str, Any]:
    """A block, or a part, of text."""
    return {"type": "text", "text": words, **more}


def image(url: str, **more: Any) -> dict[str, Any]:
    """An image as clients send it."""
    return {"type": "image_url", "image_url": {"url": url, **more}}
