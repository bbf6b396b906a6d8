"""A Messages request in chat's words: each field of the mapping, what is left out and told, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.errors import BadRequest, Unsupported
from asgi_llm_gateway.wire import METERED, Route, may_be_huge, parse

from .messages_parts import FRONT, HELLO, asked, dropped, request, result, use, user

WEATHER = {"name": "weather", "description": "Looks.", "input_schema": {"type": "object", "properties": {}}}
CLOSED = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "at": {"type": "array", "items": {"type": "integer"}}},
    "required": ["city", "at"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}


def test_a_plain_request_becomes_a_plain_one() -> None:
    """Nothing is in it that was not asked for."""
    assert asked() == {"model": "m", "max_tokens": 64, "messages": HELLO}


def test_a_stream_asks_for_its_usage() -> None:
    """Without it nobody would know the counts that the dialect always tells."""
    assert asked(stream=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in asked(stream=False)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"temperature": 0.3}, {"temperature": 0.3}),
        ({"top_p": 1}, {"top_p": 1}),
        ({"stop_sequences": ["a", "\n"]}, {"stop": ["a", "\n"]}),
        ({"stop_sequences": []}, {}),
        ({"metadata": {"user_id": "u-1"}}, {"user": "u-1"}),
        ({"metadata": {"user_id": None}}, {}),
        ({"service_tier": "auto"}, {}),
        ({"service_tier": "standard_only"}, {"service_tier": "default"}),
        ({"output_config": {"effort": "xhigh"}}, {"reasoning_effort": "xhigh"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"reasoning_effort": "low"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, {"reasoning_effort": "medium"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 30000}}, {"reasoning_effort": "high"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}, "output_config": {"effort": "max"}},
         {"reasoning_effort": "max"}),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"cache_control": {"type": "ephemeral"}}, {}),
        ({"mcp_servers": [], "container": None, "speed": "standard", "inference_geo": "global"}, {}),
        ({"context_management": {"edits": []}}, {}),
    ],
)  # fmt: skip
def test_a_field_has_its_word(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Each field becomes what chat calls it, and nothing is told as left out."""
    told = FRONT.request(request(**given))
    assert {
        name: value for name, value in told.data.items() if name not in ("model", "max_tokens", "messages")
    } == wanted
    assert told.dropped == ()


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"top_k": 5}, ("top_k",)),
        ({"thinking": {"type": "disabled"}}, ("thinking",)),
        ({"speed": "fast"}, ("speed",)),
        ({"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}}, ("context_management",)),
        ({"metadata": {"user_id": "a", "team": "b"}}, ("metadata.team",)),
        ({"output_config": {"verbosity": "low"}}, ("output_config.verbosity",)),
        ({"something_new": 1, "diagnostics": {}}, ("something_new", "diagnostics")),
        ({"tools": [{**WEATHER, "input_examples": [{}], "defer_loading": True}]},
         ("tools.defer_loading", "tools.input_examples")),
        ({"tools": [{**WEATHER, "allowed_callers": ["direct"], "defer_loading": False}]}, ()),
        ({"tools": [{**WEATHER, "strict": True}]}, ("tools.strict",)),
        ({"a\r\nset-cookie: b": 1}, ("?",)),
        ({"ключ": 1}, ("?",)),
    ],
)  # fmt: skip
def test_what_is_left_out_is_told(given: dict[str, Any], names: tuple[str, ...]) -> None:
    """Hints without a word and fields that are not known are named, in letters that fit into a header."""
    assert sorted(dropped(**given)) == sorted(names)


def test_what_is_told_is_bounded() -> None:
    """A client that sends thousands of fields does not fill the headers of its answer."""
    assert len(dropped(**{f"field_{number}": 1 for number in range(5000)})) == 32


def test_a_long_user_id_goes_as_its_hash() -> None:
    """OpenAI takes 64 characters; coding agents send more."""
    long = "user_" + "a" * 64 + "_session_1"
    assert asked(metadata={"user_id": long})["user"] == hashlib.sha256(long.encode()).hexdigest()
    assert asked(metadata={"user_id": "a" * 64})["user"] == "a" * 64


# -- tools -------------------------------------------------------------------------------------------------------------


def test_a_tool_becomes_a_function() -> None:
    """Name, description and schema; the mark of the cache is the provider's bookkeeping."""
    marked = {**WEATHER, "type": "custom", "cache_control": {"type": "ephemeral"}}
    assert asked(tools=[marked])["tools"] == [{"type": "function", "function": FUNCTION}]
    assert dropped(tools=[marked]) == ()


def test_a_tool_is_strict_where_openai_can_be() -> None:
    """A closed schema binds; one with optional properties would be refused there, so it goes without."""
    (tool,) = asked(tools=[{"name": "a", "input_schema": CLOSED, "strict": True}])["tools"]
    assert tool["function"]["strict"] is True
    for loose in (
        {**CLOSED, "required": ["city"]},
        {**CLOSED, "additionalProperties": True},
        {**CLOSED, "properties": {"city": {"type": "object", "properties": {}}, "at": {}}},
        {**CLOSED, "oneOf": []},
        {**CLOSED, "$defs": {"a": {"type": "object"}}},
        {"anyOf": [CLOSED]},
    ):
        (tool,) = asked(tools=[{"name": "a", "input_schema": loose, "strict": True}])["tools"]
        assert "strict" not in tool["function"]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "tool", "name": "weather"}, {"tool_choice": {"type": "function", "function": {"name": "weather"}}}),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"tool_choice": "auto", "parallel_tool_calls": False}),
        ({"type": "any", "disable_parallel_tool_use": False}, {"tool_choice": "required"}),
    ],
)
def test_a_choice_has_its_word(choice: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Each kind of choice, and one call at a time."""
    told = asked(tools=[WEATHER], tool_choice=choice)
    assert {name: told[name] for name in told if name in ("tool_choice", "parallel_tool_calls")} == wanted


def test_a_choice_without_tools_asks_for_nothing() -> None:
    """Chat's servers refuse a choice where there are no tools."""
    assert "tool_choice" not in asked(tool_choice={"type": "auto"})


def test_a_long_name_is_cut_everywhere() -> None:
    """Chat has 64 characters for a name: declared, chosen and called it is the same one, and two long ones stay two."""
    one, other = "mcp__" + "a" * 80 + "_one", "mcp__" + "a" * 80 + "_two"
    told = asked(
        tools=[{**WEATHER, "name": one}, {**WEATHER, "name": other}],
        tool_choice={"type": "tool", "name": other},
        messages=[*HELLO, {"role": "assistant", "content": [use("t", other)]}, user(result("t"))],
    )
    names = [tool["function"]["name"] for tool in told["tools"]]
    assert all(len(name) == 64 for name in names)
    assert len({*names}) == 2
    assert told["tool_choice"]["function"]["name"] == names[1]
    assert told["messages"][1]["tool_calls"][0]["function"]["name"] == names[1]


# -- structured answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_a_schema_for_the_answer_is_kept(name: str) -> None:
    """Under its present name and the one before."""
    wanted = {"type": "json_schema", "schema": CLOSED}
    told = asked(**{name: {"format": wanted} if name == "output_config" else wanted})
    assert told["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": CLOSED, "strict": True},
    }


def test_an_open_schema_binds_less_and_that_is_told() -> None:
    """OpenAI would refuse it in strict mode."""
    given = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    assert asked(output_config=given)["response_format"]["json_schema"]["strict"] is False
    assert dropped(output_config=given) == ("output_config.format.strict",)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"compaction": {}}, "compaction"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits[0]"),
        ({"stop_sequences": list("abcde")}, "stop_sequences"),
        ({"tools": [WEATHER, {"type": "web_search_20250305", "name": "web_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "{"}]}, "messages"),
    ],
)
def test_what_has_no_word_is_refused_by_name(given: dict[str, Any], param: str) -> None:
    """It would change the answer, so it is not left out."""
    with pytest.raises(Unsupported) as refused:
        asked(**given)
    assert (refused.value.param, refused.value.http_status) == (param, 400)
    assert f"'{param}'" in refused.value.message


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": "1"}, "top_p"),
        ({"stop_sequences": "a"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"service_tier": ["auto"]}, "service_tier"),
        ({"thinking": "on"}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"output_config": 1}, "output_config"),
        ({"output_config": {"effort": "minimal"}}, "output_config.effort"),
        ({"output_config": {"effort": []}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_format": 1}, "output_format.type"),
        ({"context_management": 1}, "context_management"),
        ({"tools": {}}, "tools"),
        ({"tools": ["a"]}, "tools[0]"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "a", "input_schema": {}, "description": 1}]}, "tools[0].description"),
        ({"tools": [WEATHER], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}},
         "tool_choice.disable_parallel_tool_use"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(given: dict[str, Any], param: str) -> None:
    """Each wrong value is a 400 that says where it stands."""
    with pytest.raises(BadRequest) as refused:
        asked(**given)
    assert (refused.value.param, refused.value.http_status) == (param, 400)
    assert not isinstance(refused.value, Unsupported)


def test_a_depth_without_end_is_refused() -> None:
    """A schema of nine hundred arrays in each other is no traceback."""
    deep = b'{"type":"array","items":' * 900 + b"{}" + b"}" * 900
    schema = b'{"type":"object","additionalProperties":false,"required":["a"],"properties":{"a":%b}}' % deep
    raw = b'{"model":"m","messages":[{"role":"user","content":"a"}],"tools":[{"name":"a","strict":true,"input_schema":%b}]}'
    with pytest.raises(BadRequest, match="nested too deeply"):
        FRONT.request(parse(Route("metered", METERED["/v1/messages"], "/v1/messages"), raw % schema))


def test_no_digit_of_an_input_is_lost() -> None:
    """Whole numbers beyond 64 bits and the order of keys reach the provider as the client wrote them."""
    raw = (
        b'{"model":"m","messages":[{"role":"user","content":"a"},{"role":"assistant","content":[{"type":"tool_use",'
        b'"id":"t","name":"n","input":{"z":123456789012345678901234567890,"a":0.1}}]},'
        b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"b"}]}]}'
    )
    told = FRONT.request(parse(Route("metered", METERED["/v1/messages"], "/v1/messages"), raw)).data
    arguments = told["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert arguments == '{"z":123456789012345678901234567890,"a":0.1}'
    assert list(json.loads(arguments)) == ["z", "a"]


@given(st.binary(max_size=60), st.integers(17, 22), st.binary(max_size=60))
def test_a_run_of_digits_is_seen_wherever_it_stands(before: bytes, digits: int, after: bytes) -> None:
    """As the plain search sees it."""
    raw = before + b"7" * digits + after
    assert may_be_huge(raw) == (re.search(rb"[0-9]{19}", raw) is not None)
