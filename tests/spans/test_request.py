"""What a request asks for, as attributes; and never what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.errors import BadRequest
from asgi_llm_gateway.spans.names import OPERATIONS, provider_name
from asgi_llm_gateway.spans.request import request_attributes
from asgi_llm_gateway.wire import METERED, Dialect, Route, parse

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "PRIVATE"}]}
BODIES: dict[str, dict[str, Any]] = {
    "chat": CHAT,
    "messages": {**CHAT, "max_tokens": 1},
    "responses": {"model": "m", "input": "PRIVATE"},
    "embeddings": {"model": "m", "input": "PRIVATE"},
    "images": {"model": "m", "prompt": "PRIVATE"},
    "speech": {"model": "m", "input": "PRIVATE", "voice": "v"},
}


def found(dialect: Dialect, **more: Any) -> dict[str, Any]:
    """A request's attributes."""
    return request_attributes(parse(Route("metered", dialect, ""), json.dumps({**BODIES[dialect], **more}).encode()))


@pytest.mark.parametrize(
    ("dialect", "more", "wanted"),
    [
        ("chat", {}, {}),
        ("chat", {"max_completion_tokens": 9}, {"gen_ai.request.max_tokens": 9}),
        ("chat", {"stop": "END"}, {"gen_ai.request.stop_sequences": ["END"]}),
        ("chat", {"service_tier": "flex"}, {"openai.request.service_tier": "flex"}),
        ("chat", {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}},
         {"gen_ai.output.type": "json"}),
        ("messages", {"top_k": 5, "stop_sequences": ["a"], "max_tokens": 7},
         {"gen_ai.request.top_k": 5, "gen_ai.request.stop_sequences": ["a"], "gen_ai.request.max_tokens": 7}),
        ("responses", {"reasoning": {"effort": "high"}, "text": {"format": {"type": "json_object"}}},
         {"gen_ai.request.reasoning.level": "high", "gen_ai.output.type": "json"}),
        ("embeddings", {"dimensions": 64, "encoding_format": "base64"},
         {"gen_ai.embeddings.dimension.count": 64, "gen_ai.request.encoding_formats": ["base64"]}),
        ("images", {}, {"gen_ai.output.type": "image"}),
        ("speech", {}, {"gen_ai.output.type": "speech"}),
    ],
)  # fmt: skip
def test_what_was_sent_is_told(dialect: Dialect, more: dict[str, Any], wanted: dict[str, Any]) -> None:
    """In each dialect's own words for it."""
    told = found(dialect, **more)
    assert {name: told.get(name) for name in wanted} == wanted
    assert told["gen_ai.request.model"] == BODIES[dialect]["model"]


def test_what_was_not_sent_is_not_told() -> None:
    """No default is made up."""
    assert request_attributes(parse(Route("metered", "chat", ""), json.dumps(CHAT).encode())) == {
        "gen_ai.request.model": "m"
    }


@given(
    st.dictionaries(
        st.sampled_from(["temperature", "top_p", "top_k", "seed", "n", "stop", "stop_sequences", "dimensions",
                         "reasoning", "reasoning_effort", "response_format", "encoding_format", "text", "service_tier",
                         "output_config", "output_format", "previous_response_id", "frequency_penalty", "max_tokens"]),
        st.none() | st.integers(-(10**30), 10**30) | st.floats() | st.text() | st.lists(st.text() | st.none(), max_size=30)
        | st.dictionaries(st.sampled_from(["type", "effort", "format"]), st.text() | st.none()),
    )
)  # fmt: skip
def test_any_fields_are_sound(fields: dict[str, Any]) -> None:
    """Whatever passes the gateway's checks: only values that a span may have, and no message's text."""
    try:
        request = parse(Route("metered", "chat", ""), json.dumps({**CHAT, **fields}).encode())
    except BadRequest:
        return
    told = request_attributes(request)
    for value in told.values():
        plain = value if isinstance(value, list) else [value]
        assert all(type(one) in (str, bool, int, float) for one in plain)
        assert all(-(2**63) <= one < 2**63 for one in plain if type(one) is int)
        assert all(len(one) <= 128 for one in plain if type(one) is str)
    assert "PRIVATE" not in repr(told)


def test_every_dialect_has_an_operation() -> None:
    """A closed set of words."""
    assert set(METERED.values()) <= set(OPERATIONS)


def test_providers_have_the_conventions_names() -> None:
    """Where it has one; else their own; and where nobody knows who answered, the one whose API was spoken."""
    assert provider_name("azure", "chat") == "azure.ai.openai"
    assert provider_name("my-vllm", "chat") == "my-vllm"
    assert (provider_name("", "messages"), provider_name("", "embeddings")) == ("anthropic", "openai")
