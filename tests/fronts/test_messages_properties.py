"""What holds of every stream and of every conversation: the official SDK reads the one, Anthropic could read the other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import UpstreamRequest
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.adapters.translated import Translated, speaking
from asgi_llm_gateway.errors import BadRequest, UpstreamError
from asgi_llm_gateway.wire import METERED, Route, parse

from .messages_parts import (
    DONE,
    FRONT,
    PNG,
    answered,
    call,
    check_order,
    chunk,
    completion,
    content_of,
    events_of,
    read,
    request,
    text,
    use,
    used,
    user,
)

WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
INPUTS = st.dictionaries(WORDS, VALUES, max_size=3)


@st.composite
def pieces_of(draw: Callable[..., Any], whole: str) -> list[str]:
    """A text cut into pieces, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@st.composite
def chat_streams(draw: Callable[..., Any]) -> tuple[list[bytes], list[Any], tuple[int, int] | None]:
    """The events of a legal chat stream, what it says, and what it used: thoughts, text, then calls, mixed or not."""
    events = [chunk({"role": "assistant", "content": draw(st.sampled_from(["", None]))})]
    said: list[Any] = []
    for kind, name in (("thinking", "reasoning_content"), ("text", "content")):
        words = "".join(draw(st.lists(WORDS, max_size=3)))
        events += [chunk({name: piece}) for piece in draw(pieces_of(words)) if piece]
        if words.strip():
            said.append(words if kind == "text" else ("thinking", words))
    inputs = draw(st.lists(INPUTS, max_size=3))
    rows = []
    for index, wanted in enumerate(inputs):
        whole = json.dumps(wanted, ensure_ascii=draw(st.booleans())) if wanted or draw(st.booleans()) else ""
        opener = call(index, f"call_{index}", f"tool_{index}", "")
        rows.append([opener, *(call(index, arguments=piece) for piece in draw(pieces_of(whole)))])
        said.append((f"tool_{index}", wanted))
    if draw(st.booleans()):  # one after the other, as OpenAI does
        events += [event for row in rows for event in row]
    else:  # mixed; the openers keep their order
        turns = [at for at, row in enumerate(rows) for _ in row[1:]]
        events += [row[0] for row in rows] + [rows[at].pop(1) for at in draw(st.permutations(turns))]
    finish = "tool_calls" if inputs else draw(st.sampled_from(["stop", "length"]))
    usage = draw(st.none() | st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)))
    if draw(st.booleans()) and len(events) > 1:  # the reason comes with the last piece
        last = json.loads(events.pop()[6:])
        last["choices"][0]["finish_reason"] = finish
        events.append(b"data: " + json.dumps(last).encode() + b"\n\n")
    else:
        events.append(chunk(finish=finish))
    if usage is not None:
        events.append(used(*usage))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(events)))
        events.insert(at, b": keep-alive\n\n")
    return [*events, DONE], said, usage


@settings(max_examples=300, deadline=None)
@given(chat_streams(), st.data())
def test_every_stream_is_read_by_the_sdk(stream: Any, data: st.DataObject) -> None:
    """However it is cut, through the adapter and the front: the same texts, thoughts, calls and counts."""
    events, said, usage = stream
    asked = request(stream=True, thinking={"type": "adaptive"})
    adapter = Translated(OpenAIAdapter("openai", "https://api.example.com/v1", "k"), FRONT, "messages")
    adapter.request(asked, "gpt-x")
    decoder = adapter.stream(asked)
    whole = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    out = b"".join(decoder.feed(whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True))
    out += decoder.finish()
    message = read(out)
    assert content_of(message) == said
    assert decoder.complete
    if usage is not None:
        assert (message.usage.input_tokens, message.usage.output_tokens) == usage
    reason = "tool_use" if any(type(one) is tuple and one[0] != "thinking" for one in said) else message.stop_reason
    assert message.stop_reason == reason
    assert message.stop_reason in ("end_turn", "max_tokens", "tool_use")


@settings(max_examples=150, deadline=None)
@given(chat_streams(), st.data())
def test_every_beginning_of_a_stream_is_in_order(stream: Any, data: st.DataObject) -> None:
    """What went out before a cut is the beginning of a legal stream: an end can be put to it, and none is made up."""
    events, _, _ = stream
    encoder = FRONT.stream(request(stream=True))
    last = next(at for at, event in enumerate(events) if b'"finish_reason": "' in event)
    out = b"".join(encoder.feed(event) for event in events[: data.draw(st.integers(0, last))])
    found = events_of(out)
    assert not [event for event in found if event["type"] in ("message_delta", "message_stop")]
    out += encoder.finish()
    check_order(events_of(out))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=40) | st.sampled_from([b"[DONE]", b"{}", b'{"choices":[{"delta":{"content":"a"}}]}']))
)
def test_whatever_comes_nothing_is_raised(lines: list[bytes]) -> None:
    """Bytes that are no chat stream: what can't be read is passed over, and the stream is in order."""
    encoder = FRONT.stream(request(stream=True))
    out = b"".join(encoder.feed(b"data: " + line.replace(b"\n", b"").replace(b"\r", b"") + b"\n\n") for line in lines)
    check_order(events_of(out + encoder.finish()))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "message", "content", "tool_calls", "function", "name", "arguments", "id", "index",
             "finish_reason", "usage", "error", "refusal", "reasoning", "type", "text", "thinking", "prompt_tokens"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(JUNK, JUNK, JUNK)
def test_whatever_a_chunk_holds_nothing_is_raised(delta: Any, whole: Any, calls: Any) -> None:
    """Any JSON in any place: the stream ends in order or with an error event."""
    encoder = FRONT.stream(request(stream=True))
    out = b""
    for told in ({"choices": [{"delta": delta}]}, whole, {"choices": [{"delta": {"tool_calls": calls}}]}):
        out += encoder.feed(b"data: " + json.dumps(told).encode() + b"\n\n")
    found = events_of(out + encoder.finish())
    if found[-1]["type"] != "error":
        check_order(found)


@settings(max_examples=300, deadline=None)
@given(JUNK)
def test_whatever_an_answer_holds_it_is_one_or_the_providers_fault(message: Any) -> None:
    """Any JSON as a message: a valid answer, or an error of the gateway's tree."""
    with contextlib.suppress(UpstreamError):
        answered(json.dumps({"choices": [{"message": message}]}).encode())


_FIELDS = ("system", "tools", "tool_choice", "thinking", "output_config", "output_format", "metadata", "service_tier",
           "stop_sequences", "temperature", "top_p", "context_management", "mcp_servers", "container")  # fmt: skip
_BLOCK = st.dictionaries(
    st.sampled_from(["type", "text", "source", "content", "id", "name", "input", "tool_use_id", "is_error", "title",
                     "data", "media_type", "url", "cache_control", "effort", "format", "schema", "edits", "strict"]),
    st.sampled_from(["text", "image", "document", "tool_use", "tool_result", "thinking", "base64", "url", "content",
                     "search_result", "json_schema", "enabled", "auto", "tool", "custom"]) | JUNK,
    max_size=6,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(_FIELDS), _BLOCK | st.lists(_BLOCK, max_size=2) | JUNK, max_size=3),
       st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.lists(_BLOCK, max_size=3) | WORDS)))  # fmt: skip
def test_whatever_a_request_holds_it_is_written_or_refused(fields: Any, messages: Any) -> None:
    """Any JSON in any field: a body that can be written, or a 400 that names a field."""
    given = [{"role": "user", "content": "a"}, *({"role": role, "content": content} for role, content in messages)]
    asked, refused = request(**fields, messages=given), None
    try:
        told = FRONT.request(asked).data
    except BadRequest as error:
        refused = error
    if refused is not None:
        assert refused.param
    else:
        assert json.loads(json.dumps(told))["messages"]


@given(WORDS, st.lists(INPUTS, max_size=3), st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_every_whole_answer_is_valid(words: str, inputs: list[Any], prompt: int, cached: int, written: int) -> None:
    """The SDK's own types take it; what it says and counts is what the provider said and counted."""
    calls = [
        {"id": f"c{at}", "type": "function", "function": {"name": "t", "arguments": json.dumps(one)}}
        for at, one in enumerate(inputs)
    ]
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    usage = {"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": 1, "prompt_tokens_details": details}
    message = answered(completion({"content": words, "tool_calls": calls}, usage=usage))
    wanted: list[Any] = [words] if words.strip() else []
    assert content_of(message) == wanted + [("t", one) for one in inputs]
    assert message.usage.input_tokens == max(0, prompt - cached - written)


# -- there and back ----------------------------------------------------------------------------------------------------

_TEXT = WORDS.filter(lambda words: bool(words.strip()))
_PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}


@st.composite
def conversations(draw: Callable[..., Any]) -> list[Any]:
    """Turns of text, images, and loops of calls with their results."""
    messages: list[Any] = [user(text(draw(_TEXT)), *draw(st.lists(st.just(_PICTURE), max_size=2)))]
    for number in range(draw(st.integers(0, 3))):
        inputs = draw(st.lists(INPUTS, min_size=1, max_size=3))
        said = draw(st.lists(_TEXT.map(text), max_size=1))
        uses = [use(f"t{number}_{at}", f"tool_{at}", **{f"k{name}": inner for name, inner in one.items()})
                for at, one in enumerate(inputs)]  # fmt: skip
        messages.append({"role": "assistant", "content": [*said, *uses]})
        results = [
            {"type": "tool_result", "tool_use_id": one["id"], "content": draw(_TEXT), "is_error": False} for one in uses
        ]
        messages.append(user(*results, *draw(st.lists(_TEXT.map(text), max_size=1))))
    return messages


def back(sent: dict[str, Any]) -> Any:
    """A chat request as the Anthropic adapter writes it."""
    path = "/v1/chat/completions"
    told = parse(Route("metered", METERED[path], path), json.dumps(sent).encode())
    written = AnthropicAdapter("anthropic", "https://api.example.com").request(told, "claude-sonnet-4-5")
    assert isinstance(written, UpstreamRequest)
    return json.loads(written.body)


def plain(messages: list[Any]) -> list[Any]:
    """Messages without what is the same with or without: a flag that says no."""
    return [
        {
            "role": message["role"],
            "content": [{n: v for n, v in block.items() if n != "is_error"} for block in message["content"]],
        }
        for message in messages
    ]


@settings(max_examples=150, deadline=None)
@given(conversations())
def test_a_conversation_comes_back_as_it_went(messages: list[Any]) -> None:
    """Into chat's words and out of them by the Anthropic adapter: the same turns, blocks, ids and inputs."""
    tools = [{"name": f"tool_{at}", "input_schema": {"type": "object", "properties": {}}} for at in range(3)]
    told = FRONT.request(request(messages=messages, tools=tools, system="Be brief.", stop_sequences=["END"]))
    returned = back(told.data)
    assert plain(returned["messages"]) == plain(messages)
    assert returned["system"] == [text("Be brief.")]
    assert returned["tools"] == tools
    assert (returned["max_tokens"], returned["stop_sequences"]) == (64, ["END"])
    assert told.dropped == ()


@pytest.mark.parametrize("kind", ["auto", "any", "none"])
def test_a_choice_comes_back_as_it_went(kind: str) -> None:
    """Each kind, and one call at a time."""
    tools = [{"name": "a", "input_schema": {"type": "object", "properties": {}}}]
    choice = {"type": kind} if kind == "none" else {"type": kind, "disable_parallel_tool_use": True}
    assert back(FRONT.request(request(tools=tools, tool_choice=choice)).data)["tool_choice"] == choice


def test_the_front_stands_before_every_provider_that_lacks_the_dialect() -> None:
    """A provider without Messages is asked for chat, with what was left out told beside what it leaves out itself."""
    adapter = speaking(OpenAIAdapter("openai", "https://api.example.com/v1", "k"), "messages")
    assert isinstance(adapter, Translated)
    sent = adapter.request(request(top_k=5), "gpt-4o")
    assert isinstance(sent, UpstreamRequest)
    assert sent.endpoint.url == "https://api.example.com/v1/chat/completions"
    told = json.loads(sent.body)
    assert told["messages"] == [{"role": "user", "content": "hello"}]
    assert (told["max_completion_tokens"], "max_tokens" in told) == (64, False)  # as OpenAI calls it
    assert sent.dropped == ("top_k",)
