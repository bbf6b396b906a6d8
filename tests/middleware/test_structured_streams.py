"""Streams that must match a schema: relayed with an error at their end, or held until they are right."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware
from asgi_llm_gateway.structured.limits import Limits

from ..conversation import Answer, ask, call
from ..structured import (
    BAD,
    DIALECTS,
    GOOD,
    PATHS,
    PERSON,
    SSE,
    Model,
    asking,
    event,
    saying,
    streaming,
    text_of,
    texts_of_stream,
    tooling,
)
from ..structured.engines import engine

__all__ = ["engine"]
pytestmark = pytest.mark.usefixtures("engine")  # all of it with each engine
MARK = "x-llm-structured"


def asked(dialect: str, **more: Any) -> dict[str, Any]:
    """A request for a stream."""
    return asking(dialect, stream=True, **more)


def pieces(text: str, size: int = 5) -> list[str]:
    """A text in pieces, as a model makes it."""
    return [text[at : at + size] for at in range(0, len(text), size)]


async def told(model: Model, dialect: str, body: Any = None, **more: Any) -> Answer:
    """The stream of a model with the middleware round it."""
    layer = StructuredOutputMiddleware(model, **more)
    return await ask(layer, asked(dialect) if body is None else body, PATHS[dialect])


def kinds(answer: Answer) -> list[str]:
    """The types of a stream's events."""
    return ["DONE" if one == "[DONE]" else json.loads(one).get("type", "chunk") for one in answer.events]


# -- relayed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["pass", "hold"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_valid_stream_goes_on_byte_for_byte(dialect: str, mode: Any) -> None:
    """Relayed, each event when it comes."""
    stream = streaming(dialect, *pieces(GOOD))
    answer = await told(Model(stream), dialect, streams=mode)
    assert (answer.status, answer.body) == (200, b"".join(stream))
    sent = [message.get("body", b"") for message in answer.messages[1:]]
    assert sent[:-1] == (stream if mode == "pass" else [])
    assert MARK not in answer.headers


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_each_event_is_relayed_before_the_next_is_made(dialect: str) -> None:
    """The client waits for nothing but the end."""
    stream = streaming(dialect, *pieces(GOOD))
    go = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [SSE]})
        await send({"type": "http.response.body", "body": stream[0], "more_body": True})
        await go.wait()
        for one in stream[1:]:
            await send({"type": "http.response.body", "body": one, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with call(StructuredOutputMiddleware(slow, streams="pass"), asked(dialect), PATHS[dialect]) as talk:
        await talk.next()
        assert (await talk.next())["body"] == stream[0]
        go.set()
        assert (await talk.answer()).body == b"".join(stream)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("text", [BAD, "no JSON", f"```json\n{GOOD}\n```"])
async def test_an_invalid_stream_ends_in_an_error(dialect: str, text: str) -> None:
    """In place of its own end, so that no client takes it for a whole answer; what has gone out can't be mended."""
    stream = streaming(dialect, *pieces(text))
    model = Model(stream)
    answer = await told(model, dialect, streams="pass")
    assert answer.status == 200
    assert answer.body.startswith(b"".join(stream[:-1]))
    last = json.loads(answer.events[-1])
    error = last if dialect == "responses" else last["error"]
    assert error["code"] == "structured_output_invalid"
    assert "secret-age" not in answer.events[-1]
    assert not {"DONE", "message_stop", "response.completed"} & set(kinds(answer))
    assert len(model.asked) == 1
    if dialect == "responses":
        numbers = [json.loads(one)["sequence_number"] for one in answer.events]
        assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_stream_is_judged_the_same_however_it_is_cut(dialect: str, size: int) -> None:
    """Byte by byte, or all in one piece."""
    for text, good in ((GOOD, True), (BAD, False)):
        stream = b"".join(streaming(dialect, *pieces(text)))
        cut = [stream[at : at + size] for at in range(0, len(stream), size)]
        answer = await told(Model(cut), dialect, streams="pass")
        assert (answer.body == stream) is good
        assert (b"structured_output_invalid" in answer.body) is not good


async def test_a_stream_without_its_last_word_is_judged_when_it_ends() -> None:
    """Some servers say no [DONE]."""
    for text, good in ((GOOD, True), (BAD, False)):
        answer = await told(Model(streaming("chat", text)[:-1]), "chat", streams="pass")
        assert (b"structured_output_invalid" in answer.body) is not good


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_stream_that_broke_off_or_failed_gets_no_second_verdict(dialect: str) -> None:
    """The client sees that it has no end, or its own error."""
    stream = streaming(dialect, *pieces(BAD))
    cut = stream[:3]
    answer = await told(Model(cut), dialect, streams="pass")
    assert answer.body == b"".join(cut)
    failing = [*cut, event({"type": "error", "error": {"message": "overloaded"}}, "error")]
    answer = await told(Model(failing), dialect, streams="pass")
    assert answer.body == b"".join(failing)


async def test_a_stream_too_long_to_remember_ends_in_an_error() -> None:
    """The memory of a stream is bounded."""
    answer = await told(
        Model(streaming("chat", *pieces(GOOD, 1))), "chat", streams="pass", limits=Limits(answer_bytes=300)
    )
    assert json.loads(answer.events[-1])["error"]["code"] == "structured_output_too_long"


async def test_after_the_error_nothing_more_comes() -> None:
    """Whatever the app goes on to say."""
    stream = [*streaming("chat", BAD), event({"choices": []}), event(b"[DONE]")]
    answer = await told(Model(stream), "chat", streams="pass")
    assert "structured_output_invalid" in answer.events[-1]


async def test_what_comes_after_a_good_end_goes_on() -> None:
    """A comment, say."""
    stream = [*streaming("chat", GOOD), b": bye\n\n", event(b"[DONE]")]
    assert (await told(Model(stream), "chat", streams="pass")).body == b"".join(stream)


async def test_strict_tools_are_judged_in_streams() -> None:
    """Their arguments come in pieces, of several calls in turn."""

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def called(*arguments: str) -> list[bytes]:
        out = []
        for at, one in enumerate(arguments):
            first = {"index": at, "id": f"call_{at}", "type": "function", "function": {"name": "save", "arguments": ""}}
            out.append(chunk({"tool_calls": [first]}))
            for piece in pieces(one):
                out.append(chunk({"tool_calls": [{"index": at, "function": {"arguments": piece}}]}))
        return [*out, chunk({}, "tool_calls"), event(b"[DONE]")]

    body = tooling("chat", stream=True)
    good = called(GOOD, GOOD)
    for mode in ("pass", "hold"):
        assert (await told(Model(good), "chat", body, streams=mode)).body == b"".join(good)
    answer = await told(Model(called(GOOD, BAD)), "chat", body, streams="pass")
    assert json.loads(answer.events[-1])["error"]["param"].endswith("tool_calls[1].function.arguments#/age")
    model = Model(called(GOOD, BAD), good)
    answer = await told(model, "chat", body, streams="hold")
    assert answer.body == b"".join(good)
    assert [one["role"] for one in model.asked[1]["messages"]] == ["user", "assistant", "tool", "tool"]
    mended = await told(Model(called(GOOD[:-1] + ",}")), "chat", body, streams="hold")
    arguments = "".join(
        part["function"]["arguments"]
        for one in mended.events[:-1]
        for part in json.loads(one)["choices"][0]["delta"].get("tool_calls", [])
    )
    assert json.loads(arguments) == json.loads(GOOD)


async def test_a_tools_input_is_judged_in_an_anthropic_stream() -> None:
    """With the thinking that led to it, which is shown again with its signature."""
    block: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "save", "input": {}}

    def called(arguments: str) -> list[bytes]:
        told: list[dict[str, Any]] = [
            {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s1"}},
            {"type": "content_block_start", "index": 1, "content_block": block},
            *({"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": one}}
              for one in pieces(arguments)),
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
            {"type": "message_stop"},
        ]  # fmt: skip
        return [event(one, one["type"]) for one in told]

    model = Model(called(BAD), called(GOOD))
    answer = await told(model, "messages", tooling("messages", stream=True), streams="hold")
    assert answer.body == b"".join(called(GOOD))
    shown = model.asked[1]["messages"][-2]["content"]
    assert shown[0] == {"type": "thinking", "thinking": "hm", "signature": "s1"}
    assert shown[1]["input"] == json.loads(BAD)
    broken = Model(called("{not json"), called(GOOD))
    assert (await told(broken, "messages", tooling("messages", stream=True), streams="hold")).status == 200
    assert broken.asked[1]["messages"][-2]["content"][1]["input"] == {}


# -- held --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_held_stream_is_asked_for_again(dialect: str) -> None:
    """Nothing of the first has gone out."""
    good = streaming(dialect, *pieces(GOOD))
    model = Model(streaming(dialect, *pieces(BAD)), good)
    answer = await told(model, dialect, streams="hold")
    assert (answer.status, answer.headers[MARK], answer.body) == (200, "retried", b"".join(good))
    turns = model.asked[1]["input" if dialect == "responses" else "messages"]
    assert "secret-age" in json.dumps(turns[-2])


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_held_stream_that_stays_invalid_is_refused_as_any_answer(dialect: str) -> None:
    """With a status, for none has gone out."""
    answer = await told(Model(streaming(dialect, *pieces(BAD))), dialect, streams="hold")
    assert (answer.status, answer.headers["content-type"]) == (422, "application/json")
    assert answer.json()["error"]["code"] == "structured_output_invalid"


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_held_stream_is_mended_event_by_event(dialect: str) -> None:
    """All ways in which it tells its text tell the mended one; no event is lost."""
    stream = streaming(dialect, *pieces(f"Sure:\n```json\n{GOOD}\n```"))
    answer = await told(Model(stream), dialect, streams="hold")
    assert (answer.status, answer.headers[MARK]) == (200, "repaired")
    assert texts_of_stream(dialect, answer.body) == {GOOD}
    assert len(answer.events) == len(stream)


async def test_an_answer_that_is_no_stream_is_held_all_the_same() -> None:
    """Though a stream was asked for."""
    model = Model(saying("chat", BAD), saying("chat", GOOD))
    answer = await told(model, "chat", streams="pass")
    assert (answer.status, text_of("chat", answer.json())) == (200, GOOD)


@pytest.mark.parametrize("mode", ["pass", "hold"])
async def test_a_provider_without_support_is_asked_in_words_for_a_stream(mode: Any) -> None:
    """Its refusal came before the stream began."""
    refusal = (400, {"error": {"message": "no response_format here"}})
    stream = streaming("chat", *pieces(GOOD))
    answer = await told(Model(refusal, stream), "chat", streams=mode)
    assert (answer.status, answer.headers[MARK], answer.body) == (200, "instructed", b"".join(stream))


async def test_a_held_stream_that_is_cut_is_a_bad_gateway() -> None:
    """Nothing half goes out."""
    answer = await told(Model(streaming("chat", *pieces(GOOD))[:3]), "chat", streams="hold")
    assert (answer.status, answer.error["code"]) == (502, "upstream_protocol")


async def test_a_held_stream_that_tells_of_its_failure_passes() -> None:
    """The provider's own words are better than ours."""
    failing = [*streaming("chat", "{")[:1], event({"error": {"message": "overloaded", "code": "x"}})]
    answer = await told(Model(failing), "chat", streams="hold")
    assert (answer.status, answer.body) == (200, b"".join(failing))


TEXTS = st.one_of(
    st.sampled_from([GOOD, BAD, f"```\n{GOOD}```", GOOD[:-1] + ",}", f"{GOOD} or {GOOD}", GOOD[:9], "{}", "null", ""]),
    st.text(max_size=12),
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(DIALECTS), TEXTS, TEXTS, st.integers(1, 9))
def test_whatever_a_held_stream_tells_matches_its_schema(dialect: str, one: str, other: str, size: int) -> None:
    """By the word of another validator, in every event that tells the text."""
    model = Model(streaming(dialect, *pieces(one, size)), streaming(dialect, *pieces(other, size)))
    answer = asyncio.run(told(model, dialect, streams="hold", retries=1))
    assert answer.status in (200, 422)
    if answer.status == 200:
        for text in texts_of_stream(dialect, answer.body):
            jsonschema.validate(json.loads(text), PERSON)
