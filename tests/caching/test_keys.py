"""What an answer is known by."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.caching.keys import deterministic, key_of, repeatable
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

from . import PATHS, asking, request_of

DIALECTS = tuple(PATHS)


def known_by(request: LLMRequest, owner: Any = ("", "t"), place: Any = ("/v1",), **more: Any) -> bytes:
    """Its key, for one owner at one place."""
    return key_of(request, owner=owner, place=place, **more)


def read(dialect: str, raw: bytes) -> LLMRequest:
    """A request of these very bytes."""
    return parse(Route("metered", METERED[PATHS[dialect]], PATHS[dialect]), raw)


def shuffled(value: Any, draw: Any, depth: int = 0) -> Any:
    """The same with another order of fields, at the levels where order says nothing."""
    if type(value) is dict:
        names = draw(st.permutations(list(value)))
        return {
            name: shuffled(value[name], draw, depth + 1) if depth or name in ("messages", "input") else value[name]
            for name in names
        }
    if type(value) is list and depth < 4:
        return [shuffled(one, draw, depth + 1) if type(one) is dict else one for one in value]
    return value


PART = st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=5)})
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]),
        "content": st.text(max_size=6) | st.lists(PART, max_size=2),
    },
    optional={"name": st.sampled_from(["a", "b"])},
)
TOOL = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {
                "name": st.sampled_from(["f", "g"]),
                "parameters": st.permutations(["a", "b"]).map(lambda names: {"properties": {key: {} for key in names}}),
            }
        ),
    }
)
BODY = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", "n"]), "messages": st.lists(MESSAGE, min_size=1, max_size=3)},
    optional={
        "temperature": st.sampled_from([0, 1, 0.5]),
        "seed": st.integers(0, 2),
        "max_tokens": st.integers(1, 3),
        "tools": st.lists(TOOL, max_size=2),
        "user": st.sampled_from(["u", "v"]),
        "vendor": st.recursive(
            st.integers(0, 1) | st.booleans() | st.none(), lambda inner: st.lists(inner, max_size=2)
        ),
        "stop": st.sampled_from(["x", ["x"], ["x", "y"]]),
    },
)


def meaning(body: dict[str, Any]) -> str:
    """A body in one way of writing it: an oracle that is not the code's."""
    told = copy.deepcopy(body)
    for message in told["messages"]:
        if type(message["content"]) is list:
            message["content"] = [sorted(part.items()) for part in message["content"]]
    told["messages"] = [sorted(message.items()) for message in told["messages"]]
    return json.dumps(sorted(told.items()))


@settings(max_examples=300)
@given(BODY, BODY)
def test_two_requests_share_a_key_if_and_only_if_they_mean_the_same(one: Any, other: Any) -> None:
    """Whatever differs: model, messages, tools and the order in their schemas, sampling, fields that nobody knows."""
    same = known_by(request_of("chat", **one)) == known_by(request_of("chat", **other))
    assert same == (meaning(one) == meaning(other))


@settings(max_examples=200)
@given(BODY, st.data())
def test_what_does_not_change_the_answer_does_not_change_the_key(body: Any, data: Any) -> None:
    """The order of fields, white space, how the answer is sent, hints, and defaults that are written out as null."""
    other = shuffled(body, data.draw)
    if data.draw(st.booleans()):
        other |= {"stream": True}
        if data.draw(st.booleans()):
            other["stream_options"] = {"include_usage": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        other["prompt_cache_key"] = "k"
    for name in data.draw(st.sets(st.sampled_from(["top_p", "logit_bias", "n"]))):
        other.setdefault(name, None)
    raw = json.dumps(other, indent=data.draw(st.sampled_from([None, 1]))).encode()
    assert known_by(read("chat", raw)) == known_by(request_of("chat", **body))


@given(st.lists(st.sampled_from(["", "a", "b", "ab", 'a","b', "a\x00b"]), max_size=3), st.integers(0, 3))
def test_no_owner_can_be_written_as_another(names: list[str], cut: int) -> None:
    """Names are kept apart, whatever stands in them."""
    request = request_of("chat")
    keys = {
        known_by(request, names[:cut], names[cut:]),
        known_by(request, [*names[:cut], "a"], names[cut:]),
        known_by(request, ["".join(names[:cut])], [*names[cut:], ""]),
        known_by(request, names[:cut], [*names[cut:], "x", "y"]),
    }
    assert len(keys) >= 3


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialects_answers_are_its_own(dialect: str) -> None:
    """The same body means another thing under another path."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", "max_tokens": 1}
    keys = {name: known_by(request_of(name, **body)) for name in DIALECTS}
    assert sum(key == keys[dialect] for key in keys.values()) == 1


def test_a_whole_float_is_the_same_number() -> None:
    """0.0 and 0 are one temperature; -0.0 too. 0.1 is another."""
    keys = {known_by(request_of("chat", **asking("chat", temperature=value))) for value in (0, 0.0, -0.0)}
    assert len(keys) == 1
    assert known_by(request_of("chat", **asking("chat", temperature=0.1))) not in keys


def test_numbers_that_no_float_holds_stay_apart() -> None:
    """Two seeds that are read as the same float are two seeds."""
    bodies = [b'{"model":"m","messages":[{"role":"user","content":"x"}],"seed":%d}' % (10**20 + one) for one in (0, 1)]
    assert len({known_by(read("chat", raw)) for raw in bodies}) == 2


def test_a_body_that_is_too_deep_to_be_written_has_a_key() -> None:
    """Its own bytes."""
    deep = [
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":%b%d%b}' % (b"[" * 600, one, b"]" * 600)
        for one in (1, 2)
    ]
    assert len({known_by(read("chat", raw)) for raw in deep}) == 2


def test_stream_options_of_a_vendor_are_part_of_the_answer() -> None:
    """They change its events; the two that are known do not."""
    plain = asking("chat", stream=True)
    keys = [
        known_by(request_of("chat", **plain, stream_options=options))
        for options in ({}, {"include_usage": True}, {"include_obfuscation": False}, {"continuous_usage_stats": True})
    ]
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_fields_that_are_said_not_to_matter_do_not() -> None:
    """By the operator."""
    bodies = [asking("chat", user=user) for user in ("a", "b")]
    assert len({known_by(request_of("chat", **body)) for body in bodies}) == 2
    assert len({known_by(request_of("chat", **body), ignore={"user"}) for body in bodies}) == 1


@pytest.mark.parametrize(
    ("fields", "so"),
    [
        ({"temperature": 0}, True), ({"temperature": 0.0}, True), ({"seed": 0}, True), ({"seed": 7, "temperature": 1}, True),
        ({}, False), ({"temperature": None}, False), ({"temperature": False}, False), ({"temperature": 0.01}, False),
        ({"seed": None}, False), ({"temperature": "0"}, False),
    ],
)  # fmt: skip
def test_determinism_is_temperature_zero_or_a_seed(fields: dict[str, Any], so: bool) -> None:
    """And embeddings are always so."""
    said = [{"role": "user", "content": "x"}]
    assert deterministic(request_of("chat", model="m", messages=said, **fields)) is so
    assert deterministic(request_of("embeddings", model="m", input="x", **fields))


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("chat", {"store": True}), ("chat", {"web_search_options": {"x": 1}}), ("chat", {"audio": {"voice": "x"}}),
        ("chat", {"plugins": [{"id": "web"}]}), ("responses", {"background": True}), ("responses", {"conversation": "conv_1"}),
        ("responses", {"tools": [{"type": "web_search"}]}), ("responses", {"tools": [{"type": "mcp", "server_url": "x"}]}),
        ("messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("messages", {"mcp_servers": [{"url": "x"}]}), ("messages", {"container": "c"}), ("chat", {"tools": [{"type": 5}]}),
    ],
)  # fmt: skip
def test_a_call_that_does_more_than_answer_is_not_repeated(dialect: str, fields: dict[str, Any]) -> None:
    """Nor one whose answer depends on what is not in it."""
    assert not repeatable(request_of(dialect, **asking(dialect, **fields)))


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("chat", {}), ("chat", {"store": False}), ("responses", {}), ("responses", {"previous_response_id": "resp_1"}),
        ("chat", {"tools": [{"type": "function", "function": {"name": "f"}}]}), ("messages", {"tools": [{"name": "f"}]}),
        ("messages", {"tools": [{"type": "custom", "name": "f"}]}), ("embeddings", {}), ("chat", {"tools": None}),
    ],
)  # fmt: skip
def test_a_call_that_only_answers_is(dialect: str, fields: dict[str, Any]) -> None:
    """Tools that the caller runs itself are part of the answer."""
    assert repeatable(request_of(dialect, **asking(dialect, **fields)))
