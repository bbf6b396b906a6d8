"""The table of vendors: one row each, and what a row does to a request."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from asgi_llm_gateway.adapters.base import Endpoint
from asgi_llm_gateway.adapters.compatible import OPENAI, VENDORS, Vendor
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.proxy.upstream import prepare
from asgi_llm_gateway.wire import Route, parse

CHAT = Route("metered", "chat", "/v1/chat/completions")
RAW = b'{"model":"m","messages":[{"role":"user","content":"a"}]}'


@pytest.mark.parametrize("name", VENDORS)
def test_a_row_is_complete(name: str) -> None:
    """A URL that our client takes, a key's name, patterns that end in a star or name one model."""
    vendor = VENDORS[name]
    if vendor.base_url is None:
        assert vendor.url_env is not None or name in ("azure", "bedrock")
    else:
        parts = urlsplit(vendor.base_url)
        assert parts.scheme == ("http" if parts.hostname == "127.0.0.1" else "https")
        assert not vendor.base_url.endswith("/")
        prepare(Endpoint("POST", vendor.base_url + "/chat/completions", ()))
    assert vendor.key_env or vendor.local
    assert vendor.limit_field in ("max_tokens", "max_completion_tokens")
    assert all("*" not in pattern[:-1] for pattern in vendor.patterns)
    assert len(set(vendor.models)) == len(vendor.models)


def test_no_two_vendors_want_the_same_names() -> None:
    """A pattern leads to one vendor only."""
    starts = [(pattern.rstrip("*"), name) for name, vendor in VENDORS.items() for pattern in vendor.patterns]
    for start, name in starts:
        for other, owner in starts:
            assert name == owner or not start.startswith(other)


@pytest.mark.parametrize("name", ["openai", "openrouter", "litellm", "llamacpp", "vllm", "ollama", "groq", "mistral"])
def test_the_vendors_that_were_promised_are_there(name: str) -> None:
    """And local ones cost nothing."""
    assert VENDORS[name].local is (name in ("llamacpp", "vllm", "ollama"))


@pytest.mark.parametrize(
    ("vendor", "key", "expected"),
    [
        (OPENAI, "k", {b"authorization": b"Bearer k"}),
        (VENDORS["azure"], "k", {b"api-key": b"k"}),
        (VENDORS["vllm"], None, {}),
        (Vendor("http://h/v1", auth="x-api-key"), "k", {b"x-api-key": b"k"}),
    ],
)
def test_the_key_goes_where_the_vendor_wants_it(vendor: Vendor, key: str | None, expected: dict[bytes, bytes]) -> None:
    """A bearer token, or a header of its own; no key, no header."""
    adapter = OpenAIAdapter("x", "http://h/v1", key, vendor=vendor)
    headers = dict(adapter.request(parse(CHAT, RAW), "m").endpoint.headers)
    for name in (b"content-type", b"accept", b"accept-encoding", b"user-agent"):
        headers.pop(name)
    assert headers == expected


@pytest.mark.parametrize("name", VENDORS)
def test_usage_is_asked_for_as_the_row_says(name: str) -> None:
    """``stream_options`` only where the vendor knows it."""
    adapter = OpenAIAdapter(name, "http://h/v1", vendor=VENDORS[name])
    body = adapter.request(parse(CHAT, RAW[:-1] + b',"stream":true}'), "m").body
    assert (b'"include_usage":true' in body) is VENDORS[name].include_usage
    assert b"stream_options" not in adapter.request(parse(CHAT, RAW), "m").body


@pytest.mark.parametrize("name", VENDORS)
def test_a_limit_of_ours_goes_by_the_rows_name(name: str) -> None:
    """One that the client named keeps the client's name."""
    vendor = VENDORS[name]
    adapter = OpenAIAdapter(name, "http://h/v1", vendor=vendor)
    ours = adapter.request(parse(CHAT, RAW).with_fields(max_tokens=9), "m").body
    assert b'"%b":9' % vendor.limit_field.encode() in ours
    assert ours.count(b'":9') == 1
    theirs = adapter.request(parse(CHAT, RAW[:-1] + b',"max_tokens":9}'), "m").body
    assert b'"max_tokens":9' in theirs
