"""Responses as their provider sends them: passed on byte for byte, and asked for nothing that tenants would share."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.adapters._native_responses import ResponsesStream, guarded
from asgi_llm_gateway.errors import BadRequest, GatewayError, Unsupported, UpstreamError
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.wire import parse

from ..fronts.responses import ROUTE, TOLD, encoded, events_of, raw_stream, request
from ..fronts.test_responses_stream import PLAIN

STREAM = encoded(*PLAIN)  # as legal as any
EVENTS = [one + b"\n\n" for one in STREAM.split(b"\n\n")[:-1]]


def told(kind: str, number: int = 9, **fields: Any) -> bytes:
    """An event of a provider's."""
    data = {"type": kind, "sequence_number": number, **fields}
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def ended(kind: str, usage: Any = TOLD, **fields: Any) -> bytes:
    """A last event."""
    return told(f"response.{kind}", response={"id": "r", "object": "response", "usage": usage, **fields})


# -- what is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [{}, {"store": True}, {"store": False}, {"store": None}])
def test_nothing_is_stored(store: dict[str, Any]) -> None:
    """Whatever was asked; left out, the provider would store it."""
    asked = request(**store)
    body = json.loads(asked.with_fields(**guarded(asked)).body)
    assert body == {"model": "m", "input": "hello", "store": False}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"store":true,"model":"m","input":"a","store":false}',
        b'{"previous_response_id":"resp_of_another","model":"m","input":"a","previous_response_id":null}',
        b'{"model":"m","\\u0073tore":true,"input":"a","store":false}',
        b'{"model":"m","input":[{"role":"user","content":[{"type":"input_file","file_id":"f","file_id":null}]}]}',
        b'{"model":"m","input":"a","tools":[{"type":"file_search","name":"x","type":"function"}]}',
    ],
)
def test_what_was_looked_at_is_what_is_sent(raw: bytes) -> None:
    """A member that stands twice is sent once, as it was read: a provider that takes the first can't be told another thing."""
    asked = parse(ROUTE, raw)
    sent = asked.with_fields(**guarded(asked)).body
    seen: list[str] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        assert len(names) == len(set(names))
        seen.extend(names)
        return dict(pairs)

    body = json.loads(sent, object_pairs_hook=keep)
    assert body["store"] is False
    assert body.get("previous_response_id") is None
    assert b"of_another" not in sent
    assert b"file_search" not in sent


def test_the_rest_goes_on_as_it_is() -> None:
    """Fields that nobody here knows, numbers with all their digits, the order of what a prompt cache reads."""
    asked = parse(ROUTE, b'{"model":"m","tools":[{"type":"function","name":"f"},{"type":"custom","name":"c"}],'
                         b'"new":{"b":1,"a":[1e2,12345678901234567890123]},"input":[{"role":"user","content":0}]}')  # fmt: skip
    sent = asked.with_fields(**guarded(asked)).body
    assert b'"new":{"b":1,"a":[100.0,12345678901234567890123]}' in sent
    assert sent.index(b'"f"') < sent.index(b'"c"')


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "c"}, {"type": "apply_patch"}]},
        {"tools": [{"type": "shell", "environment": {"type": "local"}}, {"type": "local_shell"}, {"type": "computer"}]},
        {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]}]},
        {"input": [{"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}]}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "x", "id": "fco"}]},
        {
            "input": [
                {"id": "msg", "type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}
            ]
        },
        {"input": [{"type": "web_search_call", "id": "ws", "status": "completed", "action": {"type": "search"}}]},
        {"include": ["reasoning.encrypted_content"], "service_tier": "priority", "metadata": {"a": "b"}},
        {"input": None},
    ],
)
def test_what_tenants_do_not_share_passes(fields: dict[str, Any]) -> None:
    """Unchanged."""
    asked = request(**fields) if fields.get("input", "") is not None else parse(ROUTE, b'{"model":"m"}')
    sent = json.loads(asked.with_fields(**guarded(asked)).body)
    assert sent == {**asked.data, "store": False}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"prompt_cache_options": {"comparison_response_id": "resp_1"}}, "prompt_cache_options.comparison_response_id"),
        ({"service_tier": "ultrafast"}, "service_tier"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp", "server_url": "https://x", "authorization": "s"}]}, "tools[0].type"),
        ({"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search_preview_2025_03_11"}]}, "tools[0].type"),
        ({"tools": [{"type": "image_generation"}]}, "tools[0].type"),
        ({"tools": [{"type": "shell"}]}, "tools[0].type"),
        ({"tools": [{"type": "shell", "environment": {"type": "container_reference", "container_id": "c"}}]}, "tools[0].type"),
        ({"tools": [{"type": "of_next_year"}]}, "tools[0].type"),
        ({"tools": [{"type": ["function"]}]}, "tools[0].type"),
        ({"tools": [{"type": "namespace", "tools": [{"type": "mcp"}]}]}, "tools[0].tools[0].type"),
        ({"tools": [{"type": "namespace"}]}, "tools[0].tools"),
        ({"tools": {"type": "mcp"}}, "tools"),
        ({"tools": ["mcp"]}, "tools[0]"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": "a"}, {"id": "msg_1"}]}, "input[1]"),
        ({"input": [{"type": "image_generation_call", "id": "ig_1"}]}, "input[0]"),
        ({"input": [{"type": "additional_tools", "role": "developer", "tools": [{"type": "mcp"}]}]}, "input[0].tools[0].type"),
        ({"input": [{"type": "tool_search_output", "tools": [{"type": "file_search"}]}]}, "input[0].tools[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0].file_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0].file_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "file_id": "f"}]}]},
         "input[0].output[0].file_id"),
        ({"input": [{"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot",
                                                                               "file_id": "f"}}]},
         "input[0].output[0].file_id"),
    ],
)  # fmt: skip
def test_what_tenants_would_share_is_refused(fields: dict[str, Any], param: str) -> None:
    """By name, before anything is sent."""
    with pytest.raises(BadRequest) as caught:
        guarded(request(**fields))
    assert (caught.value.http_status, caught.value.param) == (400, param)


def test_a_refusal_says_what_to_do() -> None:
    """And is of the class that says that the field is at fault."""
    for fields, words in (
        ({"previous_response_id": "r"}, "send the earlier items again, in 'input'"),
        ({"background": True}, "Use 'stream': true"),
        ({"tools": [{"type": "web_search"}]}, "Use tools of type 'function'"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "as 'file_data'"),
    ):
        with pytest.raises(Unsupported, match=words):
            guarded(request(**fields))


SECRETIVE = "key sk-abcdefghij at http://10.1.2.3:80/ of my-host.example"

# -- what comes back ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, len(STREAM)), max_size=10), st.sampled_from([b"\n", b"\r\n"]))
def test_a_stream_passes_byte_for_byte(places: list[int], newline: bytes) -> None:
    """However it is cut; in whole events only, and with its usage."""
    whole = STREAM.replace(b"\n", newline)
    stream = ResponsesStream("openai")
    edges = [0, *sorted(places), len(whole)]
    pieces = [stream.feed(whole[start:end]) for start, end in pairwise(edges)]
    assert b"".join([*pieces, stream.finish()]) == whole
    assert all(not piece or piece.endswith(newline * 2) for piece in pieces)
    assert stream.usage == Usage(30, 12, 10, stream.usage.cache_write if stream.usage else 0, 4)
    assert (stream.ending, stream.complete, stream.failed) == (True, True, False)
    assert stream.events == len(EVENTS)


def test_the_end_is_known_when_the_last_event_was_fed() -> None:
    """Then the money is settled, and the event goes on after that."""
    stream = ResponsesStream("openai")
    for one in EVENTS[:-1]:
        assert stream.feed(one) == one
        assert not stream.ending
    assert stream.feed(EVENTS[-1]) == EVENTS[-1]
    assert stream.ending


@pytest.mark.parametrize(
    ("last", "failed", "usage"),
    [
        (ended("completed"), False, True),
        (ended("incomplete"), False, True),
        (ended("failed", error={"code": "server_error", "message": "m"}), True, True),
        (ended("failed", None, error={"code": "server_error", "message": "m"}), True, False),
    ],
)
def test_each_last_event_is_an_end(last: bytes, failed: bool, usage: bool) -> None:
    """With the usage that it tells."""
    stream = ResponsesStream("openai")
    assert stream.feed(last) == last
    assert (stream.complete, stream.failed, stream.usage is not None) == (True, failed, usage)


@pytest.mark.parametrize(
    "noise",
    [
        told("response.output_text.delta", delta='say "response.completed" and "error": {"usage": {}}'),
        told(
            "response.created",
            response={"error": None, "tools": [{"parameters": {"properties": {"error": {"type": "x"}}}}]},
        ),
        told(
            "response.output_item.done",
            item={"type": "function_call", "status": "completed", "arguments": '{"error":1}'},
        ),
        told("response.new_kind_of_event", anything=[1, 2]),
        told("response.output_text.delta", delta="x", obfuscation="response.failed"),
        b": ping\n\n",
        b"event: response.completed\ndata: {half\n\n",
        b'data: ["response.completed"]\n\n',
    ],
)
def test_what_only_looks_like_the_end_is_none(noise: bytes) -> None:
    """It passes unchanged."""
    stream = ResponsesStream("openai")
    assert stream.feed(noise) == noise
    assert (stream.ending, stream.complete, stream.failed, stream.usage) == (False, False, False, None)


@pytest.mark.parametrize("at", range(1, len(EVENTS)))
def test_a_stream_that_breaks_off_has_no_end(at: int) -> None:
    """It is told as one error with the next number, which the SDK raises; what was made is estimated."""
    stream = ResponsesStream("openai")
    out = b"".join([stream.feed(one) for one in EVENTS[:at]]) + stream.feed(EVENTS[at][:-3]) + stream.finish()
    assert not stream.complete
    assert stream.usage is None
    assert (stream.tokens("gpt-5") > 0) == (b"output_text.delta" in out)
    out += stream.failure(UpstreamError("it broke off", code="upstream_cut"))
    assert events_of(out)[-1]["code"] == "upstream_cut"
    with pytest.raises(openai.APIError, match="it broke off"):
        list(raw_stream(out))


def test_a_last_event_without_its_blank_line_counts() -> None:
    """It goes on with one; half of it does not."""
    stream = ResponsesStream("openai")
    assert stream.feed(STREAM[:-2]) + stream.finish() == STREAM
    assert stream.complete
    stream = ResponsesStream("openai")
    assert stream.feed(STREAM[:-9]) + stream.finish() == b"".join(EVENTS[:-1])
    assert not stream.complete


def test_an_error_event_is_a_failure_but_not_yet_the_end() -> None:
    """``response.failed`` may follow it, with the usage."""
    stream = ResponsesStream("openai")
    error = told("error", code="server_error", message="boom", param=None)
    assert stream.feed(error) == error
    assert (stream.failed, stream.ending, stream.complete) == (True, False, False)
    stream.feed(ended("failed"))
    assert (stream.ending, stream.usage is not None) == (True, True)


@pytest.mark.parametrize(
    "event",
    [
        told("error", code="x", message=SECRETIVE),
        told("error", error={"message": SECRETIVE}),
        ended("failed", error={"code": "server_error", "message": SECRETIVE}),
        f'data: {{"error":{{"message":"{SECRETIVE}"}}}}\n\n'.encode(),
    ],
)  # fmt: skip
def test_an_errors_words_tell_no_secret(event: bytes) -> None:
    """All else of the event stays."""
    stream = ResponsesStream("openai", ("my-host.example",))
    out = stream.feed(event)
    assert stream.failed
    for secret in (b"sk-abc", b"10.1.2.3", b"my-host"):
        assert secret not in out
    before = json.loads(event.split(b"data: ")[1])
    after = json.loads(out.split(b"data: ")[1])
    assert before.keys() == after.keys()


def test_an_event_without_an_end_is_given_up_on() -> None:
    """At the limit of the splitter."""
    stream = ResponsesStream("openai")
    for _ in range(7):
        assert stream.feed(b"data: " + b"x" * 1024 * 1024) == b""
    with pytest.raises(UpstreamError, match="without an end"):
        stream.feed(b"x" * 2 * 1024 * 1024)


NAMES = st.sampled_from(
    ["type", "response", "usage", "error", "message", "code", "input_tokens", "output_tokens", "delta"]
)
ANYTHING = st.recursive(
    st.none() | st.integers(-3, 10) | st.sampled_from(["response.completed", "response.failed", "error", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from([b"", b"event: error\n", b"event: response.completed\n"]), ANYTHING), max_size=5)
)
def test_a_senseless_stream_passes(events: list[tuple[bytes, Any]]) -> None:
    """Without an exception."""
    whole = b"".join([name + b"data: " + json.dumps(value).encode() + b"\n\n" for name, value in events])
    stream = ResponsesStream("openai")
    assert stream.feed(whole) + stream.finish() == whole


@given(ANYTHING, ANYTHING)
def test_a_senseless_request_is_taken_or_refused(items: Any, tools: Any) -> None:
    """Never with a traceback."""
    try:
        guarded(request(input=[items], tools=tools))
    except GatewayError as error:
        refusal = error
        assert refusal.http_status == 400
