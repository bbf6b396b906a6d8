"""A chat stream in Anthropic's events: what goes out, in which order, and how it ends. The SDK puts it together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_llm_gateway.errors import UpstreamError
from asgi_llm_gateway.fronts import _messages_stream
from asgi_llm_gateway.usage import with_cost

from .messages_parts import (
    DONE,
    FRONT,
    call,
    chunk,
    content_of,
    events_of,
    kinds,
    read,
    request,
    streamed,
    used,
)

ROLE = chunk({"role": "assistant", "content": "", "refusal": None})
STOP = chunk(finish="stop")
THINKS: dict[str, Any] = {"thinking": {"type": "adaptive"}}
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def test_a_stream_of_text() -> None:
    """Each event of the dialect in its order; the reason and the counts come last."""
    out = streamed(ROLE, chunk({"content": "Hel"}), chunk({"content": "lo"}), STOP, used(), DONE)
    assert kinds(out) == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    message = read(out)
    assert (message.id, message.model, message.stop_reason) == ("msg_abc", "gpt-x", "end_turn")
    assert content_of(message) == ["Hello"]
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 3)


def test_each_piece_goes_out_when_it_comes() -> None:
    """The message with the first chunk, and each text at once; the reason waits, for the counts may follow it."""
    encoder = FRONT.stream(request(stream=True))
    assert kinds(encoder.feed(ROLE)) == ["message_start"]
    assert kinds(encoder.feed(chunk({"content": "a"}))) == ["content_block_start", "content_block_delta"]
    assert kinds(encoder.feed(chunk({"content": "b"}))) == ["content_block_delta"]
    assert kinds(encoder.feed(STOP)) == ["content_block_stop"]
    assert kinds(encoder.feed(used())) == ["message_delta", "message_stop"]
    assert encoder.feed(DONE) == b""
    assert encoder.finish() == b""


@pytest.mark.parametrize("end", [(DONE,), (used(), DONE), (used(),), ()])
def test_the_closing_events_always_come(end: tuple[bytes, ...]) -> None:
    """With counts or without, with ``[DONE]`` or without: a client that waits for them must not hang."""
    message = read(streamed(ROLE, chunk({"content": "a"}), STOP, *end))
    assert (content_of(message), message.stop_reason) == (["a"], "end_turn")
    assert message.usage.output_tokens > 0
    assert message.usage.input_tokens > 0


def test_a_stream_that_was_cut_has_no_end_made_up() -> None:
    """Nobody calls ``finish`` then: there is neither a reason nor a stop in what went out."""
    out = streamed(ROLE, chunk({"content": "a"}), end=False)
    assert kinds(out) == ["message_start", "content_block_start", "content_block_delta"]


@pytest.mark.parametrize(
    ("events", "counts"),
    [
        ((chunk(finish="stop", usage={"prompt_tokens": 5, "completion_tokens": 2}), DONE), (5, 2)),
        ((chunk({"content": "b"}, usage={"prompt_tokens": 5, "completion_tokens": 1}),
          chunk(finish="stop", usage={"prompt_tokens": 5, "completion_tokens": 2}), used(5, 3), DONE), (5, 3)),
        ((STOP, chunk(choices=None, usage={"prompt_tokens": 5, "completion_tokens": 2}), DONE), (5, 2)),
        ((used(5, 2), STOP, DONE), (5, 2)),
        ((STOP, used(50, 2, prompt_tokens_details={"cached_tokens": 40, "cache_write_tokens": 5}), DONE), (5, 2)),
    ],
)  # fmt: skip
def test_the_counts_are_found_wherever_they_stand(events: tuple[bytes, ...], counts: tuple[int, int]) -> None:
    """On the last piece, on each, or in an event of their own with ``choices`` null: the last word counts, once."""
    message = read(streamed(ROLE, chunk({"content": "a"}), *events))
    assert (message.usage.input_tokens, message.usage.output_tokens) == counts


def test_the_cost_can_be_put_beside_the_counts() -> None:
    """The event with them is one line of JSON that ends with its brace, as the proxy needs it."""
    encoder = FRONT.stream(request(stream=True))
    encoder.feed(ROLE + STOP)
    out = with_cost(encoder.feed(used()), 1_500_000_000)
    assert [event.get("cost_usd") for event in events_of(out)] == [1.5, None]


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("content_filter", "refusal"), ("tool_calls", "end_turn"),
     ("eos", "end_turn")],
)  # fmt: skip
def test_the_reason_is_one_that_clients_know(finish: str, reason: str) -> None:
    """No word of chat's gets through."""
    assert read(streamed(chunk({"content": "a"}), chunk(finish=finish), DONE)).stop_reason == reason


def test_a_refusal_is_told_in_text_and_in_details() -> None:
    """Its words stream as text; the details have them whole."""
    message = read(streamed(chunk({"refusal": "I "}), chunk({"refusal": "can't."}), STOP, DONE))
    assert (content_of(message), message.stop_reason) == (["I can't."], "refusal")
    assert message.stop_details is not None
    assert message.stop_details.explanation == "I can't."


# -- calls -------------------------------------------------------------------------------------------------------------


def test_a_call_streams_its_arguments() -> None:
    """The opener opens a block with an empty input, and each fragment goes out at once."""
    encoder = FRONT.stream(request(stream=True))
    encoder.feed(ROLE + chunk({"content": "I look."}))
    opened = events_of(encoder.feed(call(0, "call_1", "weather", "")))
    assert [event["type"] for event in opened] == ["content_block_stop", "content_block_start"]
    assert opened[1]["content_block"] == {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}
    for fragment in ('{"city"', ': "Par', 'is"}'):
        (event,) = events_of(encoder.feed(call(0, arguments=fragment)))
        assert event["delta"] == {"type": "input_json_delta", "partial_json": fragment}
        assert event["index"] == 1


def test_parallel_calls_are_blocks_one_after_the_other() -> None:
    """Each opens when the one before is whole; the indices are the blocks', not chat's."""
    encoder = FRONT.stream(request(stream=True))
    out = encoder.feed(chunk({"content": "I look."}) + call(0, "a", "one", "") + call(0, arguments='{"x":1}'))
    second = encoder.feed(call(1, "b", "two", ""))
    assert kinds(second) == ["content_block_stop", "content_block_start"]
    out += second + encoder.feed(call(1, arguments='{"y":2}') + chunk(finish="tool_calls") + used() + DONE)
    message = read(out)
    assert content_of(message) == ["I look.", ("one", {"x": 1}), ("two", {"y": 2})]
    assert message.stop_reason == "tool_use"


def test_calls_that_come_mixed_do_not_mix() -> None:
    """What comes for another while one is open waits; nothing is lost and nothing gets into the wrong one."""
    message = read(
        streamed(
            call(0, "a", "one", ""), call(1, "b", "two", ""), call(2, "c", "three", ""), call(1, arguments='{"y":'),
            call(0, arguments='{"x":'), call(2, arguments="{}"), call(1, arguments="2}"), call(0, arguments="1}"),
            chunk(finish="tool_calls"), DONE,
        )
    )  # fmt: skip
    assert content_of(message) == [("one", {"x": 1}), ("two", {"y": 2}), ("three", {})]


def test_text_and_thoughts_among_calls_have_blocks_of_their_own() -> None:
    """Also where a call is not whole yet: then they wait for it."""
    message = read(
        streamed(
            chunk({"reasoning_content": "hm"}), chunk({"content": "a"}), chunk({"reasoning_content": "so"}),
            call(0, "x", "one", '{"x":1'), chunk({"content": "b"}), chunk({"content": "c"}), call(0, arguments="}"),
            chunk({"content": "d"}), STOP, DONE, **THINKS,
        )
    )  # fmt: skip
    assert content_of(message) == [("thinking", "hm"), "a", ("thinking", "so"), ("one", {"x": 1}), "bcd"]


def test_arguments_that_come_with_the_reason_are_not_lost() -> None:
    """A chunk may have both: the delta goes first."""
    message = read(
        streamed(
            call(0, "a", "one", '{"x":'),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}, "tool_calls"),
            DONE,
        )
    )
    assert (content_of(message), message.stop_reason) == ([("one", {"x": 1})], "tool_use")
    assert content_of(read(streamed(chunk({"content": "a"}, "stop"), DONE))) == ["a"]


@pytest.mark.parametrize("fragments", [(), ("",), ("", ""), ("{}",), ("", "{}"), ("{", "}"), (" ", "{}"), ("null",)])
def test_a_call_without_arguments_has_an_empty_input(fragments: tuple[str, ...]) -> None:
    """However the provider says nothing; and two of them stay two."""
    events = [call(0, "a", "one")] + [call(0, arguments=one) for one in fragments]
    events += [call(1, "b", "two")] + [call(1, arguments=one) for one in fragments]
    assert content_of(read(streamed(*events, chunk(finish="tool_calls"), DONE))) == [("one", {}), ("two", {})]


@pytest.mark.parametrize("text", ["[1, 2]", '"a"', "not json", "5"])
def test_arguments_that_are_no_object_are_told_in_one(text: str) -> None:
    """The SDK could not read them otherwise."""
    message = read(
        streamed(call(0, "a", "one", text[:1]), call(0, arguments=text[1:]), chunk(finish="tool_calls"), DONE)
    )
    assert content_of(message) == [("one", {"INVALID_JSON": text})]


def test_arguments_may_be_an_object_or_all_at_once() -> None:
    """As Ollama and others send them; with no index, or always the same, it is the id or the name that tells calls apart."""
    whole = call(None, None, "one", {"x": 1}), call(None, None, "two", {"y": 2})
    assert content_of(read(streamed(*whole, STOP, DONE))) == [("one", {"x": 1}), ("two", {"y": 2})]
    zeros = call(0, "a", "one", '{"x":1}'), call(0, "b", "one", '{"x":2}'), call(0, arguments=" ")
    assert content_of(read(streamed(*zeros, STOP, DONE))) == [("one", {"x": 1}), ("one", {"x": 2})]
    by_id = call(None, "a", "one", '{"x"'), call(None, "a", None, ":1}"), call(None, None, None, " ")
    assert content_of(read(streamed(*by_id, STOP, DONE))) == [("one", {"x": 1})]


def test_an_id_and_a_name_may_be_repeated() -> None:
    """Some servers say them with every fragment."""
    events = [call(0, "a", "one", '{"x":'), call(0, "a", "one", "1"), call(0, "a", "one", "}")]
    assert content_of(read(streamed(*events, STOP, DONE))) == [("one", {"x": 1})]


def test_a_call_waits_for_its_name_and_without_one_is_none() -> None:
    """What came before the name is in the input."""
    named = call(0, "a", None, '{"x":'), call(0, None, "one", "1}")
    assert content_of(read(streamed(*named, STOP, DONE))) == [("one", {"x": 1})]
    message = read(streamed(chunk({"content": "a"}), call(0, "a", None, "{}"), chunk(finish="tool_calls"), DONE))
    assert (content_of(message), message.stop_reason) == (["a"], "end_turn")


def test_what_comes_for_a_call_that_is_over_is_passed_over() -> None:
    """No delta follows a block's stop."""
    message = read(
        streamed(call(0, "a", "one", "{}"), call(1, "b", "two", "{}"), call(0, arguments='{"x":1}'), STOP, DONE)
    )
    assert content_of(message) == [("one", {}), ("two", {})]


def test_a_function_call_of_old_is_a_call() -> None:
    """As servers stream that know no tools yet."""
    events = [chunk({"function_call": {"name": "one", "arguments": ""}}), chunk({"function_call": {"arguments": "{}"}})]
    assert content_of(read(streamed(*events, chunk(finish="function_call"), DONE))) == [("one", {})]


def test_a_name_that_was_cut_is_whole_again() -> None:
    """The client gets the name that it declared."""
    name = "mcp__" + "a" * 100
    tools = [{"name": name, "input_schema": {"type": "object"}}]
    sent = FRONT.request(request(tools=tools)).data["tools"][0]["function"]["name"]
    assert content_of(read(streamed(call(0, "a", sent, "{}"), STOP, DONE, tools=tools))) == [(name, {})]


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that mixes calls without end is the provider's fault, not the gateway's memory."""
    monkeypatch.setattr(_messages_stream, "MAX_KEPT", 1000)
    encoder = FRONT.stream(request(stream=True))
    encoder.feed(call(0, "a", "one", "{") + call(1, "b", "two", "{"))
    for _ in range(9):
        assert encoder.feed(call(1, arguments=" " * 100)) == b""
    with pytest.raises(UpstreamError, match="too long"):
        encoder.feed(call(1, arguments=" " * 100))


def test_what_has_gone_out_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of calls one after the other, and any length of text, go through."""
    monkeypatch.setattr(_messages_stream, "MAX_KEPT", 2000)
    arguments = json.dumps({"x": "y" * 500})
    calls = [call(number, f"c{number}", "one", arguments) for number in range(20)]
    message = read(streamed(*[chunk({"content": "z" * 500})] * 20, *calls, STOP, DONE))
    assert len(message.content) == 21


# -- text and thoughts -------------------------------------------------------------------------------------------------


def test_no_empty_block_comes() -> None:
    """Empty pieces, and white space before a call, which many local servers send: Anthropic refuses them coming back."""
    events = [
        ROLE,
        chunk({"content": None}),
        chunk({"content": "\n"}),
        chunk({"content": "\n"}),
        call(0, "a", "one", "{}"),
    ]
    assert content_of(read(streamed(*events, chunk({"content": " \n"}), STOP, DONE))) == [("one", {})]
    assert content_of(read(streamed(ROLE, STOP, DONE))) == []


def test_white_space_before_text_is_part_of_it() -> None:
    """Nothing of a text is lost; what stood before a thought is not put before it."""
    assert content_of(read(streamed(chunk({"content": "\n"}), chunk({"content": " a"}), STOP, DONE))) == ["\n a"]
    events = [chunk({"content": "\n"}), chunk({"reasoning_content": " "}), chunk({"reasoning_content": "hm"})]
    assert content_of(read(streamed(*events, chunk({"content": "\n\na\n"}), STOP, DONE, **THINKS))) == [
        ("thinking", " hm"),
        "\n\na\n",
    ]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_a_block_of_their_own(name: str) -> None:
    """Before the text, also where both are in one chunk, with a signature that is empty."""
    out = streamed(
        chunk({name: "h"}), chunk({"content": "a", name: "m"}), chunk({"content": "b"}), STOP, DONE, **THINKS
    )
    message = read(out)
    assert content_of(message) == [("thinking", "hm"), "ab"]
    assert message.content[0].type == "thinking"
    assert message.content[0].signature == ""


def test_content_in_parts_is_read() -> None:
    """As Mistral's reasoning models stream it."""
    thought = chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]})
    text = chunk({"content": [{"type": "text", "text": "hi"}]})
    assert content_of(read(streamed(thought, text, STOP, DONE, **THINKS))) == [("thinking", "hm"), "hi"]


def test_thoughts_that_were_not_asked_for_are_pings() -> None:
    """Now and then one, so that a long thought is not taken for a dead line."""
    out = streamed(ROLE, *[chunk({"reasoning_content": "hm"})] * 70, chunk({"content": "a"}), STOP, DONE)
    assert content_of(read(out)) == ["a"]
    assert out.count(PING) == 3


def test_comments_are_pings() -> None:
    """What a provider sends to keep a line open keeps the client's open too."""
    out = streamed(b": OPENROUTER PROCESSING\n\n", ROLE, b":\r\n\r\n", chunk({"content": "a"}), STOP, DONE)
    assert out.count(PING) == 2
    assert content_of(read(out)) == ["a"]


def test_only_the_first_answer_is_told() -> None:
    """The dialect has no word for several."""
    other = chunk(choices=[{"index": 1, "delta": {"content": "no"}, "finish_reason": None}])
    assert content_of(read(streamed(chunk({"content": "a"}), other, STOP, DONE))) == ["a"]


@pytest.mark.parametrize(
    "event",
    [
        b"data: {\n\n", b"data: []\n\n", b"data: 5\n\n", b"data: {}\n\n", b'data: {"choices":[5]}\n\n', b"data:\n\n",
        chunk(choices=[{"index": 0, "delta": 5}]), chunk({"tool_calls": [5, {}, {"function": 5}], "content": 5}),
        chunk({"content": [5], "reasoning": {}, "refusal": [], "tool_calls": {}, "function_call": 1}),
        chunk(choices=[], prompt_filter_results=[]), chunk(usage="x"), chunk(usage={"prompt_tokens": -1}),
    ],
)  # fmt: skip
def test_what_cant_be_read_is_passed_over(event: bytes) -> None:
    """Wherever it stands; the rest of the stream is whole."""
    message = read(streamed(event, ROLE, event, chunk({"content": "a"}), event, STOP, event, used(), DONE))
    assert (content_of(message), message.stop_reason) == (["a"], "end_turn")


def test_a_stream_of_nothing_is_an_empty_message() -> None:
    """It came to its own end, so it is in order."""
    message = read(streamed(DONE))
    assert (message.content, message.stop_reason, message.model) == ([], "end_turn", "m")


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ({"message": "boom", "type": "server_error", "code": None}, "api_error", "boom"),
        ({"message": "slow down", "code": 429}, "rate_limit_error", "slow down"),
        ({"message": "slow down", "code": "429"}, "rate_limit_error", "slow down"),
        ({"message": "busy", "type": "overloaded_error"}, "overloaded_error", "busy"),
        ({"message": "busy", "code": 529}, "overloaded_error", "busy"),
        ({"message": "too long", "code": "context_length_exceeded"}, "invalid_request_error", "too long"),
        ({"message": "late", "code": 524}, "timeout_error", "late"),
        ({"message": "no credit on sk-abcdefgh", "code": 402}, "api_error", "credentials or account"),
        ({"message": "see http://10.0.0.1/x", "code": 500}, "api_error", "see [redacted]"),
        ("boom", "api_error", "boom"),
        ({}, "api_error", "failed"),
        (["x"], "api_error", "failed"),
    ],
)
def test_a_failure_in_the_stream_is_an_error_event(error: Any, kind: str, words: str) -> None:
    """By its kind, cleaned, and with no end made up: what comes after it is passed over."""
    failed = chunk({"content": ""}, "error", error=error)
    out = streamed(ROLE, chunk({"content": "a"}), failed, STOP, used(), DONE)
    *before, last = events_of(out)
    assert [event["type"] for event in before] == ["message_start", "content_block_start", "content_block_delta"]
    assert (last["type"], last["error"]["type"]) == ("error", kind)
    assert words in last["error"]["message"]


def test_a_failure_of_a_choice_is_an_error_event() -> None:
    """Some say it there, or only by the reason."""
    inside = chunk(choices=[{"index": 0, "error": {"message": "boom", "code": 500}}])
    assert kinds(streamed(ROLE, inside, DONE)) == ["message_start", "error"]
    assert kinds(streamed(ROLE, chunk(finish="error"), DONE)) == ["message_start", "error"]


def test_a_failure_of_the_gateway_is_an_error_event() -> None:
    """And the last one."""
    encoder = FRONT.stream(request(stream=True))
    encoder.feed(ROLE)
    out = encoder.failure(UpstreamError("It broke off.", code="upstream_cut"))
    assert out.startswith(b"event: error\ndata: {")
    assert json.loads(out.split(b"data: ")[1])["error"] == {
        "type": "api_error", "message": "It broke off.", "code": "upstream_cut"
    }  # fmt: skip
    assert encoder.finish() == encoder.feed(DONE) == b""
