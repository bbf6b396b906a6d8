"""Requests of every dialect in the convention's words."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_llm_gateway.contents.read import INPUT, SYSTEM, TOOLS, asked
from asgi_llm_gateway.wire import Dialect

from . import CHAT, MESSAGES, RESPONSES

ROOM = 16 * 1024
LOOK = {"type": "function", "name": "look", "description": "Look closer.", "parameters": {"type": "object"}}


def test_a_chat() -> None:
    """Roles and names stay, parts get the convention's types, arguments are what their JSON says."""
    said = asked("chat", CHAT, ROOM).said
    assert said == {
        INPUT: [
            {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
            {"role": "user", "name": "ann", "parts": [
                {"type": "text", "content": "What is this?"},
                {"type": "blob", "mime_type": "image/png", "modality": "image", "content": "iVBORw0KGgo="},
                {"type": "uri", "mime_type": None, "modality": "image", "uri": "https://example.org/cat.jpg"},
                {"type": "blob", "mime_type": "audio/wav", "modality": "audio", "content": "UklGRg=="},
                {"type": "file", "mime_type": None, "modality": "document", "file_id": "file-1"},
            ]},
            {"role": "assistant", "parts": [
                {"type": "tool_call", "id": "call_1", "name": "look", "arguments": {"at": "cat"}}]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": "a cat"}]},
        ],
        TOOLS: [LOOK],
    }  # fmt: skip


def test_a_message() -> None:
    """The system's blocks are instructions of their own; a tool's answer stays in the user's message, as it was sent."""
    said = asked("messages", MESSAGES, ROOM).said
    assert said == {
        SYSTEM: [{"type": "text", "content": "Be brief."}],
        INPUT: [
            {"role": "user", "parts": [
                {"type": "blob", "mime_type": "image/png", "modality": "image", "content": "iVBORw0KGgo="},
                {"type": "uri", "mime_type": None, "modality": "document", "uri": "https://example.org/a.pdf"},
                {"type": "text", "content": "What is this?"},
            ]},
            {"role": "assistant", "parts": [
                {"type": "reasoning", "content": "Look."},
                {"type": "tool_call", "id": "toolu_1", "name": "look", "arguments": {"at": "cat"}},
            ]},
            {"role": "user", "parts": [{"type": "tool_call_response", "id": "toolu_1", "response": "a cat"}]},
        ],
        TOOLS: [LOOK, {"type": "web_search_20250305", "name": "web_search"}],
    }  # fmt: skip


def test_a_response() -> None:
    """Items become messages; the instructions stand by themselves."""
    said = asked("responses", RESPONSES, ROOM).said
    assert said[SYSTEM] == [{"type": "text", "content": "Be brief."}]
    assert said[TOOLS] == [LOOK, {"type": "web_search"}]
    user, thought, called, answered, searched = said[INPUT]
    assert [part["type"] for part in user["parts"]] == ["text", "uri", "file"]
    assert thought == {"role": "assistant", "parts": [{"type": "reasoning", "content": "Look."}]}
    call = {"type": "tool_call", "id": "call_1", "name": "look", "arguments": {"at": "cat"}}
    assert called == {"role": "assistant", "parts": [call]}
    assert answered == {
        "role": "tool",
        "parts": [{"type": "tool_call_response", "id": "call_1", "response": "a cat"}],
    }
    (part,) = searched["parts"]
    assert (part["type"], part["id"], part["name"]) == ("server_tool_call", "ws_1", "web_search")
    assert part["server_tool_call"]["type"] == "web_search_call"


@pytest.mark.parametrize(
    ("dialect", "field", "given", "parts"),
    [
        ("responses", "input", "Hello", [{"type": "text", "content": "Hello"}]),
        ("completions", "prompt", "Hello", [{"type": "text", "content": "Hello"}]),
        ("completions", "prompt", ["a", "b"], [{"type": "text", "content": "a"}, {"type": "text", "content": "b"}]),
        ("completions", "prompt", [1, 2, 3], [{"type": "tokens", "count": 3}]),
        ("embeddings", "input", "Hello", [{"type": "text", "content": "Hello"}]),
        ("embeddings", "input", [[1, 2], [3]], [{"type": "tokens", "count": 2}, {"type": "tokens", "count": 1}]),
    ],
)
def test_a_plain_prompt(dialect: Dialect, field: str, given: Any, parts: list[Any]) -> None:
    """Texts are the user's; of tokens only their number is told."""
    assert asked(dialect, {field: given}, ROOM).said == {INPUT: [{"role": "user", "parts": parts}]}


def test_a_dialect_without_words_tells_nothing() -> None:
    """Speech, images and the like have no messages in the convention."""
    assert asked("speech", {"input": "say this"}, ROOM).said == {}


def test_of_a_long_conversation_the_newest_messages_are_read() -> None:
    """Not more of them than can be kept, and it is told that there were more."""
    messages = [{"role": "user", "content": f"{at} " + "x" * 100} for at in range(1000)]
    content = asked("chat", {"messages": messages}, 1000)
    assert content.truncated
    kept = content.said[INPUT]
    assert kept[-1]["parts"][0]["content"].startswith("999 ")
    assert 1000 / 132 <= len(kept) <= 10


def test_a_contents_repr_tells_nothing_of_it() -> None:
    """Not in a log by accident."""
    assert "cat" not in repr(asked("chat", CHAT, ROOM))
