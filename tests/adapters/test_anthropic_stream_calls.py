"""Calls and thoughts in Anthropic's streams: each whole, under its own index, and never mixed up."""

from __future__ import annotations

import json

import pytest

from .anthropic_events import (
    ADAPTER,
    STOP,
    block,
    calls,
    delta,
    deltas,
    event,
    read,
    reason,
    request,
    start,
    thought,
    use,
    words,
)

# -- calls -------------------------------------------------------------------------------------------------------------


def test_a_calls_index_counts_calls() -> None:
    """And not blocks: the index of a block is another."""
    found, _ = read(
        start(),
        thought(0, "hm"),
        words(1, "a"),
        use(2, "one", '{"a"', ":1}"),
        use(3, "two", "{}"),
        delta("tool_use"),
        STOP,
    )
    assert calls(found) == {0: ("toolu_2", "one", '{"a":1}'), 1: ("toolu_3", "two", "{}")}
    opener = next(one for one in deltas(found) if "tool_calls" in one)["tool_calls"][0]
    assert opener == {"index": 0, "id": "toolu_2", "type": "function", "function": {"name": "one", "arguments": ""}}
    assert reason(found) == ["tool_calls"]


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        (use(0, "f"), "{}"),
        (use(0, "f", ""), "{}"),
        (use(0, "f", "", ""), "{}"),
        (use(0, "f", "{}"), "{}"),
        (use(0, "f", "", "{", "}"), "{}"),
        (use(0, "f", stop=False), "{}"),
        (use(0, "f", "", input={"a": 1}), '{"a":1}'),
        (use(0, "f", '{"a":1}', input={"a": 1}), '{"a":1}'),
        (use(0, "f", '{"a":', stop=False) + event("content_block_delta", index=0, delta={
            "type": "input_json_delta", "partial_json": "1}"}), '{"a":1}'),
        # a delta after the block's end: what was begun goes on, what was ended does not
        (use(0, "f", '{"a":') + event("content_block_delta", index=0, delta={
            "type": "input_json_delta", "partial_json": "1}"}), '{"a":1}'),
        (use(0, "f") + event("content_block_delta", index=0, delta={
            "type": "input_json_delta", "partial_json": "{}"}), "{}"),
        (use(0, "f", "") + event("content_block_stop", index=0), "{}"),
    ],
)  # fmt: skip
def test_arguments_are_json_and_whole(said: bytes, arguments: str) -> None:
    """``""`` is an empty object, once; nothing is lost and nothing is said twice."""
    found, _ = read(start(), said, delta("tool_use"), STOP)
    assert calls(found) == {0: ("toolu_0", "f", arguments)}
    json.loads(arguments)


def test_pieces_of_calls_that_run_side_by_side_are_not_mixed_up() -> None:
    """A server that is only like Anthropic's may do so."""
    piece = "input_json_delta"
    found, _ = read(
        start(),
        use(0, "a", stop=False),
        use(1, "b", stop=False),
        event("content_block_delta", index=0, delta={"type": piece, "partial_json": '{"a":'}),
        event("content_block_delta", index=1, delta={"type": piece, "partial_json": '{"b":'}),
        event("content_block_delta", index=0, delta={"type": piece, "partial_json": "1}"}),
        event("content_block_delta", index=1, delta={"type": piece, "partial_json": "2}"}),
        delta("tool_use"),
        STOP,
    )
    assert calls(found) == {0: ("toolu_0", "a", '{"a":1}'), 1: ("toolu_1", "b", '{"b":2}')}


def test_a_changed_name_is_given_back() -> None:
    """As the client called it."""
    tool = {"type": "function", "function": {"name": "a.b"}}
    sent = json.loads(ADAPTER.request(request(tools=[tool]), "m").body)["tools"][0]["name"]
    assert calls(read(start(), use(0, sent), delta("tool_use"), STOP, tools=[tool])[0])[0][1] == "a.b"


# -- thoughts ----------------------------------------------------------------------------------------------------------


def test_thoughts_are_told_and_can_be_sent_back() -> None:
    """Piece by piece as words, and each block as a whole with its signature."""
    found, _ = read(
        start(),
        thought(0, "a", "b"),
        block(1, "redacted_thinking", data="x"),
        thought(2, "c", signature=""),
        words(3, "d"),
        delta(),
        STOP,
    )
    assert deltas(found)[1:-1] == [
        {"reasoning_content": "a"},
        {"reasoning_content": "b"},
        {"thinking_blocks": [{"index": 0, "type": "thinking", "thinking": "ab", "signature": "sig"}]},
        {"thinking_blocks": [{"index": 1, "type": "redacted_thinking", "data": "x"}]},
        {"reasoning_content": "c"},
        {"content": "d"},
    ]
