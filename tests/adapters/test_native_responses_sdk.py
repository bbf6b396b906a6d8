"""The official SDK's Responses to a provider that speaks them itself: through a ProxyApp behind a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from asgi_llm_gateway.adapters.compatible import OPENAI
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router

from ..fronts.provider import Provider
from ..fronts.responses import FRONT, USAGE, encoded, request
from ..fronts.test_responses_stream import PLAIN
from ..servers import fetch, serving

STREAM = encoded(*PLAIN)
EVENTS = [one + b"\n\n" for one in STREAM.split(b"\n\n")[:-1]]
CHAT = {"created": 1, "model": "gpt-5", "usage": USAGE,
        "choices": [{"message": {"content": "hi", "reasoning_content": "hm"}, "finish_reason": "stop"}]}  # fmt: skip
ANSWER = json.loads(FRONT.response(request(tools=[{"type": "function", "name": "error"}]), json.dumps(CHAT).encode()))


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Provider, str]]:
    """The provider, and the URL of the gateway in front of it."""
    provider = Provider()
    with serving(provider) as url:
        vendor = OPENAI._replace(responses=True)
        router = Router([OpenAIAdapter("openai", url + "/v1", "sk-provider-0123456789", vendor=vendor)])
        with serving(ProxyApp(router=router)) as gateway:
            yield provider, gateway


@pytest.fixture
def provider(both: tuple[Provider, str]) -> Provider:
    """The provider, asked for nothing so far."""
    both[0].plays()
    return both[0]


@pytest.fixture
def url(both: tuple[Provider, str]) -> str:
    """The gateway's."""
    return both[1]


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    """The SDK, which here validates every answer and every event by its type."""
    with openai.OpenAI(base_url=url + "/v1", api_key="any", max_retries=0, _strict_response_validation=True) as made:
        yield made


def test_an_answer_passes_as_it_is(client: openai.OpenAI, provider: Provider, url: str) -> None:
    """Byte for byte; and the provider is told to store nothing."""
    provider.tells(ANSWER)
    found = client.responses.create(model="gpt-5", input="x", store=True, extra_body={"new_field": [1, {"a": 2}]})
    assert (found.output_text, [item.type for item in found.output]) == ("hi", ["reasoning", "message"])
    (asked,) = provider.asked
    assert (asked.path, asked.headers["authorization"]) == ("/v1/responses", "Bearer sk-provider-0123456789")
    assert asked.body == {"model": "gpt-5", "input": "x", "store": False, "new_field": [1, {"a": 2}]}
    raw = fetch(url + "/v1/responses", {"model": "gpt-5", "input": "x"}, key=None)
    assert raw.body == json.dumps(ANSWER).encode()


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_stream_passes_as_it_is(url: str, provider: Provider, size: int) -> None:
    """However the provider's bytes are cut, nothing is added but the cost where one is known, and nothing lost."""
    provider.streams([STREAM[at : at + size] for at in range(0, len(STREAM), size)])
    raw = fetch(url + "/v1/responses", {"model": "gpt-5", "input": "x", "stream": True}, key=None)
    events = [one + b"\n\n" for one in raw.body.split(b"\n\n")[:-1]]
    assert events[:-1] == EVENTS[:-1]
    last = json.loads(events[-1].split(b"data: ")[1])
    last.pop("cost_usd", None)
    assert last == json.loads(EVENTS[-1].split(b"data: ")[1])


async def test_the_sdk_reads_the_stream(url: str, provider: Provider) -> None:
    """Several at once, to their end."""
    provider.streams(EVENTS)

    async def one(client: openai.AsyncOpenAI) -> str:
        async with client.responses.stream(model="gpt-5", input="x") as stream:
            return (await stream.get_final_response()).output_text

    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="any", _strict_response_validation=True) as client:
        assert await asyncio.gather(*(one(client) for _ in range(5))) == ["Hello"] * 5


@pytest.mark.parametrize("cut", [False, True])
def test_a_stream_that_breaks_off_raises(client: openai.OpenAI, provider: Provider, cut: bool) -> None:
    """After what had come: it has no last event."""
    provider.streams(EVENTS[:6], cut=cut)
    asked = client.responses.create(model="gpt-5", input="x", stream=True)
    seen: list[str] = []
    with asked as stream, pytest.raises(openai.APIError) as caught:
        seen.extend(told.type for told in stream)
    assert caught.value.code is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "resp_of_another_tenant"},
        {"conversation": "conv_1"},
        {"background": True},
        {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        {"tools": [{"type": "web_search"}]},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file_1"}]}]},
    ],
)
def test_what_tenants_would_share_never_leaves(
    client: openai.OpenAI, provider: Provider, fields: dict[str, Any]
) -> None:
    """400, and the provider is not asked."""
    provider.tells(ANSWER)
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="gpt-5", input="x", extra_body=fields)
    assert provider.asked == []


def test_a_providers_refusal_is_told_in_the_sdks_class(client: openai.OpenAI, provider: Provider) -> None:
    """With its field."""
    error = {"message": "Unsupported value", "type": "invalid_request_error", "param": "reasoning.effort", "code": "x"}
    provider.tells({"error": error}, 400)
    with pytest.raises(openai.BadRequestError, match="Unsupported value") as caught:
        client.responses.create(model="gpt-5", input="x")
    assert caught.value.param == "reasoning.effort"
