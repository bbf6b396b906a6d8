"""Tokens are corrected to the truth in every dialect, whole and streamed, before ProxyApp and before a stranger's app."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.stores.memory import MemoryLedger

from ..caching import PATHS, TEXTS, Counting, asking
from ..conversation import ask, get
from ..servers import serving
from . import Stranger

LIMIT = 10_000
CASES = [(dialect, stream) for dialect in TEXTS for stream in (False, True)] + [("embeddings", False)]


def layer_of(app: Any) -> RateLimitMiddleware:
    """A layer whose window lasts longer than any test."""
    return RateLimitMiddleware(app, requests=10**6, tokens=LIMIT, window=1e6)


def body_of(dialect: str, *, stream: bool, usage: bool, model: str = "m") -> dict[str, Any]:
    """A request with an output limit of 50; ``usage``: a stream of OpenAI's older dialects is asked to tell it."""
    body = asking(dialect, "say this twice", model=model)
    if dialect != "embeddings":
        body["max_output_tokens" if dialect == "responses" else "max_tokens"] = 50
    if stream:
        body["stream"] = True
        if usage and dialect in ("chat", "completions"):
            body["stream_options"] = {"include_usage": True}
    return body


async def taken(layer: RateLimitMiddleware, dialect: str, body: dict[str, Any]) -> int:
    """Tokens that count in the window when a call is over; it was admitted on more than it took."""
    answer = await ask(layer, body, PATHS[dialect])
    assert (answer.status, answer.complete) == (200, True)
    admitted_on = LIMIT - int(answer.headers["x-ratelimit-remaining-tokens"])
    assert admitted_on > (50 if dialect != "embeddings" else 2)
    layer.app = Stranger()
    looked = await get(layer, "/v1/models")  # it takes none itself
    return LIMIT - int(looked.headers["x-ratelimit-remaining-tokens"])


def truth(dialect: str) -> int:
    """What the model server of these tests says that it used."""
    return 2 if dialect == "embeddings" else 30


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A provider over HTTP that answers each dialect in its own words, and tells a stream's usage to those who ask."""
    with serving(Counting()) as found:
        yield found


@pytest.mark.parametrize(("dialect", "stream"), CASES)
@pytest.mark.parametrize("budget", [False, True], ids=["alone", "round a budget"])
async def test_a_strangers_answer_is_read_in_its_dialect(dialect: str, stream: bool, budget: bool) -> None:
    """By the limit itself, or by the budget that stands further in."""
    app: Any = Counting()
    layer = layer_of(BudgetMiddleware(app, ledger=MemoryLedger(), unknown_price="free") if budget else app)
    assert await taken(layer, dialect, body_of(dialect, stream=stream, usage=True)) == truth(dialect)


@pytest.mark.parametrize("dialect", ["chat", "completions"])
async def test_a_strangers_stream_that_tells_no_usage_counts_about_what_it_said(dialect: str) -> None:
    """Nothing better is known: no more than it was admitted on, and not nothing."""
    layer = layer_of(Counting())
    body = body_of(dialect, stream=True, usage=False)
    assert 10 <= await taken(layer, dialect, body) < 50 + len(str(body)) // 4


@pytest.mark.parametrize(("dialect", "stream"), CASES)
async def test_before_proxyapp_and_its_own_provider(dialect: str, stream: bool) -> None:
    """``echo`` speaks OpenAI's older dialects, and is translated to the others: a word is a token, three in and three out."""
    layer = layer_of(ProxyApp(router=Router([EchoAdapter()], {})))
    body = body_of(dialect, stream=stream, usage=False, model="echo")
    assert await taken(layer, dialect, body) == (3 if dialect == "embeddings" else 6)


@pytest.mark.parametrize(("dialect", "stream"), CASES)
async def test_before_proxyapp_and_a_provider_that_speaks_the_dialect(url: str, dialect: str, stream: bool) -> None:
    """Also where the client did not ask for a stream's usage: the gateway does."""
    provider = (
        AnthropicAdapter("up", url, "k", models=("m",))
        if dialect == "messages"
        else OpenAIAdapter("up", url + "/v1", "k", models=("m",))
    )
    app = ProxyApp(router=Router([provider], {"m": ["up/m"]}), max_retries=0)
    layer = layer_of(app)
    assert await taken(layer, dialect, body_of(dialect, stream=stream, usage=False)) == truth(dialect)
    await app.aclose()
