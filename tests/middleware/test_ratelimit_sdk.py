"""Limits as the official SDKs meet them, over real HTTP: wrapped, mounted, and within a whole stack."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import openai
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router

from ..servers import serving

SAID: Any = [{"role": "user", "content": "one two three"}]


def limited(**limits: Any) -> RateLimitMiddleware:
    """The echo provider behind limits."""
    return RateLimitMiddleware(ProxyApp(router=Router([EchoAdapter()])), **limits)


def wrapped(layer: RateLimitMiddleware) -> Any:
    """Round a host's own app."""
    host = FastAPI()
    host.mount("/", layer.app)
    layer.app = host
    return layer


def mounted(layer: RateLimitMiddleware) -> Any:
    """Under a prefix of one."""
    return Starlette(routes=[Mount("/llm", layer)])


@pytest.mark.parametrize(("way", "prefix"), [(lambda it: it, ""), (wrapped, ""), (mounted, "/llm")])
async def test_an_sdk_reads_where_it_stands_and_when_to_come_back(way: Any, prefix: str) -> None:
    """Whole answers, streams and refusals; stand-alone, wrapped and mounted."""
    with serving(way(limited(requests=2, tokens=10**6, concurrency=5, window=3600))) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}{prefix}/v1", api_key="x", max_retries=0) as client:
            raw = await client.chat.completions.with_raw_response.create(model="echo", messages=SAID)
            assert raw.headers["x-ratelimit-remaining-requests"] == "1"
            assert raw.headers["x-ratelimit-reset-requests"] == "1h0m0s"
            assert int(raw.headers["x-ratelimit-remaining-tokens"]) < 10**6
            stream = await client.chat.completions.create(model="echo", messages=SAID, stream=True)
            assert [chunk async for chunk in stream]
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(model="echo", messages=SAID)
            assert refused.value.code == "rate_limit_exceeded"
            assert int(refused.value.response.headers["retry-after"]) > 3500


async def test_an_sdk_that_retries_gets_its_answer_when_it_was_told_to_come_back() -> None:
    """``retry-after-ms`` is when there is room, not a moment before."""
    with serving(limited(requests=1, window=0.5)) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=1) as client:
            for _ in range(3):
                answer = await client.chat.completions.create(model="echo", messages=SAID)
                assert answer.choices


async def test_places_are_right_over_many_real_streams() -> None:
    """Some are read to their end, some are left: all places come back, and none too many is given."""
    with serving(limited(requests=10**6, concurrency=4, queue_seconds=30)) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:

            async def read(number: int) -> None:
                stream = await client.chat.completions.create(model="echo", messages=SAID, stream=True)
                async for _ in stream:
                    if number % 3 == 0:
                        break
                await stream.close()

            await asyncio.gather(*map(read, range(40)))
            await asyncio.gather(*map(read, range(4)))


async def test_anthropics_sdk_is_refused_in_its_own_words() -> None:
    """On ``/v1/messages``."""
    with serving(limited(requests=1, window=3600)) as url:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as client:
            kinds = []
            for _ in range(2):
                try:
                    await client.messages.create(model="echo", max_tokens=10, messages=SAID)
                except anthropic.APIStatusError as error:
                    kinds.append((error.status_code, type(error).__name__))
            assert kinds[-1] == (429, "RateLimitError")
