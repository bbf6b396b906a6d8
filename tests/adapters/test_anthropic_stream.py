"""Anthropic's streams in OpenAI's words: however cut, with whatever in them, and however they end."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from asgi_llm_gateway.adapters._anthropic_stream import AnthropicStream
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import StreamDecoder
from asgi_llm_gateway.errors import UpstreamError
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.usage import with_cost
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

from ..upstream import DONE

ADAPTER = AnthropicAdapter("anthropic", "https://api.example.com", "sk-ant-abcdefghijklmnop")
TOLD = {"input_tokens": 25, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 10, "output_tokens": 1}


def request(*, usage: bool = False, **fields: Any) -> LLMRequest:
    """A streaming request; ``usage`` asks for the usage event."""
    told: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}], "stream": True, **fields}
    if usage:
        told["stream_options"] = {"include_usage": True}
    return parse(Route("metered", METERED["/v1/chat/completions"], "/v1/chat/completions"), json.dumps(told).encode())


def event(type: str, newline: str = "\n", **fields: Any) -> bytes:
    """An event as the provider sends it."""
    return f"event: {type}{newline}data: {json.dumps({'type': type, **fields})}{newline}{newline}".encode()


def start(**usage: Any) -> bytes:
    """The first event."""
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [],
               "stop_reason": None, "usage": usage or TOLD}  # fmt: skip
    return event("message_start", message=message)


def block(index: int, type: str, *deltas: dict[str, Any], stop: bool = True, **fields: Any) -> bytes:
    """A whole block."""
    opened = event("content_block_start", index=index, content_block={"type": type, **fields})
    pieces = [event("content_block_delta", index=index, delta=delta) for delta in deltas]
    return b"".join([opened, *pieces, event("content_block_stop", index=index) if stop else b""])


def words(index: int, *texts: str) -> bytes:
    """A block of text."""
    return block(index, "text", *({"type": "text_delta", "text": text} for text in texts), text="")


def use(index: int, name: str, *pieces: str, stop: bool = True, input: Any = None) -> bytes:
    """A call."""
    deltas = ({"type": "input_json_delta", "partial_json": piece} for piece in pieces)
    return block(index, "tool_use", *deltas, stop=stop, id=f"toolu_{index}", name=name, input=input or {})


def thought(index: int, *texts: str, signature: str = "sig") -> bytes:
    """A block of thinking."""
    deltas: list[dict[str, Any]] = [{"type": "thinking_delta", "thinking": text} for text in texts]
    return block(
        index, "thinking", *deltas, {"type": "signature_delta", "signature": signature}, thinking="", signature=""
    )


def delta(reason: str | None = "end_turn", output: int | None = 7, **more: Any) -> bytes:
    """The news of the end."""
    usage: dict[str, Any] = {} if output is None else {"usage": {"output_tokens": output}}
    return event("message_delta", delta={"stop_reason": reason, **more}, **usage)


STOP = event("message_stop")
PING = event("ping")


def read(*said: bytes, size: int | None = None, **fields: Any) -> tuple[list[Any], AnthropicStream]:
    """The chunks that a stream becomes; ``[DONE]`` among them."""
    stream = ADAPTER.stream(request(**fields))
    assert isinstance(stream, AnthropicStream)
    whole = b"".join(said)
    step = size or len(whole) or 1
    out = b"".join(stream.feed(whole[at : at + step]) for at in range(0, len(whole), step)) + stream.finish()
    return chunks(out), stream


def chunks(out: bytes) -> list[Any]:
    """Events of an OpenAI stream; each is one ``data:`` line. Signs of life, which are comments, are passed over."""
    assert out == b"" or out.endswith(b"\n\n")
    lines = [line for line in out.decode().split("\n\n")[:-1] if line != ": ping"]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def deltas(found: list[Any]) -> list[Any]:
    """What the chunks add, in order."""
    return [chunk["choices"][0]["delta"] for chunk in found if chunk != "[DONE]" and chunk.get("choices")]


def reason(found: list[Any]) -> list[str]:
    """Why the answer ended, as often as it is told."""
    told = [chunk["choices"][0]["finish_reason"] for chunk in found if chunk != "[DONE]" and chunk.get("choices")]
    return [one for one in told if one is not None]


def calls(found: list[Any]) -> dict[int, tuple[str, str, str]]:
    """The calls as a client puts them together: by their index, from what each delta adds."""
    put: dict[int, tuple[str, str, str]] = {}
    for one in deltas(found):
        for piece in one.get("tool_calls", ()):
            id, name, arguments = put.get(piece["index"], ("", "", ""))
            function = piece["function"]
            put[piece["index"]] = (
                id + piece.get("id", ""),
                name + function.get("name", ""),
                arguments + function.get("arguments", ""),
            )
    return put


def test_a_stream_of_text() -> None:
    """Role, words, reason, end; one id; usage only where it was asked for."""
    stream: StreamDecoder = ADAPTER.stream(request())
    assert isinstance(stream, AnthropicStream)
    found, stream = read(start(), words(0, "Hel", "lo"), delta(), STOP)
    assert deltas(found) == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert (reason(found), found[-1]) == (["stop"], "[DONE]")
    assert {(chunk["id"], chunk["model"], chunk["object"]) for chunk in found[:-1]} == {
        ("msg_1", "claude-x", "chat.completion.chunk")
    }
    assert not any("usage" in chunk for chunk in found[:-1])
    assert stream.usage == Usage(135, 7, 100, 10)
    assert (stream.complete, stream.ending, stream.failed) == (True, True, False)


def test_usage_is_told_where_it_was_asked_for() -> None:
    """Before ``[DONE]``, without choices; every earlier chunk has a null."""
    found, _ = read(start(), words(0, "a"), delta(), STOP, usage=True)
    *before, last, done = found
    assert (done, last["choices"]) == ("[DONE]", [])
    assert last["usage"] == {
        "prompt_tokens": 135,
        "completion_tokens": 7,
        "total_tokens": 142,
        "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 10},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert all(chunk["usage"] is None for chunk in before)


def test_the_gateways_cost_finds_its_place() -> None:
    """Beside the usage, in the same piece that settles the money."""
    stream = ADAPTER.stream(request(usage=True))
    stream.feed(start() + words(0, "a") + delta())
    assert not stream.ending
    out = stream.feed(STOP)
    assert stream.ending
    assert chunks(with_cost(out, 1_000))[-2]["cost_usd"] == pytest.approx(1e-6)


def test_the_official_client_reads_each_chunk() -> None:
    """With its typed model."""
    found, _ = read(
        start(), thought(0, "hm"), words(1, "a"), use(2, "look", '{"a":', "1}"), delta("tool_use"), STOP, usage=True
    )
    for chunk in found[:-1]:
        ChatCompletionChunk.model_validate(chunk, strict=True)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"),
        ("model_context_window_exceeded", "length"), ("pause_turn", "length"), ("compaction", "length"),
        ("refusal", "content_filter"), ("something_new", "stop"),
    ],
)  # fmt: skip
def test_a_reason_in_openais_words(told: str, expected: str) -> None:
    """Once, and never a word that clients do not know."""
    assert reason(read(start(), words(0, "a"), delta(told), STOP)[0]) == [expected]


def test_a_refusal_says_why() -> None:
    """Where the provider does."""
    details = {"type": "refusal", "category": "bio", "explanation": "No."}
    found, _ = read(start(), words(0, "a"), delta("refusal", stop_details=details), STOP)
    assert deltas(found)[-2:] == [{"refusal": "No."}, {}]
    assert reason(found) == ["content_filter"]


def test_signs_of_life_go_on_as_comments() -> None:
    """Also before the first event and while the model thinks; none is an event, and none comes after the end."""
    stream = ADAPTER.stream(request())
    assert (stream.feed(PING + b"event: ping\n\n"), stream.events) == (b": ping\n\n", 0)
    stream.feed(start() + words(0, "a"))
    before = stream.events
    assert (stream.feed(PING), stream.events) == (b": ping\n\n", before)
    assert stream.feed(delta() + STOP).endswith(DONE)
    assert stream.feed(PING) == b""


# -- however it is cut -------------------------------------------------------------------------------------------------

FULL = (
    start()
    + PING
    + thought(0, "hm ", "ü")
    + words(1, "Hello", " wörld", "\n\n")
    + use(2, "look", "", '{"city": "K', 'öln"}')
    + PING
    + use(3, "now", "")
    + event("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 3})
    + delta("tool_use", 30)
    + STOP
)
CRLF = FULL.replace(b"\n", b"\r\n")


def undated(found: list[Any]) -> list[Any]:
    """Chunks without the second at which they were made."""
    return [chunk if chunk == "[DONE]" else {**chunk, "created": 0} for chunk in found]


@pytest.mark.parametrize("said", [FULL, CRLF])
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_stream_reads_the_same_however_it_is_cut(said: bytes, size: int) -> None:
    """The same events and the same usage, byte by byte or in one piece, with any line ending."""
    whole, before = read(FULL, usage=True)
    found, stream = read(said, size=size, usage=True)
    assert undated(found) == undated(whole)
    assert (stream.usage, stream.events) == (before.usage, before.events)
    assert (stream.complete, stream.failed) == (True, False)
    assert stream.usage == Usage(135, 30, 100, 10)


@given(st.lists(st.integers(0, len(FULL)), max_size=12), st.booleans())
def test_a_stream_reads_the_same_wherever_it_is_cut(places: list[int], crlf: bool) -> None:
    """Any places at all."""
    said = CRLF if crlf else FULL
    stream = ADAPTER.stream(request(usage=True))
    edges = [0, *sorted(places), len(said)]
    out = b"".join([stream.feed(said[a:b]) for a, b in pairwise(edges)])
    assert undated(chunks(out + stream.finish())) == undated(read(FULL, usage=True)[0])


@given(st.integers(0, len(FULL)))
def test_a_stream_that_breaks_off_is_never_whole(place: int) -> None:
    """No ``[DONE]``, unless all that matters has come; and nothing is for free."""
    stream = ADAPTER.stream(request(usage=True))
    out = stream.feed(FULL[:place])
    used = stream.usage
    out += stream.finish()
    # The last blank line, and the last event of all, may be missing: the answer has said why it ended.
    known = FULL.index(b"message_stop") - len("event: ")
    assert (
        stream.complete is out.endswith(DONE) is (place in (known - 1, known, len(FULL) - 2, len(FULL) - 1, len(FULL)))
    )
    if place >= len(start()):
        assert used is not None
        assert used.prompt == 135
        assert used.completion >= 1
        assert used.estimated is (place < known)


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


# -- usage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [
        ({"input_tokens": 5, "output_tokens": 1}, [{"output_tokens": 4}, {"output_tokens": 9}], Usage(5, 9)),
        ({"input_tokens": 5, "output_tokens": 1}, [{"input_tokens": 5, "output_tokens": 9}], Usage(5, 9)),
        ({"input_tokens": 0, "output_tokens": 0}, [{"input_tokens": 5, "output_tokens": 9}], Usage(5, 9)),
        ({"input_tokens": 5, "output_tokens": 1}, [{"input_tokens": 0, "output_tokens": 9}], Usage(5, 9)),
        ({"input_tokens": 5, "output_tokens": 1}, [{"input_tokens": None, "output_tokens": 9}], Usage(5, 9)),
        ({"input_tokens": 5, "cache_read_input_tokens": 20, "output_tokens": 1}, [{"output_tokens": 9}],
         Usage(25, 9, 20)),
        ({"input_tokens": 25, "cache_read_input_tokens": 0, "output_tokens": 1},
         [{"input_tokens": 5, "cache_read_input_tokens": 20, "output_tokens": 9}], Usage(25, 9, 20)),
        ({"input_tokens": 5, "cache_creation_input_tokens": 3, "output_tokens": 1},
         [{"output_tokens": 9, "output_tokens_details": {"thinking_tokens": 6}}], Usage(8, 9, 0, 3, 6)),
        ({"input_tokens": 5, "output_tokens": 1}, [{"output_tokens": 9, "iterations": [
            {"input_tokens": 5, "output_tokens": 9}, {"input_tokens": 7, "output_tokens": 2}]}], Usage(12, 11)),
    ],
)  # fmt: skip
def test_counts_are_cumulative(first: dict[str, Any], later: list[dict[str, Any]], expected: Usage) -> None:
    """The latest holds; they are never added up, and none is lost that a later event leaves out."""
    news = [event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage) for usage in later]
    found, stream = read(start(**first), words(0, "a"), *news, STOP, usage=True)
    assert stream.usage == expected
    assert found[-2]["usage"]["total_tokens"] == expected.total
    assert len(reason(found)) == 1


def test_what_was_made_until_a_cut_is_paid_for() -> None:
    """The first event counts one token: the words say more. Without any counts it is all estimated elsewhere."""
    text = "many different words " * 20
    stream = ADAPTER.stream(request())
    stream.feed(start() + words(0, *([text] * 5)))
    assert stream.usage is not None
    assert (stream.usage.prompt, stream.usage.estimated) == (135, True)
    assert stream.usage.completion == stream.tokens() > 250
    for said in (
        words(0, text),
        event("message_start", message={}) + words(0, text),
        event("message_start", message=None),
    ):
        stream = ADAPTER.stream(request())
        stream.feed(said)
        assert stream.usage is None


def test_an_end_without_counts_is_estimated() -> None:
    """The provider told of the prompt only."""
    for said in (delta(output=None) + STOP, STOP):
        _, stream = read(start(), words(0, "some words are here"), said)
        assert stream.complete
        assert stream.usage is not None
        assert (stream.usage.estimated, stream.usage.completion > 1) == (True, True)


# -- what is strange, and what is wrong --------------------------------------------------------------------------------


def test_what_is_not_known_is_passed_over() -> None:
    """Events, deltas and blocks that are new, tools of the provider's own, pings, comments, events without data."""
    found, stream = read(
        b": hello\n\n", PING, start(), b"event: ping\n\n", b"data:\n\n", event("something_new", index=0, delta={"text": "x"}),
        block(0, "server_tool_use", {"type": "input_json_delta", "partial_json": "{}"}, name="x", id="y", input={}),
        block(1, "web_search_tool_result", content=[]),
        block(2, "text", {"type": "citations_delta", "citation": {}}, {"type": "new_delta", "text": "x"},
              {"type": "text_delta", "text": ""}, {"type": "text_delta", "text": "a"}, {"type": "text_delta"}, text=""),
        event("content_block_delta", index=9, delta={"type": "input_json_delta", "partial_json": "x"}),
        event("content_block_delta"), event("content_block_start"), event("content_block_stop"), event("message_delta"),
        event("content_block_delta", index=[], delta=[]), b'data: {"type": []}\n\n', b'data: {}\n\n',
        delta(), STOP, words(3, "late"), STOP,
    )  # fmt: skip
    assert deltas(found)[1:] == [{"content": "a"}, {}]
    assert (found.count("[DONE]"), stream.complete) == (1, True)


def test_text_in_a_blocks_start_is_not_lost() -> None:
    """Servers that are only like Anthropic's send some there."""
    found, _ = read(start(), block(0, "thinking", thinking="t"), block(1, "text", text="a"), delta(), STOP)
    assert deltas(found)[1:-1] == [{"reasoning_content": "t"}, {"content": "a"}]


@pytest.mark.parametrize(
    "said", [b"data: {\n\n", b"data: nonsense\n\n", b"data: [1]\n\n", b"data: \xff\n\n", b"data: 7\n\n"]
)
def test_a_broken_event_is_an_upstream_error(said: bytes) -> None:
    """A piece may be missing: to go on would be to lose it in silence."""
    stream = ADAPTER.stream(request())
    stream.feed(start() + words(0, "a"))
    with pytest.raises(UpstreamError, match="not JSON"):
        stream.feed(said)
    assert not stream.complete


def test_a_stream_begins_once() -> None:
    """Also where the provider begins anew."""
    found, stream = read(start(), start(input_tokens=9, output_tokens=1), words(0, "a"), delta(), STOP)
    assert [one.get("role") for one in deltas(found)] == ["assistant", None, None]
    assert stream.usage is not None


def test_a_call_that_is_nested_too_deeply_is_an_upstream_error() -> None:
    """Not an exception of ours, neither then nor at the end."""
    said = use(0, "f", input={"a": 0}, stop=False).replace(b'"a": 0', b'"a": ' + b"[" * 400 + b"]" * 400)
    stream = ADAPTER.stream(request())
    with pytest.raises(UpstreamError, match="deeply"):
        stream.feed(start() + said)
    assert stream.finish() == b""


def test_an_event_without_an_end_is_given_up_on() -> None:
    """After 8 MiB."""
    stream = ADAPTER.stream(request())
    for _ in range(128):
        assert stream.feed(b"x" * 65536) == b""
    with pytest.raises(UpstreamError, match="without an end"):
        stream.feed(b"x")


@pytest.mark.parametrize(
    ("kind", "code", "type"),
    [
        ("overloaded_error", "upstream_unavailable", "upstream_error"),
        ("api_error", "upstream_error", "upstream_error"),
        ("rate_limit_error", "upstream_rate_limited", "rate_limit_error"),
        ("authentication_error", "upstream_auth", "upstream_error"),
        ("billing_error", "upstream_auth", "upstream_error"),
        ("timeout_error", "upstream_timeout", "upstream_error"),
        ("something_new", "upstream_error", "upstream_error"),
        (None, "upstream_error", "upstream_error"),
    ],
)
def test_an_error_amid_the_stream_is_told_as_one(kind: Any, code: str, type: str) -> None:
    """In OpenAI's shape, cleaned, with no end after it: not a normal finish, and not swallowed."""
    said = event(
        "error", error={"type": kind, "message": "Overloaded at https://internal.example with sk-ant-abcdefgh1234"}
    )
    found, stream = read(start(), words(0, "a"), said, words(1, "late"), delta(), STOP)
    assert (found[-1]["error"]["code"], found[-1]["error"]["type"]) == (code, type)
    assert "sk-ant" not in str(found)
    assert "internal" not in str(found)
    assert not reason(found)
    assert (stream.failed, stream.ending, stream.complete) == (True, True, False)
    assert stream.usage is not None
    assert stream.usage.estimated


@pytest.mark.parametrize(
    ("said", "complete"),
    [
        ((delta(), STOP), True),
        ((delta(), STOP[:-1]), True),
        ((delta(), STOP[:-2]), True),
        ((delta(),), True),
        ((delta()[:-2],), True),
        ((delta(), STOP[:-5]), False),
        ((delta()[:-5],), False),
        ((delta(None),), False),
        ((STOP,), True),
        ((), False),
    ],
)
def test_a_stream_is_complete_only_if_it_said_so(said: tuple[bytes, ...], complete: bool) -> None:
    """Its last event, also without the blank line, or the reason of its end and nothing half after it."""
    found, stream = read(start(), words(0, "a"), *said)
    assert stream.complete is complete
    assert (found[-1] == "[DONE]") is complete
    assert len(reason(found)) == complete
