"""Chat streams as Responses streams: the order of events, the end that waits for the usage, failures."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from asgi_llm_gateway.errors import UpstreamError

from .responses import (
    DONE,
    FRONT,
    TOLD,
    call_piece,
    chunk,
    encoded,
    event,
    events_of,
    function,
    kinds,
    raw_stream,
    read_by_sdk,
    request,
    texts,
    usage_chunk,
)

ROLE = chunk({"role": "assistant", "content": "", "refusal": None})
PLAIN = (ROLE, chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({}, "stop"), usage_chunk(), DONE)
BEGUN = ["created", "in_progress"]
TEXT_ADDED = ["output_item.added", "content_part.added"]
TEXT_DONE = ["output_text.done", "content_part.done", "output_item.done"]


def test_the_plainest_stream() -> None:
    """The events in the order of the reference, numbered without a gap, and the whole response in the last one."""
    found = encoded(*PLAIN)
    assert kinds(found) == [*BEGUN, *TEXT_ADDED, "output_text.delta", "output_text.delta", *TEXT_DONE, "completed"]
    events = events_of(found)
    assert events[0]["response"]["status"] == events[1]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    last = events[-1]["response"]
    assert (last["status"], last["usage"], last["model"]) == ("completed", TOLD, "real-model")
    assert last["output"] == [events[-2]["item"]]
    assert len({told["response"]["id"] for told in events if "response" in told}) == 1


def test_a_stream_and_an_answer_are_told_alike() -> None:
    """But for ids and times, the last event's response is what the whole answer would have been."""
    message = {"content": "Hello", "reasoning_content": "hm",
               "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}  # fmt: skip
    usage = usage_chunk()
    told = {"created": 1700000000, "model": "real-model", "usage": json.loads(usage[6:])["usage"],
            "choices": [{"message": message, "finish_reason": "tool_calls"}]}  # fmt: skip
    asked = {"tools": [function("f")], "metadata": {"a": "b"}}
    whole = json.loads(FRONT.response(request(**asked), json.dumps(told).encode()))
    found = encoded(ROLE, chunk({"reasoning_content": "hm"}), chunk({"content": "Hello"}), call_piece(0, "a", "f", "{}"),
                    chunk({}, "tool_calls"), usage, DONE, **asked)  # fmt: skip
    streamed = events_of(found)[-1]["response"]

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if key not in ("id", "completed_at")}
        return [plain(one) for one in value] if isinstance(value, list) else value

    assert plain(streamed) == plain(whole)


def test_the_first_events_come_with_the_first_chunk() -> None:
    """A client sees at once that it is being answered."""
    stream = FRONT.stream(request(stream=True))
    assert kinds(stream.feed(ROLE)) == BEGUN


def test_thoughts_end_before_the_text_begins() -> None:
    """An item of their own; also where both come in one chunk."""
    found = encoded(ROLE, chunk({"reasoning_content": "h"}), chunk({"reasoning": "m", "content": "so"}), chunk({}, "stop"),
                    usage_chunk(), DONE)  # fmt: skip
    added = ["output_item.added", "reasoning_summary_part.added"]
    done = ["reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"]
    deltas = ["reasoning_summary_text.delta"] * 2
    assert kinds(found) == [
        *BEGUN, *added, *deltas, *done, *TEXT_ADDED, "output_text.delta", *TEXT_DONE, "completed",
    ]  # fmt: skip
    assert texts(events_of(found), "reasoning_summary_text") == "hm"


def test_a_refusal_is_a_part_of_the_message() -> None:
    """The next one, where something was said before."""
    found = encoded(
        ROLE, chunk({"content": "I"}), chunk({"refusal": "wo"}), chunk({"refusal": "n't"}), chunk({}, "stop"), DONE
    )
    events = events_of(found)
    assert texts(events, "refusal") == "won't"
    (item,) = events[-1]["response"]["output"]
    assert [part["type"] for part in item["content"]] == ["output_text", "refusal"]
    assert {told["content_index"] for told in events if "refusal" in told["type"]} == {1}


def test_calls_whose_pieces_come_in_turns() -> None:
    """Each has its place, and ends when chat says why it ended."""
    found = encoded(ROLE, call_piece(0, "a", "f", ""), call_piece(1, "b", "g", ""), call_piece(0, arguments='{"x"'),
                    call_piece(1, arguments="{"), call_piece(0, arguments=":1}"), call_piece(1, arguments="}"),
                    chunk({}, "tool_calls"), usage_chunk(), DONE)  # fmt: skip
    assert kinds(found) == [
        *BEGUN, "output_item.added", "output_item.added", *["function_call_arguments.delta"] * 4,
        *["function_call_arguments.done", "output_item.done"] * 2, "completed",
    ]  # fmt: skip
    calls = read_by_sdk(found).get_final_response().output
    assert [(one.call_id, one.name, one.arguments) for one in calls if one.type == "function_call"] == [
        ("a", "f", '{"x":1}'),
        ("b", "g", "{}"),
    ]


@pytest.mark.parametrize(
    "pieces",
    [
        [call_piece(0, "a", "f"), call_piece(0, "b", "g")],  # every call at the same index
        [chunk({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": ""}},
                               {"id": "b", "function": {"name": "g"}}]})],  # no index at all
        [call_piece(0, "a"), call_piece(1, "b"), call_piece(0, name="f"), call_piece(1, name="g")],  # names later
        [call_piece(0, "a", "f", ""), call_piece(1, "b", "g", ""), call_piece(2)],  # one that never gets a name
    ],
)  # fmt: skip
def test_calls_as_other_servers_stream_them(pieces: list[bytes]) -> None:
    """And one without a word of arguments has an empty object of them, as a delta too."""
    found = encoded(ROLE, *pieces, chunk({}, "tool_calls"), DONE)
    calls = events_of(found)[-1]["response"]["output"]
    assert [(one["call_id"], one["name"], one["arguments"]) for one in calls] == [("a", "f", "{}"), ("b", "g", "{}")]
    assert texts(events_of(found), "function_call_arguments") == "{}{}"


def test_text_after_a_call_is_a_message_of_its_own() -> None:
    """The first one ended when the call began."""
    found = encoded(ROLE, chunk({"content": "a"}), call_piece(0, "a", "f", "{}"), chunk({"content": "b"}),
                    chunk({}, "tool_calls"), DONE)  # fmt: skip
    kinds_of = [item["type"] for item in events_of(found)[-1]["response"]["output"]]
    assert kinds_of == ["message", "function_call", "message"]
    assert read_by_sdk(found).get_final_response().output_text == "ab"


def test_the_end_waits_for_the_usage() -> None:
    """It comes with the usage event, for the money of the call is settled and told there."""
    stream = FRONT.stream(request(stream=True))
    out = [stream.feed(one) for one in PLAIN]
    assert [b"response.completed" in one for one in out] == [False, False, False, False, True, False]
    assert stream.finish() == b""


@pytest.mark.parametrize("last", [(DONE,), ()])
def test_without_usage_the_end_comes_with_the_streams(last: tuple[bytes, ...]) -> None:
    """And its usage is null."""
    found = encoded(*PLAIN[:4], *last)
    assert events_of(found)[-1]["type"] == "response.completed"
    assert events_of(found)[-1]["response"]["usage"] is None


def test_usage_on_every_chunk_is_the_last_one_told() -> None:
    """As some servers stream it; only the end of the stream is the end."""
    counted = [
        event({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": finish}],
               "usage": {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": 1 + count}})
        for count, finish in ((1, None), (2, None), (3, "stop"))
    ]  # fmt: skip
    last = events_of(encoded(*counted, DONE))[-1]
    assert last["response"]["usage"]["output_tokens"] == 3


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_a_cut_answer_is_incomplete(finish: str, reason: str) -> None:
    """The response and what went on when it was cut."""
    found = encoded(ROLE, chunk({"content": "a"}), chunk({}, finish), usage_chunk(), DONE)
    last = events_of(found)[-1]
    assert (last["type"], last["response"]["incomplete_details"]) == ("response.incomplete", {"reason": reason})
    assert last["response"]["output"][0]["status"] == "incomplete"
    assert last["response"]["usage"] == TOLD


def test_a_reason_beside_the_last_word() -> None:
    """The word is said before the end."""
    found = encoded(chunk({"role": "assistant", "content": "all"}, "stop"), DONE)
    assert read_by_sdk(found).get_final_response().output_text == "all"


def test_probabilities_and_sources_stream() -> None:
    """Each with its piece of text, and all of them in the end."""
    entry = {"token": "a", "bytes": [97], "logprob": -1.5, "top_logprobs": []}
    source = {"url_citation": {"start_index": 0, "end_index": 1, "title": "t", "url": "http://u"}}
    found = encoded(ROLE, chunk({"content": "a"}, logprobs={"content": [entry]}), chunk({"annotations": [source]}),
                    chunk({}, "stop"), DONE)  # fmt: skip
    events = events_of(found)
    assert [told["logprobs"] for told in events if told["type"] == "response.output_text.delta"] == [[entry]]
    (part,) = events[-1]["response"]["output"][0]["content"]
    assert (part["logprobs"], len(part["annotations"])) == ([entry], 1)
    read_by_sdk(found)


def test_comments_pass_and_noise_does_not() -> None:
    """A comment keeps the connection alive; what is no chat is passed over, and no such event reaches a client."""
    noise = (b"event: ping\n\n", b"data: {half\n\n", b"data: []\n\n", b"id: 4\n\n", b": two\nevent: x\n\n")
    found = encoded(b": waiting\n\n", *PLAIN[:2], *noise, *PLAIN[2:])
    assert found.startswith(b": waiting\n\nevent: response.created\n")
    assert found.replace(b": waiting\n\n", b"").count(b"\n\n") == len(events_of(found))
    assert texts(events_of(found), "output_text") == "Hello"


def test_nothing_is_said_after_the_end() -> None:
    """Not even of a failure: the client has its whole answer."""
    stream = FRONT.stream(request(stream=True))
    for one in PLAIN:
        stream.feed(one)
    assert stream.feed(chunk({"content": "more"})) == b""
    assert stream.failure(UpstreamError("cut")) == b""
    assert stream.finish() == b""


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_cut_stream_has_an_error_and_no_end() -> None:
    """One error event, with the next number; no response that would be whole."""
    stream = FRONT.stream(request(stream=True))
    out = b"".join(stream.feed(one) for one in PLAIN[:2])
    out += stream.failure(UpstreamError("The provider ended its stream.", code="upstream_cut"))
    assert kinds(out)[-1] == "error"
    last = events_of(out)[-1]
    assert (last["code"], last["param"]) == ("upstream_cut", None)
    assert not {"completed", "incomplete", "failed"} & set(kinds(out))
    with pytest.raises(openai.APIError, match="ended its stream") as caught:
        list(raw_stream(out))
    assert caught.value.code == "upstream_cut"


def test_a_failure_before_the_first_chunk() -> None:
    """It is the first event."""
    out = FRONT.stream(request(stream=True)).failure(UpstreamError("away"))
    assert [told["type"] for told in events_of(out)] == ["error"]


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ({"message": "boom at http://10.0.0.1:8000/x", "code": 502}, "server_error"),
        ({"message": "slow down", "code": 429}, "rate_limit_exceeded"),
        ("only words", "server_error"),
        ({"code": None}, "server_error"),
    ],
)
def test_an_error_of_the_providers_fails_the_response(told: Any, code: str) -> None:
    """First the error, which the SDK raises; then ``response.failed`` for readers that go on. No address is told."""
    found = encoded(*PLAIN[:2], event({"error": told}), DONE)
    assert kinds(found)[-2:] == ["error", "failed"]
    failed = events_of(found)[-1]["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", code)
    assert b"10.0.0.1" not in found
    with pytest.raises(openai.APIError) as caught:
        read_by_sdk(found)
    assert caught.value.message == failed["error"]["message"]


def test_a_choice_that_ended_in_an_error_fails_the_response() -> None:
    """As OpenRouter says it."""
    found = encoded(*PLAIN[:2], chunk({"content": ""}, "error", error={"message": "gone"}), DONE)
    assert kinds(found)[-2:] == ["error", "failed"]
