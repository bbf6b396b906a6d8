"""Structured output before providers without support, and before apps whose answers can't be read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware
from asgi_llm_gateway.structured.limits import Limits

from ..conversation import JSON, ask
from ..structured import BAD, DIALECTS, GOOD, Model, asking, saying
from ..structured.engines import engine
from .structured_parts import MARK, told

__all__ = ["engine"]
pytestmark = pytest.mark.usefixtures("engine")  # all of it with each engine


# -- providers without support -----------------------------------------------------------------------------------------


def no_word(dialect: str) -> tuple[int, Any]:
    """A provider's refusal of the field."""
    field = {"chat": "response_format", "responses": "text.format", "messages": "output_config"}[dialect]
    return 400, {"error": {"message": f"Unrecognized: {field}", "type": "invalid_request_error", "param": field}}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_provider_without_support_is_asked_in_words(dialect: str) -> None:
    """The field is taken out, and the schema is told in the instructions."""
    model = Model(no_word(dialect), saying(dialect, GOOD))
    answer = await told(model, dialect)
    assert (answer.status, answer.headers[MARK]) == (200, "instructed")
    second = model.asked[1]
    assert not {"response_format", "text", "output_config"} & second.keys()
    where = {"chat": "messages", "responses": "instructions", "messages": "system"}[dialect]
    assert "additionalProperties" in json.dumps(second[where])
    never = Model(saying(dialect, GOOD))
    assert (await told(never, dialect, native="never")).headers[MARK] == "instructed"
    assert never.asked == [second]


async def test_an_instruction_joins_the_instructions_there_are() -> None:
    """Many chat templates take one system message, and only as the first."""
    first = {"role": "system", "content": "Be brief."}
    model = Model(saying("chat", GOOD))
    await told(
        model, "chat", {**asking("chat"), "messages": [first, {"role": "user", "content": "Who?"}]}, native="never"
    )
    roles = [one["role"] for one in model.asked[0]["messages"]]
    assert roles == ["system", "user"]
    assert model.asked[0]["messages"][0]["content"].startswith("Be brief.\n\n")


async def test_where_the_provider_is_trusted_its_refusal_is_the_answer() -> None:
    """Unchanged, as every refusal is that has another reason."""
    model = Model(no_word("chat"))
    answer = await told(model, "chat", native="trust")
    assert (answer.status, answer.error["param"], len(model.asked)) == (400, "response_format", 1)
    limited = Model((429, {"error": {"message": "slow down"}}))
    answer = await told(limited, "chat")
    assert (answer.status, answer.error["message"], len(limited.asked)) == (429, "slow down", 1)


async def test_a_refused_second_call_leaves_the_first_answers_refusal() -> None:
    """The client is told of its answer, and why there was no second."""
    model = Model(saying("chat", BAD), (503, {"error": {"message": "gone"}}))
    answer = await told(model, "chat")
    assert answer.status == 422
    assert "It could not be asked for again: the second call ended in 503." in answer.error["message"]


# -- answers that can't be read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"no json", b"[]", b"7", {"choices": 7}, {"choices": []}, {"choices": [7]}, {"choices": [{"message": 7}]},
     {"choices": [{"message": {"content": [1]}}]}, {"choices": [{"message": {"content": 7}}]}],
)  # fmt: skip
async def test_what_is_no_answer_is_a_bad_gateway(content: Any) -> None:
    """It is the app's fault, and nothing unvalidated passes."""
    answer = await told(Model((200, content)), "chat")
    assert (answer.status, answer.error["code"]) == (502, "upstream_protocol")


async def test_an_answer_too_long_to_hold_is_a_bad_gateway() -> None:
    """The memory of a call is bounded."""
    answer = await told(Model(saying("chat", GOOD)), "chat", limits=Limits(answer_bytes=100))
    assert (answer.status, answer.error["code"]) == (502, "structured_output_too_long")


async def test_the_app_is_asked_not_to_compress() -> None:
    """One that does all the same is not believed."""
    packed = Model(saying("chat", GOOD), headers=[(b"content-encoding", b"gzip")])
    layer = StructuredOutputMiddleware(packed)
    answer = await ask(layer, asking("chat"), headers=(JSON, (b"accept-encoding", b"gzip")),
                       extensions={"http.response.pathsend": {}, "tls": {}})  # fmt: skip
    assert answer.status == 502
    (scope,) = packed.scopes
    assert [name for name, _ in scope["headers"]] == [b"content-type"]
    assert list(scope["extensions"]) == ["tls"]


async def test_an_app_that_breaks_off_is_a_bad_gateway() -> None:
    """Half an answer is none."""

    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [JSON]})
        await send({"type": "http.response.body", "body": b'{"choices"', "more_body": True})

    answer = await ask(StructuredOutputMiddleware(half), asking("chat"))
    assert (answer.status, answer.error["code"]) == (502, "upstream_cut")


async def test_an_app_that_fails_fails_through() -> None:
    """Its exception is the host's to answer."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        await ask(StructuredOutputMiddleware(broken), asking("chat"))
