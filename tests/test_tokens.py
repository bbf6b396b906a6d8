"""What a request costs at most, by its bytes: its prompt in any shape, the answers it asks for, and at which rate."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.tokens import (
    FIXED_TOKENS,
    TOOL_TOKENS,
    UNSEEN_TOKENS,
    answers,
    estimate,
    exact_bound,
    prompt_bound,
    surcharge,
)

from .counting import count, dense, request, texts
from .counting import vocabulary as vocabulary


@given(st.lists(texts | dense, min_size=1, max_size=5), st.sampled_from(["gpt-4o", "gpt-4"]), st.booleans())
def test_a_body_has_no_more_tokens_than_its_bound(said: list[str], model: str, escaped: bool) -> None:
    """Counted by the real tokenizer, message by message with its overhead, however the JSON is written."""
    fields = {"model": model, "messages": [{"role": "user", "content": text} for text in said]}
    raw = json.dumps(fields).encode() if escaped else orjson.dumps(fields)
    counted = sum(count(text, model) + 4 for text in said) + 3
    assert counted <= prompt_bound(request(raw=raw))


@pytest.mark.parametrize("name", ["x", "日本語", "\u0000", "🎉"])
def test_the_bound_follows_what_is_sent(name: str) -> None:
    """A request that a middleware made longer is bounded by its new body."""
    short = request()
    longer = short.with_fields(messages=[{"role": "system", "content": name * 1000}, *short.data["messages"]])
    assert prompt_bound(longer) >= count(name * 1000) + count("Hi")
    assert prompt_bound(short) == len(short.raw) + FIXED_TOKENS


def test_tools_add_what_the_provider_says_about_them() -> None:
    """Their text is in the body; the system prompt that makes a model use them is not."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with_tools = request(tools=[tool])
    assert prompt_bound(with_tools) == len(with_tools.raw) + FIXED_TOKENS + TOOL_TOKENS
    bash = request("messages", model="claude-x", max_tokens=9, tools=[{"type": "bash_20250124", "name": "bash"}])
    assert prompt_bound(bash) >= len(bash.raw) + TOOL_TOKENS + 245


def test_a_known_context_window_is_the_most() -> None:
    """With the sixteenth by which lists round windows down; a window that is larger than the text changes nothing."""
    long = request(messages=[{"role": "user", "content": "x" * 50_000}])
    assert prompt_bound(long, 8_192) == 8_704
    assert prompt_bound(long, 128_000) == prompt_bound(long)


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("responses", {"previous_response_id": "resp_1"}),
        ("responses", {"conversation": "conv_1"}),
        ("responses", {"prompt": {"id": "pmpt_1"}}),
        ("responses", {"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}),
        ("responses", {"tools": [{"type": "mcp", "server_url": "x"}]}),
        ("messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("messages", {"mcp_servers": [{"url": "x"}]}),
        ("chat", {"web_search_options": {}}),
    ],
)
def test_what_the_body_does_not_hold_counts_as_a_whole_window(dialect: str, fields: dict[str, Any]) -> None:
    """A stored conversation, what a hosted tool finds: as long as the model reads."""
    said: dict[str, Any] = {"input": "Hi"} if dialect == "responses" else {}
    asked = request(dialect, **said, **fields)
    assert prompt_bound(asked) >= UNSEEN_TOKENS
    assert prompt_bound(asked, 128_000) == 136_000
    nothing = request(dialect, **said, **dict.fromkeys(fields))
    assert prompt_bound(nothing) < 1_000


@given(
    st.recursive(
        st.none()
        | st.integers(-9, 9)
        | st.sampled_from(["image_url", "image", "file", "text", "data:image/png;base64,A"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "image_url", "source", "content", "url", "data", "detail"]), inner
            )
        ),
        max_leaves=20,
    )
)
def test_any_shape_has_a_bound(value: Any) -> None:
    """Parts of the wrong types are somebody else's to refuse."""
    bound = prompt_bound(request(messages=[{"role": "user", "content": [value]}], tools=value, prompt=value))
    assert bound > 0
    exact_bound(request(messages=[{"role": "user", "content": [value]}], tools=value, response_format=value))


@given(
    st.sampled_from(["embeddings", "responses", "completions"]), st.sampled_from(["x", [], [{}], {}, 5, None, [[{}]]])
)
def test_a_field_of_another_dialect_changes_nothing(dialect: str, value: Any) -> None:
    """``messages`` means nothing where the text is in ``input``."""
    given_text: dict[str, Any] = {"prompt" if dialect == "completions" else "input": [{"type": "x"}], "messages": value}
    asked = request(dialect, **given_text)
    assert prompt_bound(asked) == len(asked.raw) + FIXED_TOKENS
    estimate(asked)
    exact_bound(asked)


def test_nesting_without_end_is_walked_and_not_recursed() -> None:
    """As deep as the parser lets through."""
    deep = b'{"model":"gpt-4o","input":' + b"[" * 900 + b'"image"' + b"]" * 900 + b"}"
    asked = request("embeddings", raw=deep)
    assert prompt_bound(asked) == len(deep) + FIXED_TOKENS
    assert exact_bound(asked) is None or exact_bound(asked) == 7


@pytest.mark.parametrize(
    ("dialect", "fields", "paid"),
    [
        ("chat", {}, 1),
        ("chat", {"n": 3}, 3),
        ("completions", {"prompt": "x", "n": 2, "best_of": 5}, 5),
        ("completions", {"prompt": ["x", "y", "z"], "n": 2}, 6),
        ("completions", {"prompt": [1, 2, 3]}, 1),
        ("completions", {"prompt": [[1, 2], [3]], "best_of": 4}, 8),
        ("embeddings", {"input": ["x", "y"]}, 1),
    ],
)
def test_every_answer_that_is_made_is_paid_for(dialect: str, fields: dict[str, Any], paid: int) -> None:
    """So many for each prompt, those that nobody sees included."""
    assert answers(request(dialect, **fields)) == paid


@pytest.mark.parametrize(
    ("dialect", "fields", "percent"),
    [
        ("chat", {}, 100),
        ("chat", {"service_tier": "flex"}, 100),
        ("chat", {"service_tier": "priority"}, 250),
        ("chat", {"service_tier": ["priority"]}, 100),
        ("messages", {"speed": "fast"}, 250),
        ("messages", {"cache_control": {"type": "ephemeral", "ttl": "1h"}}, 200),
        ("messages", {"cache_control": {"type": "ephemeral", "ttl": "5m"}}, 100),
        ("chat", {"messages": [{"role": "user", "content": 'say "ttl" and "1h" \u001b'}]}, 100),
    ],
)
def test_what_a_request_asks_for_may_cost_more(dialect: str, fields: dict[str, Any], percent: int) -> None:
    """A faster lane, a cache that stays for an hour."""
    assert surcharge(request(dialect, **fields)) == percent


def test_a_surcharge_in_disguise_is_seen() -> None:
    """JSON may spell any letter by its number."""
    raw = rb'{"model":"m","messages":[{"role":"user","content":"x"}],"cache_control":{"\u0074tl":"\u0031h"}}'
    assert surcharge(request("messages", raw=raw)) == 200
