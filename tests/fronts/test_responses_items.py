"""Input items as chat messages: turns put together, results directly after their calls, parts in chat's words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.errors import BadRequest, GatewayError

from .responses import FRONT, request

PNG = "data:image/png;base64,iVBORw0KGgo="


def messages(*items: Any, **fields: Any) -> list[dict[str, Any]]:
    """The messages that items make."""
    found: list[dict[str, Any]] = FRONT.request(request(input=list(items), **fields)).data["messages"]
    return found


def call(id: str, name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    """A call, with the id of its item, which is another one."""
    return {"type": "function_call", "id": f"fc_{id}", "call_id": id, "name": name, "arguments": arguments}


def output(id: str, told: Any = "ok") -> dict[str, Any]:
    """A call's result."""
    return {"type": "function_call_output", "call_id": id, "output": told}


def user(text: str) -> dict[str, Any]:
    """A short message."""
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    """What the model said, as the API gives it."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [part]}


def chat_call(id: str, name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    """A call in chat's words."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_instructions_lead() -> None:
    """With the developer's words at the beginning they make one message, as many templates take only one."""
    assert messages(user("a"), instructions="be brief") == [{"role": "system", "content": "be brief"}, user("a")]
    assert messages({"role": "developer", "content": "b"}, {"role": "system", "content": "c"}, user("x"),
                    instructions="a") == [{"role": "system", "content": "a\n\nb\n\nc"}, user("x")]  # fmt: skip
    assert messages(user("x"), {"role": "developer", "content": "later"}, user("y")) == [
        user("x"), {"role": "system", "content": "later"}, user("y"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ({"type": "input_image", "image_url": PNG, "detail": "low"},
         {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}),
        ({"type": "input_image", "image_url": "https://x/y.png", "detail": "auto"},
         {"type": "image_url", "image_url": {"url": "https://x/y.png"}}),
        ({"type": "input_file", "file_data": "data:application/pdf;base64,JVBE", "filename": "a.pdf"},
         {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBE", "filename": "a.pdf"}}),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
         {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        ({"type": "input_text", "text": "more"}, {"type": "text", "text": "more"}),
    ],
)  # fmt: skip
def test_a_part_has_its_word_in_chat(part: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Next to a text, in order."""
    (message,) = messages({"role": "user", "content": [{"type": "input_text", "text": "see"}, part]})
    assert message == {"role": "user", "content": [{"type": "text", "text": "see"}, wanted]}


def test_one_text_is_a_string() -> None:
    """Not all servers take parts."""
    assert messages({"role": "user", "content": [{"type": "input_text", "text": "a"}]}) == [user("a")]


def test_a_turn_is_one_message() -> None:
    """What the assistant said and called, in whatever order, with all its calls; then the results in their order."""
    found = messages(user("q"), {"type": "reasoning", "id": "rs_1", "summary": []}, said("let me see"), call("a"),
                     call("b", "g", '{"x":1}'), output("a", "1"), output("b", "2"), said("done"), user("thanks"))  # fmt: skip
    assert found == [
        user("q"),
        {
            "role": "assistant",
            "content": "let me see",
            "tool_calls": [chat_call("a"), chat_call("b", "g", '{"x":1}')],
        },
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
        {"role": "assistant", "content": "done"},
        user("thanks"),
    ]


def test_a_message_after_a_call_is_of_the_same_turn() -> None:
    """The model may speak after it called: chat wants the result directly after the call's message."""
    found = messages(user("q"), call("a"), said("calling"), output("a"))
    assert [message["role"] for message in found] == ["user", "assistant", "tool"]
    assert (found[1]["content"], len(found[1]["tool_calls"])) == ("calling", 1)


def test_a_call_alone_says_nothing() -> None:
    """Its message has no content."""
    assert messages(call("a"), output("a"))[0]["content"] is None


def test_what_stands_between_a_call_and_its_result_follows_them() -> None:
    """In order."""
    found = messages(user("q"), call("a"), call("b"), output("b"), user("wait"), output("a"), user("go"))
    assert [message.get("content") for message in found] == ["q", None, "ok", "ok", "wait", "go"]


def test_calls_one_after_the_other_are_turns_of_their_own() -> None:
    """Call, result, call, result."""
    found = messages(call("a"), output("a"), call("b"), output("b"))
    assert [message["role"] for message in found] == ["assistant", "tool", "assistant", "tool"]


def test_pictures_in_results_follow_the_last_result() -> None:
    """A tool's message has text only; what is more comes in a message of the user's, before what he says himself."""
    picture = {"type": "input_image", "image_url": PNG}
    told = [{"type": "input_text", "text": "a map"}, picture]
    found = messages(call("a"), call("b"), output("a", told), user("later"), output("b", [picture]))
    shown = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}
    assert found[1:] == [
        {"role": "tool", "tool_call_id": "a", "content": "a map"},
        {"role": "tool", "tool_call_id": "b", "content": "The result is attached in the next message."},
        shown,
        shown,
        user("later"),
    ]


def test_a_refusal_was_said() -> None:
    """It stays in the history."""
    item = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    assert messages(user("q"), item) == [user("q"), {"role": "assistant", "content": "no"}]


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([{"type": "item_reference", "id": "msg_1"}], "input[0]"),
        ([{"id": "msg_1"}], "input[0]"),
        ([{"id": "ig_1", "type": "image_generation_call"}], "input[0]"),
        ([user("a"), {"type": "web_search_call", "id": "ws_1", "action": {}}], "input[1].type"),
        ([{"type": "custom_tool_call", "call_id": "c", "name": "n", "input": "x"}], "input[0].type"),
        ([{"type": "compaction", "encrypted_content": "x"}], "input[0].type"),
        ([{"type": "additional_tools", "role": "developer", "tools": []}], "input[0].type"),
        (["text"], "input[0]"),
        ([{"role": "tool", "content": "x"}], "input[0].role"),
        ([{"type": "message", "content": "x"}], "input[0].role"),
        ([{"role": "user"}], "input[0].content"),
        ([{"role": "user", "content": [{"type": "text", "text": "chat's word"}]}], "input[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}], "input[0].content[0].file_id"),
        ([{"role": "user", "content": [{"type": "input_file", "file_id": "file_1"}]}], "input[0].content[0].file_id"),
        (
            [{"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]}],
            "input[0].content[0].file_url",
        ),
        ([{"role": "system", "content": [{"type": "input_image", "image_url": PNG}]}], "input[0].content[0].type"),
        ([{"type": "function_call", "call_id": "a", "name": "f", "arguments": {}}], "input[0].arguments"),
        ([{"type": "function_call", "call_id": "", "name": "f", "arguments": "{}"}], "input[0].call_id"),
        ([call("a"), call("a")], "input[1].call_id"),
        ([call("a"), output("a"), output("a")], "input[2].call_id"),
        ([output("a")], "input[0].call_id"),
        ([call("a")], "input"),
        ([call("a"), user("x"), call("b"), output("a"), output("b")], "input"),
    ],
)
def test_what_chat_can_not_say_is_refused(items: list[Any], param: str) -> None:
    """By the place of it."""
    with pytest.raises(BadRequest) as caught:
        messages(*items)
    assert caught.value.param == param


TURNS = st.lists(
    st.one_of(
        st.builds(user, st.text("ab", min_size=1, max_size=3)),
        st.builds(said, st.text("cd", min_size=1, max_size=3)),
        st.just({"type": "reasoning", "id": "rs", "summary": []}),
        st.lists(st.integers(0, 10**6), min_size=1, max_size=3, unique=True).map(
            lambda numbers: [
                *(call(f"c{number}") for number in numbers),
                *(output(f"c{number}") for number in sorted(numbers)),
            ]
        ),
    ),
    max_size=6,
)


@given(TURNS)
def test_every_call_is_answered_directly(turns: list[Any]) -> None:
    """Whatever the conversation: chat's rule holds, every word and every call is there once, in order."""
    items = [user("begin")]
    for turn in turns:
        items += turn if type(turn) is list else [turn]
    found = messages(*items)
    for at, message in enumerate(found):
        ids = [one["id"] for one in message.get("tool_calls", ())]
        answered = [str(one.get("tool_call_id")) for one in found[at + 1 : at + 1 + len(ids)]]
        assert sorted(ids) == sorted(answered)
    calls = [one["id"] for message in found for one in message.get("tool_calls", ())]
    assert calls == [item["call_id"] for item in items if item.get("type") == "function_call"]
    for role in ("user", "assistant"):
        words = "".join(message["content"] or "" for message in found if message["role"] == role).replace("\n", "")
        given_words = [item["content"] for item in items if item.get("role") == role]
        assert words == "".join(one if type(one) is str else one[0]["text"] for one in given_words)


NAMES = st.sampled_from(
    ["type", "role", "content", "text", "id", "call_id", "name", "arguments", "output", "image_url", "file_data", "file_id",
     "input_audio", "data", "format", "schema", "tools", "mode", "effort", "summary", "strict", "parameters", "refusal"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["", "a", "message", "user", "assistant", "function_call", "function_call_output", "reasoning", "input_text",
     "input_image", "input_file", "input_audio", "output_text", "refusal", "function", "allowed_tools", "auto",
     "json_schema", "required", "item_reference", "namespace"]
)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10) | st.floats(-1, 3) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=14,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["instructions", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning", "temperature", "top_p",
         "top_logprobs", "include", "metadata", "user", "safety_identifier", "service_tier", "truncation", "store",
         "background", "conversation", "prompt", "new"]
    ),
    ANYTHING,
    max_size=4,
)  # fmt: skip


@given(st.lists(ANYTHING, min_size=1, max_size=4), FIELDS)
def test_a_request_is_written_or_refused(items: list[Any], fields: dict[str, Any]) -> None:
    """Whatever is in it."""
    try:
        asked = request(input=items, **fields)
        body = FRONT.request(asked).data
    except GatewayError as error:
        refusal = error
        assert refusal.http_status == 400
        return
    assert all(message["role"] in ("system", "user", "assistant", "tool") for message in body["messages"])
