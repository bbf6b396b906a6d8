"""Requests of every dialect, spoilt: read or refused by name, by the reader, by each adapter and by the whole stack."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import Adapter
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.adapters.translated import speaking
from asgi_llm_gateway.adapters.vendors import adapter_of
from asgi_llm_gateway.wire import METERED, Route, parse

from ..security.house import House, house
from . import JUNK, examples, outcome, spoilt
from .requests import BY_PATH

URL = "http://provider.invalid/v1"
VENDORS = ("openai", "openrouter", "llamacpp", "vllm", "ollama", "litellm", "mistral")
ADAPTERS: dict[str, Adapter] = {
    **{kind: adapter_of(kind, kind, URL, "sk-a-key-of-the-gateway") for kind in VENDORS},
    "anthropic": AnthropicAdapter("anthropic", URL, "sk-a-key-of-the-gateway"),
    "echo": EchoAdapter(),
}
PARSED = [path for path in BY_PATH if path in METERED]


@pytest.mark.parametrize("path", PARSED)
@examples(150)
@given(data=st.data())
def test_a_spoilt_request_is_read_or_refused_by_name(path: str, data: st.DataObject) -> None:
    """4xx with a message that tells no value of the body; each adapter that speaks the dialect takes it or says why not."""
    body = data.draw(spoilt(BY_PATH[path]))
    dialect = METERED[path]
    raw = json.dumps(body).encode()
    request, refusal = outcome(lambda: parse(Route("metered", dialect, path), raw, b"application/json"))
    if refusal is not None:
        assert 400 <= refusal.http_status < 500, refusal
        assert refusal.param or refusal.error_code == "invalid_json", refusal
    if request is None:
        return
    for name, adapter in ADAPTERS.items():
        fits = speaking(adapter, dialect)
        if fits is not None:
            _, refusal = outcome(partial(fits.request, request, "model-1"))
            assert refusal is None or 400 <= refusal.http_status < 500, (name, refusal)


@pytest.mark.parametrize("path", BY_PATH)
@examples(100)
@given(data=st.data())
def test_a_spoilt_request_to_the_whole_stack_is_no_5xx(path: str, data: st.DataObject) -> None:
    """Answered or refused, and in the end nothing is held."""
    body = data.draw(spoilt(BY_PATH[path]))
    answer, kept = asyncio.run(sent(path, json.dumps(body).encode()))
    assert 200 <= answer.status < 500, (answer.status, answer.body[:400])
    assert answer.complete
    assert kept == 0
    if answer.status >= 400:
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@examples(300)
@given(body=st.binary(max_size=60) | JUNK.map(lambda junk: json.dumps(junk).encode()), cut=st.integers(0, 5))
def test_any_bytes_are_answered(path: str, body: bytes, cut: int) -> None:
    """Whatever they are and however they come."""
    answer, kept = asyncio.run(sent(path, body, cut=cut))
    assert 200 <= answer.status < 500, (answer.status, answer.body[:400])
    assert kept == 0


@examples(250)
@given(
    at=st.integers(0, 400),
    piece=st.binary(max_size=5)
    | st.sampled_from(
        [b"\\ud800", b"\\u0000", b"\xff", b"\xef\xbb\xbf", b"1e999", b"9" * 400, b'"model":"x",', b"[" * 200]
    ),
)
def test_a_good_body_with_strange_bytes_in_it_is_answered(at: int, piece: bytes) -> None:
    """A33: half surrogates, marks of byte order, numbers without end, fields twice."""
    raw = json.dumps(BY_PATH["/v1/chat/completions"][1]).encode()
    answer, kept = asyncio.run(sent("/v1/chat/completions", raw[:at] + piece + raw[at:]))
    assert 200 <= answer.status < 500, (answer.status, answer.body[:400])
    assert kept == 0


async def sent(path: str, body: bytes, **how: Any) -> tuple[Any, int]:
    """The whole stack's answer to a body, and what is still held after it."""
    made: House = await house()
    async with asyncio.timeout(20):
        answer = await made.ask(body, path, **how)
    await made.proxy.aclose()
    return answer, await made.held()
