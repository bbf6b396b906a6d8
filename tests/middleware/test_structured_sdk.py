"""The official SDKs' own structured outputs, with Pydantic classes, over real HTTP."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware

from ..servers import serving
from ..structured import BAD, GOOD, Model, calling, event, saying, streaming

HELLO: Any = [{"role": "user", "content": "Who?"}]


class Person(BaseModel):
    """What an answer is parsed to."""

    model_config = ConfigDict(extra="forbid")
    name: str
    age: int = Field(ge=0)


class save(BaseModel):
    """What a call's arguments are parsed to."""

    name: str
    age: int


ADA = Person(name="Ada", age=36)


def whole_response(text: str) -> dict[str, Any]:
    """An answer as the Responses API gives it in full."""
    return {
        **saying("responses", text), "created_at": 1, "model": "m", "parallel_tool_calls": True, "tool_choice": "auto",
        "tools": [],
    }  # fmt: skip


def whole_message(text: str) -> dict[str, Any]:
    """The same of the Messages API."""
    return {**saying("messages", text), "model": "m", "stop_sequence": None}


def whole_chat(answer: dict[str, Any]) -> dict[str, Any]:
    """The same of chat."""
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", **answer}


def test_openai_parses_what_came_at_the_second_try() -> None:
    """The caller sees an instance of its class and nothing of the first answer."""
    model = Model(whole_chat(saying("chat", BAD)), whole_chat(saying("chat", f"```json\n{GOOD}\n```")))
    with serving(StructuredOutputMiddleware(model)) as url, openai.OpenAI(base_url=url + "/v1", api_key="k") as client:
        answer = client.chat.completions.with_raw_response.parse(model="m", messages=HELLO, response_format=Person)
        assert answer.parse().choices[0].message.parsed == ADA
        assert answer.headers["x-llm-structured"] == "retried, repaired"
    assert len(model.asked) == 2


def test_openai_raises_what_stays_invalid_and_does_not_ask_again() -> None:
    """422 is final for the SDK."""
    model = Model(whole_chat(saying("chat", BAD)))
    with serving(StructuredOutputMiddleware(model)) as url, openai.OpenAI(base_url=url + "/v1", api_key="k") as client:
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            client.chat.completions.parse(model="m", messages=HELLO, response_format=Person)
        assert (caught.value.code, caught.value.param) == (
            "structured_output_invalid",
            "choices[0].message.content#/age",
        )
    assert len(model.asked) == 2


def test_openai_parses_a_strict_tools_arguments() -> None:
    """``pydantic_function_tool`` is strict."""
    model = Model(whole_chat(calling("chat", BAD)), whole_chat(calling("chat", GOOD)))
    with serving(StructuredOutputMiddleware(model)) as url, openai.OpenAI(base_url=url + "/v1", api_key="k") as client:
        answer = client.chat.completions.parse(model="m", messages=HELLO, tools=[openai.pydantic_function_tool(save)])
        calls = answer.choices[0].message.tool_calls
        assert calls
        (call,) = calls
        assert call.function.parsed_arguments == save(name="Ada", age=36)


@pytest.mark.parametrize("mode", ["pass", "hold"])
def test_openai_streams_to_an_instance(mode: Any) -> None:
    """The stream helper's last event has it."""
    fields = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    told = [json.loads(one[6:]) for one in streaming("chat", GOOD[:9], GOOD[9:20], GOOD[20:])[:-1]]
    good = [*(event({**fields, **one}) for one in told), event(b"[DONE]")]
    with (
        serving(StructuredOutputMiddleware(Model(good), streams=mode)) as url,
        openai.OpenAI(base_url=url + "/v1", api_key="k") as client,
        client.chat.completions.stream(model="m", messages=HELLO, response_format=Person) as events,
    ):
        assert events.get_final_completion().choices[0].message.parsed == ADA


def test_openai_raises_at_the_end_of_an_invalid_stream() -> None:
    """The error event becomes an exception."""
    with (
        serving(StructuredOutputMiddleware(Model(streaming("chat", BAD)), streams="pass")) as url,
        openai.OpenAI(base_url=url + "/v1", api_key="k") as client,
    ):
        stream = client.chat.completions.create(
            model="m", messages=HELLO, stream=True,
            response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": Person.model_json_schema()}},
        )  # fmt: skip
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "structured_output_invalid"


def test_openai_parses_responses() -> None:
    """``text_format`` is the same in the Responses API."""
    model = Model(whole_response(BAD), whole_response(GOOD))
    with serving(StructuredOutputMiddleware(model)) as url, openai.OpenAI(base_url=url + "/v1", api_key="k") as client:
        assert client.responses.parse(model="m", input="Who?", text_format=Person).output_parsed == ADA
    assert len(model.asked) == 2


def test_openai_raises_at_the_end_of_an_invalid_responses_stream() -> None:
    """In that API's own words."""
    stream = streaming("responses", BAD)
    with (
        serving(StructuredOutputMiddleware(Model(stream), streams="pass")) as url,
        openai.OpenAI(base_url=url + "/v1", api_key="k") as client,
    ):
        events = client.responses.create(
            model="m", input="Who?", stream=True,
            text={"format": {"type": "json_schema", "name": "p", "schema": Person.model_json_schema()}},
        )  # fmt: skip
        last = list(events)[-1]
    assert last.type == "error"
    assert last.code == "structured_output_invalid"


def test_anthropic_parses_what_came_at_the_second_try() -> None:
    """``output_config.format``, as its SDK sends it."""
    model = Model(whole_message(BAD), whole_message(GOOD))
    with serving(StructuredOutputMiddleware(model)) as url, anthropic.Anthropic(base_url=url, api_key="k") as client:
        answer = client.messages.parse(model="m", max_tokens=99, messages=HELLO, output_format=Person)
        assert answer.parsed_output == ADA
    assert "output_config" in model.asked[0]
    assert len(model.asked) == 2


def test_anthropic_raises_what_stays_invalid() -> None:
    """In its envelope; and at the end of a stream."""
    model = Model(whole_message(BAD), whole_message(BAD), streaming("messages", BAD))
    with (
        serving(StructuredOutputMiddleware(model, streams="pass")) as url,
        anthropic.Anthropic(base_url=url, api_key="k") as client,
    ):
        with pytest.raises(anthropic.UnprocessableEntityError, match="/age"):
            client.messages.parse(model="m", max_tokens=99, messages=HELLO, output_format=Person)
        wanted: Any = {"format": {"type": "json_schema", "schema": Person.model_json_schema()}}
        stream = client.messages.create(model="m", max_tokens=99, messages=HELLO, output_config=wanted, stream=True)
        with pytest.raises(anthropic.APIStatusError, match="does not match the schema"):
            list(stream)
