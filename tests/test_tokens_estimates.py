"""Texts counted exactly or by their bytes, and estimates of what was not counted."""

from __future__ import annotations

from hypothesis import given

from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.tokens import (
    estimate,
    text_tokens,
)

from .counting import IMAGES, count, dense, request, texts, with_image
from .counting import vocabulary as vocabulary


@given(texts | dense)
def test_text_is_counted_exactly_or_by_its_bytes(text: str) -> None:
    """Bytes or string, with the vocabulary or without."""
    assert text_tokens(text, "gpt-4o") == text_tokens(text.encode(), "gpt-4o") == count(text)
    assert text_tokens(text) == text_tokens(text.encode()) == -(-len(text.encode()) // 4)
    assert text_tokens(text, "claude-3-opus") == text_tokens(text)


def test_bytes_that_are_cut_within_a_letter_are_counted_all_the_same() -> None:
    """A stream is cut anywhere."""
    assert text_tokens("é".encode()[:1], "gpt-4o") >= 1


def test_an_estimate_goes_by_length() -> None:
    """The prompt by a quarter of its bytes; the answer by its text, and one token an event at least."""
    asked = request()
    prompt = -(-len(asked.raw) // 4)
    assert estimate(None) == Usage(0, 0, estimated=True)
    assert estimate(asked) == Usage(prompt, 0, estimated=True)
    assert estimate(asked, 5) == Usage(prompt, 5, estimated=True)
    assert estimate(asked, -1) == Usage(prompt, 0, estimated=True)
    assert estimate(asked, 5, text=b"x" * 100) == Usage(prompt, 25, estimated=True)
    assert estimate(asked, text="hello world", model="gpt-4o") == Usage(prompt, 2, estimated=True)


def test_an_estimate_does_not_take_an_image_for_text() -> None:
    """A megabyte of picture is not 250,000 tokens."""
    assert 1_445 < estimate(with_image("chat", IMAGES["chat"], "gpt-4o")).prompt < 1_600
