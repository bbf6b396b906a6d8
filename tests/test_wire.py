"""A request's body, read in one place and written with the client's own bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.errors import BadRequest
from asgi_llm_gateway.wire import parse

from .wire_bodies import MESSAGES, ROUTES, chat, with_chat

# -- bodies: what is read ----------------------------------------------------------------------------------------------


def test_a_request_tells_what_the_gateway_acts_on() -> None:
    """Model, stream, limit, choices and tenant; the rest stays data."""
    request = chat(with_chat(stream=True, max_tokens=9, n=3, tenant="a", stream_options={"include_usage": True}))
    assert (request.model, request.stream, request.max_tokens, request.choices) == ("m", True, 9, 3)
    assert (request.tenant, request.wants_usage) == ("a", True)
    plain = chat(with_chat(stream=None, max_tokens=None, n=None, tenant=None, stream_options=None))
    assert (plain.stream, plain.max_tokens, plain.choices, plain.tenant, plain.wants_usage) == (
        False,
        None,
        1,
        None,
        False,
    )


@pytest.mark.parametrize(
    ("dialect", "fields", "limit"),
    [
        ("chat", {"max_tokens": 5}, 5),
        ("chat", {"max_completion_tokens": 5}, 5),
        ("chat", {"max_completion_tokens": 5, "max_tokens": 5}, 5),
        ("chat", {"max_output_tokens": 5}, None),
        ("completions", {"max_tokens": 5}, 5),
        ("completions", {"max_completion_tokens": 5}, None),
        ("responses", {"max_output_tokens": 5}, 5),
        ("responses", {"max_tokens": 5}, None),
        ("messages", {"max_tokens": 5}, 5),
        ("messages", {"max_output_tokens": 5}, None),
    ],
)
def test_an_output_limit_counts_only_under_its_dialects_name(
    dialect: Any, fields: dict[str, int], limit: int | None
) -> None:
    """A name that the provider passes over would be a limit for the hold and none for the answer."""
    body = with_chat(prompt="x", input="x", **fields)
    assert parse(ROUTES[dialect], json.dumps(body).encode()).max_tokens == limit


@pytest.mark.parametrize(
    ("dialect", "good", "bad"),
    [
        ("embeddings", {"input": ["a", "b"]}, {"input": []}),
        ("embeddings", {"input": [1, 2]}, {"input": 3}),
        ("embeddings", {"input": "a"}, {}),
        ("completions", {"prompt": "a"}, {"prompt": ""}),
        ("completions", {"prompt": [[1, 2]]}, {"prompt": {}}),
        ("responses", {"input": "a"}, {"input": 3}),
        ("responses", {"previous_response_id": "r"}, {"input": []}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, {"messages": []}),
    ],
)
def test_each_dialect_has_its_own_required_text(dialect: Any, good: dict[str, Any], bad: dict[str, Any]) -> None:
    """The prompt sits in another field for each."""
    assert parse(ROUTES[dialect], json.dumps({"model": "m", **good}).encode()).model == "m"
    with pytest.raises(BadRequest):
        parse(ROUTES[dialect], json.dumps({"model": "m", **bad}).encode())


def test_content_may_be_null_or_parts() -> None:
    """An assistant's message with tool calls has none; images come in parts."""
    chat({"model": "m", "messages": [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool"}]})
    chat({"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]})


# -- bodies: what is written -------------------------------------------------------------------------------------------


def test_an_unchanged_body_stays_byte_for_byte() -> None:
    """Odd spacing, escapes, unknown fields: nothing is written anew."""
    raw = b'  {"model" : "m","messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}],\n "x": 1.0e0, "x": 2 }\n'
    assert chat(raw).body == raw


def test_what_is_added_is_put_at_the_end_of_the_clients_bytes() -> None:
    """The client's own bytes stay as they are."""
    raw = b'{"model" : "m", "seed": 99999999999999999999999, "messages":[{"role":"user","content":"\\u00e9"}] } \n'
    request = chat(raw).with_fields(max_tokens=7).with_fields(stream_options={"include_usage": True})
    assert request.body.startswith(raw.rstrip()[:-1])
    assert json.loads(request.body) == {**json.loads(raw), "max_tokens": 7, "stream_options": {"include_usage": True}}
    assert request.added == {"max_tokens": 7, "stream_options": {"include_usage": True}}


def test_taking_out_what_is_not_there_changes_nothing() -> None:
    """``None`` takes a field out; absent stays absent."""
    raw = f'{{"model":"m", {MESSAGES}}}'
    assert chat(raw).with_fields(tenant=None, n=None).body == raw.encode()
    assert json.loads(chat(raw).with_fields(tenant=None, max_tokens=3).body) == {**json.loads(raw), "max_tokens": 3}


def test_a_field_that_was_added_can_be_changed_and_taken_out() -> None:
    """The last word counts, and is written once."""
    request = chat(with_chat())
    twice = request.with_fields(max_tokens=5).with_fields(max_tokens=6)
    assert json.loads(twice.body) == with_chat(max_tokens=6)
    assert json.loads(twice.with_fields(max_tokens=None).body) == with_chat()
    assert twice.body.count(b"max_tokens") == 1


def test_the_tenant_goes_out_of_the_body_and_is_still_known() -> None:
    """The gateway's own field never goes upstream."""
    request = chat(with_chat(tenant="a")).with_fields(tenant=None)
    assert b"tenant" not in request.body
    assert request.tenant == "a"


@pytest.mark.parametrize("number", [2**64, 2**64 + 1, -(2**70) - 3, 12345678901234567890123456789, 10**30])
def test_writing_anew_keeps_integers_beyond_64_bit(number: int) -> None:
    """Not a digit is lost, at the top level or deeper in."""
    request = chat(with_chat(tenant="a", seed=number, metadata={"ids": [number, 1.5]})).with_fields(
        tenant=None, model="x"
    )
    assert json.loads(request.body) == with_chat(model="x", seed=number, metadata={"ids": [number, 1.5]})


@pytest.mark.parametrize("depth", [100, 300, 600])
@pytest.mark.parametrize("number", [1, 10**25])
def test_writing_anew_bears_deep_nesting(depth: int, number: int) -> None:
    """What could be read can be written again."""
    deep = "[" * depth + "]" * depth
    request = chat(f'{{"model":"m","tenant":"a","seed":{number},"x":{deep},{MESSAGES}}}').with_fields(tenant=None)
    assert json.loads(request.body) == {**with_chat(), "seed": number, "x": json.loads(deep)}


@pytest.mark.parametrize("number", [1, 10**25])
def test_what_is_nested_too_deeply_to_write_is_refused(number: int) -> None:
    """A refusal, not a traceback."""
    deep = "[" * 1015 + "]" * 1015
    with pytest.raises(BadRequest, match="nested too deeply"):
        _ = chat(f'{{"model":"m","tenant":"a","seed":{number},"x":{deep},{MESSAGES}}}').with_fields(tenant=None).body


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.from_regex(r"x_[a-z]{1,6}", fullmatch=True), JSON_VALUES, max_size=5), st.booleans())
def test_unknown_fields_are_kept_whatever_they_hold(extra: dict[str, Any], ascii_only: bool) -> None:
    """Amended or not, an unknown field says upstream what the client said."""
    raw = json.dumps({**with_chat(tenant="a"), **extra}, ensure_ascii=ascii_only)
    changed = chat(raw).with_fields(tenant=None, max_tokens=3)
    assert json.loads(changed.body) == {**with_chat(max_tokens=3), **extra}
    added = chat(json.dumps({**with_chat(), **extra})).with_fields(max_tokens=3)
    assert json.loads(added.body) == {**with_chat(max_tokens=3), **extra}
