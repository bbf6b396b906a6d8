"""The official OpenAI SDK, unchanged but for ``base_url``, through ``uvicorn examples:app`` as a real process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionToolParam
from pydantic import BaseModel

from .servers import KEY, Server, environment, fetch, shown, upstream, uvicorn

HELLO: Any = [{"role": "user", "content": "one two three"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
ARGUMENTS = {"city": "echo", "days": 1}


class City(BaseModel):
    """What a structured answer is parsed to."""

    name: str
    people: int
    coastal: bool


@pytest.fixture(scope="module", params=["examples:app", "examples.mount_starlette:app"])
def process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The gateway stand-alone, and under a prefix of another app."""
    folder = tmp_path_factory.mktemp("sdk")
    with uvicorn(request.param, environment(folder, RATE_LIMIT_WINDOW_MS="3600000"), folder) as server:
        if "mount" in request.param:
            server.url += "/llm"
        yield server


@pytest.fixture
def server(process: Server) -> Iterator[Server]:
    """The gateway under test."""
    with shown(process):
        yield process


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """The SDK as its users make it."""
    with openai.OpenAI(base_url=server.url + "/v1", api_key=KEY) as made:
        yield made


def async_client(server: Server) -> openai.AsyncOpenAI:
    """The same for ``async with``."""
    return openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=KEY)


# -- chat --------------------------------------------------------------------------------------------------------------


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    """Text, reason and usage arrive typed."""
    answer = client.chat.completions.create(model="echo", messages=HELLO)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one two three", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 3, 6)
    assert answer.model == "echo"
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


async def test_a_chat_is_answered_asynchronously(server: Server) -> None:
    """The async client gets the same, also when many ask at once."""
    async with async_client(server) as client:
        asking = [
            client.chat.completions.create(model="echo", messages=[{"role": "user", "content": f"call {number}"}])
            for number in range(20)
        ]
        answers = await asyncio.gather(*asking)
    assert [answer.choices[0].message.content for answer in answers] == [f"call {number}" for number in range(20)]


def test_an_output_limit_is_kept(client: openai.OpenAI) -> None:
    """Both of OpenAI's names for the limit cut the answer, and the reason is ``length``."""
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        answer = client.chat.completions.create(model="echo", messages=HELLO, **limit)  # type: ignore[call-overload]
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one two", "length")


def test_several_choices_are_answered(client: openai.OpenAI) -> None:
    """``n`` answers come, and usage counts them all."""
    answer = client.chat.completions.create(model="echo", messages=HELLO, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9


def test_a_completion_is_answered(client: openai.OpenAI) -> None:
    """The older API, streamed and not."""
    answer = client.completions.create(model="echo", prompt="one two three")
    assert answer.choices[0].text == "one two three"
    with client.completions.create(model="echo", prompt="one two three", stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == "one two three"


# -- streams -----------------------------------------------------------------------------------------------------------


def test_a_stream_arrives_in_order(client: openai.OpenAI) -> None:
    """The chunks put together are the answer; a usage chunk that nobody asked for does not come."""
    with client.chat.completions.create(model="echo", messages=HELLO, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_tells_its_usage_on_being_asked(client: openai.OpenAI) -> None:
    """``include_usage`` brings one last chunk without choices."""
    options: Any = {"include_usage": True}
    with client.chat.completions.create(model="echo", messages=HELLO, stream=True, stream_options=options) as stream:
        chunks = list(stream)
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage is not None] == [6]
    assert chunks[-1].choices == []


async def test_streams_arrive_asynchronously_and_side_by_side(server: Server) -> None:
    """Ten paced streams at once, each whole, and all in about the time of one."""

    async def one(client: openai.AsyncOpenAI, words: str) -> str:
        paced = {"echo_delay_ms": "20"}
        asked: Any = [{"role": "user", "content": words}]
        stream = await client.chat.completions.create(model="echo", messages=asked, stream=True, metadata=paced)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async with async_client(server) as client:
        begun = asyncio.get_running_loop().time()
        texts = await asyncio.gather(*(one(client, f"stream number {number} of ten") for number in range(10)))
        took = asyncio.get_running_loop().time() - begun
    assert texts == [f"stream number {number} of ten" for number in range(10)]
    assert took < 1.5  # one after the other they would take at least 1.6 s


def test_a_stream_may_be_left(client: openai.OpenAI) -> None:
    """A reader that has enough closes the stream, and the next call is answered as ever."""
    paced = {"echo_delay_ms": "20"}
    with client.chat.completions.create(model="echo", messages=HELLO, stream=True, metadata=paced) as stream:
        next(iter(stream))
    assert client.chat.completions.create(model="echo", messages=HELLO).choices


def test_the_sdks_stream_helper_puts_the_answer_together(client: openai.OpenAI) -> None:
    """``chat.completions.stream`` ends in a whole, typed completion."""
    with client.chat.completions.stream(model="echo", messages=HELLO) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == "one two three"


def test_a_stream_that_breaks_off_raises(client: openai.OpenAI) -> None:
    """Where the provider dies in the middle, the SDK raises an error that says so; what came before was read."""
    cut = {"echo_fault": "cut@3"}
    seen = []
    with client.chat.completions.create(model="echo", messages=HELLO, stream=True, metadata=cut) as stream:
        chunks = iter(stream)
        seen += [next(chunks).choices[0].delta.content for _ in range(3)]
        with pytest.raises(openai.APIError, match="before its answer was complete"):
            next(chunks)
    assert seen == ["", "one", " two"]


# -- tools and structured answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_is_called(client: openai.OpenAI, choice: Any) -> None:
    """A forced tool call comes with arguments that fit its schema, and the tool's result ends in an answer."""
    answer = client.chat.completions.create(model="echo", messages=HELLO, tools=[WEATHER], tool_choice=choice)
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    assert message.tool_calls is not None
    (called,) = message.tool_calls
    assert called.type == "function"
    assert (called.function.name, json.loads(called.function.arguments)) == ("weather", ARGUMENTS)
    talk: Any = [*HELLO, message, {"role": "tool", "tool_call_id": called.id, "content": "sunny"}]
    final = client.chat.completions.create(model="echo", messages=talk, tools=[WEATHER])
    assert final.choices[0].message.content == "sunny"


def test_a_tool_is_called_in_a_stream(client: openai.OpenAI) -> None:
    """The pieces of a streamed tool call make the same call."""
    with client.chat.completions.stream(
        model="echo", messages=HELLO, tools=[WEATHER], tool_choice="required"
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert (calls[0].function.name, json.loads(calls[0].function.arguments)) == ("weather", ARGUMENTS)


async def test_a_structured_answer_is_parsed(server: Server, client: openai.OpenAI) -> None:
    """``parse`` with a Pydantic class gives an instance of it."""
    parsed = client.chat.completions.parse(model="echo", messages=HELLO, response_format=City)
    assert parsed.choices[0].message.parsed == City(name="echo", people=1, coastal=True)
    async with async_client(server) as other:
        again = await other.chat.completions.parse(model="echo", messages=HELLO, response_format=City)
    assert again.choices[0].message.parsed == City(name="echo", people=1, coastal=True)


# -- embeddings and models ---------------------------------------------------------------------------------------------


def test_embeddings_are_decoded(client: openai.OpenAI) -> None:
    """By default the SDK asks for base64 and decodes it: the numbers are those of a call that asks for floats."""
    packed = client.embeddings.create(model="echo", input=["a cat", "a dog"])
    plain = client.embeddings.create(model="echo", input=["a cat", "a dog"], encoding_format="float")
    assert [len(row.embedding) for row in packed.data] == [8, 8]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding
    assert packed.usage.prompt_tokens == 4
    assert len(client.embeddings.create(model="echo", input="a cat", dimensions=32).data[0].embedding) == 32


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    """``models.list`` pages through what there is; ``models.retrieve`` finds each."""
    names = [model.id for model in client.models.list()]
    assert names == ["echo"]
    assert (client.models.retrieve("echo").id, client.models.retrieve("echo").owned_by) == ("echo", "echo")


async def test_models_are_listed_asynchronously(server: Server) -> None:
    """The async pager gets the same."""
    async with async_client(server) as client:
        assert [model.id async for model in client.models.list()] == ["echo"]


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_an_authentication_error(server: Server) -> None:
    """The SDK's own class for 401, and it does not try again."""
    with openai.OpenAI(base_url=server.url + "/v1", api_key="gw-no-such-key-at-all") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.chat.completions.create(model="echo", messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            list(client.models.list())
    assert refused.value.code == "invalid_api_key"
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_an_unknown_model_is_a_not_found_error(client: openai.OpenAI) -> None:
    """404 with OpenAI's code, naming what there is."""
    with pytest.raises(openai.NotFoundError, match="Available: echo") as refused:
        client.chat.completions.create(model="gpt-nothing", messages=HELLO)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-nothing")


def test_a_bad_request_is_a_bad_request_error(client: openai.OpenAI) -> None:
    """400 for what can't be meant, naming the field."""
    with pytest.raises(openai.BadRequestError, match="at least one message") as refused:
        client.chat.completions.create(model="echo", messages=[])
    assert refused.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="not allowed") as refused:
        client.chat.completions.create(model="echo", messages=HELLO, extra_body={"api_base": "http://evil.example"})
    assert refused.value.param == "api_base"


async def test_errors_are_the_same_asynchronously(server: Server) -> None:
    """The async client raises the same classes."""
    async with async_client(server) as client:
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="gpt-nothing", messages=HELLO)
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(model="echo", input="")


def test_the_tenant_of_another_is_a_permission_error(client: openai.OpenAI) -> None:
    """A key acts for its own tenant only, whatever header or body field names another."""
    own = client.chat.completions.create(model="echo", messages=HELLO, extra_body={"tenant": "team"})
    assert own.choices[0].message.content == "one two three"
    for more in ({"extra_body": {"tenant": "else"}}, {"extra_headers": {"x-tenant-id": "else"}}):
        with pytest.raises(openai.PermissionDeniedError) as refused:
            client.chat.completions.create(model="echo", messages=HELLO, **more)  # type: ignore[call-overload]
        assert refused.value.code == "tenant_not_found"


# -- retries -----------------------------------------------------------------------------------------------------------


def _left(server: Server) -> int:
    """Requests that the tenant has left in its window, less this one: the gateway's own count."""
    return int(fetch(server.url + "/v1/models").headers["x-ratelimit-remaining-requests"])


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("429", openai.RateLimitError), ("503", openai.InternalServerError), ("500", openai.InternalServerError)],
)
def test_what_may_pass_is_tried_again(client: openai.OpenAI, server: Server, fault: str, kind: type[Exception]) -> None:
    """The SDK comes three times where the provider says 429, 503 or 500, by the provider's own waiting time."""
    before = _left(server)
    with pytest.raises(kind):
        client.chat.completions.create(model="echo", messages=HELLO, metadata={"echo_fault": fault})
    assert before - _left(server) - 1 == 3


@pytest.mark.parametrize("fault", ["400", "422"])
def test_what_stays_wrong_is_not_tried_again(client: openai.OpenAI, server: Server, fault: str) -> None:
    """The client's own fault is told once."""
    before = _left(server)
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(model="echo", messages=HELLO, metadata={"echo_fault": fault})
    assert before - _left(server) - 1 == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_reaches_the_provider_and_is_answered(tmp_path: Path, stream: bool) -> None:
    """A provider that is busy twice and then answers: the SDK gets the answer, and the provider saw three calls.

    What the provider sees is the gateway: its key, the client's body, and none of the client's headers.
    """
    busy = (429, {"content-type": "application/json", "retry-after-ms": "5"}, b'{"error": {"message": "busy"}}')
    if stream:
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "gpt-4o"}
        said = {**chunk, "choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": "stop"}]}
        good = (200, {"content-type": "text/event-stream"}, f"data: {json.dumps(said)}\n\ndata: [DONE]\n\n".encode())
    else:
        choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {"id": "c", "object": "chat.completion", "created": 0, "model": "gpt-4o", "choices": [choice]}
        good = (200, {"content-type": "application/json"}, json.dumps({**answer, "usage": usage}).encode())
    with upstream(busy, busy, good) as provider:
        env = environment(tmp_path, OPENAI_API_KEY="sk-of-the-operator", OPENAI_BASE_URL=provider.url + "/v1")
        with (
            uvicorn("examples:app", env, tmp_path) as server,
            openai.OpenAI(base_url=server.url + "/v1", api_key=KEY) as client,
        ):
            if stream:
                with client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True) as chunks:
                    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            else:
                text = client.chat.completions.create(model="gpt-4o", messages=HELLO).choices[0].message.content or ""
    assert text == "hello"
    assert [asked.path for asked in provider.asked] == ["/v1/chat/completions"] * 3
    last = provider.asked[-1]
    assert last.headers["authorization"] == "Bearer sk-of-the-operator"
    assert not [name for name in last.headers if name.startswith(("x-stainless", "cookie", "x-api-key"))]
    assert KEY not in str(last)
    assert last.body["messages"] == HELLO
