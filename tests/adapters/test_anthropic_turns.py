"""A conversation in Anthropic's words: systems, turns and their parts, calls with their results, and thoughts."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_llm_gateway.adapters._anthropic_messages import safe_name

from .anthropic_asking import ADAPTER, CACHED, HI, NEW, PIXEL, TOOL, call, image, request, sent, text, turns, user

# -- messages ----------------------------------------------------------------------------------------------------------


def test_the_leading_systems_are_the_system() -> None:
    """One block each, in order, with their marks."""
    body, _ = sent(
        messages=[
            {"role": "system", "content": "a"},
            {"role": "developer", "content": [text("b", cache_control=CACHED), text("")]},
            *HI,
        ]
    )
    assert body["system"] == [text("a"), text("b", cache_control=CACHED)]
    assert body["messages"] == [{"role": "user", "content": [text("hi")]}]


def test_a_later_system_stays_where_it_is() -> None:
    """To hoist it would change the cached prefix: a role of its own where the model has one, else part of the user's turn."""
    later = (user("a"), {"role": "assistant", "content": "b"}, {"role": "system", "content": "s"}, user("c"))
    assert turns(*later)[2] == {"role": "user", "content": [text("s"), text("c")]}
    assert turns(*later, model="claude-opus-5")[2:] == [
        {"role": "system", "content": [text("s")]},
        {"role": "user", "content": [text("c")]},
    ]
    assert "system" not in sent(messages=list(later))[0]


def test_roles_in_a_row_become_one_turn() -> None:
    """The user's, and the assistant's."""
    said = {"role": "assistant", "content": "b"}
    assert turns(user("a"), user(text("a2")), said, said, user("c")) == [
        {"role": "user", "content": [text("a"), text("a2")]},
        {"role": "assistant", "content": [text("b"), text("b")]},
        {"role": "user", "content": [text("c")]},
    ]


def test_empty_texts_are_left_out() -> None:
    """The provider refuses them, also those of white space; a message of nothing else goes."""
    assert turns(user(text(""), text("a"), text(" \n")), {"role": "assistant", "content": ""}, user(""), user("b")) == [
        {"role": "user", "content": [text("a"), text("b")]}
    ]


def test_the_first_turn_is_the_users() -> None:
    """A conversation that starts with the assistant, or has a system only, gets the shortest possible one."""
    placed = {"role": "user", "content": [text(".")]}
    assert turns({"role": "assistant", "content": "a"}, user("b"))[0] == placed
    assert turns({"role": "system", "content": "a"}) == [placed]
    assert turns(user("")) == [placed]


def test_a_last_turn_of_the_assistant_is_gone_on_from() -> None:
    """Without the white space at its end, on models that can."""
    found = turns(user("a"), {"role": "assistant", "content": "{ \n"}, model="claude-opus-4-5")
    assert found[1] == {"role": "assistant", "content": [text("{")]}


def test_images_and_documents() -> None:
    """By address or by value; media types in any case and with parameters; JPEG under its wrong name."""
    parts = [
        image("https://x/y.png"), image(f"data:image/png;base64,{PIXEL}"), image(f"DATA:image/JPG;charset=x;base64,{PIXEL}"),
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PIXEL}", "filename": "f.pdf"}},
        {"type": "file", "file": {"file_data": PIXEL}, "cache_control": CACHED},
    ]  # fmt: skip
    base64 = {"type": "base64", "data": PIXEL}
    pdf = {"type": "document", "source": {**base64, "media_type": "application/pdf"}}
    assert turns(user(*parts))[0]["content"] == [
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "image", "source": {**base64, "media_type": "image/png"}},
        {"type": "image", "source": {**base64, "media_type": "image/jpeg"}},
        {**pdf, "title": "f.pdf"},
        {**pdf, "cache_control": CACHED},
    ]


def test_marks_of_the_prompt_cache_go_on() -> None:
    """On parts, on messages, on results."""
    found = turns(
        {"role": "user", "content": "a", "cache_control": CACHED},
        {"role": "assistant", "content": None, "tool_calls": [call("1")]},
        {"role": "tool", "tool_call_id": "1", "content": [text("r", cache_control=CACHED)], "cache_control": CACHED},
        user(text("b", cache_control={"type": "ephemeral", "ttl": "1h"})),
    )
    assert found[0]["content"][0]["cache_control"] == CACHED
    result, words = found[2]["content"]
    assert result["cache_control"] == result["content"][0]["cache_control"] == CACHED
    assert words["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


# -- calls and their results -------------------------------------------------------------------------------------------


def test_several_results_are_one_turn_and_lead_it() -> None:
    """In the order of the client's, before any text, whatever stood between them."""
    found = turns(
        user("a"),
        {"role": "assistant", "content": "so", "tool_calls": [call("1"), call("2", arguments='{"b":1,"a":[2]}')]},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "system", "content": "s"},
        {"role": "tool", "tool_call_id": "2", "content": [text("two"), text("")]},
        user("b"),
    )
    assert found[1:] == [
        {
            "role": "assistant",
            "content": [
                text("so"),
                {"type": "tool_use", "id": "1", "name": "look", "input": {}},
                {"type": "tool_use", "id": "2", "name": "look", "input": {"b": 1, "a": [2]}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "2", "content": [text("two")]},
                text("s"),
                text("b"),
            ],
        },
    ]


@pytest.mark.parametrize("arguments", ["", "{}", None, "  "])
def test_a_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    """Zero-argument tools: ``""`` is no JSON."""
    found = turns(user("a"), {"role": "assistant", "content": "", "tool_calls": [call("1", arguments=arguments)]},
                  {"role": "tool", "tool_call_id": "1", "content": ""})  # fmt: skip
    assert found[1]["content"] == [{"type": "tool_use", "id": "1", "name": "look", "input": {}}]
    assert found[2]["content"] == [{"type": "tool_result", "tool_use_id": "1"}]


def test_arguments_keep_every_digit() -> None:
    """And their order: they are not read and written again."""
    arguments = '{"z": 123456789012345678901234567890, "a": 1.10, "u": "\\u00fc"}'
    asked = request(
        messages=[*HI, {"role": "assistant", "content": None, "tool_calls": [call("1", arguments=arguments)]}]
    )
    assert arguments.encode() in ADAPTER.request(asked, NEW).body


def test_names_and_ids_that_the_provider_refuses_are_changed_alike() -> None:
    """Wherever they stand, and no two of them into one."""
    body, _ = sent(
        tools=[{"type": "function", "function": {"name": name}} for name in ("a.b", "a/b", "a_b")],
        tool_choice={"type": "function", "function": {"name": "a.b"}},
        messages=[
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [call("call:1", "a.b")]},
            {"role": "tool", "tool_call_id": "call:1", "content": "x"},
        ],
    )
    names = [tool["name"] for tool in body["tools"]]
    assert len(set(names)) == 3
    assert names[2] == "a_b"
    use = body["messages"][1]["content"][0]
    assert use["name"] == body["tool_choice"]["name"] == names[0]
    assert use["id"] == body["messages"][2]["content"][0]["tool_use_id"] == safe_name("call:1")
    for name in (*names, use["id"], safe_name("x" * 500), safe_name("ü")):
        assert safe_name(name) == name


def test_calls_in_the_history_need_a_tool() -> None:
    """One that can't be called, where the client declares none any more."""
    history: list[dict[str, Any]] = [*HI, {"role": "assistant", "content": None, "tool_calls": [call("1")]},
               {"role": "tool", "tool_call_id": "1", "content": "x"}]  # fmt: skip
    body, _ = sent(messages=history)
    assert (len(body["tools"]), body["tool_choice"]) == (1, {"type": "none"})
    assert "tool_choice" not in sent(messages=history, tools=[TOOL])[0]


def test_thoughts_are_sent_back_as_they_were() -> None:
    """First, with their signatures, without the index that clients need."""
    thoughts = [
        {"index": 0, "type": "thinking", "thinking": "t", "signature": "s"},
        {"index": 1, "type": "redacted_thinking", "data": "d"},
    ]
    said = {"role": "assistant", "content": "a", "thinking_blocks": thoughts, "tool_calls": [call("1")]}
    content = turns(*HI, said)[1]["content"]
    assert content[:2] == [{name: one[name] for name in one if name != "index"} for one in thoughts]
    assert [block["type"] for block in content[2:]] == ["text", "tool_use"]


def test_a_call_whose_thoughts_are_lost_is_not_thought_about() -> None:
    """With a budget the provider would refuse it; models that think adaptively do not mind."""
    history: list[dict[str, Any]] = [*HI, {"role": "assistant", "content": None, "tool_calls": [call("1")]},
               {"role": "tool", "tool_call_id": "1", "content": "x"}]  # fmt: skip
    body, dropped = sent("claude-opus-4-5", messages=history, reasoning_effort="low")
    assert ("thinking" in body, dropped) == (False, ("reasoning_effort",))
    assert "thinking" in sent(messages=history, reasoning_effort="low")[0]
    history[1]["thinking_blocks"] = [{"type": "thinking", "thinking": "t", "signature": "s"}]
    assert "thinking" in sent("claude-opus-4-5", messages=history, reasoning_effort="low")[0]


def test_an_assistants_refusal_is_text() -> None:
    """As a field and as a part."""
    said = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "refusal": "never"}
    assert turns(*HI, said, *HI)[1]["content"] == [text("no"), text("never")]
