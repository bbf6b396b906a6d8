"""The embedded provider: determined by the request alone, with OpenAI's shapes and failures on demand."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from asgi_llm_gateway.adapters.base import Script, Unsupported
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.errors import BadRequest
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.proxy.transfer import Timeouts
from asgi_llm_gateway.wire import METERED, Route, parse

from ..conversation import CHAT, ask, call

USER = [{"role": "user", "content": "one two three"}]


def script(path: str = "/v1/chat/completions", adapter: EchoAdapter | None = None, **fields: Any) -> Script:
    """What echo would play."""
    told: dict[str, Any] = {"model": "echo", **fields}
    if path == "/v1/chat/completions":
        told.setdefault("messages", USER)
    request = parse(Route("metered", METERED[path], path), json.dumps(told).encode())
    return (adapter or EchoAdapter()).request(request, "echo")


def whole(path: str = "/v1/chat/completions", **fields: Any) -> Any:
    """A JSON answer."""
    played = script(path, **fields)
    assert (played.status, dict(played.headers)[b"content-type"]) == (200, b"application/json")
    return json.loads(b"".join(data for _, data in played.steps))


def chunks(path: str = "/v1/chat/completions", **fields: Any) -> list[Any]:
    """A stream's events, the ``[DONE]`` taken off."""
    *events, done = [data for _, data in script(path, stream=True, **fields).steps]
    assert done == b"data: [DONE]\n\n"
    assert all(one.startswith(b"data: {") and one.endswith(b"}\n\n") for one in events)
    return [json.loads(one[6:]) for one in events]


# -- words -------------------------------------------------------------------------------------------------------------


def test_echo_says_back_what_it_was_told() -> None:
    """The last words of the user; words are its tokens."""
    answer = whole(messages=[{"role": "system", "content": "be brief"}, *USER])
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "one two three", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert (answer["object"], answer["model"]) == ("chat.completion", "echo")
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_the_same_request_gets_the_same_answer() -> None:
    """Also the same id; another request gets another."""
    first, again, other = whole(), whole(), whole(seed=1)
    assert first["id"] == again["id"] != other["id"]
    assert first["choices"] == again["choices"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("  two  spaces\n", "  two  spaces"),
        ([{"type": "text", "text": "from"}, {"type": "text", "text": "parts"}], "from parts"),
        ([{"type": "image_url", "image_url": {"url": "data:,"}}], "Hello from the echo model."),
        ("", "Hello from the echo model."),
        (None, "Hello from the echo model."),
        ("\u00e9\u4e16\U0001f642", "\u00e9\u4e16\U0001f642"),
    ],
)
def test_any_content_can_be_said_back(content: Any, expected: str) -> None:
    """Text, parts, pictures, nothing."""
    assert whole(messages=[{"role": "user", "content": content}])["choices"][0]["message"]["content"] == expected


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_cuts_the_answer(field: str) -> None:
    """And says so."""
    two: dict[str, Any] = {field: 2}
    answer = whole(**two)
    assert answer["choices"][0]["message"]["content"] == "one two"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2
    three: dict[str, Any] = {field: 3}
    assert whole(**three)["choices"][0]["finish_reason"] == "stop"


def test_a_completion_says_back_its_prompt() -> None:
    """The old API, its own shape."""
    answer = whole("/v1/completions", prompt="once upon a time")
    assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", "once upon a time")
    assert answer["usage"]["prompt_tokens"] == 4
    texts = "".join(one["choices"][0]["text"] for one in chunks("/v1/completions", prompt="a b c") if one["choices"])
    assert texts == "a b c"


def test_a_stream_is_the_answer_word_by_word() -> None:
    """Role, words, the reason, the usage, the end."""
    events = chunks()
    deltas = [one["choices"][0]["delta"] for one in events[:-1]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content") or "" for delta in deltas) == "one two three"
    assert [one["choices"][0]["finish_reason"] for one in events[:-1]] == [None] * 4 + ["stop"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole()["usage"]
    assert {one["object"] for one in events} == {"chat.completion.chunk"}
    assert len({one["id"] for one in events}) == 1


def test_several_answers_are_counted() -> None:
    """``n``: each has its index."""
    answer = whole(n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 9
    streamed = {one["choices"][0]["index"] for one in chunks(n=3) if one["choices"]}
    assert streamed == {0, 1, 2}


# -- tools and schemas -------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["c", "f"]},
        "exact": {"const": 7},
        "list": {"type": "array", "items": {"type": "boolean"}},
        "inner": {"type": "object", "properties": {"x": {"type": "number"}}},
        "maybe": {"type": ["null", "string"]},
    },
}
VALUE = {"city": "echo", "days": 1, "unit": "c", "exact": 7, "list": [True], "inner": {"x": 1.0}, "maybe": None}
TOOLS = [
    {"type": "function", "function": {"name": "first", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "second"}},
]


@pytest.mark.parametrize(
    ("choice", "name", "arguments"),
    [
        ("required", "first", VALUE),
        ({"type": "function", "function": {"name": "first"}}, "first", VALUE),
        ({"type": "function", "function": {"name": "second"}}, "second", {}),
    ],
)
def test_a_tool_is_called_if_one_must_be(choice: Any, name: str, arguments: Any) -> None:
    """The named one, or the first; its arguments match its schema, streamed and not."""
    answer = whole(tools=TOOLS, tool_choice=choice)["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["message"]["content"] is None
    called = answer["message"]["tool_calls"][0]
    assert (called["type"], called["function"]["name"]) == ("function", name)
    assert json.loads(called["function"]["arguments"]) == arguments
    deltas = [one["choices"][0]["delta"] for one in chunks(tools=TOOLS, tool_choice=choice) if one["choices"]]
    pieces = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert [piece["index"] for piece in pieces] == [0] * len(pieces)
    assert (pieces[0]["id"], pieces[0]["function"]["name"]) == (called["id"], name)
    assert json.loads("".join(piece["function"]["arguments"] for piece in pieces)) == arguments


@pytest.mark.parametrize("choice", [None, "auto", "none", {"type": "function", "function": {"name": "absent"}}])
def test_no_tool_is_called_unasked(choice: Any) -> None:
    """Words then."""
    fields = {} if choice is None else {"tool_choice": choice}
    assert whole(tools=TOOLS, **fields)["choices"][0]["message"]["content"] == "one two three"


def test_a_tools_result_is_said_back() -> None:
    """The second half of the round trip."""
    messages = [
        *USER,
        {"role": "assistant", "tool_calls": []},
        {"role": "tool", "tool_call_id": "x", "content": "21 C"},
    ]
    assert whole(messages=messages, tools=TOOLS)["choices"][0]["message"]["content"] == "21 C"


def test_an_answer_matches_its_schema() -> None:
    """``json_schema`` and ``json_object``, streamed too."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    assert json.loads(whole(response_format=wanted)["choices"][0]["message"]["content"]) == VALUE
    assert json.loads(whole(response_format={"type": "json_object"})["choices"][0]["message"]["content"]) == {}
    deltas = [one["choices"][0]["delta"] for one in chunks(response_format=wanted) if one["choices"]]
    assert json.loads("".join(delta.get("content") or "" for delta in deltas)) == VALUE


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "object", "properties": {"a": {"type": "object", "properties": {"a": True}}}},
        {"properties": {"a": 7}},
        {"type": []},
        {"type": 7},
        {},
    ],
)
def test_a_strange_schema_does_no_harm(schema: dict[str, Any]) -> None:
    """Something comes back, and it is JSON."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    json.loads(whole(response_format=wanted)["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": 7},
        {"tools": [7, {"function": 7}], "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": 7},
        {"tools": TOOLS, "tool_choice": {"function": 7}},
        {"response_format": 7},
        {"response_format": {"type": "json_schema", "json_schema": 7}},
        {"metadata": 7},
        {"metadata": {}},
    ],
)
def test_fields_of_the_wrong_kind_do_no_harm(fields: dict[str, Any]) -> None:
    """A demo must not fall over."""
    assert whole(**fields)["choices"]


# -- embeddings --------------------------------------------------------------------------------------------------------


def test_vectors_depend_on_the_text_alone() -> None:
    """One each, in order, of the size asked for."""
    answer = whole("/v1/embeddings", input=["a", "b", "a"], dimensions=16)
    vectors = [row["embedding"] for row in answer["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert [row["index"] for row in answer["data"]] == [0, 1, 2]
    assert {len(vector) for vector in vectors} == {16}
    assert all(-1 <= value <= 1 for vector in vectors for value in vector)
    assert (answer["object"], answer["usage"]) == ("list", {"prompt_tokens": 3, "total_tokens": 3})


def test_vectors_can_be_packed() -> None:
    """base64 of little-endian floats: what the official SDK asks for."""
    plain = whole("/v1/embeddings", input="a")["data"][0]["embedding"]
    packed = whole("/v1/embeddings", input="a", encoding_format="base64")["data"][0]["embedding"]
    assert struct.unpack("<8f", base64.b64decode(packed)) == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "rows", "tokens"),
    [("two words", 1, 2), (["a", "b c"], 2, 3), ([1, 2, 3], 1, 3), ([[1, 2], [3]], 2, 3)],
)
def test_inputs_of_all_kinds_are_taken(given: Any, rows: int, tokens: int) -> None:
    """Text, texts, tokens, lists of tokens."""
    answer = whole("/v1/embeddings", input=given)
    assert (len(answer["data"]), answer["usage"]["prompt_tokens"]) == (rows, tokens)


def test_an_api_that_it_does_not_know_is_refused() -> None:
    """Responses."""
    with pytest.raises(Unsupported):
        script("/v1/responses", input="x")


# -- pace and failures -------------------------------------------------------------------------------------------------


def test_a_delay_is_before_each_event() -> None:
    """The request's own, or the provider's."""
    played = script(stream=True, metadata={"echo_delay_ms": "250"})
    assert {delay for delay, _ in played.steps} == {0.25}
    assert {delay for delay, _ in script(adapter=EchoAdapter(delay=0.5), stream=True).steps} == {0.5}
    assert script(metadata={"echo_delay_ms": 100}).steps[0][0] == 0.1


@pytest.mark.parametrize("delay", [-1, 10_001, "soon", 1.5, True, None, "\u0665", "1" * 5000])
def test_a_delay_that_is_none_is_refused(delay: Any) -> None:
    """400; nothing at all is no delay."""
    if delay is None:
        assert script(metadata={"echo_delay_ms": None}).steps[0][0] == 0
    else:
        with pytest.raises(BadRequest):
            script(metadata={"echo_delay_ms": delay})


@pytest.mark.parametrize("fault", ["200", "302", "cut", "cut@", "cut@x", "stall", "boom", "cut@1 ", 7])
def test_a_fault_that_is_none_is_refused(fault: Any) -> None:
    """By the request and by the settings."""
    with pytest.raises(BadRequest, match="echo_fault"):
        script(metadata={"echo_fault": fault})
    with pytest.raises(ValueError, match="cut@N"):
        EchoAdapter(fault=str(fault))


def gateway(**more: Any) -> ProxyApp:
    """A ProxyApp with echo alone."""
    timeouts = Timeouts(connect=1, write=1, first_byte=0.2, idle=0.2, total=10)
    return ProxyApp(router=Router([EchoAdapter(**more)]), timeouts=timeouts)


@pytest.mark.parametrize(
    ("fault", "status"),
    [("400", 400), ("401", 502), ("404", 404), ("429", 429), ("500", 502), ("503", 503), ("529", 503), ("html", 502),
     ("half", 502), ("cut@0", 502)],
)  # fmt: skip
async def test_a_fault_looks_like_a_providers(fault: str, status: int) -> None:
    """What a client meets when it is played."""
    answer = await ask(gateway(), {**CHAT, "metadata": {"echo_fault": fault}})
    assert answer.status == status
    assert ("retry-after-ms" in answer.headers) is (fault in ("429", "503"))
    assert (await ask(gateway(fault=fault), CHAT)).status == status


async def test_a_cut_stream_ends_in_an_error() -> None:
    """After N events."""
    answer = await ask(gateway(), {**CHAT, "stream": True, "metadata": {"echo_fault": "cut@2"}})
    assert len(answer.events) == 3
    assert json.loads(answer.events[-1])["error"]["code"] == "upstream_cut"


async def test_a_stalled_stream_can_be_left() -> None:
    """It says nothing more; the client hangs up."""
    async with call(gateway(), {**CHAT, "stream": True, "metadata": {"echo_fault": "stall@2"}}) as talk:
        assert (await talk.next())["status"] == 200
        await talk.next()
        await talk.hang_up()


async def test_a_call_through_the_gateway_is_whole() -> None:
    """Streamed and not, the usage event dropped unless it was asked for."""
    assert (await ask(gateway(), CHAT)).json()["choices"][0]["message"]["content"] == "one two three"
    plain = await ask(gateway(), {**CHAT, "stream": True})
    assert plain.events[-1] == "[DONE]"
    assert not any('"usage":{' in one for one in plain.events)
    asked = await ask(gateway(), {**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    assert len(asked.events) == len(plain.events) + 1
    assert json.loads(asked.events[-2])["usage"]["completion_tokens"] == 3
