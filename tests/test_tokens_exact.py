"""The bound by the vocabulary: close to the count, never below it, and none where it is not surely text."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway import _vocabulary
from asgi_llm_gateway.tokens import (
    exact_bound,
    prompt_bound,
)

from .counting import IMAGES, count, dense, request, texts
from .counting import vocabulary as vocabulary

parts = st.lists(texts | dense, min_size=1, max_size=4)
contents = texts | dense | parts.map(lambda said: [{"type": "text", "text": one} for one in said])
messages = st.builds(
    lambda role, content, name: {"role": role, "content": content, **({"name": name} if name else {})},
    st.sampled_from(["system", "user", "assistant", "developer"]),
    contents,
    st.sampled_from(["", "ada", "日本"]),
)


def said_in(value: Any) -> str:
    """Every text of a message, in one piece."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(said_in, value))
    return "".join(said_in(value.get(name, "")) for name in ("role", "name", "content", "text"))


@given(
    st.lists(messages, min_size=1, max_size=5), st.sampled_from(["gpt-4o", "gpt-4", "gpt-5", "ft:gpt-3.5-turbo:me::1"])
)
@settings(max_examples=200)
def test_the_exact_bound_is_never_below_the_count(said: list[dict[str, Any]], model: str) -> None:
    """Of all the text in one piece, with four tokens a message and three for the answer; and never above the bytes."""
    asked = request(model=model, messages=said)
    bound = exact_bound(asked)
    assert bound is not None
    if bound < prompt_bound(asked):
        assert bound >= count("".join(map(said_in, said)), model) + 4 * len(said) + 3
    assert bound <= prompt_bound(asked)


def test_the_exact_bound_is_close() -> None:
    """A page of English is held at a quarter of its bytes or so."""
    page = "The quick brown fox jumps over the lazy dog, and nobody minds. " * 50
    asked = request(messages=[{"role": "user", "content": page}])
    assert exact_bound(asked) == 16 + 8 + count("user") + count(page)
    assert exact_bound(asked) < prompt_bound(asked) / 3  # type: ignore[operator]


@pytest.mark.parametrize(
    ("dialect", "fields", "text"),
    [
        ("completions", {"prompt": "Once upon a time"}, "Once upon a time"),
        ("completions", {"prompt": ["Once", "upon"]}, "Onceupon"),
        ("embeddings", {"input": ["Once", "upon"]}, "Onceupon"),
        ("responses", {"input": "Once", "instructions": "upon"}, "Onceupon"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Once"}]}]}, "Once"),
        ("chat", {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, '{"name":"n"}'),
        ("chat", {"tools": [{"type": "function", "function": {"name": "f", "description": "d " * 99}}]}, "d " * 99),
        ("chat", {"messages": [{"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "b c d"}'}}]}]},
         '{"a": "b c d"}'),
    ],
)  # fmt: skip
def test_every_text_of_a_request_is_counted(dialect: str, fields: dict[str, Any], text: str) -> None:
    """Prompts, instructions, tools, their calls and schemas."""
    asked = request(dialect, **fields)
    bound = exact_bound(asked)
    assert bound is not None
    assert count(text) < bound <= prompt_bound(asked)


def test_a_prompt_in_tokens_is_as_long_as_it_says() -> None:
    """A list of numbers is one prompt, already counted."""
    assert exact_bound(request("completions", prompt=list(range(100, 400)))) == 16 + 8 + 300


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("chat", {"model": "claude-3-opus"}),
        ("chat", {"model": "nobody-knows"}),
        ("messages", {}),
        ("chat", {"messages": [{"role": "user", "content": [IMAGES["chat"]]}]}),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A"}}]}]}),
        ("chat", {"messages": [{"role": "user", "content": "Hi", "reasoning_content": "hm"}]}),
        ("chat", {"prediction": {"type": "content", "content": "x"}}),
        ("chat", {"audio": {"voice": "alloy"}}),
        ("chat", {"modalities": ["text", "audio"]}),
        ("chat", {"a_new_field": "that may say something"}),
        ("chat", {"tools": 5}),
        ("chat", {"tools": [{"type": "web_search"}]}),
        ("responses", {"input": "Hi", "previous_response_id": "r"}),
        ("responses", {"input": "Hi", "prompt": {"id": "p"}}),
        ("responses", {"input": [{"type": "reasoning", "encrypted_content": "x"}]}),
        ("responses", {"input": [{"type": "item_reference", "id": "x"}]}),
    ],
)
def test_what_is_not_surely_text_has_no_exact_bound(dialect: str, fields: dict[str, Any]) -> None:
    """Other vendors' models, other media, and fields that nobody here knows."""
    asked = request(dialect, **fields)
    assert exact_bound(asked) is None


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        ("gpt-4o", "o200k_base"), ("gpt-4o-mini-2024-07-18", "o200k_base"), ("gpt-4.1-nano", "o200k_base"),
        ("gpt-5.2", "o200k_base"), ("gpt-5-mini", "o200k_base"), ("o1", "o200k_base"), ("o3-mini", "o200k_base"),
        ("chatgpt-4o-latest", "o200k_base"), ("ft:gpt-4o-2024-08-06:me::1", "o200k_base"), ("OpenAI/GPT-4o", "o200k_base"),
        ("gpt-4", "cl100k_base"), ("gpt-4-turbo", "cl100k_base"), ("gpt-3.5-turbo-0125", "cl100k_base"),
        ("text-embedding-3-large", "cl100k_base"), ("claude-3-opus", None), ("gpt-oss-120b", None), ("gpt-45", None),
        ("gpt-4.9", None), ("o1x", None), ("groq/gpt-4o", None), ("", None),
    ],
)  # fmt: skip
def test_only_openais_own_models_have_a_known_vocabulary(model: str, vocabulary: str | None) -> None:
    """A name is taken at its word only where the vocabulary is published with it."""
    assert _vocabulary.vocabulary_of(model) == vocabulary


def test_nothing_is_counted_before_it_was_loaded() -> None:
    """``count`` never loads, so that no request waits for it; and without a tokenizer there is none."""
    code = """
import sys
from asgi_llm_gateway import _vocabulary, tokens
print(_vocabulary.count("Hi", "gpt-4o"), tokens.text_tokens(b"12345", "gpt-4o"), "quicktok" in sys.modules)
for name in ("quicktok", "bpe_openai", "tiktoken"):
    sys.modules[name] = None
print(_vocabulary.load(), _vocabulary.count("Hi", "gpt-4o"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["None", "2", "False", "None", "None"]
