"""Conversations that began at another provider: what is taken out of them, and that nothing else is touched."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.adapters._moved import fit_chat, fit_items, fit_messages
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import UpstreamRequest
from asgi_llm_gateway.adapters.compatible import OPENAI
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.wire import Dialect, LLMRequest, Route, parse

SIGNED = {"type": "thinking", "thinking": "So.", "signature": "c2ln"}
UNSIGNED = {"type": "thinking", "thinking": "So.", "signature": ""}
ASK = {"role": "user", "content": "weather?"}
BUDGET = {"type": "enabled", "budget_tokens": 2048, "display": "omitted"}
TOOL = {"name": "weather", "input_schema": {"type": "object"}}
ANTHROPIC = AnthropicAdapter("anthropic", "https://api.example.com")
PATHS: dict[Dialect, str] = {"messages": "/v1/messages", "chat": "/v1/chat/completions", "responses": "/v1/responses"}


def asked(dialect: Dialect, **fields: Any) -> LLMRequest:
    """A parsed request."""
    limit = {"max_tokens": 4000} if dialect == "messages" else {}
    body = json.dumps({"model": "claude-sonnet-4-6", **limit, **fields}).encode()
    found = parse(Route("metered", dialect, PATHS[dialect]), body)
    found.header = dict[bytes, bytes]().get
    return found


def calls(*blocks: Any, id: str = "toolu_1") -> dict[str, Any]:
    """A turn of the assistant that ends in a call."""
    return {"role": "assistant", "content": [*blocks, {"type": "tool_use", "id": id, "name": "weather", "input": {}}]}


def result(id: str = "toolu_1") -> dict[str, Any]:
    """What the tool said."""
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "sunny"}]}


def sent(request: LLMRequest, model: str = "claude-sonnet-4-6") -> tuple[Any, tuple[str, ...]]:
    """The body that goes to Anthropic, and what of it was left out."""
    made: UpstreamRequest = ANTHROPIC.request(request, model)
    return json.loads(made.body), made.dropped


# -- Messages ----------------------------------------------------------------------------------------------------------


def test_thoughts_that_nobody_signed_go() -> None:
    """The gateway made them of another provider's; a budget for thinking before that call would then be refused."""
    talk = [ASK, calls(UNSIGNED), result()]
    body, dropped = sent(asked("messages", messages=talk, thinking=BUDGET, tools=[TOOL]))
    assert body["messages"] == [ASK, calls(), result()]
    assert body["thinking"] == {"type": "adaptive", "display": "omitted"}
    assert dropped == ("messages.thinking", "thinking.budget_tokens")


def test_a_model_that_has_budgets_only_answers_without_a_thought() -> None:
    """Which is better than a refusal."""
    talk = [ASK, calls(id="call_1"), result("call_1")]
    body, dropped = sent(asked("messages", messages=talk, thinking=BUDGET), "claude-sonnet-4-5")
    assert "thinking" not in body
    assert dropped == ("thinking",)


def test_the_budget_stays_where_no_call_waits() -> None:
    """The rule is about the last turn of the assistant alone."""
    talk = [ASK, calls(UNSIGNED), result(), {"role": "assistant", "content": "Sunny."}, ASK]
    body, dropped = sent(asked("messages", messages=talk, thinking=BUDGET))
    assert body["thinking"] == BUDGET
    assert dropped == ("messages.thinking",)


def test_a_turn_of_unsigned_thoughts_alone_goes_whole() -> None:
    """An empty one would be refused."""
    body, _ = sent(asked("messages", messages=[ASK, {"role": "assistant", "content": [UNSIGNED]}, ASK]))
    assert body["messages"] == [ASK, ASK]


def test_ids_of_calls_are_put_in_letters_that_are_allowed() -> None:
    """The same for a call and its result; ids that are allowed stay."""
    talk = [ASK, calls(id="functions.weather:0"), result("functions.weather:0"), calls(id="call_1"), result("call_1")]
    body, dropped = sent(asked("messages", messages=talk))
    (first, second) = (body["messages"][at]["content"][-1]["id"] for at in (1, 3))
    assert re.fullmatch(r"[A-Za-z0-9_-]+", first)
    assert second == "call_1"
    assert [body["messages"][at]["content"][0]["tool_use_id"] for at in (2, 4)] == [first, second]
    assert dropped == ()


@pytest.mark.parametrize(
    "talk",
    [
        [ASK, calls(SIGNED), result()],
        [ASK, calls({"type": "redacted_thinking", "data": "x"}), result()],
        [ASK, calls(), result()],  # the provider's own call without its thought: it says itself what is wrong
        [{"role": "user", "content": 'say "thinking" and "signature":""'}],
        [ASK, calls({"type": "text", "text": '"signature":""'}), result()],
    ],
)
def test_all_else_goes_on_byte_for_byte(talk: list[Any]) -> None:
    """It is the client's, for the provider to judge."""
    request = asked("messages", messages=talk, thinking=BUDGET)
    found = ANTHROPIC.request(request, "claude-sonnet-4-6")
    assert (found.body, found.dropped) == (request.raw, ())


IDS = st.sampled_from(["toolu_1", "toolu_2", "call_1", "a.b:0", "x|y", "ü"])
BLOCKS = st.one_of(
    st.sampled_from([SIGNED, UNSIGNED, {"type": "text", "text": "a"}, {"type": "new"}, {"type": "thinking"}]),
    st.builds(lambda id: {"type": "tool_use", "id": id, "name": "weather", "input": {}}, IDS),
    st.builds(lambda id: {"type": "tool_result", "tool_use_id": id}, IDS),
    st.sampled_from([None, 1, "a", [], {"type": 1}, {"type": "tool_use"}, {"type": "tool_use", "id": 5}]),
)
TURNS = st.fixed_dictionaries({
    "role": st.sampled_from(["user", "assistant"]),
    "content": st.text(max_size=3) | st.lists(BLOCKS, max_size=4),
})  # fmt: skip


@settings(max_examples=200)
@given(st.lists(TURNS, min_size=1, max_size=6), st.sampled_from([None, BUDGET, {"type": "adaptive"}]))
def test_whatever_a_conversation_holds(talk: list[Any], thinking: Any) -> None:
    """No unsigned thought and no odd id of a call is left; the request is not edited; twice is as good as once."""
    request = asked("messages", messages=talk, **({"thinking": thinking} if thinking is not None else {}))
    before = copy.deepcopy(request.data)
    changes, _ = fit_messages(request, "claude-sonnet-4-6", "2023-06-01")
    assert request.data == before
    kept = changes.get("messages", request.data["messages"])
    blocks = [block for turn in kept if isinstance(turn["content"], list) for block in turn["content"]]
    assert UNSIGNED not in blocks
    ids = [block["id"] for block in blocks if isinstance(block, dict) and isinstance(block.get("id"), str)]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", id) for id in ids)
    if kept:
        fields = request.with_fields(**changes).data
        again = asked("messages", **{name: fields[name] for name in ("messages", "thinking") if name in fields})
        assert fit_messages(again, "claude-sonnet-4-6", "2023-06-01")[0].get("messages", kept) == kept


# -- Responses ---------------------------------------------------------------------------------------------------------

FORGOTTEN = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "So."}]}
ITEM = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "weather", "arguments": "{}"}


def test_a_thought_that_is_kept_nowhere_goes() -> None:
    """With the ids by which what belonged to it would be looked for; the call itself stays."""
    given_items = [ASK, FORGOTTEN, ITEM, {"type": "function_call_output", "id": "o", "call_id": "c", "output": "x"}]
    adapter = OpenAIAdapter("openai", "https://api.example.com/v1", "k", vendor=OPENAI)
    made: UpstreamRequest = adapter.request(asked("responses", input=given_items), "gpt-5")
    call = {name: value for name, value in ITEM.items() if name != "id"}
    assert json.loads(made.body)["input"] == [ASK, call, given_items[3]]


@pytest.mark.parametrize(
    "items",
    [
        "hello",
        [ASK, ITEM],
        [{**FORGOTTEN, "encrypted_content": "x"}, ITEM],
        [{**FORGOTTEN, "content": [{"type": "reasoning_text", "text": "So."}]}, ITEM],
        [None, 1, "a", {"type": ["reasoning"]}],
    ],
)
def test_items_that_say_something_stay(items: Any) -> None:
    """As they are, and as the same object."""
    assert fit_items(items) is items


# -- Chat --------------------------------------------------------------------------------------------------------------


def test_thoughts_beside_an_answer_go() -> None:
    """Under whatever name, from the assistant's messages alone."""
    said = {"role": "assistant", "content": "Hi", "reasoning_content": "So.", "thinking_blocks": [SIGNED]}
    user = {"role": "user", "content": '"reasoning"', "reasoning": "the user's own"}
    changes, dropped = fit_chat(asked("chat", messages=[user, said, ASK]))
    assert changes == {"messages": [user, {"role": "assistant", "content": "Hi"}, ASK]}
    assert dropped == ("messages.reasoning_content", "messages.thinking_blocks")


@pytest.mark.parametrize("content", ["hello", 'the word "reasoning_content" in a text'])
def test_a_chat_without_thoughts_is_left_alone(content: str) -> None:
    """Nothing is written anew."""
    assert fit_chat(asked("chat", messages=[{"role": "user", "content": content}])) == ({}, ())
