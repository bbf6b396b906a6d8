"""The official Anthropic SDK, unchanged but for ``base_url``, through a gateway process whose provider speaks chat only."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import beta_tool
from pydantic import BaseModel

from ..servers import KEY, Server, environment, serving, shown, uvicorn
from .messages_parts import DONE, PNG, call, chunk, completion, content_of, used

HELLO: Any = [{"role": "user", "content": "one two three"}]
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}
GIVEN = {"city": "echo", "days": 1}


class City(BaseModel):
    """What a structured answer is parsed to."""

    name: str
    people: int
    coastal: bool


class Provider:
    """A server that speaks chat: plays back what the test gives it, one answer a call, and keeps what it was asked.

    Attributes:
        answers: What comes next: a whole body, a list of events (and seconds of silence), or ``(status, body)``; the last
            one again and again.
        asked: The bodies that came, with the path they came to.
    """

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.asked.append({"path": scope["path"], **json.loads(body)})
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        status, said = answer if type(answer) is tuple else (200, answer)
        kind = b"text/event-stream" if type(said) is list else b"application/json"
        headers = [(b"content-type", kind), (b"retry-after-ms", b"5")] if status != 200 else [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in said if type(said) is list else [said]:
            if type(piece) is float:
                await asyncio.sleep(piece)
            else:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Provider]]:
    """The gateway in a process of its own, and the provider that it asks."""
    folder = tmp_path_factory.mktemp("messages")
    provider = Provider()
    with serving(provider) as url:
        env = environment(folder, OPENAI_API_KEY="sk-of-the-operator", OPENAI_BASE_URL=f"{url}/v1",
                          RATE_LIMIT_REQUESTS="100000")  # fmt: skip
        with uvicorn("examples:app", env, folder) as server:
            yield server, provider


@pytest.fixture
def server(stage: tuple[Server, Provider]) -> Iterator[Server]:
    """The gateway under test."""
    with shown(stage[0]):
        yield stage[0]


@pytest.fixture
def provider(stage: tuple[Server, Provider]) -> Provider:
    """The provider, with nothing asked yet."""
    stage[1].asked.clear()
    return stage[1]


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    """The SDK as its users make it."""
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as made:
        yield made


def async_client(server: Server) -> anthropic.AsyncAnthropic:
    """The same for ``async with``."""
    return anthropic.AsyncAnthropic(base_url=server.url, api_key=KEY, max_retries=0)


def ask(client: anthropic.Anthropic, model: str = "echo", **fields: Any) -> Any:
    """A whole answer."""
    return client.messages.create(**{"model": model, "max_tokens": 100, "messages": HELLO, **fields})


# -- answers and streams -----------------------------------------------------------------------------------------------


def test_a_message_is_answered(client: anthropic.Anthropic) -> None:
    """Text, reason and usage arrive typed."""
    message = ask(client, system="Be brief.")
    assert (content_of(message), message.stop_reason, message.model) == (["one two three"], "end_turn", "echo")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (5, 3)
    assert message.id.startswith("msg_")
    cut = ask(client, max_tokens=2)
    assert (content_of(cut), cut.stop_reason) == (["one two"], "max_tokens")


def test_a_stream_is_put_together(client: anthropic.Anthropic) -> None:
    """By the SDK's own helper and event by event."""
    with client.messages.stream(model="echo", max_tokens=100, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "one two three"
        message = stream.get_final_message()
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 3, 3)
    with client.messages.create(model="echo", max_tokens=100, messages=HELLO, stream=True) as events:
        kinds = [event.type for event in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])


async def test_the_same_asynchronously_and_many_at_once(server: Server) -> None:
    """Whole answers and streams side by side, each with its own."""

    async def one(client: anthropic.AsyncAnthropic, words: str) -> tuple[str, str]:
        asked: Any = {"model": "echo", "max_tokens": 100, "messages": [{"role": "user", "content": words}]}
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            return content_of(whole)[0], await stream.get_final_text()

    async with async_client(server) as client:
        told = await asyncio.gather(*(one(client, f"call number {number}") for number in range(10)))
    assert told == [(f"call number {number}", f"call number {number}") for number in range(10)]


def test_what_is_left_out_is_told_in_a_header(client: anthropic.Anthropic, provider: Provider) -> None:
    """By the names of the fields."""
    provider.answers = [completion({"content": "hi"})]
    fields: Any = {"model": "gpt-4o", "max_tokens": 9, "messages": HELLO, "extra_body": {"top_k": 5, "speed": "fast"}}
    raw = client.messages.with_raw_response.create(**fields)
    assert sorted(raw.headers["x-llm-dropped-fields"].split(", ")) == ["speed", "top_k"]
    assert "top_k" not in provider.asked[0]


# -- tools, images, structured answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_tool_is_called(client: anthropic.Anthropic, choice: Any) -> None:
    """A forced call comes with an input that fits its schema, and the tool's result ends in an answer."""
    message = ask(client, tools=[WEATHER], tool_choice=choice)
    assert message.stop_reason == "tool_use"
    (called,) = message.content
    assert (called.name, called.input) == ("weather", GIVEN)
    result = {"type": "tool_result", "tool_use_id": called.id, "content": "sunny"}
    talk = [*HELLO, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert content_of(ask(client, tools=[WEATHER], messages=talk)) == ["sunny"]


def test_a_tool_is_called_in_a_stream(client: anthropic.Anthropic) -> None:
    """The pieces of the input make the same call."""
    choice: Any = {"type": "any"}
    with client.messages.stream(
        model="echo", max_tokens=100, messages=HELLO, tools=[WEATHER], tool_choice=choice
    ) as stream:
        message = stream.get_final_message()
    assert (content_of(message), message.stop_reason) == ([("weather", GIVEN)], "tool_use")


async def test_a_structured_answer_is_parsed(server: Server, client: anthropic.Anthropic) -> None:
    """``parse`` with a Pydantic class gives an instance of it."""
    wanted = City(name="echo", people=1, coastal=True)
    fields: Any = {"model": "echo", "max_tokens": 100, "messages": HELLO, "output_format": City}
    assert client.messages.parse(**fields).parsed_output == wanted
    async with async_client(server) as other:
        assert (await other.messages.parse(**fields)).parsed_output == wanted


def test_an_image_and_a_file_reach_the_provider(client: anthropic.Anthropic, provider: Provider) -> None:
    """In chat's parts."""
    provider.answers = [completion({"content": "a cat"})]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    data = base64.b64encode(b"%PDF-1.4").decode()
    paper = {"type": "document", "title": "a.pdf",
             "source": {"type": "base64", "media_type": "application/pdf", "data": data}}  # fmt: skip
    asked = [{"role": "user", "content": [image, paper, {"type": "text", "text": "What is this?"}]}]
    assert content_of(ask(client, "gpt-4o", messages=asked)) == ["a cat"]
    (sent,) = provider.asked[0]["messages"]
    assert [part["type"] for part in sent["content"]] == ["image_url", "file", "text"]
    assert sent["content"][0]["image_url"]["url"] == f"data:image/png;base64,{PNG}"


def test_thoughts_come_typed_and_may_come_back(client: anthropic.Anthropic, provider: Provider) -> None:
    """A client that asked to think gets them, and sends them back as it must with Anthropic."""
    provider.answers = [
        [chunk({"reasoning_content": "h"}), chunk({"reasoning_content": "m"}), chunk({"content": "hi"}, "stop"), DONE]
    ]
    thinking: Any = {"type": "enabled", "budget_tokens": 2000}
    with client.messages.stream(model="gpt-5", max_tokens=4000, messages=HELLO, thinking=thinking) as stream:
        message = stream.get_final_message()
    assert content_of(message) == [("thinking", "hm"), "hi"]
    assert provider.asked[0]["reasoning_effort"] == "low"
    provider.answers = [completion({"content": "again"})]
    talk = [*HELLO, {"role": "assistant", "content": message.content}, {"role": "user", "content": "and?"}]
    assert content_of(ask(client, "gpt-5", messages=talk)) == ["again"]
    assert provider.asked[1]["messages"][1] == {"role": "assistant", "content": "hi"}


# -- an agent ----------------------------------------------------------------------------------------------------------


def test_the_sdks_tool_runner_runs(client: anthropic.Anthropic, provider: Provider) -> None:
    """It calls the tools itself, both at once, and ends with the answer.

    It asks for a thread first, of which the provider would keep the turns: told that there is none, it sends them all.
    """
    called: list[str] = []

    @beta_tool
    def look(place: str) -> str:
        """Look somewhere."""
        called.append(place)
        return f"nothing in {place}"

    calls = [
        {
            "id": f"call_{place}",
            "type": "function",
            "function": {"name": "look", "arguments": json.dumps({"place": place})},
        }
        for place in ("cellar", "attic")
    ]
    provider.answers = [
        completion({"content": None, "tool_calls": calls}, "tool_calls"),
        completion({"content": "Gone."}),
    ]
    runner = client.beta.messages.tool_runner(model="gpt-4o", max_tokens=100, tools=[look], messages=HELLO)
    last = runner.until_done()
    assert (called, last.content[0].type, last.stop_reason) == (["cellar", "attic"], "text", "end_turn")
    assert [one["role"] for one in provider.asked[1]["messages"][:2]] == ["user", "assistant"]
    assert provider.asked[1]["messages"][2:] == [
        {"role": "tool", "tool_call_id": "call_cellar", "content": "nothing in cellar"},
        {"role": "tool", "tool_call_id": "call_attic", "content": "nothing in attic"},
    ]


def test_a_coding_agents_conversation(client: anthropic.Anthropic, provider: Provider) -> None:
    """Marked system blocks, twenty tools, thinking, parallel calls in a stream, a failed result with an image and a hint."""
    tools: Any = [
        {"name": f"mcp__server_{number}__{'long_' * number}tool", "description": "Does.", "input_schema": {
            "type": "object", "properties": {"path": {"type": "string"}}}}
        for number in range(20)
    ]  # fmt: skip
    tools[-1]["cache_control"] = {"type": "ephemeral"}
    fields: Any = {
        "model": "gpt-5",
        "max_tokens": 32000,
        "system": [
            {"type": "text", "text": "You write code."},
            {"type": "text", "text": "Be careful.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        ],
        "tools": tools,
        "metadata": {"user_id": "user_" + "f" * 64 + "_account__session_1"},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "extra_body": {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        "extra_headers": {"anthropic-beta": "context-management-2025-06-27,interleaved-thinking-2025-05-14"},
    }
    provider.answers = [
        [b": OPENROUTER PROCESSING\n\n", chunk({"role": "assistant", "content": "", "reasoning": "Read both."}),
         chunk({"content": "I read."}), call(0, "call_a", tools[1]["name"], ""), call(0, arguments='{"path":'),
         call(0, arguments='"a.py"}'), call(1, "call_b", "", ""), b"data: {}\n\n", chunk(finish="tool_calls"),
         used(900, 40, prompt_tokens_details={"cached_tokens": 800}), DONE],
    ]  # fmt: skip
    ask_for = {**fields, "messages": [{"role": "user", "content": [{"type": "text", "text": "Fix it."}]}]}
    with client.messages.stream(**ask_for) as stream:
        stream.until_done()
    cut = next(tool["function"]["name"] for tool in provider.asked[0]["tools"][19:])
    provider.answers[0][6] = call(1, "call_b", cut, "")  # the longest name, as the provider knows it
    with client.messages.stream(**ask_for) as stream:
        message = stream.get_final_message()
    assert content_of(message) == [
        ("thinking", "Read both."), "I read.", (tools[1]["name"], {"path": "a.py"}), (tools[19]["name"], {})
    ]  # fmt: skip
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (100, 800)
    assert message.stop_reason == "tool_use"

    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    results = [
        {"type": "tool_result", "tool_use_id": "call_a", "content": "print(1)"},
        {"type": "tool_result", "tool_use_id": "call_b", "is_error": True,
         "content": [{"type": "text", "text": "denied"}, image], "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "<system-reminder>Be quick.</system-reminder>"},
    ]  # fmt: skip
    provider.answers = [[chunk({"content": "Done."}, "stop"), used(), DONE]]
    talk = [
        *ask_for["messages"],
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": results},
    ]
    with client.messages.stream(**{**fields, "messages": talk}) as stream:
        assert content_of(stream.get_final_message()) == ["Done."]

    sent = provider.asked[-1]
    assert sent["messages"][0] == {"role": "system", "content": "You write code.\n\nBe careful."}
    assert [one["role"] for one in sent["messages"]] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert sent["messages"][2]["content"] == "I read."
    assert [one["id"] for one in sent["messages"][2]["tool_calls"]] == ["call_a", "call_b"]
    assert [one["content"] for one in sent["messages"][3:5]] == ["print(1)", "Error: denied"]
    assert [part["type"] for part in sent["messages"][5]["content"]] == ["text", "image_url", "text"]
    assert len(sent["tools"]) == 20
    assert all(len(tool["function"]["name"]) <= 64 for tool in sent["tools"])
    assert (len(sent["user"]), sent["reasoning_effort"]) == (64, "high")
    assert "cache_control" not in json.dumps(sent)
    assert sent["stream_options"] == {"include_usage": True}


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_an_authentication_error(server: Server) -> None:
    """The SDK's own class for 401."""
    with (
        anthropic.Anthropic(base_url=server.url, api_key="gw-no-such-key-at-all") as other,
        pytest.raises(anthropic.AuthenticationError),
    ):
        ask(other)


def test_an_unknown_model_is_a_not_found_error(client: anthropic.Anthropic) -> None:
    """404 in Anthropic's envelope."""
    with pytest.raises(anthropic.NotFoundError, match="no-such-model") as refused:
        ask(client, "no-such-model")
    assert refused.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_a_bad_request_error(client: anthropic.Anthropic, stream: bool) -> None:
    """400 that names the field, before anything has begun."""
    for wrong, named in (
        ({"messages": []}, "messages"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, r"tools\[0\]\.type"),
        ({"temperature": 3}, "temperature"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "{"}]}, "assistant message"),
    ):
        with pytest.raises(anthropic.BadRequestError, match=named):
            ask(client, extra_body=wrong, stream=stream)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, anthropic.BadRequestError), (401, anthropic.InternalServerError), (413, anthropic.RequestTooLargeError),
     (429, anthropic.RateLimitError), (500, anthropic.InternalServerError), (503, anthropic.APIStatusError)],
)  # fmt: skip
def test_a_providers_failure_has_its_class(
    client: anthropic.Anthropic, provider: Provider, status: int, kind: type[Exception]
) -> None:
    """The client's own fault and limits keep their status; the gateway's trouble with its key is not the client's."""
    provider.answers = [(status, json.dumps({"error": {"message": "no", "type": "x", "code": None}}).encode())]
    for stream in (False, True):
        with pytest.raises(kind) as refused:
            ask(client, f"gpt-{status}-{stream}", stream=stream)  # a name each: a target that fails is left alone
        assert refused.value.body["type"] == "error"  # type: ignore[attr-defined]


async def test_a_stream_that_breaks_off_raises(server: Server, client: anthropic.Anthropic, provider: Provider) -> None:
    """Whether the provider tells of an error or just ends; what came before was read, and no end is made up."""
    begun = [chunk({"role": "assistant", "content": ""}), chunk({"content": "a"})]
    failed = b"data: " + json.dumps({"error": {"message": "overloaded", "type": "overloaded_error"}}).encode() + b"\n\n"
    for events, named in (([*begun, 0.5, failed], "overloaded"), (begun, "before")):
        provider.answers = [events]
        texts: list[str] = []
        fields: Any = {"model": f"gpt-{named}", "max_tokens": 9, "messages": HELLO}
        stream = client.messages.create(**fields, stream=True)
        with stream, pytest.raises(anthropic.APIStatusError, match=named):
            texts += [event.delta.text for event in stream if event.type == "content_block_delta"]
        async with async_client(server) as other:
            with pytest.raises(anthropic.APIStatusError, match=named):
                async with other.messages.stream(**fields) as events_of:
                    await events_of.get_final_message()
