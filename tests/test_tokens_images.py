"""Images and files before they are counted: by their model's rule, wherever they are, and no text passes for one."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_llm_gateway.tokens import (
    FILE_TOKENS,
    FIXED_TOKENS,
    TOOL_TOKENS,
    prompt_bound,
)

from .counting import IMAGES, asking, count, request, with_image
from .counting import vocabulary as vocabulary


@pytest.mark.parametrize("dialect", IMAGES)
@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-4o", 1_445), ("gpt-4o-2024-08-06", 1_445), ("openai/gpt-4o", 1_445), ("gpt-4o-mini", 48_169),
        ("gpt-4.1", 1_536), ("gpt-4.1-mini", 2_489), ("gpt-4.1-nano", 3_779), ("o4-mini", 2_642), ("gpt-5", 1_190),
        ("claude-sonnet-4-5", 4_784), ("anthropic/claude-opus-5", 4_784), ("nobody-knows", 48_169), ("gpt-5.9", 48_169),
    ],
)  # fmt: skip
def test_an_inline_image_counts_by_its_models_rule(dialect: str, model: str, tokens: int) -> None:
    """Not by its bytes, which are no text."""
    asked = with_image(dialect, IMAGES[dialect], model)
    bound = prompt_bound(asked)
    assert tokens <= bound <= tokens + FIXED_TOKENS + 400
    assert len(asked.raw) > 200_000


@pytest.mark.parametrize(
    ("dialect", "image"),
    [
        ("chat", {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}),
        ("chat", {"type": "image_url", "image_url": "https://example.org/x.png"}),
        ("chat", {"image_url": {"url": "https://example.org/x.png"}}),
        ("messages", {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}),
        ("messages", {"type": "image", "source": {"type": "file", "file_id": "file_1"}}),
        ("responses", {"type": "input_image", "file_id": "file_1"}),
        ("messages", {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "u"}}]}),
        ("messages", {"type": "document", "source": {"type": "content", "content": [IMAGES["messages"]]}}),
    ],
)
def test_an_image_that_is_not_in_the_body_counts_as_well(dialect: str, image: dict[str, Any]) -> None:
    """A URL has few bytes and many tokens."""
    assert prompt_bound(with_image(dialect, image, "gpt-4o-mini")) > 48_169


def test_an_image_at_low_detail_counts_its_base() -> None:
    """85 tokens with gpt-4o; with a model of patches as many as ever."""
    image = {"type": "image_url", "image_url": {"url": "https://example.org/x.png", "detail": "low"}}
    plain = with_image("chat", image, "gpt-4o")
    assert prompt_bound(plain) == len(plain.raw) + FIXED_TOKENS + 85
    assert prompt_bound(plain, model="gpt-4.1-mini") == len(plain.raw) + FIXED_TOKENS + 2_489


@pytest.mark.parametrize("kind", [r"image_url", r"\u0069mage_url", r"imag\u0065_url", r"\u0069\u006D\u0061ge_\u0075rl"])
def test_a_kind_in_disguise_is_seen(kind: str) -> None:
    """JSON may spell any letter by its number."""
    raw = '{"model":"gpt-4o","messages":[{"role":"user","content":[{"type":"KIND","KIND":{"url":"u"}}]}]}'
    raw = raw.replace("KIND", kind)
    assert prompt_bound(request(raw=raw.encode())) > 1_445


def test_a_schema_that_speaks_of_images_has_none() -> None:
    """A tool's argument may bear any name."""
    tool = {
        "function": {"name": "f", "parameters": {"properties": {"image_url": {"type": "string"}}}},
        "type": "function",
    }
    asked = request(tools=[tool])
    assert prompt_bound(asked) == len(asked.raw) + FIXED_TOKENS + TOOL_TOKENS


@pytest.mark.parametrize("count_of_images", [0, 1, 7])
def test_each_image_counts(count_of_images: int) -> None:
    """Twenty URLs are twenty images."""
    urls = [{"type": "image_url", "image_url": {"url": "u"}}] * count_of_images
    asked = asking({"type": "text", "text": "Hi"}, *urls)
    assert prompt_bound(asked) == len(asked.raw) + FIXED_TOKENS + 1_445 * count_of_images


TEXT = "1 2 3 " * 20_000  # two tokens for each three letters or so, passed off as an image


@pytest.mark.parametrize(
    ("dialect", "message"),
    [
        ("messages", {"role": "assistant", "content": [
            {"type": "tool_use", "id": "t", "name": "f",
             "input": {"type": "image", "source": {"type": "base64", "data": TEXT}}}]}),
        ("messages", {"role": "assistant", "content": [
            {"type": "tool_use", "id": "t", "name": "f",
             "input": {"content": [{"type": "image", "source": {"type": "base64", "data": TEXT}}]}}]}),
        ("chat", {"role": "user", "content": [{"type": "image_url", "image_url": {"url": TEXT}}]}),
        ("chat", {"role": "user", "content": [{"type": "text", "text": TEXT, "image_url": {"url": "data:image/png,"}}]}),
        ("chat", {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": TEXT}}]}),
        ("messages", {"role": "user", "content": [{"type": "image", "source": {"type": "text", "data": TEXT}}]}),
    ],
)  # fmt: skip
def test_text_that_looks_like_an_image_is_not_taken_off(dialect: str, message: dict[str, Any]) -> None:
    """Only where the dialect has an image, and written as one, do bytes not count."""
    assert prompt_bound(request(dialect, messages=[message], model="gpt-4o")) > count(TEXT)


def test_a_file_counts_its_bytes_and_not_less_than_a_documents_tokens() -> None:
    """A PDF is compressed, and an id or a URL says nothing of its length."""
    pdf = "data:application/pdf;base64,JVBERi0"
    for part in (
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": pdf, "filename": "x.pdf"}},
        {"type": "input_file", "file_url": "https://example.org/x.pdf"},
        {"type": "document", "source": {"type": "url", "url": "https://example.org/x.pdf"}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0"}},
        {"type": "video_url", "video_url": {"url": "https://example.org/x.mp4"}},
    ):
        assert FILE_TOKENS <= prompt_bound(asking(part)) <= FILE_TOKENS + 1_000, part
    large = asking({"type": "file", "file": {"file_data": pdf + "A" * 90_000}})
    assert prompt_bound(large) == len(large.raw) + FIXED_TOKENS
    plain = asking({"type": "document", "source": {"type": "text", "data": "Once upon a time"}}, dialect="messages")
    assert prompt_bound(plain) == len(plain.raw) + FIXED_TOKENS
