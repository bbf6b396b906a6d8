"""Tokens before they are counted: no bound is too low, whatever the text, the image or the disguise."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway import _vocabulary
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.tokens import (
    FILE_TOKENS,
    FIXED_TOKENS,
    TOOL_TOKENS,
    UNSEEN_TOKENS,
    answers,
    estimate,
    exact_bound,
    prompt_bound,
    surcharge,
    text_tokens,
)
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


# -- by bytes ----------------------------------------------------------------------------------------------------------


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


# -- images and files --------------------------------------------------------------------------------------------------

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


# -- by the vocabulary -------------------------------------------------------------------------------------------------

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


# -- the rest ----------------------------------------------------------------------------------------------------------


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
