"""Answers that match their schema, in front of an app that is not ours: whole answers, valid and invalid."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware

from ..conversation import ask, call
from ..structured import BAD, DIALECTS, GOOD, PATHS, PERSON, Model, asking, calling, saying, text_of, tooling
from ..structured.engines import engine
from .structured_parts import MARK, told

__all__ = ["engine"]
pytestmark = pytest.mark.usefixtures("engine")  # all of it with each engine


# -- valid -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_valid_answer_passes_byte_for_byte(dialect: str) -> None:
    """Nothing is changed in the request or in the answer, and nothing is said of it."""
    model = Model(saying(dialect, GOOD))
    answer = await told(model, dialect)
    assert (answer.status, answer.body) == (200, json.dumps(saying(dialect, GOOD)).encode())
    assert answer.headers["content-length"] == str(len(answer.body))
    assert MARK not in answer.headers
    assert model.asked == [asking(dialect)]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_what_asks_for_nothing_is_left_alone(dialect: str) -> None:
    """No format, no strict tool: any text passes, and messages go on one by one."""
    body = asking(dialect)
    for name in ("response_format", "text", "output_config"):
        body.pop(name, None)
    body["tools"] = tooling(dialect)["tools"]
    (body["tools"][0].get("function") or body["tools"][0])["strict"] = False
    model = Model(saying(dialect, "no JSON at all"))
    async with call(StructuredOutputMiddleware(model), body, PATHS[dialect]) as talk:
        answer = await talk.answer()
    assert (answer.status, len(answer.messages)) == (200, 3)


async def test_other_paths_and_methods_pass() -> None:
    """Legacy completions have no word for a format; embeddings and model lists neither."""
    model = Model({"choices": [{"text": "x"}]})
    layer = StructuredOutputMiddleware(model)
    answer = await ask(layer, {"model": "m", "prompt": "x", "response_format": 7}, "/v1/completions")
    assert answer.status == 200
    assert (await ask(layer, {"model": "m", "input": "x"}, "/v1/embeddings")).status == 200
    pages = Model({"data": []})
    async with call(StructuredOutputMiddleware(pages), b"{}", "/v1/models") as talk:
        assert (await talk.answer()).status == 200


# -- invalid -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_invalid_answer_is_asked_for_once_more(dialect: str) -> None:
    """With what the model said and what was wrong with it; the second answer is the one that goes out."""
    model = Model(saying(dialect, BAD), saying(dialect, GOOD))
    answer = await told(model, dialect)
    assert (answer.status, answer.headers[MARK]) == (200, "retried")
    assert text_of(dialect, answer.json()) == GOOD
    first, second = model.asked
    assert first == asking(dialect)
    turns = second["input"] if dialect == "responses" else second["messages"]
    shown, why = turns[-2], turns[-1]
    assert shown["role"] == "assistant"
    assert "secret-age" in json.dumps(shown)
    assert why["role"] == "user"
    assert "at '/age': must meet 'type'" in json.dumps(why)
    unchanged = {name: value for name, value in second.items() if name not in ("messages", "input")}
    assert unchanged == {name: value for name, value in first.items() if name not in ("messages", "input")}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_answer_that_stays_invalid_is_refused_with_its_place(dialect: str) -> None:
    """422, the path, the rule; and nothing of what the model wrote."""
    model = Model(saying(dialect, BAD))
    answer = await told(model, dialect)
    assert (answer.status, len(model.asked)) == (422, 2)
    error = answer.json()["error"]
    assert error["code"] == "structured_output_invalid"
    assert "after 2 tries" in error["message"]
    assert "at '/age': must meet 'type': \"integer\"" in error["message"]
    assert b"secret-age" not in answer.body
    if dialect != "messages":
        assert error["param"].endswith("#/age")


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_it_is_asked_again_as_often_as_is_set(retries: int) -> None:
    """And no more."""
    model = Model(saying("chat", "no"))
    assert (await told(model, "chat", retries=retries)).status == 422
    assert len(model.asked) == retries + 1


async def test_several_choices_must_all_match() -> None:
    """One that does not is enough, and it is the one that is named."""
    model = Model(saying("chat", GOOD, BAD, GOOD))
    answer = await told(model, "chat", retries=0)
    assert answer.error["param"] == "choices[1].message.content#/age"
    assert (await told(Model(saying("chat", GOOD, GOOD)), "chat")).status == 200


async def test_any_object_will_do_for_json_object() -> None:
    """And nothing else does."""
    body = {**asking("chat"), "response_format": {"type": "json_object"}}
    assert (await told(Model(saying("chat", '{"any": []}')), "chat", body)).status == 200
    for text in ("[1]", "7", "null", '"{}"', "", "{"):
        assert (await told(Model(saying("chat", text)), "chat", body)).status == 422


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_strict_tools_get_arguments_that_match(dialect: str) -> None:
    """The call and its refusal are shown again as the dialect shows them."""
    model = Model(calling(dialect, BAD, GOOD), calling(dialect, GOOD))
    answer = await told(model, dialect, tooling(dialect))
    assert (answer.status, answer.headers[MARK]) == (200, "retried")
    turns = model.asked[1]["input" if dialect == "responses" else "messages"]
    told_back = json.dumps(turns)
    assert told_back.count("Not carried out") == 2
    assert "at '/age'" in told_back
    if dialect == "chat":
        assert [one["role"] for one in turns] == ["user", "assistant", "tool", "tool"]
        assert [one["tool_call_id"] for one in turns[2:]] == ["call_0", "call_1"]
    elif dialect == "responses":
        kinds = ["function_call", "function_call_output"] * 2
        assert [one.get("type") for one in turns[1:]] == kinds
        assert all("id" not in one for one in turns)
    else:
        assert [one["type"] for one in turns[-1]["content"]] == ["tool_result"] * 2


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_call_in_place_of_an_answer_is_no_fault(dialect: str) -> None:
    """Where a format is wanted as well, the model may call first."""
    body = {**asking(dialect), "tools": tooling(dialect)["tools"]}
    model = Model(calling(dialect, GOOD))
    assert (await told(model, dialect, body)).status == 200


async def test_arguments_that_are_no_json_are_shown_as_text() -> None:
    """A server that reads old calls would fail over them."""
    model = Model(calling("chat", "{not json"), calling("chat", GOOD))
    assert (await told(model, "chat", tooling("chat"))).status == 200
    turns = model.asked[1]["messages"]
    assert [one["role"] for one in turns] == ["user", "assistant", "user"]
    assert all("tool_calls" not in one for one in turns)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_refusal_passes_as_it_is(dialect: str) -> None:
    """The model will not, which no second try changes."""
    answer: dict[str, Any]
    if dialect == "chat":
        answer = saying(dialect, "", refusal="I can't.")
    elif dialect == "responses":
        answer = saying(dialect)
        answer["output"][0]["content"] = [{"type": "refusal", "refusal": "I can't."}]
    else:
        answer = saying(dialect, "I can't.", finish="refusal")
    model = Model(answer)
    assert (await told(model, dialect)).json() == answer
    assert len(model.asked) == 1


FINISH = {"chat": "length", "responses": "max_output_tokens", "messages": "max_tokens"}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_answer_that_ended_at_its_limit_passes_unless_told_otherwise(dialect: str) -> None:
    """It can be closed where that makes it match, or refused; it is never asked for again."""
    cut = saying(dialect, '{"age": 36, "name": "Ad', finish=FINISH[dialect])
    model = Model(cut)
    assert (await told(model, dialect)).json() == cut
    closed = await told(model, dialect, truncated="repair")
    assert (closed.status, closed.headers[MARK]) == (200, "repaired")
    assert json.loads(text_of(dialect, closed.json())) == {"age": 36, "name": "Ad"}
    refused = await told(model, dialect, truncated="refuse")
    assert (refused.status, len(model.asked)) == (422, 3)
    hopeless = Model(saying(dialect, '{"name": "Ad', finish=FINISH[dialect]))
    assert (await told(hopeless, dialect, truncated="repair")).status == 422
    assert len(hopeless.asked) == 1


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("text", [f"```json\n{GOOD}\n```", f"Here you are: {GOOD} Bye!", GOOD[:-1] + ",}"])
async def test_what_can_be_mended_is_mended_without_asking_again(dialect: str, text: str) -> None:
    """The value is what the model wrote, and the length is right."""
    model = Model(saying(dialect, text))
    answer = await told(model, dialect)
    assert (answer.status, answer.headers[MARK], len(model.asked)) == (200, "repaired", 1)
    assert json.loads(text_of(dialect, answer.json())) == json.loads(GOOD)
    assert answer.headers["content-length"] == str(len(answer.body))


# -- the promise -------------------------------------------------------------------------------------------------------


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 200) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "age", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
TEXTS = st.one_of(
    VALUES.map(json.dumps),
    st.builds("{}{}{}".format, st.text(max_size=8), VALUES.map(json.dumps), st.text(max_size=8)),
    st.just(GOOD).flatmap(lambda good: st.integers(0, len(good)).map(lambda cut: good[:cut])),
    st.text(max_size=20),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(DIALECTS), TEXTS, TEXTS, st.sampled_from(["pass", "repair", "refuse"]))
def test_whatever_goes_out_as_an_answer_matches_its_schema(dialect: str, one: str, other: str, cut: Any) -> None:
    """By the word of another validator, whatever a model says first and second."""
    import asyncio

    model = Model(saying(dialect, one), saying(dialect, other))
    answer = asyncio.run(told(model, dialect, truncated=cut, streams="pass", retries=1))
    assert answer.status in (200, 422)
    if answer.status == 200:
        jsonschema.validate(json.loads(text_of(dialect, answer.json())), PERSON)
