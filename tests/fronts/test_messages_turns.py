"""A Messages conversation in chat's words: who speaks, with what, and in which order."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_llm_gateway.errors import BadRequest, Unsupported

from .messages_parts import HELLO, PDF, PNG, asked, dropped, result, text, turns, use, user

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
AS_PART = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
CACHED = {"type": "ephemeral", "ttl": "1h"}


def assistant(*blocks: Any) -> dict[str, Any]:
    """An assistant's message."""
    return {"role": "assistant", "content": list(blocks)}


# -- the system --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "wanted"),
    [
        ("Be brief.", "Be brief."),
        ([text("Be brief.", cache_control=CACHED)], "Be brief."),
        ([text("Be brief."), text(""), text("Be kind.")], "Be brief.\n\nBe kind."),
    ],
)
def test_the_system_is_one_message_at_the_front(system: Any, wanted: str) -> None:
    """A string or blocks; the mark of the cache is not told as left out."""
    assert asked(system=system)["messages"] == [{"role": "system", "content": wanted}, *HELLO]
    assert dropped(system=system) == ()


@pytest.mark.parametrize("system", ["", " ", [], [text("")]])
def test_an_empty_system_is_none(system: Any) -> None:
    """Providers refuse empty texts."""
    assert asked(system=system)["messages"] == HELLO


def test_a_system_in_the_middle_stays_there() -> None:
    """To hoist it would change what it means and the prefix that is cached."""
    later = {"role": "system", "content": [text("Now in French.")]}
    told = turns(*HELLO, assistant(text("hi")), later, user(text("and?")), system="Be brief.")
    assert [message["role"] for message in told] == ["system", "user", "assistant", "system", "user"]
    assert told[3]["content"] == "Now in French."


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("a", "a"),
        ([text("a")], "a"),
        ([text("a", cache_control=CACHED), text("b")], "a\n\nb"),
        ([text(""), text("  "), text("a")], "a"),
    ],
)
def test_text_stays_text(content: Any, wanted: str) -> None:
    """One string, which every server takes; empty blocks go."""
    assert turns({"role": "user", "content": content}) == [{"role": "user", "content": wanted}]


def test_an_assistants_text_is_put_together_again() -> None:
    """Citations cut a text into blocks: nothing belongs between them."""
    told = turns(*HELLO, assistant(text("It is "), text("sunny", citations=[{"type": "x"}]), text(".")))
    assert told[1] == {"role": "assistant", "content": "It is sunny."}


def test_messages_that_say_nothing_go() -> None:
    """An empty text, and a turn in which there was only thinking."""
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    assert turns(user(text("")), *HELLO, assistant(thought), user(text("so?"))) == [
        *HELLO,
        {"role": "user", "content": "so?"},
    ]


def test_a_conversation_that_says_nothing_is_refused() -> None:
    """There would be no message left to send."""
    for system in (None, "Be brief."):
        with pytest.raises(BadRequest) as refused:
            asked(messages=[user(text(" "))], system=system)
        assert refused.value.param == "messages"


@pytest.mark.parametrize(
    "thought",
    [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "eA=="},
    ],
)
def test_thoughts_come_back_and_are_left_out(thought: dict[str, Any]) -> None:
    """Those of another model and those that this front wrote itself: neither fails, and it is told."""
    given = [*HELLO, assistant(thought, text("hi")), user(text("and?"))]
    assert turns(*given)[1] == {"role": "assistant", "content": "hi"}
    assert dropped(messages=given) == (f"messages.{thought['type']}",)


# -- images and documents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ({"type": "base64", "media_type": "image/png", "data": PNG}, f"data:image/png;base64,{PNG}"),
        ({"type": "base64", "media_type": "image/jpg", "data": PNG}, f"data:image/jpeg;base64,{PNG}"),
        ({"type": "url", "url": "https://example.com/a.png"}, "https://example.com/a.png"),
    ],
)
def test_an_image_is_a_part(source: dict[str, Any], url: str) -> None:
    """By its bytes or its URL, in its place among the texts."""
    (told,) = turns(user(text("what is"), {"type": "image", "source": source}, text("this?")))
    assert told["content"] == [
        {"type": "text", "text": "what is"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "this?"},
    ]


def test_a_pdf_is_a_file() -> None:
    """With its title as its name, and the context before it."""
    source = {"type": "base64", "media_type": "application/pdf", "data": PDF}
    (told,) = turns(user({"type": "document", "source": source, "title": "a.pdf", "context": "Of 2026."}))
    assert told["content"] == [
        {"type": "text", "text": "Of 2026."},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}},
    ]
    (told,) = turns(user({"type": "document", "source": source}))
    assert told["content"][0]["file"]["filename"] == "document.pdf"


@pytest.mark.parametrize(
    "source",
    [
        {"type": "text", "media_type": "text/plain", "data": "words"},
        {"type": "content", "content": "words"},
        {"type": "content", "content": [text("words")]},
    ],
)
def test_a_document_of_text_is_text(source: dict[str, Any]) -> None:
    """Under its title."""
    (told,) = turns(user({"type": "document", "source": source, "title": "Title", "citations": {"enabled": False}}))
    assert told["content"] == "Title\n\nwords"


def test_a_document_may_hold_images() -> None:
    """They follow where they stand."""
    source = {"type": "content", "content": [text("a"), IMAGE]}
    (told,) = turns(user({"type": "document", "source": source}))
    assert told["content"] == [{"type": "text", "text": "a"}, AS_PART]


def test_a_search_result_is_text_and_citing_it_is_left_out() -> None:
    """Where it was found stands above."""
    found = {"type": "search_result", "title": "T", "source": "https://a.example", "content": [text("words")]}
    assert turns(user(found)) == [{"role": "user", "content": "T\n\nhttps://a.example\n\nwords"}]
    assert dropped(messages=[user({**found, "citations": {"enabled": True}})]) == ("messages.citations",)


# -- tools -------------------------------------------------------------------------------------------------------------


def test_a_call_and_its_result() -> None:
    """The call keeps its id and its input's order; beside it there may be text, or none."""
    told = turns(*HELLO, assistant(text("I look."), use("t1", z=1, a="ü")), user(result("t1", "sunny")))
    called = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"z":1,"a":"ü"}'}}
    assert told[1:] == [
        {"role": "assistant", "content": "I look.", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
    ]
    assert turns(*HELLO, assistant(use("t1")), user(result("t1")))[1]["content"] is None


def test_results_come_first_each_as_a_message_of_its_own() -> None:
    """Chat wants them directly after the calls, whatever the order in the user's message (the bug of many gateways)."""
    told = turns(
        *HELLO,
        assistant(use("t1"), use("t2"), use("t3")),
        user(result("t1", "a"), text("and then?"), result("t2", "b"), result("t3", [text("c"), text("d")])),
    )
    assert [(message["role"], message.get("tool_call_id"), message["content"]) for message in told[2:]] == [
        ("tool", "t1", "a"),
        ("tool", "t2", "b"),
        ("tool", "t3", "c\n\nd"),
        ("user", None, "and then?"),
    ]


@pytest.mark.parametrize(
    ("given", "content"),
    [
        (result("t", "no such city", is_error=True), "Error: no such city"),
        (result("t", [text("no")], is_error=True), "Error: no"),
        (result("t", None, is_error=True), "Error"),
        (result("t", "fine", is_error=False), "fine"),
        (result("t", None), ""),
        (result("t", []), ""),
        ({"type": "tool_result", "tool_use_id": "t"}, ""),
        (result("t", [{"type": "document", "source": {"type": "text", "data": "words"}}]), "words"),
    ],
)
def test_what_a_result_says(given: dict[str, Any], content: str) -> None:
    """A failure is said in words, for chat has no flag; nothing is an empty string."""
    assert turns(*HELLO, assistant(use("t")), user(given))[2] == {
        "role": "tool",
        "tool_call_id": "t",
        "content": content,
    }


def test_an_image_in_a_result_follows_in_the_users_message() -> None:
    """After all results, with whose it is; the result that has no words points there."""
    told = turns(
        *HELLO,
        assistant(use("t1"), use("t2")),
        user(result("t1", [IMAGE]), result("t2", [text("seen"), IMAGE]), text("well?")),
    )
    assert [message["content"] for message in told[2:4]] == ["See the user's next message.", "seen"]
    assert told[4] == {
        "role": "user",
        "content": [
            {"type": "text", "text": "What the tool call t1 brought:"},
            AS_PART,
            {"type": "text", "text": "What the tool call t2 brought:"},
            AS_PART,
            {"type": "text", "text": "well?"},
        ],
    }


def test_fields_that_are_not_known_are_told() -> None:
    """Of messages and of blocks; those that ask for nothing are not."""
    given = [
        {"role": "user", "content": [text("a", novelty=1, citations=None)], "name": "b"},
        assistant({**use("t"), "caller": {"type": "direct"}}),
        user(result("t")),
    ]
    assert dropped(messages=given) == ("messages.novelty", "messages.name")


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (user({"type": "image", "source": {"type": "file", "file_id": "f"}}), "messages[0].content[0].source.type"),
        (
            user({"type": "document", "source": {"type": "url", "url": "https://a"}}),
            "messages[0].content[0].source.type",
        ),
        (user({"type": "container_upload", "file_id": "f"}), "messages[0].content[0].type"),
        (user(text("a"), {"type": "novelty"}), "messages[0].content[1].type"),
        (user(result("t", [{"type": "tool_reference"}])), "messages[0].content[0].content[0].type"),
        (assistant({"type": "server_tool_use", "id": "s", "name": "web_search"}), "messages[0].content[0].type"),
        (assistant(IMAGE), "messages[0].content[0].type"),
    ],
)
def test_what_has_no_word_is_refused_by_its_place(message: dict[str, Any], param: str) -> None:
    """The client is told which block of which message."""
    with pytest.raises(Unsupported) as refused:
        turns(message)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "a"}, "messages[0].role"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "assistant", "content": None}, "messages[0].content"),
        (user("a"), "messages[0].content[0]"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "image"}), "messages[0].content[0].source"),
        (user({"type": "image", "source": {"type": "url", "url": "file:///a"}}), "messages[0].content[0].source.url"),
        (user({"type": "image", "source": {"type": "base64", "media_type": "image/tiff", "data": "a"}}),
         "messages[0].content[0].source.media_type"),
        (user({"type": "image", "source": {"type": "base64", "media_type": "image/png"}}),
         "messages[0].content[0].source.data"),
        (user({"type": "document", "source": {"type": "base64", "media_type": "text/html", "data": "a"}}),
         "messages[0].content[0].source.media_type"),
        (user({"type": "document", "source": {"type": "text"}}), "messages[0].content[0].source.data"),
        (user({"type": "document", "title": 1, "source": {"type": "text", "data": ""}}),
         "messages[0].content[0].source.title"),
        (user({"type": "tool_result"}), "messages[0].content[0].tool_use_id"),
        (user(result("t", 5)), "messages[0].content[0].content"),
        (user(result("t", "a", is_error="yes")), "messages[0].content[0].is_error"),
        (assistant({"type": "tool_use", "name": "a", "input": {}}), "messages[0].content[0].id"),
        (assistant({"type": "tool_use", "id": "a", "input": {}}), "messages[0].content[0].name"),
        (assistant({"type": "tool_use", "id": "a", "name": "a", "input": "{}"}), "messages[0].content[0].input"),
        ({"role": "system", "content": [IMAGE]}, "messages[0].content[0].type"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_its_place(message: dict[str, Any], param: str) -> None:
    """A 400 that names the field; the prompt is not in it."""
    with pytest.raises(BadRequest) as refused:
        turns(message)
    assert refused.value.param == param
    assert json.dumps(message) not in refused.value.message
