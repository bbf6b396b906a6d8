"""Requests to be counted, the texts that are hard to count, and the real tokenizer that counts them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import strategies as st

from asgi_llm_gateway import _vocabulary
from asgi_llm_gateway.wire import METERED, LLMRequest, Table, parse

PATHS = {dialect: path for path, dialect in METERED.items()}
PNG = "iVBORw0KGgo" * 20_000
DATA_URL = f"data:image/png;base64,{PNG}"

# Whatever a client may write: all of Unicode but what is no text, control characters included.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
# What is dense in tokens: few letters, digits, spaces, emoji, scripts that a vocabulary knows little of.
dense = st.text(st.sampled_from('a1 \n\t\x00\x1b\u200b{}[]"\\,é日本한ไ🎉👩‍🚀﷽ꙮ𒐫'), max_size=200)


@pytest.fixture(scope="module", autouse=True)
def vocabulary() -> None:
    """The real tokenizer."""
    assert _vocabulary.load() == "quicktok"


def request(dialect: str = "chat", *, raw: bytes | None = None, **fields: Any) -> LLMRequest:
    """A request as it is read from its body."""
    fields.setdefault("model", "gpt-4o")
    if dialect in ("chat", "messages"):
        fields.setdefault("messages", [{"role": "user", "content": "Hi"}])
    route = Table().match({"path": PATHS[dialect]})  # type: ignore[index]
    return parse(route, raw if raw is not None else json.dumps(fields).encode())


def asking(*parts: Any, dialect: str = "chat", **fields: Any) -> LLMRequest:
    """One message of these parts."""
    return request(dialect, messages=[{"role": "user", "content": list(parts)}], **fields)


def count(text: str, model: str = "gpt-4o") -> int:
    """What the provider would count."""
    found = _vocabulary.count(text, model)
    assert found is not None
    return found


IMAGES: dict[str, dict[str, Any]] = {
    "chat": {"type": "image_url", "image_url": {"url": DATA_URL}},
    "messages": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
    "responses": {"type": "input_image", "image_url": DATA_URL},
}


def with_image(dialect: str, image: dict[str, Any], model: str) -> LLMRequest:
    """One image in the place where its dialect has it."""
    said: Any = [{"role": "user", "content": [image]}]
    fields: dict[str, Any] = {"input" if dialect == "responses" else "messages": said}
    return request(dialect, **fields, model=model)
