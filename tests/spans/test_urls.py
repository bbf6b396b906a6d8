"""Addresses as spans tell them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.spans.urls import Place, place_of, query_shown


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://api.example/v1/x", Place("api.example", 443, "https://api.example/v1/x")),
        ("http://10.0.0.1:8000/v1", Place("10.0.0.1", 8000, "http://10.0.0.1:8000/v1")),
        ("https://u:p@Api.Example:443/x?key=k#f", Place("api.example", 443, "https://api.example/x")),
        ("http://[::1]:8080/x", Place("::1", 8080, "http://[::1]:8080/x")),
        ("", None),
        ("/v1/x", None),
        ("http://host:port/", None),
        ("http://[broken", None),
    ],
)
def test_a_place(url: str, place: Place | None) -> None:
    """Host, port, and a URL without what may be a secret."""
    assert place_of(url) == place


@given(st.text(max_size=80), st.text(max_size=40), st.text(max_size=40))
def test_no_credential_and_no_query_is_in_a_place(user: str, query: str, path: str) -> None:
    """Whatever they look like."""
    found = place_of(f"https://u:SECRET{user}@host.example/{path}?SECRET{query}")
    assert found is None or "SECRET" not in found.url.replace(path, "")


@given(st.binary(max_size=200))
def test_a_querys_values_are_never_shown(query: bytes) -> None:
    """Any bytes are sound; only names are told, and no value."""
    shown = query_shown(query)
    for part in shown.split("&"):
        name, equals, value = part.partition("=")
        assert value == "REDACTED" if equals else name == "REDACTED"


def test_a_query() -> None:
    """Names that are told apart, what has no name at all, and no more than some."""
    assert query_shown(b"key=sk-1&sk-2&b=") == "key=REDACTED&REDACTED&b=REDACTED"
    assert query_shown(b"sk=" * 3) == "sk=REDACTED"
    assert len(query_shown(b"a=1&" * 10_000).split("&")) == 20
