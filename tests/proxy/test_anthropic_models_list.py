"""The list of models as Anthropic's clients page through it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest
from anthropic import Anthropic
from anthropic.types import ModelInfo
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway._asgi import JSON, send_body
from asgi_llm_gateway.errors import BadRequest
from asgi_llm_gateway.proxy._anthropic_models_list import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    Page,
    anthropic_model,
    anthropic_model_list,
    page_of,
)

from ..servers import serving

NAMES = [f"model/{number}" for number in range(45)]


def listed(names: list[str], **page: Any) -> dict[str, Any]:
    """The body of the list."""
    found: dict[str, Any] = json.loads(anthropic_model_list(names, Page(**page)))
    assert found["first_id"] == (found["data"][0]["id"] if found["data"] else None)
    assert found["last_id"] == (found["data"][-1]["id"] if found["data"] else None)
    return found


def ids(found: dict[str, Any]) -> list[str]:
    """The names in it."""
    return [one["id"] for one in found["data"]]


def test_a_model_has_all_that_clients_must_find() -> None:
    """By the official client's own type."""
    told = ModelInfo.model_validate_json(anthropic_model("openai/gpt-5"))
    assert (told.id, told.display_name, told.type, told.lifecycle) == (
        "openai/gpt-5",
        "openai/gpt-5",
        "model",
        "active",
    )
    assert listed(["a"])["data"] == [json.loads(anthropic_model("a"))]


@pytest.mark.parametrize(
    ("page", "expected", "more"),
    [
        ({}, NAMES[:20], True),
        ({"limit": 1000}, NAMES, False),
        ({"limit": 45}, NAMES, False),
        ({"after_id": NAMES[19], "limit": 2}, NAMES[20:22], True),
        ({"after_id": NAMES[43]}, NAMES[44:], False),
        ({"after_id": NAMES[44]}, [], False),
        ({"before_id": NAMES[2], "limit": 2}, NAMES[:2], False),
        ({"before_id": NAMES[3], "limit": 2}, NAMES[1:3], True),
        ({"before_id": NAMES[0]}, [], False),
    ],
)
def test_a_page(page: dict[str, Any], expected: list[str], more: bool) -> None:
    """In order, right after one name or right before it."""
    found = listed(NAMES, **page)
    assert (ids(found), found["has_more"]) == (expected, more)
    assert listed([]) == {"data": [], "first_id": None, "last_id": None, "has_more": False}


@given(st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=30), st.integers(1, 9))
def test_pages_put_together_are_the_list(names: list[str], limit: int) -> None:
    """Forwards and backwards, each name once."""
    for cursor, edge in (("after_id", "last_id"), ("before_id", "first_id")):
        if cursor == "before_id" and not names:
            continue
        found: list[str] = []
        page: dict[str, Any] = {} if cursor == "after_id" else {"before_id": names[-1]}
        while True:
            told = listed(names, limit=limit, **page)
            found = [*found, *ids(told)] if cursor == "after_id" else [*ids(told), *found]
            if not told["has_more"]:
                break
            page = {cursor: told[edge]}
        assert found == (names if cursor == "after_id" else names[:-1])


def test_a_query_is_read() -> None:
    """And what chooses nothing is passed over."""
    assert page_of(b"") == Page(None, None, DEFAULT_LIMIT)
    assert page_of(b"limit=1000&lifecycle=active&beta=true").limit == MAX_LIMIT
    assert page_of(urlencode({"after_id": "a/b c&d", "limit": 3}).encode()) == Page("a/b c&d", None, 3)
    assert page_of(b"before_id=x&after_id=").before_id == "x"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        (b"limit=0", "limit"), (b"limit=1001", "limit"), (b"limit=-1", "limit"), (b"limit=x", "limit"), (b"limit=1.5", "limit"),
        (b"limit=%D9%A3", "limit"), (b"limit=1&limit=2", "limit"), (b"limit=99999999999", "limit"),
        (b"after_id=a&before_id=b", "before_id"), (b"after_id=a&after_id=b", "after_id"), (b"a=" + b"x" * 5000, "query"),
        (b"&".join([b"a=1"] * 200), "query"), (b"\xff", "query"),
    ],
)  # fmt: skip
def test_a_senseless_query_is_refused(query: bytes, param: str) -> None:
    """By name."""
    with pytest.raises(BadRequest) as caught:
        page_of(query)
    assert (caught.value.http_status, caught.value.param) == (400, param)


@pytest.mark.parametrize("name", ["after_id", "before_id"])
def test_a_cursor_that_is_not_there_is_refused(name: str) -> None:
    """And not taken for the list's beginning, which a client would page through for ever."""
    with pytest.raises(BadRequest) as caught:
        anthropic_model_list(NAMES, page_of(f"{name}=nobody".encode()))
    assert caught.value.param == name
    assert "nobody" not in caught.value.message


def test_the_official_client_pages_through_the_list() -> None:
    """To its end, forwards and backwards."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send_body(send, 200, anthropic_model_list(NAMES, page_of(scope["query_string"])), (JSON,))

    with serving(app) as url, Anthropic(base_url=url, api_key="k", max_retries=0) as client:
        assert [model.id for model in client.models.list(limit=7)] == NAMES
        pages = [
            [model.id for model in page.data] for page in client.models.list(before_id=NAMES[9], limit=4).iter_pages()
        ]
        assert pages == [NAMES[5:9], NAMES[1:5], NAMES[:1]]
