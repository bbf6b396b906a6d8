"""A stream in OpenAI's dialect: what goes on unchanged, what is kept back, and when it is whole."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.openai import OpenAIAdapter, OpenAIStream
from asgi_llm_gateway.adapters.vendors import adapter_of
from asgi_llm_gateway.errors import UpstreamError
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.wire import Route, parse

from ..upstream import DONE, USAGE, event, usage_event, word

CHAT = Route("metered", "chat", "/v1/chat/completions")


def read(*pieces: bytes, drop: bool = True) -> tuple[bytes, OpenAIStream]:
    """Feed all of a stream."""
    stream = OpenAIStream("openai", drop_usage=drop)
    return b"".join([*(stream.feed(piece) for piece in pieces), stream.finish()]), stream


def test_only_the_usage_event_is_dropped() -> None:
    """Where the client did not ask for it, and only if it holds nothing else."""
    said = (word("a"), word("b", "stop"), usage_event(), DONE)
    assert read(*said)[0] == said[0] + said[1] + said[3]
    assert read(b"".join(said))[0] == said[0] + said[1] + said[3]
    assert read(*said, drop=False)[0] == b"".join(said)


def test_the_last_usage_counts() -> None:
    """Some vendors report a running total on every chunk."""
    running = [
        event({"choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": 3, "completion_tokens": at}})
        for at in range(4)
    ]
    out, stream = read(*running, word("", "stop"), DONE)
    assert out == b"".join([*running, word("", "stop"), DONE])
    assert stream.usage == Usage(3, 3)


def test_usage_is_news_and_content_is_not() -> None:
    """``ending`` comes with the usage or with the end, before the bytes go on."""
    stream = OpenAIStream("openai", drop_usage=True)
    for said, ending, complete in (
        (word("[DONE]"), False, False),
        (word('"usage": {'), False, False),
        (word('"error": "x"'), False, False),
        (event({"choices": [], "usage": None, "error": None}), False, False),
        (usage_event(), True, False),
        (DONE, True, True),
    ):
        stream.feed(said)
        assert (stream.ending, stream.complete) == (ending, complete)
    assert stream.events == 6


@pytest.mark.parametrize(
    ("said", "complete"),
    [
        ((word("a"), word("b", "stop"), DONE), True),
        ((word("a"), word("b", "stop")), True),
        ((word("a"), word("b", "tool_calls"), usage_event()), True),
        ((word("a"), b'data: {"choices": [{"finish_reason" : "stop"}]}\n\n'), True),
        ((word("a"), DONE[:-1]), True),
        ((word("a"), DONE[:-2]), True),
        ((word("a"),), False),
        ((), False),
        ((word("a"), word("b", "stop")[:-1]), False),
        ((word("a"), word("b", "stop"), word("c")[:-1]), False),
        ((word("a"), DONE[:-4]), False),
    ],
)
def test_a_stream_is_complete_only_if_it_said_so(said: tuple[bytes, ...], complete: bool) -> None:
    """``[DONE]``, also without its blank line, or a ``finish_reason`` and nothing half after it."""
    out, stream = read(*said)
    assert stream.complete is complete
    assert out.endswith(DONE) is any(one.startswith(b"data: [DONE]") for one in said)


def test_an_error_event_is_noticed_and_told_in_the_gateways_words() -> None:
    """The stream itself told of it: nobody adds another, and none of the provider's secrets goes on with it."""
    told = {"message": "overloaded at http://10.0.0.7:9000/x", "code": 502, "metadata": {"raw": "sk-proj-0123456789"}}
    said = event({"id": "c", "error": told, "choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]})
    out, stream = read(word("a"), said, usage_event(), DONE)
    sent = [json.loads(one[6:]) for one in out.decode().strip().split("\n\n")]
    assert (stream.failed, stream.ending, stream.complete) == (True, True, False)
    assert sent[1]["id"] == "c"
    assert sent[1]["choices"] == [{"index": 0, "delta": {}, "finish_reason": "error"}]
    assert sent[1]["error"] == {
        "message": "overloaded at [redacted]", "type": "upstream_error", "param": None, "code": "upstream_error",
    }  # fmt: skip
    assert stream.usage == Usage(3, 5)  # what was made is paid for
    assert b"[DONE]" not in out  # it would say that all is well
    assert b"sk-proj" not in out


@pytest.mark.parametrize(
    "said",
    [
        {"error": "just words"},
        {"error": {"message": "m"}},
        {"error": {"message": "m", "code": "429", "type": "throttling_error"}},
        [{"error": {"code": 503, "message": "m", "status": "UNAVAILABLE"}}],
        {"choices": [{"index": 0, "delta": {}, "error": {"message": "m", "code": 502}, "finish_reason": "error"}]},
        {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]},
    ],
)
def test_an_error_is_seen_wherever_it_stands(said: Any) -> None:
    """At the top, in an array, in a choice, or as the reason of the end: the client's SDK is told at the top."""
    out, stream = read(word("a"), event(said))
    last = json.loads(out.decode().strip().split("\n\n")[-1][6:])
    assert (stream.failed, stream.complete) == (True, False)
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert all("error" not in choice for choice in last.get("choices", ()))


@pytest.mark.parametrize(
    "said",
    [
        b'data: not json [DONE] "usage": {\n\n',
        b'data: ["error", "x", "error": 1]\n\n',
        b'data: ["x", {"error": 1}]\n\n',
        b": [DONE]\n\n",
    ],
)
def test_an_event_that_is_not_understood_is_passed_on(said: bytes) -> None:
    """Strange is not wrong."""
    out, stream = read(said)
    assert (out, stream.usage, stream.failed, stream.ending) == (said, None, False, False)


def test_an_event_without_an_end_is_given_up_on() -> None:
    """After 8 MiB."""
    stream = OpenAIStream("openai", drop_usage=True)
    for _ in range(128):
        assert stream.feed(b"x" * 65536) == b""
    with pytest.raises(UpstreamError, match="without an end"):
        stream.feed(b"x")


# -- the shapes that vendors have (one row of the list of quirks each) ---------------------------------------------------


def decoder(kind: str = "openai", **fields: Any) -> Any:
    """The decoder that a vendor's adapter gives for a stream."""
    told = {"model": "m", "messages": [{"role": "user", "content": "a"}], "stream": True, **fields}
    return adapter_of(kind, kind, "http://h/v1").stream(parse(CHAT, json.dumps(told).encode()))


def through(kind: str, *pieces: bytes, **fields: Any) -> tuple[bytes, Any]:
    """All of a stream through a vendor's decoder."""
    stream = decoder(kind, **fields)
    return b"".join([*(stream.feed(piece) for piece in pieces), stream.finish()]), stream


def delta(content: Any, finish: str | None = None, **more: Any) -> bytes:
    """A chunk with one delta."""
    return event({"choices": [{"index": 0, "delta": content, "finish_reason": finish}], **more})


def call_piece(arguments: Any, **more: Any) -> dict[str, Any]:
    """A delta with a piece of a tool call."""
    return {"tool_calls": [{"function": {"name": "f", "arguments": arguments}, **more}]}


@pytest.mark.parametrize(
    "said",
    [
        pytest.param((delta({"content": "a"}), delta({}, "stop", usage=USAGE)), id="usage on the finish chunk, no DONE"),
        pytest.param((delta({"content": "a"}, usage=USAGE), delta({}, "stop", usage=USAGE), DONE), id="usage on every chunk"),
        pytest.param((delta({"content": "a"}), delta({}, "stop"), DONE), id="no usage"),
        pytest.param((event({"choices": [], "prompt_filter_results": [{"prompt_index": 0}], "model": ""}),
                      delta({"content": "a"}), delta({}, "stop"), DONE), id="first chunk without choices"),
        pytest.param((delta({"role": "assistant", "content": None}), delta({"role": "assistant", "content": "a"}),
                      delta({"role": "assistant", "content": ""}, "stop"), DONE), id="role on every delta"),
        pytest.param((delta(call_piece("{}", id="c", index=0), "tool_calls"), DONE), id="tool call and finish in one chunk"),
        pytest.param((delta(call_piece("{}", id="c")), delta({}, "tool_calls"), DONE), id="tool call without an index"),
        pytest.param((delta(call_piece("{", id="c", index=0)), delta(call_piece("}", id="c", index=0)),
                      delta({}, "tool_calls"), DONE), id="id repeated"),
        pytest.param((delta(call_piece("{}", id="c", index=0, extra_content={"google": {"thought_signature": "s"}})),
                      delta({}, "tool_calls"), DONE), id="unknown members of a tool call"),
        pytest.param((b": OPENROUTER PROCESSING\n\n", b": keep-alive\n\n", delta({"content": "a"}), b": x\n\n",
                      delta({}, "stop"), DONE), id="comments"),
        pytest.param((b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\r\n\r\n',
                      b"data: [DONE]\r\n\r\n"), id="CRLF"),
        pytest.param((delta({"content": "a"}), delta({}, "stop", timings={"predicted_n": 1}), DONE), id="timings"),
        pytest.param((delta({"audio": {"data": "A" * 3_000_000}}), delta({}, "stop"), DONE), id="a very long line"),
        pytest.param((delta({"reasoning": "r", "reasoning_details": [{"type": "x", "signature": "s"}]}),
                      delta({}, "stop"), DONE), id="reasoning"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["openai", "gemini", "azure", "ollama", "vllm", "openrouter", "mistral"])
def test_a_vendors_shape_goes_on_byte_for_byte(kind: str, said: tuple[bytes, ...]) -> None:
    """Nothing is made up and nothing is left out, and the stream is whole."""
    out, stream = through(kind, *said)
    assert out == b"".join(said)
    assert (stream.complete, stream.failed) == (True, False)
    assert stream.usage == (Usage(3, 5) if b'"total_tokens"' in out else None)


@pytest.mark.parametrize("choices", [[], None, "missing"])
def test_a_usage_event_is_one_whatever_its_choices_are(choices: Any) -> None:
    """An empty list, null (some vLLM versions), or none: kept back from a client that did not ask, given to one that did."""
    told = event({"usage": USAGE} if choices == "missing" else {"choices": choices, "usage": USAGE})
    out, stream = through("vllm", delta({"content": "a"}, "stop"), told, DONE)
    assert out == delta({"content": "a"}, "stop") + DONE
    assert stream.usage == Usage(3, 5)
    wanted = {"stream_options": {"include_usage": True}}
    assert told in through("vllm", delta({"content": "a"}, "stop"), told, DONE, **wanted)[0]


def test_a_comment_is_no_token() -> None:
    """A sign of life while the provider waits: it goes on and is not counted as an event of the answer."""
    stream = decoder("openrouter")
    assert stream.feed(b": OPENROUTER PROCESSING\n\n" * 3) == b": OPENROUTER PROCESSING\n\n" * 3
    assert (stream.events, stream.ending) == (0, False)
    stream.feed(word("a"))
    assert stream.events == 1


def test_arguments_as_an_object_become_text_for_a_vendor_that_sends_them_so() -> None:
    """OpenAI's clients add strings up; of Ollama, and of nobody else, an object is taken."""
    said = delta(call_piece({"day": "mon", "n": [1, 2.5]}, id="c", index=0), "tool_calls", usage=USAGE)
    out, stream = through("ollama", said, DONE)
    called = json.loads(out[6:].split(b"\n")[0])["choices"][0]["delta"]["tool_calls"][0]
    assert called["id"] == "c"
    assert json.loads(called["function"]["arguments"]) == {"day": "mon", "n": [1, 2.5]}
    assert (stream.usage, stream.complete) == (Usage(3, 5), True)
    assert through("openai", said, DONE)[0] == said + DONE


SHAPES = (
    b": OPENROUTER PROCESSING\n\n",
    word("caf\u00e9 \u4e16\U0001f642"),
    b'data: {"choices":[{"index":0,"delta":{"content":"\xc3\xa9\xe4\xb8\x96"}}]}\r\n\r\n',
    delta(call_piece({"a": 1}, index=0)),
    delta({"content": "x"}, usage=USAGE),
    event({"choices": [], "usage": None}),
    usage_event(),
    event({"error": {"message": "m", "code": 502}, "choices": [{"finish_reason": "error"}]}),
    delta({}, "stop"),
    DONE,
)


@given(st.lists(st.sampled_from(SHAPES), max_size=8), st.lists(st.integers(0, 2000), max_size=12), st.data())
def test_a_stream_reads_the_same_however_it_is_cut(said: list[bytes], cuts: list[int], data: st.DataObject) -> None:
    """Within a line, within a letter, several events in a piece: the same bytes, usage and end."""
    whole = b"".join(said)
    kind = data.draw(st.sampled_from(["openai", "ollama", "openrouter", "llamacpp"]))
    at = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    pieces = [whole[start:end] for start, end in itertools.pairwise(at)]
    expected, plain = through(kind, *said)
    out, stream = through(kind, *pieces)
    assert out == expected
    assert (stream.usage, stream.complete, stream.failed, stream.events) == (
        plain.usage, plain.complete, plain.failed, plain.events,
    )  # fmt: skip


def test_the_adapter_tells_an_error_by_its_own_secrets() -> None:
    """Its key and its place, whatever they look like."""
    adapter = OpenAIAdapter("x", "http://models-a100:9000/v1", "plain words as key")
    stream = adapter.stream(parse(CHAT, b'{"model":"m","messages":[{"role":"user","content":"a"}],"stream":true}'))
    out = stream.feed(event({"error": {"message": "models-a100:9000 refused 'plain words as key'"}}))
    assert json.loads(out[6:])["error"]["message"] == "[redacted] refused '[redacted]'"
