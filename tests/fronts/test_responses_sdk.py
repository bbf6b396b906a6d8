"""The official OpenAI SDK's Responses through the gateway as a real process: to echo, to a chat server, to Anthropic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import FunctionToolParam, Response, ResponseInputParam
from pydantic import BaseModel

from ..servers import KEY, TEAM, Server, environment, fetch, serving, shown, uvicorn
from .provider import Provider
from .responses import DONE, USAGE, call_piece, chunk, event, usage_chunk

FILE = """
[tenants.payer]
keys = ["gw-payer-key-for-the-tests"]
budget_usd = 5

[models.paid]
targets = ["chat/paid"]
usd_per_million_in = 1
usd_per_million_out = 10

[providers.chat]
type = "deepseek"
base_url = "{url}/v1"
api_key = "sk-provider-key-0123456789"
models = ["real-model"]

[providers.claude]
type = "anthropic"
base_url = "{url}"
api_key = "sk-ant-0123456789abcdef"
models = ["claude-sonnet-4-6"]
"""
WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "strict": None,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}
CLAUDE = "claude/claude-sonnet-4-6"
ROLE = chunk({"role": "assistant", "content": ""})


class City(BaseModel):
    """What a structured answer is parsed to."""

    name: str
    people: int
    coastal: bool


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[Provider, str]]:
    """A provider and its URL."""
    provider = Provider()
    with serving(provider) as url:
        yield provider, url


@pytest.fixture(scope="module")
def process(scripted: tuple[Provider, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The gateway in front of it."""
    folder = tmp_path_factory.mktemp("responses")
    file = TEAM + FILE.format(url=scripted[1])
    with uvicorn("examples:app", environment(folder, file=file), folder) as server:
        yield server


@pytest.fixture
def provider(scripted: tuple[Provider, str]) -> Provider:
    """The provider, asked for nothing so far."""
    scripted[0].plays()
    return scripted[0]


@pytest.fixture
def server(process: Server) -> Iterator[Server]:
    """The gateway; no traceback may be in what it logs."""
    with shown(process):
        yield process


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """The SDK, which here validates every answer and every event by its type."""
    made = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0, _strict_response_validation=True)
    with made:
        yield made


def async_client(server: Server) -> openai.AsyncOpenAI:
    """The same for ``async with``."""
    return openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0, _strict_response_validation=True)


# -- to echo -----------------------------------------------------------------------------------------------------------


def test_a_response_is_created(client: openai.OpenAI) -> None:
    """Text, status and usage arrive typed."""
    found = client.responses.create(
        model="echo", input="one two three", instructions="say it again", metadata={"a": "b"}
    )
    assert (found.output_text, found.status, found.to_dict()["store"]) == ("one two three", "completed", False)
    assert found.usage is not None
    assert (found.usage.output_tokens, found.usage.total_tokens) == (3, 9)
    assert (found.instructions, found.metadata) == ("say it again", {"a": "b"})


async def test_a_response_is_created_asynchronously(server: Server) -> None:
    """And the limit of the output cuts it."""
    async with async_client(server) as client:
        found = await client.responses.create(model="echo", input="one two three", max_output_tokens=2)
    assert (found.output_text, found.status) == ("one two", "incomplete")
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"


def test_a_stream_arrives_in_order(client: openai.OpenAI) -> None:
    """The raw events, each of the type that the SDK knows."""
    with client.responses.create(model="echo", input="one two three", stream=True) as stream:
        events = list(stream)
    assert [told.sequence_number for told in events] == list(range(len(events)))
    assert [told.type for told in events[:2]] == ["response.created", "response.in_progress"]
    assert "".join(told.delta for told in events if told.type == "response.output_text.delta") == "one two three"
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.usage is not None
    assert last.response.usage.total_tokens == 6


async def test_the_sdks_stream_helper_puts_the_answer_together(server: Server) -> None:
    """Asynchronously, with a structured answer that is parsed on the way."""
    async with (
        async_client(server) as client,
        client.responses.stream(model="echo", input="x", text_format=City) as stream,
    ):
        kinds = [told.type async for told in stream]
        final = await stream.get_final_response()
    assert kinds[-1] == "response.completed"
    assert final.output_parsed == City(name="echo", people=1, coastal=True)


async def test_a_structured_answer_is_parsed(client: openai.OpenAI, server: Server) -> None:
    """``parse`` with a Pydantic class gives an instance of it."""
    assert client.responses.parse(model="echo", input="x", text_format=City).output_parsed == City(
        name="echo", people=1, coastal=True
    )
    async with async_client(server) as other:
        again = await other.responses.parse(model="echo", input="x", text_format=City)
    assert again.output_parsed == City(name="echo", people=1, coastal=True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_ends_in_an_answer(client: openai.OpenAI, stream: bool) -> None:
    """The SDK's own output items are sent back, as its guide says."""
    talk: ResponseInputParam = [{"role": "user", "content": "how is it?"}]
    if stream:
        with client.responses.stream(model="echo", input=talk, tools=[WEATHER], tool_choice="required") as events:
            first: Response = events.get_final_response()
    else:
        first = client.responses.create(model="echo", input=talk, tools=[WEATHER], tool_choice="required")
    (called,) = first.output
    assert called.type == "function_call"
    assert (called.name, json.loads(called.arguments)) == ("weather", {"city": "echo", "days": 1})
    talk += [item.to_dict() for item in first.output]  # type: ignore[misc]
    talk.append({"type": "function_call_output", "call_id": called.call_id, "output": "sunny"})
    assert client.responses.create(model="echo", input=talk, tools=[WEATHER]).output_text == "sunny"


# -- errors ------------------------------------------------------------------------------------------------------------


def test_what_is_not_served_is_a_bad_request(client: openai.OpenAI) -> None:
    """400, with the field and what to do."""
    for fields, param in (
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": []}, "input"),
        ({"input": [{"id": "msg_1"}]}, "input[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(model="echo", input="x", extra_body=fields)
        assert refused.value.param == param
    nested: Any = {}
    for _ in range(400):
        nested = {"a": nested}
    with pytest.raises(openai.BadRequestError):
        client.responses.create(
            model="echo", input="x", text={"format": {"type": "json_schema", "name": "n", "schema": nested}}
        )


async def test_errors_are_the_sdks_own_classes(client: openai.OpenAI, server: Server) -> None:
    """401 and 404, in both clients."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="gpt-nothing", input="x")
    assert missing.value.code == "model_not_found"
    with (
        openai.OpenAI(base_url=server.url + "/v1", api_key="gw-wrong") as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.responses.create(model="echo", input="x", stream=True)
    async with async_client(server) as third:
        with pytest.raises(openai.NotFoundError):
            await third.responses.create(model="gpt-nothing", input="x", stream=True)


def test_what_is_stored_nowhere_is_not_found(client: openai.OpenAI) -> None:
    """Nothing of an earlier response can be asked for."""
    made = client.responses.create(model="echo", input="x")
    for ask in (
        client.responses.retrieve,
        client.responses.delete,
        client.responses.cancel,
        client.responses.input_items.list,
    ):
        with pytest.raises(openai.NotFoundError):
            ask(made.id)


# -- to a server that speaks chat --------------------------------------------------------------------------------------


def test_the_provider_is_asked_in_chat(client: openai.OpenAI, provider: Provider) -> None:
    """And what was left out is told in a header."""
    message = {"role": "assistant", "content": "so", "reasoning_content": "hm"}
    provider.tells({"id": "c", "created": 1, "model": "real-model", "usage": USAGE,
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})  # fmt: skip
    raw = client.responses.with_raw_response.create(
        model="chat/real-model", instructions="be brief", input="why?", max_output_tokens=50, prompt_cache_key="k",
        include=["reasoning.encrypted_content"], tools=[WEATHER], temperature=0.5,
    )  # fmt: skip
    (asked,) = provider.asked
    assert asked.path == "/v1/chat/completions"
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER["parameters"]}}
    assert asked.body == {
        "model": "real-model", "temperature": 0.5, "tools": [tool], "max_tokens": 50,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}],
    }  # fmt: skip
    assert raw.headers["x-llm-dropped-fields"] == "prompt_cache_key, include"
    found = raw.parse()
    assert [item.type for item in found.output] == ["reasoning", "message"]
    assert found.usage is not None
    assert (found.usage.input_tokens_details.cached_tokens, found.usage.output_tokens_details.reasoning_tokens) == (
        10,
        4,
    )


def test_calls_that_stream_in_turns_are_read(client: openai.OpenAI, provider: Provider) -> None:
    """By the SDK's accumulator."""
    provider.streams([ROLE, chunk({"reasoning_content": "hm"}), chunk({"content": "let me see"}),
                      call_piece(0, "a", "weather", ""), call_piece(1, "b", "weather", '{"city"'),
                      call_piece(0, arguments="{}"), call_piece(1, arguments=':"x"}'), chunk({}, "tool_calls"),
                      usage_chunk(), DONE])  # fmt: skip
    with client.responses.stream(model="chat/real-model", input="x", tools=[WEATHER]) as stream:
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [item.arguments for item in final.output if item.type == "function_call"] == ["{}", '{"city":"x"}']
    assert provider.asked[0].body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("cut", [False, True])
def test_a_stream_that_breaks_off_raises(client: openai.OpenAI, provider: Provider, cut: bool) -> None:
    """Whether the provider closed or died; what came before was read."""
    provider.streams([ROLE, chunk({"content": "a"}), chunk({"content": "b"})], cut=cut)
    seen: list[str] = []

    def read(stream: openai.Stream[Any]) -> None:
        seen.extend(told.delta for told in stream if told.type == "response.output_text.delta")

    model = f"chat/cut-{cut}"  # each has its own health
    with (
        client.responses.create(model=model, input="x", stream=True) as stream,
        pytest.raises(openai.APIError) as caught,
    ):
        read(stream)
    assert seen == ["a", "b"]
    assert caught.value.code is not None


def test_an_error_in_the_stream_raises(client: openai.OpenAI, provider: Provider) -> None:
    """With the provider's words, and without its address: where the error comes with the first event, the call itself does."""
    provider.streams(
        [ROLE, chunk({"content": "a"}), event({"error": {"message": "overheated at 10.0.0.1", "code": 500}})]
    )
    with (
        pytest.raises(openai.APIError, match="overheated") as caught,
        client.responses.create(model="chat/hot", input="x", stream=True) as stream,
    ):
        list(stream)
    assert "10.0.0.1" not in str(caught.value)


def test_a_failure_of_the_providers_is_told_in_the_sdks_class(client: openai.OpenAI, provider: Provider) -> None:
    """429 stays one, and a broken answer is a 502."""
    provider.tells({"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}, 429)
    with pytest.raises(openai.RateLimitError, match="slow down"):
        client.responses.create(model="chat/busy", input="x")
    provider.plays()
    provider.tells({"choices": []})
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model="chat/broken", input="x")


def test_the_cost_is_told_with_the_end(server: Server, provider: Provider) -> None:
    """Committed: in the last event beside the response, in a header of a whole answer. 100 tokens for 1 USD a million
    and 10 for 10 USD are 0.0002 USD."""
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    payer = "gw-payer-key-for-the-tests"
    provider.streams([ROLE, chunk({"content": "a"}), chunk({}, "stop"), usage_chunk(usage), DONE])
    reply = fetch(server.url + "/v1/responses", {"model": "paid", "input": "x", "stream": True}, key=payer)
    *before, last = [json.loads(line[6:]) for line in reply.body.split(b"\n") if line.startswith(b"data: ")]
    assert (last["type"], last["cost_usd"]) == ("response.completed", 0.0002)
    assert not any("cost_usd" in told for told in before)
    provider.plays()
    provider.tells({"created": 1, "choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": usage})
    reply = fetch(server.url + "/v1/responses", {"model": "paid", "input": "x"}, key=payer)
    assert reply.headers["x-llm-cost-usd"] == "0.0002"
    assert provider.asked[0].body["max_tokens"] > 0  # what the budget allows, for none was asked


# -- to Anthropic ------------------------------------------------------------------------------------------------------


def anthropic_event(kind: str, **fields: Any) -> bytes:
    """An event as Anthropic sends it."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


async def test_anthropic_answers_too(server: Server, provider: Provider) -> None:
    """Asked in its own words: the system apart, the tools' results in blocks."""
    usage = {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 2}
    provider.tells({"id": "msg", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "usage": usage,
                    "stop_reason": "tool_use",
                    "content": [{"type": "text", "text": "see"},
                                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "x"}}]})  # fmt: skip
    provider.tells({"id": "msg", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "usage": usage,
                    "stop_reason": "end_turn", "content": [{"type": "text", "text": "sunny"}]})  # fmt: skip
    talk: Any = [{"role": "user", "content": "how is it?"}]
    async with async_client(server) as client:
        first = await client.responses.create(model=CLAUDE, instructions="brief", input=talk, tools=[WEATHER])
        talk += [item.to_dict() for item in first.output]
        talk.append({"type": "function_call_output", "call_id": "toolu_1", "output": "25 degrees"})
        last = await client.responses.create(model=CLAUDE, instructions="brief", input=talk, tools=[WEATHER])
    assert [item.type for item in first.output] == ["message", "function_call"]
    assert (last.output_text, last.usage and last.usage.input_tokens) == ("sunny", 8)
    asked = provider.asked[1]
    assert asked.path == "/v1/messages"
    assert asked.body["system"][0]["text"] == "brief"
    assert [turn["role"] for turn in asked.body["messages"]] == ["user", "assistant", "user"]
    assert [block["type"] for block in asked.body["messages"][1]["content"]] == ["text", "tool_use"]
    assert asked.body["messages"][2]["content"][0]["tool_use_id"] == "toolu_1"


def test_anthropic_streams_too(client: openai.OpenAI, provider: Provider) -> None:
    """Thoughts, text and a call of no arguments."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "content": [],
               "usage": {"input_tokens": 5, "output_tokens": 1}}  # fmt: skip
    provider.streams([
        anthropic_event("message_start", message=message),
        anthropic_event("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
        anthropic_event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"}),
        anthropic_event("content_block_stop", index=0),
        anthropic_event("content_block_start", index=1, content_block={"type": "text", "text": ""}),
        anthropic_event("content_block_delta", index=1, delta={"type": "text_delta", "text": "so"}),
        anthropic_event("content_block_stop", index=1),
        anthropic_event("content_block_start", index=2,
                        content_block={"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}),
        anthropic_event("content_block_stop", index=2),
        anthropic_event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 9}),
        anthropic_event("message_stop"),
    ])  # fmt: skip
    with client.responses.stream(model=CLAUDE, input="x", tools=[WEATHER]) as stream:
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert [item.arguments for item in final.output if item.type == "function_call"] == ["{}"]
    assert final.usage is not None
    assert (final.usage.input_tokens, final.usage.output_tokens) == (5, 9)


@pytest.mark.parametrize("many", [1, 300])
def test_a_long_conversation_keeps_its_order(client: openai.OpenAI, provider: Provider, many: int) -> None:
    """Every call directly before its result."""
    provider.tells({"created": 1, "choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]})
    items: Any = [{"role": "user", "content": "go"}]
    for number in range(many):
        items += [{"type": "function_call", "call_id": f"c{number}", "name": "weather", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": f"c{number}", "output": str(number)}]  # fmt: skip
    client.responses.create(model="chat/real-model", input=items, tools=[WEATHER])
    sent = provider.asked[0].body["messages"]
    assert [message["role"] for message in sent] == ["user", *["assistant", "tool"] * many]
